"""The built pages in a browser: they work alone, for every reader, and show what is true."""

import base64
import json
import re
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
import torch
import yaml

from diffusion_lib.interactive import (
    charts,
    curves,
    divergence_laboratory,
    gaussian_laboratory,
    laboratory_noise,
    panels,
    together,
)
from diffusion_lib.interactive._common import HERE
from diffusion_lib.interactive._gaussians import gaussian_kl
from diffusion_lib.schedule import NoiseSchedule

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"

# The root only leads on to the first page, and what 404.html asks for begins at a host's root. Of
# the pages with the library's source, which are all alike, one is visited.
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for path in HTML.glob("**/*.html")
    if "_static" not in path.parts
    and path not in (HTML / "index.html", HTML / "404.html")
    and ("_modules" not in path.parts or path.stem == "schedule")
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


# What each view of a box shows, apart from its controls: pixels, curves and words.
SHOWN = """box => [...box.querySelectorAll('.diffusion-view')].map(view =>
  [...view.querySelectorAll('canvas')].map(canvas => canvas.toDataURL()).join()
  + [...view.querySelectorAll('svg')].map(svg => svg.outerHTML).join()
  + view.innerText)"""
SLIDERS = ".diffusion-box .noUi-handle"


def boxes_of(page, control):
    """Pairs of each control and the box around it and its view."""
    for handle in page.locator(control).all():
        yield handle, handle.locator("xpath=ancestor::*[contains(@class, 'diffusion-box')]").last


