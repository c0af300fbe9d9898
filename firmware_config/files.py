"""Files that are not ours to read."""

from pathlib import Path
from typing import Final

CLUTTER: Final = frozenset({".ds_store", "__macosx", "thumbs.db", "desktop.ini"})


def is_clutter(path: Path) -> bool:
    """Whether a file or folder is what macOS or Windows leaves beside the recordings: `._a.wav`, `Thumbs.db`."""
    return path.name.startswith("._") or path.name.lower() in CLUTTER
