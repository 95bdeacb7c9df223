"""Execute notebooks from a clean state and store their outputs, the same from run to run.

    python book/execute.py chapters/*.ipynb

A file whose outputs did not change is left as it is, byte for byte. The picture of the cell
that is tagged `cover` goes to book/_static/covers/ too, for the top of the chapter's page and
for the landing page.
"""

import base64
import json
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LINKS = {"LinkModel", "DirectionalLinkModel"}

COVERS = Path(__file__).resolve().parent / "_static" / "covers"

CELL_TIMEOUT = 600  # seconds

# The patch version of Python, which the kernel would add here, says nothing about the outputs.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


class NotebookError(Exception):
    """A notebook ran, but what it wrote may not be stored."""


def execute(path: Path) -> str:
    """Run the notebook at `path` in a new kernel, in its own folder, and return its new text.

    Raises NotebookError for output on stderr, and nbclient's CellExecutionError for a cell
    that raises.
    """
    notebook = clean(nbformat.read(path, as_version=4))
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=CELL_TIMEOUT,
        record_timing=False,
        # A stream arrives in pieces that depend on timing.
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    refuse_stderr(notebook, path)
    return serialise(notebook)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Return `notebook` without outputs, with an id in every cell and our metadata only."""
    taken = {cell.get("id") for cell in notebook.cells}
    for index, cell in enumerate(notebook.cells):
        if "id" not in cell:
            cell.id = next(i for i in (f"cell-{index}", f"cell-{index}-new") if i not in taken)
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def refuse_stderr(notebook: NotebookNode, path: Path) -> None:
    """Raise NotebookError if a cell of `notebook` wrote to stderr."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise NotebookError(f"{path}, cell {cell.id}: wrote to stderr:\n{output.text}")


def serialise(notebook: NotebookNode) -> str:
    """Return the text of an executed `notebook`, equal for equal outputs."""
    for key in set(notebook.metadata) - {"widgets"}:
        del notebook.metadata[key]
    notebook.metadata.update(nbformat.from_dict(METADATA))

    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    kept = shown_models(notebook, state)
    for model_id in set(state) - set(kept):
        del state[model_id]
    if not state:
        notebook.metadata.pop("widgets", None)

    nbformat.validate(notebook)
    text = nbformat.writes(notebook) + "\n"
    # Widgets are numbered in the order in which the notebook made them.
    numbers = {model_id: f"{number:032x}" for number, model_id in enumerate(kept, start=1)}
    if numbers:
        text = re.sub("|".join(numbers), lambda match: numbers[match[0]], text)
    # Sort again: the new ids are keys.
    return nbformat.writes(nbformat.reads(text, as_version=4)) + "\n"


def shown_models(notebook: NotebookNode, state: dict) -> list[str]:
    """Return the ids of the models that a shown widget needs, in order of their making.

    These are the models in the outputs, those that they refer to, and the links (`jslink`) at
    either end of which one of them stands, with what is at the other end.
    """
    refers = {
        model_id: {
            other for other in re.findall(r"[0-9a-f]{32}", json.dumps(model)) if other in state
        }
        for model_id, model in state.items()
    }
    pending = {
        output.data[WIDGET_VIEW]["model_id"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if WIDGET_VIEW in output.get("data", {})
    }
    shown = set()
    while pending:
        shown |= pending
        pending = {other for model_id in pending for other in refers[model_id]}
        pending |= {
            model_id
            for model_id, model in state.items()
            if model["model_name"] in LINKS and refers[model_id] & shown
        }
        pending -= shown
    return [model_id for model_id in state if model_id in shown]


def cover(notebook: NotebookNode) -> bytes | None:
    """Return the PNG of the cell tagged `cover`, or None if no cell is."""
    for cell in notebook.cells:
        if "cover" in cell.metadata.get("tags", []):
            shown = [output.get("data", {}).get("image/png") for output in cell.outputs]
            if len(shown) != 1 or shown[0] is None:
                raise NotebookError(f"cell {cell.id} is tagged cover: it must draw one figure")
            return base64.b64decode(shown[0])
    return None


def main(paths: list[str]) -> None:
    """Execute each notebook in `paths` and write back those that changed."""
    COVERS.mkdir(exist_ok=True)
    for path in map(Path, paths):
        text = execute(path)
        if text == path.read_text(encoding="utf-8"):
            print(f"{path}: unchanged", flush=True)
            continue
        path.write_text(text, encoding="utf-8")
        picture = cover(nbformat.reads(text, as_version=4))
        if picture:
            (COVERS / f"{path.stem}.png").write_bytes(picture)
        print(f"{path}: stored", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
