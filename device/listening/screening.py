"""`respsam-device screen`: recordings through the live path, one verdict each."""

import csv
import hashlib
import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from io import StringIO
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

from device.capture.recording import AudioError, Channel, looks_like_sound
from device.capture.sources import FileSource
from device.listening.live import Auscultation
from device.model.classifier import Classifier
from device.model.opening import open_classifier
from device.verdict.population import Subject, not_validated
from device.verdict.summary import Summary
from firmware_config.command_line import one_line, printable
from firmware_config.errors import RespSAMError
from firmware_config.files import is_clutter
from firmware_config.settings import BundleSettings, QualitySettings, Settings, load_settings

FILES_PER_PROCESS = 8  # fewer than this are judged sooner than another process starts


@dataclass(frozen=True)
class Screened:
    """One recording's summary, or why there is none."""

    recording: Path
    summary: Summary | None
    error: str = ""
    warnings: tuple[str, ...] = ()
    sha256: str = ""
    """Of the file as it was judged."""
    channel: int | None = None
    """The one that was heard, counted from 0."""

    def as_json(self) -> dict[str, Any]:
        """One object of `screen --json`; null where the recording was refused."""
        full: dict[str, Any] = defaultdict(lambda: None, self.summary.as_json() if self.summary else {})
        share = full["flagged"] / full["gradable"] if full["gradable"] else None
        return {
            "recording": printable(self.recording),
            "channel": self.channel,
            **{name: full[name] for name in ("verdict", "probability", "cycles", "stretches", "stretches_flagged")},
            "flagged_share": None if share is None else round(share, 3),
            "breaths_per_minute": full["breaths_per_minute"],
            "seconds": full["seconds"],
            "reasons": full["reasons"] or [],
            "not_validated": full["not_validated"] or [],
        }


class ResultsError(RespSAMError):
    """A file of results that cannot be gone on with."""


