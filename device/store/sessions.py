"""Stored sessions: list, show, export and delete."""

import csv
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from device.breath.quality import Quality
from device.signal import SAMPLE_RATE, Span
from device.store.audio import AudioStore
from device.store.database import (
    COUNTS,
    KEPT,
    TABLES,
    StoreError,
    as_store_error,
    mark_removed,
    open_database,
    open_to_read,
    session_owner,
    transaction,
)
from device.verdict.circumstances import Circumstances
from device.verdict.summary import ACCOUNT

Row = dict[str, Any]
Cells = dict[str, str]
SESSIONS: Final = f"""SELECT sessions.*, {", ".join(f"coalesce(totals.{name}, 0) AS {name}" for name in COUNTS)}
    FROM sessions LEFT JOIN totals ON session = id"""
KEPT_CYCLE: Final = f"""SELECT cycles.*, settings, bundle, bundle_name FROM cycles JOIN sessions ON id = session
    WHERE session=? AND number=? AND audio='{KEPT}'"""
SESSION_COLUMNS: Final = "demo id started_at site verdict heard_samples flagged with_audio source"
CYCLE_COLUMNS: Final = "demo number start_sample end_sample kind level_dbfs probability class flag audio reason"
ADDED_COLUMNS: Final = ("source", "site", "bundle", "calibration")  # of the session, added to every row of a CSV
ENTRY_COLUMNS: Final = "demo sample kind missing_samples note"


Warn = Callable[[str], None]


def no_warning(_warning: str) -> None:
    """Ignore a warning."""


@contextmanager
def _reading(file: Path, warn: Warn = no_warning) -> Iterator[sqlite3.Connection]:
    _look_for(file)
    database, missing = open_to_read(file)
    if missing:
        warn(missing)
    with closing(database), as_store_error(file, "cannot be read"):
        database.row_factory = sqlite3.Row
        yield database


def _look_for(file: Path) -> None:
    if not file.is_file():
        raise StoreError(f"{file}: no sessions are stored here; set store.path, or listen first")


def _query(database: sqlite3.Connection, query: str, *values: int, without: str = "") -> list[Row]:
    rows = [{name: row[name] for name in row.keys() if name != without} for row in database.execute(query, values)]  # noqa: SIM118
    for row in rows:
        row |= {name: bool(row[name]) for name in ("demo", "flag") if name in row}
        row |= {name: json.loads(row[name] or "{}") for name in ("settings", "quality") if name in row}
    return rows


def list_sessions(file: Path, warn: Warn = no_warning) -> list[Row]:
    """One row a session in the order of their start, without settings; [] without a store. Raises StoreError."""
    if not file.exists():
        return []
    with _reading(file, warn) as database:
        return _query(database, f"{SESSIONS} ORDER BY id", without="settings")


def read_session(file: Path, number: int, warn: Warn = no_warning, columns: str = "*") -> Row:
    """A session's row with `cycles` and `timeline`, lists of rows. Raises StoreError if there is no such session.

    `columns` are those of the cycles: a night has ten thousand.
    """
    with _reading(file, warn) as database:
        database.execute("BEGIN")  # one consistent state
        found = _query(database, f"{SESSIONS} WHERE id=?", number)
        if not found:
            raise StoreError(f"{file}: there is no session {number}; see 'respsam-device sessions list'")
        return found[0] | {
            "cycles": _query(database, f"SELECT {columns} FROM cycles WHERE session=? ORDER BY number", number),
            "timeline": _query(database, "SELECT * FROM timeline WHERE session=? ORDER BY sample, rowid", number),
        }


def read_cycles(file: Path, number: int, first: int, last: int, most: int, *, flagged: bool) -> tuple[list[Row], int]:
    """At most so many cycles from `first` to `last`, `flagged` ones only on demand, and how many there are.

    Raises StoreError.
    """
    where = f"FROM cycles WHERE session=? AND number BETWEEN ? AND ?{' AND flag' * flagged}"
    with _reading(file) as database:
        (count,) = database.execute(f"SELECT count(*) {where}", (number, first, last)).fetchone()
        return _query(database, f"SELECT * {where} ORDER BY number LIMIT {most}", number, first, last), count


def read_kept_cycle(file: Path, number: int, cycle: int) -> Row | None:
    """A cycle that has its sound, with its session's `settings`, `bundle` and `bundle_name`; None without one.

    Raises StoreError.
    """
    with _reading(file) as database:
        found = _query(database, KEPT_CYCLE, number, cycle)
        own = bool(found) and AudioStore(file).belongs_to(number, session_owner(database, number))
        return found[0] if own else None


def cycle_span(cycle: Row) -> Span | None:
    """Where a cycle lies in its stored sound; None if it is all of it, as before schema 3."""
    before = cycle["context_start_sample"]
    return None if before is None else (cycle["start_sample"] - before, cycle["end_sample"] - before)


