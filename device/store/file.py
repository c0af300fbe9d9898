"""The store's file on the disk: its user's alone, and at each write still the file that was opened."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

SIDE_FILES: Final = ("-wal", "-shm")
OTHERS: Final = 0o077  # what a group and everybody else may do
POLL_SECONDS = 0.02
Identity = tuple[int, int]
"""Device and inode."""


def identity(path: Path) -> Identity | None:
    """Which file this is, whatever it is called; None where there is none."""
    try:
        known = path.stat()
    except FileNotFoundError:
        return None
    return known.st_dev, known.st_ino


def side_file(file: Path, suffix: str) -> Path:
    """What belongs to a database and lies beside it."""
    return file.with_name(file.name + suffix)


class OpenFile:
    """The database file as it was opened, with its log; raises OSError."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._database = identity(file)
        self._side = {suffix: identity(side_file(file, suffix)) for suffix in SIDE_FILES}

    def is_there(self) -> bool:
        """Whether its path still leads to it."""
        return identity(self.file) == self._database

    def close(self, close: Callable[[], None]) -> None:
        """Close the database. SQLite deletes its log by name, and by now that may be another database's log."""
        if self.is_there():
            close()
            return
        others = [path for path in self._side_paths(ours=False) if path.exists()]
        for path in others:
            path.rename(side_file(path, ".other"))
        try:
            close()
        finally:
            for path in others:
                side_file(path, ".other").rename(path)
        # the database that is here now must not read our log as its own
        for path in self._side_paths(ours=True):
            path.unlink(missing_ok=True)

    def _side_paths(self, *, ours: bool) -> list[Path]:
        return [
            side_file(self.file, suffix)
            for suffix, before in self._side.items()
            if (before is not None and identity(side_file(self.file, suffix)) == before) == ours
        ]


@contextmanager
def alone(folder: Path, seconds: float) -> Iterator[None]:
    """One process at a time: another one's new file must not be set aside for the damaged one.

    Raises TimeoutError when another process holds the folder for longer.
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
        time.sleep(POLL_SECONDS)


def make_private(file: Path, *, own_folder: bool) -> None:
    """A database file, its log and its folder for their user alone, also those that exist; raises OSError.

    A folder that others use too keeps its mode, unless it is `own_folder`; so does what belongs to another user.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if own_folder or (file.is_file() and all(one.name.startswith(file.name) for one in file.parent.iterdir())):
        close_to_others(file.parent)
    # SQLite gives the log the mode of the database
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    if file.is_dir():
        return
    for path in (file, *(side_file(file, suffix) for suffix in SIDE_FILES)):
        close_to_others(path)


def close_to_others(path: Path) -> None:
    """Take a path's permissions from everybody but its owner; not where we may not."""
    with suppress(FileNotFoundError, PermissionError):
        mode = path.stat().st_mode
        if mode & OTHERS:
            path.chmod(mode & ~OTHERS & 0o7777)
