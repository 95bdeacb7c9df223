"""The reference of the library has every public name, and says what it must of each."""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "_build" / "html" / "book" / "library.html"

sys.path.insert(0, str(ROOT / "book" / "_ext"))
library_reference = importlib.import_module("library_reference")
sys.path.pop(0)

MODULES = library_reference.modules()


def names(module):
    """The public names of a module, and those of its classes, each with what it is."""
    module = importlib.import_module(module)
    for name in library_reference.public_names(module):
        thing = getattr(module, name)
        yield f"{module.__name__}.{name}", thing
        if inspect.isclass(thing):
            own = [*vars(thing), *inspect.get_annotations(thing)]
            for member in dict.fromkeys(n for n in own if not n.startswith("_")):
                yield f"{module.__name__}.{name}.{member}", getattr(thing, member, None)


NAMES = dict(pair for module in MODULES for pair in names(module))


def test_every_module_has_its_place():
    text = (ROOT / "book" / "library.md").read_text("utf-8")
    assert sorted(re.findall(r"automodule:: (\S+)", text)) == MODULES
    assert sorted(p.stem for p in (ROOT / "diffusion_lib").glob("[!_]*.py")) == sorted(
        name.rpartition(".")[2] for name in MODULES if not name.endswith(".interactive")
    )


@pytest.fixture(scope="module")
def page():
    if not PAGE.exists():
        pytest.fail("The book is not built: run `make book` first.")
    return PAGE.read_text("utf-8")


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_on_the_page(module, page):
    assert f'id="module-{module}"' in page
    missing = {name for name, _ in names(module) if f'id="{name}"' not in page}
    # A network is called, and its class says with what.
    assert {name for name in missing if not name.endswith(".forward")} == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_leads_to_its_source(module, page):
    classes_and_functions = (
        name
        for name, thing in names(module)
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and not name.endswith(".forward")
    )
    for name in classes_and_functions:
        owner, _, last = name.rpartition(".")
        place = NAMES[name].__module__.replace(".", "/")
        within = owner.removeprefix(NAMES[name].__module__).removeprefix(".")
        anchor = f"{within}.{last}" if owner in NAMES else last
        assert f"_modules/{place}.html#{anchor}" in page, name


# A network is called, with what the docstring of its class says.
FUNCTIONS = [
    pytest.param(thing, id=name.removeprefix("diffusion_lib."))
    for name, thing in NAMES.items()
    if inspect.isfunction(thing) and not name.endswith(".forward")
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_docstrings_say_what_is_raised(function):
    text = inspect.getdoc(function)
    assert text
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    if any(isinstance(node, ast.Raise) for node in ast.walk(tree)):
        assert re.search(r"\bRaises?\b", text)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_docstrings_say_the_shapes_of_tensors(function):
    annotations = inspect.get_annotations(function)
    if "Tensor" in str(annotations.get("return", "")):
        shape = r"\([\w, +…]+,[\w, +…]*\)|shape|like|scalar|the same ones"
        assert re.search(shape, inspect.getdoc(function))


@pytest.mark.parametrize("name", [n for n, thing in NAMES.items() if inspect.isclass(thing)])
def test_classes_are_described(name):
    thing = NAMES[name]
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{thing.__name__}("), "made by dataclass, not by a person"
