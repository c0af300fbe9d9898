"""Removing what a box knows of patients: all of it, or the sound that is beyond its time."""

import glob
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from device.store.audio import AudioStore
from device.store.database import as_store_error, open_database
from device.store.recorder import retain
from device.store.sealing import replace_key
from firmware_config.settings import StoreSettings


@dataclass(frozen=True)
class Wiped:
    """What was removed."""

    files: int
    megabytes: float
    new_key: bool
    """Whether the key was replaced: what the disk still holds of the sound cannot be read any more."""


def wipe(settings: StoreSettings) -> Wiped:
    """Remove the store with its sound, also what was set aside as damaged, and replace the key of the sound.

    Raises StoreError when a file cannot be removed, and FileError when the key cannot be replaced; it can be repeated.
    """
    file = settings.file
    patterns = [f"{glob.escape(file.name)}{end}" for end in ("", "-*", ".damaged-*")]
    found = [path for pattern in patterns for path in file.parent.glob(pattern)]
    inside = [path for one in found for path in (one.rglob("*") if one.is_dir() else [one]) if path.is_file()]
    megabytes = sum(path.stat().st_size for path in inside) / 1e6
    # without the key the sound is lost at once, whatever interrupts the rest
    if settings.key_file is not None:
        replace_key(settings.key_file)
    with as_store_error(file, "cannot be wiped"):
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return Wiped(len(inside), megabytes, settings.key_file is not None)


def remove_expired(settings: StoreSettings) -> str:
    """Remove the sound that is beyond the settings' age and size; a warning, empty without one. Raises StoreError."""
    file: Path = settings.file
    if not file.is_file():
        return ""
    with closing(open_database(file)) as database, as_store_error(file, "cannot be changed"):
        return retain(database, AudioStore(file), settings)
