"""The glossary, and the links to it from the built chapters."""

import re
from functools import cache
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

HTML = Path(__file__).resolve().parents[2] / "_build" / "html"
CHAPTERS = sorted((HTML / "chapters").glob("*.html"))
GLOSSARY = "../book/glossary.html#"

# Of one meaning, whole words, common in the book.
PLAIN = ["diffusion model", "noise level", "best guess", "sampler", "Gaussian", "learning rate"]


@cache
def parsed(path):
    """The page without its scripts, in which the widgets' images are."""
    text = re.sub(r"<script.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return BeautifulSoup(text, "html.parser").select_one("article")


def links_to_the_glossary(page):
    links = page.select(f'a[href^="{GLOSSARY}"]')
    return [(link["href"].removeprefix(GLOSSARY), link) for link in links]


def test_every_term_is_linked_from_a_chapter():
    glossary = parsed(HTML / "book" / "glossary.html")
    terms = {section["id"] for section in glossary.select("section section")}
    linked = {term for path in CHAPTERS for term, _ in links_to_the_glossary(parsed(path))}
    assert len(terms) > 50
    assert terms - linked == set()
    assert linked - terms == set()


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_links_each_of_its_terms_once(path):
    page = parsed(path)
    links = links_to_the_glossary(page)
    found = [term for term, link in links if link.select(".term")]
    assert sorted(set(found)) == sorted(found)
    paragraphs = [p for p in page.select("p") if not p.find_parent(class_="cell_output")]
    words = " ".join(word for p in paragraphs for word in p.get_text(" ").split())
    for term in PLAIN:
        if re.search(rf"(?<![\w-]){term}s?(?![\w-])", words, re.IGNORECASE):
            assert term.lower().replace(" ", "-") in dict(links), term
