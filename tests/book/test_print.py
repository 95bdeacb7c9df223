"""What a release offers: the book as one PDF, and its pages as one zip."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import archive
import pdf
import pytest
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"

# Two sliders, exercises with solutions, code that is hidden on the web; and a wide table.
PAGES = ["chapters/03_noise_schedule.html", "book/notation.html"]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Two pages of the built book as a PDF."""
    if not (HTML / "built").exists():
        pytest.fail("The book is not built: run `make book` first.")
    out = tmp_path_factory.mktemp("pdf") / "book.pdf"
    subprocess.run([sys.executable, ROOT / "book" / "pdf.py", out, *PAGES], check=True)
    print(f"{out.stat().st_size / 1e6:.2f} MB")
    assert out.stat().st_size < 2e6
    return PdfReader(out)


@pytest.fixture(scope="module")
def texts(printed):
    """What stands on each page of the PDF, its white space evened out."""
    return [" ".join(page.extract_text().split()) for page in printed.pages]


def annotations(printed):
    return [a.get_object() for page in printed.pages for a in page.get("/Annots", ())]


def test_the_contents_name_every_page_of_the_book():
    names = pdf.contents()
    built = {f"{path.parent.name}/{path.name}" for path in HTML.glob("[bc]*/*.html")}
    assert set(names) == built


def test_outline_and_contents_lead_to_each_page(printed, texts):
    tops = [item for item in printed.outline if not isinstance(item, list)]
    assert [item.title for item in tops] == ["3 · The noise schedule", "Notation"]
    for item in tops:
        number = printed.get_destination_page_number(item)
        assert item.title in texts[number]
        assert re.search(rf"{re.escape(item.title)}\s*{printed.page_labels[number]}\b", texts[1])


def test_pages_are_numbered_through_both_parts(printed, texts):
    labels = printed.page_labels
    first = labels.index("1")
    assert labels[first:] == [str(k) for k in range(1, len(labels) - first + 1)]
    for label, page in list(zip(labels, printed.pages, strict=True))[first:]:
        assert label in page.extract_text().splitlines()


def test_what_is_folded_on_the_web_is_printed(texts):
    whole = " ".join(texts)
    assert "The mean of four independent noises has a quarter of the variance." in whole
    assert "480 Right." in whole
    assert "Show code" not in whole


def test_sliders_are_pictures_that_say_so(printed, texts):
    of_laboratory, of_curves = (k for k, text in enumerate(texts) if "printed as it opens" in text)
    assert "controls for t (250), image" in texts[of_laboratory]
    assert "βₜ" in texts[of_laboratory] or "t = 250" in texts[of_laboratory]
    assert len(printed.pages[of_laboratory].images) >= 3
    assert "a slider over t. It is" in texts[of_curves]
    assert "t = 500" in texts[of_curves]
    assert "draw fresh noise" not in " ".join(texts)
    assert {annotation["/Subtype"] for annotation in annotations(printed)} == {"/Link"}


def test_links_lead_within_the_pdf_or_to_other_sites(printed, texts):
    assert "127.0.0.1" not in " ".join(texts)
    pages = [page.indirect_reference for page in printed.pages]
    inner = [a["/Dest"] for a in annotations(printed) if "/Dest" in a]
    outer = [a["/A"]["/URI"] for a in annotations(printed) if "/Dest" not in a]
    assert len(inner) > 20
    assert all(place[0] in pages for place in inner)
    assert all(re.match(r"https?://(?!127\.)", uri) for uri in outer)


def test_the_same_pages_give_the_same_zip(tmp_path):
    zips = []
    for turn, names in enumerate([["a.html", "b/c.css"], ["b/c.css", "a.html"]]):
        html = tmp_path / str(turn) / "html"
        (html / "b").mkdir(parents=True)
        for name in names:
            (html / name).write_text(name)
            os.utime(html / name, (1e9 + 100 * turn, 1e9 + 100 * turn))
        archive.pack(html, html.parent / "book.zip")
        zips.append((html.parent / "book.zip").read_bytes())
    assert zips[0] == zips[1]


def test_the_zip_holds_the_built_book_and_opens_offline(tmp_path, browser):
    archive.pack(HTML, tmp_path / "book.zip")
    with zipfile.ZipFile(tmp_path / "book.zip") as packed:
        packed.extractall(tmp_path)
    built, unpacked = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for top in (HTML, tmp_path / "book")
    )
    del built[Path("built")]
    assert unpacked == built

    page = browser.new_page()
    page.goto((tmp_path / "book" / PAGES[0]).as_uri())
    page.wait_for_function("document.querySelectorAll('.diffusion-view').length === 2")
    assert page.locator("mjx-container").count() > 50
    page.close()
