"""Sphinx extension: the book serves its own scripts, and refuses pictures without words.

MathJax, require.js and the widget manager come from npm, anywidget's browser module from its
Python package. They go to `vendor/` beside the pages and not into `_static/`, because Jupyter
Book loads every script under `_static/` on every page.
"""

import shutil
from pathlib import Path

import anywidget
from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
NPM = ROOT / "node_modules"
HTML_MANAGER = NPM / "@jupyter-widgets" / "html-manager" / "dist"
MATHJAX = NPM / "mathjax" / "es5"

# MathJax fetches the folders on demand: fonts, rarer TeX macros, speech for screen readers.
VENDORED = {
    "require.js": NPM / "requirejs" / "require.js",
    "anywidget.js": Path(anywidget.__file__).parent / "nbextension" / "index.js",
    "embed-amd.js": HTML_MANAGER / "embed-amd.js",
    "mathjax/tex-chtml.js": MATHJAX / "tex-chtml.js",
    "mathjax/output/chtml/fonts": MATHJAX / "output" / "chtml" / "fonts",
    "mathjax/input/tex/extensions": MATHJAX / "input" / "tex" / "extensions",
    "mathjax/a11y": MATHJAX / "a11y",
    "mathjax/sre": MATHJAX / "sre",
}


def set_paths(app, config):
    """Point Sphinx and MyST-NB, which look from `_static/`, at the vendored files."""
    config.mathjax_path = "../vendor/mathjax/tex-chtml.js"
    # In this order, after the page is parsed: the theme's scripts, which come first, would
    # otherwise take require.js for their module loader.
    config.nb_ipywidgets_js = {
        "../vendor/require.js": {"defer": "defer"},
        "widgets.js": {"defer": "defer"},
        "../vendor/embed-amd.js": {"defer": "defer"},
    }


def copy_vendored(app):
    """Copy the vendored files beside the pages."""
    if app.builder.format != "html":
        return
    target = Path(app.outdir) / "vendor"
    for name, source in VENDORED.items():
        to = target / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, to)
    # The manager is made of several modules, and each looks for fonts where it thinks it lies.
    for place in ("@jupyter-widgets", "@jupyter-widgets/html-manager/dist"):
        fonts = target / place
        fonts.mkdir(parents=True, exist_ok=True)
        for font in HTML_MANAGER.glob("*.woff2"):
            shutil.copyfile(font, fonts / font.name)


def leave_out_mathjax(app, pagename, templatename, context, doctree):
    """Load MathJax only where there is mathematics; Sphinx does so, too, where a page's contents
    lead to some, which is the first page of the book."""
    mathematics = (nodes.math, nodes.math_block)
    if doctree and any(isinstance(node, mathematics) for node in doctree.findall()):
        return
    context["script_files"][:] = [
        script
        for script in context["script_files"]
        if "mathjax" not in f"{script.filename} {script.attributes.get('body')}".lower()
    ]


def show_cover(app, doctree):
    """Put the picture that a chapter earns under its title, with the alt text of its cell."""
    name = Path(app.env.docname).name
    if not (app.srcdir / "book" / "_static" / "covers" / f"{name}.png").is_file():
        return
    if not app.env.docname.startswith("chapters/"):
        return
    tagged = [
        node
        for node in doctree.findall(nodes.container)
        if "tag_cover" in node.get("classes", []) and "cell" in node["classes"]
    ]
    alt = tagged[0]["cell_metadata"]["mystnb"]["image"]["alt"]
    picture = nodes.image(uri=f"/book/_static/covers/{name}.png", alt=alt, classes=["cover"])
    next(doctree.findall(nodes.title)).parent.insert(1, picture)


def require_alt_text(app, doctree):
    """Warn, which fails the strict build, of every image that has no alternative text."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning("image without alternative text: %s", image["uri"], location=image)


def setup(app):
    """Connect the extension."""
    app.connect("config-inited", set_paths)
    app.connect("builder-inited", copy_vendored)
    # After Sphinx has added MathJax, at the default priority of 500.
    app.connect("html-page-context", leave_out_mathjax, priority=600)
    # Before Sphinx collects the images of the page, at the default priority of 500.
    app.connect("doctree-read", show_cover, priority=400)
    app.connect("doctree-read", require_alt_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
