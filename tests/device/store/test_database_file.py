"""The store's file and the sound beside it: whatever becomes of them, nothing of another session is touched."""

import fcntl
import io
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from device.listening.cycle import CycleResult
from device.store.audio import AudioStore
from device.store.database import StoreError, set_aside
from device.store.recorder import Recorder, Store
from device.store.replay import replay
from device.store.sessions import delete_session, export_session, read_session
from firmware_config.settings import SettingsError, load_settings
from tests.device.store.fates import lose_its_rows, remove, restore_a_backup, restore_a_backup_in_use
from tests.device.storing import Judged, beginning, endless, rows


def recorder(file: Path, warnings: list[str]) -> Recorder:
    return Recorder(lambda: Store(beginning(file, audio=True)), warnings.append, retry_seconds=0.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


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
    file: Path, demo: Judged, fate: Callable[[Path], None]
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
    assert "deleted, moved or replaced" in gone and "listening continues" in gone and "\n" not in gone
    assert "stored again; 1 cycles" in again
    session = rows(file, "SELECT max(id) FROM sessions WHERE verdict IS NOT NULL")[0][0]
    assert rows(file, f"SELECT number FROM cycles WHERE session = {session}") == [(5,), (6,), (7,)]
    ((note,),) = rows(file, f"SELECT note FROM timeline WHERE session = {session} AND kind = 'unstored'")
    assert note.startswith("1 cycles and 0 timeline entries not stored: ")
    assert rows(file, "PRAGMA integrity_check") == [("ok",)]
    audio = AudioStore(file)
    assert [one.number for one in sorted(audio.files(session))] == [5, 6, 7]


@pytest.mark.parametrize("fate", FATES)
def test_a_store_that_goes_at_the_very_end_leaves_the_verdict(
    file: Path, demo: Judged, fate: Callable[[Path], None]
) -> None:
    warnings: list[str] = []
    recording = recorder(file, warnings)
    recording.add(demo[0][0])
    fate(file)
    recording.end(demo[2])
    assert len(warnings) == 2
    assert (demo[2].verdict,) in rows(file, "SELECT verdict FROM sessions")


def test_a_second_device_does_not_write_into_what_the_first_set_aside(file: Path, demo: Judged) -> None:
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


def test_numbers_of_a_database_that_is_gone_are_not_given_again(file: Path, demo: Judged) -> None:
    first = Store(beginning(file, audio=True))
    first.add(demo[0][0])
    first.close()
    file.unlink()
    second = Store(beginning(file, audio=True))
    second.add(demo[0][0])
    second.close()
    assert second.session == 2
    assert {one.session for one in AudioStore(file).files()} == {1, 2}


@pytest.fixture
def deleted_while_it_runs(file: Path, demo: Judged) -> Iterator[tuple[Recorder, list[str]]]:
    warnings: list[str] = []
    recording = recorder(file, warnings)
    recording.add(demo[0][0])
    delete_session(file, 1)
    yield recording, warnings


def test_a_session_that_is_deleted_while_it_runs_is_told_so_once(
    deleted_while_it_runs: tuple[Recorder, list[str]], file: Path, demo: Judged
) -> None:
    recording, warnings = deleted_while_it_runs
    for cycle in demo[0]:
        recording.add(cycle)
    recording.end(demo[2])
    (warning,) = warnings
    assert "session 1 was deleted while it runs; no more of it is stored" in warning
    assert "FOREIGN" not in warning and "disk" not in warning
    assert not AudioStore(file).files()


def open_to_others(folder: Path) -> list[str]:
    return [str(one) for one in [folder, *folder.rglob("*")] if one.stat().st_mode & 0o077]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_all_that_is_stored_is_its_user_s_alone(
    tmp_path: Path, demo: Judged, umask: int, monkeypatch: pytest.MonkeyPatch
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


def test_what_an_older_version_left_open_to_all_is_closed(file: Path, demo: Judged) -> None:
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


# other obstacles


def test_a_folder_that_another_process_holds_is_one_warning(file: Path, demo: Judged) -> None:
    file.parent.mkdir()
    holder = os.open(file.parent, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    warnings: list[str] = []
    began = time.monotonic()
    recording = recorder(file, warnings)
    assert time.monotonic() - began < 5.0
    (warning,) = warnings
    assert "another process holds a lock" in warning and "listening continues" in warning
    os.close(holder)
    recording.add(demo[0][0])
    recording.end(demo[2])
    assert "stored again" in warnings[1]


@pytest.mark.parametrize(
    ("name", "site"), [(b"caf\xe9.sqlite", ""), (b"\xff\xfe", ""), (b"store.sqlite", os.fsdecode(b"r\xfccken"))]
)
def test_bytes_that_are_no_text_are_one_warning_and_listening_goes_on(
    tmp_path: Path, demo: Judged, name: bytes, site: str
) -> None:
    file = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    warnings: list[str] = []
    recording = Recorder(lambda: Store(beginning(file, site=site)), warnings.append, retry_seconds=0.0)
    recording.add(demo[0][0])
    recording.end(demo[2])
    (warning,) = warnings
    assert "not UTF-8" in warning and "listening continues" in warning
    warning.encode()


def test_a_user_without_a_home_listens_unstored_and_is_told_what_to_set(
    demo: Judged, monkeypatch: pytest.MonkeyPatch
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
    assert "set store.path" in warning and "listening continues" in warning


def test_damage_that_is_met_only_later_is_set_aside_then(
    file: Path, demo: Judged, monkeypatch: pytest.MonkeyPatch
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


def test_the_csv_of_a_session_without_cycles_has_the_header_of_any_other(file: Path, demo: Judged) -> None:
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
