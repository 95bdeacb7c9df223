"""Write the repository's address, which `_config.yml` states, wherever else it stands.

    python book/repository.py                                write it again
    python book/repository.py https://github.com/OWNER/NAME  state another, and write it
    python book/repository.py ""                             state none

It stands in each chapter's first code cell, which brings the library from the repository,
in the badges of the README, and in CITATION.cff. The pages take it from `_config.yml` when
the book is built. The version of the library, which pyproject.toml states, goes with it.
"""

import re
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]

# What `make test-colab` uses is on this machine's disk.
ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+(?<!\.git)|file:///\S+")

UNSET = """\
import importlib.util

if importlib.util.find_spec("diffusion_lib") is None:
    raise ModuleNotFoundError(
        "This chapter runs with the book's library, diffusion_lib. Install it with "
        "`pip install .` in a clone of the book's repository."
    )"""

SET = """\
import importlib.util
import subprocess
import sys
from importlib.metadata import version

if importlib.util.find_spec("diffusion_lib") is None:
    # The book's library, and the torch that is here already, if there is one.
    wanted = ["diffusion_lib @ git+{url}@v{version}"]
    if importlib.util.find_spec("torch"):
        wanted.append(f"torch=={{version('torch')}}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)"""

BADGES = """\
[![Tests]({url}/actions/workflows/test.yml/badge.svg)]({url}/actions/workflows/test.yml)
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{name}/blob/main/chapters/00_one_page.ipynb)
[![Launch Binder](https://mybinder.org/badge_logo.svg)]\
(https://mybinder.org/v2/gh/{name}/main?urlpath=lab/tree/chapters)

"""


def stated(root: Path) -> str:
    """The address that `_config.yml` states, or ""."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return config["sphinx"]["config"]["html_theme_options"]["repository_url"] or ""


def stated_version(root: Path) -> str:
    """The version of the library that pyproject.toml states."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1]


def first_cell(url: str, version: str) -> str:
    """The source of a chapter's first code cell."""
    return SET.format(url=url, version=version) if url else UNSET


def written(root: Path, url: str) -> dict[Path, str]:
    """Each file in which the address stands, with the text that it should have."""
    if url and not ADDRESS.fullmatch(url):
        raise ValueError(f"the address must be like https://github.com/OWNER/NAME, got {url!r}")
    version = stated_version(root)
    name = url.removeprefix("https://github.com/") if url.startswith("https:") else ""

    config, readme, citation = (root / n for n in ("_config.yml", "README.md", "CITATION.cff"))
    texts = {path: path.read_text(encoding="utf-8") for path in (config, readme, citation)}
    texts[config] = _replaced(r'(?<=repository_url: ").*(?="$)', url, texts[config])
    badges = BADGES.format(url=url, name=name) if name else ""
    texts[readme] = _replaced(r"\A(# .*\n\n)(?:\[!\[.*\n)*\n*", rf"\g<1>{badges}", texts[readme])
    line = f"repository-code: {url}\n" if name else ""
    texts[citation] = _replaced(
        r"^(?:repository-code: .*\n)?version: .*\n", f"{line}version: {version}\n", texts[citation]
    )
    for path in sorted((root / "chapters").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        next(c for c in notebook.cells if c.cell_type == "code").source = first_cell(url, version)
        texts[path] = nbformat.writes(notebook) + "\n"
    return texts


def _replaced(pattern: str, text: str, within: str) -> str:
    result, count = re.subn(pattern, text, within, count=1, flags=re.MULTILINE)
    if not count:
        raise ValueError(f"no place for the address: nothing matches {pattern!r}")
    return result


def disagreements(root: Path) -> list[Path]:
    """The files that say something else than `_config.yml` and pyproject.toml."""
    texts = written(root, stated(root))
    return [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]


def stamp(root: Path, url: str) -> list[Path]:
    """Write `url` wherever it stands; return the files that changed."""
    changed = []
    for path, text in written(root, url).items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    address = sys.argv[1] if len(sys.argv) == 2 else stated(ROOT)
    try:
        for changed_path in stamp(ROOT, address.rstrip("/")):
            print(f"{changed_path.relative_to(ROOT)}: written")
    except ValueError as error:
        sys.exit(str(error))
