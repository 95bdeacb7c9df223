"""Sphinx extension: each page's first use of a term leads to the glossary.

An author may link a term where it matters; the page's other terms are found here.
"""

import re

from docutils import nodes

GLOSSARY = "book/glossary"

# What these words say elsewhere, too, or of two things: they are linked by hand, where it is meant.
EVERYDAY = {
    *("encoding", "excess", "gap", "jump", "order", "precision", "prior", "sample", "score"),
}

# What stands in these is no prose, or leads elsewhere already.
NO_PROSE = (
    nodes.FixedTextElement,
    nodes.literal,
    nodes.math,
    nodes.reference,
    nodes.rubric,
    nodes.title,
)


def terms_of(glossary):
    """The anchor of each term, which is the title of a section, in lower case."""
    sections = glossary.findall(nodes.section)
    terms = {section.next_node(nodes.title).astext(): section["ids"][0] for section in sections}
    return {term.lower(): anchor for term, anchor in terms.items() if term != "Glossary"}


def pattern_of(terms):
    """What finds one of the terms, also in the plural, the longest first."""
    words = [re.escape(term).replace(r"\ ", r"\s+") for term in sorted(terms, key=len)[::-1]]
    either = "|".join(words).replace("'", "['’]")
    return re.compile(rf"(?<![\w-])({either})s?(?![\w-])", re.IGNORECASE)


def is_prose(node):
    """Whether a text stands in a paragraph that its author wrote."""
    around = node.parent
    in_paragraph = False
    while around is not None:
        if isinstance(around, NO_PROSE) or "cell_output" in around.get("classes", []):
            return False
        in_paragraph = in_paragraph or isinstance(around, nodes.paragraph)
        around = around.parent
    return in_paragraph


def link_terms(app, doctree, docname):
    """Turn the first use of each term on a chapter's page into a link."""
    if app.builder.format != "html" or not docname.startswith("chapters/"):
        return
    page = app.builder.get_relative_uri(docname, GLOSSARY)
    terms = terms_of(app.env.get_doctree(GLOSSARY))
    linked = {link.get("refuri", "") for link in doctree.findall(nodes.reference)}
    wanted = {
        term: f"{page}#{anchor}"
        for term, anchor in terms.items()
        if term not in EVERYDAY and f"{page}#{anchor}" not in linked
    }
    pattern = pattern_of(wanted)
    for text in [node for node in doctree.findall(nodes.Text) if is_prose(node)]:
        parts, end = [], 0
        for found in pattern.finditer(text):
            term = " ".join(found.group(1).lower().replace("’", "'").split())
            if term not in wanted:
                continue
            words = nodes.inline("", found.group(), classes=["term"])
            link = nodes.reference("", "", words, internal=True, refuri=wanted.pop(term))
            parts += [nodes.Text(text[end : found.start()]), link]
            end = found.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def setup(app):
    """Connect the extension."""
    app.connect("doctree-resolved", link_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
