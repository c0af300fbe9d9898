"""Annotations and recordings of one name, anywhere below a folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from device.audio import SUFFIXES as AUDIO_SUFFIXES
from device.audio import AudioError, read_audio
from trainer.corpora.cycle import CorpusError


def check_folder(root: Path) -> None:
    """Raise CorpusError unless `root` is a folder."""
    if not root.exists():
        raise CorpusError(f"{root}: no such folder; check --data")
    if not root.is_dir():
        raise CorpusError(f"{root}: is a file; --data takes the folder of this corpus")


def files_by_name(root: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files below `root` by name without its suffix; names contain dots, so only a known suffix is taken off."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        # a Mac leaves "._NAME.json" beside every file of an archive
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            found.setdefault(path.name[: -len(path.suffix)], []).append(path)
    return found


def audio_by_name(root: Path) -> dict[str, list[Path]]:
    """Every wav and flac below `root`."""
    return files_by_name(root, AUDIO_SUFFIXES)


def the_one(paths: Sequence[Path]) -> Path:
    """The first of files that are one and the same; CorpusError when they differ."""
    first = paths[0]
    for other in paths[1:]:
        if not _same(first, other):
            raise CorpusError(f"{other}: differs from {first} of the same name; keep one of the two")
    return first


def _same(first: Path, other: Path) -> bool:
    """Same bytes, or the same samples in another container."""
    if first.suffix.lower() == other.suffix.lower():
        return first.read_bytes() == other.read_bytes()
    try:
        (samples, sample_rate), (other_samples, other_rate) = read_audio(first), read_audio(other)
    except AudioError:
        return False
    return sample_rate == other_rate and np.array_equal(samples, other_samples)


def read_text(path: Path) -> str:
    """Text of an annotation, not blank; CorpusError names the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CorpusError(f"{path}: cannot be read ({reason}); copy it again") from error
    if not text.strip():
        raise CorpusError(f"{path}: the annotation is empty; copy it again or remove the recording")
    return text
