"""Two slots for installed bundles: one is active, the other keeps what was active before.

`state.json` names the active slot, and is replaced whole: whatever stops an installation, a start finds the old bundle
or the new one. A new bundle is on trial until a start with it has passed the self-test.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from device.bundle import Bundle, BundleError, read_bundle
from firmware_config.command_line import counted
from firmware_config.errors import RespSAMError
from firmware_config.files import FileError, alone, sync, write_atomically
from firmware_config.trust import Signature, Trust, TrustError

Slot = Literal["a", "b"]
SLOTS: Final[tuple[Slot, ...]] = get_args(Slot)
STATE: Final = "state.json"
SHIPPED: Final = "the shipped bundle"
MOST_STARTS: Final = 3  # of a bundle on trial, before the one before it returns
MOST_EVENTS: Final = 100
LOCK_SECONDS: Final = 5.0
BY_HAND: Final = "rolled back by hand"
Check = Callable[[Path], None]
"""The health check of a bundle; BundleError when it fails."""


class SlotsError(RespSAMError):
    """A slot that is empty or damaged, or slots that cannot be changed."""


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Installed(_Kept):
    """What is in a slot."""

    name: str
    """Of the bundle."""
    fingerprint: str
    """Of the bundle."""
    signed_at: int = 0
    """Seconds since 1970; 0 where no key is trusted."""
    installed_at: float
    """Seconds since 1970, by the box's clock."""
    starts: int = 0
    """That were begun while it is on trial."""
    proven: bool = False
    """Whether a start with it has passed the self-test; until then it is on trial."""

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint[:12]})"


class Event(_Kept):
    """Something that happened to the slots."""

    at: float
    """Seconds since 1970, by the box's clock."""
    what: str


class State(_Kept):
    """The content of `state.json`."""

    active: Slot | None = None
    """None: the bundle that is shipped with the device."""
    slots: dict[Slot, Installed] = {}
    newest_signed_at: int = 0
    """Of all bundles that were ever installed."""
    failed: dict[str, str] = {}
    """Fingerprints of bundles that failed here, and why: an update does not try them again."""
    events: tuple[Event, ...] = ()

    @property
    def current(self) -> Installed | None:
        """What is in the active slot; None for the shipped bundle."""
        return None if self.active is None else self.slots[self.active]

    @property
    def other(self) -> Slot | None:
        """The slot to fall back on; None if only the shipped bundle is left."""
        return next((slot for slot in SLOTS if slot != self.active and slot in self.slots), None)

    def holds(self, fingerprint: str) -> Slot | None:
        """The slot of a bundle."""
        return next((slot for slot, kept in self.slots.items() if kept.fingerprint == fingerprint), None)

    def named(self, slot: Slot | None) -> str:
        """`slot a, NAME (FINGERPRINT)`."""
        return SHIPPED if slot is None else f"slot {slot}, {self.slots[slot]}"

    def then(self, what: str, **changes: object) -> "State":
        """The next state, with one more event."""
        events = (*self.events, Event(at=time.time(), what=what))[-MOST_EVENTS:]
        return self.model_copy(update={"events": events, **changes})


