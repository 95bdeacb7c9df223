"""The built pages in a browser: they work alone, for every reader, and show what is true."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from diffusion_lib.interactive import laboratory_noise
from diffusion_lib.schedule import NoiseSchedule

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"

# All but the root, which only leads on to the first page.
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.glob("**/*.html")
    if "_static" not in path.parts and path != HTML / "index.html"
)
CHAPTERS = [page for page in PAGES if page.startswith("chapters/")]

# Noise of the widget manager about its own schema, once for each page.
CONSOLE_NOISE = {
    'strict mode: use allowUnionTypes to allow union type keyword at "#/properties/state/'
    'additionalProperties/properties/buffers/items/properties/path/items" (strictTypes)'
}

# Served once and then kept by the browser.
SHARED = ("_static/", "vendor/")
PAGE_WEIGHT = 1.5e6  # bytes


def ready(page):
    """Wait until mathematics and widgets are in place."""
    page.evaluate("() => window.MathJax?.startup.promise")
    page.wait_for_function(
        """() => [...document.querySelectorAll(
             'script[type="application/vnd.jupyter.widget-view+json"]')]
           .every(view => view.parentElement.querySelector('.widget-subarea .jupyter-widgets'))"""
    )
    page.wait_for_load_state("networkidle")


class Visit:
    """One page, opened once, with all that it asked for and said."""

    def __init__(self, browser, site, name):
        self.name, self.site = name, site
        self.requests, self.responses, self.failed, self.console = [], [], [], []
        self.context = browser.new_context(
            viewport={"width": 1280, "height": 800}, color_scheme="light", reduced_motion="reduce"
        )
        self.page = page = self.context.new_page()
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("response", lambda response: self.responses.append(response))
        page.on("requestfailed", lambda request: self.failed.append((request.url, request.failure)))
        page.on("console", lambda message: self.console.append((message.type, message.text)))
        page.on("pageerror", lambda error: self.console.append(("error", str(error))))
        page.goto(site + name)
        ready(page)


@pytest.fixture(scope="module", params=PAGES)
def visit(request, browser, site):
    visit = Visit(browser, site, request.param)
    yield visit
    visit.context.close()


def test_every_page_of_the_contents_is_built():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    assert not {f"{file}.html" for file in files} - set(PAGES)


def test_root_leads_to_the_first_page(browser, site):
    page = browser.new_page()
    page.goto(site)
    page.wait_for_url(f"{site}book/index.html")
    assert page.title().startswith("Diffusion models, step by step")
    page.close()


def test_no_request_leaves_the_site(visit):
    local = (visit.site, "blob:", "data:")
    assert [url for url in visit.requests if not url.startswith(local)] == []


def test_nothing_fails_to_load(visit):
    assert visit.failed == []
    assert [(r.status, r.url) for r in visit.responses if r.status >= 400] == []


def test_console_is_clean(visit):
    said = {text for kind, text in visit.console if kind in ("error", "warning")}
    assert said - CONSOLE_NOISE == set()


def test_mathematics_is_typeset(visit):
    left = visit.page.evaluate(
        """() => [...document.querySelectorAll('.math')]
             .filter(node => !node.querySelector('mjx-container'))
             .map(node => node.textContent)"""
    )
    assert left == []
    errors = visit.page.evaluate(
        """() => [...document.querySelectorAll('mjx-merror, [data-mml-node="merror"]')]
             .map(node => node.textContent)"""
    )
    assert errors == []
    text = visit.page.evaluate(
        """() => {
             const copy = document.body.cloneNode(true);
             copy.querySelectorAll('pre, code, script, style').forEach(node => node.remove());
             return copy.textContent;
           }"""
    )
    assert [mark for mark in ("$$", "\\(", "\\[", ":::", "{math}") if mark in text] == []


@pytest.mark.parametrize("page", CHAPTERS)
def test_chapters_have_mathematics(page):
    assert 'class="math' in (HTML / page).read_text(encoding="utf-8")


def test_every_image_has_a_text(visit):
    bare = visit.page.evaluate(
        """() => [...document.querySelectorAll('img, canvas, svg[role=img]')]
             .filter(node => node.getAttribute('aria-hidden') !== 'true')
             .filter(node => !(node.getAttribute('alt') ?? node.getAttribute('aria-label')
                               ?? node.getAttribute('aria-labelledby') ?? '').trim())
             .map(node => node.outerHTML.slice(0, 200))"""
    )
    assert bare == []


def test_page_is_light(visit):
    own = [
        response
        for response in visit.responses
        if response.url.startswith(visit.site)
        and not response.url.removeprefix(visit.site).startswith(SHARED)
        and response.status == 200
    ]
    assert own
    assert sum(int(response.headers["content-length"]) for response in own) < PAGE_WEIGHT


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(visit, theme):
    visit.page.emulate_media(color_scheme=theme)
    visit.page.wait_for_function(f"() => document.documentElement.dataset.theme === '{theme}'")
    visit.page.evaluate(AXE.read_text(encoding="utf-8"))
    result = visit.page.evaluate(
        "() => axe.run(document, { runOnly: ['color-contrast'], resultTypes: ['violations'] })"
    )
    bad = [
        (node["html"][:200], node["any"][0]["message"])
        for violation in result["violations"]
        for node in violation["nodes"]
    ]
    assert bad == []


def test_phone_needs_no_sideways_scroll(visit):
    visit.page.set_viewport_size({"width": 360, "height": 800})
    try:
        wide = visit.page.evaluate(
            """() => [document.documentElement, ...document.querySelectorAll(
                 '.widget-subarea, .widget-subarea .jupyter-widgets, .cell_output > .output')]
               .filter(node => !node.matches('.text_plain, .stream, .traceback'))
               .filter(node => node.scrollWidth > Math.max(node.clientWidth, 1) + 1)
               .map(node => `${node.className}: ${node.scrollWidth} in ${node.clientWidth}`)"""
        )
        assert wide == []
    finally:
        visit.page.set_viewport_size({"width": 1280, "height": 800})


# What a view shows, apart from its controls: pixels, curves and words.
SHOWN = """box => [...box.querySelectorAll('.diffusion-view')].map(view =>
  [...view.querySelectorAll('canvas')].map(canvas => canvas.toDataURL()).join()
  + [...view.querySelectorAll('svg')].map(svg => svg.outerHTML).join()
  + view.innerText).join()"""
SLIDERS = ".diffusion-box .noUi-handle"


def boxes_of(page, control):
    """Pairs of each control and the box around it and its view."""
    for handle in page.locator(control).all():
        yield handle, handle.locator("xpath=ancestor::*[contains(@class, 'diffusion-box')]").last


def expect_change(page, box, before):
    """Wait until the view in `box` no longer shows `before`; playwright raises if it stays."""
    page.wait_for_function(
        f"([box, before]) => ({SHOWN})(box) !== before",
        arg=[box.element_handle(), before],
        timeout=3000,
    )


def test_sliders_answer_the_keyboard(visit):
    for handle, box in boxes_of(visit.page, SLIDERS):
        before = box.evaluate(SHOWN)
        at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.press("ArrowLeft" if at_end else "ArrowRight")
        expect_change(visit.page, box, before)


def test_play_buttons_play(visit):
    for button, box in boxes_of(visit.page, ".widget-play button:first-child"):
        before = box.evaluate(SHOWN)
        button.click()
        expect_change(visit.page, box, before)
        button.click()


@pytest.mark.parametrize("page_name", CHAPTERS)
def test_sliders_answer_a_finger(browser, site, page_name):
    context = browser.new_context(
        viewport={"width": 360, "height": 800}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(site + page_name)
    ready(page)
    finger = context.new_cdp_session(page)

    def touch(kind, *points):
        finger.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]},
        )

    count = 0
    for handle, box in boxes_of(page, SLIDERS):
        handle.scroll_into_view_if_needed()
        before = box.evaluate(SHOWN)
        place = handle.bounding_box()
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
        track = handle.locator("xpath=ancestor::*[contains(@class, 'noUi-base')]").bounding_box()
        middle = track["x"] + track["width"] / 2
        target = track["x"] if x > middle else track["x"] + track["width"]
        touch("touchStart", (x, y))
        for share in (0.2, 0.5, 1):
            touch("touchMove", (x + share * (target - x), y))
        touch("touchEnd")
        expect_change(page, box, before)
        count += 1
    context.close()
    assert count > 0, "a chapter has at least one slider"


LABORATORY = '[data-view="noise-laboratory"]'


def stored_images(page_name):
    """Bytes of the laboratory's images as the notebook stores them, shape (N, C, H, W)."""
    notebook = json.loads((ROOT / page_name).with_suffix(".ipynb").read_text(encoding="utf-8"))
    state = notebook["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    [model] = [m for m in state.values() if "schedule_index" in m["state"]]
    [buffer] = [b for b in model["buffers"] if b["path"] == ["images"]]
    data = np.frombuffer(base64.b64decode(buffer["data"]), np.uint8)
    return data.reshape(-1, *model["state"]["shape"])


def pixels(view, role):
    """What a canvas of the laboratory shows, shape (3, H, W), 0 … 255."""
    width, height, data = view.locator(f'canvas[data-role="{role}"]').evaluate(
        """canvas => [canvas.width, canvas.height, [...canvas.getContext('2d')
             .getImageData(0, 0, canvas.width, canvas.height).data]]"""
    )
    return np.array(data).reshape(height, width, 4)[..., :3].transpose(2, 0, 1)


def set_time(box, t):
    """Type `t` into the slider's readout."""
    readout = box.locator(".widget-readout").first
    readout.click()
    readout.press("ControlOrMeta+a")
    readout.press_sequentially(str(t))
    readout.press("Enter")


@pytest.mark.parametrize("page_name", [p for p in CHAPTERS if "noise_schedule" in p])
def test_laboratory_shows_what_the_library_computes(browser, site, page_name):
    context = browser.new_context(viewport={"width": 1280, "height": 1200})
    page = context.new_page()
    page.goto(site + page_name)
    ready(page)
    images = stored_images(page_name)
    [(view, box)] = list(boxes_of(page, LABORATORY))

    def state(name):
        return view.evaluate("(view, name) => view.dataset[name]", name)

    def compare(make_schedule, times):
        for t in times:
            set_time(box, t)
            page.wait_for_function(
                "([view, t]) => view.dataset.t === t", arg=[view.element_handle(), str(t)]
            )
            schedule = make_schedule(int(state("steps")))
            x_0 = images[int(state("image"))]
            assert np.array_equal(pixels(view, "x_0"), np.broadcast_to(x_0, (3, *x_0.shape[1:])))
            noise = laboratory_noise(int(state("seed")), x_0.shape)
            x_t = schedule.add_noise(
                torch.tensor(x_0[None] / 127.5 - 1, dtype=torch.float32),
                torch.tensor([t]),
                torch.tensor(noise[None], dtype=torch.float32),
            )[0].numpy()
            expected = (np.clip(x_t, -1, 1) + 1) / 2 * 255
            assert abs(pixels(view, "x_t") - expected).max() <= 1
            expected = (np.clip(noise, -1, 1) + 1) / 2 * 255
            assert abs(pixels(view, "noise") - expected).max() <= 1
            assert abs(float(state("alphaBar")) - schedule.alpha_bar[t].item()) <= 1e-6

    compare(NoiseSchedule.linear, [0, 1, 250, 500, 1000])

    seed = int(state("seed"))
    box.get_by_role("button", name="draw fresh noise").click()
    assert int(state("seed")) == seed + 1
    compare(NoiseSchedule.linear, [0, 1, 250, 500, 1000])

    box.get_by_label("schedule", exact=True).select_option("cosine")
    compare(NoiseSchedule.cosine, [0, 1, 250, 500, 1000])

    box.get_by_label("image", exact=True).select_option(index=3)
    box.get_by_label("T", exact=True).select_option("200")
    compare(NoiseSchedule.cosine, [0, 1, 50, 100, 200])
    context.close()
