"""The strict build refuses what would trip a reader; `make book` is the build that passes."""

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]

JUPYTER_BOOK = Path(sys.executable).parent / "jupyter-book"

# A single pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="

PAGE = """# Faults

[A link](nowhere.md), and a reference: {ref}`nothing`.

![](picture.png)
"""


def code_cell(*outputs):
    cell = nbformat.v4.new_code_cell("1")
    cell.execution_count = 1
    cell.outputs = list(outputs)
    return cell


def test_each_fault_fails_the_build(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "_ext").symlink_to(ROOT / "book" / "_ext")
    (tmp_path / "book" / "_static").symlink_to(ROOT / "book" / "_static")
    shutil.copy(ROOT / "_config.yml", tmp_path)
    shutil.copy(ROOT / "book" / "references.bib", tmp_path / "book")
    toc = {"format": "jb-book", "root": "book/page", "chapters": [{"file": "book/cells"}]}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    (tmp_path / "book" / "page.md").write_text(PAGE)
    (tmp_path / "book" / "picture.png").write_bytes(base64.b64decode(PNG))
    picture = nbformat.v4.new_output("display_data", {"image/png": PNG})
    complaint = nbformat.v4.new_output("stream", name="stderr", text="mind the gap")
    title = nbformat.v4.new_markdown_cell("# Cells")
    notebook = nbformat.v4.new_notebook(cells=[title, code_cell(picture), code_cell(complaint)])
    nbformat.write(notebook, tmp_path / "book" / "cells.ipynb")

    build = subprocess.run(
        [JUPYTER_BOOK, "build", tmp_path, "-W", "-n", "--keep-going"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    said = build.stdout + build.stderr
    assert build.returncode != 0
    assert "nowhere.md" in said
    assert "undefined label: 'nothing'" in said
    assert said.count("image without alternative text") == 2
    assert "stderr was found in the cell outputs" in said
