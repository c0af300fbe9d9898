"""The settings page in a real browser, with a virtual microphone."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from device.breath.simulator import simulate
from device.bundle import CalibrationBounds
from device.signal import SAMPLE_RATE, FloatArray
from firmware_config.passports import Match, Passport, Words, find_passport, own_folder, write_passport
from tests.device.console.conftest import Daemon, text, until
from tests.device.virtual_microphone import NAME, VirtualMicrophone

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BREATHING = simulate(5, 180.0, abnormal_share=0.0).samples
QUIET = np.random.default_rng(0).normal(0.0, 1e-3, 60 * SAMPLE_RATE).astype(np.float32)
TAPS = np.clip(50.0 * BREATHING[: 30 * SAMPLE_RATE], -1.0, 1.0)
DOUBTFUL = (0.0, 0.0, 1.0, 0.0)  # logits of a model that finds something in every breath


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


def far(manifest: dict[str, Any]) -> None:
    """A bundle with short stretches that may be calibrated."""
    manifest["calibration"] = CalibrationBounds(largest_shift=9.0, sensitivity_floor=0.75).model_dump()
    manifest["site_rule"] |= {"stretch_cycles": 2, "least_cycles": 1}


@contextmanager
def playing(microphone: VirtualMicrophone, samples: FloatArray) -> Iterator[None]:
    file = microphone.folder / "played.wav"
    soundfile.write(file, samples, SAMPLE_RATE)
    player = microphone.play(file)
    try:
        yield
    finally:
        player.kill()
        player.wait()


def press_space(page: "Page") -> None:
    """As a glove presses it, wherever the focus was."""
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")


def says(page: "Page", words: str, place: str = "coach") -> None:
    until(page, f"document.getElementById('{place}').textContent.includes({words!r})")


def steps_done(page: "Page", count: int) -> None:
    until(page, f"document.querySelectorAll('#steps .done').length === {count}")


def test_a_self_test_in_the_browser_from_start_to_saved_passport(
    page: "Page", daemon: Callable[..., Daemon], plugged: VirtualMicrophone
) -> None:
    running = daemon("--no-store", source="mic", RESPSAM_AUDIO__DEVICE=NAME)
    page.goto(running.url)
    with playing(plugged, BREATHING):  # the live page is fed by the microphone
        until(page, "document.querySelectorAll('#cycles tr').length >= 2")
    assert page.is_hidden("#demo")
    page.goto(f"{running.url}settings")
    says(page, NAME, "stethoscope")
    says(page, "No passport yet", "passport")
    assert page.evaluate("document.querySelector('#calibration button').disabled")
    page.fill("#name", "Ward 3")
    page.click("#selfTest summary")
    page.fill("#testSeconds", "10")
    page.click("text=Begin the self-test")
    says(page, "Lay the stethoscope down")
    while running.state()["running"]:  # the session ends properly
        page.wait_for_timeout(100)
    with playing(plugged, QUIET):
        press_space(page)
        steps_done(page, 1)
    with playing(plugged, BREATHING):
        press_space(page)
        page.wait_for_selector("#stop:visible")
        says(page, "s left", "why")
        plugged.unplug()
        says(page, "record it again", "problem")
    plugged.replug()
    assert not own_folder().exists()  # nothing half-written
    with playing(plugged, BREATHING):
        press_space(page)
        steps_done(page, 2)
    with playing(plugged, TAPS):
        press_space(page)
        says(page, "Save this passport?")
    assert "breath up to" in text(page, "#change") and not own_folder().exists()
    page.click("#save")
    page.click("#yes")
    says(page, "The passport of Ward 3 is saved: noise", "note")
    says(page, "Ward 3", "stethoscope")
    assert find_passport("ward-3").passport.measured is not None
    # the same stethoscope is measured again under its name, and can be calibrated now
    until(page, "document.getElementById('name').readOnly")
    assert not page.evaluate("document.querySelector('#calibration button').disabled")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert running.stop() == 0


def test_a_calibration_in_the_browser_is_saved_and_undone(
    page: "Page", browser: "Browser", daemon: Callable[..., Daemon], plugged: VirtualMicrophone
) -> None:
    words = Words(text="a wire", source="this test")
    made = Passport(name="Ward 3", connection=words, match=Match(names=(f"{NAME}*",)))
    write_passport(own_folder() / "ward-3.toml", made)
    before = (own_folder() / "ward-3.toml").read_bytes()
    running = daemon("--no-store", source="mic", logits=DOUBTFUL, changes=far, RESPSAM_AUDIO__DEVICE=NAME)
    with playing(plugged, BREATHING):
        first = browser.new_page()
        first.goto(f"{running.url}settings")
        says(first, "Ward 3", "stethoscope")
        first.click("#calibration summary")
        for site in ("right posterior", "left anterior", "right anterior"):
            first.uncheck(f"text={site}")
        first.fill("#siteSeconds", "6")
        first.click("text=Begin the calibration")
        says(first, "person 1 of 5, site 1 of 1", "title")
        press_space(first)
        until(first, "document.querySelectorAll('#people button').length === 1")
        first.click("text=What would it change?")
        first.wait_for_selector("#said:visible")
        assert "1 healthy people are too few to calibrate on; record at least 5" in text(first, "#said")
        press_space(first)
        first.wait_for_selector("#stop:visible")
        first.close()  # in the middle of a recording

        page.goto(f"{running.url}settings")
        for person in range(3, 6):
            says(page, f"person {person} of 5", "title")
            page.wait_for_selector("#record:visible")
            press_space(page)
            page.wait_for_selector("#stop:visible")
        says(page, "All sites are recorded")
    press_space(page)
    says(page, "Save this calibration?")
    change = text(page, "#change")
    assert "5 of 5 (100 %; 95 % interval 48 % to 100 %)" in change and "a sensitivity of 0.75" in change
    assert (own_folder() / "ward-3.toml").read_bytes() == before
    page.click("#save")
    page.click("#yes")
    says(page, "is saved; every later session is under it", "note")
    (calibration,) = find_passport("ward-3").passport.calibrations
    says(page, "in force", "calibrations")
    page.goto(running.url)
    page.click("#listen")
    until(page, "document.getElementById('stop').offsetParent")
    assert running.state()["model"]["site_threshold"] == calibration.threshold

    page.goto(f"{running.url}settings")
    page.click("#calibrations >> text=Undo")
    page.click("text=Remove it")
    says(page, "from the next session on: the threshold of the bundle", "note")
    assert (own_folder() / "ward-3.toml").read_bytes() == before
    assert running.stop(signal.SIGINT) == 130


def test_the_demo_offers_the_check_alone(page: "Page", daemon: Callable[..., Daemon]) -> None:
    running = daemon("--no-store")
    page.goto(f"{running.url}settings")
    page.wait_for_selector("#demo:visible")
    says(page, "this console plays no microphone", "passport")
    assert page.evaluate("[...document.querySelectorAll('#forms button')].every((button) => button.disabled)")
    page.click("#check")
    until(page, "document.querySelectorAll('#findings li').length >= 6")
    says(page, "Check now", "check")
    words = text(page, "#findings")
    assert "Bundle: ok" in words and "Clock: ok" in words
    assert running.state()["running"]
    assert running.stop() == 0
