"""The page of the post's 32 mistakes: each is there once, in order, and reproduced.

A reproduction is an executed cell in the mistake's section that asserts something and prints.
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = nbformat.read(ROOT / "chapters" / "source_post.ipynb", as_version=4)

GROUPS = {
    "It stops with an error": range(1, 13),
    "It runs and is wrong": range(13, 24),
    "It says what is not so": range(24, 33),
}
NUMBERS = [number for group in GROUPS.values() for number in group]

HEADING = re.compile(r"^(##+) (.+)$", re.MULTILINE)
ROW = re.compile(r"^\| \[(\d+)\]\(#([\w-]+)\) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)


def sections():
    """Each heading of the page, in order, with its group and the cells under it."""
    found, group = [], None
    for cell in PAGE.cells:
        headings = HEADING.findall(cell.source) if cell.cell_type == "markdown" else []
        for marks, title in headings:
            group = title if marks == "##" else group
            found.append((title, group, []))
        if found:
            found[-1][2].append(cell)
    return found


def numbered(title):
    match = re.match(r"(\d+)\. ", title)
    return match and int(match[1])


MISTAKES = [(numbered(title), *rest) for title, *rest in sections() if numbered(title)]


def asserts_something(source):
    """Whether a cell has an `assert` whose condition depends on a name, so that it can fail."""
    return any(
        isinstance(node, ast.Assert) and any(isinstance(n, ast.Name) for n in ast.walk(node.test))
        for node in ast.walk(ast.parse(source))
    )


def anchor(title):
    """The anchor that Sphinx's MyST gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_all_mistakes_are_there_once_and_in_order():
    assert [number for number, _, _ in MISTAKES] == NUMBERS == list(range(1, 33))


def test_each_mistake_is_in_its_group():
    assert {number: group for number, group, _ in MISTAKES} == {
        number: group for group, numbers in GROUPS.items() for number in numbers
    }


@pytest.mark.parametrize(("number", "group", "cells"), MISTAKES, ids=lambda value: str(value)[:20])
def test_a_mistake_is_reproduced_and_repaired(number, group, cells):
    code = [cell for cell in cells if cell.cell_type == "code"]
    words = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    asserted = [cell for cell in code if asserts_something(cell.source)]
    outputs = [output for cell in asserted for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert printed, f"no cell of number {number} asserts something and prints it"
    if number in GROUPS["It stops with an error"]:
        assert re.search(r"\b\w+Error\b", printed), f"number {number} shows no error"
    assert words.count("**Repair.**") == words.count("**How to notice.**") == 1
    assert re.search(r"\[[Cc]hapter \d\]\(\d\d_\w+\.ipynb\)|[Cc]hapter [68]\b", words)


def test_the_table_leads_to_each_mistake():
    first = PAGE.cells[0].source
    titles = {numbered(title): title for title, _, _ in sections() if numbered(title)}
    assert [(int(row[0]), row[1]) for row in ROW.findall(first)] == [
        (number, anchor(title)) for number, title in titles.items()
    ]


def test_the_page_begins_with_three_sentences():
    _, words, table, *_ = PAGE.cells[0].source.split("\n\n")
    assert len(re.findall(r"[.?!](?=\s|$)", words)) == 3
    assert table.startswith("| no. |")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("assert x > 0", True),
        ("for x in y:\n    assert x", True),
        ("assert True", False),
        ("assert 1 + 1 == 2", False),
        ("x = 'assert y'", False),
        ("# assert y", False),
    ],
)
def test_what_counts_as_an_assertion(source, expected):
    assert asserts_something(source) == expected
