"""`respsam-device screen`: recordings through the live path, one verdict each."""

import csv
import hashlib
import json
import os
import signal
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

from device.audio import SUFFIXES, AudioError, ChannelWarning
from device.classifier import Classifier
from device.live import Auscultation, Summary
from device.population import Subject, not_validated
from device.sources import FileSource
from firmware_config.command_line import printable
from firmware_config.errors import RespSAMError
from firmware_config.settings import BundleSettings, QualitySettings

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

    def as_json(self) -> dict[str, Any]:
        """One object of `screen --json`; only where there is a summary."""
        assert self.summary is not None
        full = self.summary.as_json()
        return {
            "recording": printable(self.recording),
            **{
                name: full[name]
                for name in (
                    *("verdict", "probability", "cycles", "stretches", "stretches_flagged"),
                    *("seconds", "reasons", "not_validated"),
                )
            },
        }


class ResultsError(RespSAMError):
    """A file of results that cannot be gone on with."""


class Results:
    """Verdicts in a file that a stopped screening goes on with: JSON lines, or CSV by the suffix `.csv`.

    Every row names the recording's content, and the bundle, precision, thresholds and quality limits that judged it;
    rows of others are not mixed in. A half-written last row is written anew.
    """

    COLUMNS = (
        *("recording", "verdict", "probability", "cycles", "stretches", "stretches_flagged"),
        *("heard", "missing", "dropped", "gradable", "reasons", "not_validated"),
        *("sha256", "bundle", "precision", "cycle_threshold", "site_threshold", "quality_limits"),
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
        lines = whole.decode("utf-8", "replace").splitlines()
        try:
            table = csv.DictReader(lines, strict=True)
            rows = list(table) if self._is_csv else [json.loads(line) for line in lines]
            if self._is_csv and lines and table.fieldnames != [*self.COLUMNS]:
                raise ValueError("other columns")
            # a file without a whole line may be anybody's
            if not whole and begun[: len(opening)] != opening[: len(begun)]:
                raise ValueError("another opening")
            for row in rows:
                self._done[str(row["recording"])].add(str(row["sha256"]))
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
        row = {**one.as_json(), "sha256": one.sha256, **self.judged_by}
        if self._is_csv:
            flat = {**row, **row["seconds"], **{name: "; ".join(row[name]) for name in ("reasons", "not_validated")}}
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
class _Job:
    recording: Path
    bundle: BundleSettings
    quality: QualitySettings


def find_recordings(paths: Sequence[Path]) -> list[Path]:
    """The files given, and every wav and flac below the folders given, sorted, each once.

    A folder without any stays in the list: screening it then fails by name, and the others go on.
    """
    found: list[Path] = []
    for path in paths:
        below = sorted(item for item in path.rglob("*") if item.suffix.lower() in SUFFIXES and item.is_file())
        found += below or [path]
    return list(dict.fromkeys(found))


def screen_recording(path: Path, model: Classifier, quality: QualitySettings) -> Summary:
    """One recording, as fast as possible, exactly as `listen --fast` hears it; AudioError when it cannot be read."""
    source = FileSource(path, fast=True)
    outside = not_validated(model.bundle.manifest, Subject(highest_hz=source.highest_hz, fallback=model.fallback))
    session = Auscultation(source, model, quality, not_validated=lambda: outside)
    for _ in session.run():
        pass
    return session.summary


def screen(paths: Sequence[Path], bundle: BundleSettings, quality: QualitySettings) -> Iterator[Screened]:
    """Every recording in order, in as many processes as cores when there are many; the verdicts do not depend on it.

    Raises BundleError before the first one when the bundle does not hold.
    """
    jobs = [_Job(path, bundle, quality) for path in paths]
    _ = model(bundle)
    processes = min(os.cpu_count() or 1, len(jobs) // FILES_PER_PROCESS)
    if processes < 2:
        yield from map(_screen_one, jobs)
        return
    # spawn: ONNX Runtime's threads do not survive a fork
    with ProcessPoolExecutor(processes, get_context("spawn"), _end_with_parent) as pool:
        with _interrupts_held_back():
            screened = pool.map(_screen_one, jobs, chunksize=4)
        yield from screened


def _screen_one(job: _Job) -> Screened:
    summary, error, content = None, "", _sha256(job.recording)
    with told_warnings() as told:
        try:
            if job.recording.is_dir():
                raise AudioError(f"{job.recording}: no wav or flac recording below this folder; check the path")
            heard = screen_recording(job.recording, model(job.bundle), job.quality)
            if _sha256(job.recording) != content:
                raise AudioError(f"{job.recording}: changed while it was judged; screen it again")
            summary = heard
        except AudioError as refused:
            error = str(refused)
    return Screened(job.recording, summary, error, tuple(told), content)


@contextmanager
def told_warnings() -> Iterator[list[str]]:
    """What recordings warn of, in words for a command to print; Python would print the line of code as well."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ChannelWarning)
        yield told
    for warning in caught:
        if issubclass(warning.category, ChannelWarning):
            told.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@lru_cache(maxsize=1)
def model(bundle: BundleSettings) -> Classifier:
    """The classifier that the settings choose, loaded once a process; BundleError when it does not hold."""
    from device.classifier import open_classifier

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