class Slots:
    """The slots in a folder; every change is one exchange of `state.json`."""

    def __init__(self, folder: Path, trust: Trust) -> None:
        self.folder, self.trust = folder, trust

    def state(self) -> State:
        """What is installed; SlotsError when the file is damaged."""
        file = self.folder / STATE
        try:
            state = State.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return State()
        except (OSError, ValidationError) as error:
            raise SlotsError(
                f"{file}: damaged, so the shipped bundle is used; remove this file and install again"
            ) from error
        if state.active is not None and state.active not in state.slots:
            raise SlotsError(f"{file}: slot {state.active} is active and empty; remove this file and install again")
        return state

    def path(self, slot: Slot) -> Path:
        """The bundle's folder in a slot."""
        return self.folder / slot

    def open(self, slot: Slot, state: State) -> Bundle:
        """A slot's bundle; BundleError or TrustError when it is damaged, replaced, or not signed by a trusted key."""
        bundle = read_bundle(self.path(slot))
        if bundle.fingerprint != state.slots[slot].fingerprint:
            raise BundleError(f"{bundle.path}: not the bundle that was installed; install it again")
        bundle.require_trust(self.trust)
        return bundle

    def install(self, bundle: Bundle, check: Check) -> State:
        """Copy a bundle into the free slot, check the copy, and activate it; until then everything stays as it was.

        Raises what `check` raises, TrustError for an unsigned or older one, SlotsError when the disk is full.
        """
        with self._locked():
            state = self.state()
            signed = bundle.require_trust(self.trust)
            self._refuse_older(bundle, signed, state)
            signed_at = 0 if signed is None else signed.signed_at
            if self._is_in_use(bundle, signed_at, state):
                return state
            # a bundle on trial makes room, not the one before it
            before = state.active if self._proven(state) else state.other
            slot = next(slot for slot in SLOTS if slot != before)
            with self._partial(slot) as partial:
                _copy(bundle, partial)
                read_bundle(partial).require_trust(self.trust)
                check(partial)
                slots = {name: kept for name, kept in state.slots.items() if name != slot}
                self._write(state.model_copy(update={"active": before, "slots": slots}))
                shutil.rmtree(self.path(slot), ignore_errors=True)
                partial.rename(self.path(slot))
                sync(self.folder)
            name, fingerprint = bundle.manifest.name, bundle.fingerprint
            kept = Installed(name=name, fingerprint=fingerprint, signed_at=signed_at, installed_at=time.time())
            return self._write(
                state.then(
                    f"{kept} installed in slot {slot}",
                    active=slot,
                    slots={**slots, slot: kept},
                    newest_signed_at=max(signed_at, state.newest_signed_at),
                    failed={one: why for one, why in state.failed.items() if one != fingerprint},
                )
            )

    def _is_in_use(self, bundle: Bundle, signed_at: int, state: State) -> bool:
        """Whether the active slot has the same bundle, undamaged."""
        current = state.current
        if state.active is None or current is None:
            return False
        if (current.fingerprint, current.signed_at) != (bundle.fingerprint, signed_at):
            return False
        with suppress(BundleError, TrustError):
            self.open(state.active, state)
            return True
        return False

    def activate(self, slot: Slot | None, check: Check) -> State:
        """Use another slot, or with None the shipped bundle, after the health check; raises what `install` raises."""
        with self._locked():
            state = self._checked(slot, self.state(), check)
            return self._write(state.then(f"{state.named(slot)} activated", active=slot))

    def roll_back(self, check: Check) -> State:
        """Return to the bundle before the active one; an update does not install the active one again by itself."""
        with self._locked():
            state = self.state()
            if state.current is None:
                raise SlotsError(f"{self.folder}: {SHIPPED} is in use, there is nothing to roll back to")
            state = self._checked(state.other, state, check)
            return self._write(self._after_failure(state, state.other, BY_HAND))

    def mark_failed(self, fingerprint: str, why: str) -> State:
        """Remember that a bundle failed here, so that an update does not try it again."""
        with self._locked():
            state = self.state()
            return self._write(state.model_copy(update={"failed": {**state.failed, fingerprint: why}}))

    def settle(self, check: Check, warn: Callable[[str], None]) -> Bundle | None:
        """The bundle to start with, None for the shipped one; never fails.

        A bundle on trial is checked, and its start counted before: one that is killed has failed. After `MOST_STARTS`
        of them, or when the check fails or the slot is damaged, the bundle before it is active again.
        """
        try:
            state = self.state()
            if state.active is None:
                return None
            if self._proven(state):
                with suppress(BundleError, TrustError):
                    return self.open(state.active, state)
        except RespSAMError as error:
            warn(str(error))
            return None
        try:
            with self._locked():
                return self._settled(self.state(), check, warn, self._try_write)
        except (RespSAMError, OSError):
            # another process keeps the lock, or the folder is somebody else's: what works is used, nothing is counted
            return self._settled(state, check, warn, lambda unwritten: unwritten)

    def fail(self, bundle: Bundle, why: str, warn: Callable[[str], None]) -> None:
        """Roll back a bundle that failed while it was in use, if it is the active one."""
        with suppress(RespSAMError, OSError), self._locked():
            state = self.state()
            if state.active is not None and bundle.path == self.path(state.active):
                after = self._after_failure(state, state.other, why)
                warn(after.events[-1].what)
                self._write(after)

    @staticmethod
    def _proven(state: State) -> bool:
        return state.current is not None and state.current.proven

    def _settled(
        self, state: State, check: Check, warn: Callable[[str], None], write: Callable[[State], State]
    ) -> Bundle | None:
        before = state.other
        for fallback in (before, None):
            if state.active is None:
                break
            try:
                return self._started(state, check, write)
            except TrustError as error:
                # nothing is wrong with the bundle, and trust may return: nothing is written from here on
                warn(f"{state.named(state.active)}: {error}; {state.named(fallback)} is used")
                state, write = state.model_copy(update={"active": fallback}), lambda unwritten: unwritten
            except BundleError as error:
                state = write(self._after_failure(state, fallback, str(error)))
                warn(state.events[-1].what)
        return None

    def _started(self, state: State, check: Check, write: Callable[[State], State]) -> Bundle:
        """The active slot's bundle; one that is on trial has to pass."""
        slot, current = state.active, state.current
        assert slot is not None and current is not None
        bundle = self.open(slot, state)
        if current.proven:
            return bundle
        if current.starts >= MOST_STARTS:
            raise BundleError(f"{counted(current.starts, 'start')} in a row ended before it was ready")
        begun = current.model_copy(update={"starts": current.starts + 1})
        state = write(state.model_copy(update={"slots": {**state.slots, slot: begun}}))
        check(bundle.path)
        proven = current.model_copy(update={"starts": 0, "proven": True})
        write(state.then(f"{state.named(slot)} is ready", slots={**state.slots, slot: proven}))
        return bundle

    def _after_failure(self, state: State, before: Slot | None, why: str) -> State:
        current = state.current
        assert current is not None
        what = f"{state.named(state.active)} failed: {why}; back to {state.named(before)}"
        return state.then(what, active=before, failed={**state.failed, current.fingerprint: why})

    def _checked(self, slot: Slot | None, state: State, check: Check) -> State:
        """The state for a slot that is to be used, with its starts at 0; SlotsError or BundleError when it cannot."""
        if slot is None:
            return state
        if slot not in state.slots:
            raise SlotsError(f"{self.path(slot)}: slot {slot} is empty; see 'respsam-device bundle list'")
        check(self.open(slot, state).path)
        fresh = state.slots[slot].model_copy(update={"starts": 0})
        failed = {one: why for one, why in state.failed.items() if one != fresh.fingerprint}
        return state.model_copy(update={"slots": {**state.slots, slot: fresh}, "failed": failed})

    def _refuse_older(self, bundle: Bundle, signed: Signature | None, state: State) -> None:
        if signed is not None and signed.signed_at < state.newest_signed_at:
            raise TrustError(
                f"{bundle.path}: signed on {_day(signed.signed_at)}, older than the newest ever installed here "
                f"({_day(state.newest_signed_at)}); 'respsam-device bundle rollback' returns to a slot on this box"
            )

    @contextmanager
    def _partial(self, slot: Slot) -> Iterator[Path]:
        """A folder for the copy beside the slots; a killed installation's remains are removed first."""
        partial = self.folder / f".{slot}.part"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            yield partial
        except OSError as error:
            raise SlotsError(f"{partial}: cannot be written ({error.strerror}); free the disk") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(alone(self.folder, LOCK_SECONDS))
            except TimeoutError:
                raise SlotsError(f"{self.folder}: another process installs a bundle; try again later") from None
            except OSError as error:
                raise SlotsError(f"{self.folder}: cannot be used ({error.strerror}); set bundle.slots") from error
            yield

    def _write(self, state: State) -> State:
        write_atomically(self.folder / STATE, state.model_dump_json(indent=1) + "\n")
        return state

    def _try_write(self, state: State) -> State:
        """A start must not depend on a disk that takes this."""
        with suppress(FileError):
            self._write(state)
        return state


class Watch:
    """Notices that a file was replaced."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen: tuple[int, int] | None = None

    def changed(self) -> bool:
        """Whether it is there, and was replaced since the last call."""
        before, self._seen = self._seen, _identity(self.file)
        return self._seen != before


def _identity(file: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = file.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _copy(bundle: Bundle, folder: Path) -> None:
    folder.mkdir()
    for name, data in bundle.contents().items():
        (folder / name).write_bytes(data)
        sync(folder / name)
    sync(folder)


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
