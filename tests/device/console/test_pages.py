"""The pages in a real browser, fed by `listen --source demo --console`."""

import json
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from device.store.exams import Exams
from tests.device.console.conftest import BLOCK, PATIENCE_MILLISECONDS, Daemon, Served, noise, text, until
from tests.device.console.test_report import visited
from tests.device.storing import night
from tests.full_disk import mounted

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ABNORMAL = (0.0, 0.0, 9.0, 0.0)


def test_the_live_page_follows_a_session_in_two_browsers_and_over_a_restart(
    page: "Page", browser: "Browser", daemon: Callable[..., Daemon]
) -> None:
    running = daemon("--no-store", logits=ABNORMAL)
    page.goto(running.url)
    other = browser.new_page()
    other.goto(f"{running.url}history")
    for watching in (page, other):
        watching.wait_for_selector("#demo:visible")
    until(page, "document.querySelectorAll('#cycles tr').length >= 3")
    first = page.locator("#cycles tr").first.inner_text()
    assert re.search(r"(crackle|wheeze|both)\s+\d\.\d\d|not gradable", first), first
    assert re.match(r"-?\d+ dBFS", text(page, "#dbfs"))
    assert page.get_attribute("#dots", "aria-label") in [f"{count} of 6 good breaths" for count in range(7)]
    # the picture is drawn: many colours, and other ones a moment later
    drawn = "document.getElementById('scope').toDataURL()"
    before = page.evaluate(drawn)
    until(page, f"{drawn} !== {before!r}")
    # everything on a phone's width
    assert page.evaluate("document.documentElement.scrollWidth") <= 400

    assert running.stop() == 0
    page.wait_for_selector("#offline:visible")
    running.start()
    page.wait_for_selector("#offline", state="hidden")
    until(page, "document.querySelectorAll('#cycles tr').length >= 1")
    # a session that is stopped in the page ends, and another one begins
    page.click("#stop")
    page.click("#listen")
    until(page, "document.getElementById('stop').offsetParent")
    assert running.stop(signal.SIGINT) == 130
    other.close()


def test_an_exam_from_its_start_to_its_pdf(page: "Page", daemon: Callable[..., Daemon]) -> None:
    running = daemon("--fast", logits=ABNORMAL, RESPSAM_STORE__AUDIO="true", RESPSAM_DEMO__SECONDS="30")
    page.goto(f"{running.url}exam")
    page.wait_for_selector("#begin:visible")
    page.fill("#age", "118")
    until(page, "document.getElementById('doubts').textContent.startsWith('NOT VALIDATED: age 118')")
    page.fill("#age", "48")
    page.select_option("#unit", "12")
    page.fill("#subject", "kid-17")
    page.uncheck("#advance")
    page.click("text=Begin the exam")
    for words in ("left posterior", "left lateral", "right posterior", "right lateral"):
        until(page, f"document.getElementById('start').textContent.includes('{words}')")
        page.wait_for_selector("#start:visible")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("Space")  # as a glove presses it
        until(page, f"document.querySelector('[aria-label^=\"{words}\"]').ariaLabel.includes('flagged')")
    page.click("#finish")
    page.wait_for_selector("#report:visible")
    assert text(page, "#verdict").endswith("flagged")
    assert "left" in text(page, "#sides") and text(page, "#pairs").count("▲ flagged") == 4
    assert page.locator("#evidence img").count() == 3
    # this model answers always the same, so it looks nowhere
    page.click("#evidence >> text=Where the model looks >> nth=0")
    page.wait_for_selector("#evidence svg.overlay")
    assert "Flat: no hidden place" in str(page.get_attribute("#evidence svg.overlay", "aria-label"))
    page.click("#report")
    page.wait_for_selector("main .notice")
    assert "kid-17" in text(page, "dl") and "4 years" in text(page, "dl")
    with page.expect_download(timeout=PATIENCE_MILLISECONDS) as download:
        page.click("text=PDF")
    made = Path(download.value.path()).read_bytes()
    assert made.startswith(b"%PDF") and made.count(b"/Type /Page\n") == 1
    assert download.value.suggested_filename == "exam-1.pdf"
    with page.expect_download() as download:
        page.click("text=FHIR")
    assert json.loads(Path(download.value.path()).read_text())["resourceType"] == "Bundle"
    assert download.value.suggested_filename == "exam-1.fhir.json"

    # the history leads to each breath, to be played, and agreed with or not
    page.goto(f"{running.url}history")
    page.wait_for_selector("#exams tr")
    page.fill("#subject", "kid-17")
    page.wait_for_selector("#trendCard:visible")
    page.fill("#subject", "")
    page.click("#sessions tr >> nth=0 >> text=Open")
    page.wait_for_selector("#cycles img")
    page.click("text=Where the model looks >> nth=0")
    page.wait_for_selector("#cycles svg.overlay")
    page.click("text=Disagree >> nth=0")
    page.wait_for_selector("button:text('Disagree')[aria-pressed=true]")
    page.reload()
    page.wait_for_selector("button:text('Disagree')[aria-pressed=true]")
    sound = page.request.get(f"{page.url.replace('/sessions', '/api/sessions')}/cycles/1/sound.wav")
    assert sound.status == 200 and sound.body()[:4] == b"RIFF"

    # deleted for good: the exam, its sessions and their sound
    page.goto(f"{running.url}history")
    page.click("#exams tr >> text=Delete")
    page.click("text=Delete for good")
    page.wait_for_selector("#noExams:visible")
    assert page.request.get(f"{running.url}exams/1/report").status == 404
    assert running.stop() == 0


