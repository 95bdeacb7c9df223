"""The repository's address: stated once, the same everywhere, and nothing dead without it."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import execute
import nbformat
import pytest
import repository
import yaml

ROOT = Path(__file__).resolve().parents[2]
URL = "https://github.com/someone/a-book"
FILES = ("_config.yml", "pyproject.toml", "README.md", "CITATION.cff")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture
def copy(tmp_path):
    """What the address stands in, with one chapter; no address is stated."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "chapters").mkdir()
    shutil.copy(sorted((ROOT / "chapters").glob("*.ipynb"))[1], tmp_path / "chapters")
    repository.stamp(tmp_path, "")
    return tmp_path


def texts(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in files}


def first_cell(folder):
    (path,) = folder.glob("chapters/*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    return next(cell.source for cell in cells if cell.cell_type == "code")


def test_this_tree_agrees_with_what_it_states():
    wrong = [path.relative_to(ROOT).as_posix() for path in repository.disagreements(ROOT)]
    assert wrong == [], "run: make repository"


def test_address_is_written_everywhere_and_taken_back(copy):
    before = texts(copy)
    repository.stamp(copy, URL)
    after = texts(copy)
    assert repository.stated(copy) == URL
    assert repository.disagreements(copy) == []
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name in after if name != "pyproject.toml"}
    assert all(URL in after[name] for name in changed)
    assert f"git+{URL}@v{repository.stated_version(copy)}" in first_cell(copy)
    assert repository.stamp(copy, URL) == []

    repository.stamp(copy, "")
    assert texts(copy) == before


def test_only_the_first_cell_of_a_notebook_changes(copy):
    (path,) = copy.glob("chapters/*.ipynb")
    before = json.loads(path.read_text("utf-8"))
    repository.stamp(copy, URL)
    after = json.loads(path.read_text("utf-8"))
    differ = [a for a, b in zip(after["cells"], before["cells"], strict=True) if a != b]
    assert len(differ) == 1
    assert {key: after[key] for key in after if key != "cells"} == {
        key: before[key] for key in before if key != "cells"
    }


@pytest.mark.parametrize("name", ["README.md", "CITATION.cff", "chapters"])
@pytest.mark.parametrize("old", [URL, "v0.1.0"])
def test_each_disagreement_is_found(copy, name, old):
    repository.stamp(copy, URL)
    (path,) = copy.glob(f"{name}/*.ipynb" if name == "chapters" else name)
    text = path.read_text("utf-8")
    old = f"version: {old[1:]}" if name == "CITATION.cff" and old != URL else old
    if old not in text:
        pytest.skip("does not name the version")
    new = "https://github.com/another/book" if old == URL else f"{old}9"
    path.write_text(text.replace(old, new), "utf-8")
    assert repository.disagreements(copy) == [path]


def test_a_new_version_is_a_disagreement(copy):
    repository.stamp(copy, URL)
    path = copy / "pyproject.toml"
    path.write_text(re.sub(r'^version = ".*"$', 'version = "9.8.7"', path.read_text(), flags=re.M))
    assert len(repository.disagreements(copy)) == 2  # the chapter, CITATION.cff
    repository.stamp(copy, URL)
    assert "@v9.8.7" in first_cell(copy)


@pytest.mark.parametrize("url", ["github.com/someone/a-book", f"{URL}.git", f"{URL}/", "a book"])
def test_other_addresses_are_refused(copy, url):
    before = texts(copy)
    with pytest.raises(ValueError, match="OWNER/NAME"):
        repository.stamp(copy, url)
    assert texts(copy) == before


def test_make_repository(copy):
    """The command of the Makefile, with an address, without one, and with an empty one."""
    shutil.copy(ROOT / "Makefile", copy)
    (copy / "book").mkdir()
    shutil.copy(ROOT / "book" / "repository.py", copy / "book")

    def make(*words):
        command = ["make", "--silent", "--old-file=.venv/installed", "BIN=" + str(bin_), *words]
        return subprocess.run(command, cwd=copy, check=False, capture_output=True, text=True)

    bin_ = Path(sys.executable).parent
    assert make("repository", f"URL={URL}/").returncode == 0
    assert repository.stated(copy) == URL
    assert make("repository").stdout == ""
    assert repository.stated(copy) == URL
    wrong = make("repository", "URL=a book")
    assert wrong.returncode != 0
    assert "OWNER/NAME" in wrong.stderr
    assert make("repository", "URL=").returncode == 0
    assert repository.stated(copy) == ""


@pytest.mark.parametrize("url", ["", URL])
def test_first_cell_does_nothing_where_the_library_is(url, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("it ran pip"))
    exec(repository.first_cell(url, "1.2.3"), {})


def test_first_cell_without_an_address_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install ."):
        exec(repository.first_cell("", "1.2.3"), {})


@pytest.mark.parametrize("has_torch", [True, False])
def test_first_cell_brings_the_library_and_keeps_torch(has_torch, monkeypatch):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append((command, check)))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: has_torch if name == "torch" else None
    )
    exec(repository.first_cell(URL, "1.2.3"), {})
    ((command, check),) = ran
    assert check, "a failure must end the cell"
    assert command[:3] == [sys.executable, "-m", "pip"]
    assert f"diffusion_lib @ git+{URL}@v1.2.3" in command
    assert (f"torch=={version('torch')}" in command) == has_torch


def test_first_cell_is_short():
    for url in ("", URL):
        assert len(repository.first_cell(url, "1.2.3").splitlines()) <= 15