class Results:
    """Verdicts in a file that a stopped screening goes on with: JSON lines, or CSV by the suffix `.csv`.

    Every row names the recording's content, and the bundle, precision, thresholds and quality limits that judged it;
    rows of others are not mixed in. A half-written last row is written anew. A refused recording has a row with the
    `error` and no verdict; it is tried again, and gets another row when it ends otherwise.
    """

    COLUMNS = (
        *("recording", "channel", "verdict", "probability", "cycles", "stretches", "stretches_flagged"),
        *("flagged_share", "breaths_per_minute", "heard", "missing", "dropped", "gradable"),
        *("reasons", "not_validated", "error", "sha256"),
        *("bundle", "precision", "cycle_threshold", "site_threshold", "quality_limits"),
    )

    def __init__(self, path: Path, model: Classifier, quality: QualitySettings) -> None:
        """ResultsError when the file is of another bundle, thresholds or limits, or cannot be written."""
        self.path = path
        self.judged_by = {
            "bundle": model.fingerprint,
            "precision": model.file.precision,
            "cycle_threshold": model.threshold,
            "site_threshold": model.site_rule.threshold,
            "quality_limits": hashlib.sha256(quality.model_dump_json().encode()).hexdigest()[:12],
        }
        self._is_csv = path.suffix.lower() == ".csv"
        self._done: dict[str, set[str]] = defaultdict(set)
        self._refused: set[tuple[str, str, str]] = set()
        try:
            # a device or a pipe may have no end
            if path.is_file():
                self._resume(path.read_bytes())
            self._file = path.open("a", encoding="utf-8", newline="")
            empty = not path.stat().st_size
        except OSError as error:
            raise ResultsError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
        if self._is_csv and empty:
            self._write(_csv_line(self.COLUMNS))

    def _resume(self, held: bytes) -> None:
        whole = held[: held.rfind(b"\n") + 1]
        begun = held[len(whole) :]
        opening = (",".join(self.COLUMNS) if self._is_csv else '{"recording": ').encode()
        lines = whole.decode("utf-8", "replace").split("\n")[:-1]  # a reason may hold what else ends a line
        try:
            table = csv.DictReader(lines, strict=True)
            rows = list(table) if self._is_csv else [json.loads(line) for line in lines]
            if self._is_csv and lines and table.fieldnames != [*self.COLUMNS]:
                raise ValueError("other columns")
            # a file without a whole line may be anybody's
            if not whole and begun[: len(opening)] != opening[: len(begun)]:
                raise ValueError("another opening")
            for row in rows:
                if row["verdict"]:
                    self._done[str(row["recording"])].add(str(row["sha256"]))
                else:
                    self._refused.add((row["recording"], row["sha256"], row["error"]))
            others = {name: {str(row[name]) for row in rows} - {str(own)} for name, own in self.judged_by.items()}
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ResultsError(f"{self.path}: not a file of screening results; choose another --out") from error
        for name, found in others.items():
            if found:
                raise ResultsError(
                    f"{self.path}: holds results of {name.replace('_', ' ')} {min(found)[:12]}, this one is "
                    f"{str(self.judged_by[name])[:12]}; choose another --out"
                )
        # only now that it is ours
        if begun:
            os.truncate(self.path, len(whole))  # not written anew: a full disk would take the whole rows, too

    def holds(self, recording: Path) -> bool:
        """Whether this very sound was judged under this name: another patient's may have the same name elsewhere."""
        known = self._done.get(printable(recording), set())
        return bool(known) and _sha256(recording) in known

    def add(self, one: "Screened") -> None:
        """One more verdict, handed to the system when this returns; ResultsError when the disk is full."""
        row = {**one.as_json(), "error": one_line(one.error), "sha256": one.sha256, **self.judged_by}
        if one.summary is None:
            refusal = (row["recording"], row["sha256"], row["error"])
            if refusal in self._refused:
                return
            self._refused.add(refusal)
        if self._is_csv:
            seconds = row["seconds"] or dict.fromkeys(("heard", "missing", "dropped", "gradable"))
            flat = {**row, **seconds, **{name: "; ".join(row[name]) for name in ("reasons", "not_validated")}}
            self._write(_csv_line([flat[name] for name in self.COLUMNS]))
        else:
            self._write(json.dumps(row) + "\n")

    def _write(self, line: str) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise ResultsError(
                f"{self.path}: cannot be written ({error.strerror}); when it can be, the same command goes on"
            ) from error

    def close(self) -> None:
        """Give the file back."""
        # what cannot be written has been told, and closing tries once more
        with suppress(OSError):
            self._file.close()


def _sha256(path: Path) -> str:
    """Of a file's content; empty where there is none to read, as of a pipe: screening it says why."""
    digest = hashlib.sha256()
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            return digest.hexdigest()
    return ""


def _csv_line(cells: Sequence[object]) -> str:
    line = StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


@dataclass(frozen=True)
class Heard:
    """How recordings are heard, and of whom they are as far as that was said of all of them."""

    channel: Channel = 0
    age_years: float | None = None
    site: str | None = None


ANYBODY = Heard()


@dataclass(frozen=True)
class _Job:
    recording: Path
    bundle: BundleSettings
    quality: QualitySettings
    heard: Heard


@dataclass(frozen=True)
class Found:
    """What lies below the paths that were given."""

    recordings: list[Path]
    """To be screened: sound, and what may be sound but cannot be looked at, which is then refused by name."""
    ignored: int
    """Files that are no sound."""


def find_recordings(paths: Sequence[Path]) -> Found:
    """The files given, and all that looks like sound below the folders given, sorted, each once.

    A folder without any stays in the list: screening it then fails by name, and the others go on.
    """
    recordings: list[Path] = []
    ignored = 0
    for path in paths:
        below = _below(path, set()) if path.is_dir() else Found([path], 0)
        recordings += below.recordings or [path]
        ignored += below.ignored
    return Found(list(dict.fromkeys(recordings)), ignored)


