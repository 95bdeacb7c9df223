"""Each chapter alone, as a hosted notebook would run it: `make test-colab`.

The base environment has what such a host has, torch and the older widgets, but not the library.
Each chapter lies alone in an empty folder, with an environment of its own on top of the base
one; its first cell brings the library from a git repository made of this working tree.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import repository
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / ".venv-colab"
UV = Path(sys.executable).with_name("uv")

CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))

# Seconds on two cores, without those in which the first cell brings the library.
SECONDS = {"06_training": 180}
SECONDS_OF_MOST = 60

# What the host brings must stay as it is.
KEPT = ("torch", "torchvision", "numpy", "ipywidgets", "anywidget")


def run(*command, cwd=None):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A clone of the working tree with its own address in it, tagged with the version."""
    folder = tmp_path_factory.mktemp("published")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    repository.stamp(folder, folder.as_uri())
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
    run(*git, "init", "--quiet", cwd=folder)
    run(*git, "add", "--all", cwd=folder)
    run(*git, "commit", "--quiet", "--message", "as it is", cwd=folder)
    run(*git, "tag", f"v{repository.stated_version(folder)}", cwd=folder)
    return folder


def fresh_environment(folder):
    """A new environment that sees the packages of the base one; returns its Python."""
    run(UV, "venv", "--quiet", "--seed", "--python", BASE / "bin" / "python", folder)
    (own,) = folder.glob("lib/python3*/site-packages")
    (base,) = BASE.glob("lib/python3*/site-packages")
    (own / "base.pth").write_text(f"{base}\n")
    return folder / "bin" / "python"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs_alone(chapter, published, tmp_path, monkeypatch):
    python = fresh_environment(tmp_path / "environment")
    kernel = tmp_path / "jupyter" / "kernels" / "fresh"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "fresh"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    # pip installs where the kernel's Python is.
    monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")

    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(published / "chapters" / chapter.name, alone)
    notebook = nbformat.read(alone / chapter.name, as_version=4)
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    assert published.as_uri() in notebook.cells[first].source
    client = NotebookClient(
        notebook, kernel_name="fresh", timeout=600, resources={"metadata": {"path": str(alone)}}
    )
    with client.setup_kernel():
        took = {}
        for i, cell in enumerate(notebook.cells):
            start = time.perf_counter()
            client.execute_cell(cell, i)
            took[i] = time.perf_counter() - start
    seconds = sum(took.values()) - took[first]
    print(f"\n{chapter.stem}: {seconds:.0f} s, and {took[first]:.0f} s for the library")

    new = {path.name for path in (tmp_path / "environment").glob("lib/python3*/site-packages/*")}
    assert "diffusion_lib" in new
    assert new & set(KEPT) == set(), "the first cell replaced what the host has"
    assert seconds <= SECONDS.get(chapter.stem, SECONDS_OF_MOST)
