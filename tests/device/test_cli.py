"""`respsam-device` as a user meets it: what it prints, where, and the code it exits with."""

import csv
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest
import soundfile

from device.breath.simulator import simulate
from device.capture.blocks import Block
from device.capture.process import CaptureError
from device.capture.sources import DemoSource
from device.listening import screening
from device.model.classifier import Classifier
from device.signal import SAMPLE_RATE, FloatArray
from firmware_config.settings import load, load_settings
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle
from tests.device.conftest import Device, one_error

ABNORMAL = (0.0, 0.0, 9.0, 0.0)
NORMAL = (9.0, 0.0, 0.0, 0.0)
SCREEN_KEYS = [
    *("recording", "channel", "verdict", "probability", "cycles", "stretches", "stretches_flagged"),
    *("flagged_share", "breaths_per_minute", "seconds", "reasons", "not_validated"),
]


# listen


def test_the_demo_in_plain_lines_says_demo_on_every_line(respsam_device: Device, bundle: Path) -> None:
    answer = respsam_device("listen", "--source", "demo", "--fast", "--bundle", bundle, "--no-store")
    assert (answer.code, answer.error) == (0, "")
    lines = answer.out.splitlines()
    assert all(line.startswith("DEMO ") for line in lines)
    cycles = [line for line in lines if " probability 0" in line or " probability 1" in line][:-1]
    assert len(cycles) > 15
    for line in cycles:
        assert re.fullmatch(
            r"DEMO +\d+  \d\d:\d\d\.\d-\d\d:\d\d\.\d  (breath|window)  probability \d\.\d\d  "
            r"(normal|(crackle|wheeze|both) +FLAG)",
            line,
        )
    assert any(re.match(r"DEMO verdict: [A-Z ]+", line) for line in lines)
    assert re.search(r"60\.0 s heard \(\d\d\.\d s gradable\), 0\.0 s missing, 0\.0 s dropped", answer.out)
    assert re.search(r"agreement with the simulator's truth: \d+ of \d+ cycles \(abnormal heard \d+ of \d+", answer.out)
    assert lines[-1] == "DEMO screening aid, not a diagnosis"


def test_the_demo_in_json(respsam_device: Device, bundle: Path) -> None:
    answer = respsam_device("listen", "--source", "demo", "--fast", "--json", "--bundle", bundle, "--no-store")
    assert (answer.code, answer.error) == (0, "")
    start, *cycles, end, summary = answer.objects
    assert [start["type"], end["type"], summary["type"]] == ["timeline", "timeline", "summary"]
    assert [cycle["number"] for cycle in cycles] == list(range(1, len(cycles) + 1))
    assert {cycle["type"] for cycle in cycles} == {"cycle"}
    assert all(one["demo"] for one in answer.objects)
    assert {cycle["class"] for cycle in cycles} <= {"normal", "crackle", "wheeze", "both"}
    assert all(cycle["flag"] == (cycle["class"] != "normal") for cycle in cycles)
    assert summary["cycles"] == len(cycles)
    assert summary["flagged"] == sum(cycle["flag"] for cycle in cycles)
    counted = summary["demo_agreement"]
    assert counted["abnormal"] + counted["normal"] == summary["gradable"]
    assert counted["abnormal_heard"] + (counted["normal"] - counted["normal_left_alone"]) == summary["flagged"]


@pytest.mark.parametrize(("logits", "verdict"), [(ABNORMAL, "flagged"), (NORMAL, "nothing flagged")])
def test_a_flagged_patient_is_not_an_error(
    respsam_device: Device, tmp_path: Path, recording: Path, logits: tuple[float, ...], verdict: str
) -> None:
    own = make_bundle(tmp_path / "bundle", logits=logits)
    answer = respsam_device("listen", "--source", recording, "--fast", "--json", "--bundle", own, "--no-store")
    assert answer.code == 0
    assert answer.objects[-1]["verdict"] == verdict
    assert answer.objects[-1]["demo_agreement"] is None
    assert not any(one["demo"] for one in answer.objects)


