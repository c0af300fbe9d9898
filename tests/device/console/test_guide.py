"""The guided calibration and self-test as the console's process drives them: orders, results, refusals."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from device.breath.simulator import simulate
from device.bundle import CalibrationBounds
from device.console.line import Message
from device.signal import SAMPLE_RATE
from device.verdict.summary import Summary
from firmware_config.passports import Match, Passport, Words, find_passport, own_folder, write_passport
from tests.device.console.conftest import Answer, Served, console_settings, serve, summary_of
from tests.device.console.test_hub import ordered

STETH = "Testoscope"
BEGIN = {"people": 5, "sites": ["left"], "seconds": 30}
BOUNDS = CalibrationBounds(largest_shift=3.0, sensitivity_floor=0.75)
LOW, HIGH = 0.1, 0.6  # under and over the site's threshold of 0.4


def bounded(manifest: dict[str, Any]) -> None:
    manifest["calibration"] = BOUNDS.model_dump()


@pytest.fixture
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    words = Words(text="a wire", source="this test")
    made = Passport(name="Steth", connection=words, match=Match(names=(STETH,)))
    write_passport(own_folder() / "steth.toml", made)


@pytest.fixture
def console(tmp_path: Path, state_folder: None) -> Iterator[Served]:
    """A console whose session listens to a microphone with a passport."""
    started = serve(tmp_path, console_settings(), changes=bounded)
    with started.line:
        started.begin(microphone=STETH)
        started.state(lambda state: state["running"])
        yield started


def post(console: Served, action: str, fields: object = None) -> Answer:
    return console.ask("POST", f"/api/settings/{action}", fields or {})


def done(console: Served, action: str, fields: object = None) -> None:
    answer = post(console, action, fields)
    assert answer.status == 204, answer.text


def refused(console: Served, action: str, fields: object = None) -> str:
    answer = post(console, action, fields)
    assert answer.status in (400, 409) and answer.text.count("\n") == 1, answer
    return answer.text


def site(probability: float | None) -> Summary:
    return replace(summary_of(6), probability=probability, reasons=("too quiet",) if probability is None else ())


def listen_at(console: Served, probability: float | None) -> Message:
    """Record the next site with this probability; returns the guide's state."""
    done(console, "record")
    order = ordered(console, "calibrate")
    assert (order["passport"], order["seconds"]) == ("steth", 30.0)
    console.begin(order["number"], purpose="calibrate", microphone=STETH)
    console.end(order["number"], site(probability))
    guide: Message = console.state(lambda state: not state["guide"]["recording"])["guide"]
    return guide


def begin(console: Served, **changes: Any) -> None:
    done(console, "calibration", {**BEGIN, **changes})
    ordered(console, "stop")
    console.end(0, summary_of(3))


def test_a_calibration_shows_what_it_would_change_then_saves_and_is_undone(console: Served) -> None:
    before = (own_folder() / "steth.toml").read_bytes()
    begin(console)
    assert "5 healthy people" not in refused(console, "save")
    for number, probability in enumerate((LOW, LOW, LOW, LOW), 1):
        guide = listen_at(console, probability)
        assert guide["calibration"]["breaths"][f"colleague {number}"] == {"left": 6}
    assert "4 healthy people are too few to calibrate on; record at least 5" in refused(console, "propose")
    guide = listen_at(console, HIGH)
    assert guide["calibration"]["next"] is None
    assert "nothing left to record" in refused(console, "record")

    done(console, "propose")
    assert (own_folder() / "steth.toml").read_bytes() == before  # shown, not written
    proposal = console.state(lambda state: True)["guide"]["calibration"]["proposal"]
    assert (proposal["before"]["count"], proposal["before"]["of"], proposal["sensitivity_floor"]) == (1, 5, 0.75)
    assert proposal["threshold"] > HIGH > proposal["bundle_threshold"] == 0.4
    done(console, "save")
    (made,) = find_passport("steth").passport.calibrations
    guide = console.state(lambda state: True)["guide"]
    assert guide["calibration"] is None and f"calibration {made.name} is saved" in guide["note"]
    assert guide["stethoscope"]["passport"]["in_force"] == made.name
    assert not list(own_folder().glob(".*"))
    # the report names the threshold that the next session is judged by
    console.begin(1, microphone=STETH, site_threshold=made.threshold)
    assert console.state(lambda state: state["running"])["model"]["site_threshold"] == made.threshold

    assert "is not the last calibration" in refused(console, "undo", {"name": "another"})
    done(console, "undo", {"name": made.name})
    assert (own_folder() / "steth.toml").read_bytes() == before
    assert "the threshold of the bundle" in console.state(lambda state: True)["guide"]["note"]
    assert "is not the last calibration" in refused(console, "undo", {"name": made.name})  # the other browser's press


