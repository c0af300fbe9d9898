"""`screen` on what people's folders hold: nothing is left out in silence, and nothing stops the others."""

import csv
import os
import pty
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from device.breath.simulator import simulate
from device.capture.sources import FileSource
from device.listening import screening
from device.signal import SAMPLE_RATE
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle
from tests.device.conftest import Device


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("screening") / "bundle")


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    """A folder with one recording."""
    folder = tmp_path / "stick"
    folder.mkdir()
    soundfile.write(folder / "a.wav", simulate(4, 5.0).samples, SAMPLE_RATE)
    return folder


def test_all_that_looks_like_sound_is_judged_or_refused_by_name(
    respsam_device: Device, bundle: Path, chest: Path, tmp_path: Path
) -> None:
    samples = simulate(4, 5.0).samples
    soundfile.write(chest / "b.mp3", samples, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
    soundfile.write(chest / "c.ogg", samples, SAMPLE_RATE, format="OGG", subtype="VORBIS")
    (chest / "REC0001").write_bytes((chest / "a.wav").read_bytes())
    (chest / "d.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    (chest / "e.wav").symlink_to(chest / "nowhere.wav")
    (chest / "patients of May").symlink_to(tmp_path / "unplugged")
    (chest / "notes.txt").write_text("a cough")
    answer = respsam_device("screen", chest, "--json", "--bundle", bundle)
    assert answer.code == 2
    assert [Path(one["recording"]).name for one in answer.objects] == ["REC0001", "a.wav", "b.mp3", "c.ogg"]
    *errors, total = answer.error.splitlines()
    assert [name for name in ("d.m4a", "e.wav", "patients of May") if any(name in line for line in errors)]
    assert len(errors) == 3
    assert total.startswith("7 recordings: ") and "3 could not be read" in total
    assert total.endswith("; 1 other file ignored")


def test_what_macs_and_windows_leave_is_ignored_and_counted(respsam_device: Device, bundle: Path, chest: Path) -> None:
    (chest / "__MACOSX").mkdir()
    for name in ("._a.wav", ".DS_Store", "Thumbs.db", "__MACOSX/b.wav"):
        (chest / name).write_bytes(b"\0\x05\x16\x07")
    answer = respsam_device("screen", chest, "--json", "--bundle", bundle)
    assert (answer.code, len(answer.objects)) == (0, 1)
    assert answer.error.endswith("; 4 other files ignored\n")


def test_a_linked_folder_is_entered_once_and_loops_are_cut(
    respsam_device: Device, bundle: Path, chest: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.wav").write_bytes((chest / "a.wav").read_bytes())
    (chest / "linked").symlink_to(other)
    (chest / "linked again").symlink_to(other)
    (other / "back").symlink_to(chest)
    answer = respsam_device("screen", chest, "--json", "--bundle", bundle)
    assert answer.code == 0
    assert [Path(one["recording"]).name for one in answer.objects] == ["a.wav", "b.wav"]


def test_a_folder_that_cannot_be_opened_is_an_error_by_name(
    respsam_device: Device, bundle: Path, chest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chest / "locked").mkdir()

    def refusing(real: Any) -> Any:
        def look(folder: Any = ".") -> Any:
            if Path(folder).name == "locked":
                raise PermissionError(13, "Permission denied", str(folder))
            return real(folder)

        return look

    # root may open everything
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(Path, "iterdir", refusing(Path.iterdir))
    answer = respsam_device("screen", chest, "--json", "--bundle", bundle)
    assert (answer.code, len(answer.objects)) == (2, 1)
    assert "locked: the folder cannot be opened (Permission denied)" in answer.error


@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
def test_a_refused_recording_has_a_row_with_the_reason_once(
    respsam_device: Device, bundle: Path, chest: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    (chest / "b.wav").write_bytes(b"no sound")
    screening = ("screen", chest, "--out", out, "--bundle", bundle)
    assert respsam_device(*screening).code == 2
    rows = out.read_text()
    assert "b.wav: not a readable wav or flac" in rows
    answer = respsam_device(*screening)
    assert (answer.code, out.read_text()) == (2, rows)
    (chest / "b.wav").write_bytes((chest / "a.wav").read_bytes())
    assert respsam_device(*screening).code == 0
    assert out.read_text().startswith(rows)
    if name.endswith("csv"):
        judged, refused, again = csv.DictReader(out.open(newline=""))
        assert (refused["verdict"], refused["error"] != "", again["error"]) == ("", True, "")
        assert judged["verdict"] == again["verdict"] != ""
        assert 0.0 <= float(judged["flagged_share"]) <= 1.0 and judged["channel"] == "0"
        assert judged["breaths_per_minute"] == "" or float(judged["breaths_per_minute"]) > 0


def test_names_with_line_ends_and_escapes_are_one_row_and_one_line(
    respsam_device: Device, bundle: Path, chest: Path, tmp_path: Path
) -> None:
    for odd in ("a\nb.wav", "a\u2028b.wav", "a\u0085b.wav", "a\x1b[31mred.wav", "a\tb.wav", 'a",b.wav'):
        (chest / odd).write_bytes((chest / "a.wav").read_bytes())
    out = tmp_path / "results.csv"
    screening = ("screen", chest, "--out", out, "--bundle", bundle)
    assert respsam_device(*screening).code == 0
    rows = out.read_bytes()
    assert len(rows.splitlines()) == len(rows.decode().splitlines()) == 8
    answer = respsam_device(*screening)
    assert (answer.code, out.read_bytes()) == (0, rows)
    assert f"7 in {out} already" in answer.error
    assert "\x1b" not in respsam_device("screen", chest, "--bundle", bundle).out


def test_the_asked_channel_is_heard_and_named(respsam_device: Device, bundle: Path, tmp_path: Path) -> None:
    lung = simulate(4, 5.0).samples
    path = tmp_path / "two.wav"
    soundfile.write(path, np.stack([0 * lung, lung], axis=1), SAMPLE_RATE)
    config = tmp_path / "settings.toml"
    config.write_text("[audio]\nchannel = 1\n")
    for options in (("--channel", "1"), ("--channel", "auto"), ("--config", config)):
        (one,) = respsam_device("screen", path, "--json", "--bundle", bundle, *options).objects
        assert (one["channel"], one["verdict"] == "poor quality") == (1, False)
        listened = respsam_device(
            *("listen", "--source", path, "--fast", "--json", "--no-store", "--bundle", bundle), *options
        )
        assert listened.objects[-1]["source"] == f"{path}, channel 1 of 2 (counted from 0)"
        assert listened.objects[-1]["verdict"] == one["verdict"]
    assert "has no channel 2" in respsam_device("screen", path, "--channel", "2", "--bundle", bundle).error
    assert "neither a number" in respsam_device("screen", path, "--channel", "left", "--bundle", bundle).error
    assert "must be a number" in respsam_device("listen", "--channel", "auto", "--bundle", bundle).error


@pytest.fixture
def childrens(tmp_path: Path) -> Path:
    """A bundle that has met children at one site."""
    known = {"youngest_years": 0.2, "oldest_years": 16.0, "sites": ["p1"]}
    return make_bundle(tmp_path / "childrens", changes=lambda manifest: manifest["population"].update(known))


def test_an_adult_judged_by_a_model_for_children_is_marked(
    respsam_device: Device, childrens: Path, chest: Path
) -> None:
    options = ("--json", "--bundle", childrens, "--age", 46, "--site", "elbow")
    (one,) = respsam_device("screen", chest, *options).objects
    assert [words.split()[0] for words in one["not_validated"]] == ["age", "site"]


def test_one_recording_that_takes_too_much_memory_does_not_stop_the_others(
    respsam_device: Device, bundle: Path, chest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chest / "b.wav").write_bytes((chest / "a.wav").read_bytes())
    real = screening.screen_recording

    def greedy(path: Path, *others: Any) -> Any:
        if path.name == "a.wav":
            raise MemoryError
        return real(path, *others)

    monkeypatch.setattr(screening, "screen_recording", greedy)
    answer = respsam_device("screen", chest, "--json", "--bundle", bundle)
    assert (answer.code, len(answer.objects)) == (2, 1)
    assert "a.wav: takes more memory than there is here" in answer.error


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 44_100])
def test_a_recording_read_in_blocks_is_the_one_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_rate: int
) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * sample_rate + 17)
    soundfile.write(tmp_path / "a.wav", noise, sample_rate)
    whole = [block.samples for block in FileSource(tmp_path / "a.wav", fast=True).blocks()]
    monkeypatch.setattr("device.capture.recording.BLOCK_VALUES", 1000)
    pieces = [block.samples for block in FileSource(tmp_path / "a.wav", fast=True).blocks()]
    assert {block.size for block in pieces[:-1]} == {1600}
    np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(whole))


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """Two hours at 44.1 kHz in stereo are 2.5 GB as float32; the file is made of holes."""
    code = (
        "import re, sys; from pathlib import Path; from device.capture.sources import FileSource\n"
        "heard = sum(block.samples.size for block in FileSource(Path(sys.argv[1]), fast=True).blocks())\n"
        # of this program alone: a child's ru_maxrss begins at its parent's
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())\n"
        "print(heard, int(peak[1]) // 1024)"
    )
    path = tmp_path / "night.wav"
    seconds = 2 * 3600
    soundfile.write(path, np.zeros((1, 2)), 44_100, subtype="PCM_16")
    raw, length = bytearray(path.read_bytes()[:44]), seconds * 44_100 * 4
    raw[4:8], raw[40:44] = struct.pack("<I", 36 + length), struct.pack("<I", length)
    path.write_bytes(raw)
    os.truncate(path, 44 + length)
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    heard, megabytes = map(int, done.stdout.split())
    assert heard == seconds * SAMPLE_RATE
    assert megabytes < 300


