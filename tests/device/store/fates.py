"""What may happen to a store's file while a session writes it."""

import shutil
import sqlite3
from pathlib import Path

from device.store.recorder import Store
from tests.device.storing import beginning


def remove(file: Path) -> None:
    file.unlink()


def restore_a_backup(file: Path) -> None:
    """Another database takes its place, as rsync and tar put it there: under the name, with the same session number."""
    other = file.parent.with_name("backup") / file.name
    store = Store(beginning(other, audio=True))
    store.close()
    other.replace(file)


def restore_a_backup_in_use(file: Path) -> None:
    """The same with the backup's own log beside it: the copy of a database that was being written."""
    other = file.parent.with_name("backup") / file.name
    store = Store(beginning(other, audio=True))
    copies = []
    for one in list(other.parent.glob(f"{other.name}*")):
        if one.is_file():
            copies.append(Path(shutil.copy(one, f"{one}.copy")))
    for copy in copies:
        copy.replace(file.with_name(copy.name.removesuffix(".copy")))
    store.close()


def lose_its_rows(file: Path) -> None:
    """What sqlite3's .restore does: the same file with the content of another time."""
    with sqlite3.connect(file) as database:
        for table in ("cycles", "timeline", "sessions", "meta"):
            database.execute(f"DELETE FROM {table}")
    database.close()
