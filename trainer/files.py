"""Files that are whole or absent."""

import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from firmware_config.errors import RespSAMError
from firmware_config.settings import cache_folder

ABANDONED_SECONDS = 3600.0  # nobody writes so long; a process number says nothing where machines share the disk


class FileError(RespSAMError):
    """A file that cannot be written; what it held before is kept."""


@contextmanager
def replacing(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """Where to write the new content of `path`, which takes its place once it is whole and on the disk.

    Whatever stops the writer leaves the old content and nothing else. An OSError, or one of the `failures` by which the
    writer says the same, becomes a FileError. What a killed writer left of the same file goes with the next one.
    """
    # by process: two that write the same file must not take each other's half
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    refusals: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except refusals as error:
        reason = getattr(error, "strerror", None) or str(error).rpartition(": ")[2]
        raise FileError(
            f"{path}: cannot be written ({reason}); free the disk or choose another place; what was there is kept"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        # another writer may be done with it meanwhile, and somebody else's may not be ours to remove
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink()


def own_font_list() -> None:
    """matplotlib keeps its list of fonts in our cache, not in a folder of its own; call it before the import."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder("matplotlib")))


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one; FileError when it cannot be written."""
    with replacing(path) as partial:
        partial.write_text(text)
