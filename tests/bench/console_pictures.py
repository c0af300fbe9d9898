"""The pictures of the console in docs/, from a real demo in a real browser; needs Chromium and Playwright.

Run from the repository: python -m tests.bench.console_pictures [--out docs] [--wide-only]
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WAIT_SECONDS = 90.0
SIZES = {"wide": (1280, 900), "phone": (400, 860)}
# every image that lies in the window is there
SEEN = """[...document.images].every((image) =>
  image.getBoundingClientRect().top > innerHeight || !image.offsetParent || (image.complete && image.naturalWidth))"""
SCHEMES = {"wide": "dark", "phone": "light"}


@contextmanager
def demo(folder: Path) -> Iterator[str]:
    """A demo with a console; yields its address."""
    store = {"RESPSAM_STORE__PATH": str(folder / "store.sqlite"), "RESPSAM_STORE__AUDIO": "true"}
    command = [sys.executable, "-m", "device", "listen", "--source", "demo", "--console"]
    environment = {**os.environ, **store, "RESPSAM_CONSOLE__PORT": "0"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline().decode()
            yield line.split("console is at ")[1].strip()
        finally:
            process.terminate()


class Camera:
    """Pages in both sizes."""

    def __init__(self, browser: "Browser", address: str, out: Path, sizes: list[str]) -> None:
        self.address, self.out = address, out
        self.pages: dict[str, Page] = {}
        for name in sizes:
            width, height = SIZES[name]
            scheme = SCHEMES[name]
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            self.pages[name] = context.new_page()
            self.pages[name].on("console", lambda message: print("browser:", message.text))
            self.pages[name].on("pageerror", lambda error: print("browser error:", error))

    @property
    def main(self) -> "Page":
        return next(iter(self.pages.values()))

    def until(self, expression: str, page: "Page | None" = None) -> None:
        """Wait until this is true; Playwright's own waiting needs an eval, which the pages forbid."""
        waited_until, page = time.monotonic() + WAIT_SECONDS, page or self.main
        while not page.evaluate(expression):
            assert time.monotonic() < waited_until, expression
            page.wait_for_timeout(100)

    def visit(self, path: str) -> None:
        for page in self.pages.values():
            page.goto(self.address + path)

    def take(self, name: str) -> None:
        for size, page in self.pages.items():
            self.until(SEEN, page)
            page.wait_for_timeout(400)
            made: Image.Image = Image.open(io.BytesIO(page.screenshot(full_page=name == "report" or size == "phone")))
            if size == "phone":
                made = made.crop((0, 0, made.width, min(made.height, 1400)))
            # few colours: the pictures are part of the repository
            made.quantize(64).save(self.out / f"console-{name}{'' if size == 'wide' else '-phone'}.png", optimize=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], f"{name} is too wide"


def tour(camera: Camera) -> None:
    """Every page, in the order of a visit."""
    page = camera.main
    camera.visit("")
    page.wait_for_selector("#cycles tr:nth-child(7)", timeout=90_000)
    camera.take("live")
    camera.visit("exam")
    page.fill("#age", "95")
    camera.until("document.getElementById('doubts').textContent")
    camera.take("exam-begin")
    page.fill("#age", "4")
    page.fill("#subject", "kid-17")
    page.click("text=Begin the exam")
    page.click("#start")
    camera.until("document.querySelectorAll('#dots .full').length >= 3")
    camera.take("exam")
    camera.until("document.getElementById('why').textContent.includes('begins in')")
    camera.take("exam-next")
    camera.until("document.querySelectorAll('#dots .full').length >= 4")
    page.click("#stop")
    page.click("#finish")
    page.wait_for_selector("#report:visible")
    camera.take("exam-result")
    camera.visit("exams/1/report")
    camera.take("report")
    with urllib.request.urlopen(f"{camera.address}exams/1/report.pdf", timeout=90) as answer:
        (camera.out / "console-report.pdf").write_bytes(answer.read())
    camera.visit("history")
    page.wait_for_selector("#sessions tr")
    camera.take("history")
    camera.visit("sessions/1")
    for page in camera.pages.values():
        page.wait_for_selector("#cycles img")
        page.click("text=Where the model looks >> nth=0")
        page.wait_for_selector("svg.overlay", timeout=1000 * WAIT_SECONDS)
        page.evaluate("scrollTo(0, 0)")
    camera.take("session")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the pictures")
    parser.add_argument("--wide-only", action="store_true", help="leave the pictures of a phone out")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, demo(Path(folder)) as address, sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        tour(Camera(browser, address, arguments.out, [*SIZES][: 1 if arguments.wide_only else 2]))
        browser.close()


if __name__ == "__main__":
    main()
