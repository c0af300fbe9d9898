"""Installing and updating bundles: from a file or URL, and by polling a folder or URL that many boxes share.

A roll-out is a file `rollout.json` beside a bundle. It names boxes in rings: a ring installs the bundle when every box
of the rings before it has reported that it is ready with it. A report is `reports/BOX.json` in the same place; a box
writes it where the place is a folder.
"""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from device.bundle import ARCHIVE_SUFFIX, BundleError, read_bundle
from device.model.classifier import self_test
from device.model.opening import open_classifier, open_slots
from device.slots import Slot, State
from firmware_config.errors import GateRefused, RespSAMError, first_problem
from firmware_config.files import write_atomically
from firmware_config.settings import WEB, BundleSettings

ROLLOUT: Final = "rollout.json"
REPORTS: Final = "reports"
SILENT_SECONDS: Final = 30.0  # of a server, before it is given up
LARGEST_BYTES: Final = 4_000_000_000  # of a bundle; AST base has 350 MB
LARGEST_TEXT: Final = 1_000_000  # bytes of a roll-out or a report
CHUNK_BYTES: Final = 1 << 20
Warn = Callable[[str], None]


class UpdateError(RespSAMError):
    """A source that does not answer, ends early, or has no roll-out."""


class _Shared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Rollout(_Shared):
    """The content of `rollout.json`."""

    bundle: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """The bundle's file name, in the same place."""
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the bundle."""
    rings: tuple[tuple[str, ...], ...] = ()
    """Names of boxes; a box in no ring comes last, and without rings all install at once."""

    def before(self, box: str) -> list[str]:
        """The boxes that have to be ready before this one installs."""
        ring = next((number for number, names in enumerate(self.rings) if box in names), len(self.rings))
        return [name for names in self.rings[:ring] for name in names]


class Report(_Shared):
    """The content of `reports/BOX.json`."""

    fingerprint: str
    """Of the bundle that the roll-out offers."""
    state: Literal["waiting", "on trial", "ready", "failed"]
    why: str = ""
    """It failed."""


@dataclass(frozen=True)
class Polled:
    """What a poll came to."""

    report: Report
    line: str


def install(source: str | Path, settings: BundleSettings, warn: Warn) -> State:
    """Install a bundle from a file, folder or URL after its health check; the state with it active, on trial.

    Raises UpdateError, BundleError, TrustError and SlotsError, and GateRefused when the health check fails: nothing is
    changed then.
    """
    slots = open_slots(settings)
    with fetched(str(source)) as path:
        if str(source).lower().startswith("http:") and not slots.trust.keys and not _on_this_machine(str(source)):
            warn(f"{source}: plain http and no trusted key: anybody on the way could have changed it")
        return slots.install(read_bundle(path), _health_check(settings, str(source), warn))


def activate(slot: Slot | None, settings: BundleSettings, warn: Warn) -> State:
    """Use a slot, or None the shipped bundle, after the health check; raises what `install` raises."""
    return open_slots(settings).activate(slot, _health_check(settings, f"slot {slot}", warn))


def roll_back(settings: BundleSettings, warn: Warn) -> State:
    """Return to the bundle before the active one, after its health check; raises what `install` raises."""
    return open_slots(settings).roll_back(_health_check(settings, "the bundle before", warn))


def _health_check(settings: BundleSettings, what: str, warn: Warn) -> Callable[[Path], None]:
    """A bundle's self-test as this box would run it; GateRefused when it fails."""

    def check(path: Path) -> None:
        try:
            classifier = open_classifier(settings.model_copy(update={"path": str(path)}))
            self_test(classifier)
        except BundleError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise GateRefused(f"{what}: the health check failed, nothing was changed: {reason}") from error
        if classifier.fallback:
            warn(f"{what}: {classifier.fallback}; run 'respsam-device engine build' when it is active")

    return check


def poll(source: str, settings: BundleSettings, box: str, warn: Warn) -> Polled:
    """Install what a shared folder or URL offers, if it is this box's turn; writes this box's report into a folder.

    Raises what `install` raises, after the report; UpdateError when the source has no roll-out.
    """
    rollout = _read_rollout(source)
    try:
        polled = _polled(source, rollout, settings, box, warn)
    except RespSAMError as error:
        if isinstance(error, GateRefused):
            open_slots(settings).mark_failed(rollout.fingerprint, str(error))
        _write_report(source, box, Report(fingerprint=rollout.fingerprint, state="failed", why=str(error)), warn)
        raise
    _write_report(source, box, polled.report, warn)
    return polled