def expect_change(page, box, before, which="every"):
    """Wait until `which` view in `box` no longer shows `before`; playwright raises if it stays."""
    page.wait_for_function(
        f"([box, before]) => ({SHOWN})(box).{which}((view, k) => view !== before[k])",
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


def test_dropdowns_choose(visit):
    for select, box in boxes_of(visit.page, ".diffusion-box select"):
        before = box.evaluate(SHOWN)
        chosen = select.evaluate("select => select.selectedIndex")
        select.select_option(index=0 if chosen else 1)
        expect_change(visit.page, box, before, which="some")


def test_two_views_over_one_slider_do_not_contend(browser):
    """The second may be shown before the first; both would then say what the slider shows."""
    page = browser.new_page()
    page.set_content('<div class="diffusion-box"><i class="noUi-handle"></i><b></b><b></b></div>')
    source = (HERE / "common.js").read_text(encoding="utf-8")
    texts = page.evaluate(
        """async (source) => {
             const load = () => import(URL.createObjectURL(
               new Blob([source, "export { describeControls };"], { type: "text/javascript" })));
             const [first, second] = [await load(), await load()];
             const [handle, a, b] = document.querySelector(".diffusion-box").children;
             const texts = [];
             handle.setAttribute = (name, text) => {
               if (texts.length > 100) throw new Error("they write by turns without end");
               if (name === "aria-valuetext") texts.push(text);
               Element.prototype.setAttribute.call(handle, name, text);
             };
             b.className = "diffusion-view";
             second.describeControls(b, { label: "t", value: 0, max: 9, words: "second" });
             a.className = "diffusion-view";
             first.describeControls(a, { label: "t", value: 0, max: 9, words: "first" });
             await new Promise((done) => setTimeout(done));
             Element.prototype.setAttribute.call(handle, "aria-valuetext", "0.00");
             await new Promise((done) => setTimeout(done));
             return texts;
           }""",
        source,
    )
    assert texts == ["second", "first", "first"]
    page.close()


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


def set_slider(box, value, number=0):
    """Type `value` into the readout of a slider of the box."""
    readout = box.locator(".widget-readout").nth(number)
    readout.click()
    readout.press("ControlOrMeta+a")
    readout.press_sequentially(str(value))
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
            set_slider(box, t)
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


# Views over data that are known here, on a page with the book's scripts and no kernel.


@pytest.fixture
def shown(browser, site):
    """Show a figure on a page of its own; what comes back is its box."""
    context = browser.new_context(viewport={"width": 1280, "height": 1200})

    def show(figure):
        # All that this process has made, as a notebook stores it.
        state = json.dumps(ipywidgets.Widget.get_manager_state()).replace("</", "<\\/")
        view = json.dumps(figure._repr_mimebundle_()["application/vnd.jupyter.widget-view+json"])
        kind = "application/vnd.jupyter.widget"
        scripts = ["vendor/require.js", "_static/widgets.js", "vendor/embed-amd.js"]
        head = "".join(f'<script defer src="{site}{name}"></script>' for name in scripts)
        body = f"""<script type="{kind}-state+json">{state}</script>
            <div><script type="{kind}-view+json">{view}</script></div>"""
        page = context.new_page()
        page.route(
            f"{site}view.html",
            lambda route: route.fulfill(
                content_type="text/html; charset=utf-8",
                body=f"<!doctype html><title>view</title>{head}{body}",
            ),
        )
        page.goto(f"{site}view.html")
        ready(page)
        box = page.locator(".diffusion-box")
        box.locator("[role=slider][aria-label]").first.wait_for()
        return box

    yield show
    context.close()


def dataset(box, name, view=0):
    return box.locator(".diffusion-view").nth(view).evaluate("(v, name) => v.dataset[name]", name)


def heights(box, chart=0):
    """What the y axis says at its bottom and at its top."""
    marks = box.locator(".diffusion-y").nth(chart).locator("span")
    assert marks.first.evaluate("mark => mark.style.top") == "150px"
    assert marks.last.evaluate("mark => mark.style.top") == "0px"
    low, high = (float(mark.inner_text().replace("−", "-")) for mark in (marks.first, marks.last))
    return low, high


def outline(box, name, kind, chart=0):
    """The path of a series: its numbers, with the y of each command in units of the axis."""
    plot = box.locator(".diffusion-chart").nth(chart)
    d = plot.locator(f'path[data-series="{name}"][data-kind="{kind}"]').get_attribute("d")
    low, high = heights(box, chart)
    steps, at = [], [0.0, 0.0]
    for letter, numbers in re.findall("([MLHVZ])([-0-9. ]*)", d):
        values = [float(number) for number in numbers.split()]
        if letter in "ML":
            at = values
        elif letter in "HV":
            at["HV".index(letter)] = values[0]
        steps.append((letter, at[0] / 1000, high - at[1] / 1000 * (high - low)))
    return steps


def of(steps, letter):
    """Where the commands `letter` of a path lead: x as a share of the width, y."""
    return np.array([(x, y) for command, x, y in steps if command == letter]).T


# Colour, dash and filling of each path of a chart, or of the readout's samples of them.
STYLES = """paths => paths.map(path => ['stroke', 'stroke-dasharray', 'fill', 'fill-opacity']
                                 .map(name => path.getAttribute(name)).join())"""


def test_charts_over_categories(shown):
    generator = np.random.default_rng(0)
    p = np.round(generator.random((2, 3, 4)), 3)
    q = np.array([0.1, 0.2, 0.3, 0.4])
    level = np.array([[[0.25] * 4], [[1.5] * 4]])
    labels = [[f"{word} {k}" for k in range(3)] for word in ("one", "two")]
    box = shown(
        charts(
            [9, 5, 0],
            ["a", "b", "c", "d"],
            bars={"p": p, "q": q},
            lines={"π": level},
            index_name="step",
            x_name="state",
            y_name="probability",
            choices=["u", "v"],
            choice_name="start",
            labels=labels,
        )
    )
    handle = box.get_by_role("slider")
    assert handle.get_attribute("aria-label") == "step"
    for choice, text in enumerate("uv"):
        box.get_by_label("start", exact=True).select_option(text)
        assert dataset(box, "choice") == str(choice)
        handle.press("Home")
        for place, step in enumerate([9, 5, 0]):
            assert dataset(box, "position") == str(place)
            assert dataset(box, "choice") == str(choice)
            assert heights(box) == (0, 1.5)  # of all frames and choices
            for number, values in enumerate([p[choice, place], q]):
                bars = outline(box, "pq"[number], "bars")
                tops = np.array([y for command, _, y in bars if command == "V"])[::2]
                np.testing.assert_allclose(tops, values, atol=1e-3)
                sides = np.arange(4) + 0.1 + 0.4 * number
                np.testing.assert_allclose(of(bars, "M")[0], sides / 4, atol=1e-4)
                np.testing.assert_allclose(of(bars, "H")[0], (sides + 0.4) / 4, atol=1e-4)
            line = outline(box, "π", "line")
            np.testing.assert_allclose(of(line, "M")[1], level[choice, 0], atol=2e-3)
            np.testing.assert_allclose(of(line, "M")[0], (np.arange(4) + 0.1) / 4, atol=1e-4)
            np.testing.assert_allclose(of(line, "H")[0], (np.arange(4) + 0.9) / 4, atol=1e-4)

            words = [f"step = {step}", labels[choice][place]]
            pairs = zip("abcd", p[choice, place], strict=True)
            words += ["p: " + ", ".join(f"{name} {value:g}" for name, value in pairs)]
            words += ["q: a 0.1, b 0.2, c 0.3, d 0.4"]
            words += ["π: " + ", ".join(f"{name} {level[choice, 0, 0]:g}" for name in "abcd")]
            assert box.locator(".diffusion-readout span").all_inner_texts() == words
            assert handle.get_attribute("aria-valuetext") == ", ".join(words)
            assert handle.get_attribute("aria-valuenow") == str(place)
            handle.press("ArrowRight")
    assert handle.get_attribute("aria-valuemax") == "2"
    assert box.locator(".diffusion-x span").all_inner_texts() == list("abcd")
    [chart] = box.locator(".diffusion-chart").all()
    assert chart.get_attribute("aria-label") == "probability over state: p, q, π"
    names = [chart.locator(f".diffusion-{axis}-name").inner_text() for axis in "xy"]
    assert names == ["state", "probability"]
    styles = box.locator("path[data-series]").evaluate_all(STYLES)
    assert box.locator(".diffusion-swatch path").evaluate_all(STYLES) == styles
    assert len({style.split(",")[0] for style in styles}) == 3
    filled = box.locator("path[data-series][fill]")
    assert [path.get_attribute("data-kind") for path in filled.all()] == ["bars"] * 2


def test_many_categories_are_drawn_and_not_told(shown):
    bars, names = {"p": np.full(17, 7)}, {"x_name": "state", "y_name": "count"}
    box = shown(charts([1, 0], list("abcdefghijklmnopq"), bars=bars, **names))
    assert box.locator(".diffusion-readout span").all_inner_texts() == ["t = 1", "p"]
    assert heights(box) == (0, 8)


def test_charts_over_numbers(shown):
    bars, lines = np.array([[1, 3, 2], [0, -1, 4]]), np.array([[-1, 0, 1], [1, 0, -1]])
    names = {"x_name": "x", "y_name": "density", "labels": ["one", "two"]}
    names |= {"choices": ["u", "v"], "choice_name": "start"}
    box = shown(charts(["first", "last"], [0, 1, 3], bars={"h": bars}, lines={"f": lines}, **names))
    box.get_by_label("start", exact=True).select_option("v")
    marks = box.locator(".diffusion-x span").evaluate_all(
        "marks => marks.map(mark => [Number(mark.textContent), parseFloat(mark.style.left)])"
    )
    np.testing.assert_allclose(marks, [(v, 100 * (v + 0.5) / 4.5) for v in (0, 2, 4)], rtol=1e-4)
    for k, word in enumerate(["first", "last"]):
        assert heights(box) == (-2, 4)
        steps = outline(box, "h", "bars")
        assert steps[0][1:] == pytest.approx((0, 0), abs=5e-3)
        np.testing.assert_allclose(of(steps, "V")[1], [*bars[k], 0], atol=5e-3)
        np.testing.assert_allclose(of(steps, "H")[0], [1 / 4.5, 2.5 / 4.5, 1], atol=1e-4)
        steps = outline(box, "f", "line")
        np.testing.assert_allclose(
            [step[1] for step in steps], np.array([0.5, 1.5, 3.5]) / 4.5, atol=1e-4
        )
        np.testing.assert_allclose([step[2] for step in steps], lines[k], atol=5e-3)
        words = [f"t = {word}", ["one", "two"][k], "h", "f"]
        assert box.locator(".diffusion-readout span").all_inner_texts() == words
        box.get_by_role("slider").press("ArrowRight")


def test_equal_factors_are_equal_steps_of_a_logarithmic_axis(shown):
    names = {"x_name": "n", "y_name": "f"}
    box = shown(curves([0, 1, 2], {"f": [1, 10, 100]}, log_y=True, marker=0, **names))
    path = box.locator('path[data-series="f"]').get_attribute("d")
    assert path == "M0.0 1000.0L500.0 500.0L1000.0 0.0"


def test_views_together_keep_together(shown):
    images = np.linspace(-1, 1, 5).reshape(5, 1, 1, 1, 1)
    box = shown(
        together(
            panels({"x_t": images}, index=[8, 6, 4, 2, 0], initial=2),
            charts(
                [8, 6, 4, 2, 0],
                ["a", "b"],
                bars={"p": np.linspace(0, 1, 5)[:, None]},
                index_name="step",
                x_name="state",
                y_name="probability",
            ),
            curves([0, 1, 2, 3, 4], {"f": range(5)}, x_name="n", y_name="f", marker=0),
        )
    )

    def expect(place):
        for view in range(3):
            assert dataset(box, "position", view) == str(place)
        index = 8 - 2 * place
        text = box.locator(".diffusion-view").nth(1).inner_text()
        assert f"step = {index}" in text
        assert f"a {place / 4:g}, b {place / 4:g}" in text
        curve = box.locator(".diffusion-view").nth(2)
        x, y = f"{250 * place:.1f}", f"{1000 - 250 * place:.1f}"
        assert curve.locator(".diffusion-marker").get_attribute("d") == f"M{x} 0V1000"
        assert curve.locator(".diffusion-dot").get_attribute("d") == f"M{x} {y}h0.01"
        handle = box.get_by_role("slider")
        assert handle.get_attribute("aria-label") == "t"
        assert handle.get_attribute("aria-valuetext") == f"t = {index}"
        assert handle.get_attribute("aria-valuenow") == str(place)
        assert handle.get_attribute("aria-valuemax") == "4"

    assert box.get_by_role("slider").count() == 1
    assert box.locator(".diffusion-row-name sub").inner_text() == "t"  # of x_t
    expect(2)
    box.get_by_role("slider").press("ArrowRight")
    expect(3)
    box.get_by_role("slider").press("Home")
    expect(0)
    box.get_by_role("button", name="play or pause").click()
    box.locator('.diffusion-view[data-position="4"]').nth(2).wait_for()
    expect(4)


def test_gaussian_laboratory_shows_what_python_computes(shown):
    box = shown(gaussian_laboratory(samples=31, seed=5))
    grid = np.linspace(-10, 10, 801)

    def compare(mu, sigma, seed):
        assert int(dataset(box, "seed")) == seed
        noise = laboratory_noise(seed, (31,))
        x = mu + sigma * noise
        assert float(dataset(box, "mean")) == pytest.approx(x.mean(), abs=1e-12)
        assert float(dataset(box, "deviation")) == pytest.approx(x.std(ddof=1), abs=1e-12)
        words = box.locator(".diffusion-readout").inner_text().replace("−", "-")
        assert f"mean of the samples = {x.mean():.4g}" in words
        assert f"standard deviation = {x.std(ddof=1):.4g}" in words
        assert f"seed of ε = {seed}" in words
        outside = (abs(x) > 10).sum()
        assert (f"{outside} beyond the picture" in words) == (outside > 0)
        chart = box.locator(".diffusion-chart")
        assert "under it 31 samples, each" in chart.get_attribute("aria-label")
        density = np.exp(-0.5 * ((grid - mu) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        steps = outline(box, "N(μ, σ²)", "area")
        np.testing.assert_allclose([y for *_, y in steps], density, atol=1e-3 * heights(box)[1])
        paths = [path.get_attribute("d") for path in box.locator(".diffusion-fan path").all()]
        for path, step in zip(paths, ["L", "h0.01M"], strict=True):  # lines, and dots at their ends
            ends = np.array(re.findall(rf"M([-\d.]+) 60{step}([-\d.]+) 940", path), float) / 50 - 10
            np.testing.assert_allclose(ends, np.stack([x, noise], axis=1), atol=2e-3)

    compare(0, 1, 5)
    set_slider(box, -1.5, 0)
    compare(-1.5, 1, 5)
    set_slider(box, 0.25, 1)
    compare(-1.5, 0.25, 5)
    box.get_by_role("button", name="draw fresh noise").click()
    compare(-1.5, 0.25, 6)
    for number, value in enumerate([-3, 3]):
        set_slider(box, value, number)
    compare(-3, 3, 6)
    for number, value in enumerate([-1.5, 0.25]):
        set_slider(box, value, number)
    mean, deviation = box.get_by_role("slider").all()
    assert mean.get_attribute("aria-label") == "mean μ"
    assert mean.get_attribute("aria-valuetext").startswith("μ = −1.5, mean of the samples = −1.")
    assert deviation.get_attribute("aria-label") == "standard deviation σ"
    assert deviation.get_attribute("aria-valuetext").startswith("σ = 0.25, their standard")
    assert deviation.get_attribute("aria-valuenow") == "0.25"


def test_divergence_laboratory_shows_what_python_computes(shown):
    box = shown(divergence_laboratory())
    grid = np.linspace(-10, 10, 801)

    def compare(p, q):
        forward, backward = gaussian_kl(p, q), gaussian_kl(q, p)
        assert float(dataset(box, "forward")) == pytest.approx(forward, rel=1e-12, abs=1e-12)
        assert float(dataset(box, "backward")) == pytest.approx(backward, rel=1e-12, abs=1e-12)
        words = box.locator(".diffusion-readout").inner_text().replace("−", "-")
        for name, (mu, sigma) in zip("pq", (p, q), strict=True):
            assert f"{name} = N({mu:g}, {sigma:g}²)" in words
        assert f"KL(p‖q) = ∫ p ln(p/q) dx = {forward:.4g} nats" in words
        assert f"KL(q‖p) = ∫ q ln(q/p) dx = {backward:.4g} nats" in words
        log_p, log_q = (
            -0.5 * ((grid - mu) / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
            for mu, sigma in (p, q)
        )
        for name, kind, chart, expected in [
            ("p", "line", 0, np.exp(log_p)),
            ("q", "line", 0, np.exp(log_q)),
            ("p ln(p/q)", "area", 1, np.exp(log_p) * (log_p - log_q)),
            ("q ln(q/p)", "area", 1, np.exp(log_q) * (log_q - log_p)),
        ]:
            y = [y for *_, y in outline(box, name, kind, chart)]
            np.testing.assert_allclose(y, expected, atol=2e-3 * abs(expected).max())
        plot, (low, high) = box.locator(".diffusion-plot").nth(1), heights(box, 1)
        lines = [path.get_attribute("d") for path in plot.locator("path[data-series]").all()]
        areas = [path.get_attribute("d") for path in plot.locator("path[fill]").all()]
        assert areas == [f"{line}V{1000 * high / (high - low):.1f}H0.0Z" for line in lines]
        swatches, paths = (
            [style.split(",")[0] for style in box.locator(where).evaluate_all(STYLES)]
            for where in (".diffusion-swatch path", "path[data-series]")
        )
        assert swatches == paths and paths[0] != paths[1]
        both = f"KL(p‖q) = {forward:.4g} nats, KL(q‖p) = {backward:.4g} nats"
        said = zip(["μ of p", "σ of p", "μ of q", "σ of q"], [*p, *q], strict=True)
        texts = [h.get_attribute("aria-valuetext") for h in box.get_by_role("slider").all()]
        assert [t.replace("−", "-") for t in texts] == [f"{s} = {v:g}, {both}" for s, v in said]

    compare((0, 1), (1, 1.5))
    for number, value in enumerate([-1, 2, 0.5, 0.7]):
        set_slider(box, value, number)
    compare((-1, 2), (0.5, 0.7))
    labels = [handle.get_attribute("aria-label") for handle in box.get_by_role("slider").all()]
    each = ["mean of p", "standard deviation of p", "mean of q", "standard deviation of q"]
    assert labels == each
    set_slider(box, 0.5, 0)
    set_slider(box, 0.7, 1)
    compare((0.5, 0.7), (0.5, 0.7))
    assert dataset(box, "forward") == dataset(box, "backward") == "0"
