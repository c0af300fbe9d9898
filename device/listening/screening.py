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
from typing import Final

from device.capture.recording import AudioError, Channel, looks_like_sound
from device.capture.sources import FileSource
from device.listening.live import Session
from device.listening.results import Screened, sha256_of
from device.model.classifier import Classifier
from device.model.opening import open_classifier
from device.verdict.population import Subject, not_validated
from firmware_config.files import is_clutter
from firmware_config.settings import BundleSettings, QualitySettings, Settings, load_settings

FILES_PER_PROCESS: Final = 8  # fewer are judged sooner than another process starts


@dataclass(frozen=True)
class ScreenOptions:
    """The channel, age and site that apply to all recordings of a screening."""

    channel: Channel = 0
    age_years: float | None = None
    site: str | None = None


NO_OPTIONS: Final = ScreenOptions()


@dataclass(frozen=True)
class _Job:
    recording: Path
    bundle: BundleSettings
    quality: QualitySettings
    options: ScreenOptions


@dataclass(frozen=True)
class Found:
    """What was found below the given paths."""

    recordings: list[Path]
    """To be screened: sound, and files that cannot be opened, which are then refused by name."""
    ignored: int
    """Number of other files."""


def find_recordings(paths: Sequence[Path]) -> Found:
    """The given files, and everything that looks like sound below the given folders, sorted, each once.

    A folder without sound stays in the list: screening it is then an error that names it.
    """
    recordings: list[Path] = []
    ignored = 0
    for path in paths:
        below = _below(path) if path.is_dir() else Found([path], 0)
        recordings += below.recordings or [path]
        ignored += below.ignored
    return Found(list(dict.fromkeys(recordings)), ignored)


def _below(folder: Path) -> Found:
    """Links to folders are followed, and no folder is entered twice: a link may lead back."""
    recordings: list[Path] = []
    ignored, entered = 0, set[tuple[int, int]]()

    def unreadable(error: OSError) -> None:
        recordings.append(Path(error.filename))

    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        files = [Path(place, name) for name in names if not is_clutter(Path(name))]
        sound = [file for file in files if looks_like_sound(file) or not _is_there(file)]
        own = sorted(name for name in folders if not is_clutter(Path(name)))
        recordings += sound
        ignored += len(names) - len(sound) + len(folders) - len(own)
        folders[:] = own
    return Found(sorted(recordings), ignored)


def _is_folder(path: Path) -> bool:
    with suppress(OSError):
        return path.is_dir()
    return False


def _is_there(path: Path) -> bool:
    """False for a broken link and where permission is missing: either may be a recording."""
    with suppress(OSError):
        return path.exists()
    return False


def screen_recording(
    path: Path, model: Classifier, quality: QualitySettings, options: ScreenOptions = NO_OPTIONS
) -> Screened:
    """Screen one recording, exactly as `listen --fast` does; AudioError when it cannot be read."""
    source = FileSource(path, fast=True, channel=options.channel)
    subject = Subject(options.age_years, options.site, source.highest_hz, fallback=model.fallback)
    outside = not_validated(model.bundle.manifest, subject)
    session = Session(source, model, quality, not_validated=lambda: outside)
    for _ in session.run():
        pass
    remarks = tuple(map(str, source.recorded.remarks))
    return Screened(path, session.summary, warnings=remarks, channel=source.recorded.channel)


def screen(
    paths: Sequence[str | Path], settings: Settings | None = None, options: ScreenOptions = NO_OPTIONS
) -> Iterator[Screened]:
    """Screen recordings, and all in folders; many of them in as many processes as cores.

    The verdicts do not depend on the number of processes. A recording that cannot be read has an `error` and no
    summary. Raises BundleError before the first one.
    """
    settings = settings or load_settings()
    recordings = find_recordings([Path(path) for path in paths]).recordings
    jobs = [_Job(path, settings.bundle, settings.quality, options) for path in recordings]
    # the same bundle in every process, also when another one is activated meanwhile
    fixed = settings.bundle.model_copy(update={"path": str(model(settings.bundle).bundle.path)})
    processes = min(os.cpu_count() or 1, len(jobs) // FILES_PER_PROCESS)
    if processes < 2:
        yield from map(_screen_one, jobs)
        return
    done = 0
    try:
        # spawn: ONNX Runtime's threads do not survive a fork
        with ProcessPoolExecutor(processes, get_context("spawn"), _exit_with_parent) as pool:
            with _interrupts_held_back():
                screened = pool.map(_screen_one, [replace(job, bundle=fixed) for job in jobs], chunksize=4)
            for one in screened:
                done += 1
                yield one
    except BrokenProcessPool:
        # the kernel kills a process that uses too much memory; a single process uses least
        yield from map(_screen_one, jobs[done:])


def _screen_one(job: _Job) -> Screened:
    content = sha256_of(job.recording)
    try:
        if _is_folder(job.recording):
            _refuse_folder(job.recording)
        screened = screen_recording(job.recording, model(job.bundle), job.quality, job.options)
        if sha256_of(job.recording) != content:
            raise AudioError(f"{job.recording}: changed while it was judged; screen it again")
    except AudioError as refused:
        screened = Screened(job.recording, None, str(refused))
    except MemoryError:
        error = f"{job.recording}: takes more memory than there is here; close other programs"
        screened = Screened(job.recording, None, error)
    return replace(screened, sha256=content)


def _refuse_folder(folder: Path) -> None:
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise AudioError(f"{folder}: the folder cannot be opened ({error.strerror}); change its permissions") from error
    raise AudioError(f"{folder}: no wav or flac recording below this folder; check the path")


@lru_cache(maxsize=1)
def model(bundle: BundleSettings) -> Classifier:
    """The classifier that the settings choose, loaded once a process; BundleError as `open_classifier`."""
    return open_classifier(bundle)


def _exit_with_parent() -> None:
    """Exit when the parent is killed; the processes of its pool would wait for work forever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Processes started inside never receive Ctrl-C; this one receives it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
