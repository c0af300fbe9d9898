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
from itertools import count
from itertools import cycle as for_ever
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device.bundle import read_bundle
from device.capture.timeline import Entry
from device.listening.cycle import CycleResult
from device.model.classifier import Classifier
from device.signal import INT24, SAMPLE_RATE, FloatArray
from device.store import database
from device.store import recorder as store_module
from device.store.audio import AudioStore
from device.store.database import StoreError
from device.store.recorder import Recorder, Store
from device.store.sessions import delete_session
from device.verdict.summary import Summary
from firmware_config.settings import Settings
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle
from tests.device.storing import beginning, endless, heard
from tests.full_disk import mounted

KILLS = 100 if os.environ.get("RESPSAM_SOAK") else 8
Heard = tuple[list[CycleResult], list[Entry], Summary]
# what the first release wrote
VERSION_1 = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY, started_at REAL NOT NULL, ended_at REAL, source TEXT NOT NULL, demo INTEGER NOT NULL,
    bundle TEXT NOT NULL, settings TEXT NOT NULL, verdict TEXT, probability REAL,
    heard_seconds REAL, missing_seconds REAL, gradable_seconds REAL, reasons TEXT
);
CREATE TABLE cycles (
    session INTEGER NOT NULL REFERENCES sessions(id), number INTEGER NOT NULL, demo INTEGER NOT NULL,
    start_seconds REAL NOT NULL, end_seconds REAL NOT NULL, kind TEXT NOT NULL, rhythm REAL NOT NULL,
    level_dbfs REAL NOT NULL, reason TEXT NOT NULL, probability REAL, class TEXT, flag INTEGER NOT NULL,
    PRIMARY KEY (session, number)
);
CREATE TABLE timeline (
    session INTEGER NOT NULL REFERENCES sessions(id), demo INTEGER NOT NULL, sample INTEGER NOT NULL,
    kind TEXT NOT NULL, missing_samples INTEGER NOT NULL, note TEXT NOT NULL
);
INSERT INTO sessions VALUES (4, 1.5, 60.5, 'demo', 1, 'b', 's', 'flagged', 0.7, 20.00625, 1.46600, 18.5, 'wheeze');
INSERT INTO sessions VALUES (9, 70.5, NULL, 'mic', 0, 'b', 's', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO cycles VALUES (4, 1, 1, 0.1000625, 2.4999375, 'breath', 0.5, -40.5, '', 0.123456789, 'wheeze', 1);
INSERT INTO cycles VALUES (4, 2, 1, 2.4999375, 5.0, 'window', 0.0, -90.0, 'too quiet', NULL, NULL, 0);
INSERT INTO timeline VALUES (4, 1, 320100, 'gap', 23456, 'our queue was full');
PRAGMA user_version = 1;
"""

VERSION_2 = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, started_at REAL NOT NULL, ended_at REAL, source TEXT NOT NULL,
    site TEXT NOT NULL, demo INTEGER NOT NULL, bundle TEXT NOT NULL, bundle_name TEXT NOT NULL,
    settings_fingerprint TEXT NOT NULL, settings TEXT NOT NULL, not_validated TEXT NOT NULL,
    verdict TEXT, probability REAL, heard_samples INTEGER, missing_samples INTEGER, dropped_samples INTEGER,
    gradable_samples INTEGER, reasons TEXT
);
CREATE TABLE cycles (
    session INTEGER NOT NULL REFERENCES sessions(id), number INTEGER NOT NULL, demo INTEGER NOT NULL,
    start_sample INTEGER NOT NULL, end_sample INTEGER NOT NULL, kind TEXT NOT NULL, rhythm REAL NOT NULL,
    level_dbfs REAL NOT NULL, reason TEXT NOT NULL, quality TEXT NOT NULL, probability REAL, class TEXT,
    flag INTEGER NOT NULL, inference_seconds REAL, audio TEXT NOT NULL, PRIMARY KEY (session, number)
);
CREATE TABLE timeline (
    session INTEGER NOT NULL REFERENCES sessions(id), demo INTEGER NOT NULL, sample INTEGER NOT NULL,
    kind TEXT NOT NULL, missing_samples INTEGER NOT NULL, note TEXT NOT NULL
);
CREATE INDEX timeline_of_session ON timeline (session);
INSERT INTO sessions VALUES (4, 1.5, 60.5, 'mic', '', 0, 'b', 'n', 's', '{}', '', 'flagged', 0.7, 9, 0, 0, 9, 'wheeze');
INSERT INTO cycles VALUES (4, 1, 0, 0, 9, 'breath', 0.5, -40.5, '', '{}', 0.5, 'wheeze', 1, 0.01, 'kept');
PRAGMA user_version = 2;
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    return heard(Classifier(read_bundle(make_bundle(tmp_path_factory.mktemp("store") / "bundle"))))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "below" / "store.sqlite"


def rows(file: Path, query: str) -> list[Any]:
    with sqlite3.connect(file) as database:
        return database.execute(query).fetchall()


def keep(heard: Heard, store: Store | Recorder) -> None:
    for cycle in heard[0]:
        store.add(cycle)
    for entry in heard[1]:
        store.add(entry)
    store.end(heard[2])


def intact(file: Path) -> bool:
    return rows(file, "PRAGMA integrity_check") == [("ok",)]


# what is kept


def test_everything_is_kept_and_demo_stands_on_every_row(file: Path, demo: Heard) -> None:
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


def test_sessions_follow_each_other_in_one_file(file: Path, demo: Heard) -> None:
    for _ in range(2):
        store = Store(beginning(file, demo=False))
        keep(demo, store)
        store.close()
    held = rows(file, "SELECT session, count(*), max(demo) FROM cycles GROUP BY session")
    assert held == [(1, len(demo[0]), 0), (2, len(demo[0]), 0)]


def test_the_file_is_written_ahead_and_synchronously(file: Path) -> None:
    store = Store(beginning(file))
    names = ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
    pragmas = [store._database.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    store.close()
    assert pragmas == ["wal", 2, 1, 1]
    assert rows(file, "PRAGMA user_version") == [(3,)]


def test_a_jump_of_the_clock_changes_no_sample(file: Path, demo: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = for_ever([2.1e9, 5.0])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    for _ in range(2):
        store = Store(beginning(file))
        keep(demo, store)
        store.close()
    (first, second) = ([row[1:] for row in rows(file, f"SELECT * FROM cycles WHERE session = {n}")] for n in (1, 2))
    assert first == second
    assert rows(file, "SELECT ended_at < started_at FROM sessions WHERE id = 1") == [(1,)]


# files of other times and other programs


def test_a_file_of_version_1_is_migrated_to_what_a_new_one_is(file: Path, tmp_path: Path, demo: Heard) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as database:
        database.executescript(VERSION_1)
    database.close()
    new = Store(beginning(file))
    keep(demo, new)
    new.close()
    Store(beginning(tmp_path / "fresh.sqlite")).close()
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    assert rows(file, schema) == rows(tmp_path / "fresh.sqlite", schema)
    assert rows(file, "PRAGMA user_version") == [(3,)]
    old = "SELECT id, started_at, ended_at, source, demo, settings_fingerprint, settings, verdict, probability, "
    account = "heard_samples, missing_samples, dropped_samples, gradable_samples, reasons FROM sessions WHERE id < 10"
    assert rows(file, old + account) == [
        (4, 1.5, 60.5, "demo", 1, "s", "", "flagged", 0.7, 320_100, 23_456, 0, 296_000, "wheeze"),
        (9, 70.5, None, "mic", 0, "s", "", None, None, None, None, None, None, None),
    ]
    assert rows(file, "SELECT * FROM cycles WHERE session = 4") == [
        (4, 1, 1, 1601, 39_999, "breath", 0.5, -40.5, "", "{}", 0.123456789, "wheeze", 1, None, "", None),
        (4, 2, 1, 39_999, 80_000, "window", 0.0, -90.0, "too quiet", "{}", None, None, 0, None, "", None),
    ]
    assert rows(file, "SELECT * FROM timeline WHERE session = 4") == [
        (4, 1, 320_100, "gap", 23_456, "our queue was full")
    ]
    assert rows(file, "SELECT max(id), count(*) FROM sessions") == [(10, 3)]
    assert rows(file, "PRAGMA foreign_key_check") == []


def test_a_file_of_version_2_is_migrated_and_says_nothing_of_spans_and_stretches(
    file: Path, tmp_path: Path, demo: Heard
) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as database:
        database.executescript(VERSION_2)
    database.close()
    new = Store(beginning(file))
    keep(demo, new)
    new.close()
    Store(beginning(tmp_path / "fresh.sqlite")).close()
    for table in ("sessions", "cycles", "timeline"):
        columns = f"SELECT name, type, \"notnull\", pk FROM pragma_table_info('{table}')"
        assert rows(file, columns) == rows(tmp_path / "fresh.sqlite", columns)
    assert rows(file, "PRAGMA user_version") == [(3,)]
    assert rows(file, "SELECT context_start_sample, audio, probability FROM cycles WHERE session = 4") == [
        (None, "kept", 0.5)
    ]
    assert rows(file, "SELECT verdict, stretches, stretches_flagged FROM sessions") == [
        ("flagged", None, None),
        (demo[2].verdict, demo[2].stretches, demo[2].stretches_flagged),
    ]


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 7", "CREATE TABLE recipes (name)"])
def test_a_database_of_another_version_or_program_is_left_alone(file: Path, statement: str) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as database:
        database.execute(statement)
    database.close()
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"schema 7, this one reads 3|another program"):
        Store(beginning(file))
    assert file.read_bytes() == before
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def write_text(file: Path) -> None:
    file.write_text("this is not a database, but long enough to be looked at as one" * 100)


def overwrite_pages(file: Path) -> None:
    with file.open("r+b") as database:
        database.seek(4096)
        database.write(b"\xa5" * 8192)


@pytest.mark.parametrize("damage", [write_text, overwrite_pages])
def test_a_damaged_file_is_set_aside_with_what_belongs_to_it_and_reported(
    file: Path, demo: Heard, damage: Callable[[Path], object]
) -> None:
    store = Store(beginning(file, audio=True))
    keep(demo, store)
    store.close()
    damage(file)
    broken, logged = file.read_bytes(), b"what the last process left"
    file.with_name("store.sqlite-wal").write_bytes(logged)
    sound = sum(one.bytes for one in AudioStore(file).kept())
    warnings = list[str]()
    recorder = Recorder(lambda: Store(beginning(file)), warnings.append)
    keep(demo, recorder)
    (aside,) = [one for one in file.parent.glob("store.sqlite.damaged-*") if one.name.endswith("Z")]
    (warning,) = warnings
    assert str(file) in warning and str(aside) in warning and "\n" not in warning
    assert aside.read_bytes() == broken
    assert sum(one.bytes for one in AudioStore(aside).kept()) == sound > 0
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


def test_without_a_store_nothing_is_written_and_nothing_said(demo: Heard) -> None:
    warnings = list[str]()
    keep(demo, Recorder(None, warnings.append))
    assert not warnings


def test_a_locked_store_is_one_warning_and_storing_resumes(
    file: Path, demo: Heard, monkeypatch: pytest.MonkeyPatch
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
    assert "database is locked" in warning and "listening goes on" in warning
    other.execute("COMMIT")
    other.close()
    recorder.add(next(numbered))
    recorder.end(demo[2])
    assert len(warnings) == 2
    assert "stored again; 5 cycles and 0 timeline entries not kept" in warnings[1]
    assert rows(file, "SELECT number FROM cycles") == [(1,), (7,)]
    ((kind, sample, note),) = rows(file, "SELECT kind, sample, note FROM timeline")
    assert (kind, sample) == ("unstored", demo[0][1].start_sample)
    assert note.startswith("5 cycles and 0 timeline entries not kept: ") and "locked" in note


def test_while_it_fails_it_is_tried_only_now_and_then(file: Path, demo: Heard) -> None:
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


def test_a_disk_that_comes_later_has_the_session_from_its_real_start(file: Path, demo: Heard) -> None:
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


def test_a_full_disk_is_one_warning_and_storing_resumes_when_there_is_room(small_disk: Path, demo: Heard) -> None:
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
    assert [one.path for one in sorted(audio.kept())] == [audio.path(1, number) for number in kept], "and no half file"
    assert all(audio.read(1, number).size for number in kept)


def test_a_file_that_may_not_grow_is_one_warning_and_storing_resumes(file: Path) -> None:
    done = python("limit", file)
    warnings = json.loads(done)
    assert len(warnings) == 2
    assert "listening goes on" in warnings[0] and "stored again" in warnings[1]
    kept = [number for (number,) in rows(file, "SELECT number FROM cycles")]
    assert 10 < len(kept) < 3000
    assert kept[-10:] == list(range(3001, 3011))
    assert f"{3010 - len(kept)} cycles and 0 timeline entries not kept" in warnings[1]
    assert intact(file)


def test_a_read_only_store_is_one_warning(small_disk: Path, demo: Heard) -> None:
    file = small_disk / "store.sqlite"
    store = Store(beginning(file))
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    warnings = list[str]()
    keep(demo, Recorder(lambda: Store(beginning(file)), warnings.append, retry_seconds=0.0))
    (warning,) = warnings
    assert "read" in warning and "listening goes on" in warning
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


# sound


def on_the_grid(samples: int = 3001) -> FloatArray:
    whole = np.random.default_rng(1).integers(-INT24, INT24, samples)
    whole[:6] = -INT24, INT24 - 1, 0, 1, -1, -INT24 + 1
    return (whole / INT24).astype(np.float32)


def bits(samples: FloatArray) -> bytes:
    return (samples + np.float32(0.0)).tobytes()  # integers have no minus zero, and no sum hears it


def test_sound_comes_back_bit_for_bit(file: Path, demo: Heard) -> None:
    audio = AudioStore(file)
    for number, samples in zip(count(1), [on_the_grid(), *(one.samples for one in demo[0])], strict=False):
        audio.keep(1, number, samples)
        assert bits(audio.read(1, number)) == bits(samples)


def test_sound_is_kept_only_when_it_is_asked_for(file: Path, demo: Heard) -> None:
    for asked in (False, True):
        store = Store(beginning(file, audio=asked))
        keep(demo, store)
        store.close()
    audio = AudioStore(file)
    assert not audio.kept(1)
    for one in demo[0]:
        assert bits(audio.read(2, one.number)) == bits(one.samples)
    assert rows(file, "SELECT DISTINCT session, audio FROM cycles") == [(1, ""), (2, "kept")]
    assert audio.folder.stat().st_mode & 0o077 == 0, "a patient's sound is nobody else's"


def aged(one: Path, days: float) -> None:
    os.utime(one, (time.time() - 86_400 * days,) * 2)


def test_sound_that_is_too_old_is_removed_and_its_rows_stay(file: Path, demo: Heard) -> None:
    first = Store(beginning(file, audio=True))
    keep(demo, first)
    first.close()
    audio = AudioStore(file)
    aged(audio.path(1, 1), 31)
    aged(audio.path(1, 2), 29)
    os.utime(audio.path(1, 3), (1000.0, 1000.0))  # a clock that was not set yet says nothing about the age
    Store(beginning(file, audio_days=30.0)).close()
    assert [one.number for one in sorted(audio.kept(1))] == [one.number for one in demo[0]][1:]
    assert rows(file, "SELECT number, audio FROM cycles LIMIT 3") == [(1, "deleted"), (2, "kept"), (3, "kept")]


def test_a_session_that_was_deleted_meanwhile_keeps_no_sound(file: Path, demo: Heard) -> None:
    warnings = list[str]()
    recorder = Recorder(lambda: Store(beginning(file, audio=True)), warnings.append)
    recorder.add(demo[0][0])
    delete_session(file, 1)
    recorder.add(demo[0][1])
    recorder.end(demo[2])
    assert len(warnings) == 1
    assert not AudioStore(file).kept()
    assert [rows(file, f"SELECT * FROM {table}") for table in ("sessions", "cycles", "timeline")] == [[], [], []]


def test_beyond_its_size_the_oldest_sound_goes_while_listening(
    file: Path, demo: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RETENTION_CYCLES", 5)
    earlier = Store(beginning(file, audio=True))
    earlier.add(demo[0][0])
    earlier.close()
    foreign = AudioStore(file).folder / "1" / "notes.txt"
    foreign.write_text("not ours")
    store = Store(beginning(file, audio=True, audio_megabytes=0.5))
    for one in zip(endless(demo[0]), range(43), strict=False):
        store.add(one[0])
    store.close()
    audio = AudioStore(file)
    kept = sorted(audio.kept())
    assert {one.session for one in kept} == {2}
    assert [one.number for one in kept] == list(range(kept[0].number, 44)), "the oldest are gone"
    # five cycles may come between two looks
    assert 0.3e6 < sum(one.bytes for one in kept) <= 0.5e6 + 5 * max(one.bytes for one in kept)
    assert rows(file, "SELECT count(*) FROM cycles WHERE audio = 'deleted'") == [(44 - len(kept),)]
    assert foreign.read_text() == "not ours"


def test_what_kill_9_left_unfinished_is_removed_with_the_rest(file: Path) -> None:
    audio = AudioStore(file)
    audio.keep(1, 1, on_the_grid())
    (unfinished := audio.path(1, 2).with_suffix(".part")).write_bytes(b"half")
    audio.remove(audio.surplus(time.time(), 30.0, 0.0))
    assert not unfinished.exists()
    assert not audio.path(1, 1).parent.exists()