def test_screen_and_listen_fast_give_the_same(respsam_device: Device, bundle: Path, recording: Path) -> None:
    listened = respsam_device("listen", "--source", recording, "--fast", "--json", "--bundle", bundle, "--no-store")
    summary = listened.objects[-1]
    (screened,) = respsam_device("screen", recording, "--json", "--bundle", bundle).objects
    assert list(screened) == [*SCREEN_KEYS, "type", "schema_version", "time", "session"]
    assert screened["recording"] == str(recording)
    shared = [key for key in SCREEN_KEYS if key in summary]
    assert len(shared) == 9
    assert {key: screened[key] for key in shared} == {key: summary[key] for key in shared}
    assert screened["flagged_share"] == round(summary["flagged"] / summary["gradable"], 3)
    assert list(screened["seconds"]) == ["heard", "missing", "dropped", "gradable"]
    assert screened["cycles"] == sum(one["type"] == "cycle" for one in listened.objects) > 3


def test_a_file_is_heard_at_its_own_pace_unless_fast(respsam_device: Device, bundle: Path, recording: Path) -> None:
    def seconds(*more: str) -> float:
        began = time.monotonic()
        options = ("--seconds", "2", "--bundle", bundle, "--no-store", *more)
        answer = respsam_device("listen", "--source", recording, "--json", *options)
        assert answer.objects[-1]["seconds"]["heard"] == 2.0
        return time.monotonic() - began

    own_pace = seconds()
    assert own_pace >= 2.0
    # both start up and judge the same; only the waiting differs
    assert seconds("--fast") < own_pace


