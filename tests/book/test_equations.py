"""Every numbered equation of the book is checked, by a cell or by a test.

equations.json says where: "cell:ID", a cell with an assertion in the equation's own chapter, or
"test:FILE::NAME".
"""

import json
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = json.loads((ROOT / "tests" / "book" / "equations.json").read_text(encoding="utf-8"))
CHAPTERS = [nbformat.read(path, as_version=4) for path in sorted(ROOT.glob("chapters/*.ipynb"))]
LABEL = re.compile(r"\$\$ *\(([\w-]+)\) *$", re.MULTILINE)

LABELS = {
    label: chapter
    for chapter in CHAPTERS
    for cell in chapter.cells
    if cell.cell_type == "markdown"
    for label in LABEL.findall(cell.source)
}


def test_the_table_lists_the_equations_of_the_book():
    assert LABELS and set(CHECKS) == set(LABELS)


def test_no_label_is_used_twice():
    texts = [cell.source for c in CHAPTERS for cell in c.cells if cell.cell_type == "markdown"]
    assert sum(len(LABEL.findall(text)) for text in texts) == len(LABELS)


@pytest.mark.parametrize("label", LABELS)
def test_an_equation_is_checked(label):
    kind, _, place = CHECKS[label].partition(":")
    if kind == "cell":
        (source,) = [cell.source for cell in LABELS[label].cells if cell.id == place]
        assert re.search(r"^\s*assert", source, re.MULTILINE), f"{place} asserts nothing"
    else:
        assert kind == "test"
        path, _, name = place.partition("::")
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"no test {place}"
