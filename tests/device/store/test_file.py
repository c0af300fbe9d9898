"""The store's file and the sound beside it: whatever becomes of them, nothing of another session is touched."""

import fcntl
import io
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device.capture.timeline import Entry
from device.listening.cycle import CycleResult
from device.store.audio import AudioStore
from device.store.database import StoreError, set_aside
from device.store.recorder import Recorder, Store, trusted_time
from device.store.replay import replay
from device.store.sessions import SESSIONS, delete_session, export_session, list_sessions, read_session
from device.verdict.summary import Summary
from firmware_config.settings import SettingsError, load_settings
from tests.device.storing import Certain, beginning, endless, heard

Heard = tuple[list[CycleResult], list[Entry], Summary]


@pytest.fixture(scope="module")
def demo() -> Heard:
    return heard(Certain())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.sqlite"


def rows(file: Path, query: str) -> list[Any]:
    with sqlite3.connect(file) as database:
        return database.execute(query).fetchall()


def recorder(file: Path, warnings: list[str]) -> Recorder:
    return Recorder(lambda: Store(beginning(file, audio=True)), warnings.append, retry_seconds=0.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def remove(file: Path) -> None:
    file.unlink()


def remove_with_its_log(file: Path) -> None:
    for one in file.parent.glob(f"{file.name}*"):
        if one.is_file():
            one.unlink()


def remove_the_folder(file: Path) -> None:
    shutil.rmtree(file.parent)


def move(file: Path) -> None:
    file.rename(file.with_name("moved.sqlite"))


def move_the_folder(file: Path) -> None:
    file.parent.rename(file.parent.with_name("moved"))


def restore_a_backup(file: Path) -> None:
    """Another database takes its place, as rsync and tar put it there: under the name, with the same session number."""
    other = file.parent.with_name("backup") / file.name
    store = Store(beginning(other, audio=True))
    store.close()
    other.replace(file)


def restore_a_backup_in_use(file: Path) -> None:
    """The same with the backup's own log beside it: the copy of a database that was being written."""
    other = file.parent.with_name("backup") / file.name
    store = Store(beginning(other, audio=True))
    copies = []
    for one in list(other.parent.glob(f"{other.name}*")):
        if one.is_file():
            copies.append(Path(shutil.copy(one, f"{one}.copy")))
    for copy in copies:
        copy.replace(file.with_name(copy.name.removesuffix(".copy")))
    store.close()


def lose_its_rows(file: Path) -> None:
    """What sqlite3's .restore does: the same file with the content of another time."""
    with sqlite3.connect(file) as database:
        for table in ("cycles", "timeline", "sessions", "meta"):
            database.execute(f"DELETE FROM {table}")
    database.close()


FATES = [
    remove,
    remove_with_its_log,
    remove_the_folder,
    move,
    move_the_folder,
    restore_a_backup,
    restore_a_backup_in_use,
    lose_its_rows,
]


@pytest.mark.parametrize("fate", FATES)
def test_a_store_that_goes_while_it_is_written_is_told_and_stored_into_anew(
    file: Path, demo: Heard, fate: Callable[[Path], None]
) -> None:
    warnings: list[str] = []
    recording = recorder(file, warnings)
    numbered = endless(demo[0])
    for _ in range(3):
        recording.add(next(numbered))
    fate(file)
    for _ in range(4):
        recording.add(next(numbered))
    recording.end(demo[2])
    gone, again = warnings
    assert "deleted, moved or replaced" in gone and "listening goes on" in gone and "\n" not in gone
    assert "stored again; 1 cycles" in again
    session = rows(file, "SELECT max(id) FROM sessions WHERE verdict IS NOT NULL")[0][0]
    assert rows(file, f"SELECT number FROM cycles WHERE session = {session}") == [(5,), (6,), (7,)]
    ((note,),) = rows(file, f"SELECT note FROM timeline WHERE session = {session} AND kind = 'unstored'")
    assert note.startswith("1 cycles and 0 timeline entries not kept: ")
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]
    audio = AudioStore(file)
    assert [one.number for one in sorted(audio.kept(session))] == [5, 6, 7]


@pytest.mark.parametrize("fate", FATES)
def test_a_store_that_goes_at_the_very_end_leaves_the_verdict(
    file: Path, demo: Heard, fate: Callable[[Path], None]
) -> None:
    warnings: list[str] = []
    recording = recorder(file, warnings)
    recording.add(demo[0][0])
    fate(file)
    recording.end(demo[2])
    assert len(warnings) == 2
    assert (demo[2].verdict,) in rows(file, "SELECT verdict FROM sessions")


