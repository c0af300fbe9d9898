"""The writer of a session: cycles and timeline as they come, then the verdict; it resumes after a failure."""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from device.capture.timeline import Entry
from device.listening.agreement import Agreement
from device.listening.cycle import CycleResult
from device.store.audio import AudioStore, ForeignSoundError
from device.store.database import (
    DELETED,
    KEPT,
    LOCK_SECONDS,
    REMOVED,
    UNSTORED,
    DamagedError,
    GoneError,
    SessionDeletedError,
    StoreError,
    as_store_error,
    open_database,
    owner_name,
    session_owner,
    set_aside,
    transaction,
)
from device.store.database_file import OpenFile, make_private
from device.store.outbox import make_tables, put, run_name
from device.store.sealing import read_key
from device.verdict.circumstances import PLAIN, Circumstances
from device.verdict.summary import Summary
from device.view.json_lines import summary_object
from firmware_config.files import alone
from firmware_config.settings import Settings, SettingsError, StoreSettings

RETRY_SECONDS: Final = (5.0, 60.0)  # between two tries while nothing can be stored: the first, and the longest
CLOCK_JUMP_SECONDS: Final = 3 * 86_400.0  # between two sessions; more may be a wrong clock
CLOCK_STANDS_SECONDS: Final = 86_400.0  # a clock is trusted again so long after a jump
RETENTION_CYCLES: Final = 100  # the audio's age and size are checked once in so many cycles


@dataclass(frozen=True)
class Beginning:
    """What is stored of a session when it begins."""

    source: str
    demo: bool
    """Whether the sound is simulated; stored in every row."""
    bundle: str
    """Fingerprint of the bundle."""
    bundle_name: str
    settings: Settings
    site: str = ""
    """The place on the chest; empty if unknown."""
    not_validated: tuple[str, ...] = ()
    """Why the model is not validated for this subject."""
    circumstances: Circumstances = PLAIN
    """Under what the verdict will be given."""
    site_threshold: float | None = None
    """Of the rule that decides about the site, calibrated or the bundle's own."""
    run: str = ""
    """Identifies the session in messages to a broker; empty if none are sent."""
    started_at: float = field(default_factory=time.time)
    """Wall time, seconds since 1970; within the session time is counted in samples."""


@dataclass(frozen=True)
class Outage:
    """Cycles and entries that could not be stored; `sample` is where that began."""

    sample: int
    reason: str
    cycles: int = 0
    entries: int = 0

    @property
    def lost(self) -> str:
        """As a phrase."""
        return f"{self.cycles} cycles and {self.entries} timeline entries not stored"


def trusted_time(began: Sequence[float], now: float) -> float:
    """The time for the age of sound: `now`, or less when the clock jumped recently; seconds since 1970.

    `began` has the start times of the sessions, in order. When the clock goes back or far ahead between two sessions,
    it is or was wrong, or the device was not used. For a day after that the earliest counts: `now`, or the time before
    one of the last two jumps.
    """
    times = [*began, now]
    jumps = [at for at in range(1, len(times)) if not 0 <= times[at] - times[at - 1] <= CLOCK_JUMP_SECONDS]
    if not jumps or now - times[jumps[-1]] >= CLOCK_STANDS_SECONDS:
        return now
    return min(now, *(times[at - 1] for at in jumps[-2:]))