def test_binder_installs_the_pinned_versions_without_cuda():
    lines = (ROOT / "binder" / "requirements.txt").read_text("utf-8").splitlines()
    assert "--constraint ../requirements.txt" in lines
    assert any(line.startswith("--extra-index-url") and line.endswith("/cpu") for line in lines)
    build = ROOT / "binder" / "postBuild"
    assert build.stat().st_mode & 0o111, "Binder runs it only if it is executable"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_least_privileges(path):
    """By default nobody may write; actions are named by commit; Pages and releases get more."""
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    more = {
        "deploy": {"pages": "write", "id-token": "write"},
        "release": {"contents": "write"},
    }
    for name, job in workflow["jobs"].items():
        assert job.get("permissions") == more.get(name)
        assert "timeout-minutes" in job
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
                # What may write to the repository runs nothing that comes from it.
                assert name != "release" or "checkout" not in step["uses"]


INDEX = """# A book

The first words of the book.

| chapter | the question | reading time |
| --- | --- | --- |
| [1 · A chapter](../chapters/01_chapter.ipynb) | Why? | 25 min |
"""


@pytest.fixture(scope="module", params=["", URL], ids=["unset", "set"])
def built(request, tmp_path_factory):
    """A small book, built without an address and with one."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "book").mkdir()
    (folder / "chapters").mkdir()
    for name in ("_ext", "_static", "_templates"):
        (folder / "book" / name).symlink_to(ROOT / "book" / name)
    shutil.copy(ROOT / "book" / "references.bib", folder / "book")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    pages = [{"file": "chapters/01_chapter"}, {"file": "book/glossary"}]
    toc = {"format": "jb-book", "root": "book/index", "chapters": pages}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc))
    (folder / "book" / "index.md").write_text(INDEX, "utf-8")
    (folder / "book" / "glossary.md").write_text("# Glossary\n\n## A term\n\nA word.\n", "utf-8")
    cells = [
        nbformat.v4.new_markdown_cell("# A chapter\n\nLet $x$ be.\n\nIts plain words & more."),
        nbformat.v4.new_code_cell("1"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=execute.METADATA)
    nbformat.write(notebook, folder / "chapters" / "01_chapter.ipynb")
    repository.stamp(folder, request.param)
    command = [Path(sys.executable).parent / "jupyter-book", "build", folder, "-W", "-n"]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    return request.param, folder / "_build" / "html"


PAGES = ("book/index.html", "chapters/01_chapter.html", "404.html", "search.html")


def test_no_dead_link_without_an_address_and_all_with_one(built):
    url, html = built
    text = (html / "chapters" / "01_chapter.html").read_text("utf-8")
    links = set(re.findall(r'href="([^"]+)"', text))
    here = "someone/a-book"
    expected = {
        URL,
        f"https://colab.research.google.com/github/{here}/blob/main/chapters/01_chapter.ipynb",
        f"https://mybinder.org/v2/gh/{here}/main?urlpath=lab/tree/chapters/01_chapter.ipynb",
        f"{URL}/edit/main/chapters/01_chapter.ipynb",
        "https://someone.github.io/a-book/chapters/01_chapter.html",
    }
    assert "../_sources/chapters/01_chapter.ipynb" in links
    if url:
        assert expected <= links
        assert any(link.startswith(f"{URL}/issues/new?title=") for link in links)
    else:
        texts = [(html / page).read_text("utf-8") for page in PAGES]
        others = {link for text in texts for link in re.findall(r'href="(https?:[^"]*)"', text)}
        assert others <= {"https://jupyterbook.org/"}, others
        assert not any("fa-rocket" in text or "Suggest edit" in text for text in texts)


def meta(text):
    return dict(re.findall(r'<meta (?:name|property)="([\w:]+)" content="([^"]*)"', text))


def test_what_a_shared_link_shows(built):
    url, html = built
    text = (html / "chapters" / "01_chapter.html").read_text("utf-8")
    said = meta(text)
    assert said["description"] == "Its plain words &amp; more."
    assert said["og:description"] == said["description"]
    assert said["og:title"] == "A chapter"
    assert said["og:site_name"] == "Diffusion models, step by step"
    assert ("og:image" in said) == ("og:url" in said) == ('rel="canonical"' in text) == bool(url)
    if url:
        site = "https://someone.github.io/a-book/"
        assert said["og:url"] == f"{site}chapters/01_chapter.html"
        assert said["og:image"].startswith(site)
        assert (html / said["og:image"].removeprefix(site)).is_file()


def test_chapter_says_how_long_it_takes(built):
    text = (built[1] / "chapters" / "01_chapter.html").read_text("utf-8")
    assert "Reading time: 25 minutes" in text


def test_sitemap(built):
    url, html = built
    path = html / "sitemap.xml"
    assert path.exists() == bool(url)
    if url:
        found = re.findall(r"<loc>https://someone\.github\.io/a-book/(.+)</loc>", path.read_text())
        pages = ["book/glossary.html", "book/index.html", "chapters/01_chapter.html"]
        assert found == pages


def test_lost_readers_find_back_from_any_depth(built):
    """Every address in the page begins at the host's root, and leads to a file."""
    url, html = built
    root = "/a-book/" if url else "/"
    text = (html / "404.html").read_text("utf-8")
    named = r'\b(?:href|src|action|data-content_root)="(?!https?:|#|data:)([^"]*)"'
    local = re.findall(named, text)
    assert f"{root}book/index.html" in local
    assert len(local) > 10
    for address in local:
        assert address.startswith(root), address
        assert (html / re.sub(r"[?#].*", "", address.removeprefix(root))).exists(), address
