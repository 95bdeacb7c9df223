"""What the chapters store: real outputs, all of them, and nothing of the machine they ran on."""

import json
import re
import subprocess
from pathlib import Path

import execute
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))

# nbval compares at least so many numbers in each chapter.
COMPARED_NUMBERS = 10

# (chapter, cell id): why nbval may not compare this cell.
IGNORED = {}

MARKERS = re.compile(r"NBVAL_\w+|nbval-[\w-]+|raises-exception|PYTEST_VALIDATE_\w+")
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(\.\d+)?(e[-+]?\d+)?(?![\w.]*\w)")
MACHINE = re.compile(r"(/home/|/Users/|/root/|/tmp/|/var/|/opt/|/work/|site-packages|[A-Z]:\\\\)")


def test_there_are_chapters():
    assert CHAPTERS


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request):
    notebook = nbformat.read(request.param, as_version=4)
    notebook.path = request.param
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def compared_texts(cell):
    """The texts among a cell's outputs that nbval compares."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        else:
            data = output.get("data", {})
            yield from (data[kind] for kind in ("text/plain", "text/html") if kind in data)


def test_every_cell_ran_once_from_a_clean_state(chapter):
    counts = [cell.execution_count for cell in code_cells(chapter)]
    assert counts == list(range(1, len(counts) + 1))


def test_no_cell_failed_or_complained(chapter):
    for cell in code_cells(chapter):
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", cell.id


def test_a_described_picture_is_there(chapter):
    for cell in code_cells(chapter):
        if "image" in cell.metadata.get("mystnb", {}):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.id


def test_make_notebooks_stored_it(chapter):
    text = chapter.path.read_text(encoding="utf-8")
    assert execute.serialise(nbformat.reads(text, as_version=4)) == text


def test_ids_are_numbered(chapter):
    assert "widgets" not in chapter.metadata or all(
        int(model_id, 16) < 10_000
        for model_id in chapter.metadata.widgets[execute.WIDGET_STATE]["state"]
    )


def test_every_shown_widget_is_stored(chapter):
    state = chapter.metadata.get("widgets", {}).get(execute.WIDGET_STATE, {}).get("state", {})
    shown = {
        output.data[execute.WIDGET_VIEW]["model_id"]
        for cell in code_cells(chapter)
        for output in cell.outputs
        if execute.WIDGET_VIEW in output.get("data", {})
    }
    referred = set(re.findall(r"IPY_MODEL_([0-9a-f]{32})", json.dumps(state)))
    assert shown, "a chapter shows at least one widget"
    assert shown | referred <= set(state)


def test_numbers_are_compared(chapter):
    numbers = sum(
        len(NUMBER.findall(text))
        for cell in code_cells(chapter)
        if not MARKERS.search(cell.source) and not MARKERS.search(str(cell.metadata))
        for text in compared_texts(cell)
    )
    assert numbers >= COMPARED_NUMBERS


def test_only_what_is_listed_escapes_comparison():
    found = {
        (path.stem, cell.id)
        for path in CHAPTERS
        for cell in code_cells(nbformat.read(path, as_version=4))
        if MARKERS.search(cell.source) or MARKERS.search(str(cell.metadata))
    }
    assert found == set(IGNORED)


def test_nothing_of_the_machine_is_stored(chapter):
    for cell in chapter.cells:
        texts = [cell.source, *(compared_texts(cell) if cell.cell_type == "code" else [])]
        for text in texts:
            assert not MACHINE.search(text), (cell.id, MACHINE.search(text))


def nbval(path):
    """Run the comparison of `make test` on one notebook."""
    return subprocess.run(
        ["make", "--no-print-directory", "nbval", f"NOTEBOOKS={path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nbval_passes_what_is_true_and_fails_what_is_not(tmp_path):
    path = tmp_path / "sum.ipynb"
    cells = [
        nbformat.v4.new_code_cell("print('first')", id="c0"),
        nbformat.v4.new_code_cell("print(f'{1 / 3:.4f}')", id="c1"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    execute.main([path])
    result = nbval(path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout

    path.write_text(path.read_text().replace("0.3333", "0.3334"))
    result = nbval(path)
    assert result.returncode != 0
    assert "1 failed, 1 passed" in result.stdout
    assert "Cell 1" in result.stdout


def test_nbval_fails_a_chapter_with_one_number_changed(tmp_path):
    """The first chapter up to its first compared number, with that number changed."""
    notebook = nbformat.read(CHAPTERS[0], as_version=4)
    for last, cell in enumerate(notebook.cells, start=1):  # noqa: B007 (used after the loop)
        outputs = cell.get("outputs", [])
        printed = next((o for o in outputs if o.get("name") == "stdout"), None)
        number = printed and NUMBER.search(printed.text)
        if number:
            break
    assert number, "the first chapter prints no number"
    digit = number.start() + len(number[0]) - 1
    changed = str((int(printed.text[digit]) + 1) % 10)
    printed.text = printed.text[:digit] + changed + printed.text[digit + 1 :]
    notebook.cells = notebook.cells[:last]
    path = tmp_path / "changed.ipynb"
    nbformat.write(notebook, path)

    result = nbval(path)
    assert result.returncode != 0
    assert "1 failed" in result.stdout, result.stdout + result.stderr
    assert f"Cell {len(code_cells(notebook)) - 1}" in result.stdout


def test_covers_are_the_pictures_of_their_chapters(chapter):
    """The picture at the top of the page is the one that the chapter's cell drew last."""
    drawn = execute.cover(chapter)
    assert drawn is not None, "no cell is tagged cover"
    assert (execute.COVERS / f"{chapter.path.stem}.png").read_bytes() == drawn
