"""The built pages for readers with a phone, a keyboard, a screen reader, or no server."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"

FILES = [*HTML.glob("book/*.html"), *HTML.glob("chapters/*.html"), HTML / "search.html"]
PAGES = sorted(path.relative_to(HTML).as_posix() for path in FILES)
CHAPTERS = [page for page in PAGES if page.startswith("chapters/")]
CHAPTER = "chapters/03_noise_schedule.html"

# Buttons of the theme whose names leave out what stands on them beside an icon: the keys that do
# the same, and the names of the modes that are hidden.
THEME = ["search-button-field", "theme-switch-button"]


def ready(page):
    """Wait until mathematics and widgets are in place, with the names of their sliders."""
    page.evaluate("() => window.MathJax?.startup.promise")
    page.wait_for_function(
        """() => [...document.querySelectorAll(
             'script[type="application/vnd.jupyter.widget-view+json"]')]
           .every(view => view.parentElement.querySelector('.diffusion-view'))
           && [...document.querySelectorAll('.diffusion-box .noUi-handle')]
           .every(handle => handle.getAttribute('aria-label'))"""
    )


@pytest.fixture(scope="module", params=PAGES)
def phone(request, browser, site):
    """A page on a phone whose owner wants little motion."""
    context = browser.new_context(
        viewport={"width": 360, "height": 740},
        has_touch=True,
        is_mobile=True,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(site + request.param)
    ready(page)
    yield page
    context.close()


@pytest.fixture
def desk(browser, site):
    """Open a page on a laptop."""
    contexts = []

    def show(address):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 760}))
        page = contexts[-1].new_page()
        page.goto(address if ":" in address else site + address)
        ready(page)
        return page

    yield show
    for context in contexts:
        context.close()


def violations(page):
    """Of WCAG 2.1 A and AA, as far as axe-core sees; test_site looks at contrast, in both themes.

    Equations are MathJax's, and many; whether they scroll is looked at below.
    """
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        """() => axe.run({ exclude: ['mjx-container'] }, {
             runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa'],
             rules: { 'color-contrast': { enabled: false } },
             resultTypes: ['violations'],
           }).then(result => result.violations.flatMap(({ id, nodes }) =>
             nodes.map(({ html }) => [id, html.slice(0, 200)])))"""
    )
    return [
        (rule, html)
        for rule, html in found
        if not (rule == "label-content-name-mismatch" and any(name in html for name in THEME))
    ]


def test_rules_of_accessibility(phone):
    assert violations(phone) == []


@pytest.mark.parametrize("name", ["book/index.html", "book/library.html", CHAPTER])
def test_rules_of_accessibility_on_a_laptop(desk, name):
    assert violations(desk(name)) == []


# A finger needs 44 pixels. 21 to each side of the middle are tried: a browser rounds the place of
# a hit, and the next pixel may be a neighbour's.
MISSED = """nodes => nodes.filter(node => {
  node.scrollIntoView({ block: "center" });
  const { left, top, width, height } = node.getBoundingClientRect();
  const [x, y] = [left + width / 2, top + height / 2];
  const points = [[-21, 0], [21, 0], [0, -21], [0, 21]];
  return !points.every(([dx, dy]) => node.contains(document.elementFromPoint(x + dx, y + dy)));
}).map(node => node.outerHTML.slice(0, 150))"""
CONTROLS = ".diffusion-box :is(.noUi-handle, button, select, .widget-readout), .bd-article summary"


def test_a_finger_hits_the_controls(phone):
    assert phone.locator(f":is({CONTROLS}):visible").evaluate_all(MISSED) == []


def test_no_table_and_no_equation_leaves_the_screen(phone):
    """What is wider scrolls inside of its own place."""
    wide = phone.locator(".bd-article :is(table, .math):visible").evaluate_all(
        """nodes => nodes.filter(node => {
             const place = node.closest('.pst-scrollable-table-container') ?? node;
             return place.getBoundingClientRect().right > screen.width + 1;
           }).map(node => node.outerHTML.slice(0, 100))"""
    )
    assert wide == []


def test_controls_stay_beside_what_they_move(phone):
    """At the end of a box that is higher than the screen its slider can still be moved."""
    for controls in phone.locator(".diffusion-controls").all():
        if controls.locator("xpath=*").count() > 3:
            continue  # a laboratory, whose pictures follow its slider
        x, y = controls.evaluate(
            """controls => {
                 const box = controls.closest(".diffusion-box");
                 scrollBy(0, box.getBoundingClientRect().bottom - innerHeight);
                 const handle = box.querySelector(".noUi-handle").getBoundingClientRect();
                 return [handle.left + handle.width / 2, handle.top + handle.height / 2];
               }"""
        )
        handle = controls.locator(".noUi-handle").first
        assert handle.evaluate("(h, [x, y]) => h.contains(document.elementFromPoint(x, y))", [x, y])


def places(page):
    """Where each view stands."""
    return page.locator(".diffusion-view").evaluate_all(
        "nodes => nodes.map(n => n.dataset.position)"
    )


def test_nothing_moves_unless_it_is_asked_to(phone):
    """Under reduced motion, too, a play button plays: its reader asked, and can stop it."""
    before = places(phone)
    phone.wait_for_timeout(300)
    assert places(phone) == before
    assert phone.evaluate("() => document.getAnimations().length") == 0
    durations = phone.locator(".diffusion-box .noUi-target").evaluate_all(
        """nodes => nodes.map(node => {
             node.classList.add("noUi-state-tap");
             const { transitionDuration } = getComputedStyle(node.querySelector(".noUi-origin"));
             node.classList.remove("noUi-state-tap");
             return transitionDuration;
           })"""
    )
    assert set(durations) <= {"0s"}
    for button in phone.get_by_role("button", name="play or pause").all()[:1]:
        button.click()
        phone.wait_for_timeout(500)
        button.click()
        stopped = places(phone)
        phone.wait_for_timeout(500)
        assert places(phone) == stopped


def test_only_the_theme_is_stored(phone):
    for handle in phone.locator(".noUi-handle").all()[:1]:
        handle.press("ArrowRight")
    stored = phone.evaluate(
        """async () => ({
             local: Object.keys(localStorage).sort(),
             session: Object.keys(sessionStorage),
             databases: (await indexedDB.databases()).length,
             caches: (await caches.keys()).length,
             workers: (await navigator.serviceWorker.getRegistrations()).length,
           })"""
    )
    assert stored == {
        "local": ["mode", "theme"],
        "session": [],
        "databases": 0,
        "caches": 0,
        "workers": 0,
    }
    assert phone.context.cookies() == []


def test_outline_of_the_page(phone):
    levels = phone.locator("main :is(h1, h2, h3, h4, h5, h6):visible").evaluate_all(
        "nodes => nodes.map(node => Number(node.tagName[1]))"
    )
    assert levels[:1] == [1] and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    bare = phone.locator(".bd-article table").evaluate_all(
        "tables => tables.filter(t => !t.querySelector('th')).map(t => t.outerHTML.slice(0, 100))"
    )
    assert bare == []


def test_what_a_screen_reader_is_told(desk):
    page = desk(CHAPTER)
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    tree = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    roles = [role for role, _ in tree]
    assert [roles.count(role) for role in ("banner", "main", "contentinfo")] == [1, 1, 1]
    assert {name for role, name in tree if role == "navigation"} == {"Main", "Contents"}
    assert roles.count("MathMLMath") >= page.locator(".math:visible").count()
    named = ("button", "combobox", "figure", "image", "link", "slider")
    assert [role for role, name in tree if role in named[:2] + named[3:] and not name.strip()] == []
    sliders = [name for role, name in tree if role == "slider"]
    assert sliders == ["time t", "t"]
    assert [name for role, name in tree if role == "DisclosureTriangle"].count("Solution") == 3
    assert ("DisclosureTriangle", "Show code cell content") in tree

    handle = page.get_by_role("slider", name="time t")
    spoken = [handle.get_attribute("aria-valuetext")]
    for key in ("ArrowRight", "PageUp", "End", "Home"):
        handle.press(key)
        spoken.append(handle.get_attribute("aria-valuetext"))
    ts = [int(text.split(",")[0].removeprefix("t = ")) for text in spoken]
    assert ts[0] < ts[1] < ts[2] < ts[3] == 1000 and ts[4] == 0


# Where the focus is, whether it is in sight and marked, and whether it went forwards.
FOCUS = """() => {
  const node = document.activeElement;
  if (node === document.body) return null;
  const { left, right, top, bottom, width } = node.getBoundingClientRect();
  const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(node);
  const before = window.focusBefore;
  window.focusBefore = node;
  const shadow = boxShadow.match(/rgba?\\([^)]*\\)[^,]*/g) ?? [];
  return {
    html: node.outerHTML.slice(0, 150),
    inSight: bottom > 0 && top < innerHeight && right > 0 && left < innerWidth,
    covered: !node.contains(document.elementFromPoint(
      (Math.max(left, 0) + Math.min(right, innerWidth)) / 2,
      (Math.max(top, 0) + Math.min(bottom, innerHeight)) / 2)),
    marked: outlineStyle !== "none" && parseFloat(outlineWidth) >= 2
      || shadow.some(text => !text.includes("rgba(0, 0, 0, 0)") && text.includes("3px")),
    forwards: !before || before.compareDocumentPosition(node) === 4,
  };
}"""


def test_a_keyboard_gets_everywhere(desk):
    page = desk(CHAPTER)
    # Else each look would have to wait until the theme's transitions end.
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent").strip() == (
        "Skip to main content"
    )
    seen = []
    while (focus := page.evaluate(FOCUS)) and len(seen) < 500:
        seen.append(focus)
        if "<summary" in focus["html"]:
            page.keyboard.press("Enter")
        page.keyboard.press("Tab")
    assert 50 < len(seen) < 500, "no way out"
    for fault in ("inSight", "marked", "forwards"):
        assert [focus["html"] for focus in seen if not focus[fault]] == []
    assert [focus["html"] for focus in seen if focus["covered"]] == []
    assert page.locator(".bd-article details:not([open])").count() == 0
    # All that can be worked was visited, and each code block that scrolls.
    visited = page.locator(
        ".bd-article :is(.noUi-handle, select, button, summary, a[href], [tabindex='0']):visible"
    ).count()
    html = [focus["html"] for focus in seen]
    assert visited <= len(html)
    assert any(text.startswith("<pre") for text in html)

    page.reload()
    ready(page)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.querySelector('main').contains(document.activeElement)")


def test_what_scrolls_is_a_stop_of_the_tab_key(phone):
    phone.locator(".bd-article details").evaluate_all("nodes => nodes.map(n => (n.open = true))")
    # Once the page has looked at what it unfolded.
    phone.wait_for_timeout(500)
    wrong = phone.locator("mjx-container[display]:visible, .cell pre:visible").evaluate_all(
        """nodes => nodes.filter(node => (node.scrollWidth > node.clientWidth + 1)
                                         !== (node.tabIndex === 0))
             .map(node => node.textContent.slice(0, 50))"""
    )
    assert wrong == []


@pytest.mark.parametrize("name", ["book/notation.html", "chapters/00_one_page.html"])
def test_pages_work_from_a_folder(desk, name):
    page = desk("about:blank")
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((HTML / name).as_uri())
    ready(page)
    assert {url.split(":")[0] for url in asked} <= {"file", "blob", "data"}
    assert said == []
    math = page.locator(".math").count()
    assert page.locator(".math mjx-container").count() == math > 0
    for handle in page.get_by_role("slider").all():
        before = handle.get_attribute("aria-valuetext")
        at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        handle.press("ArrowLeft" if at_end else "ArrowRight")
        assert handle.get_attribute("aria-valuetext") != before


def test_search_from_a_folder_lists_pages(desk):
    """A browser does not let it read them, so it cannot show the lines around what was found."""
    page = desk("about:blank")
    page.goto((HTML / "search.html").as_uri() + "?q=schedule")
    page.locator("#search-results li a", has_text="The noise schedule").first.click()
    assert page.title().startswith("The noise schedule")
