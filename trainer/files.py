"""Files that are whole or absent."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one."""
    # by process: two that write the same file must not take each other's half
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