def sound_is_its_own(file: Path, number: int) -> bool:
    """Whether the sound beside the database was written by this session. Raises StoreError."""
    with _reading(file) as database:
        return AudioStore(file).belongs_to(number, session_owner(database, number))


def delete_session(file: Path, number: int) -> None:
    """Remove a session's rows, then its audio. Raises StoreError."""
    _look_for(file)
    with closing(open_database(file)) as database, as_store_error(file, "cannot be changed"):
        with transaction(database):
            owner = session_owner(database, number)
            for table, key in (
                ("cycles", "session"),
                ("timeline", "session"),
                ("totals", "session"),
                ("sessions", "id"),
            ):
                database.execute(f"DELETE FROM {table} WHERE {key}=?", (number,))
            mark_removed(database, number)
        # deleted data must not stay in the write-ahead log
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    audio = AudioStore(file)
    if audio.belongs_to(number, owner):
        audio.remove(audio.files(number))


def export_session(session: Row, form: Literal["csv", "json"], out: TextIO) -> None:
    """Write a session: all of it as one JSON object, or its cycles as rows of a CSV."""
    if form == "json":
        out.write(json.dumps(session, indent=1) + "\n")
        return
    rows = [_csv_row(cycle) | {name: session[name] for name in ADDED_COLUMNS} for cycle in session["cycles"]]
    writer = csv.DictWriter(out, list(rows[0]) if rows else _csv_columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _csv_columns() -> list[str]:
    """The header of a CSV without rows."""
    with closing(sqlite3.connect(":memory:")) as database:
        for statement in TABLES:
            database.execute(statement)
        names = [column[0] for column in database.execute("SELECT * FROM cycles").description]
    measures = [f"quality_{measure.name}" for measure in fields(Quality) if measure.name not in names]
    return [*(name for name in names if name != "quality"), *measures, *ADDED_COLUMNS]


def _csv_row(cycle: Row) -> Row:
    measures = {f"quality_{name}": value for name, value in cycle["quality"].items() if name not in cycle}
    known = {name: value for name, value in cycle.items() if name != "quality"}
    return known | measures | {"demo": _cell_text("demo", cycle["demo"]), "flag": int(cycle["flag"])}


def _cell_text(name: str, value: Any) -> str:
    """A value for people; the unit in its name decides the format."""
    if isinstance(value, bool):
        return name.upper() if value else ""
    if value is None:
        return "-"
    if name.endswith(("sample", "samples")):
        return f"{value / SAMPLE_RATE:.1f}"
    if name.endswith("_at"):
        return datetime.fromtimestamp(value).isoformat(" ", "seconds")
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def cells(rows: list[Row], columns: str) -> list[Cells]:
    """The `columns` of rows as texts by their headings; a column without any text is left out."""
    texts = [{name: _cell_text(name, row[name]) for name in columns.split()} for row in rows]
    used = [name for name in columns.split() if any(row[name] for row in texts)]
    return [{_heading(name): row[name] for name in used} for row in texts]


def _heading(name: str) -> str:
    return "" if name == "demo" else re.sub("_?samples?$", " s", name).replace("_", " ").strip()


def about_lines(session: Row) -> list[str]:
    """The lines of `show` above its tables."""
    text = {name: _cell_text(name, value) for name, value in session.items() if name not in ("cycles", "timeline")}
    account = ", ".join(f"{text[f'{name}_samples']} s {name}" for name in ACCOUNT)
    lines = [
        f"session {text['id']}, from {text['started_at']} to {text['ended_at']}",
        f"source: {text['source']}, site: {text['site'] or '-'}",
        f"model: {text['bundle_name']} ({text['bundle'][:12]}), settings: {text['settings_fingerprint'][:12]}",
        *circumstances_of(session).lines(),
        f"verdict: {text['verdict']} (probability {text['probability']}) {session['reasons'] or ''}",
        *([f"NOT VALIDATED: {text['not_validated']}"] if text["not_validated"] else []),
        f"{len(session['cycles'])} cycles; {account}",
        *([f"{text['stretches_flagged']} of {text['stretches']} stretches flagged"] if session["stretches"] else []),
    ]
    return [f"{text['demo']} {line}".strip() for line in lines]


def circumstances_of(session: Row) -> Circumstances:
    """Under what a stored verdict was given; nothing is known of sessions before schema 4."""
    return Circumstances(**{field.name: session[field.name] or "" for field in fields(Circumstances)})


def plain_lines(rows: list[Cells]) -> list[str]:
    """Aligned lines for a pipe: the headings, then one line a row; there is at least one row."""
    headed = [{name: name for name in rows[0]}, *rows]
    widths = {name: max(len(row[name]) for row in headed) for name in rows[0]}
    return ["  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip() for row in headed]
