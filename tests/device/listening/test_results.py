"""A file of results: resumed after a stop, of one bundle and its thresholds, safe on a full disk."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from device.breath.simulator import simulate
from device.listening import screening
from device.signal import SAMPLE_RATE
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle
from tests.device.conftest import Device, one_error

ABNORMAL = (0.0, 0.0, 9.0, 0.0)


# screen


@pytest.fixture
def ward(tmp_path: Path, recording: Path) -> Path:
    """A folder with two recordings that can be read and two that cannot."""
    folder = tmp_path / "ward"
    (folder / "second").mkdir(parents=True)
    content = recording.read_bytes()
    (folder / "a.wav").write_bytes(content)
    (folder / "b.wav").write_bytes(content[: len(content) // 2])
    soundfile.write(folder / "second" / "c.FLAC", simulate(5, 6.0).samples, SAMPLE_RATE, format="FLAC")
    (folder / "second" / "d.flac").write_bytes(b"fLaC and then nothing")
    (folder / "notes.txt").write_text("not a recording")
    return folder


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_a_stopped_screening_goes_on_in_its_file(
    respsam_device: Device, bundle: Path, ward: Path, tmp_path: Path, name: str
) -> None:
    out, whole = tmp_path / name, tmp_path / f"whole-{name}"
    one, other = ward / "a.wav", ward / "second" / "c.FLAC"
    assert respsam_device("screen", one, other, "--out", whole, "--bundle", bundle).code == 0
    assert respsam_device("screen", one, "--out", out, "--bundle", bundle).code == 0
    first = out.read_bytes()
    out.write_bytes(first + whole.read_bytes()[len(first) :][:40])  # the power went in the middle of a row
    answer = respsam_device("screen", one, other, "--out", out, "--bundle", bundle)
    assert (answer.code, answer.out) == (0, "")
    assert f"1 in {out} already" in answer.error
    assert out.read_bytes() == whole.read_bytes()
    rows: list[dict[str, Any]] = (
        list(csv.DictReader(out.open())) if name.endswith("csv") else [json.loads(line) for line in out.open()]
    )
    assert [row["recording"] for row in rows] == [str(one), str(other)]
    assert {len(row["bundle"]) for row in rows} == {64}


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_another_sound_of_the_same_name_is_screened_and_the_same_one_is_not(
    respsam_device: Device, bundle: Path, ward: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screening = ("screen", "chest.wav", "--out", tmp_path / name, "--bundle", bundle)
    for number in range(2):
        folder = tmp_path / f"patient-{number}"
        folder.mkdir()
        soundfile.write(folder / "chest.wav", simulate(number, 9.0).samples, SAMPLE_RATE)
        monkeypatch.chdir(folder)
        assert respsam_device(*screening) == (0, "", "")
        before = (tmp_path / name).read_bytes()
        assert respsam_device(*screening) == (0, "", f"1 recording: 1 in {tmp_path / name} already\n")
        assert (tmp_path / name).read_bytes() == before
    assert before.count(b"chest.wav") == 2


def test_a_recording_that_changes_while_it_is_judged_gets_no_verdict(
    respsam_device: Device, bundle: Path, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next patient's under the same name: this one's verdict must not stand for it."""

    def replaced(path: Path, *others: Any) -> Any:
        summary = whole(path, *others)
        soundfile.write(path, simulate(9, 9.0).samples, SAMPLE_RATE)
        return summary

    whole = screening.screen_recording
    chest, out = tmp_path / "chest.wav", tmp_path / "results.csv"
    chest.write_bytes(recording.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(screening, "screen_recording", replaced)
        answer = respsam_device("screen", chest, "--out", out, "--bundle", bundle)
    assert "chest.wav: changed while it was judged; screen it again" in one_error(answer)
    assert respsam_device("screen", chest, "--out", out, "--bundle", bundle).code == 0
    refused, judged = csv.DictReader(out.open())
    assert (refused["verdict"], bool(judged["verdict"]), judged["error"]) == ("", True, "")


def test_a_pipe_is_refused_with_results_or_without(respsam_device: Device, bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for options in ((), ("--out", tmp_path / "results.csv")):
        assert "pipe.wav" in one_error(respsam_device("screen", tmp_path / "pipe.wav", *options, "--bundle", bundle))


def test_a_full_disk_takes_no_row_from_results_that_are_gone_on_with(
    respsam_device: Device, bundle: Path, ward: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.csv"
    assert respsam_device("screen", ward / "a.wav", "--out", out, "--bundle", bundle).code == 0
    row = out.read_bytes().splitlines(keepends=True)[1]
    rows = out.read_bytes() + 9 * row
    out.write_bytes(rows + b"half a row")
    command = [sys.executable, "-m", "device", "screen", str(ward / "second" / "c.FLAC"), "--out", str(out)]
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 1 && exec "$@"', "bash", *command, "--bundle", str(bundle)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert len(rows) > 1024 and (limited.returncode, limited.stdout) == (2, "")
    assert "run the same command again" in limited.stderr
    assert out.read_bytes() == rows


def test_results_of_another_bundle_or_another_kind_are_not_mixed(
    respsam_device: Device, bundle: Path, recording: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.jsonl"
    assert respsam_device("screen", recording, "--out", out, "--bundle", bundle).code == 0
    before = out.read_bytes()
    another = make_bundle(tmp_path / "another", logits=ABNORMAL)
    assert "holds results of bundle" in one_error(
        respsam_device("screen", recording, "--out", out, "--bundle", another)
    )
    assert "holds results of precision fp32, this one is int8" in one_error(
        respsam_device("screen", recording, "--out", out, "--bundle", bundle, "--precision", "int8")
    )
    assert out.read_bytes() == before
    thesis, one_line = tmp_path / "thesis.csv", tmp_path / "thesis.txt"
    thesis.write_text("a,b\n1,2")
    one_line.write_text("no line ends here")
    for path in (thesis, one_line):
        before = path.read_bytes()
        assert "not a file of screening results" in one_error(
            respsam_device("screen", recording, "--out", path, "--bundle", bundle)
        )
        assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_results_of_other_thresholds_are_not_mixed(
    respsam_device: Device, recording: Path, tmp_path: Path, name: str
) -> None:
    def curve(manifest: dict[str, Any]) -> None:
        manifest["threshold"]["curve"] = [[0.3, 0.95, 0.5], [0.5, 0.8, 0.8]]

    out = tmp_path / name
    own = make_bundle(tmp_path / "bundle", changes=curve)
    screening = ("screen", recording, "--out", out, "--bundle", own)
    assert respsam_device(*screening, "--sensitivity", 0.9).code == 0
    assert respsam_device(*screening, "--sensitivity", 0.9).code == 0
    with out.open("ab") as file:
        file.write(b"half a row")
    before = out.read_bytes()
    assert "holds results of cycle threshold 0.3, this one is 0.5" in one_error(respsam_device(*screening))
    assert out.read_bytes() == before


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_a_full_disk_ends_a_screening_in_one_line(
    respsam_device: Device, bundle: Path, recording: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    out.symlink_to("/dev/full")  # also without an end to read, as a pipe
    assert "run the same command again" in one_error(
        respsam_device("screen", recording, "--out", out, "--bundle", bundle)
    )
