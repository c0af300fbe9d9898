"""Processes that store, to be killed or starved by tests: `python -m tests.device.storing MODE FILE`."""

import json
import resource
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from itertools import cycle as for_ever
from pathlib import Path
from typing import Any, Final

from device.bundle import Segmentation, SiteRule
from device.capture.sources import DemoSource
from device.capture.timeline import Entry
from device.listening.cycle import CycleResult
from device.listening.live import Judge, Session
from device.model.judgement import Judgement
from device.signal import SAMPLE_RATE, FloatArray, Span
from device.store.recorder import Beginning, Recorder, Store
from device.verdict.summary import Summary
from firmware_config.settings import Settings, load_settings

NIGHT_CYCLES: Final = 9600
Judged = tuple[list[CycleResult], list[Entry], Summary]


def settings_for(file: Path, **store: object) -> Settings:
    """The defaults, but for the store."""
    flags = {"store.path": str(file), **{f"store.{name}": value for name, value in store.items()}}
    return load_settings(environment={}, flags=flags)


def beginning(file: Path, *, demo: bool = True, site: str = "", **store: object) -> Beginning:
    """A session that begins now, of a bundle that nobody needs."""
    return Beginning("a test", demo, "bundle-hash", "tiny", settings_for(file, **store), site)


class Certain:
    """A model that always says the same, and is there at once."""

    fingerprint, segmentation, site_rule = (
        "bundle-hash",
        Segmentation(),
        SiteRule(threshold=0.5, stretch_cycles=6, least_cycles=1),
    )

    def judge(self, samples: FloatArray, span: Span | None = None) -> Judgement:
        return Judgement(1 / 3, False, "crackle")


def judged(classifier: Judge, seconds: float = 12.0) -> Judged:
    """The cycles, timeline entries and summary of a demo."""
    session = Session(DemoSource(7, seconds, fast=True), classifier, settings_for(Path("unused")).quality)
    events = list(session.run())
    cycles = [event for event in events if isinstance(event, CycleResult)]
    return cycles, [event for event in events if isinstance(event, Entry)], session.summary


def rows(file: Path, query: str) -> list[Any]:
    """The rows that a query of a store gives."""
    with sqlite3.connect(file) as database:
        return database.execute(query).fetchall()


def keep(demo: Judged, store: Store | Recorder) -> None:
    """Store all of a demo."""
    for cycle in demo[0]:
        store.add(cycle)
    for entry in demo[1]:
        store.add(entry)
    store.end(demo[2])


def night(file: Path) -> Path:
    """A store with one session of 8 h: 9600 flagged breaths, 20 a minute."""
    cycles, _, summary = judged(Certain(), 8.0)
    store = Store(beginning(file))
    store.add(replace(cycles[0], number=1, kind="breath", start_sample=0, end_sample=3 * SAMPLE_RATE))
    store.end(summary)
    store.close()
    with sqlite3.connect(file) as database:
        (first,) = database.execute("SELECT * FROM cycles")
        names = [column[1] for column in database.execute("PRAGMA table_info(cycles)")]
        for number in range(2, NIGHT_CYCLES + 1):
            at = 3 * SAMPLE_RATE * (number - 1)
            row = dict(zip(names, first, strict=True))
            row |= {"number": number, "start_sample": at, "end_sample": at + 3 * SAMPLE_RATE}
            database.execute(f"INSERT INTO cycles VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
        database.execute("UPDATE cycles SET flag = 1, class = 'crackle', probability = 0.9")
    return file


def endless(cycles: list[CycleResult]) -> Iterator[CycleResult]:
    """The same breaths for ever, numbered on."""
    for number, cycle in zip(count(1), for_ever(cycles), strict=False):
        yield replace(cycle, number=number)


def main(mode: str, file: Path) -> None:
    """`commit`: print the number of each cycle once it is committed, for ever. `limit`: a disk that is full a while."""
    cycles, _, summary = judged(Certain(), 8.0)
    if mode == "commit":
        store = Store(beginning(file, audio=True))
        for one in endless(cycles):
            store.add(one)
            print(store.session, one.number, flush=True)
            time.sleep(0.002)  # a lock is given to whoever asks in the right moment, and breaths come one by one
    warnings: list[str] = []
    recorder = Recorder(lambda: Store(beginning(file)), warnings.append, retry_seconds=0.0)
    # no file may grow beyond this, which SQLite sees as it sees a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
    for one in endless(cycles):
        recorder.add(one)
        if one.number == 3000:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if one.number == 3010:
            break
    recorder.end(summary)
    print(json.dumps(warnings))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