def _below(folder: Path, entered: set[tuple[int, int]]) -> Found:
    """Links to folders are followed, and no folder is `entered` twice: a link may lead back."""
    recordings: list[Path] = []
    ignored = 0
    try:
        status, items = folder.stat(), sorted(folder.iterdir())
    except OSError:
        return Found([folder], 0)
    if (status.st_dev, status.st_ino) in entered:
        return Found([], 0)
    entered.add((status.st_dev, status.st_ino))
    for item in items:
        if is_clutter(item):
            ignored += 1
        elif _is_folder(item):
            below = _below(item, entered)
            recordings, ignored = recordings + below.recordings, ignored + below.ignored
        elif looks_like_sound(item) or not _is_there(item):
            recordings.append(item)
        else:
            ignored += 1
    return Found(recordings, ignored)


def _is_folder(path: Path) -> bool:
    with suppress(OSError):
        return path.is_dir()
    return False


def _is_there(path: Path) -> bool:
    """Not so a link that leads nowhere, nor what may not be looked at: either may be a recording."""
    with suppress(OSError):
        return path.exists()
    return False


def screen_recording(path: Path, model: Classifier, quality: QualitySettings, heard: Heard = ANYBODY) -> Screened:
    """One recording, as fast as possible, exactly as `listen --fast` hears it; AudioError when it cannot be read."""
    source = FileSource(path, fast=True, channel=heard.channel)
    subject = Subject(heard.age_years, heard.site, source.highest_hz, fallback=model.fallback)
    outside = not_validated(model.bundle.manifest, subject)
    session = Auscultation(source, model, quality, not_validated=lambda: outside)
    for _ in session.run():
        pass
    remarks = tuple(map(str, source.recorded.remarks))
    return Screened(path, session.summary, warnings=remarks, channel=source.recorded.channel)


def screen(paths: Sequence[str | Path], settings: Settings | None = None, heard: Heard = ANYBODY) -> Iterator[Screened]:
    """Every recording, and all in folders, in as many processes as cores when there are many.

    The verdicts do not depend on how many. One that cannot be read has an `error` and no summary. Raises BundleError
    before the first one when the bundle does not hold.
    """
    settings = settings or load_settings()
    recordings = find_recordings([Path(path) for path in paths]).recordings
    jobs = [_Job(path, settings.bundle, settings.quality, heard) for path in recordings]
    _ = model(settings.bundle)
    processes = min(os.cpu_count() or 1, len(jobs) // FILES_PER_PROCESS)
    if processes < 2:
        yield from map(_screen_one, jobs)
        return
    done = 0
    try:
        # spawn: ONNX Runtime's threads do not survive a fork
        with ProcessPoolExecutor(processes, get_context("spawn"), _end_with_parent) as pool:
            with _interrupts_held_back():
                screened = pool.map(_screen_one, jobs, chunksize=4)
            for one in screened:
                done += 1
                yield one
    except BrokenProcessPool:
        # the kernel ends a process that takes too much memory; one alone takes least
        yield from map(_screen_one, jobs[done:])


def _screen_one(job: _Job) -> Screened:
    content = _sha256(job.recording)
    try:
        if _is_folder(job.recording):
            _refuse_folder(job.recording)
        one = screen_recording(job.recording, model(job.bundle), job.quality, job.heard)
        if _sha256(job.recording) != content:
            raise AudioError(f"{job.recording}: changed while it was judged; screen it again")
    except AudioError as refused:
        one = Screened(job.recording, None, str(refused))
    except MemoryError:
        error = f"{job.recording}: takes more memory than there is here; close other programs"
        one = Screened(job.recording, None, error)
    return replace(one, sha256=content)


def _refuse_folder(folder: Path) -> None:
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise AudioError(f"{folder}: the folder cannot be opened ({error.strerror}); change its permissions") from error
    raise AudioError(f"{folder}: no wav or flac recording below this folder; check the path")


@lru_cache(maxsize=1)
def model(bundle: BundleSettings) -> Classifier:
    """The classifier that the settings choose, loaded once a process; BundleError when it does not hold."""
    return open_classifier(bundle)


def _end_with_parent() -> None:
    """A killed parent cannot stop its pool, whose processes would wait for work forever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Processes started here never see a Ctrl-C, which goes to all of a terminal's; this one gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
