"""The database file: private to its user, and at each write checked to be still the file that was opened."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

SIDE_FILES: Final = ("-wal", "-shm")
OTHERS: Final = 0o077  # permissions of the group and of others
Identity = tuple[int, int]
"""Device and inode."""


def file_identity(path: Path) -> Identity | None:
    """Device and inode of a file; None if there is none."""
    try:
        known = path.stat()
    except FileNotFoundError:
        return None
    return known.st_dev, known.st_ino


def side_file(file: Path, suffix: str) -> Path:
    """The path of a file that belongs to a database, beside it."""
    return file.with_name(file.name + suffix)


class OpenFile:
    """The identity of the database file and its log when they were opened; raises OSError."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._database = file_identity(file)
        self._side = {suffix: file_identity(side_file(file, suffix)) for suffix in SIDE_FILES}

    def is_there(self) -> bool:
        """Whether the path still leads to the same file."""
        return file_identity(self.file) == self._database

    def close(self, close: Callable[[], None]) -> None:
        """Close the database. SQLite deletes its log by name, which may be another database's log by now."""
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
        # another database in our place must not read our log
        for path in self._side_paths(ours=True):
            path.unlink(missing_ok=True)

    def _side_paths(self, *, ours: bool) -> list[Path]:
        return [
            side_file(self.file, suffix)
            for suffix, before in self._side.items()
            if (before is not None and file_identity(side_file(self.file, suffix)) == before) == ours
        ]


def make_private(file: Path, *, own_folder: bool) -> None:
    """Make a database file and its folder if needed, and them and the log private to their user; raises OSError.

    A folder with other files keeps its mode, unless it is `own_folder`; so do files of another user.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if own_folder or (file.is_file() and all(path.name.startswith(file.name) for path in file.parent.iterdir())):
        close_to_others(file.parent)
    # SQLite gives the log the mode of the database
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    if file.is_dir():
        return
    for path in (file, *(side_file(file, suffix) for suffix in SIDE_FILES)):
        close_to_others(path)


def close_to_others(path: Path) -> None:
    """Remove the permissions of all but the owner, where we are allowed to."""
    with suppress(FileNotFoundError, PermissionError):
        mode = path.stat().st_mode
        if mode & OTHERS:
            path.chmod(mode & ~OTHERS & 0o7777)
