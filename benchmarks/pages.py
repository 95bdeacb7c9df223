"""How heavy is each page of the book, and how soon can it be read and used?

    the built book         python -m benchmarks.pages
    two builds by turns    python -m benchmarks.pages --html before/html _build/html
    as on a slower CPU     python -m benchmarks.pages --slower 2

Every page is opened in a new browser whose cache is empty, and in one that has just shown a
chapter, so that what pages share is there. A local server sends them as a static host would:
compressed, and good for ten minutes. `--help` lists the options.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import os
import shlex
import shutil
import statistics
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from benchmarks.environment import ROOT, write_atomically
from diffusion_lib.runs import provenance

# What pages share, and the browser keeps; all else is a page's own weight.
SHARED = ("_static/", "vendor/")
COMPRESSED = {".html", ".css", ".js", ".json", ".svg"}

# Runs before anything of the page; times count from the moment at which the page is asked for.
WATCH = """window.watched = (async () => {
  const until = (test) => new Promise((done) => {
    const look = () => test() ? done(performance.now()) : setTimeout(look, 4);
    look();
  });
  const painted = () => performance.getEntriesByName("first-contentful-paint")[0];
  const views = () => [...document.querySelectorAll(
    'script[type="application/vnd.jupyter.widget-view+json"]')];
  const answers = (view) => {
    const area = view.parentElement.querySelector(".widget-subarea .jupyter-widgets");
    return area && !area.querySelector(".jupyter-widgets:empty");
  };
  const mathematics = async () => {
    if (!document.querySelector(".math")) return null;
    await until(() => window.MathJax?.startup?.promise);
    await MathJax.startup.promise;
    return performance.now();
  };
  await until(() => document.readyState !== "loading");
  const [paint, typeset, sliders] = await Promise.all([
    until(painted).then(() => painted().startTime),
    mathematics(),
    views().length ? until(() => views().every(answers)) : null,
  ]);
  return { paint, typeset, sliders };
})();"""
FILES = """() => ["navigation", "resource"].flatMap((kind) => performance.getEntriesByType(kind))
  .filter((file) => file.responseStatus === 200)
  .map((file) => [file.name, file.decodedBodySize, file.encodedBodySize])"""
# A fixed piece of work, in ms: the speed of one core as the pages get it.
WORK = """() => { const start = performance.now(); let x = 1;
  for (let i = 0; i < 1e8; i++) x = (Math.imul(x, 1664525) + i) | 0;
  return [performance.now() - start, x][0]; }"""


@functools.cache
def compressed(path: Path) -> bytes:
    """The file as a static host sends it to a browser that takes gzip."""
    return gzip.compress(path.read_bytes(), 6, mtime=0)


class Host(SimpleHTTPRequestHandler):
    """Sends a folder as a static host does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Send the file compressed if it is text, else as it is."""
        path = Path(self.translate_path(self.path))
        if path.suffix not in COMPRESSED or not path.is_file():
            super().do_GET()
            return
        body = compressed(path)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self):
        """Let the browser keep the file for ten minutes."""
        self.send_header("Cache-Control", "max-age=600")
        super().end_headers()

    def log_message(self, *args):
        """Say nothing: the terminal is for the measurements."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of the folder on a local server, ending in a slash."""
    handler = functools.partial(Host, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def pages_of(toc: dict[str, Any]) -> list[str]:
    """Names of the pages in the table of contents, in its order."""
    files = [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]
    return [f"{file}.html" for file in files]


def weights(files: list[tuple[str, int, int]], site: str) -> dict[str, int]:
    """Bytes of a page's own files and of those it shares, plain and compressed."""
    total = dict.fromkeys(("own", "own_gzip", "shared", "shared_gzip"), 0)
    for name, plain, sent in files:
        if name.startswith(site):
            kind = "shared" if name.removeprefix(site).startswith(SHARED) else "own"
            total[kind] += plain
            total[f"{kind}_gzip"] += sent
    return total


def visit(context: BrowserContext, address: str, slower: float) -> dict[str, Any]:
    """Open a page in a tab of its own: its times in ms, and the files that it asked for."""
    page = context.new_page()
    throttle = {"rate": slower}
    context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", throttle)
    page.add_init_script(WATCH)
    page.goto(address, wait_until="load")
    times = page.evaluate("() => window.watched")
    page.wait_for_load_state("networkidle")
    files = page.evaluate(FILES)
    page.close()
    return {"times": times, "files": files}


def measure(browser: Browser, site: str, name: str, before: str, slower: float) -> dict[str, Any]:
    """One page with an empty cache, and as the second page of a visit that began at `before`."""
    result = {}
    for cache in ("cold", "warm"):
        with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
            if cache == "warm":
                visit(context, site + before, slower)
            seen = visit(context, site + name, slower)
        result[cache] = seen["times"]
        if cache == "cold":
            result["bytes"] = weights(seen["files"], site)
    return result


def spread(values: list[float | None]) -> dict[str, float] | None:
    """Median and extremes; None for what the page does not have."""
    if None in values:
        return None
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One page over all rounds."""
    caches = {
        cache: {
            time: spread([measured[cache][time] for measured in rounds])
            for time in rounds[0][cache]
        }
        for cache in ("cold", "warm")
    }
    return {"bytes": rounds[0]["bytes"]} | caches


def cell(times: dict[str, float] | None) -> str:
    """A median in ms with its extremes, for the table."""
    return "{median:.0f} ({least:.0f}–{most:.0f})".format(**times) if times else "–"


def table(results: dict[str, Any]) -> str:
    """What was measured, in Markdown: a table for each build."""
    kinds = [
        (cache, time) for cache in ("cold", "warm") for time in ("paint", "typeset", "sliders")
    ]
    names = {"paint": "first paint", "typeset": "mathematics", "sliders": "sliders"}
    head = ["page", "own kB", "shared kB", "compressed"]
    head += [f"{names[time]}, {cache}" for cache, time in kinds]
    lines = []
    for build, pages in results["builds"].items():
        lines += [f"## {build}", "", f"| {' | '.join(head)} |"]
        lines.append(f"| --- |{' ---: |' * (len(head) - 1)}")
        for name, of in pages.items():
            sizes = [of["bytes"][kind] / 1e3 for kind in ("own", "shared", "shared_gzip")]
            row = [name.removesuffix(".html"), *(f"{size:,.0f}" for size in sizes)]
            row += [cell(of[cache][time]) for cache, time in kinds]
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    made_by, settings = results["made_by"], results["settings"]
    told = (
        f"Times in ms from the request: the median (extremes) of {settings['rounds']} rounds. Own "
        "is what a page alone needs, uncompressed; shared are the scripts, styles and fonts that "
        "the first page of a visit loads, also as sent. Cold is with an empty cache, warm after "
        f"another chapter. `{made_by['command']}`, commit {made_by['commit']}, "
        f"{made_by['device']}, Chromium {made_by['chromium']}, "
        f"processor slowed {settings['slower']:g} times, no network between. A loop of 10⁸ turns, "
        f"which tells how fast the core was meanwhile, took {cell(results['work'])} ms."
    )
    return "\n".join(
        [*lines, " ".join([told, *([settings["note"]] if settings["note"] else [])]), ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", nargs="+", default=["_build/html"], help="folders to compare")
    parser.add_argument("--only", help="names of pages, with commas between, else all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slower", type=float, default=1, help="slow the processor so many times")
    parser.add_argument("--note", help="what else is to be known, e.g. other work meanwhile")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "pages.json")
    given = parser.parse_args()
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    names = given.only.split(",") if given.only else pages_of(toc)
    chapters = [name for name in pages_of(toc) if name.startswith("chapters/")][:2]
    seen = {build: {name: [] for name in names} for build in given.html}
    work = []
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # as whom it has none
    with ExitStack() as stack:
        sites = {build: stack.enter_context(served(Path(build))) for build in given.html}
        chromium = stack.enter_context(sync_playwright()).chromium
        browser = chromium.launch(executable_path=path, args=sandbox)
        stack.callback(browser.close)
        for number in range(given.rounds):
            blank = browser.new_page()
            work.append(blank.evaluate(WORK))
            blank.close()
            for name in names:
                before = next(chapter for chapter in chapters if chapter != name)
                for build, site in sites.items():
                    seen[build][name].append(measure(browser, site, name, before, given.slower))
            print(f"round {number + 1} of {given.rounds}", flush=True)
        version = browser.version
    kept = ("rounds", "slower", "note")
    command = shlex.join(["python", "-m", "benchmarks.pages", *sys.argv[1:]])
    results = {
        "settings": {name: getattr(given, name) for name in kept},
        "made_by": provenance() | {"command": command, "chromium": version},
        "work": spread(work),
        "builds": {
            build: {name: summary(rounds) for name, rounds in pages.items()}
            for build, pages in seen.items()
        },
    }
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_atomically(given.out, text)
    write_atomically(given.out.with_suffix(".md"), table(results))


if __name__ == "__main__":
    main()
