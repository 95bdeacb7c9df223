"""Sphinx extension: the directive `exercises`, a table of all exercises, made from the chapters.

An exercise is a section with a title such as "Predict: three steps", of which the first words are
"*Difficulty 2 of 3.*".
"""

import re

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

TITLE = re.compile(r"(Predict|Implement|Explore|Find): (.+)")
DIFFICULTY = re.compile(r"Difficulty ([123]) of 3\.")
HEADS = {"Chapter": 34, "Exercise": 40, "Kind": 13, "Difficulty": 13}  # the widths, in per cent

logger = logging.getLogger(__name__)


class exercises(nodes.General, nodes.Element):
    """Where the table comes to stand."""


class Exercises(SphinxDirective):
    """The directive; the chapters are all read before the table is made."""

    def run(self):
        """The place of the table."""
        return [exercises()]


def exercises_of(doctree):
    """The anchor, title, kind and difficulty ("" if it is not stated) of each exercise."""
    for section in doctree.findall(nodes.section):
        found = TITLE.fullmatch(section.next_node(nodes.title).astext())
        if found:
            words = section.next_node(nodes.emphasis)
            stated = words is not None and DIFFICULTY.fullmatch(words.astext())
            title = found[2][0].upper() + found[2][1:]
            yield section["ids"][0], title, found[1], stated[1] if stated else ""


def row_of(*cells):
    """A row of the table; a cell is a text or a link."""
    row = nodes.row()
    for cell in cells:
        inline = nodes.Text(cell) if isinstance(cell, str) else cell
        row += nodes.entry("", nodes.paragraph("", "", inline))
    return row


def table_of(rows):
    """The table with these rows."""
    group = nodes.tgroup(cols=len(HEADS))
    group += [nodes.colspec(colwidth=width) for width in HEADS.values()]
    group += nodes.thead("", row_of(*HEADS))
    group += nodes.tbody("", *rows)
    return nodes.table("", group, classes=["colwidths-given"])


def make_table(app, doctree, docname):
    """Put the table in its place, a link to each exercise in it."""
    for place in list(doctree.findall(exercises)):
        rows = []
        for chapter in sorted(app.env.found_docs):
            if not chapter.startswith("chapters/"):
                continue
            named = app.env.external_site_map[chapter].title or app.env.titles[chapter].astext()
            page = app.builder.get_relative_uri(docname, chapter)
            for anchor, title, kind, level in exercises_of(app.env.get_doctree(chapter)):
                if not level:
                    logger.warning("no difficulty stated: %s", title, location=chapter)
                link = nodes.reference("", title, internal=True, refuri=f"{page}#{anchor}")
                rows.append(row_of(named, link, kind, level))
        place.replace_self(table_of(rows))


def setup(app):
    """Connect the extension."""
    app.add_node(exercises)
    app.add_directive("exercises", Exercises)
    app.connect("doctree-resolved", make_table)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