def test_a_night_opens_at_once_and_leads_to_each_breath(
    page: "Page", daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    night(tmp_path / "store.sqlite")
    running = daemon()
    page.goto(f"{running.url}sessions/1")
    page.wait_for_selector("#strip button")
    assert text(page, "#rate") == "1600 of 1600 complete stretches flagged (100 %)"
    assert page.locator("#strip button").count() == 48
    assert "20 to 20" in str(page.get_attribute("#course svg", "aria-label"))
    assert text(page, "#chosen") == "All cycles, the first 60 of 9600"
    assert page.evaluate("document.querySelectorAll('*').length") < 2000
    page.click("[title^='From 4:00:00: 34 of 34']")
    page.click("[title='Stretch from 4:09:36: flagged, 20 breaths a minute']")
    until(page, "document.getElementById('chosen').textContent === 'Cycles of the stretch from 4:09:36'")
    assert page.locator("#cycles .cycle").count() == 6
    assert "#4993" in text(page, "#cycles")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_a_browser_that_never_reads_is_given_up_and_listening_goes_on(daemon: Callable[..., Daemon]) -> None:
    running = daemon("--no-store", "--fast", RESPSAM_DEMO__SECONDS="600")
    lines = (
        "GET /live HTTP/1.1",
        f"Host: 127.0.0.1:{running.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        f"Origin: http://127.0.0.1:{running.port}",
    )
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as deaf:
        deaf.sendall("\r\n".join([*lines, "", ""]).encode())
        # minutes of sound and of results, which nobody reads, go by
        until_ended = time.monotonic() + PATIENCE_MILLISECONDS / 1000
        while running.state()["running"]:
            assert time.monotonic() < until_ended
            time.sleep(0.5)
        assert running.state()["summary"]["seconds"]["heard"] == 600.0
    assert running.stop() == 0


def test_a_tab_that_slept_shows_the_whole_state_when_it_wakes(page: "Page", daemon: Callable[..., Daemon]) -> None:
    running = daemon("--no-store", "--fast", RESPSAM_DEMO__SECONDS="600")
    page.goto(running.url)
    page.wait_for_selector("#demo:visible")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    ended = time.monotonic() + PATIENCE_MILLISECONDS / 1000
    while (state := running.state())["running"]:
        assert time.monotonic() < ended
        time.sleep(0.5)
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    latest = state["cycles"][-1]["number"]
    assert latest > 100
    until(page, f"document.querySelector('#cycles td')?.textContent === '{latest}'")
    until(page, "document.getElementById('account').textContent.startsWith('10:00 heard')")
    until(page, "document.getElementById('listen').offsetParent")


def test_a_disk_that_fills_during_a_report_is_one_line_and_listening_goes_on(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    Exams(tmp_path / "store.sqlite").save(visited(False, b"PNG").document() | {"id": None})
    with mounted(tmp_path / "small", 20_000):
        running = daemon(TMPDIR=str(tmp_path / "small"))
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(f"{running.url}exams/1/report.pdf", timeout=90)
        assert refusal.value.code == 503
        answer = refusal.value.read().decode()
        assert "there is no room to make a PDF" in answer and answer.count("\n") == 1
        before = running.state()["summary"]
        end = time.monotonic() + PATIENCE_MILLISECONDS / 1000
        while (now := running.state()["summary"]) is None or now == before:
            assert time.monotonic() < end
            time.sleep(0.5)
        assert now["seconds"]["missing"] == now["seconds"]["dropped"] == 0.0
        with urllib.request.urlopen(f"{running.url}exams/1/report", timeout=60) as page:
            assert b"none is flagged" in page.read()
        assert running.stop() == 0
        assert not list((tmp_path / "small").iterdir())


def test_a_page_does_not_grow_with_the_number_of_breaths(page: "Page", served: Served) -> None:
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")
    served.begin()
    page.goto(served.line.url)
    page.wait_for_selector("#demo:visible")

    def after(number: int) -> tuple[float, float]:
        """Nodes of the page and bytes of its heap after so many breaths."""
        for at in range(feed[0], number + 1):
            served.cycle(at)
            if at % 50 == 0:
                served.line.sound(at * BLOCK, noise(at))
                until(page, f"document.querySelector('#cycles td')?.textContent === '{at}'")
        feed[0] = number + 1
        devtools.send("HeapProfiler.collectGarbage")
        metrics = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
        return metrics["Nodes"], metrics["JSHeapUsedSize"]

    feed = [1]
    nodes, heap = after(500)
    more_nodes, more_heap = after(5000)
    # ten times the breaths: a cycle that stayed would take some hundred bytes and a dozen nodes
    assert more_nodes < nodes + 500 and more_heap < heap + 500_000