def test_sessions_are_stored_unless_told_otherwise(
    respsam_device: Device, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "store.sqlite"
    monkeypatch.setenv("RESPSAM_STORE__PATH", str(file))
    options = ("--source", "demo", "--fast", "--seconds", "5", "--bundle", bundle)
    respsam_device("listen", *options, "--no-store")
    assert not file.exists()
    assert respsam_device("listen", *options).error == ""
    assert file.exists()


def test_a_store_that_fails_is_one_warning_and_listening_goes_on(
    respsam_device: Device, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESPSAM_STORE__PATH", str(tmp_path / "file" / "store.sqlite"))
    answer = respsam_device("listen", "--source", "demo", "--fast", "--json", "--bundle", bundle)
    assert answer.code == 0
    assert answer.objects[-1]["cycles"] > 15
    (line,) = answer.error.splitlines()
    assert line.startswith("respsam-device: warning: ")
    assert "listening continues" in line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_with_the_summary(bundle: Path, number: signal.Signals, code: int) -> None:
    listening = subprocess.Popen(
        [sys.executable, "-m", "device", "listen", "--source", "demo", "--json", "--no-store", "--bundle", str(bundle)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert listening.stdout is not None
    listening.stdout.readline()
    time.sleep(1.5)
    listening.send_signal(number)
    out, error = listening.communicate(timeout=30)
    assert (listening.returncode, error) == (code, "")
    *_, end, summary = map(json.loads, out.splitlines())
    assert end["note"] == f"stopped by {number.name}"
    assert summary["type"] == "summary"
    assert 0.3 < summary["seconds"]["heard"] < 30.0


def on_terminal(arguments: list[str], lines: int, columns: int, **environment: str) -> tuple[int, str]:
    """Exit code and everything that a terminal of that size was sent."""
    terminal, end = pty.openpty()
    ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    running = subprocess.Popen(
        [sys.executable, "-m", "device", *arguments],
        env={**known, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", "PYTHONUTF8": "1", **environment},
        stdin=end,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    sent = b""
    while True:
        select.select([terminal], [], [], 60)
        try:
            piece = os.read(terminal, 65_536)
        except OSError:  # how Linux says that nobody writes there any more
            break
        if not piece:
            break
        sent += piece
    os.close(terminal)
    return running.wait(timeout=30), sent.decode(errors="replace")


@pytest.mark.parametrize(("lines", "columns"), [(24, 80), (50, 132)])
def test_the_live_page_fits_the_terminal(bundle: Path, lines: int, columns: int) -> None:
    arguments = ["listen", "--source", "demo", "--fast", "--no-store", "--bundle", str(bundle)]
    code, sent = on_terminal(arguments, lines, columns)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent).replace("\r\n", "\n").replace("\r", "\n")
    assert max(map(len, plain.splitlines())) <= columns
    page = plain[plain.rindex("╭") : plain.rindex("╯") + 1].splitlines()
    assert len(page) < lines
    text = "\n".join(page)
    for word in ("DEMO RespSAM", "not a diagnosis", "tiny", "breaths a minute", "complete: ", "01:00.0 heard", "FLAG"):
        assert word in text
    shown = [line for line in page if re.search(r"DEMO +\d+ ", line)]
    assert len(shown) == 10
    # the summary stands below the page
    assert "DEMO verdict: " in plain[plain.rindex("╯") :]


def test_a_dumb_terminal_gets_plain_lines(bundle: Path) -> None:
    arguments = ["listen", "--source", "demo", "--fast", "--no-store", "--seconds", "8", "--bundle", str(bundle)]
    code, sent = on_terminal(arguments, 24, 80, TERM="dumb")
    assert code == 0
    assert "\x1b" not in sent
    assert all(line.startswith("DEMO ") for line in sent.splitlines() if line)


# exam


@pytest.mark.parametrize(
    ("logits", "verdict"), [(ABNORMAL, "flagged"), (NORMAL, "nothing flagged")], ids=["abnormal", "normal"]
)
def test_an_exam_is_several_sites(
    respsam_device: Device, tmp_path: Path, logits: tuple[float, ...], verdict: str
) -> None:
    own = make_bundle(tmp_path / "bundle", logits=logits)
    options = ("--source", "demo", "--fast", "--seconds", 30, "--site", "p1", "--site", "p2", "--age", 5)
    answer = respsam_device("exam", *options, "--json", "--bundle", own, "--no-store")
    assert (answer.code, answer.error) == (0, "")
    summaries = [one for one in answer.objects if one["type"] == "summary"]
    whole = answer.objects[-1]
    assert (whole["type"], whole["verdict"], whole["required"]) == ("exam", verdict, ["p1", "p2"])
    assert [whole["sites"][site]["source"] for site in ("p1", "p2")] == [one["source"] for one in summaries]
    assert summaries[0]["source"] != summaries[1]["source"], "each site has a sound of its own"
    lines = respsam_device("exam", *options, "--bundle", own, "--no-store").out.splitlines()
    assert f"DEMO EXAM: {verdict.upper()}" in lines
    assert sum(line.endswith("; stretch complete") for line in lines) == 2


def test_an_exam_with_a_site_too_short_clears_nobody(respsam_device: Device, tmp_path: Path) -> None:
    own = make_bundle(tmp_path / "bundle", logits=NORMAL)
    options = ("--source", "demo", "--fast", "--seconds", 1, "--site", "p1", "--bundle", own, "--no-store", "--json")
    assert respsam_device("exam", *options).objects[-1]["verdict"] == "not enough"


@pytest.mark.parametrize("json_output", [False, True])
def test_an_exam_that_is_left_says_what_its_sites_come_to(tmp_path: Path, json_output: bool) -> None:
    own = make_bundle(tmp_path / "bundle", logits=ABNORMAL)
    arguments = ["exam", "--source", "demo", "--fast", "--seconds", "12", "--site", "p1", "--site", "p2", "--no-store"]
    terminal, end = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "device", *arguments, "--bundle", str(own), *["--json"] * json_output],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=end,
        stdout=subprocess.PIPE,
        stderr=end,
        text=True,
    )
    os.close(end)
    asked = b""
    for question in (b"1 of 2: stethoscope on p1, then Enter", b"2 of 2: stethoscope on p2, then Enter"):
        while question not in asked:
            asked += os.read(terminal, 65_536)
        os.write(terminal, b"\n" if question.startswith(b"1") else b"\x04")
    out, _ = running.communicate(timeout=60)
    os.close(terminal)
    assert running.returncode == 130
    assert "stethoscope on" not in out
    if json_output:
        whole = [json.loads(line) for line in out.splitlines()][-1]
        assert (whole["type"], whole["verdict"], list(whole["sites"])) == ("exam", "flagged", ["p1"])
    else:
        assert "DEMO EXAM: FLAGGED" in out and "p2: not recorded yet" in out


def test_an_exam_whose_microphone_goes_keeps_what_was_flagged(
    respsam_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocks(self: DemoSource) -> Iterator[Block]:
        for number, block in enumerate(whole(self)):
            if self.name.endswith("8)") and number > 100:
                raise CaptureError("it has gone for good")
            yield block

    whole = DemoSource.blocks
    monkeypatch.setattr(DemoSource, "blocks", blocks)
    own = make_bundle(tmp_path / "bundle", logits=ABNORMAL)
    options = ("--source", "demo", "--fast", "--seconds", 20, "--site", "p1", "--site", "p2", "--site", "p3")
    answer = respsam_device("exam", *options, "--bundle", own, "--no-store", "--json")
    assert answer.code == 2 and "it has gone for good" in answer.error
    last = answer.objects[-1]
    assert (last["type"], last["verdict"]) == ("exam", "flagged")
    assert {site: one["verdict"] for site, one in last["sites"].items()} == {"p1": "flagged", "p2": "flagged"}


def test_an_exam_whose_model_breaks_clears_nobody(
    respsam_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits(self: Classifier, inputs: FloatArray) -> FloatArray:
        judged.append(len(inputs))
        return np.full((len(inputs), 1, 4), np.nan) if len(judged) > 9 else whole(self, inputs)

    judged: list[int] = []
    whole = Classifier.logits
    monkeypatch.setattr(Classifier, "logits", logits)
    own = make_bundle(tmp_path / "bundle", logits=NORMAL)
    options = ("--source", "demo", "--fast", "--seconds", 30, "--site", "p1", "--bundle", own, "--no-store", "--json")
    answer = respsam_device("exam", *options)
    assert answer.code == 2 and "answers NaN" in answer.error
    last = answer.objects[-1]
    assert last["sites"]["p1"]["gradable"] == 9
    assert last["verdict"] == last["sites"]["p1"]["verdict"] == "not enough"


@pytest.mark.parametrize(("option", "value"), [("--seconds", "inf"), ("--seconds", "nan"), ("--age", "nan")])
def test_a_number_that_is_none_is_refused(respsam_device: Device, bundle: Path, option: str, value: str) -> None:
    answer = respsam_device("listen", "--source", "demo", "--fast", option, value, "--bundle", bundle, "--no-store")
    assert option in one_error(answer)


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


def test_a_bad_recording_is_named_and_the_others_go_on(respsam_device: Device, bundle: Path, ward: Path) -> None:
    answer = respsam_device("screen", ward, "--json", "--bundle", bundle)
    assert answer.code == 2
    assert [one["recording"] for one in answer.objects] == [str(ward / "a.wav"), str(ward / "second" / "c.FLAC")]
    first, second, total = answer.error.splitlines()
    assert first.startswith(f"respsam-device: error: {ward / 'b.wav'}: truncated")
    assert second.startswith(f"respsam-device: error: {ward / 'second' / 'd.flac'}: ")
    assert total.startswith("4 recordings: ")
    assert "2 could not be read" in total


def test_paths_are_screened_in_order_and_once(respsam_device: Device, bundle: Path, ward: Path) -> None:
    given = (ward / "second" / "c.FLAC", ward / "a.wav", ward / "second" / "c.FLAC")
    answer = respsam_device("screen", *given, "--json", "--bundle", bundle)
    assert answer.code == 0
    assert [one["recording"] for one in answer.objects] == [str(path) for path in given[:2]]


def test_a_name_that_is_not_utf8_is_screened_like_any_other(bundle: Path, recording: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stick"
    folder.mkdir()
    for name in (b"Andr\xe9.wav", b"z.wav"):
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(recording.read_bytes())
    out, store = tmp_path / "results.csv", tmp_path / "store"
    odd = os.path.join(os.fsencode(folder), b"Andr\xe9.wav")
    listen: list[bytes | str] = ["listen", "--fast", "--json", "--source", odd]
    for command in (["screen", folder], ["screen", folder, "--json"], ["screen", folder, "--out", out], listen):
        done = subprocess.run(
            [sys.executable, "-m", "device", *command, "--bundle", bundle],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1", "RESPSAM_STORE__PATH": str(store)},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert b"warning" not in done.stderr
        assert done.stdout == b"" if out in command else b"Andr" in done.stdout
    assert [row["recording"] for row in csv.DictReader(out.open())] == [f"{folder}/Andr\\xe9.wav", f"{folder}/z.wav"]


def test_lines_for_people(respsam_device: Device, tmp_path: Path, recording: Path) -> None:
    own = make_bundle(tmp_path / "bundle", logits=ABNORMAL)
    answer = respsam_device("screen", recording, "--bundle", own)
    assert (answer.code, answer.error) == (0, "")
    why = r"wheeze: \d+ breaths together \d\.\d\d, flagged from 0\.50"
    assert re.fullmatch(rf"flagged +[01]\.\d\d +\d+ cycles  {recording}  \({why}\)\n", answer.out)


def test_a_line_for_people_says_who_is_not_validated(respsam_device: Device, bundle: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "dull.wav", simulate(4, 12.3).samples[::4], SAMPLE_RATE // 4)
    answer = respsam_device("screen", tmp_path / "dull.wav", "--bundle", bundle)
    assert "  NOT VALIDATED for this subject: sound up to 2000 Hz only" in answer.out
    assert len(answer.out.splitlines()) == 1


def test_a_short_recording_has_no_probability(respsam_device: Device, bundle: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", simulate(1, 1.0).samples[:6400], SAMPLE_RATE)
    (screened,) = respsam_device("screen", tmp_path / "short.wav", "--json", "--bundle", bundle).objects
    assert (screened["verdict"], screened["probability"], screened["cycles"]) == ("not enough", None, 0)
    assert screened["seconds"] == {"heard": 0.4, "missing": 0.0, "dropped": 0.0, "gradable": 0.0}


def test_a_second_channel_is_a_warning_in_one_line(respsam_device: Device, bundle: Path, tmp_path: Path) -> None:
    samples = simulate(1, 5.0).samples
    soundfile.write(tmp_path / "stereo.wav", np.stack([samples, 0 * samples], axis=1), SAMPLE_RATE)
    for command in (("screen",), ("listen", "--fast", "--no-store", "--source")):
        answer = respsam_device(*command, tmp_path / "stereo.wav", "--json", "--bundle", bundle)
        assert answer.code == 0
        (line,) = answer.error.splitlines()
        assert line == f"respsam-device: warning: {tmp_path / 'stereo.wav'}: 2 channels, only the first is used"


def test_many_recordings_in_several_processes_give_the_same(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        soundfile.write(tmp_path / f"{number}.wav", simulate(number, 3.0 + number / 7).samples, SAMPLE_RATE)
    (tmp_path / "5.wav").write_bytes(b"RIFF")
    settings = load_settings(flags={"bundle.path": str(bundle)}, environment={})
    paths = screening.find_recordings([tmp_path]).recordings
    alone = list(screening.screen(paths, settings))
    monkeypatch.setattr(screening, "FILES_PER_PROCESS", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    together = list(screening.screen(paths, settings))
    assert together == alone
    assert [one.recording for one in together] == paths
    assert [bool(one.error) for one in together] == [number == 5 for number in range(9)]


# bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("listen", "--source", "dmeo"), "'dmeo' is neither mic nor demo nor a recording"),
        (("listen", "--source", "{folder}"), "'respsam-device screen'"),
        (("listen", "--source", "{empty}"), "the file is empty"),
        (("listen", "--source", "{text}"), "not a readable wav or flac"),
        (("listen", "--source", "mic", "--fast"), "leave --fast out"),
        (("listen", "--source", "demo", "--seconds", "0"), "--seconds"),
        (("listen", "--source", "demo", "--precision", "int4"), "bundle.precision = 'int4'"),
        (("listen", "--source", "demo", "--bundle", "{folder}/none"), "no bundle here"),
        (("listen", "--source", "demo", "--config", "{config}"), "unknown setting 'quality.minimun_level_dbfs'"),
        (("listen", "--source", "demo", "--config", "{folder}/none.toml"), "none.toml"),
        (("listen", "here"), "here"),
        (("screen",), "PATH..."),
        (("screen", "{folder}", "--bundle", "{text}"), "manifest.json cannot be read"),
        (("screen", "{folder}", "--precision", "fp16"), "bundle.precision = 'fp16'"),
    ],
)
def test_bad_input_is_one_line(
    respsam_device: Device, bundle: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    made = {"folder": tmp_path / "folder", "empty": tmp_path / "empty.wav", "text": tmp_path / "text.wav"}
    made["folder"].mkdir()
    made["empty"].touch()
    made["text"].write_text("not a recording")
    made["config"] = tmp_path / "settings.toml"
    made["config"].write_text("[quality]\nminimun_level_dbfs = -70.0\n")
    filled = [argument.format(**made) for argument in arguments]
    chosen = () if "--bundle" in filled or filled == ["screen"] else ("--bundle", bundle)
    assert said in one_error(respsam_device(*filled, *chosen))


@pytest.mark.parametrize("command", [("listen", "--source", "demo"), ("screen", ".")])
def test_a_bundle_that_does_not_hold_is_refused_before_anything_is_heard(
    respsam_device: Device, tmp_path: Path, command: tuple[str, ...]
) -> None:
    wrong_hash = make_bundle(tmp_path / "hash")
    (wrong_hash / "model.onnx").write_bytes(b"changed")
    assert "model.onnx has sha256" in one_error(respsam_device(*command, "--bundle", wrong_hash))
    other_schema = make_bundle(tmp_path / "schema", changes=lambda manifest: manifest.update(schema_version=3))
    assert "a bundle of schema 3, this version reads schema 2" in one_error(
        respsam_device(*command, "--bundle", other_schema)
    )


def test_a_folder_without_recordings_and_a_missing_one_are_named(
    respsam_device: Device, bundle: Path, recording: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    answer = respsam_device(
        "screen", tmp_path / "empty", tmp_path / "none.wav", recording, "--json", "--bundle", bundle
    )
    assert answer.code == 2
    assert len(answer.objects) == 1
    assert "no wav or flac recording below this folder" in answer.error
    assert f"{tmp_path / 'none.wav'}: no such recording" in answer.error


def children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_processes_of_a_killed_screening_do_not_stay(bundle: Path, tmp_path: Path) -> None:
    for number in range(2 * screening.FILES_PER_PROCESS):
        soundfile.write(tmp_path / f"{number}.wav", simulate(number, 20.0).samples, SAMPLE_RATE)
    # a machine with one core would need no other processes
    start = "import os, device.cli; os.cpu_count = lambda: 2; device.cli.main()"
    running = subprocess.Popen(
        [sys.executable, "-c", start, "screen", str(tmp_path), "--bundle", str(bundle)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
    )
    assert running.stdout is not None
    running.stdout.readline()  # the first verdict: all of them are at work
    started = children(running.pid)
    assert len(started) >= 2
    running.kill()
    running.wait()
    running.stdout.close()
    until = time.monotonic() + 30
    while any(map(runs, started)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(runs, started))


# config


def test_config_show_says_where_each_value_comes_from(
    respsam_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "respsam.toml"
    file.write_text('# mine\n[board]\nprofile = "raspberry-pi-5"\n\n[demo]\nseed = 9\n')
    monkeypatch.setenv("RESPSAM_DEMO__SECONDS", "12")
    answer = respsam_device("config", "show", "--json", "--config", file)
    assert (answer.code, answer.error) == (0, "")
    rows = {row["key"]: (row["value"], row["from"]) for row in answer.objects}
    assert rows["demo.seed"] == (9, f"file {file}, line 6")
    assert rows["demo.seconds"] == (12.0, "environment RESPSAM_DEMO__SECONDS")
    assert rows["board.model"] == ("Raspberry Pi 5", "profile raspberry-pi-5")
    assert rows["audio.device"] == ("", "default")
    assert len(rows) == len(load(environment={}).values())
    lines = respsam_device("config", "show", "--config", file).out.splitlines()
    assert lines[0].split() == ["key", "value", "from"]
    assert len(lines) == 1 + len(rows)


def test_config_check_of_a_good_and_of_a_broken_file(respsam_device: Device, tmp_path: Path) -> None:
    file = tmp_path / "respsam.toml"
    file.write_text("[demo]\nseed = 9\n")
    good = respsam_device("config", "check", file)
    assert (good.code, good.out) == (0, f"{file}: all is right; 1 setting set, the others have their defaults\n")
    file.write_text("[demo]\nsed = 9\n")
    broken = respsam_device("config", "check", file)
    assert broken.code == 2
    assert f"{file}, line 2: unknown setting 'demo.sed'; nearest: 'demo.seed'" in one_error(broken)
    file.write_text('[board]\nprofile = "jetson-orin-nano"\n')
    assert "it is for a board with 'Orin Nano' in its name" in one_error(respsam_device("config", "check", file))
    file.write_text('[audio]\npassport = "eko"\n')
    assert "no passport is called 'eko'; nearest: 'eko-" in one_error(respsam_device("config", "check", file))


def test_config_schema_describes_a_file_in_which_all_may_be_left_out(respsam_device: Device) -> None:
    described = json.loads(respsam_device("config", "schema").out)
    assert "required" not in described and not described["additionalProperties"]
    rate = described["$defs"]["AudioSettings"]["properties"]["sample_rate"]
    assert (rate["minimum"], rate["maximum"], rate["unit"]) == (0, 192_000, "Hz")
