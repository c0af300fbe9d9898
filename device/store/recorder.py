"""What a device remembers: sessions, cycles and timeline in SQLite; a committed row survives kill -9 and power loss.

The tables, and what survives what, are described in docs/store.md.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from device.capture.timeline import Entry
from device.listening.cycle import CycleResult
from device.signal import SAMPLE_RATE
from device.store.audio import AudioStore, ForeignSoundError
from device.store.file import SIDE_FILES, OpenFile, alone, close_to_others, make_private, side_file
from device.verdict.summary import Summary
from firmware_config.command_line import printable
from firmware_config.errors import RespSAMError
from firmware_config.settings import Settings, SettingsError

VERSION: Final = 3
LOCK_SECONDS = 1.0  # waiting for another writer; sound waits in the queue meanwhile
RETRY_SECONDS = (5.0, 60.0)  # from one try to the next while nothing can be stored: at first, and at most
CLOCK_JUMP_SECONDS = 3 * 86_400.0  # from one session to the next; more may be a clock that is wrong
CLOCK_STANDS_SECONDS = 86_400.0  # a clock that jumped is believed when sessions went on by it for so long
RETENTION_CYCLES = 100  # the audio's age and size are looked at once in so many cycles
KEPT, DELETED = "kept", "deleted"  # of a cycle's audio; empty where it never was
CHECK_SECONDS, CHECK_STEPS = 0.3, 1000  # for the integrity check when a session begins
UNSTORED = "unstored"  # kind of the timeline row that counts what could not be kept
REMOVED: Final = "deleted"  # in place of the owner of a session that somebody deleted

TABLES = (
    """CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, started_at REAL NOT NULL, ended_at REAL, source TEXT NOT NULL,
    site TEXT NOT NULL, demo INTEGER NOT NULL, bundle TEXT NOT NULL, bundle_name TEXT NOT NULL,
    settings_fingerprint TEXT NOT NULL, settings TEXT NOT NULL, not_validated TEXT NOT NULL,
    verdict TEXT, probability REAL, heard_samples INTEGER, missing_samples INTEGER, dropped_samples INTEGER,
    gradable_samples INTEGER, reasons TEXT, stretches INTEGER, stretches_flagged INTEGER
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
FROM_VERSION_1 = (
    *(f"ALTER TABLE {table} RENAME TO old_{table}" for table in ("sessions", "cycles", "timeline")),
    *TABLES,
    f"""INSERT INTO sessions SELECT id, started_at, ended_at, source, '', demo, bundle, '', settings, '', '', verdict,
    probability, CAST(round(heard_seconds * {SAMPLE_RATE}) AS INTEGER),
    CAST(round(missing_seconds * {SAMPLE_RATE}) AS INTEGER), iif(ended_at IS NULL, NULL, 0),
    CAST(round(gradable_seconds * {SAMPLE_RATE}) AS INTEGER), reasons, NULL, NULL FROM old_sessions""",
    f"""INSERT INTO cycles SELECT session, number, demo, CAST(round(start_seconds * {SAMPLE_RATE}) AS INTEGER),
    CAST(round(end_seconds * {SAMPLE_RATE}) AS INTEGER), kind, rhythm, level_dbfs, reason, '{{}}', probability, class,
    flag, NULL, '', NULL FROM old_cycles""",
    "INSERT INTO timeline SELECT session, demo, sample, kind, missing_samples, note FROM old_timeline",
    *(f"DROP TABLE old_{table}" for table in ("timeline", "cycles", "sessions")),
)
# Version 2 judged all of a cycle's samples, and told sites by any cycles in a row.
FROM_VERSION_2 = (
    "ALTER TABLE cycles ADD COLUMN context_start_sample INTEGER",
    "ALTER TABLE sessions ADD COLUMN stretches INTEGER",
    "ALTER TABLE sessions ADD COLUMN stretches_flagged INTEGER",
)
MIGRATIONS = {0: TABLES, 1: FROM_VERSION_1, 2: FROM_VERSION_2}
# Beside the versioned tables, made where it is missing. It holds the owner of each session: its one writer's mark.
META = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
# What `list` says of each session's cycles, counted as they come: it must not read the whole history.
COUNTS = ("cycles", "graded", "flagged", "with_audio")
TOTALS = "CREATE TABLE IF NOT EXISTS totals (session INTEGER PRIMARY KEY, cycles, graded, flagged, with_audio)"
COUNT_ALL = f"""INSERT OR REPLACE INTO totals SELECT session, count(*), count(probability), coalesce(sum(flag), 0),
    coalesce(sum(audio = '{KEPT}'), 0) FROM cycles GROUP BY session"""