class Store:
    """The writer of one session; every call is one commit."""

    def __init__(self, beginning: Beginning) -> None:
        """Open or make the file, set a damaged one aside, and begin a session; raises StoreError."""
        settings = beginning.settings
        try:
            self.file, self.demo = settings.store.file, beginning.demo
        except SettingsError as error:
            raise StoreError(f"sessions cannot be stored: {error}") from error
        self.warning = ""
        """What went wrong when the file was opened; empty if nothing did."""
        self._owner, self._run = secrets.token_hex(16), beginning.run
        key = read_key(settings.store) if settings.store.audio else None
        with as_store_error(self.file, "sessions cannot be stored"):
            make_private(self.file, own_folder=not settings.store.path)
            with alone(self.file.parent, LOCK_SECONDS):
                self._database = self._open()
                self._opened = OpenFile(self.file)
        self.audio = AudioStore(self.file, self._owner, key)
        self._settings, self._most_waiting = settings.store, settings.outputs.mqtt_waiting
        self._cycles_to_retention = 0
        try:
            with as_store_error(self.file, "sessions cannot be stored"):
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
            **beginning.circumstances.as_json(),
        }
        del about["circumstances"], about["run"]
        if self._run:
            make_tables(self._database)
        with transaction(self._database):
            numbered = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'sessions'"
            (last,) = self._database.execute(numbered).fetchone()
            # sound of a lost database may be here: its numbers are not used again either
            session = self._insert("sessions", id=max(last, self.audio.last_session()) + 1, **about)
            self._insert("meta", name=owner_name(session), value=self._owner)
            if self._run:
                self._insert("meta", name=run_name(session), value=self._run)
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

    def add(self, item: CycleResult | Entry, outage: Outage | None = None) -> None:
        """Store a cycle with its sound, or a timeline entry; and the outage before it. Raises StoreError."""
        with as_store_error(self.file, "not stored"):
            if isinstance(item, Entry):
                with self._ours(), transaction(self._database):
                    self._add_outage(outage)
                    self._add_entry(item.sample, item.kind, item.missing_samples, item.note)
            else:
                self._check()
                self._retain()
                with self._sound(item), self._ours(), transaction(self._database):
                    self._add_outage(outage)
                    self._add_cycle(item)

    def end(self, summary: Summary, outage: Outage | None = None, agreement: Agreement | None = None) -> None:
        """Store the session's verdict and account. Raises StoreError."""
        account = (summary.heard_samples, summary.missing_samples, summary.dropped_samples, summary.gradable_samples)
        words = ("; ".join(summary.reasons), "; ".join(summary.not_validated))
        stretches = (summary.stretches, summary.stretches_flagged)
        known = (time.time(), summary.verdict, summary.probability, *account, *words, *stretches, self.session)
        with as_store_error(self.file, "not stored"), self._ours(), transaction(self._database):
            self._add_outage(outage)
            self._database.execute(
                "UPDATE sessions SET ended_at=?, verdict=?, probability=?, heard_samples=?, missing_samples=?, "
                "dropped_samples=?, gradable_samples=?, reasons=?, not_validated=?, stretches=?, stretches_flagged=? "
                "WHERE id=?",
                known,
            )
            self._send(summary_object(summary, agreement))

    def close(self, damaged: bool = False) -> None:
        """Close the file, and set a damaged one aside; another file in its place is not touched."""
        with ExitStack() as stack, as_store_error(self.file, "cannot be closed"):
            with suppress(OSError):  # the folder may be locked, or deleted
                stack.enter_context(alone(self.file.parent, LOCK_SECONDS))
            self._opened.close(self._database.close)
            if damaged and self._opened.is_there():
                set_aside(self.file)

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """A write that is valid only if the file belongs to this session before and after it."""
        self._check()
        yield
        self._check()

    def _check(self) -> None:
        """Check that the file still belongs to this session; raises GoneError or SessionDeletedError."""
        owner = session_owner(self._database, self.session)
        if owner == REMOVED:
            raise SessionDeletedError(
                f"{self.file}: session {self.session} was deleted while it runs; no more of it is stored"
            )
        if owner != self._owner or not self._opened.is_there():
            raise GoneError(f"{self.file}: it was deleted, moved or replaced while session {self.session} was written")

    def _insert(self, table: str, **row: str | float | None) -> int:
        statement = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
        return int(self._database.execute(statement, tuple(row.values())).lastrowid or 0)

    @contextmanager
    def _sound(self, cycle: CycleResult) -> Iterator[None]:
        """Write the sound before its row; remove it again if the row fails, as in a session just deleted."""
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
        self._send(cycle.as_json())

    def _send(self, value: Any) -> None:
        """Leave a message for the broker, in the same transaction."""
        if self._run:
            put(self._database, value, self._run, self._most_waiting)

    def _retain(self) -> None:
        """Remove audio that is too old or too much; first the rows change, so that none refers to a missing file."""
        self._cycles_to_retention -= 1
        if self._cycles_to_retention >= 0:
            return
        self._cycles_to_retention = RETENTION_CYCLES - 1
        warning = retain(self._database, self.audio, self._settings)
        self.warning = self.warning or warning


