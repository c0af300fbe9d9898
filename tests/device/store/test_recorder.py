"""What is kept survives kill -9; what cannot be kept costs one warning and no cycle, and storing goes on later."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import cycle as for_ever
from pathlib import Path

import numpy as np
import pytest

from device.signal import SAMPLE_RATE
from device.store import database
from device.store import recorder as store_module
from device.store.audio import AudioStore
from device.store.database import StoreError
from device.store.recorder import Recorder, Store
from firmware_config.settings import Settings
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle
from tests.device.storing import Judged, beginning, endless, keep, rows
from tests.full_disk import mounted

KILLS = 100 if os.environ.get("RESPSAM_SOAK") else 8


def intact(file: Path) -> bool:
    return rows(file, "PRAGMA integrity_check") == [("ok",)]


# what is kept


def test_everything_is_kept_and_demo_stands_on_every_row(file: Path, demo: Judged) -> None:
    cycles, _, summary = demo
    before = time.time()
    start = replace(beginning(file, site="p1"), not_validated=("age 80",))
    store = Store(start)
    # a session that is killed keeps what was known when it began
    assert rows(file, "SELECT not_validated FROM sessions") == [("age 80",)]
    keep((*demo[:2], replace(summary, not_validated=("age 80", "site p1"))), store)
    store.close()
    ((started, ended, kept, *known),) = rows(
        file,
        "SELECT started_at, ended_at, settings, source, site, demo, bundle, bundle_name, settings_fingerprint, "
        "not_validated, verdict, probability, heard_samples, missing_samples, dropped_samples, gradable_samples "
        "FROM sessions",
    )
    assert before <= started <= ended <= time.time()
    assert Settings.model_validate_json(kept) == start.settings
    about = ["a test", "p1", 1, "bundle-hash", "tiny", start.settings.fingerprint(), "age 80; site p1"]
    account = [12 * SAMPLE_RATE, 0, 0, summary.gradable_samples]
    assert known == [*about, summary.verdict, summary.probability, *account]
    answers = [one.judgement for one in cycles if one.judgement is not None]
    assert len(answers) == len(cycles) > 3
    assert rows(
        file, "SELECT number, end_sample - start_sample, kind, probability, class, flag, inference_seconds FROM cycles"
    ) == [
        (one.number, one.samples.size, one.kind, answer.probability, answer.label, one.flagged, one.inference_seconds)
        for one, answer in zip(cycles, answers, strict=True)
    ]
    assert rows(file, "SELECT start_sample FROM cycles") == [(one.start_sample,) for one in cycles]
    assert [json.loads(one) for (one,) in rows(file, "SELECT quality FROM cycles")] == [
        asdict(one.quality) for one in cycles
    ]
    assert rows(file, "SELECT kind, sample FROM timeline") == [("start", 0), ("end", 12 * SAMPLE_RATE)]
    for table in ("sessions", "cycles", "timeline"):
        assert rows(file, f"SELECT DISTINCT demo FROM {table}") == [(1,)]


def test_sessions_follow_each_other_in_one_file(file: Path, demo: Judged) -> None:
    for _ in range(2):
        store = Store(beginning(file, demo=False))
        keep(demo, store)
        store.close()
    held = rows(file, "SELECT session, count(*), max(demo) FROM cycles GROUP BY session")
    assert held == [(1, len(demo[0]), 0), (2, len(demo[0]), 0)]


def test_a_jump_of_the_clock_changes_no_sample(file: Path, demo: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = for_ever([2.1e9, 5.0])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    for _ in range(2):
        store = Store(beginning(file))
        keep(demo, store)
        store.close()
    (first, second) = ([row[1:] for row in rows(file, f"SELECT * FROM cycles WHERE session = {n}")] for n in (1, 2))
    assert first == second
    assert rows(file, "SELECT ended_at < started_at FROM sessions WHERE id = 1") == [(1,)]


def write_text(file: Path) -> None:
    file.write_text("this is not a database, but long enough to be looked at as one" * 100)


def overwrite_pages(file: Path) -> None:
    with file.open("r+b") as database:
        database.seek(4096)
        database.write(b"\xa5" * 8192)


@pytest.mark.parametrize("damage", [write_text, overwrite_pages])
def test_a_damaged_file_is_set_aside_with_what_belongs_to_it_and_reported(
    file: Path, demo: Judged, damage: Callable[[Path], object]
) -> None:
    store = Store(beginning(file, audio=True))
    keep(demo, store)
    store.close()
    damage(file)
    broken, logged = file.read_bytes(), b"what the last process left"
    file.with_name("store.sqlite-wal").write_bytes(logged)
    sound = sum(one.bytes for one in AudioStore(file).files())
    warnings = list[str]()
    recorder = Recorder(lambda: Store(beginning(file)), warnings.append)
    keep(demo, recorder)
    (aside,) = [one for one in file.parent.glob("store.sqlite.damaged-*") if one.name.endswith("Z")]
    (warning,) = warnings
    assert str(file) in warning and str(aside) in warning and "\n" not in warning
    assert aside.read_bytes() == broken
    assert sum(one.bytes for one in AudioStore(aside).files()) == sound > 0
    assert intact(file)
    assert rows(file, "SELECT count(*) FROM cycles") == [(len(demo[0]),)]


@pytest.mark.parametrize("obstacle", ["file in the path", "folder in its place"])
def test_a_store_that_cannot_be_opened_is_an_error_that_names_it(file: Path, obstacle: str) -> None:
    if obstacle == "file in the path":
        file.parent.touch()
    else:
        file.mkdir(parents=True)
    with pytest.raises(StoreError) as caught:
        Store(beginning(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


# what cannot be kept


def test_without_a_store_nothing_is_written_and_nothing_said(demo: Judged) -> None:
    warnings = list[str]()
    keep(demo, Recorder(None, warnings.append))
    assert not warnings


def test_a_locked_store_is_one_warning_and_storing_resumes(
    file: Path, demo: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (database, store_module):
        monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    warnings = list[str]()
    recorder = Recorder(lambda: Store(beginning(file)), warnings.append, retry_seconds=0.0)
    numbered = endless(demo[0])
    recorder.add(next(numbered))
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(5):
        recorder.add(next(numbered))
    (warning,) = warnings
    assert "database is locked" in warning and "listening continues" in warning
    other.execute("COMMIT")
    other.close()
    recorder.add(next(numbered))
    recorder.end(demo[2])
    assert len(warnings) == 2
    assert "stored again; 5 cycles and 0 timeline entries not stored" in warnings[1]
    assert rows(file, "SELECT number FROM cycles") == [(1,), (7,)]
    ((kind, sample, note),) = rows(file, "SELECT kind, sample, note FROM timeline")
    assert (kind, sample) == ("unstored", demo[0][1].start_sample)
    assert note.startswith("5 cycles and 0 timeline entries not stored: ") and "locked" in note


def test_while_it_fails_it_is_tried_only_now_and_then(file: Path, demo: Judged) -> None:
    tries = list[float]()

    def opening() -> Store:
        tries.append(time.monotonic())
        raise StoreError("no disk")

    recorder = Recorder(opening, list[str]().append, retry_seconds=0.05)
    until = time.monotonic() + 0.6
    while time.monotonic() < until:
        recorder.add(demo[0][0])
    pauses = np.diff(tries)
    assert 3 <= len(tries) <= 5
    assert (pauses >= 0.05 * 2.0 ** np.arange(len(pauses))).all()


def test_a_disk_that_comes_later_has_the_session_from_its_real_start(file: Path, demo: Judged) -> None:
    file.parent.touch()
    warnings = list[str]()
    start = beginning(file)
    recorder = Recorder(lambda: Store(start), warnings.append, retry_seconds=0.0)
    recorder.add(demo[0][0])
    file.parent.unlink()
    recorder.add(demo[0][1])
    recorder.end(demo[2])
    assert len(warnings) == 2
    assert rows(file, "SELECT started_at, verdict FROM sessions") == [(start.started_at, demo[2].verdict)]
    assert rows(file, "SELECT number FROM cycles") == [(2,)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    with mounted(folder, 2 << 20):
        yield folder


def test_a_full_disk_is_one_warning_and_storing_resumes_when_there_is_room(small_disk: Path, demo: Judged) -> None:
    file, warnings = small_disk / "store.sqlite", list[str]()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    recorder = Recorder(lambda: Store(beginning(file, audio=True)), warnings.append, retry_seconds=0.0)
    numbered = endless(demo[0])
    for one in numbered:
        recorder.add(one)
        if warnings:
            break
    full = one.number
    for _ in range(20):
        recorder.add(next(numbered))
    assert len(warnings) == 1, "the smaller cycles may have fitted, but these are all of a length"
    assert "No space left" in warnings[0] or "full" in warnings[0]
    ballast.unlink()
    for _ in range(3):
        recorder.add(next(numbered))
    recorder.end(demo[2])
    assert len(warnings) == 2
    assert "stored again; 21 cycles" in warnings[1]
    kept = [number for (number,) in rows(file, "SELECT number FROM cycles")]
    assert kept == [*range(1, full), *range(full + 21, full + 24)]
    assert rows(file, "SELECT count(*), min(note) LIKE '21 cycles %' FROM timeline WHERE kind = 'unstored'") == [(1, 1)]
    assert intact(file)
    audio = AudioStore(file)
    assert [one.path for one in sorted(audio.files())] == [audio.path(1, number) for number in kept], "and no half file"
    assert all(audio.read(1, number).size for number in kept)


def test_a_file_that_may_not_grow_is_one_warning_and_storing_resumes(file: Path) -> None:
    done = python("limit", file)
    warnings = json.loads(done)
    assert len(warnings) == 2
    assert "listening continues" in warnings[0] and "stored again" in warnings[1]
    kept = [number for (number,) in rows(file, "SELECT number FROM cycles")]
    assert 10 < len(kept) < 3000
    assert kept[-10:] == list(range(3001, 3011))
    assert f"{3010 - len(kept)} cycles and 0 timeline entries not stored" in warnings[1]
    assert intact(file)


def test_a_read_only_store_is_one_warning(small_disk: Path, demo: Judged) -> None:
    file = small_disk / "store.sqlite"
    store = Store(beginning(file))
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    warnings = list[str]()
    keep(demo, Recorder(lambda: Store(beginning(file)), warnings.append, retry_seconds=0.0))
    (warning,) = warnings
    assert "read" in warning and "listening continues" in warning
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert rows(file, "SELECT count(*) FROM sessions") == [(1,)]


# processes


def python(mode: str, file: Path) -> str:
    command = [sys.executable, "-m", "tests.device.storing", mode, str(file)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True).stdout


def storing(file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.device.storing", "commit", str(file)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def committed(process: subprocess.Popen[str]) -> tuple[int, int]:
    assert process.stdout is not None
    session, number = process.stdout.readline().split()
    return int(session), int(number)


@pytest.mark.timeout(40 * KILLS)
def test_kill_9_at_random_moments_loses_no_committed_cycle(file: Path) -> None:
    """Each round goes on in the file that the last one left behind."""
    moments = random.Random(3)
    for round_number in range(1, KILLS + 1):
        process = storing(file)
        told = [committed(process)]
        time.sleep(moments.uniform(0.0, 0.4))
        process.kill()
        assert process.stdout is not None
        told += [(int(session), int(number)) for session, number in map(str.split, process.stdout)]
        process.wait()
        process.stdout.close()
        assert {session for session, _ in told} == {round_number}
        kept = rows(file, f"SELECT number FROM cycles WHERE session = {round_number} AND audio = 'kept'")
        assert [number for (number,) in kept][: len(told)] == [number for _, number in told]
        # one more may have been committed, and not told any more
        assert len(told) <= len(kept) <= len(told) + 1
        audio = AudioStore(file)
        assert all(audio.read(round_number, number).size for (number,) in kept[-2:])
        assert intact(file)
    assert not list(file.parent.glob("*damaged*"))


def test_two_processes_store_into_one_file(file: Path) -> None:
    processes = [storing(file) for _ in range(2)]
    told = [committed(process) for _ in range(20) for process in processes]
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert {session for session, _ in told} == {1, 2}
    assert set(told) <= set(rows(file, "SELECT session, number FROM cycles"))
    assert intact(file)


def test_what_listen_has_shown_survives_kill_9(file: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    listening = subprocess.Popen(
        [sys.executable, "-m", "device", "listen", "--source", "demo", "--json", "--bundle", str(bundle)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RESPSAM_STORE__PATH": str(file)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert listening.stdout is not None
    shown = []
    for line in listening.stdout:
        happened = json.loads(line)
        if happened["type"] == "cycle":
            shown.append(happened)
        if len(shown) == 2:
            listening.send_signal(signal.SIGKILL)
            break
    listening.wait(timeout=30)
    listening.stdout.close()
    # what a power cut leaves: the files as they are, read by nobody since
    after = shutil.copytree(file.parent, tmp_path / "after")
    kept = rows(after / file.name, "SELECT number, start_sample, class, demo FROM cycles")
    assert [(number, round(start / SAMPLE_RATE, 3), name) for number, start, name, _ in kept][:2] == [
        (one["number"], one["start"], one["class"]) for one in shown
    ]
    assert {demo for *_, demo in kept} == {1}
    assert rows(file, "SELECT ended_at FROM sessions") == [(None,)]
    # and the next session goes on in the same file
    Store(beginning(file)).close()
    assert rows(file, "SELECT count(*) FROM sessions") == [(2,)]
