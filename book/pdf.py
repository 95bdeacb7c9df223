"""Print the built book as one PDF, in the order of its contents.

make pdf
python book/pdf.py OUT.pdf [PAGE.html ...]    # these pages alone, such as chapters/07_sampling.html
"""

import functools
import io
import os
import re
import shutil
import sys
import threading
from contextlib import contextmanager
from html import escape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import yaml
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, FloatObject, NameObject, NullObject, TextStringObject

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
HTML = ROOT / "_build" / "html"
TITLE = "Diffusion models, step by step"

# A4 less the margins, in the pixels of a browser, of which an inch has 96.
WIDTH = round((210 - 2 * 18) / 25.4 * 96)

# The margins, with the page's number, and its title from its second page on.
MARGINS = """
@page {{
  size: A4;
  margin: 20mm 18mm 18mm;
  font: 9pt sans-serif;
  @top-left {{ content: "{title}"; color: #555; }}
  @bottom-center {{ content: counter(page, {style}); }}
}}
@page :first {{
  counter-set: page {first};
  @top-left {{ content: none; }}
}}
"""

# Mathematics and widgets are in place, as are all pictures.
READY = """() => [...document.querySelectorAll(
    'script[type="application/vnd.jupyter.widget-view+json"]')]
  .every(view => view.parentElement.querySelector('.widget-subarea .diffusion-view'))
  && [...document.images].every(image => image.complete)"""

# Unfolds what is folded, says of each slider what it is on the web, shrinks what is wider than the
# paper, and names the targets of links so that they can be found in the merged file.
PREPARE = """([base, pages]) => {
  for (const folded of document.querySelectorAll('details')) folded.open = true;
  for (const folded of document.querySelectorAll('.toggle-hidden'))
    folded.classList.remove('toggle-hidden');
  for (const image of document.images) image.loading = 'eager';

  for (const controls of document.querySelectorAll('.diffusion-controls')) {
    const names = [...controls.children].flatMap(control => {
      const name = control.querySelector('.widget-label')?.textContent.trim();
      const menu = control.querySelector('select')?.selectedOptions[0].textContent;
      const readout = control.querySelector('.widget-readout');
      const value = menu ?? (readout?.style.display === 'none' ? '' : readout?.textContent);
      return name ? [value ? `${name} (${value})` : name] : [];
    });
    if (!names.length) continue;
    const note = document.createElement('p');
    note.className = 'print-note';
    note.textContent = 'In the book on the web this is '
      + (names.length > 1 ? 'a figure with controls for ' : 'a slider over ')
      + names.join(', ') + '. It is printed as it opens.';
    controls.closest('.widget-subarea').append(note);
  }

  const article = document.querySelector('article');
  for (const link of article.querySelectorAll('a[href]')) {
    if (!link.href.startsWith(base)) continue;
    const [page, place] = link.href.slice(base.length).split('#');
    if (pages.includes(page)) link.href = `book:${page}#${place ?? ''}`;
    else link.removeAttribute('href');
  }
  // The browser writes down only those places of a page to which the page itself links.
  for (const target of article.querySelectorAll('[id]')) {
    const link = document.createElement('a');
    link.href = '#' + encodeURIComponent(target.id);
    article.append(link);
  }

  const wide = 'mjx-container[display], table, .diffusion-view, .sig';
  for (const element of article.querySelectorAll(wide)) {
    const room = element.parentElement.clientWidth;
    if (element.scrollWidth > room + 1) element.style.zoom = room / element.scrollWidth;
  }
  for (const element of article.querySelectorAll('*')) {
    if (element.getBoundingClientRect().right > innerWidth + 1)
      throw Error(`wider than the paper: ${element.outerHTML.slice(0, 200)}`);
  }
}"""


def contents():
    """The pages of the book in their order, as paths below the site's folder: {page: title}.

    The title is None where the contents leave it to the page.
    """
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    listed = [{"file": toc["root"]}, *chapters]
    return {f"{chapter['file']}.html": chapter.get("title") for chapter in listed}


class QuietHandler(SimpleHTTPRequestHandler):
    """A file server that reports nothing."""

    def log_message(self, *args):
        """Keep quiet."""


@contextmanager
def printer():
    """A browser, and the address at which it finds the built book."""
    handler = functools.partial(QuietHandler, directory=HTML)
    chromium = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    # Chromium has no sandbox for root, as whom containers run.
    arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser, f"http://127.0.0.1:{server.server_port}/"
        browser.close()
        server.shutdown()


def print_page(page, base, name, pages, before):
    """One page of the site as a PDF whose first page has the number `before` + 1."""
    if not page.goto(base + name).ok:
        raise FileNotFoundError(f"no page {name} in the built book; run `make book` first")
    page.evaluate("() => window.MathJax?.startup.promise")
    page.wait_for_function(READY)
    title = page.locator("article h1").evaluate(
        "(h1, title) => h1.textContent = title ?? h1.firstChild.textContent", contents().get(name)
    )
    style_page(page, title, before + 1)
    page.evaluate(PREPARE, [base, pages])
    return as_pdf(page)