def test_flagged_chests_are_refused_and_recorded_again(console: Served) -> None:
    begin(console)
    for probability in (0.999, LOW, LOW, LOW, LOW):
        listen_at(console, probability)
    assert "colleague 1: flagged even at the highest threshold" in refused(console, "propose")
    assert not find_passport("steth").passport.calibrations
    done(console, "forget", {"person": "colleague 1"})
    assert listen_at(console, LOW)["calibration"]["next"] is None
    done(console, "propose")
    done(console, "discard")
    assert not find_passport("steth").passport.calibrations and not list(own_folder().glob(".*"))
    assert "nothing has begun" in refused(console, "discard")


def test_a_site_without_a_verdict_is_asked_again(console: Served) -> None:
    begin(console)
    guide = listen_at(console, None)
    assert guide["error"] == "colleague 1, left: no verdict (too quiet); listen again"
    assert guide["calibration"]["next"] == ["colleague 1", "left"]
    done(console, "record")
    console.line.send("failed", order=ordered(console, "calibrate")["number"], error="no microphone; plug it in")
    guide = console.state(lambda state: not state["guide"]["recording"])["guide"]
    assert guide["error"] == "no microphone; plug it in" and guide["calibration"]["next"]


def test_two_browsers_that_both_press_start(console: Served) -> None:
    begin(console)
    assert "somebody has begun already" in refused(console, "calibration", BEGIN)
    assert "somebody has begun already" in refused(console, "self-test", {"name": "x", "seconds": 5})
    done(console, "record")
    assert "it records already" in refused(console, "record")
    assert ordered(console, "calibrate") and console.orders.empty()
    # patients wait for the recording, and only for that
    assert console.ask("POST", "/api/listen", {}).status == 409
    assert "no calibration waits" in refused(console, "forget", {"person": "colleague 1"})


def test_patients_come_first_and_a_calibration_goes_on_later(console: Served) -> None:
    begin(console)
    listen_at(console, LOW)
    assert console.ask("POST", "/api/exam", {"age": 4, "sites": ["p1"], "subject": "Anna Meier"}).status == 400
    assert console.state(lambda state: True)["guide"]["calibration"]  # a refused exam ends nothing
    assert console.ask("POST", "/api/exam", {"age": 4, "sites": ["p1"]}).status == 204
    guide = console.state(lambda state: True)["guide"]
    assert guide["calibration"] is None and "somebody began to listen" in guide["note"]
    assert "an exam is running" in refused(console, "calibration", BEGIN)
    assert console.ask("POST", "/api/exam/finish", {}).status == 204
    done(console, "calibration", BEGIN)
    guide = console.state(lambda state: True)["guide"]
    assert guide["note"] == "1 of 5 sites are there already: an interrupted calibration goes on"
    assert guide["calibration"]["next"] == ["colleague 2", "left"]


def test_a_session_that_ends_late_is_no_site(console: Served) -> None:
    done(console, "calibration", BEGIN)
    done(console, "record")
    console.end(0, site(HIGH))
    assert console.state(lambda state: not state["running"])["guide"]["recording"]


def test_the_demo_is_neither_calibrated_nor_measured(console: Served) -> None:
    console.begin(1)
    console.state(lambda state: state["session"]["order"] == 1)
    assert "this console plays no microphone" in refused(console, "calibration", BEGIN)
    assert "this console plays no microphone" in refused(console, "self-test", {"name": "x", "seconds": 5})
    assert console.orders.empty()


def test_without_a_passport_or_without_bounds(console: Served, tmp_path: Path) -> None:
    console.begin(1, microphone="Another")
    console.state(lambda state: state["session"]["order"] == 1)
    assert "make one with the self-test first" in refused(console, "calibration", BEGIN)
    (own_folder() / "twin.toml").write_bytes((own_folder() / "steth.toml").read_bytes())
    console.begin(2, microphone=STETH)
    console.state(lambda state: state["session"]["order"] == 2)
    assert "two passports match" in refused(console, "calibration", BEGIN)
    assert "two passports match" in console.ask("GET", "/api/settings").json["stethoscope"]["problem"]
    (own_folder() / "twin.toml").unlink()
    unbounded = serve(tmp_path / "unbounded", console_settings())
    with unbounded.line:
        unbounded.begin(microphone=STETH)
        unbounded.state(lambda state: state["running"])
        assert "states no bounds" in refused(unbounded, "calibration", BEGIN)
        assert unbounded.orders.empty()


WRONG: tuple[tuple[str, object, str], ...] = (
    ("calibration", {**BEGIN, "people": 4}, "people is a number from 5 to 100"),
    ("calibration", {**BEGIN, "people": True}, "people is a number"),
    ("calibration", {**BEGIN, "seconds": 1e9}, "seconds is a number from 5 to 600"),
    ("calibration", {**BEGIN, "sites": []}, "sites is a list of 1 to 20 texts"),
    ("calibration", {**BEGIN, "sites": ["a", "a"]}, "each once"),
    ("calibration", {**BEGIN, "sites": [1]}, "sites is a list of 1 to 20 texts"),
    ("self-test", {"name": "!!!", "seconds": 5}, "is no name for a passport"),
    ("self-test", {"name": "steth", "seconds": 5}, "this passport is there already"),
    ("self-test", {"name": 5, "seconds": 5}, "name is a text"),
    ("propose", {}, "no calibration waits"),
    ("leave", {}, "nothing has begun"),
)


