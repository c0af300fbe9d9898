"""What a device remembers: sessions, cycles and timeline in SQLite; a committed row survives kill -9 and power loss."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from device.live import CycleResult, Summary
from device.timeline import Entry
from firmware_config.errors import RespSAMError

VERSION = 1
LOCK_SECONDS = 2.0  # waiting for another writer; sound waits in the queue meanwhile
TABLES = """
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
"""


class StoreError(RespSAMError):
    """The store cannot be opened or written; listening goes on without it."""


class Store:
    """The writer of one session; every call is one commit. `demo` stands on every row of a simulated session."""

    def __init__(self, file: Path, source: str, demo: bool, bundle: str, settings: str) -> None:
        """Open or make the file and begin a session; `bundle` and `settings` are fingerprints. Raises StoreError."""
        self.file, self.demo = file, demo
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # autocommit: every statement is a transaction of its own
            self._database = sqlite3.connect(file, isolation_level=None, timeout=LOCK_SECONDS)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{file}: sessions cannot be stored ({error}); check the disk or set store.path"
            ) from error
        try:
            self._version()
            self._write("PRAGMA journal_mode=WAL")
            self._write("PRAGMA synchronous=FULL")
            self._make_tables()
            self.session = self._write(
                "INSERT INTO sessions (started_at, source, demo, bundle, settings) VALUES (?, ?, ?, ?, ?)",
                time.time(),
                source,
                demo,
                bundle,
                settings,
            )
        except StoreError:
            self.close()
            raise

    def _make_tables(self) -> None:
        # the lock first: two devices may begin at once on one new file
        self._write("BEGIN IMMEDIATE")
        if self._version() == 0:
            for statement in TABLES.split(";"):
                self._write(statement)
            self._write(f"PRAGMA user_version = {VERSION}")
        self._write("COMMIT")

    def _version(self) -> int:
        try:
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"{self.file}: cannot be read ({error}); set store.path to another file") from error
        if version not in (0, VERSION):
            raise StoreError(
                f"{self.file}: written by another version (schema {version}, this one reads {VERSION}); set store.path "
                "to another file"
            )
        return int(version)

    def _write(self, statement: str, *values: str | float | None) -> int:
        try:
            return int(self._database.execute(statement, values).lastrowid or 0)
        except sqlite3.Error as error:
            raise StoreError(f"{self.file}: not stored ({error}); check the disk or set store.path") from error

    def add(self, happened: CycleResult | Entry) -> None:
        """One judged cycle or timeline entry."""
        if isinstance(happened, Entry):
            self._write(
                "INSERT INTO timeline VALUES (?, ?, ?, ?, ?, ?)",
                self.session,
                self.demo,
                happened.sample,
                happened.kind,
                happened.missing_samples,
                happened.note,
            )
            return
        judgement = happened.judgement
        self._write(
            "INSERT INTO cycles VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self.session,
            happened.number,
            self.demo,
            happened.start_seconds,
            happened.end_seconds,
            happened.kind,
            happened.rhythm,
            happened.quality.level_dbfs,
            happened.quality.reason,
            None if judgement is None else judgement.probability,
            None if judgement is None else judgement.label,
            happened.flagged,
        )

    def end(self, summary: Summary) -> None:
        """The session's verdict and account."""
        self._write(
            "UPDATE sessions SET ended_at=?, verdict=?, probability=?, heard_seconds=?, missing_seconds=?, "
            "gradable_seconds=?, reasons=? WHERE id=?",
            time.time(),
            summary.verdict,
            summary.probability,
            summary.heard_seconds,
            summary.missing_seconds,
            summary.gradable_seconds,
            "; ".join(summary.reasons),
            self.session,
        )

    def close(self) -> None:
        """Give the file back."""
        self._database.close()


class Recorder:
    """A store that may be missing: the first failure is told in one warning, and listening goes on without it."""

    def __init__(self, opening: Callable[[], Store] | None, warn: Callable[[str], None]) -> None:
        """`opening` makes the store, None where nothing is to be kept."""
        self._store: Store | None = None
        self._warn = warn
        if opening is not None:
            try:
                self._store = opening()
            except StoreError as error:
                self._give_up(error)

    def add(self, happened: CycleResult | Entry) -> None:
        """As Store.add; never fails."""
        self._try(lambda store: store.add(happened))

    def end(self, summary: Summary) -> None:
        """As Store.end, and gives the file back; never fails."""
        self._try(lambda store: store.end(summary))
        if self._store is not None:
            self._store.close()

    def _try(self, write: Callable[[Store], None]) -> None:
        if self._store is None:
            return
        try:
            write(self._store)
        except StoreError as error:
            self._store.close()
            self._store = None
            self._give_up(error)

    def _give_up(self, error: StoreError) -> None:
        self._warn(f"{error}; listening goes on, but nothing more of this session is kept")