@contextmanager
def sheet(browser):
    """A page of the browser, as wide as the paper."""
    page = browser.new_page(
        viewport={"width": WIDTH, "height": 1000}, color_scheme="light", reduced_motion="reduce"
    )
    page.set_default_timeout(300_000)  # the mathematics of a chapter takes a slow machine a minute
    page.emulate_media(media="print")
    yield page
    page.close()


def style_page(page, title="", first=1, style="decimal"):
    """Dress what the browser shows for paper; its first page has the number `first`."""
    page.add_style_tag(path=BOOK / "print.css")
    margins = MARGINS.format(title=title.replace('"', '\\"'), first=first, style=style)
    page.add_style_tag(content=margins)


def as_pdf(page):
    """What the browser shows, on paper."""
    printed = page.pdf(prefer_css_page_size=True, print_background=True, tagged=True, outline=True)
    return PdfReader(io.BytesIO(printed))


def headings(reader):
    """(level, title, page, top) of each heading of a PDF, the page counted from 0."""

    def flat(outline, level):
        for item in outline:
            if isinstance(item, list):
                yield from flat(item, level + 1)
            else:
                yield level, item.title, reader.get_destination_page_number(item), item.top

    return list(flat(reader.outline, 1))


def front(page, base, lines):
    """Title page and contents as a PDF; `lines` are (level, title, number, target)."""
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    licence, holder = re.search(
        r"\A(.+?)\n\n.*?^(Copyright .+?)$", (ROOT / "LICENSE").read_text("utf-8"), re.S | re.M
    ).groups()
    entries = "\n".join(
        f'<a class="{"chapter" if level == 1 else ""}" href="{escape(target)}">'
        f"{escape(title)}<i></i>{number}</a>"
        for level, title, number, target in lines
    )
    page.goto(base + "404.html")
    page.set_content(
        f"""<!doctype html><html lang="en"><base href="{base}"><title>{TITLE}</title>
        <section class="print-title"><h1>{TITLE}</h1>
        <img src="_static/covers/00_one_page.png" alt="Forty digits drawn out of noise">
        <div><p>Version {version.group(1)}. This is the book on paper: on the web its figures
        move, and its chapters are notebooks that run.</p>
        <p>{escape(holder)}. {escape(licence)}</p></div></section>
        <section class="print-contents"><h1>Contents</h1>{entries}</section></html>"""
    )
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    style_page(page, style="lower-roman")
    return as_pdf(page)


def link(writer, places):
    """Let each link to a place of the book, `book:…`, lead there within the merged file."""
    for page in writer.pages:
        kept = ArrayObject()
        for reference in page.get("/Annots", ()):
            annotation = reference.get_object()
            uri = annotation.get("/A", {}).get("/URI")
            if annotation["/Subtype"] == "/Link" and uri is None:
                continue  # what only named a place
            if uri is not None and uri.startswith("book:"):
                number, left, top = places[unquote(uri.removeprefix("book:"))]
                del annotation["/A"]
                annotation[NameObject("/Dest")] = ArrayObject(
                    [
                        writer.pages[number].indirect_reference,
                        NameObject("/XYZ"),
                        FloatObject(left),
                        FloatObject(top),
                        NullObject(),
                    ]
                )
            kept.append(reference)
        if "/Annots" in page:
            page[NameObject("/Annots")] = kept


def make(pages, out):
    """Print pages of the built book as one PDF with contents and bookmarks."""
    with printer() as (browser, base):
        parts, lines, before = [], [], 0
        for name in pages:
            with sheet(browser) as page:
                part = print_page(page, base, name, pages, before)
            lines += [
                (level, title, before + number + 1, f"book:{name}#/{k}")
                for k, (level, title, number, _) in enumerate(headings(part))
                if level == 1 or (level == 2 and name.startswith("chapters/"))
            ]
            parts.append(part)
            before += len(part.pages)
        with sheet(browser) as page:
            begin = front(page, base, lines)

    writer, places = PdfWriter(), {}
    writer.append(begin, import_outline=False)
    for name, part in zip(pages, parts, strict=True):
        first = len(writer.pages)
        top = float(part.pages[0].mediabox.top)
        places[f"{name}#"] = first, 0, top
        for place, at in part.named_destinations.items():
            number = first + part.get_destination_page_number(at)
            places[f"{name}#{unquote(place.lstrip('/'))}"] = number, at.left or 0, at.top or top
        for k, (_, _, number, height) in enumerate(headings(part)):
            places[f"{name}#/{k}"] = first + number, 0, height or top
        writer.append(part)
    link(writer, places)
    for key in ("/Names", "/Dests"):
        writer.root_object.pop(key, None)
    writer.root_object[NameObject("/Lang")] = TextStringObject("en")
    writer.set_page_label(0, len(begin.pages) - 1, style="/r")
    writer.set_page_label(len(begin.pages), len(writer.pages) - 1, style="/D")
    writer.add_metadata({"/Title": TITLE, "/Creator": "", "/Producer": "pypdf"})
    writer.compress_identical_objects()
    writer.write(out)


def main():
    """Print the whole book, or the pages that are named."""
    out, *pages = sys.argv[1:]
    make(pages or list(contents()), out := Path(out))
    print(f"{out}: {len(PdfReader(out).pages)} pages, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
