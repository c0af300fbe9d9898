"""The last good settings file: a service goes on with it while its own is broken, and says so."""

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Final

from firmware_config.files import write_atomically
from firmware_config.settings import state_folder

FOLDER: Final = "last-good-settings"
SERVICE: Final = "NOTIFY_SOCKET"  # systemd sets it for a service that reports to it


def is_service() -> bool:
    """Whether systemd started this process as a service that reports to it."""
    return SERVICE in os.environ


def last_good_file(config: Path) -> Path:
    """Where the last good content of a settings file is kept; every file has a place of its own."""
    mark = hashlib.sha256(os.fsencode(os.path.abspath(config))).hexdigest()[:12]
    return state_folder() / FOLDER / f"{config.stem}-{mark}.toml"


def keep_as_good(config: Path, text: str) -> None:
    """Keep the content of a settings file that worked; FileError when it cannot be written."""
    kept, content = last_good_file(config), text.encode()
    if not kept.is_file() or kept.read_bytes() != content:
        write_atomically(kept, content)


def safe_mode_words(reason: str, kept: Path) -> str:
    """What is said in safe mode, everywhere: the error, and of when the settings in force are."""
    since = datetime.fromtimestamp(kept.stat().st_mtime).isoformat(" ", "minutes")
    return f"{reason}; listening with the last good settings, of {since}; 'respsam-device config check' shows the error"
