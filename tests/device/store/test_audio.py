"""The sound of stored cycles: exact, owned by its session, removed by age and size."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from device.signal import INT24, FloatArray
from device.store import recorder as store_module
from device.store.audio import AudioStore
from device.store.database import StoreError
from device.store.recorder import Recorder, Store, trusted_time
from device.store.replay import replay
from device.store.sessions import delete_session
from tests.device.store.fates import lose_its_rows, remove, restore_a_backup, restore_a_backup_in_use
from tests.device.storing import Judged, beginning, endless, keep, rows

# sound


def on_the_grid(samples: int = 3001) -> FloatArray:
    whole = np.random.default_rng(1).integers(-INT24, INT24, samples)
    whole[:6] = -INT24, INT24 - 1, 0, 1, -1, -INT24 + 1
    return (whole / INT24).astype(np.float32)


def bits(samples: FloatArray) -> bytes:
    return (samples + np.float32(0.0)).tobytes()  # integers have no minus zero, and no sum hears it


def test_sound_comes_back_bit_for_bit(file: Path, demo: Judged) -> None:
    audio = AudioStore(file)
    for number, samples in zip(count(1), [on_the_grid(), *(one.samples for one in demo[0])], strict=False):
        audio.keep(1, number, samples)
        assert bits(audio.read(1, number)) == bits(samples)


def test_sound_is_kept_only_when_it_is_asked_for(file: Path, demo: Judged) -> None:
    for asked in (False, True):
        store = Store(beginning(file, audio=asked))
        keep(demo, store)
        store.close()
    audio = AudioStore(file)
    assert not audio.files(1)
    for one in demo[0]:
        assert bits(audio.read(2, one.number)) == bits(one.samples)
    assert rows(file, "SELECT DISTINCT session, audio FROM cycles") == [(1, ""), (2, "kept")]
    assert audio.folder.stat().st_mode & 0o077 == 0, "a patient's sound is nobody else's"


def aged(one: Path, days: float) -> None:
    os.utime(one, (time.time() - 86_400 * days,) * 2)


def test_sound_that_is_too_old_is_removed_and_its_rows_stay(file: Path, demo: Judged) -> None:
    first = Store(beginning(file, audio=True))
    keep(demo, first)
    first.close()
    audio = AudioStore(file)
    aged(audio.path(1, 1), 31)
    aged(audio.path(1, 2), 29)
    os.utime(audio.path(1, 3), (1000.0, 1000.0))  # a clock that was not set yet says nothing about the age
    Store(beginning(file, audio_days=30.0)).close()
    assert [one.number for one in sorted(audio.files(1))] == [one.number for one in demo[0]][1:]
    assert rows(file, "SELECT number, audio FROM cycles LIMIT 3") == [(1, "deleted"), (2, "kept"), (3, "kept")]


def test_a_session_that_was_deleted_meanwhile_keeps_no_sound(file: Path, demo: Judged) -> None:
    warnings = list[str]()
    recorder = Recorder(lambda: Store(beginning(file, audio=True)), warnings.append)
    recorder.add(demo[0][0])
    delete_session(file, 1)
    recorder.add(demo[0][1])
    recorder.end(demo[2])
    assert len(warnings) == 1
    assert not AudioStore(file).files()
    assert [rows(file, f"SELECT * FROM {table}") for table in ("sessions", "cycles", "timeline")] == [[], [], []]


def test_beyond_its_size_the_oldest_sound_goes_while_listening(
    file: Path, demo: Judged, monkeypatch: pytest.MonkeyPatch
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
    kept = sorted(audio.files())
    assert {one.session for one in kept} == {2}
    assert [one.number for one in kept] == list(range(kept[0].number, 44)), "the oldest are gone"
    # five cycles may come between two looks
    assert 0.3e6 < sum(one.bytes for one in kept) <= 0.5e6 + 5 * max(one.bytes for one in kept)
    assert rows(file, "SELECT count(*) FROM cycles WHERE audio = 'deleted'") == [(44 - len(kept),)]
    assert foreign.read_text() == "not ours"


def test_a_warning_ends_no_retention(file: Path, demo: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RETENTION_CYCLES", 5)
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)
    store = Store(beginning(file, audio=True, audio_megabytes=0.5))
    assert "was damaged" in store.warning
    for one in zip(endless(demo[0]), range(43), strict=False):
        store.add(one[0])
    store.close()
    kept = AudioStore(file).files()
    assert sum(one.bytes for one in kept) <= 0.5e6 + 5 * max(one.bytes for one in kept)


def test_what_kill_9_left_unfinished_is_removed_with_the_rest(file: Path) -> None:
    audio = AudioStore(file)
    audio.keep(1, 1, on_the_grid())
    (unfinished := audio.path(1, 2).with_suffix(".part")).write_bytes(b"half")
    audio.remove(audio.surplus(time.time(), 30.0, 0.0))
    assert not unfinished.exists()
    assert not audio.path(1, 1).parent.exists()


def recorder(file: Path, warnings: list[str]) -> Recorder:
    return Recorder(lambda: Store(beginning(file, audio=True)), warnings.append, retry_seconds=0.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


@pytest.mark.parametrize("fate", [restore_a_backup, restore_a_backup_in_use, remove, lose_its_rows])
def test_the_sound_of_another_session_is_never_written_over_or_deleted(
    file: Path, demo: Judged, fate: Callable[[Path], None]
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
    assert len(sorted(AudioStore(file).files(2))) == 5


def test_a_failed_write_deletes_no_sound_of_another_device(file: Path, demo: Judged) -> None:
    one = Store(beginning(file, audio=True))
    # what a second device has kept in the same place
    other = AudioStore(file, "another device")
    other.keep(1, demo[0][0].number, demo[0][0].samples)
    before = contents(other.folder)
    with pytest.raises(StoreError, match="another session"):
        one.add(demo[0][0])
    one.close()
    assert contents(other.folder) == before


def test_sound_of_another_session_is_neither_replayed_nor_deleted(file: Path, demo: Judged) -> None:
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
    file: Path, demo: Judged, days: int, monkeypatch: pytest.MonkeyPatch
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
    assert len(AudioStore(file).files(1)) == len(demo[0])
    assert rows(file, "SELECT DISTINCT audio FROM cycles") == [("kept",)]
    monkeypatch.setattr(time, "time", lambda: now + (days + 1.5) * DAY)
    Store(replace(beginning(file, audio=True), started_at=time.time())).close()
    assert AudioStore(file).files(1) == []