COUNTING = (
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
    """The store cannot be opened or written; listening goes on without it."""


class DamagedError(StoreError):
    """The file is no database, or one that fails its integrity check."""


class GoneError(StoreError):
    """The file was deleted, moved or replaced while it was open, or has lost the session."""


class SessionDeletedError(StoreError):
    """Somebody deleted the session that is being written; nothing more of it may be kept."""


@dataclass(frozen=True)
class Beginning:
    """What is known of a session when it begins."""

    source: str
    demo: bool
    """Stands on every row of a simulated session."""
    bundle: str
    """Fingerprint."""
    bundle_name: str
    settings: Settings
    site: str = ""
    """Where on the chest; empty where nobody said."""
    not_validated: tuple[str, ...] = ()
    """Why no verdict of this session is inside of what was validated."""
    started_at: float = field(default_factory=time.time)
    """Wall time, seconds since 1970. An attribute only: what happens in a session is counted in samples."""


@dataclass(frozen=True)
class Outage:
    """What could not be stored for a while; `sample` is where it began."""

    sample: int
    reason: str
    cycles: int = 0
    entries: int = 0

    @property
    def lost(self) -> str:
        """In words."""
        return f"{self.cycles} cycles and {self.entries} timeline entries not kept"


def trusted_time(began: Sequence[float], now: float) -> float:
    """The time by which sound ages: `now`, or less when the clock jumped a short while ago.

    `began` has the times at which sessions began, in their order. A clock that went back or far ahead since the
    session before is wrong, or was wrong then, or the device was put away; until it has stood for a day, the earliest
    of the last three such stretches counts.
    """
    times = [*began, now]
    jumps = [at for at in range(1, len(times)) if not 0 <= times[at] - times[at - 1] <= CLOCK_JUMP_SECONDS]
    if not jumps or now - times[jumps[-1]] >= CLOCK_STANDS_SECONDS:
        return now
    return min(now, *(times[at - 1] for at in jumps[-2:]))


@contextmanager
def told(file: Path, what: str) -> Iterator[None]:
    """Errors of SQLite and of the disk as a StoreError: DamagedError where the file itself is broken."""
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
        # a path, a site or a setting with bytes that are no text
        raise StoreError(f"{printable(file)}: {what}: not UTF-8 ({error}); set store.path to a plain name") from error


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, on the disk when it ends."""
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
    """The database, made or migrated to this version where needed; StoreError when it cannot be, left as it was."""
    with told(file, "cannot be opened"):
        # autocommit: every statement outside `transaction` is one of its own
        database = sqlite3.connect(file, isolation_level=None, timeout=LOCK_SECONDS)
    try:
        with told(file, "cannot be opened"):
            version = _version(file, database)
            if check:
                _quick_check(database)
            if version == 0:
                database.execute("PRAGMA journal_mode=WAL")
            for pragma in ("synchronous=FULL", "foreign_keys=OFF", "secure_delete=ON"):
                database.execute(f"PRAGMA {pragma}")
            if version != VERSION:
                with transaction(database):
                    # two devices may begin at once on one file: only now is it ours
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
    """As much of it as a short while allows: a long history must not keep a patient waiting."""
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
    """The database for reading, also where nothing can be written, and in words what may be missing then."""
    try:
        return open_database(file), ""
    except StoreError as error:
        # what another process is writing just now is not read past its lock
        if not isinstance(error.__cause__, sqlite3.OperationalError) or "locked" in str(error):
            raise
        first = error
    log = side_file(file, "-wal")
    for options in ("mode=ro", "immutable=1"):
        try:
            with told(file, "cannot be read"):
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
    """The mark of a session's one writer, which its sound bears too; empty for a session older than marks are."""
    if not _has(database, "meta"):
        return ""
    found = database.execute("SELECT value FROM meta WHERE name = ?", (_owner_name(session),)).fetchone()
    return str(found[0]) if found else ""


def _has(database: sqlite3.Connection, name: str) -> bool:
    return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone())


def mark_removed(database: sqlite3.Connection, session: int) -> None:
    """So that whoever still writes this session learns of it."""
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_owner_name(session), REMOVED))


def _owner_name(session: int) -> str:
    return f"session {session}"


