"""Stored sessions: list, show, export, delete, and replay through the model."""

import csv
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from device.breath.quality import Quality
from device.signal import SAMPLE_RATE, Span
from device.store.audio import AudioStore
from device.store.recorder import (
    COUNTS,
    KEPT,
    TABLES,
    UNSTORED,
    StoreError,
    mark_removed,
    open_database,
    open_to_read,
    session_owner,
    told,
    transaction,
)
from device.verdict.site import SiteDecision
from device.verdict.summary import ACCOUNT
from firmware_config.settings import Layer, load_settings

Row = dict[str, Any]
Cells = dict[str, str]
SESSIONS = f"""SELECT sessions.*, {", ".join(f"coalesce(totals.{name}, 0) AS {name}" for name in COUNTS)}
    FROM sessions LEFT JOIN totals ON session = id"""
NOT_GRADED, DAMAGED = "not graded", "whose audio is damaged"
SESSION_COLUMNS = "demo id started_at site verdict heard_samples flagged with_audio source"
CYCLE_COLUMNS = "demo number start_sample end_sample kind level_dbfs probability class flag audio reason"
ADDED_COLUMNS = ("source", "site", "bundle")  # of the session, on every row of a CSV
ENTRY_COLUMNS = "demo sample kind missing_samples note"


Warn = Callable[[str], None]


def _silent(_warning: str) -> None:
    pass


@contextmanager
def _opened(file: Path, warn: Warn = _silent) -> Iterator[sqlite3.Connection]:
    _look_for(file)
    database, missing = open_to_read(file)
    if missing:
        warn(missing)
    with closing(database), told(file, "cannot be read"):
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


def list_sessions(file: Path, warn: Warn = _silent) -> list[Row]:
    """One row a session, in the order they began, without its settings; none where nothing was ever stored."""
    if not file.exists():
        return []
    with _opened(file, warn) as database:
        return _rows(database, f"{SESSIONS} ORDER BY id", without="settings")


def read_session(file: Path, number: int, warn: Warn = _silent) -> Row:
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


def _sound_is_its_own(file: Path, number: int) -> bool:
    with _opened(file) as database:
        return AudioStore(file).belongs_to(number, session_owner(database, number))


def delete_session(file: Path, number: int) -> None:
    """Remove a session's rows, then its audio, and nothing else."""
    _look_for(file)
    with closing(open_database(file)) as database, told(file, "cannot be changed"):
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


@dataclass(frozen=True)
class Difference:
    """One answer that came out otherwise: a cycle's, or with number None the site's."""

    number: int | None
    stored: tuple[float | None, str | None]
    """Probability, and class or verdict."""
    replayed: tuple[float | None, str | None]

    def __str__(self) -> str:
        what = "site" if self.number is None else f"cycle {self.number}"
        stored, replayed = (f"{probability!r} {word}" for probability, word in (self.stored, self.replayed))
        return f"{what} differs: stored {stored}, replayed {replayed}"


@dataclass(frozen=True)
class Replay:
    """What replaying a session came to."""

    session: int
    demo: bool
    bundle: str
    other_bundle: bool
    """Compared with another bundle than the session's, because somebody asked for it."""
    replayed: int
    identical: int
    """Cycles of which probability, class and flag came out the same, bit for bit."""
    differing: tuple[Difference, ...]
    left_out: dict[str, tuple[int, ...]]
    """Why cycles could not be compared, with their numbers."""
    verdict: str | None
    """The site's, decided again; None where cycles are missing, or the session never came to one."""

    @property
    def exact(self) -> bool:
        """Whether all that was kept came out the same."""
        return not self.differing and DAMAGED not in self.left_out

    def as_json(self) -> dict[str, Any]:
        """The object of `replay --json`."""
        return {"type": "replay", **asdict(self), "exact": self.exact}

    def lines(self) -> list[str]:
        """In words."""
        other = f"; COMPARED WITH ANOTHER BUNDLE ({self.bundle[:12]})" if self.other_bundle else ""
        lines = [f"session {self.session}: {self.identical} of {self.replayed} replayed cycles identical{other}"]
        lines += [f"  {one}" for one in self.differing]
        lines += [f"  {len(which)} cycles {why}: {', '.join(map(str, which))}" for why, which in self.left_out.items()]
        lines.append(f"verdict: {self.verdict or 'not decided again, as cycles or the end are missing'}")
        return [f"DEMO {line}" if self.demo else line for line in lines]


