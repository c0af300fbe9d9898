"""`respsam-device replay`: a stored session comes out the same, bit for bit, or the difference is named."""

import json
import math
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

import device.cli
from device.breath.simulator import simulate
from device.bundle import Segmentation, read_bundle
from device.signal import SAMPLE_RATE
from device.store.audio import AudioStore
from tests.device.bundle_maker import make_bundle

SPANS = "SELECT number, start_sample - context_start_sample, end_sample - context_start_sample FROM cycles"
Device = Callable[..., tuple[int, str, str]]


@pytest.fixture
def respsam_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path) -> Device:
    """Run the command in this process, with a store of its own."""
    monkeypatch.setenv("RESPSAM_STORE__PATH", str(file))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["respsam-device", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            device.cli.main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Its cycles are judged in their context, by their own moments."""
    return make_bundle(tmp_path / "bundle", moments=14, segmentation=Segmentation(context_seconds=8.0))


@pytest.fixture
def audio(respsam_device: Device, bundle: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> AudioStore:
    """The sound of a stored demo, session 1."""
    with monkeypatch.context() as patch:
        patch.setenv("RESPSAM_STORE__AUDIO", "true")
        assert respsam_device("listen", "--source", "demo", "--fast", "--bundle", bundle)[::2] == (0, "")
    return AudioStore(file)


def change(file: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(file) as database:
        database.execute(statement, values)
    database.close()


def replayed(respsam_device: Device, *more: object) -> tuple[int, dict[str, Any]]:
    code, out, error = respsam_device("replay", 1, "--json", *more)
    assert error == ""
    return code, json.loads(out)


def test_every_cycle_and_the_verdict_come_out_the_same(respsam_device: Device, audio: AudioStore) -> None:
    code, done = replayed(respsam_device)
    assert code == 0
    assert done["identical"] == done["replayed"] == len(audio.files(1)) > 15
    assert (done["differing"], done["left_out"], done["exact"], done["demo"]) == ([], {}, True, True)
    assert done["verdict"] == "flagged"
    code, out, _ = respsam_device("replay", 1)
    assert all(line.startswith("DEMO ") for line in out.splitlines())
    assert f"{done['identical']} of {done['identical']} replayed cycles identical" in out


def test_a_cycle_without_a_context_is_replayed_whole(respsam_device: Device, audio: AudioStore, file: Path) -> None:
    """As stored before schema 3; it is then another cycle, so the moments of the context do count."""
    change(file, "UPDATE cycles SET context_start_sample = NULL WHERE number = 5")
    code, done = replayed(respsam_device)
    assert (code, [one["number"] for one in done["differing"] if one["number"]]) == (3, [5])


def test_a_site_decided_by_an_older_rule_is_not_decided_again(
    respsam_device: Device, audio: AudioStore, file: Path
) -> None:
    change(file, "UPDATE sessions SET stretches = NULL, stretches_flagged = NULL, probability = 0.123")
    code, done = replayed(respsam_device)
    assert (code, done["verdict"], done["exact"]) == (0, None, True)


def test_with_the_shipped_bundle_from_a_recording_at_another_rate(
    respsam_device: Device, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = tmp_path / "child.wav"
    soundfile.write(recording, simulate(4, 12.3).samples, 14_700, subtype="PCM_24")
    with monkeypatch.context() as patch:
        patch.setenv("RESPSAM_STORE__AUDIO", "true")
        assert respsam_device("listen", "--source", recording, "--fast")[0] == 0
    code, done = replayed(respsam_device)
    assert code == 0
    assert done["identical"] == done["replayed"] > 3
    assert (done["demo"], done["verdict"] is None) == (False, False)


def test_one_bit_of_difference_is_found_and_named(respsam_device: Device, audio: AudioStore, file: Path) -> None:
    with sqlite3.connect(file) as database:
        ((probability,),) = database.execute("SELECT probability FROM cycles WHERE number = 5")
    change(file, "UPDATE cycles SET probability = ? WHERE number = 5", math.nextafter(probability, 1.0))
    change(file, "UPDATE cycles SET class = 'both' WHERE number = 8")
    code, done = replayed(respsam_device)
    assert code == 3
    assert done["identical"] == done["replayed"] - 2
    assert [one["number"] for one in done["differing"]] == [5, 8]
    code, out, _ = respsam_device("replay", 1)
    assert code == 3
    assert "cycle 5 differs: stored " in out and repr(probability) in out


def test_another_verdict_is_found(respsam_device: Device, audio: AudioStore, file: Path) -> None:
    change(file, "UPDATE sessions SET verdict = 'nothing flagged'")
    code, done = replayed(respsam_device)
    assert (code, done["identical"]) == (3, done["replayed"])
    assert [(one["number"], one["stored"][1], one["replayed"][1]) for one in done["differing"]] == [
        (None, "nothing flagged", "flagged")
    ]


def test_another_bundle_is_refused_by_name_unless_anyway(
    respsam_device: Device, audio: AudioStore, bundle: Path, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other", logits=(0.0, 0.0, 9.0, 0.0))
    code, out, error = respsam_device("replay", 1, "--bundle", other)
    assert (code, out) == (2, "")
    assert read_bundle(bundle).fingerprint in error and "--anyway" in error and len(error.splitlines()) == 1
    code, done = replayed(respsam_device, "--bundle", other, "--anyway")
    assert (code, done["other_bundle"], done["identical"]) == (3, True, 0)
    assert "COMPARED WITH ANOTHER BUNDLE" in respsam_device("replay", 1, "--bundle", other, "--anyway")[1]


def test_a_moved_bundle_is_known_by_its_fingerprint(
    respsam_device: Device, audio: AudioStore, bundle: Path, tmp_path: Path
) -> None:
    bundle.rename(tmp_path / "moved")
    assert respsam_device("replay", 1)[0] == 2
    assert replayed(respsam_device, "--bundle", tmp_path / "moved")[0] == 0


def test_the_session_s_own_settings_hold(
    respsam_device: Device, audio: AudioStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today's settings name another bundle and precision; the session's do not."""
    monkeypatch.setenv("RESPSAM_BUNDLE__PATH", "/nowhere")
    monkeypatch.setenv("RESPSAM_BUNDLE__PRECISION", "fp32")
    assert replayed(respsam_device)[0] == 0
    # and a setting that is newer than the session has its default
    with sqlite3.connect(file) as database:
        settings = json.loads(database.execute("SELECT settings FROM sessions").fetchone()[0])
    del settings["store"]["audio_days"]
    change(file, "UPDATE sessions SET settings = ?", json.dumps(settings))
    assert replayed(respsam_device)[0] == 0


def test_cycles_without_sound_are_counted_and_named(respsam_device: Device, audio: AudioStore, file: Path) -> None:
    change(file, "UPDATE cycles SET audio = 'deleted' WHERE number IN (1, 2)")
    audio.path(1, 3).unlink()
    change(file, "UPDATE cycles SET audio = '' WHERE number = 4")
    change(file, "UPDATE cycles SET probability = NULL, class = NULL, reason = 'too quiet' WHERE number = 5")
    code, done = replayed(respsam_device)
    assert code == 0
    assert done["left_out"] == {
        "whose audio is gone": [1, 2, 3],
        "whose audio was never kept": [4],
        "not graded": [5],
    }
    assert done["verdict"] is None
    assert "3 cycles whose audio is gone: 1, 2, 3" in respsam_device("replay", 1)[1]


def test_damaged_sound_is_named_and_not_the_same(respsam_device: Device, audio: AudioStore) -> None:
    path = audio.path(1, 6)
    path.write_bytes(path.read_bytes()[:2000])
    code, done = replayed(respsam_device)
    assert (code, done["left_out"]) == (3, {"whose audio is damaged": [6]})
    assert done["identical"] == done["replayed"]


def test_a_session_without_sound_cannot_be_replayed(respsam_device: Device, bundle: Path) -> None:
    respsam_device("listen", "--source", "demo", "--fast", "--seconds", "5", "--bundle", bundle)
    code, out, error = respsam_device("replay", 1)
    assert (code, out) == (2, "")
    assert "store.audio" in error


def test_the_sound_kept_is_what_the_cycle_says(audio: AudioStore, file: Path) -> None:
    with sqlite3.connect(file) as database:
        spans = {number: span for number, *span in database.execute(SPANS)}
    for one in audio.files(1):
        info = soundfile.info(one.path)
        start, end = spans[one.number]
        assert (info.samplerate, info.subtype) == (SAMPLE_RATE, "PCM_24")
        assert 0 <= start < end <= info.frames <= 8 * SAMPLE_RATE
    longest = max(soundfile.info(one.path).frames for one in audio.files(1))
    assert longest == 8 * SAMPLE_RATE
