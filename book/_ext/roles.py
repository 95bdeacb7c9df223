"""Sphinx extension: what a screen reader is told wrongly by the pages' generators, set right."""

REPLACED = {
    # Else each button that unfolds code has this name, whatever stands on it.
    ' aria-label="Toggle hidden content"': "",
    # ARIA 1.3 gave this role up, and a list needs items.
    'role="doc-biblioentry"': 'role="listitem"',
    # Parameters of a signature, a line each: a list of definitions without terms.
    '<dl>\n<dd><em class="sig-param">': '<dl role="none">\n<dd><em class="sig-param">',
}


def set_roles(app, pagename, templatename, context, doctree):
    """Replace in the body of a page."""
    for wrong, right in REPLACED.items():
        context["body"] = context.get("body", "").replace(wrong, right)


def setup(app):
    """Connect the extension."""
    app.connect("html-page-context", set_roles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
