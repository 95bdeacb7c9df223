"""Each exercise states its difficulty, has a solution, and is on the page that lists them all."""

import ast
import re
from functools import cache
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))

HEADING = re.compile(r"^### (Predict|Implement|Explore|Find): (.+)$")
DIFFICULTY = re.compile(r"\*Difficulty ([123]) of 3\.\* \S")

# The post's page is a list of mistakes, and asks to find some.
KINDS = {"source_post": ["Find"]}


@cache
def exercises(path):
    """(kind, title, cells) of each exercise of a notebook, the cell of its heading cut to it."""
    found, own = [], None
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "markdown":
            if own is not None:
                own.append(cell)
            continue
        for part in re.split(r"(?m)^(?=##+ )", cell.source):
            heading = HEADING.match(part.split("\n")[0])
            if heading:
                own = []
                found.append((*heading.groups(), own))
            elif part.startswith("#"):
                own = None
            if own is not None:
                own.append(nbformat.v4.new_markdown_cell(part))
    return found


ALL = [
    pytest.param(path, *exercise, id=f"{path.stem}-{exercise[0]}-{exercise[1]}")
    for path in CHAPTERS
    for exercise in exercises(path)
]


@cache
def page(path):
    file = HTML / path
    if not file.exists():
        pytest.fail("The book is not built: run `make book` first.")
    text = re.sub(r"<script.*?</script>", "", file.read_text("utf-8"), flags=re.DOTALL)
    return BeautifulSoup(text, "html.parser").select_one("article")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_has_its_exercises(path):
    kinds = {kind for kind, _, _ in exercises(path)}
    assert set(KINDS.get(path.stem, ["Predict", "Implement", "Explore"])) <= kinds


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_all_under_the_heading_have_the_form(path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if "#" in c.source)
    under = re.split(r"(?m)^## ", text.partition("\n## Exercises\n")[2])[0]
    headings = [line for line in under.split("\n") if line.startswith("### ")]
    assert headings
    assert [line for line in headings if not HEADING.match(line)] == []


@pytest.mark.parametrize(("path", "kind", "title", "cells"), ALL)
def test_its_difficulty_is_stated_and_its_solution_folded(path, kind, title, cells):
    assert DIFFICULTY.match(cells[0].source.split("\n\n")[1])
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert re.search(r"(?m)^:::\{dropdown\} Solution\n", text)


CHECKED = [exercise for exercise in ALL if exercise.values[1] != "Explore"]


@pytest.mark.parametrize(("path", "kind", "title", "cells"), CHECKED)
def test_its_checker_answers_the_placeholder_and_the_solution(path, kind, title, cells):
    """By the outputs that are stored; `make nbval` compares them with what the cells print."""
    said = [
        output.text
        for cell in cells
        if cell.cell_type == "code" and "print(" in cell.source and "check_" in cell.source
        for output in cell.outputs
    ]
    assert re.match(r"Not (yet: \w.+|answered yet\.)", said[0])
    assert re.search(r"\bRight\.\n$", said[-1])
    names = re.findall(r"def (check_\w+)\(", "\n".join(cell.source for cell in cells))
    asserted = [
        node
        for cell in cells
        if cell.cell_type == "code"
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Assert)
    ]
    for name in names:
        assert any(re.search(rf"{name}\(.*\) == 'Right\.'", ast.unparse(node)) for node in asserted)


@pytest.mark.parametrize(("path", "kind", "title", "cells"), ALL)
def test_it_is_on_the_page_and_its_link_leads_there(path, kind, title, cells):
    heading = f"{kind}: {title}"
    start = f"../chapters/{path.stem}.html#"
    links = page("book/exercises.html").select(f'table a[href^="{start}"]')
    (link,) = [link for link in links if link.text.lower() == title.lower()]
    _, _, said_kind, said_level = [td.text.strip() for td in link.find_parent("tr").select("td")]
    level = DIFFICULTY.match(cells[0].source.split("\n\n")[1])[1]
    assert (said_kind, said_level) == (kind, level)
    section = page(f"chapters/{path.stem}.html").find(id=link["href"].removeprefix(start))
    assert section.select_one("h3").text.startswith(heading)


def test_the_page_lists_nothing_else():
    assert len(page("book/exercises.html").select("tbody tr")) == len(ALL)
