"""Exams, the subjects of sessions, and opinions of cycles: tables beside the sessions, made where they are missing."""

import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

from device.store.database import StoreError, as_store_error, open_database, transaction
from device.store.database_file import make_private
from device.store.outbox import Outbox
from device.verdict.exam import ExamObject

Row = dict[str, Any]

TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS exams (
    id INTEGER PRIMARY KEY AUTOINCREMENT, started_at REAL NOT NULL, subject TEXT NOT NULL, age_years REAL,
    demo INTEGER NOT NULL, verdict TEXT NOT NULL, document TEXT NOT NULL
)""",
    "CREATE TABLE IF NOT EXISTS subjects (session INTEGER PRIMARY KEY, subject TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS opinions (
    session INTEGER NOT NULL, number INTEGER NOT NULL, opinion TEXT NOT NULL, account TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (session, number)
)""",
    # what is known of a session goes with it, whoever deletes it
    """CREATE TRIGGER IF NOT EXISTS session_removed AFTER DELETE ON sessions BEGIN
    DELETE FROM subjects WHERE session = OLD.id; DELETE FROM opinions WHERE session = OLD.id;
    END""",
)
EXAM_COLUMNS: Final = "demo id started_at subject age_years verdict"
OPINIONS: Final = ("agree", "disagree")
SUBJECT: Final = re.compile(r"[\w.-]{0,40}", re.ASCII)
IN_MEMORY: Final = Path(":memory:")


def checked_subject(subject: str) -> str:
    """A pseudonymous id, or empty; StoreError for anything that could be a name with spaces, or for markup."""
    if not SUBJECT.fullmatch(subject):
        raise StoreError(
            "a subject's id has up to 40 letters (a-z), digits, dots, dashes and underscores; it is never a name"
        )
    return subject


def read_exams(file: Path) -> "Exams":
    """The exams in a file that is there; StoreError without one."""
    if not file.is_file():
        raise StoreError(f"{file}: no exams are stored here; set store.path, or make an exam in the console first")
    return Exams(file)


class Exams:
    """Reads and writes these tables; without a file they live in memory as long as this object. Raises StoreError."""

    def __init__(self, file: Path | None, most_waiting: int = 0) -> None:
        """So many messages may wait for a broker; 0 where exams go to none."""
        self.file, self._most_waiting = file or IN_MEMORY, most_waiting
        self._memory = open_database(IN_MEMORY) if file is None else None
        self._one_at_a_time = threading.Lock()  # threads share the connection to memory

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with as_store_error(self.file, "exams cannot be stored or read"), ExitStack() as opened:
            if self._memory is None:
                make_private(self.file, own_folder=False)
                database = opened.enter_context(closing(open_database(self.file)))
            else:
                opened.enter_context(self._one_at_a_time)
                database = self._memory
            database.row_factory = sqlite3.Row
            for statement in TABLES:
                database.execute(statement)
            yield database

    def save(self, document: Row) -> int:
        """Store an exam, or its new state if it has an `id`; returns the id."""
        subject = checked_subject(document["subject"])
        about = (document["started_at"], subject, document["age_years"], document["demo"], document["verdict"])
        with self._open() as database, transaction(database):
            cursor = database.execute(
                "INSERT INTO exams (id, started_at, subject, age_years, demo, verdict, document) VALUES "
                "(?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET verdict=excluded.verdict, document=excluded.document "
                "RETURNING id",
                (document["id"], *about, json.dumps(document)),
            )
            return int(cursor.fetchone()["id"])

    def send(self, exam: ExamObject) -> None:
        """Leave an exam for the broker, if there is one."""
        if self._most_waiting and self._memory is None:
            Outbox(self.file).put(exam, secrets.token_hex(16), self._most_waiting)

    def listed(self) -> list[Row]:
        """Every exam without its document, the newest first."""
        with self._open() as database:
            rows = database.execute(
                "SELECT id, started_at, subject, age_years, demo, verdict FROM exams ORDER BY id DESC"
            )
            return [{**dict(row), "demo": bool(row["demo"])} for row in rows]

    def document(self, number: int) -> Row:
        """One exam, with the subject that it was assigned last."""
        with self._open() as database:
            found = database.execute("SELECT id, subject, document FROM exams WHERE id=?", (number,)).fetchone()
        if found is None:
            raise StoreError(f"there is no exam {number}")
        return {**json.loads(found["document"]), "id": found["id"], "subject": found["subject"]}

    def assign(self, kind: str, number: int, subject: str) -> None:
        """Give an `exam` or a `session` another subject."""
        statements = {
            "exam": "UPDATE exams SET subject=? WHERE id=?",
            "session": "INSERT OR REPLACE INTO subjects (subject, session) SELECT ?, id FROM sessions WHERE id=?",
        }
        with self._open() as database, transaction(database):
            if not database.execute(statements[kind], (checked_subject(subject), number)).rowcount:
                raise StoreError(f"there is no {kind} {number}")

    def subjects(self) -> dict[int, str]:
        """The subject of each session that has one."""
        with self._open() as database:
            return {row["session"]: row["subject"] for row in database.execute("SELECT * FROM subjects")}

    def sessions(self, number: int) -> list[int]:
        """The sessions that an exam consists of."""
        return [site["session"] for site in self.document(number)["sites"].values() if site["session"]]

    def delete(self, number: int) -> None:
        """Remove an exam for good; its sessions go before, by `delete_session`."""
        with self._open() as database:
            database.execute("DELETE FROM exams WHERE id=?", (number,))
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def give_opinion(self, session: int, number: int, opinion: str, account: str) -> None:
        """Store what a clinician thinks of a cycle's class; an empty opinion removes it."""
        if opinion not in ("", *OPINIONS):
            raise StoreError(f"an opinion is {' or '.join(OPINIONS)}, or empty")
        with self._open() as database, transaction(database):
            if not database.execute("SELECT 1 FROM cycles WHERE session=? AND number=?", (session, number)).fetchone():
                raise StoreError(f"session {session} has no cycle {number}")
            if opinion:
                row = (session, number, opinion, account, time.time())
                database.execute("INSERT OR REPLACE INTO opinions VALUES (?, ?, ?, ?, ?)", row)
            else:
                database.execute("DELETE FROM opinions WHERE session=? AND number=?", (session, number))

    def opinions(self, session: int) -> dict[int, str]:
        """The opinion of each cycle that has one."""
        with self._open() as database:
            rows = database.execute("SELECT number, opinion FROM opinions WHERE session=?", (session,))
            return {row["number"]: row["opinion"] for row in rows}

    def with_opinion(self) -> list[Row]:
        """Every cycle that has an opinion, with what is known of its session, in order."""
        with self._open() as database:
            rows = database.execute(
                "SELECT cycles.*, opinion, source, site, passport FROM opinions JOIN cycles USING (session, number) "
                "JOIN sessions ON id = session ORDER BY session, number"
            )
            return [dict(row) for row in rows]

    def people(self) -> dict[int, tuple[str, float | None]]:
        """Subject and age of each session that has any: its own subject, else that of its exam."""
        found: dict[int, tuple[str, float | None]] = {}
        for exam in self.listed():
            known = (exam["subject"], exam["age_years"])
            found |= dict.fromkeys(self.sessions(exam["id"]), known)
        for session, subject in self.subjects().items():
            found[session] = (subject or found.get(session, ("", None))[0], found.get(session, ("", None))[1])
        return found