def test_a_wrong_order_is_one_line_and_ends_nothing(console: Served) -> None:
    for action, fields, words in WRONG:
        assert words in refused(console, action, fields)
    assert console.orders.empty()


def test_a_full_disk_keeps_what_was_there(console: Served) -> None:
    begin(console)
    own_folder().chmod(0o500)
    try:
        file = own_folder() / ".steth.calibration.json"
        file.mkdir()  # root writes everywhere: a folder in the file's place stops it as well
    except PermissionError:
        pass
    guide = listen_at(console, LOW)
    assert "cannot be written" in guide["error"] and guide["recording"] is False
    assert "cannot be removed" in refused(console, "discard")
    own_folder().chmod(0o700)


# the self-test


def step(console: Served, samples: np.ndarray[Any, Any], seconds: float, microphone: str = "Another") -> Message:
    """Record the next step of the self-test."""
    done(console, "record")
    order = ordered(console, "record")
    assert order["seconds"] == pytest.approx(seconds)
    console.begin(order["number"], purpose="record", microphone=microphone)
    console.line.recorded(order["number"], samples.astype(np.float32))
    guide: Message = console.state(lambda state: not state["guide"]["recording"])["guide"]
    return guide


QUIET = np.random.default_rng(0).normal(0.0, 1e-4, 4 * SAMPLE_RATE)
CHEST = simulate(5, 12.0).samples
TAPS = np.clip(4.0 * simulate(6, 4.0).samples / np.abs(simulate(6, 4.0).samples).max(), -1.0, 1.0)


def test_a_self_test_from_start_to_saved_passport_and_measured_again(console: Served) -> None:
    console.begin(1, microphone="Another")
    console.state(lambda state: state["session"]["order"] == 1)
    done(console, "self-test", {"name": "Ward 3", "seconds": 20})
    ordered(console, "stop")
    assert "complete silence" in step(console, np.zeros(4 * SAMPLE_RATE), 4.0)["error"]
    assert step(console, QUIET, 4.0)["self_test"]["facts"] == ["noise -80.3 dBFS"]
    assert "no breath" in step(console, QUIET, 12.0)["error"]
    assert "it was stopped" in step(console, np.zeros(0), 12.0)["error"]
    assert "breath up to" in step(console, CHEST, 12.0)["self_test"]["facts"][1]
    guide = step(console, TAPS, 4.0)
    assert guide["self_test"]["result"]["passport"]["measured"]["clipping_dbfs"] == 0.0
    assert not (own_folder() / "ward-3.toml").exists()
    done(console, "save")
    assert find_passport("ward-3").passport.measured is not None
    assert "the passport of Ward 3 is saved: noise -80.3 dBFS" in console.state(lambda state: True)["guide"]["note"]

    assert "has the passport ward-3; measure it again" in refused(console, "self-test", {"name": "x", "seconds": 20})
    done(console, "self-test", {"name": "Ward 3", "seconds": 20, "replace": True})
    step(console, QUIET, 4.0)
    step(console, 3.0 * sosfilt(butter(6, 180.0, fs=SAMPLE_RATE, output="sos"), CHEST), 12.0)  # a torn membrane
    guide = step(console, TAPS, 4.0)
    assert "a narrower band" in guide["self_test"]["result"]["drift"][0]
    kept = (own_folder() / "ward-3.toml").read_bytes()
    done(console, "discard")
    assert (own_folder() / "ward-3.toml").read_bytes() == kept


def test_somebody_who_listens_ends_a_self_test_between_its_steps(console: Served) -> None:
    before = (own_folder() / "steth.toml").read_bytes()
    done(console, "self-test", {"name": "Steth", "seconds": 20, "replace": True})
    step(console, QUIET, 4.0, STETH)
    assert console.ask("POST", "/api/listen", {}).status == 204
    guide = console.state(lambda state: True)["guide"]
    assert guide["self_test"] is None and "begin again" in guide["note"]
    assert (own_folder() / "steth.toml").read_bytes() == before


# the check of the box


def checked(console: Served) -> Message:
    """The findings, once they are complete; it takes some seconds."""
    done(console, "check")
    assert "it is being checked already" in refused(console, "check")
    until = time.monotonic() + 120.0
    while (guide := console.ask("GET", "/api/settings").json)["checking"] and time.monotonic() < until:
        time.sleep(0.5)
    assert guide["check"]["error"] == ""
    check: Message = guide["check"]
    return check


def test_the_box_is_checked_in_words_without_the_microphone_that_a_session_uses(console: Served) -> None:
    check = checked(console)
    names = [finding["check"] for finding in check["findings"]]
    assert not check["microphone"] and "sound" not in names
    assert {"permissions", "bundle", "store", "disk", "clock"} <= set(names)
    assert json.dumps(check).count('"state"') == len(names)
    assert console.orders.empty()  # the session goes on
    console.end(0, summary_of(3))
    console.state(lambda state: not state["running"])
    assert "audio stack" in [finding["check"] for finding in checked(console)["findings"]]
