"""What is kept survives kill -9; what cannot be kept costs one warning and no cycle."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device.bundle import open_bundle
from device.classifier import Classifier
from device.live import Auscultation
from device.sources import DemoSource
from device.store import Recorder, Store, StoreError
from firmware_config.settings import load_settings
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Auscultation:
    """A finished demo."""
    classifier = Classifier(open_bundle(make_bundle(tmp_path_factory.mktemp("store") / "bundle")))
    session = Auscultation(DemoSource(7, 12.0, fast=True), classifier, load_settings(environment={}).quality)
    assert list(session.run())
    return session


def opened(file: Path, demo: bool = True) -> Store:
    return Store(file, "demo", demo, "bundle-hash", "settings-hash")


def rows(file: Path, query: str) -> list[Any]:
    with sqlite3.connect(file) as database:
        return database.execute(query).fetchall()


def keep(session: Auscultation, store: Store | Recorder) -> None:
    for result in session.results:
        store.add(result)
    for entry in session.timeline.entries:
        store.add(entry)
    store.end(session.summary)


def test_everything_is_kept_and_demo_stands_on_every_row(tmp_path: Path, session: Auscultation) -> None:
    file = tmp_path / "below" / "store.sqlite"
    store = opened(file)
    keep(session, store)
    store.close()
    summary = session.summary
    ((started, ended, *known),) = rows(
        file, "SELECT started_at, ended_at, source, demo, bundle, settings, verdict, probability FROM sessions"
    )
    assert known == ["demo", 1, "bundle-hash", "settings-hash", summary.verdict, summary.probability]
    assert 0 <= ended - started < 60
    kept = rows(file, "SELECT session, number, start_seconds, end_seconds, kind, probability, class, flag FROM cycles")
    assert kept == [
        (1, one.number, one.start_seconds, one.end_seconds, one.kind, *answer(one), one.flagged)
        for one in session.results
    ]
    assert rows(file, "SELECT kind, sample FROM timeline") == [("start", 0), ("end", 12 * 16_000)]
    for table in ("sessions", "cycles", "timeline"):
        assert rows(file, f"SELECT DISTINCT demo FROM {table}") == [(1,)]


def answer(result: Any) -> tuple[float, str]:
    return result.judgement.probability, result.judgement.label


def test_sessions_follow_each_other_in_one_file(tmp_path: Path, session: Auscultation) -> None:
    file = tmp_path / "store.sqlite"
    for _ in range(2):
        store = opened(file, demo=False)
        keep(session, store)
        store.close()
    assert rows(file, "SELECT session, count(*), max(demo) FROM cycles GROUP BY session") == [
        (1, len(session.results), 0),
        (2, len(session.results), 0),
    ]


def test_the_file_is_written_ahead_and_synchronously(tmp_path: Path) -> None:
    store = opened(tmp_path / "store.sqlite")
    pragmas = {
        name: store._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    }
    store.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}
    assert rows(tmp_path / "store.sqlite", "PRAGMA user_version") == [(1,)]


def test_a_store_of_another_version_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 7")
    before = file.read_bytes()
    with pytest.raises(StoreError, match="schema 7, this one reads 1"):
        opened(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("obstacle", ["file in the path", "folder in its place", "no database"])
def test_a_store_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path, obstacle: str) -> None:
    file = tmp_path / "below" / "store.sqlite"
    if obstacle == "file in the path":
        file.parent.touch()
    elif obstacle == "folder in its place":
        file.mkdir(parents=True)
    else:
        file.parent.mkdir()
        file.write_text("this is not a database, but long enough to be looked at as one" * 100)
    with pytest.raises(StoreError) as caught:
        opened(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def fill_up(store: Store) -> None:
    """A full disk, as SQLite sees it: no page more than there are."""
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another program that holds the store."""
    opened(tmp_path / "store.sqlite").close()
    other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
    yield other
    other.close()


def test_a_full_disk_costs_one_warning_and_what_was_kept_stays(tmp_path: Path, session: Auscultation) -> None:
    file, warnings = tmp_path / "store.sqlite", list[str]()
    store = opened(file)
    recorder = Recorder(lambda: store, warnings.append)
    recorder.add(session.results[0])
    fill_up(store)
    for _ in range(200):
        for number, result in enumerate(session.results[1:], 2):
            assert number == result.number
            recorder.add(result)
        if warnings:
            break
        store.session += 1
    recorder.end(session.summary)
    (warning,) = warnings
    assert str(file) in warning
    assert "listening goes on" in warning
    assert rows(file, "SELECT number FROM cycles WHERE session = 1")[0] == (1,)
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]


def test_a_locked_store_costs_one_warning(tmp_path: Path, session: Auscultation, lock: sqlite3.Connection) -> None:
    warnings = list[str]()
    recorder = Recorder(lambda: opened(tmp_path / "store.sqlite"), warnings.append)
    lock.execute("BEGIN IMMEDIATE")
    keep(session, recorder)
    (warning,) = warnings
    assert "database is locked" in warning
    late = list[str]()
    Recorder(lambda: opened(tmp_path / "store.sqlite"), late.append)
    assert len(late) == 1


def test_without_a_store_nothing_is_written_and_nothing_said(session: Auscultation) -> None:
    warnings = list[str]()
    keep(session, Recorder(None, warnings.append))
    assert not warnings


def test_a_committed_cycle_survives_kill_9(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
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
    after = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-after"))
    kept = rows(after / file.name, "SELECT number, start_seconds, class, demo FROM cycles")
    assert [(number, round(start, 3), name) for number, start, name, _ in kept][:2] == [
        (one["number"], one["start"], one["class"]) for one in shown
    ]
    assert {demo for *_, demo in kept} == {1}
    assert rows(file, "SELECT ended_at FROM sessions") == [(None,)]
    # and the next session goes on in the same file
    opened(file).close()
    assert rows(file, "SELECT count(*) FROM sessions") == [(2,)]
