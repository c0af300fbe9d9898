"""`respsam-device screen`: recordings through the live path, one verdict each."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread

from device.capture.recording import AudioError, Channel, looks_like_sound
from device.capture.sources import FileSource
from device.listening.live import Auscultation
from device.listening.results import Screened, sha256_of
from device.model.classifier import Classifier
from device.model.opening import open_classifier
from device.verdict.population import Subject, not_validated
from firmware_config.files import is_clutter
from firmware_config.settings import BundleSettings, QualitySettings, Settings, load_settings

FILES_PER_PROCESS = 8  # fewer than this are judged sooner than another process starts


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
    content = sha256_of(job.recording)
    try:
        if _is_folder(job.recording):
            _refuse_folder(job.recording)
        one = screen_recording(job.recording, model(job.bundle), job.quality, job.heard)
        if sha256_of(job.recording) != content:
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
