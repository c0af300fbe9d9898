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
from typing import Any, Literal, TextIO

from device.breath.quality import Quality
from device.signal import SAMPLE_RATE
from device.store.audio import AudioStore
from device.store.database import (
    COUNTS,
    TABLES,
    StoreError,
    as_store_error,
    mark_removed,
    open_database,
    open_to_read,
    session_owner,
    transaction,
)
from device.verdict.summary import ACCOUNT

Row = dict[str, Any]
Cells = dict[str, str]
SESSIONS = f"""SELECT sessions.*, {", ".join(f"coalesce(totals.{name}, 0) AS {name}" for name in COUNTS)}
    FROM sessions LEFT JOIN totals ON session = id"""
SESSION_COLUMNS = "demo id started_at site verdict heard_samples flagged with_audio source"
CYCLE_COLUMNS = "demo number start_sample end_sample kind level_dbfs probability class flag audio reason"
ADDED_COLUMNS = ("source", "site", "bundle")  # of the session, on every row of a CSV
ENTRY_COLUMNS = "demo sample kind missing_samples note"


Warn = Callable[[str], None]


def silent(_warning: str) -> None:
    pass


@contextmanager
def _opened(file: Path, warn: Warn = silent) -> Iterator[sqlite3.Connection]:
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


def _rows(database: sqlite3.Connection, query: str, *values: int, without: str = "") -> list[Row]:
    rows = [{name: row[name] for name in row.keys() if name != without} for row in database.execute(query, values)]  # noqa: SIM118
    for row in rows:
        row |= {name: bool(row[name]) for name in ("demo", "flag") if name in row}
        row |= {name: json.loads(row[name] or "{}") for name in ("settings", "quality") if name in row}
    return rows


def list_sessions(file: Path, warn: Warn = silent) -> list[Row]:
    """One row a session, in the order they began, without its settings; none where nothing was ever stored."""
    if not file.exists():
        return []
    with _opened(file, warn) as database:
        return _rows(database, f"{SESSIONS} ORDER BY id", without="settings")


def read_session(file: Path, number: int, warn: Warn = silent) -> Row:
    """A session's row, and in it `cycles` and `timeline`, lists of rows. Raises StoreError where there is none."""
    with _opened(file, warn) as database:
        database.execute("BEGIN")  # all of one moment
        found = _rows(database, f"{SESSIONS} WHERE id=?", number)
        if not found:
            raise StoreError(f"{file}: there is no session {number}; see 'respsam-device sessions list'")
        return found[0] | {
            "cycles": _rows(database, "SELECT * FROM cycles WHERE session=? ORDER BY number", number),
            "timeline": _rows(database, "SELECT * FROM timeline WHERE session=? ORDER BY sample, rowid", number),
        }


def sound_is_its_own(file: Path, number: int) -> bool:
    with _opened(file) as database:
        return AudioStore(file).belongs_to(number, session_owner(database, number))


def delete_session(file: Path, number: int) -> None:
    """Remove a session's rows, then its audio, and nothing else."""
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
        # what was deleted must not live on in the write-ahead log
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    audio = AudioStore(file)
    if audio.belongs_to(number, owner):
        audio.remove(audio.kept(number))


def export_session(session: Row, form: Literal["csv", "json"], out: TextIO) -> None:
    """A session as one JSON object with everything, or its cycles as CSV, a row each."""
    if form == "json":
        out.write(json.dumps(session, indent=1) + "\n")
        return
    rows = [_flat(cycle) | {name: session[name] for name in ADDED_COLUMNS} for cycle in session["cycles"]]
    writer = csv.DictWriter(out, list(rows[0]) if rows else _csv_columns(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _csv_columns() -> list[str]:
    """Those of a session without cycles, as of any other."""
    with closing(sqlite3.connect(":memory:")) as database:
        for statement in TABLES:
            database.execute(statement)
        names = [column[0] for column in database.execute("SELECT * FROM cycles").description]
    measures = [f"quality_{one.name}" for one in fields(Quality) if one.name not in names]
    return [*(name for name in names if name != "quality"), *measures, *ADDED_COLUMNS]


def _flat(cycle: Row) -> Row:
    measures = {f"quality_{name}": value for name, value in cycle["quality"].items() if name not in cycle}
    known = {name: value for name, value in cycle.items() if name != "quality"}
    return known | measures | {"demo": _text("demo", cycle["demo"]), "flag": int(cycle["flag"])}


def _text(name: str, value: Any) -> str:
    """A value of a row for people; the name's unit says which kind it is."""
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
    """These columns of rows as text under their headings, without those in which no row has anything."""
    texts = [{name: _text(name, row[name]) for name in columns.split()} for row in rows]
    used = [name for name in columns.split() if any(row[name] for row in texts)]
    return [{_heading(name): row[name] for name in used} for row in texts]


def _heading(name: str) -> str:
    return "" if name == "demo" else re.sub("_?samples?$", " s", name).replace("_", " ").strip()


def about_lines(session: Row) -> list[str]:
    """What `show` says above its tables."""
    text = {name: _text(name, value) for name, value in session.items() if name not in ("cycles", "timeline")}
    account = ", ".join(f"{text[f'{name}_samples']} s {name}" for name in ACCOUNT)
    lines = [
        f"session {text['id']}, from {text['started_at']} to {text['ended_at']}",
        f"source: {text['source']}, site: {text['site'] or '-'}",
        f"model: {text['bundle_name']} ({text['bundle'][:12]}), settings: {text['settings_fingerprint'][:12]}",
        f"verdict: {text['verdict']} (probability {text['probability']}) {session['reasons'] or ''}",
        *([f"NOT VALIDATED: {text['not_validated']}"] if text["not_validated"] else []),
        f"{len(session['cycles'])} cycles; {account}",
        *([f"{text['stretches_flagged']} of {text['stretches']} stretches flagged"] if session["stretches"] else []),
    ]
    return [f"{text['demo']} {line}".strip() for line in lines]


def plain_lines(rows: list[Cells]) -> list[str]:
    """One line a row (there is at least one), below their headings, columns under each other; for a pipe."""
    headed = [{name: name for name in rows[0]}, *rows]
    widths = {name: max(len(row[name]) for row in headed) for name in rows[0]}
    return ["  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip() for row in headed]