@pytest.mark.parametrize("fate", [restore_a_backup, restore_a_backup_in_use, remove, lose_its_rows])
def test_the_sound_of_another_session_is_never_written_over_or_deleted(
    file: Path, demo: Heard, fate: Callable[[Path], None]
) -> None:
    recording = recorder(file, [])
    numbered = endless(demo[0])
    recording.add(next(numbered))
    fate(file)
    folder = AudioStore(file).folder
    shutil.rmtree(folder, ignore_errors=True)
    other = AudioStore(file, "the owner of the backup")
    for number in range(1, 9):
        other.keep(1, number, demo[0][0].samples[:1000])
    before = contents(folder / "1")
    for _ in range(6):
        recording.add(next(numbered))
    recording.end(demo[2])
    assert contents(folder / "1") == before
    assert len(sorted(AudioStore(file).kept(2))) == 5


def test_a_failed_write_deletes_no_sound_of_another_device(file: Path, demo: Heard) -> None:
    one = Store(beginning(file, audio=True))
    # what a second device has kept in the same place
    other = AudioStore(file, "another device")
    other.keep(1, demo[0][0].number, demo[0][0].samples)
    before = contents(other.folder)
    with pytest.raises(StoreError, match="another session"):
        one.add(demo[0][0])
    one.close()
    assert contents(other.folder) == before


def test_a_second_device_does_not_write_into_what_the_first_set_aside(file: Path, demo: Heard) -> None:
    warnings: list[str] = []
    second = recorder(file, warnings)
    numbered = endless(demo[0])
    second.add(next(numbered))
    set_aside(file)
    first = Store(beginning(file, audio=True))
    first.add(demo[0][0])
    sound = contents(first.audio.folder / str(first.session))
    for _ in range(3):
        second.add(next(numbered))
    second.end(demo[2])
    first.add(demo[0][1])
    first.close()
    assert sound.items() <= contents(first.audio.folder / str(first.session)).items()
    assert rows(file, "SELECT session, number FROM cycles ORDER BY session, number") == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]


def test_numbers_of_a_database_that_is_gone_are_not_given_again(file: Path, demo: Heard) -> None:
    first = Store(beginning(file, audio=True))
    first.add(demo[0][0])
    first.close()
    file.unlink()
    second = Store(beginning(file, audio=True))
    second.add(demo[0][0])
    second.close()
    assert second.session == 2
    assert {one.session for one in AudioStore(file).kept()} == {1, 2}


def test_sound_of_another_session_is_neither_replayed_nor_deleted(file: Path, demo: Heard) -> None:
    store = Store(beginning(file, audio=True))
    store.add(demo[0][0])
    store.close()
    shutil.rmtree(store.audio.folder)
    other = AudioStore(file, "another")
    other.keep(1, 1, demo[0][0].samples)
    with pytest.raises(StoreError, match="another session"):
        replay(file, 1)
    delete_session(file, 1)
    assert other.path(1, 1).exists()


@pytest.fixture
def deleted_while_it_runs(file: Path, demo: Heard) -> Iterator[tuple[Recorder, list[str]]]:
    warnings: list[str] = []
    recording = recorder(file, warnings)
    recording.add(demo[0][0])
    delete_session(file, 1)
    yield recording, warnings


def test_a_session_that_is_deleted_while_it_runs_is_told_so_once(
    deleted_while_it_runs: tuple[Recorder, list[str]], file: Path, demo: Heard
) -> None:
    recording, warnings = deleted_while_it_runs
    for cycle in demo[0]:
        recording.add(cycle)
    recording.end(demo[2])
    (warning,) = warnings
    assert "session 1 was deleted while it listens; nothing more of it is kept" in warning
    assert "FOREIGN" not in warning and "disk" not in warning
    assert not AudioStore(file).kept()


