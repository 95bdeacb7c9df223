"""Take the picture of the README from the built book: the noise laboratory, its slider moved.

make picture
"""

import functools
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

BOOK = Path(__file__).resolve().parent
PAGE = "chapters/03_noise_schedule.html"


def main() -> None:
    html = BOOK.parent / "_build" / "html"
    handler = functools.partial(SimpleHTTPRequestHandler, directory=html)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, device_scale_factor=1.5)
        page.goto(f"http://127.0.0.1:{server.server_port}/{PAGE}")
        laboratory = page.locator(".widget-box", has=page.locator("[data-view=noise-laboratory]"))
        laboratory.first.get_by_role("slider").first.focus()
        for _ in range(20):
            page.keyboard.press("PageUp")
        page.evaluate("document.activeElement.blur()")
        laboratory.first.screenshot(path=BOOK / "_static" / "laboratory.png")
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main()
