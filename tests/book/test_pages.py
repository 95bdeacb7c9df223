"""What each page loads, and the parts of the benchmark of pages that need no time."""

import gzip
import urllib.request
from pathlib import Path

import pytest

from benchmarks import pages

HTML = Path(__file__).resolve().parents[2] / "_build" / "html"
TOC = {"root": "book/index", "parts": [{"chapters": [{"file": "a/b"}, {"file": "a/c"}]}]}
FILES = sorted(path.relative_to(HTML).as_posix() for path in HTML.glob("[bc]*/*.html"))


@pytest.mark.parametrize("name", FILES)
def test_scripts_only_where_a_page_needs_them(browser, site, name):
    """Sliders need the widget manager, mathematics MathJax; icons and search need no script."""
    text = (HTML / name).read_text(encoding="utf-8")
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url.split("?")[0].split("/")[-1]))
    page.goto(site + name, wait_until="networkidle")
    page.close()
    sliders = "vnd.jupyter.widget-view+json" in text
    for script in ("require.js", "widgets.js", "embed-amd.js"):
        assert (script in asked) == sliders
    assert ("tex-chtml.js" in asked) == ('class="math' in text)
    assert not {"fontawesome.js", "searchindex.js", "searchtools.js"} & set(asked)


def test_text_is_painted_before_the_widget_manager_arrives(browser, site):
    page = browser.new_page()
    held = []
    page.route("**/embed-amd.js*", lambda route: held.append(route))
    page.goto(f"{site}chapters/03_noise_schedule.html", wait_until="commit")
    page.wait_for_function(
        "() => performance.getEntriesByName('first-contentful-paint').length > 0"
    )
    page.locator("article h1").first.wait_for()
    [route] = held
    assert page.locator(".jupyter-widgets").count() == 0
    route.continue_()
    page.locator(".jupyter-widgets").first.wait_for()
    page.close()


def test_icons_are_drawn(browser, site):
    page = browser.new_page()
    page.goto(f"{site}book/index.html")
    page.wait_for_function(
        """() => [...document.fonts].some((font) =>
             font.family.includes("Font Awesome 6 Free") && font.status === "loaded")"""
    )
    widths = page.locator(".search-button__button i:visible, .theme-switch:visible").evaluate_all(
        "icons => icons.map(icon => icon.getBoundingClientRect().width)"
    )
    page.close()
    assert widths and min(widths) > 8


def test_pages_are_those_of_the_contents():
    assert pages.pages_of(TOC) == ["book/index.html", "a/b.html", "a/c.html"]


def test_a_page_weighs_what_it_does_not_share():
    site = "http://127.0.0.1:1/"
    files = [
        (f"{site}a/b.html", 100, 10),
        (f"{site}_images/c.png", 50, 50),
        (f"{site}_static/d.js", 7, 6),
        (f"{site}vendor/e.js", 5, 4),
        ("blob:f", 1000, 1000),
    ]
    sizes = {"own": 150, "own_gzip": 60, "shared": 12, "shared_gzip": 10}
    assert pages.weights(files, site) == sizes


def test_the_host_compresses_text_and_lets_the_browser_keep_it(tmp_path):
    text, picture = b"<p>text" * 100, bytes(100)
    (tmp_path / "a.html").write_bytes(text)
    (tmp_path / "b.png").write_bytes(picture)
    with pages.served(tmp_path) as site:
        with urllib.request.urlopen(f"{site}a.html?v=1") as answer:
            assert gzip.decompress(answer.read()) == text
            assert answer.headers["Content-Encoding"] == "gzip"
            assert answer.headers["Cache-Control"] == "max-age=600"
        with urllib.request.urlopen(f"{site}b.png") as answer:
            assert answer.read() == picture
            assert answer.headers["Content-Encoding"] is None


def test_the_table_has_medians_and_extremes_and_a_dash_for_what_is_not_there():
    rounds = [
        {
            "bytes": {"own": 1200, "shared": 3_456_000, "shared_gzip": 900_000},
            "cold": {"paint": paint, "typeset": None, "sliders": 2 * paint},
            "warm": {"paint": paint / 2, "typeset": None, "sliders": paint},
        }
        for paint in (100, 500, 200)
    ]
    results = {
        "settings": {"rounds": 3, "slower": 1, "note": "Something else ran."},
        "made_by": {"command": "c", "commit": "1", "device": "d", "chromium": "9"},
        "work": pages.spread([1, 2, 3]),
        "builds": {"html": {"a/b.html": pages.summary(rounds)}},
    }
    text = pages.table(results)
    row = "| a/b | 1 | 3,456 | 900 | 200 (100–500) | – | 400 (200–1000) |"
    assert f"{row} 100 (50–250) | – | 200 (100–500) |\n" in text
    assert text.endswith("took 2 (1–3) ms. Something else ran.\n")


def test_a_page_is_timed_with_an_empty_cache_and_with_what_pages_share(browser, tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "a.css").write_text("p { color: red }")
    head = '<!doctype html><link rel="stylesheet" href="_static/a.css">'
    for name in "ab":
        (tmp_path / f"{name}.html").write_text(f"{head}<p>{name}")
    with pages.served(tmp_path) as site:
        found = pages.measure(browser, site, "b.html", "a.html", slower=1)
    assert found["bytes"]["own"] == len(f"{head}<p>b")
    assert found["bytes"]["shared"] == 16
    for cache in ("cold", "warm"):
        assert found[cache]["paint"] > 0
        assert found[cache]["typeset"] is found[cache]["sliders"] is None