# lines and streams


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_end_no_screening(bundle: Path, chest: Path, tmp_path: Path, closed: str) -> None:
    out = tmp_path / "results.csv"
    command = f'exec "$0" -m device screen "$1" --out "$2" --bundle "$3" {closed}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, str(chest), str(out), str(bundle)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(out.read_text().splitlines()) == 2


def test_lines_break_between_words_on_a_terminal(childrens: Path, chest: Path) -> None:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    command = [sys.executable, "-m", "device", "screen", str(chest), "--bundle", str(childrens), "--age", "90"]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    done = subprocess.run(
        command, env={**environment, "PYTHONPATH": str(REPOSITORY)}, stdin=theirs, stdout=theirs, check=True
    )
    os.close(theirs)
    lines = os.read(ours, 10_000).decode().splitlines()
    os.close(ours)
    assert done.returncode == 0
    assert all(len(line) <= 40 or str(chest) in line for line in lines) and len(lines) > 2
    assert "NOT VALIDATED for this subject: age 90" in " ".join(line.strip() for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("screen", ""), "an argument is empty"),
        (("screen", "a.wav", "--out", ""), "--out has an empty value"),
        (("screen", "a.wav", "--out="), "--out has an empty value"),
        (("listen", "--config", ""), "--config has an empty value"),
        (("listen", "--source", "nofile.wav"), "nofile.wav: no such file"),
        (("listen", "--source", "./none"), "none: no such file"),
    ],
)
def test_an_empty_path_is_an_error_and_a_missing_file_is_called_so(
    respsam_device: Device, bundle: Path, arguments: tuple[str, ...], said: str
) -> None:
    answer = respsam_device(*arguments, "--bundle", bundle)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.error and len(answer.error.splitlines()) == 1
