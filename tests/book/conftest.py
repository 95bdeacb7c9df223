"""The built book on a local server, and a browser that reaches nothing else."""

import functools
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Error, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"

NO_BROWSER = """No browser to test the pages with. Install one of these:
  Debian or Ubuntu:  apt-get install chromium
  macOS:             brew install --cask chromium
  anywhere:          .venv/bin/python -m playwright install chromium
or name one:         CHROMIUM=/path/to/chrome make test"""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site():
    """Address of the built book, ending in a slash."""
    if not (HTML / "built").exists():
        pytest.fail("The book is not built: run `make book` first.")
    handler = functools.partial(QuietHandler, directory=HTML)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium for which no host but 127.0.0.1 exists."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    arguments = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    # Chromium has no sandbox for root, as whom containers run.
    arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        except Error as error:
            pytest.fail(f"{NO_BROWSER}\n\n{error.message}")
        yield chromium
        chromium.close()
