"""Sphinx extension: what autodoc needs to make the library's reference out of its source.

The library's docstrings are plain text with names between backticks, and the comment beside a
field or a constant says what it is. This turns both into what autodoc reads, and lets a page
link to a name with `[ddpm](library.md#diffusion_lib.sampling.ddpm)`.
"""

import ast
import importlib
import io
import pkgutil
import re
import tokenize
from inspect import getmodule

from sphinx import addnodes
from sphinx.pycode import ModuleAnalyzer

PACKAGE = "diffusion_lib"

# What stands above indented lines in the docstrings of the commands, which their help shows too.
SECTIONS = {"Args:": "param", "Raises:": "raises"}


def modules():
    """The names of the modules that a user of the library imports from."""
    package = importlib.import_module(PACKAGE)
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return [f"{PACKAGE}.{name}" for name in names if not name.startswith("_")]


def public_names(module):
    """The names that a module makes public: those in `__all__`, or all that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    tree = ast.parse(ModuleAnalyzer.for_module(module.__name__).code)
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [name for name in [*_assigned(tree), *defined] if not name.startswith("_")]


def _assigned(scope):
    """The names that the body of a module or a class assigns, each with its statement."""
    assigned = {}
    for node in scope.body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        if isinstance(target, ast.Name):
            assigned[target.id] = node
    return assigned


def comments(source):
    """What the comment beside or above each field and constant says: {(class, name): lines}.

    The class of a constant is "". A constant is followed by its source.
    """
    found = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token for token in found if token.type == tokenize.COMMENT}

    def above(line):
        token = said.get(line)
        alone = token is not None and token.line.strip() == token.string
        return [*above(line - 1), token.string] if alone else []

    docs = {}
    tree = ast.parse(source)
    for scope in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        for name, node in _assigned(scope).items():
            beside = said.get(node.lineno)
            texts = [beside.string] if beside and node.lineno == node.end_lineno else []
            lines = [text.lstrip("# ") for text in texts or above(node.lineno - 1)]
            if scope is tree:
                code = ast.get_source_segment(source, node).splitlines()
                lines += ["", *(f"    {line}" for line in code)]
            docs[getattr(scope, "name", ""), name] = [*lines, ""]
    return docs


def read_comments(app):
    """Give the comments to autodoc, which itself would read only those that begin with `#:`."""
    for name in modules():
        analyzer = ModuleAnalyzer.for_module(name)
        analyzer.analyze()
        analyzer.attr_docs.update(comments(analyzer.code))


def to_rest(app, what, name, obj, options, lines):
    """Turn a plain docstring into reStructuredText, in place."""
    module = name if what == "module" else getattr(getmodule(obj), "__name__", name)
    written, block = [], None
    for line in lines:
        if line in SECTIONS:
            block = SECTIONS[line]
            continue
        if line and not line.startswith("    "):
            block = None
        elif line and not block:
            written += ["::", ""]
            block = "literal"
        elif block != "literal":
            line = re.sub(r"^    (\w+): ", rf":{block} \1: ", line)
        written.append(line if block == "literal" else _inline(line, module))
    lines[:] = written


def _inline(line, module):
    parts = re.split(r"`([^`]+)`", line)
    parts[0::2] = [re.sub(r"([\\*_|])", r"\\\1", part) for part in parts[0::2]]
    parts[1::2] = [_name(part, module) for part in parts[1::2]]
    return "".join(parts)


def _name(text, module):
    """A link if the text is a public name of the library, else code."""
    for owner in (module.partition("._")[0], PACKAGE):
        scope, _, last = f"{owner}.{text}".rpartition(".")
        if scope in modules() and last in public_names(importlib.import_module(scope)):
            return f":py:obj:`{text} <{scope}.{last}>`"
    return f"``{text}``"


def add_anchors(app, doctree):
    """Let links in Markdown name what autodoc has documented on a page."""
    slugs = app.env.metadata[app.env.docname].get("myst_slugs", {})
    for signature in doctree.findall(addnodes.desc_signature):
        for anchor in signature["ids"]:
            slugs[anchor] = (signature.line, anchor, anchor)


def setup(app):
    """Connect the extension."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.viewcode")
    app.connect("builder-inited", read_comments)
    app.connect("autodoc-process-docstring", to_rest)
    app.connect("doctree-read", add_anchors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
