"""The pictures of the console in docs/, from a real demo in a real browser; needs Chromium, Playwright and PulseAudio.

Run from the repository: python -m tests.bench.console_pictures [--out docs] [--wide-only] [--only settings]
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

import numpy as np
import soundfile
from PIL import Image

from device.breath.simulator import simulate
from device.signal import SAMPLE_RATE, FloatArray
from tests.device.virtual_microphone import NAME, VirtualMicrophone, virtual_microphone

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WAIT_SECONDS = 90.0
SIZES = {"wide": (1280, 900), "phone": (400, 860)}
# every image that lies in the window is there
SEEN = """[...document.images].every((image) =>
  image.getBoundingClientRect().top > innerHeight || !image.offsetParent || (image.complete && image.naturalWidth))"""
BREATHING = simulate(5, 60.0, abnormal_share=0.0).samples
QUIET = np.random.default_rng(0).normal(0.0, 3e-4, 60 * SAMPLE_RATE).astype(np.float32)
TAPS = np.clip(50.0 * BREATHING, -1.0, 1.0)
SITE_SECONDS = 12
SCHEMES = {"wide": "dark", "phone": "light"}


@contextmanager
def console(folder: Path, source: str = "demo", **settings: str) -> Iterator[str]:
    """A demo, or another source, with a console; yields its address."""
    store = {"RESPSAM_STORE__PATH": str(folder / "store.sqlite"), "RESPSAM_STORE__AUDIO": "true"}
    command = [sys.executable, "-m", "device", "listen", "--source", source, "--console"]
    environment = {**os.environ, **store, "RESPSAM_CONSOLE__PORT": "0", "STATE_DIRECTORY": str(folder), **settings}
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


@contextmanager
def playing(microphone: VirtualMicrophone, samples: FloatArray) -> Iterator[None]:
    """Simulated sound in the virtual microphone."""
    file = microphone.folder / "played.wav"
    soundfile.write(file, samples, SAMPLE_RATE)
    with microphone.play(file) as player:
        try:
            yield
        finally:
            player.kill()


def settings_tour(camera: Camera, microphone: VirtualMicrophone) -> None:
    """The self-test and a calibration; every site is recorded."""
    page = camera.main
    camera.visit("settings")
    page.fill("#name", "Ward 3")
    page.click("#selfTest summary")
    page.fill("#testSeconds", "30")
    page.click("text=Begin the self-test")
    for number, samples in enumerate((QUIET, BREATHING, TAPS), 1):
        with playing(microphone, samples):
            page.click("#record")
            camera.until(f"document.querySelectorAll('#steps .done').length === {number}")
    page.click("#save")
    page.click("#yes")
    camera.until("document.getElementById('stethoscope').textContent === 'Ward 3'")
    page.click("#check")
    camera.until("document.querySelectorAll('#findings li').length >= 6")
    page.click("#calibration summary")
    page.fill("#siteSeconds", str(SITE_SECONDS))
    page.click("text=Begin the calibration")
    for person in range(5):
        for place in range(4):
            sound = simulate(100 + 4 * person + place, 60.0, abnormal_share=0.0, breaths_per_minute=24.0).samples
            with playing(microphone, sound):
                page.wait_for_selector("#record:visible")
                page.click("#record")
                page.wait_for_selector("#stop:visible")
                if (person, place) == (1, 2):
                    camera.until("document.getElementById('why').textContent.includes('s left')")
                    camera.until("document.querySelectorAll('#dots .full').length >= 2")
                    camera.take("settings-listening")
                page.wait_for_selector("#stop", state="hidden")
    page.click("#propose")
    page.wait_for_selector("#save:visible")
    camera.take("settings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the pictures")
    parser.add_argument("--wide-only", action="store_true", help="leave the pictures of a phone out")
    parser.add_argument("--only", choices=["settings"], help="leave the pictures of the demo out")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    arguments.out.mkdir(parents=True, exist_ok=True)
    sizes = [*SIZES][: 1 if arguments.wide_only else 2]
    with tempfile.TemporaryDirectory() as made, sync_playwright() as driver:
        folder, options = Path(made), ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        if arguments.only != "settings":
            with console(folder / "demo") as address:
                tour(Camera(browser, address, arguments.out, sizes))
        with virtual_microphone(folder / "mic") as microphone:
            plugged = {**microphone.environment, "RESPSAM_AUDIO__DEVICE": NAME}
            with console(folder / "box", "mic", **plugged) as address:
                settings_tour(Camera(browser, address, arguments.out, sizes), microphone)
        browser.close()


if __name__ == "__main__":
    main()
