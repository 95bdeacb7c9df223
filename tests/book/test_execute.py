"""`make notebooks`: the same outputs from run to run, and only such as may be stored."""

import json
import re

import execute
import nbformat
import pytest

# The first slider and its link are never shown; the second is tied to a hidden number.
WIDGETS = """
from ipywidgets import FloatText, IntSlider, VBox, jslink

unseen = IntSlider(description="unseen")
unseen_link = jslink((unseen, "value"), (unseen, "max"))
hidden = FloatText(description="hidden")
shown = IntSlider(description="shown")
link = jslink((shown, "value"), (hidden, "value"))
VBox([shown])
"""


def notebook(tmp_path, *sources):
    cells = [nbformat.v4.new_code_cell(source, id=f"c{k}") for k, source in enumerate(sources)]
    path = tmp_path / "notebook.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def widget_state(text):
    return json.loads(text)["metadata"]["widgets"][execute.WIDGET_STATE]["state"]


def test_two_runs_store_the_same_and_the_second_touches_nothing(tmp_path, capsys):
    path = notebook(tmp_path, WIDGETS, "import sys\nprint(1.5)\nsys.stdout.flush()\nprint(2)")
    execute.main([path])
    first, stamp = path.read_bytes(), path.stat().st_mtime_ns
    execute.main([path])
    assert path.read_bytes() == first
    assert path.stat().st_mtime_ns == stamp
    assert capsys.readouterr().out.splitlines() == [f"{path}: stored", f"{path}: unchanged"]

    text = first.decode()
    assert set(re.findall(r"[0-9a-f]{32}", text)) == set(widget_state(text))
    assert all(int(model_id, 16) < 100 for model_id in widget_state(text))
    assert json.loads(text)["cells"][1]["outputs"] == [
        {"name": "stdout", "output_type": "stream", "text": ["1.5\n", "2\n"]}
    ]
    assert set(json.loads(text)["metadata"]["language_info"]) == {"name", "pygments_lexer"}


def test_what_is_shown_keeps_its_links_and_what_is_not_goes(tmp_path):
    state = widget_state(execute.execute(notebook(tmp_path, WIDGETS)))
    names = [model["state"].get("description") for model in state.values()]
    assert "shown" in names
    assert "hidden" in names
    assert "unseen" not in names
    assert [m["model_name"] for m in state.values()].count("LinkModel") == 1


def test_a_change_in_an_output_is_stored(tmp_path):
    path = notebook(tmp_path, "print(1)")
    execute.main([path])
    path.write_text(path.read_text().replace("print(1)", "print(3)"))
    execute.main([path])
    assert json.loads(path.read_text())["cells"][0]["outputs"][0]["text"] == ["3\n"]


def test_stderr_is_refused(tmp_path):
    path = notebook(tmp_path, "import warnings\nwarnings.warn('mind the gap')")
    before = path.read_bytes()
    with pytest.raises(execute.NotebookError, match="cell c0: wrote to stderr(?s:.*)mind the gap"):
        execute.main([path])
    assert path.read_bytes() == before


def test_cells_without_id_get_one(tmp_path):
    path = notebook(tmp_path, "print(1)", "print(2)")
    old = json.loads(path.read_text())
    old["nbformat_minor"] = 4
    for cell in old["cells"]:
        del cell["id"]
    cleaned = execute.clean(nbformat.from_dict(old))
    assert [cell.id for cell in cleaned.cells] == ["cell-0", "cell-1"]