def replay(
    file: Path, number: int, bundle: Path | None = None, *, anyway: bool = False, warn: Warn = _silent
) -> Replay:
    """Judge a session's stored audio again, one cycle at a time, on its own settings; nothing is written.

    Probabilities, classes and the site's verdict are compared for equality: on the CPU engine the tolerance is 0.
    Raises StoreError where there is no audio, and where another bundle than the session's is given, unless `anyway`.
    """
    from device.capture.recording import AudioError
    from device.model.opening import open_classifier

    session = read_session(file, number, warn)
    if not session["cycles"]:
        raise StoreError(f"{file}: session {number} ended before its first cycle; there is nothing to replay")
    if not _sound_is_its_own(file, number):
        raise StoreError(f"{AudioStore(file).folder / str(number)}: the sound of another session, not of this {number}")
    if all(cycle["audio"] != KEPT for cycle in session["cycles"]):
        raise StoreError(f"{file}: no audio of session {number} is kept; set store.audio before listening")
    # what is a new setting since then has its default
    own = load_settings(environment={}, layers=[Layer(f"session {number}", session["settings"])]).bundle
    classifier = open_classifier(own if bundle is None else own.model_copy(update={"path": str(bundle)}))
    other = classifier.fingerprint != session["bundle"]
    if other and not anyway:
        raise StoreError(
            f"{classifier.bundle.path}: is bundle {classifier.fingerprint}, session {number} needs "
            f"{session['bundle']} ({session['bundle_name']}); give that one with --bundle, or compare with --anyway"
        )
    audio, decision, replayed = AudioStore(file), SiteDecision(classifier.site_rule), 0
    differing: list[Difference] = []
    left_out: dict[str, tuple[int, ...]] = {}
    for cycle in session["cycles"]:
        why, at = _unreplayable(cycle, audio), cycle["number"]
        if cycle["probability"] is None:
            decision.refuse(cycle["reason"])
        elif not why:
            try:
                judgement = classifier.judge(audio.read(number, at), _span(cycle))
            except AudioError:
                why = DAMAGED
            else:
                replayed += 1
                decision.add(judgement)
                stored, answer = (cycle["probability"], cycle["class"]), (judgement.probability, judgement.label)
                differing += [Difference(at, stored, answer)] * (stored != answer)
        if why:
            left_out[why] = (*left_out.get(why, ()), at)
    identical, verdict = replayed - len(differing), None
    unstored = any(entry["kind"] == UNSTORED for entry in session["timeline"])
    # before schema 3 sites were decided by another rule
    decided = session["verdict"] and session["stretches"] is not None
    if decided and not unstored and not left_out.keys() - {NOT_GRADED}:
        decision.end()
        verdict = decision.verdict
        before, now = (session["probability"], session["verdict"]), (decision.probability, verdict)
        differing += [Difference(None, before, now)] * (before != now)
    return Replay(
        number,
        session["demo"],
        classifier.fingerprint,
        other,
        replayed,
        identical,
        tuple(differing),
        left_out,
        verdict,
    )


def _span(cycle: Row) -> Span | None:
    """Where a cycle lies in its stored sound; None where it is all of it, as before schema 3."""
    before = cycle["context_start_sample"]
    return None if before is None else (cycle["start_sample"] - before, cycle["end_sample"] - before)


def _unreplayable(cycle: Row, audio: AudioStore) -> str:
    """Why there is nothing to compare; '' if there is."""
    if cycle["probability"] is None:
        return NOT_GRADED
    if not cycle["audio"]:
        return "whose audio was never kept"
    gone = cycle["audio"] != KEPT or not audio.path(cycle["session"], cycle["number"]).is_file()
    return "whose audio is gone" if gone else ""
