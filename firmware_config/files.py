"""Atomic writing of files, and the names of files that no reader wants."""

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
            _flush(partial, os.O_RDWR)
        os.replace(partial, path)
        if flushed:  # the rename itself must survive a power cut too
            _flush(path.parent, os.O_RDONLY)
    finally:
        with suppress(OSError):
            partial.unlink()


def _flush(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, *failures: type[Exception], flushed: bool = True) -> Iterator[Path]:
    """As `whole_file`, but it raises FileError for an OSError and for the `failures` that the writer raises instead.

    It also removes partial files that a killed writer of the same file left at least an hour ago.
    """
    refusals: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        # the process number: two writers of one file must not share a partial file
        with whole_file(path, path.with_name(f".{path.name}.{os.getpid()}.part"), flushed=flushed) as partial:
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


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file; a reader sees the old or the new content, never a part. FileError when it cannot be written."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
