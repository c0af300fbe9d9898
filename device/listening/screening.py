"""`respsam-device screen`: recordings through the live path, one verdict each."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from socket import gethostname
from threading import Thread
from typing import Final

from device.capture.recording import AudioError, Channel, looks_like_sound
from device.capture.sources import FileSource
from device.cluster import RESTARTS, ClusterError, on_ray
from device.listening.live import Session
from device.listening.results import Screened, judged_by, sha256_of
from device.model.classifier import Classifier
from device.model.opening import open_classifier
from device.verdict.population import Subject, not_validated
from firmware_config.errors import RespSAMError
from firmware_config.files import is_clutter
from firmware_config.settings import BundleSettings, QualitySettings, Settings, load_settings

MOST_LETTERS: Final = 100  # of an error of Ray, which may have a whole traceback
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
    paths: Sequence[str | Path],
    settings: Settings | None = None,
    options: ScreenOptions = NO_OPTIONS,
    cluster: str = "",
) -> Iterator[Screened]:
    """Screen recordings, and all in folders; many of them in as many processes as cores, or on a Ray cluster.

    The verdicts do not depend on the number of processes. A recording that cannot be read has an `error` and no
    summary. Raises BundleError before the first one, and ClusterError where the machines at `cluster` (HOST:PORT) do
    not have the same recordings and bundle under the same paths.
    """
    settings = settings or load_settings()
    recordings = find_recordings([Path(path) for path in paths]).recordings
    jobs = [_Job(path, settings.bundle, settings.quality, options) for path in recordings]
    # the same bundle in every process, also when another one is activated meanwhile
    fixed = settings.bundle.model_copy(update={"path": str(model(settings.bundle).bundle.path)})
    if cluster:
        yield from _screen_on([replace(job, bundle=fixed) for job in jobs], cluster)
        return
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


def _screen_on(jobs: Sequence[_Job], cluster: str) -> Iterator[Screened]:
    """In the order of the jobs, in whichever they end."""
    if not jobs:
        return
    here, gpu = (Path.cwd(), _judge(jobs[0])), jobs[0].bundle.engine == "tensorrt"
    ready, due = dict[int, Screened](), 0
    for index, (host, screened) in on_ray(_screen_there, jobs, here, _lost, address=cluster, gpu=gpu):
        if not screened.sha256 and sha256_of(screened.recording):
            shared = "the machines of a cluster must share the recordings under the same path"
            raise ClusterError(f"{screened.recording}: {host} cannot read it; {shared}")
        ready[index] = screened
        while due in ready:
            yield ready.pop(due)
            due += 1


def _screen_there(job: _Job, folder: Path, judge: dict[str, object]) -> tuple[str, Screened]:
    """On a machine of a cluster: its name, and the recording; ClusterError where it would judge otherwise than we."""
    host = gethostname()
    with suppress(OSError):  # another machine may not have it, and does not need it for whole paths
        os.chdir(folder)
    try:
        there = _judge(job)
    except RespSAMError as error:
        raise ClusterError(f"{host}: {error}") from error
    for name, own in judge.items():
        if there[name] != own:
            what = f"{name.replace('_', ' ')} is {there[name]}, here it is {own}"
            raise ClusterError(f"{host}: {what}; the machines of a cluster need the same program and bundle")
    return host, _screen_one(job)


def _judge(job: _Job) -> dict[str, object]:
    return {"respsam": version("respsam"), **judged_by(model(job.bundle), job.quality)}


def _lost(job: _Job, error: Exception) -> tuple[str, Screened]:
    """A refused recording where workers died; what a worker raised ends the screening, as it does without a cluster."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, RespSAMError):
        raise cause from error
    if cause is not None:
        what = f"{type(cause).__name__}: {str(cause)[:MOST_LETTERS]}"
        raise ClusterError(
            f"{job.recording}: a machine cannot judge it ({what}); the machines of a cluster need the same program"
        ) from error
    died = f"{job.recording}: {RESTARTS + 1} workers died of it ({type(error).__name__}); screen it alone"
    return "", Screened(job.recording, None, died, sha256=sha256_of(job.recording))


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
