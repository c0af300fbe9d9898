"""Annotations and recordings of one name, anywhere below a folder."""

import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from device.capture.recording import SUFFIXES as AUDIO_SUFFIXES
from device.capture.recording import AudioError, scan
from firmware_config.files import is_clutter
from trainer.corpora.cycle import CorpusError, nfc

COPY: Final = re.compile(r" ?\(\d+\)$")  # "name (1)": what a browser or a file manager adds to a second copy


def check_folder(root: Path) -> None:
    """Raise CorpusError unless `root` is a folder."""
    if not root.exists():
        raise CorpusError(f"{root}: no such folder; check --data")
    if not root.is_dir():
        raise CorpusError(f"{root}: is a file; --data takes the folder of this corpus")


def walk(root: Path) -> Iterator[Path]:
    """Every file below `root` except clutter, in order of path; a linked folder is entered once."""
    entered = set()

    def refuse(error: OSError) -> None:
        raise CorpusError(f"{error.filename}: cannot be entered ({error.strerror}); change its permissions")

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        entered.add(os.path.realpath(folder))
        new: list[str] = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            if real not in entered and not is_clutter(Path(name)):
                entered.add(real)
                new.append(name)
        folders[:] = new
        yield from (path for name in sorted(names) if not is_clutter(path := Path(folder, name)) and path.is_file())


def files_by_name(root: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """Files below `root` by name (NFC) without its suffix; "name (1)" is a copy of "name".

    Names contain dots, so only a known suffix is taken off.
    """
    found: dict[str, list[Path]] = {}
    # the original before its copies
    for path in sorted(walk(root), key=lambda path: (bool(COPY.search(path.stem)), path)):
        if path.suffix.lower() in suffixes:
            found.setdefault(COPY.sub("", nfc(path.name[: -len(path.suffix)])), []).append(path)
    return found


def copies_note(found: dict[str, list[Path]]) -> tuple[str, ...]:
    """How many files are "name (1)" copies of another."""
    copies = [path for paths in found.values() for path in paths[1:] if COPY.search(path.stem)]
    if not copies:
        return ()
    return (f"{len(copies)} copies of a recording are not counted again, the first {copies[0]}",)


def audio_by_name(root: Path) -> dict[str, list[Path]]:
    """Every wav and flac below `root`."""
    return files_by_name(root, AUDIO_SUFFIXES)


def the_one(paths: Sequence[Path]) -> Path:
    """The first of some identical files; CorpusError when they differ."""
    first = paths[0]
    for other in paths[1:]:
        if not same_sound(first, other):
            raise CorpusError(f"{other}: differs from {first} of the same name; keep one of the two")
    return first


def same_sound(first: Path, other: Path) -> bool:
    """Same bytes, or the same samples in another container."""
    if first.samefile(other):
        return True
    if first.suffix.lower() == other.suffix.lower():
        return first.read_bytes() == other.read_bytes()
    try:
        one, two = scan(first), scan(other)
        same_rate = one.header.sample_rate == two.header.sample_rate
        return same_rate and np.array_equal(one.samples(), two.samples())
    except AudioError:
        return False


def read_text(path: Path) -> str:
    """Text of an annotation, not blank, in UTF-8 or, by its mark, UTF-16 (Excel's Unicode text); else CorpusError."""
    try:
        with path.open("rb") as file:
            coding = "utf-16" if file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
        text = path.read_text(encoding=coding)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    except UnicodeError as error:
        raise CorpusError(f"{path}: cannot be read (not UTF-8 text); save it as UTF-8, or copy it again") from error
    if "\0" in text:
        raise CorpusError(f"{path}: cannot be read (text in UTF-16 without its mark, or none); save it as UTF-8")
    if not text.strip():
        raise CorpusError(f"{path}: the annotation is empty; copy it again or remove the recording")
    return text