def open_to_others(folder: Path) -> list[str]:
    return [str(one) for one in [folder, *folder.rglob("*")] if one.stat().st_mode & 0o077]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_all_that_is_stored_is_its_user_s_alone(
    tmp_path: Path, demo: Heard, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = os.umask(umask)
    try:
        for file in (Path(""), tmp_path / "new" / "store.sqlite"):
            start = beginning(file, audio=True)
            if not file.name:
                start = replace(start, settings=load_settings(environment={}, flags={"store.audio": True}))
            store = Store(start)
            store.add(demo[0][0])
            assert len(open_to_others(store.file.parent)) == 0, "while it is written"
            store.close()
            assert len(open_to_others(store.file.parent)) == 0
            set_aside(store.file)
            Store(start).close()
            assert len(open_to_others(store.file.parent)) == 0
    finally:
        os.umask(before)


def test_what_an_older_version_left_open_to_all_is_closed(file: Path, demo: Heard) -> None:
    store = Store(beginning(file, audio=True))
    store.add(demo[0][0])
    copies = {one: Path(shutil.copy(one, f"{one}.x")) for one in file.parent.glob("store.sqlite*") if one.is_file()}
    store.close()
    for one, copy in copies.items():
        copy.replace(one)  # as after a power cut, with its log
        one.chmod(0o644)
    file.parent.chmod(0o755)
    store.audio.folder.chmod(0o755)
    again = Store(beginning(file, audio=True))
    again.add(demo[0][0])
    assert open_to_others(file.parent) == []
    again.close()
    assert rows(file, "SELECT count(*) FROM cycles") == [(2,)]


def test_a_folder_that_others_use_too_keeps_its_mode(file: Path) -> None:
    file.parent.mkdir(mode=0o755)
    (file.parent / "another program's").touch()
    file.parent.chmod(0o755)
    Store(beginning(file)).close()
    assert file.parent.stat().st_mode & 0o777 == 0o755
    assert file.stat().st_mode & 0o077 == 0


# a clock that jumps


DAY = 86_400.0


@pytest.mark.parametrize(
    ("began", "now", "trusted"),
    [
        ([0.0, 1.0, 2.0], 2.1, 2.1),  # day by day
        ([0.0, 1.0], 41.0, 1.0),  # 40 days ahead
        ([0.0, 1.0, 41.0, 41.01], 41.02, 1.0),  # and for a whole morning
        ([0.0, 1.0, 41.0, 42.5], 42.6, 42.6),  # it has stood: the device was put away
        ([0.0, 1.0, 41.0], 1.1, 1.0),  # back again
        ([0.0, 1.0, 41.0, 1.1], 41.1, 1.1),  # ahead at every start, until the network sets it
        ([0.0, 1.0, 41.0], 81.0, 1.0),  # ahead and further ahead
        ([], 5.0, 5.0),
    ],
)
def test_sound_ages_by_a_clock_that_did_not_jump(began: list[float], now: float, trusted: float) -> None:
    assert trusted_time([DAY * at for at in began], DAY * now) == DAY * trusted


@pytest.mark.parametrize("days", [40, 4000])
def test_a_clock_that_is_ahead_deletes_no_sound(
    file: Path, demo: Heard, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Store(beginning(file, audio=True))
    for cycle in demo[0]:
        first.add(cycle)
    first.close()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + days * DAY)
    for _ in range(4):  # the sites of an exam
        again = Store(replace(beginning(file, audio=True), started_at=time.time()))
        again.close()
        assert f"the clock jumped by {days} days; {len(demo[0])} cycles' sound" in again.warning
    assert len(AudioStore(file).kept(1)) == len(demo[0])
    assert rows(file, "SELECT DISTINCT audio FROM cycles") == [("kept",)]
    monkeypatch.setattr(time, "time", lambda: now + (days + 1.5) * DAY)
    Store(replace(beginning(file, audio=True), started_at=time.time())).close()
    assert AudioStore(file).kept(1) == []


# other obstacles


def test_a_folder_that_another_process_holds_is_one_warning(file: Path, demo: Heard) -> None:
    file.parent.mkdir()
    holder = os.open(file.parent, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    warnings: list[str] = []
    began = time.monotonic()
    recording = recorder(file, warnings)
    assert time.monotonic() - began < 5.0
    (warning,) = warnings
    assert "another process holds a lock" in warning and "listening goes on" in warning
    os.close(holder)
    recording.add(demo[0][0])
    recording.end(demo[2])
    assert "stored again" in warnings[1]


@pytest.mark.parametrize(
    ("name", "site"), [(b"caf\xe9.sqlite", ""), (b"\xff\xfe", ""), (b"store.sqlite", os.fsdecode(b"r\xfccken"))]
)
def test_bytes_that_are_no_text_are_one_warning_and_listening_goes_on(
    tmp_path: Path, demo: Heard, name: bytes, site: str
) -> None:
    file = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    warnings: list[str] = []
    recording = Recorder(lambda: Store(beginning(file, site=site)), warnings.append, retry_seconds=0.0)
    recording.add(demo[0][0])
    recording.end(demo[2])
    (warning,) = warnings
    assert "not UTF-8" in warning and "listening goes on" in warning
    warning.encode()


def test_a_user_without_a_home_listens_unstored_and_is_told_what_to_set(
    demo: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    settings = load_settings(environment={})
    for section, folder in ((settings.store, "file"), (settings.training, "folder"), (settings.bundle, "engines")):
        with pytest.raises(SettingsError, match="this user has no home folder; set "):
            getattr(section, folder)
    warnings: list[str] = []
    start = replace(beginning(Path("unused")), settings=settings)
    recording = Recorder(lambda: Store(start), warnings.append)
    recording.add(demo[0][0])
    recording.end(demo[2])
    (warning,) = warnings
    assert "set store.path" in warning and "listening goes on" in warning


# a long history


def test_what_is_counted_is_what_is_there_and_nothing_long_is_read(file: Path, demo: Heard) -> None:
    for _ in range(2):
        store = Store(beginning(file, audio=True))
        for cycle in demo[0]:
            store.add(cycle)
        store.close()
    with sqlite3.connect(file) as database:
        database.execute("UPDATE cycles SET audio = 'deleted', flag = 1 WHERE session = 2 AND number < 3")
        database.execute("DELETE FROM cycles WHERE session = 1 AND number = 1")
    database.close()
    counted = "SELECT session, count(*), count(probability), sum(flag), sum(audio = 'kept') FROM cycles GROUP BY 1"
    whole = rows(file, counted)
    assert rows(file, "SELECT * FROM totals") == whole
    listed = [
        (one["id"], one["cycles"], one["graded"], one["flagged"], one["with_audio"]) for one in list_sessions(file)
    ]
    assert listed == whole
    plan = " ".join(row[-1] for row in rows(file, f"EXPLAIN QUERY PLAN {SESSIONS} ORDER BY id"))
    assert "cycles" not in plan
    # a file of before: what is missing is made of what is there
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE totals")
        for name in ("cycle_added", "cycle_changed", "cycle_removed"):
            database.execute(f"DROP TRIGGER {name}")
    database.close()
    assert [one["cycles"] for one in list_sessions(file)] == [one[1] for one in whole]
    delete_session(file, 1)
    assert rows(file, "SELECT session FROM totals") == [(2,)]


def test_neither_a_session_nor_its_page_reads_through_the_history(
    file: Path, demo: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(beginning(file))
    said: list[str] = []
    connect = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*arguments, **options)
        database.set_trace_callback(said.append)
        return database

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", traced)
        store.close()
        store = Store(beginning(file))
        for cycle in demo[0]:
            store.add(cycle)
        for entry in demo[1]:
            store.add(entry)
        store.end(demo[2])
        store.close()
        assert len(read_session(file, 2)["cycles"]) == len(demo[0])
        delete_session(file, 2)
    asked = [one for one in said if one.startswith(("SELECT", "UPDATE", "DELETE"))]
    plans = {row[-1] for one in asked for row in rows(file, f"EXPLAIN QUERY PLAN {one}")}
    assert any(plan.startswith("SEARCH cycles") for plan in plans)
    assert not [plan for plan in plans if re.match("SCAN (cycles|timeline|totals)", plan)]


def test_the_check_at_the_start_takes_no_longer_than_it_may(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(beginning(file)).close()
    with sqlite3.connect(file) as database:
        database.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) INSERT INTO timeline "
            "SELECT 1, 1, i, 'rate', 0, 'a note of some length, so that there are many pages' FROM n"
        )
    database.close()
    monkeypatch.setattr("device.store.database.CHECK_SECONDS", 0.0)
    monkeypatch.setattr("device.store.database.CHECK_STEPS", 1)
    store = Store(beginning(file))
    assert (store.warning, store.session) == ("", 2)
    store.close()


def test_damage_that_is_met_only_later_is_set_aside_then(
    file: Path, demo: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    recording = recorder(file, warnings)
    numbered = endless(demo[0])
    recording.add(next(numbered))
    with pytest.MonkeyPatch.context() as patch:

        def broken(self: Store, cycle: CycleResult) -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

        patch.setattr(Store, "_add_cycle", broken)
        recording.add(next(numbered))
    for _ in range(2):
        recording.add(next(numbered))
    recording.end(demo[2])
    assert len(list(file.parent.glob("store.sqlite.damaged-*Z"))) == 1
    assert "is damaged" in warnings[0] and len(warnings) == 2
    assert rows(file, "SELECT number FROM cycles") == [(3,), (4,)]


def test_the_csv_of_a_session_without_cycles_has_the_header_of_any_other(file: Path, demo: Heard) -> None:
    heads = []
    for cycles in (demo[0], []):
        store = Store(beginning(file))
        for cycle in cycles:
            store.add(cycle)
        store.close()
        out = io.StringIO()
        export_session(read_session(file, store.session), "csv", out)
        heads.append(out.getvalue().splitlines()[0])
    assert heads[0] == heads[1] and "," in heads[0]
    assert len(out.getvalue().splitlines()) == 1
    with pytest.raises(StoreError, match="ended before its first cycle"):
        replay(file, 2)
