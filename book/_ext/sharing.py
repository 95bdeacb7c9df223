"""Sphinx extension: what helps to find a page, to share it, and to plan the time for it.

What needs the repository's address stays away until `_config.yml` states it: the buttons and
links to the repository, the canonical addresses, the Open Graph picture and the sitemap.
"""

import re
import textwrap
from html import escape
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax import saxutils

from docutils import nodes

GITHUB = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)")

BUTTONS = ("use_repository_button", "use_edit_page_button", "use_issues_button")

# A chapter's row in the table of the landing page.
TIME = re.compile(r"\]\(\.\./(chapters/\w+)\.ipynb\) \|.*\| (\d+) min \|")

PICTURE = "laboratory.png", "A handwritten digit, noise, and the two mixed, with a slider."

NOT_FOUND = """<h1>Page not found</h1>
<p>There is no page at this address; it may have moved. Begin at the
<a href="book/index.html">first page</a>, or look for it with the <a href="search.html">search</a>.
</p>"""


def site_of(repository):
    """The address at which GitHub Pages shows a repository, or "" for one elsewhere."""
    found = GITHUB.fullmatch(repository)
    if not found:
        return ""
    owner, name = found.groups()
    home = f"{owner.lower()}.github.io"
    return f"https://{home}/" if name.lower() == home else f"https://{home}/{name}/"


def use_address(app, config):
    """Turn on what the repository's address makes possible, and nothing without it."""
    options = config.html_theme_options
    site = site_of(options.get("repository_url") or "")
    if site:
        options.update(dict.fromkeys(BUTTONS, True))
    else:
        for name in ("repository_url", "launch_buttons"):
            options.pop(name, None)
    # Unless `html: baseurl:` in _config.yml names another host.
    config.html_baseurl = config.html_baseurl or site
    if config.html_baseurl:
        config.html_baseurl = config.html_baseurl.rstrip("/") + "/"


def show_time(app, doctree):
    """Say under a chapter's title how long it takes, as the landing page has it."""
    index = Path(app.srcdir) / "book" / "index.md"
    if app.env.docname.startswith("chapters/"):
        app.env.note_dependency(str(index))
        times = dict(TIME.findall(index.read_text(encoding="utf-8")))
        if app.env.docname in times:
            text = f"Reading time: {times[app.env.docname]} minutes"
            title = next(doctree.findall(nodes.title))
            title.parent.insert(1, nodes.paragraph(text, text, classes=["reading-time"]))


def describe(app, pagename, templatename, context, doctree):
    """Write what search engines and shared links show of a page."""
    if doctree is None:
        return
    paragraphs = (
        node
        for node in doctree.findall(nodes.paragraph)
        if "reading-time" not in node["classes"] and not any(node.findall(nodes.math))
    )
    text = " ".join(next((node.astext() for node in paragraphs), app.config.html_title).split())
    text = textwrap.shorten(text, 200, placeholder="…")
    tags = {
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:title": re.sub(r"<[^>]+>", "", context["title"]),
        "og:description": text,
    }
    if app.config.html_baseurl:
        name, alt = PICTURE
        cover = next((n for n in doctree.findall(nodes.image) if "cover" in n["classes"]), None)
        if cover is not None:
            name, alt = f"covers/{Path(pagename).name}.png", cover["alt"]
        tags["og:url"] = context["pageurl"]
        tags["og:image"] = f"{app.config.html_baseurl}_static/{name}"
        tags["og:image:alt"] = alt
    lines = [f'<meta name="description" content="{escape(text)}" />']
    lines += [f'<meta property="{key}" content="{escape(tag)}" />' for key, tag in tags.items()]
    context["metatags"] = "\n".join([context.get("metatags", ""), *lines])


def add_not_found(app):
    """The page that a host shows for an address where there is none."""
    tags = '<meta name="robots" content="noindex" />'
    yield "404", {"title": "Page not found", "body": NOT_FOUND, "metatags": tags}, "page.html"


def finish(app, exception):
    """Let the page for lost readers work at any depth, and write the sitemap."""
    if exception or app.builder.format != "html":
        return
    site, out = app.config.html_baseurl, Path(app.outdir)
    root = urlsplit(site).path or "/"
    page = out / "404.html"
    local = re.compile(r'\b(href|src|action|data-content_root)="(?![a-z]+:|[#/])(?:\./)?')
    page.write_text(local.sub(rf'\1="{root}', page.read_text("utf-8")), "utf-8")
    if site:
        pages = sorted(app.builder.get_target_uri(name) for name in app.env.found_docs)
        urls = [f"<url><loc>{saxutils.escape(site + page)}</loc></url>" for page in pages]
        head = '<?xml version="1.0" encoding="utf-8"?>'
        space = "http://www.sitemaps.org/schemas/sitemap/0.9"
        lines = [head, f'<urlset xmlns="{space}">', *urls, "</urlset>", ""]
        (out / "sitemap.xml").write_text("\n".join(lines), "utf-8")


def setup(app):
    """Connect the extension."""
    app.connect("config-inited", use_address)
    # After the cover, and so above it.
    app.connect("doctree-read", show_time, priority=450)
    app.connect("html-page-context", describe)
    app.connect("html-collect-pages", add_not_found)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