def retain(database: sqlite3.Connection, audio: AudioStore, settings: StoreSettings) -> str:
    """Remove audio that is too old or too much; a warning about the clock, empty without one.

    First the rows change, so that none refers to a missing file. The sound of a store that was set aside has no rows.
    """
    latest = database.execute("SELECT started_at FROM sessions ORDER BY id DESC LIMIT 1000").fetchall()
    now = time.time()
    trusted = trusted_time([began for (began,) in reversed(latest)], now)
    limits = (settings.audio_days, settings.audio_megabytes)
    surplus = audio.surplus(trusted, *limits)
    with transaction(database):
        database.executemany(
            f"UPDATE cycles SET audio='{DELETED}' WHERE session=? AND number=?",
            [(file.session, file.number) for file in surplus],
        )
    audio.remove(surplus)
    for aside in audio.set_aside():
        aside.remove(aside.surplus(trusted, *limits))
    spared = len(audio.surplus(now, *limits)) if trusted < now else 0
    return (
        f"the clock jumped by {(now - trusted) / 86_400:.0f} days; {spared} cycles' sound that it calls too "
        "old is kept until the clock has been right for a day"
    ) * bool(spared)


class Recorder:
    """A store that may fail: one warning, listening continues, and storing resumes when it works again."""

    def __init__(
        self,
        opening: Callable[[], Store] | None,
        warn: Callable[[str], None],
        retry_seconds: float = RETRY_SECONDS[0],
    ) -> None:
        """`opening` opens the store; None if nothing is to be stored."""
        self._opening, self._warn = opening, warn
        self._store: Store | None = None
        self._outage: Outage | None = None
        self._first_pause = self._pause = retry_seconds
        self._next_try = 0.0
        if opening is not None:
            self._try(lambda store, outage: None, Outage(0, ""))

    @property
    def session(self) -> int | None:
        """The number of the session that is being written; None while the store is closed."""
        return None if self._store is None else self._store.session

    def add(self, item: CycleResult | Entry) -> None:
        """As Store.add; never fails."""
        if isinstance(item, Entry):
            lost = Outage(item.sample, "", entries=1)
        else:
            lost = Outage(item.start_sample, "", cycles=1)
        if self._opening is None:
            return
        if self._outage is None or time.monotonic() >= self._next_try:
            self._try(lambda store, outage: store.add(item, outage), lost)
        else:
            self._miss(lost)

    def end(self, summary: Summary, agreement: Agreement | None = None) -> None:
        """As Store.end, and closes the file; never fails."""
        was_open = self._store is not None
        self._try(lambda store, outage: store.end(summary, outage, agreement), Outage(0, ""))
        if was_open and self._store is None:  # the file is gone: the verdict goes into a new one
            self._try(lambda store, outage: store.end(summary, outage, agreement), Outage(0, ""))
        self._leave()

    def _try(self, write: Callable[[Store, Outage | None], None], lost: Outage) -> None:
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
                self._outage = Outage(lost.sample, str(error))
                self._warn(f"{error}; listening continues, but nothing is stored until this works again")
            self._miss(lost)
            self._next_try = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, RETRY_SECONDS[1])
            return
        if self._outage is not None:
            self._warn(f"{self._store.file}: sessions are stored again; {self._outage.lost} meanwhile")
            self._outage = None
        # reduce the pause slowly: a disk that is full now and then would warn every few seconds
        self._pause = max(self._first_pause, 0.9 * self._pause)

    def _leave(self, damaged: bool = False) -> None:
        store, self._store = self._store, None
        if store is not None:
            with suppress(StoreError):  # all that was committed is safe
                store.close(damaged)

    def _miss(self, lost: Outage) -> None:
        before = self._outage
        assert before is not None
        self._outage = Outage(before.sample, before.reason, before.cycles + lost.cycles, before.entries + lost.entries)
