"""Messages that wait for a broker, in the store's file: written in the transaction of what they report."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from device.store.database import LOCK_SECONDS, as_store_error, open_database, transaction
from device.view.json_lines import stamped
from firmware_config.files import alone

DROPPED: Final = "messages dropped"  # key in the table `meta`
TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, message TEXT NOT NULL
)""",
    "CREATE INDEX IF NOT EXISTS outbox_of_run ON outbox (run)",
    # what reports of a deleted session is never sent; an exam reports of several
    """CREATE TRIGGER IF NOT EXISTS session_unsent AFTER DELETE ON sessions BEGIN
    DELETE FROM outbox WHERE run = (SELECT value FROM meta WHERE name = 'messages of session ' || OLD.id)
    OR (run = '' AND instr(message, (SELECT value FROM meta WHERE name = 'messages of session ' || OLD.id)));
    END""",
)


def run_name(session: int) -> str:
    """The key in `meta` of what identifies a session in its messages."""
    return f"messages of session {session}"


class Waiting(NamedTuple):
    """A message that waits: its number, which grows with time, and its JSON."""

    number: int
    message: str


def make_tables(database: sqlite3.Connection) -> None:
    """Make the outbox where it is missing."""
    for statement in TABLES:
        database.execute(statement)


def put(database: sqlite3.Connection, value: Mapping[str, Any], run: str, most: int) -> None:
    """Add a message of a session or an exam; beyond `most` the oldest are removed and counted."""
    row = ("" if value["type"] == "exam" else run, stamped(value, run))
    cursor = database.execute("INSERT INTO outbox (run, message) VALUES (?, ?)", row)
    oldest = (cursor.lastrowid or 0) - most
    if dropped := database.execute("DELETE FROM outbox WHERE id <= ?", (oldest,)).rowcount:
        database.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            (DROPPED, dropped),
        )


class Outbox:
    """Reads and removes what waits; a connection each time, so that the file may be moved or deleted. StoreError."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with as_store_error(self.file, "messages cannot be read"):
            with alone(self.file.parent, LOCK_SECONDS):  # the recorder may be making the file, and would fail
                opened = open_database(self.file)
            with closing(opened) as database:
                make_tables(database)
                yield database

    def put(self, value: Mapping[str, Any], run: str, most: int) -> None:
        """Add a message that belongs to no stored session."""
        with self._open() as database, transaction(database):
            put(database, value, run, most)

    def next(self, after: int, most: int) -> list[Waiting]:
        """The oldest messages behind a number, in order; [] without a store."""
        if not self.file.exists():
            return []
        with self._open() as database:
            query = "SELECT id, message FROM outbox WHERE id > ? ORDER BY id LIMIT ?"
            return [Waiting(*row) for row in database.execute(query, (after, most))]

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove what was acknowledged."""
        if not self.file.exists():
            return
        with self._open() as database:
            # a removal that a power cut undoes is sent twice, as QoS 1 permits; the recorder need not wait for the disk
            database.execute("PRAGMA synchronous=NORMAL")
            with transaction(database):
                database.executemany("DELETE FROM outbox WHERE id = ?", [(number,) for number in numbers])

    def count(self) -> tuple[int, int]:
        """How many wait (or more, where sessions were deleted), and how many were ever dropped."""
        if not self.file.exists():
            return 0, 0
        with self._open() as database:
            # counting would read all of them
            first, last = (database.execute(f"SELECT {end}(id) FROM outbox").fetchone()[0] for end in ("min", "max"))
            dropped = database.execute("SELECT value FROM meta WHERE name = ?", (DROPPED,)).fetchone()
            return 0 if first is None else last - first + 1, int(dropped[0]) if dropped else 0