def _polled(source: str, rollout: Rollout, settings: BundleSettings, box: str, warn: Warn) -> Polled:
    slots, fingerprint = open_slots(settings), rollout.fingerprint
    state = slots.state()
    if why := state.failed.get(fingerprint, ""):
        line = f"{rollout.bundle} failed on this box and is not tried again: {why}"
        return Polled(Report(fingerprint=fingerprint, state="failed", why=why), line)
    if state.current is None or state.current.fingerprint != fingerprint:
        if waiting := _not_ready(source, rollout, box):
            return Polled(Report(fingerprint=fingerprint, state="waiting"), f"{rollout.bundle} waits for {waiting}")
        kept = state.holds(fingerprint)
        if kept is not None:
            state = activate(kept, settings, warn)
        else:
            state = _install_offered(source, rollout, settings, warn)
    assert state.current is not None
    if state.current.proven:
        return Polled(Report(fingerprint=fingerprint, state="ready"), f"{state.current} is in use")
    line = f"{state.named(state.active)} is installed; it is on trial until the next start or stretch"
    return Polled(Report(fingerprint=fingerprint, state="on trial"), line)


def _install_offered(source: str, rollout: Rollout, settings: BundleSettings, warn: Warn) -> State:
    slots, offered = open_slots(settings), _beside(source, rollout.bundle)
    with fetched(offered) as path:
        bundle = read_bundle(path)
        if bundle.fingerprint != rollout.fingerprint:
            raise UpdateError(f"{offered}: not the bundle that {ROLLOUT} names; offer it again")
        return slots.install(bundle, _health_check(settings, offered, warn))


def _not_ready(source: str, rollout: Rollout, box: str) -> str:
    """Which box of the rings before holds this one back, and why; empty if none does."""
    for name in rollout.before(box):
        try:
            report = Report.model_validate_json(_read_text(_beside(source, f"{REPORTS}/{name}.json")))
        except (UpdateError, ValidationError):
            return f"{name}, which has not reported"
        if report.fingerprint != rollout.fingerprint or report.state not in ("ready", "failed"):
            return f"{name}, which is not ready with it"
        if report.state == "failed":
            return f"{name}, where it failed: {report.why}"
    return ""


def _read_rollout(source: str) -> Rollout:
    where = _beside(source, ROLLOUT)
    try:
        return Rollout.model_validate_json(_read_text(where))
    except ValidationError as error:
        key, reason, _ = first_problem(error)
        raise UpdateError(f"{where}: {key or 'file'}: {reason}; write it with 'respsam-export offer'") from error


def _write_report(source: str, box: str, report: Report, warn: Warn) -> None:
    if WEB.match(source):
        return
    try:
        write_atomically(Path(source) / REPORTS / f"{box}.json", report.model_dump_json() + "\n")
    except RespSAMError as error:
        warn(f"the report of this box is missing: {error}")


def _beside(source: str, name: str) -> str:
    return f"{source.rstrip('/')}/{name}"


def _read_text(where: str) -> bytes:
    """A small file of a folder or URL; UpdateError when it cannot be read."""
    if WEB.match(where):
        with _answer(where) as answer:
            return answer.read(LARGEST_TEXT)
    try:
        with Path(where).open("rb") as file:
            return file.read(LARGEST_TEXT)
    except OSError as error:
        raise UpdateError(f"{where}: cannot be read ({error.strerror}); check the source") from error


@contextmanager
def fetched(source: str) -> Iterator[Path]:
    """A local path for a file, folder or URL; what was downloaded is removed afterwards. Raises UpdateError."""
    if not WEB.match(source):
        yield Path(source)
        return
    with TemporaryDirectory(prefix="respsam-") as folder:
        path = Path(folder) / f"download{ARCHIVE_SUFFIX}"
        _download(source, path)
        try:
            yield path
        except BundleError as error:
            raise BundleError(str(error).replace(str(path), source)) from error


def _download(url: str, path: Path) -> None:
    """The whole content of a URL; UpdateError when it ends early or the disk is full."""
    received = 0
    try:
        with _answer(url) as answer, path.open("wb") as file:
            expected = answer.headers["Content-Length"]
            while chunk := answer.read(CHUNK_BYTES):
                received += len(chunk)
                if received > LARGEST_BYTES:
                    raise UpdateError(f"{url}: more than {LARGEST_BYTES / 1e9:.0f} GB, this is no bundle")
                file.write(chunk)
    except OSError as error:
        raise UpdateError(f"{path}: cannot be written ({error.strerror}); free the disk") from error
    if expected is not None and received < int(expected):
        raise UpdateError(f"{url}: ended after {received} of {expected} bytes; try again")


@contextmanager
def _answer(url: str) -> Iterator[http.client.HTTPResponse]:
    """A server's answer; UpdateError when there is none, or while it is read."""
    try:
        with urllib.request.urlopen(url, timeout=SILENT_SECONDS) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        raise UpdateError(f"{url}: the server says {error.code} {error.reason}; check the address") from error
    except urllib.error.URLError as error:
        raise UpdateError(f"{url}: does not answer ({error.reason}); check the network and the address") from error
    except (TimeoutError, ConnectionError) as error:
        raise UpdateError(f"{url}: stopped answering ({error}); try again") from error
    except (http.client.HTTPException, ValueError) as error:
        raise UpdateError(f"{url}: no valid answer ({type(error).__name__}: {error}); check the address") from error


def _on_this_machine(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