def set_aside(file: Path) -> Path:
    """Rename a damaged database, with what belongs to it; its new name."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = file.with_name(f"{file.name}.damaged-{stamp}")
    for suffix in (*SIDE_FILES, "-audio", ""):
        source = side_file(file, suffix)
        if source.exists():
            close_to_others(source)
            source.rename(side_file(aside, suffix))
    return aside


class Store:
    """The writer of one session; every call is one commit."""

    def __init__(self, beginning: Beginning) -> None:
        """Open or make the file and begin a session. A damaged file is set aside. Raises StoreError."""
        settings = beginning.settings
        try:
            self.file, self.demo = settings.store.file, beginning.demo
        except SettingsError as error:
            raise StoreError(f"sessions cannot be stored: {error}") from error
        self.warning = ""
        """What happened at the opening that somebody should know."""
        self._owner = secrets.token_hex(16)
        with told(self.file, "sessions cannot be stored"):
            make_private(self.file, own_folder=not settings.store.path)
            with alone(self.file.parent, LOCK_SECONDS):
                self._database = self._open()
                self._opened = OpenFile(self.file)
        self.audio = AudioStore(self.file, self._owner)
        self._settings = settings.store
        self._cycles_to_retention = 0
        try:
            with told(self.file, "sessions cannot be stored"):
                self.session = self._begin(beginning)
                self._opened = OpenFile(self.file)  # its log is there by now
                self._retain()
        except StoreError:
            self.close()
            raise

    def _begin(self, beginning: Beginning) -> int:
        about = vars(beginning) | {
            "settings_fingerprint": beginning.settings.fingerprint(),
            "settings": beginning.settings.model_dump_json(),
            "not_validated": "; ".join(beginning.not_validated),
        }
        with transaction(self._database):
            (last,) = self._database.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
            # sound may lie here of a database that is gone: its numbers are not given again either
            session = self._insert("sessions", id=max(last, self.audio.last_session()) + 1, **about)
            self._insert("meta", name=_owner_name(session), value=self._owner)
        return session

    def _open(self) -> sqlite3.Connection:
        try:
            return open_database(self.file, check=True)
        except DamagedError as error:
            aside = set_aside(self.file)
            cause = error.__cause__
            make_private(self.file, own_folder=False)
            self.warning = f"{self.file} was damaged ({cause}); it is kept as {aside}, and a new one is begun"
            return open_database(self.file)

    def add(self, happened: CycleResult | Entry, outage: Outage | None = None) -> None:
        """One judged cycle with its sound, or one timeline entry; and what was not kept before it."""
        with told(self.file, "not stored"):
            if isinstance(happened, Entry):
                with self._ours(), transaction(self._database):
                    self._add_outage(outage)
                    self._add_entry(happened.sample, happened.kind, happened.missing_samples, happened.note)
            else:
                self._check()
                self._retain()
                with self._sound(happened), self._ours(), transaction(self._database):
                    self._add_outage(outage)
                    self._add_cycle(happened)

    def end(self, summary: Summary, outage: Outage | None = None) -> None:
        """The session's verdict and account."""
        account = (summary.heard_samples, summary.missing_samples, summary.dropped_samples, summary.gradable_samples)
        words = ("; ".join(summary.reasons), "; ".join(summary.not_validated))
        stretches = (summary.stretches, summary.stretches_flagged)
        known = (time.time(), summary.verdict, summary.probability, *account, *words, *stretches, self.session)
        with told(self.file, "not stored"), self._ours(), transaction(self._database):
            self._add_outage(outage)
            self._database.execute(
                "UPDATE sessions SET ended_at=?, verdict=?, probability=?, heard_samples=?, missing_samples=?, "
                "dropped_samples=?, gradable_samples=?, reasons=?, not_validated=?, stretches=?, stretches_flagged=? "
                "WHERE id=?",
                known,
            )

    def close(self, damaged: bool = False) -> None:
        """Give the file back, aside when it is damaged; what has taken its place meanwhile is left as it is."""
        with ExitStack() as stack, told(self.file, "cannot be closed"):
            with suppress(OSError):  # its folder may be locked, or gone
                stack.enter_context(alone(self.file.parent, LOCK_SECONDS))
            self._opened.close(self._database.close)
            if damaged and self._opened.is_there():
                set_aside(self.file)

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """A write that counts only when the file was this session's before it and after it."""
        self._check()
        yield
        self._check()

    def _check(self) -> None:
        """Whether what is written goes to where somebody will find it; raises GoneError or SessionDeletedError."""
        owner = session_owner(self._database, self.session)
        if owner == REMOVED:
            raise SessionDeletedError(
                f"{self.file}: session {self.session} was deleted while it listens; nothing more of it is kept"
            )
        if owner != self._owner or not self._opened.is_there():
            raise GoneError(f"{self.file}: it was deleted, moved or replaced while session {self.session} was written")

    def _insert(self, table: str, **row: str | float | None) -> int:
        statement = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
        return int(self._database.execute(statement, tuple(row.values())).lastrowid or 0)

    @contextmanager
    def _sound(self, cycle: CycleResult) -> Iterator[None]:
        """On the disk before its row is, and gone again where there will be no row, as in a session just deleted."""
        if not self._settings.audio:
            yield
            return
        try:
            self.audio.keep(self.session, cycle.number, cycle.samples)
        except ForeignSoundError as error:
            raise GoneError(str(error)) from error
        try:
            yield
        except BaseException:
            self.audio.discard(self.session, cycle.number)
            raise

    def _add_outage(self, outage: Outage | None) -> None:
        if outage is not None:
            self._add_entry(outage.sample, UNSTORED, 0, f"{outage.lost}: {outage.reason}")

    def _add_entry(self, sample: int, kind: str, missing_samples: int, note: str) -> None:
        row = (self.session, self.demo, sample, kind, missing_samples, note)
        self._database.execute("INSERT INTO timeline VALUES (?, ?, ?, ?, ?, ?)", row)

    def _add_cycle(self, cycle: CycleResult) -> None:
        row = cycle.row() | {"quality": json.dumps(asdict(cycle.quality)), "demo": self.demo}
        self._insert("cycles", session=self.session, audio=KEPT if self._settings.audio else "", **row)

    def _retain(self) -> None:
        """Remove audio that is too old or too much; the rows say so first, so that none promises what is gone."""
        self._cycles_to_retention -= 1
        if self._cycles_to_retention >= 0:
            return
        self._cycles_to_retention = RETENTION_CYCLES - 1
        latest = self._database.execute("SELECT started_at FROM sessions ORDER BY id DESC LIMIT 1000").fetchall()
        now = time.time()
        trusted = trusted_time([began for (began,) in reversed(latest)], now)
        limits = (self._settings.audio_days, self._settings.audio_megabytes)
        surplus = self.audio.surplus(trusted, *limits)
        if trusted < now and (spared := len(self.audio.surplus(now, *limits)) - len(surplus)):
            self.warning = self.warning or (
                f"the clock jumped by {(now - trusted) / 86_400:.0f} days; {spared} cycles' sound that it calls too "
                "old is kept until the clock has stood for a day"
            )
        with transaction(self._database):
            self._database.executemany(
                f"UPDATE cycles SET audio='{DELETED}' WHERE session=? AND number=?",
                [(one.session, one.number) for one in surplus],
            )
        self.audio.remove(surplus)


