"""Atomic writing of files, a lock on a folder, and the names of files that no reader wants."""

import fcntl
import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from firmware_config.errors import RespSAMError

CLUTTER: Final = frozenset({".ds_store", "__macosx", "thumbs.db", "desktop.ini"})
ABANDONED_SECONDS: Final = 3600.0  # no writer takes so long; on a shared disk the process may be on another machine
LOCK_POLL_SECONDS: Final = 0.02
PRIVATE: Final = 0o600  # a file of its user alone


class FileError(RespSAMError):
    """A file that cannot be written; its former content is kept."""


def is_clutter(path: Path) -> bool:
    """Whether a file or folder is what macOS or Windows leaves beside the recordings: `._a.wav`, `Thumbs.db`."""
    return path.name.startswith("._") or path.name.lower() in CLUTTER


@contextmanager
def whole_file(path: Path, partial: Path, mode: int = 0o666, *, flushed: bool = True) -> Iterator[Path]:
    """Yield the path to write to; the new content replaces `path` when it is complete and, if `flushed`, on the disk.

    Whatever stops the writer, `path` keeps its old content and `partial` is removed. Raises OSError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, mode))
        yield partial
        if flushed:
            sync(partial)
        os.replace(partial, path)
        if flushed:  # the rename itself must survive a power cut too
            sync(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def replacing(path: Path, *failures: type[Exception], mode: int = 0o666, flushed: bool = True) -> Iterator[Path]:
    """As `whole_file`, but it raises FileError for an OSError and for the `failures` that the writer raises instead.

    It also removes partial files that a killed writer of the same file left at least an hour ago.
    """
    refusals: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        # the process number: two writers of one file must not share a partial file
        with whole_file(path, path.with_name(f".{path.name}.{os.getpid()}.part"), mode, flushed=flushed) as partial:
            yield partial
    except refusals as error:
        reason = getattr(error, "strerror", None) or str(error).rpartition(": ")[2]
        raise FileError(
            f"{path}: cannot be written ({reason}); free the disk or choose another place; what was there is kept"
        ) from error
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        # another writer may have removed it meanwhile, and somebody else's file may not be ours to remove
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink()


def write_atomically(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write a file; a reader sees the old or the new content, never a part. FileError when it cannot be written."""
    with replacing(path, mode=mode) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk: a rename must survive a power cut too. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path, seconds: float) -> Iterator[None]:
    """Lock the folder: one process must not set aside the new file of another one.

    Raises TimeoutError when another process keeps the lock for longer than `seconds`.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, time.monotonic() + seconds)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise TimeoutError("another process holds a lock on its folder") from None
        time.sleep(LOCK_POLL_SECONDS)
