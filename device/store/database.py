"""Sessions, cycles and timeline in SQLite; a committed row survives kill -9 and power loss. See docs/store.md."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from device.signal import SAMPLE_RATE
from device.store.database_file import SIDE_FILES, close_to_others, side_file
from firmware_config.command_line import printable
from firmware_config.errors import RespSAMError

VERSION: Final = 4
LOCK_SECONDS: Final = 1.0  # to wait for another writer; sound waits in the queue meanwhile
KEPT, DELETED = "kept", "deleted"  # state of a cycle's audio; empty if it was never stored
CHECK_SECONDS, CHECK_STEPS = 0.3, 1000  # for the integrity check when a session begins
UNSTORED: Final = "unstored"  # kind of the timeline row that counts what could not be stored
REMOVED: Final = "deleted"  # replaces the owner of a deleted session

TABLES: Final = (
    """CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, started_at REAL NOT NULL, ended_at REAL, source TEXT NOT NULL,
    site TEXT NOT NULL, demo INTEGER NOT NULL, bundle TEXT NOT NULL, bundle_name TEXT NOT NULL,
    settings_fingerprint TEXT NOT NULL, settings TEXT NOT NULL, not_validated TEXT NOT NULL,
    verdict TEXT, probability REAL, heard_samples INTEGER, missing_samples INTEGER, dropped_samples INTEGER,
    gradable_samples INTEGER, reasons TEXT, stretches INTEGER, stretches_flagged INTEGER,
    passport TEXT, calibration TEXT, site_threshold REAL, safe_mode TEXT
)""",
    """CREATE TABLE cycles (
    session INTEGER NOT NULL REFERENCES sessions(id), number INTEGER NOT NULL, demo INTEGER NOT NULL,
    start_sample INTEGER NOT NULL, end_sample INTEGER NOT NULL, kind TEXT NOT NULL, rhythm REAL NOT NULL,
    level_dbfs REAL NOT NULL, reason TEXT NOT NULL, quality TEXT NOT NULL, probability REAL, class TEXT,
    flag INTEGER NOT NULL, inference_seconds REAL, audio TEXT NOT NULL, context_start_sample INTEGER,
    PRIMARY KEY (session, number)
)""",
    """CREATE TABLE timeline (
    session INTEGER NOT NULL REFERENCES sessions(id), demo INTEGER NOT NULL, sample INTEGER NOT NULL,
    kind TEXT NOT NULL, missing_samples INTEGER NOT NULL, note TEXT NOT NULL
)""",
    "CREATE INDEX timeline_of_session ON timeline (session)",
)
# Version 1 counted in seconds, dropped nothing, kept no audio, and of the settings only their fingerprint.
FROM_VERSION_1: Final = (
    *(f"ALTER TABLE {table} RENAME TO old_{table}" for table in ("sessions", "cycles", "timeline")),
    *TABLES,
    f"""INSERT INTO sessions SELECT id, started_at, ended_at, source, '', demo, bundle, '', settings, '', '', verdict,
    probability, CAST(round(heard_seconds * {SAMPLE_RATE}) AS INTEGER),
    CAST(round(missing_seconds * {SAMPLE_RATE}) AS INTEGER), iif(ended_at IS NULL, NULL, 0),
    CAST(round(gradable_seconds * {SAMPLE_RATE}) AS INTEGER), reasons, NULL, NULL, NULL, NULL, NULL, NULL
    FROM old_sessions""",
    f"""INSERT INTO cycles SELECT session, number, demo, CAST(round(start_seconds * {SAMPLE_RATE}) AS INTEGER),
    CAST(round(end_seconds * {SAMPLE_RATE}) AS INTEGER), kind, rhythm, level_dbfs, reason, '{{}}', probability, class,
    flag, NULL, '', NULL FROM old_cycles""",
    "INSERT INTO timeline SELECT session, demo, sample, kind, missing_samples, note FROM old_timeline",
    *(f"DROP TABLE old_{table}" for table in ("timeline", "cycles", "sessions")),
)
# Version 3 knew no passports and no calibrations.
FROM_VERSION_3: Final = (
    "ALTER TABLE sessions ADD COLUMN passport TEXT",
    "ALTER TABLE sessions ADD COLUMN calibration TEXT",
    "ALTER TABLE sessions ADD COLUMN site_threshold REAL",
    "ALTER TABLE sessions ADD COLUMN safe_mode TEXT",
)
# Version 2 judged all of a cycle's samples, and had no stretches.
FROM_VERSION_2: Final = (
    "ALTER TABLE cycles ADD COLUMN context_start_sample INTEGER",
    "ALTER TABLE sessions ADD COLUMN stretches INTEGER",
    "ALTER TABLE sessions ADD COLUMN stretches_flagged INTEGER",
    *FROM_VERSION_3,
)
MIGRATIONS: Final = {0: TABLES, 1: FROM_VERSION_1, 2: FROM_VERSION_2, 3: FROM_VERSION_3}
# Beside the versioned tables, made where it is missing: the owner of each session, which is the mark of its writer.
META: Final = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
# The counts of each session's cycles for `list`, kept up to date by triggers: `list` must not read the whole history.
COUNTS: Final = ("cycles", "graded", "flagged", "with_audio")
TOTALS: Final = "CREATE TABLE IF NOT EXISTS totals (session INTEGER PRIMARY KEY, cycles, graded, flagged, with_audio)"
COUNT_ALL: Final = f"""INSERT OR REPLACE INTO totals SELECT session, count(*), count(probability),
    coalesce(sum(flag), 0), coalesce(sum(audio = '{KEPT}'), 0) FROM cycles GROUP BY session"""
COUNTING: Final = (
    f"""CREATE TRIGGER IF NOT EXISTS cycle_added AFTER INSERT ON cycles BEGIN
    INSERT INTO totals VALUES (NEW.session, 1, NEW.probability IS NOT NULL, NEW.flag, NEW.audio = '{KEPT}')
    ON CONFLICT DO UPDATE SET cycles = cycles + 1, graded = graded + (NEW.probability IS NOT NULL),
    flagged = flagged + NEW.flag, with_audio = with_audio + (NEW.audio = '{KEPT}');
    END""",
    f"""CREATE TRIGGER IF NOT EXISTS cycle_changed AFTER UPDATE ON cycles BEGIN
    UPDATE totals SET graded = graded + (NEW.probability IS NOT NULL) - (OLD.probability IS NOT NULL),
    flagged = flagged + NEW.flag - OLD.flag, with_audio = with_audio + (NEW.audio = '{KEPT}') - (OLD.audio = '{KEPT}')
    WHERE session = NEW.session;
    END""",
    f"""CREATE TRIGGER IF NOT EXISTS cycle_removed AFTER DELETE ON cycles BEGIN
    UPDATE totals SET cycles = cycles - 1, graded = graded - (OLD.probability IS NOT NULL),
    flagged = flagged - OLD.flag, with_audio = with_audio - (OLD.audio = '{KEPT}') WHERE session = OLD.session;
    END""",
)


class StoreError(RespSAMError):
    """The store cannot be opened, read or written."""


class DamagedError(StoreError):
    """The file is no database, or fails its integrity check."""


class GoneError(StoreError):
    """The file was deleted, moved or replaced while it was open, or has lost the session."""


class SessionDeletedError(StoreError):
    """The session that is being written was deleted; no more of it may be stored."""


@contextmanager
def as_store_error(file: Path, what: str) -> Iterator[None]:
    """Turn errors of SQLite and of the disk into a StoreError, or a DamagedError when the file itself is broken."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        # SQLITE_CORRUPT and SQLITE_NOTADB are the bare class; locked, full, read-only and I/O are OperationalError
        if type(error) is sqlite3.DatabaseError:
            raise DamagedError(
                f"{file}: {what}, it is damaged ({error}); a session that is stored sets it aside and begins a new one"
            ) from error
        raise StoreError(f"{file}: {what} ({error}); check the disk or set store.path") from error
    except ValueError as error:
        # a path, a site or a setting that is not UTF-8
        raise StoreError(f"{printable(file)}: {what}: not UTF-8 ({error}); set store.path to a plain name") from error


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """One transaction: all or nothing, and on the disk at the end."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        # some errors have already rolled back
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def open_database(file: Path, *, check: bool = False) -> sqlite3.Connection:
    """Open the database; make or migrate it where needed. StoreError when that fails; the file is then unchanged."""
    with as_store_error(file, "cannot be opened"):
        # autocommit: every statement outside `transaction` is its own transaction
        # whoever shares a connection among threads lets one use it at a time
        database = sqlite3.connect(file, isolation_level=None, timeout=LOCK_SECONDS, check_same_thread=False)
    try:
        with as_store_error(file, "cannot be opened"):
            version = _version(file, database)
            if check:
                _quick_check(database)
            if version == 0:
                database.execute("PRAGMA journal_mode=WAL")
            for pragma in ("synchronous=FULL", "foreign_keys=OFF", "secure_delete=ON"):
                database.execute(f"PRAGMA {pragma}")
            if version != VERSION:
                with transaction(database):
                    # two processes may migrate at once: only inside the transaction is the version certain
                    for statement in MIGRATIONS.get(_version(file, database), ()):
                        database.execute(statement)
                    database.execute(f"PRAGMA user_version = {VERSION}")
            _add_what_has_no_version(database)
            database.execute("PRAGMA foreign_keys=ON")
    except StoreError:
        database.close()
        raise
    return database


def _add_what_has_no_version(database: sqlite3.Connection) -> None:
    if not _has(database, "meta"):
        database.execute(META)
    if not _has(database, "totals") or not _has(database, "cycle_removed"):
        with transaction(database):
            for statement in (TOTALS, COUNT_ALL, *COUNTING):
                database.execute(statement)


def _quick_check(database: sqlite3.Connection) -> None:
    """An integrity check that is cut short: a long history must not keep a patient waiting."""
    until = time.monotonic() + CHECK_SECONDS
    database.set_progress_handler(lambda: time.monotonic() > until, CHECK_STEPS)
    try:
        found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        if str(error) != "interrupted":
            raise
        return
    finally:
        database.set_progress_handler(None, 0)
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(found.split()))


def open_to_read(file: Path) -> tuple[sqlite3.Connection, str]:
    """Open the database for reading, even on a read-only disk; and what may be missing then. Raises StoreError."""
    try:
        return open_database(file), ""
    except StoreError as error:
        # a lock of another writer is an error: its data must not be read half written
        if not isinstance(error.__cause__, sqlite3.OperationalError) or "locked" in str(error):
            raise
        first = error
    log = side_file(file, "-wal")
    for options in ("mode=ro", "immutable=1"):
        try:
            with as_store_error(file, "cannot be read"):
                database = sqlite3.connect(
                    f"{file.absolute().as_uri()}?{options}", uri=True, isolation_level=None, timeout=LOCK_SECONDS
                )
                version = _version(file, database)
                if version == VERSION and not _has(database, "totals"):
                    for statement in ("PRAGMA temp_store=MEMORY", TOTALS.replace("TABLE", "TEMP TABLE"), COUNT_ALL):
                        database.execute(statement)
        except StoreError as error:
            if not isinstance(error.__cause__, sqlite3.OperationalError):
                raise
            continue
        if version != VERSION:
            database.close()
            raise StoreError(f"{file}: of an older version, and it cannot be written here; copy it to where it can be")
        unread = options == "immutable=1" and log.exists() and log.stat().st_size > 0
        return database, f"{log} cannot be read here; what was stored last may be missing" if unread else ""
    raise first


def _version(file: Path, database: sqlite3.Connection) -> int:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (*MIGRATIONS, VERSION):
        raise StoreError(
            f"{file}: written by another version (schema {version}, this one reads {VERSION}); set store.path to "
            "another file"
        )
    if version == 0 and database.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
        raise StoreError(f"{file}: a database of another program; set store.path to another file")
    return int(version)


def session_owner(database: sqlite3.Connection, session: int) -> str:
    """The mark of a session's writer, which its sound has too; empty for a session older than marks."""
    if not _has(database, "meta"):
        return ""
    found = database.execute("SELECT value FROM meta WHERE name = ?", (owner_name(session),)).fetchone()
    return str(found[0]) if found else ""


def _has(database: sqlite3.Connection, name: str) -> bool:
    return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone())


def mark_removed(database: sqlite3.Connection, session: int) -> None:
    """Mark a session as deleted, for a process that still writes it."""
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (owner_name(session), REMOVED))


def owner_name(session: int) -> str:
    """The key of a session's mark in the table `meta`."""
    return f"session {session}"


def set_aside(file: Path) -> Path:
    """Rename a damaged database, its log and its sound; returns the new path."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = file.with_name(f"{file.name}.damaged-{stamp}")
    for suffix in (*SIDE_FILES, "-audio", ""):
        source = side_file(file, suffix)
        if source.exists():
            close_to_others(source)
            source.rename(side_file(aside, suffix))
    return aside