class Recorder:
    """A store that may be missing: a failure is told in one warning, listening goes on, and storing resumes."""

    def __init__(
        self,
        opening: Callable[[], Store] | None,
        warn: Callable[[str], None],
        retry_seconds: float = RETRY_SECONDS[0],
    ) -> None:
        """`opening` makes the store, None where nothing is to be kept."""
        self._opening, self._warn = opening, warn
        self._store: Store | None = None
        self._outage: Outage | None = None
        self._first_pause = self._pause = retry_seconds
        self._next_try = 0.0
        if opening is not None:
            self._try(lambda store, outage: None, Outage(0, ""))

    def add(self, happened: CycleResult | Entry) -> None:
        """As Store.add; never fails."""
        if isinstance(happened, Entry):
            this = Outage(happened.sample, "", entries=1)
        else:
            this = Outage(happened.start_sample, "", cycles=1)
        if self._opening is None:
            return
        if self._outage is None or time.monotonic() >= self._next_try:
            self._try(lambda store, outage: store.add(happened, outage), this)
        else:
            self._miss(this)

    def end(self, summary: Summary) -> None:
        """As Store.end, and gives the file back; never fails."""
        was_open = self._store is not None
        self._try(lambda store, outage: store.end(summary, outage), Outage(0, ""))
        if was_open and self._store is None:  # the file is gone: the verdict goes where the next session would
            self._try(lambda store, outage: store.end(summary, outage), Outage(0, ""))
        self._leave()

    def _try(self, write: Callable[[Store, Outage | None], None], this: Outage) -> None:
        if self._opening is None:
            return
        try:
            if self._store is None:
                self._store = self._opening()
                if self._store.warning:
                    self._warn(self._store.warning)
            write(self._store, self._outage)
        except SessionDeletedError as error:
            self._leave()
            self._opening, self._outage = None, None
            self._warn(str(error))
            return
        except StoreError as error:
            if isinstance(error, GoneError | DamagedError):
                self._leave(damaged=isinstance(error, DamagedError))
            if self._outage is None:
                self._outage = Outage(this.sample, str(error))
                self._warn(f"{error}; listening goes on, but nothing is kept until this works again")
            self._miss(this)
            self._next_try = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, RETRY_SECONDS[1])
            return
        if self._outage is not None:
            self._warn(f"{self._store.file}: sessions are stored again; {self._outage.lost} meanwhile")
            self._outage = None
        # slowly: a disk that is full every other time would else warn every few seconds
        self._pause = max(self._first_pause, 0.9 * self._pause)

    def _leave(self, damaged: bool = False) -> None:
        store, self._store = self._store, None
        if store is not None:
            with suppress(StoreError):  # whatever was committed is there
                store.close(damaged)

    def _miss(self, this: Outage) -> None:
        before = self._outage
        assert before is not None
        self._outage = Outage(before.sample, before.reason, before.cycles + this.cycles, before.entries + this.entries)
