"""The database: its versions, its integrity, its counts."""

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from device.store.database import StoreError
from device.store.recorder import Store
from device.store.sessions import SESSIONS, about_lines, delete_session, list_sessions, read_session
from tests.device.storing import Judged, beginning, keep, rows

# what the first release wrote
VERSION_1 = """
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
INSERT INTO sessions VALUES (4, 1.5, 60.5, 'demo', 1, 'b', 's', 'flagged', 0.7, 20.00625, 1.46600, 18.5, 'wheeze');
INSERT INTO sessions VALUES (9, 70.5, NULL, 'mic', 0, 'b', 's', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO cycles VALUES (4, 1, 1, 0.1000625, 2.4999375, 'breath', 0.5, -40.5, '', 0.123456789, 'wheeze', 1);
INSERT INTO cycles VALUES (4, 2, 1, 2.4999375, 5.0, 'window', 0.0, -90.0, 'too quiet', NULL, NULL, 0);
INSERT INTO timeline VALUES (4, 1, 320100, 'gap', 23456, 'our queue was full');
PRAGMA user_version = 1;
"""

VERSION_2 = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, started_at REAL NOT NULL, ended_at REAL, source TEXT NOT NULL,
    site TEXT NOT NULL, demo INTEGER NOT NULL, bundle TEXT NOT NULL, bundle_name TEXT NOT NULL,
    settings_fingerprint TEXT NOT NULL, settings TEXT NOT NULL, not_validated TEXT NOT NULL,
    verdict TEXT, probability REAL, heard_samples INTEGER, missing_samples INTEGER, dropped_samples INTEGER,
    gradable_samples INTEGER, reasons TEXT
);
CREATE TABLE cycles (
    session INTEGER NOT NULL REFERENCES sessions(id), number INTEGER NOT NULL, demo INTEGER NOT NULL,
    start_sample INTEGER NOT NULL, end_sample INTEGER NOT NULL, kind TEXT NOT NULL, rhythm REAL NOT NULL,
    level_dbfs REAL NOT NULL, reason TEXT NOT NULL, quality TEXT NOT NULL, probability REAL, class TEXT,
    flag INTEGER NOT NULL, inference_seconds REAL, audio TEXT NOT NULL, PRIMARY KEY (session, number)
);
CREATE TABLE timeline (
    session INTEGER NOT NULL REFERENCES sessions(id), demo INTEGER NOT NULL, sample INTEGER NOT NULL,
    kind TEXT NOT NULL, missing_samples INTEGER NOT NULL, note TEXT NOT NULL
);
CREATE INDEX timeline_of_session ON timeline (session);
INSERT INTO sessions VALUES (4, 1.5, 60.5, 'mic', '', 0, 'b', 'n', 's', '{}', '', 'flagged', 0.7, 9, 0, 0, 9, 'wheeze');
INSERT INTO cycles VALUES (4, 1, 0, 0, 9, 'breath', 0.5, -40.5, '', '{}', 0.5, 'wheeze', 1, 0.01, 'kept');
PRAGMA user_version = 2;
"""

# as version 2, with what was added
VERSION_3 = VERSION_2.replace("PRAGMA user_version = 2", "PRAGMA user_version = 3").replace(
    "CREATE INDEX",
    "ALTER TABLE cycles ADD COLUMN context_start_sample INTEGER; ALTER TABLE sessions ADD COLUMN stretches INTEGER;"
    "ALTER TABLE sessions ADD COLUMN stretches_flagged INTEGER;\nCREATE INDEX",
)
VERSION_3 = VERSION_3.replace("9, 'wheeze');", "9, 'wheeze', 2, 1);").replace("'kept');", "'kept', 0);")


def test_the_file_is_written_ahead_and_synchronously(file: Path) -> None:
    store = Store(beginning(file))
    names = ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
    pragmas = [store._database.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    store.close()
    assert pragmas == ["wal", 2, 1, 1]
    assert rows(file, "PRAGMA user_version") == [(4,)]


# files of other times and other programs


def test_a_file_of_version_1_is_migrated_to_what_a_new_one_is(file: Path, tmp_path: Path, demo: Judged) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as database:
        database.executescript(VERSION_1)
    database.close()
    new = Store(beginning(file))
    keep(demo, new)
    new.close()
    Store(beginning(tmp_path / "fresh.sqlite")).close()
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    assert rows(file, schema) == rows(tmp_path / "fresh.sqlite", schema)
    assert rows(file, "PRAGMA user_version") == [(4,)]
    old = "SELECT id, started_at, ended_at, source, demo, settings_fingerprint, settings, verdict, probability, "
    account = "heard_samples, missing_samples, dropped_samples, gradable_samples, reasons FROM sessions WHERE id < 10"
    assert rows(file, old + account) == [
        (4, 1.5, 60.5, "demo", 1, "s", "", "flagged", 0.7, 320_100, 23_456, 0, 296_000, "wheeze"),
        (9, 70.5, None, "mic", 0, "s", "", None, None, None, None, None, None, None),
    ]
    assert rows(file, "SELECT * FROM cycles WHERE session = 4") == [
        (4, 1, 1, 1601, 39_999, "breath", 0.5, -40.5, "", "{}", 0.123456789, "wheeze", 1, None, "", None),
        (4, 2, 1, 39_999, 80_000, "window", 0.0, -90.0, "too quiet", "{}", None, None, 0, None, "", None),
    ]
    assert rows(file, "SELECT * FROM timeline WHERE session = 4") == [
        (4, 1, 320_100, "gap", 23_456, "our queue was full")
    ]
    assert rows(file, "SELECT max(id), count(*) FROM sessions") == [(10, 3)]
    assert rows(file, "PRAGMA foreign_key_check") == []


def test_a_file_of_version_2_is_migrated_and_says_nothing_of_spans_and_stretches(
    file: Path, tmp_path: Path, demo: Judged
) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as database:
        database.executescript(VERSION_2)
    database.close()
    new = Store(beginning(file))
    keep(demo, new)
    new.close()
    Store(beginning(tmp_path / "fresh.sqlite")).close()
    for table in ("sessions", "cycles", "timeline"):
        columns = f"SELECT name, type, \"notnull\", pk FROM pragma_table_info('{table}')"
        assert rows(file, columns) == rows(tmp_path / "fresh.sqlite", columns)
    assert rows(file, "PRAGMA user_version") == [(4,)]
    assert rows(file, "SELECT context_start_sample, audio, probability FROM cycles WHERE session = 4") == [
        (None, "kept", 0.5)
    ]
    assert rows(file, "SELECT verdict, stretches, stretches_flagged FROM sessions") == [
        ("flagged", None, None),
        (demo[2].verdict, demo[2].stretches, demo[2].stretches_flagged),
    ]


def test_a_file_of_version_3_keeps_its_rows_and_knows_no_passports(file: Path, tmp_path: Path, demo: Judged) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as database:
        database.executescript(VERSION_3)
    database.close()
    new = Store(beginning(file))
    keep(demo, new)
    new.close()
    Store(beginning(tmp_path / "fresh.sqlite")).close()
    columns = "SELECT name, type, \"notnull\", pk FROM pragma_table_info('sessions')"
    assert rows(file, columns) == rows(tmp_path / "fresh.sqlite", columns)
    assert rows(file, "SELECT verdict, stretches, passport, calibration, site_threshold, safe_mode FROM sessions") == [
        ("flagged", 2, None, None, None, None),
        (demo[2].verdict, demo[2].stretches, "", "", None, ""),
    ]
    assert rows(file, "SELECT context_start_sample FROM cycles WHERE session = 4") == [(0,)]
    old = read_session(file, 4)
    assert old["verdict"] == "flagged"
    assert not any(line.startswith(("stethoscope", "calibration", "SAFE MODE")) for line in about_lines(old))


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 7", "CREATE TABLE recipes (name)"])
def test_a_database_of_another_version_or_program_is_left_alone(file: Path, statement: str) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as database:
        database.execute(statement)
    database.close()
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"schema 7, this one reads 4|another program"):
        Store(beginning(file))
    assert file.read_bytes() == before
    assert [one.name for one in file.parent.iterdir()] == [file.name]


# a long history


def test_what_is_counted_is_what_is_there_and_nothing_long_is_read(file: Path, demo: Judged) -> None:
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
    file: Path, demo: Judged, monkeypatch: pytest.MonkeyPatch
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
