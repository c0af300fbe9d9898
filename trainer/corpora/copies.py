"""Recordings that are there twice: counted once if their annotations agree, else a contradiction."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from trainer.corpora.cycle import Problem, Recording
from trainer.corpora.folder import same_sound

PIECE: Final = 1 << 16  # bytes from the middle of a file that tell most recordings of one length apart

Unique = tuple[list[Recording], list[Problem], tuple[str, ...]]
"""Recordings without copies, contradictions, and a note on what was a copy."""


def without_copies(recordings: Sequence[Recording]) -> Unique:
    """One recording of each group with identical files; of a group that contradicts itself, none.

    If the contradiction is between two parts, all are kept, with a note: SPRSound was published with such a pair.
    """
    dropped: set[str] = set()
    problems: list[Problem] = []
    copies: list[str] = []
    notes: list[str] = []
    for copies_of_one in _same_bytes(recordings):
        first, *others = copies_of_one
        differing = [one for one in others if _annotation(one) != _annotation(first)]
        if not differing:
            dropped.update(one.name for one in others)
            copies += [f"{one.audio} = {first.audio}" for one in others]
            continue
        contradiction = f"{first.audio}: the same sound as {differing[0].audio}, annotated otherwise"
        if all(one.part != first.part for one in differing):
            notes.append(f"{contradiction}, in another part: both are kept")
        else:
            dropped.update(one.name for one in copies_of_one)
            problems.append(Problem(f"{contradiction}; correct one"))
    kept = [one for one in recordings if one.name not in dropped]
    return kept, problems, (*_note(copies), *notes)


def joined(recordings: Sequence[Recording], folders: Sequence[Path]) -> Unique:
    """Recordings (n,) of several folders (n,) as one corpus: of one name or the same bytes, each once.

    If only one recording of a name has audio, it is taken.
    """
    named: dict[str, list[tuple[Recording, Path]]] = defaultdict(list)
    for one, folder in zip(recordings, folders, strict=True):
        named[one.name].append((one, folder))
    kept, problems, copies = [], [], []
    for group in named.values():
        (first, folder), *others = sorted(group, key=lambda pair: pair[0].audio is None)
        differing = [other for one, other in others if not _same_recording(first, one)]
        if differing:
            where = f"{first.name}: annotated or recorded otherwise in {folder} than in {differing[0]}"
            problems.append(Problem(f"{where}; keep one of the two"))
            continue
        kept.append(first)
        copies += [f"{other} = {folder} ({first.name})" for _, other in others]
    kept, contradictions, notes = without_copies(kept)
    return kept, [*problems, *contradictions], (*_note(copies), *notes)


def _same_recording(first: Recording, other: Recording) -> bool:
    if first.audio is None or other.audio is None:
        return first.audio is not None or _annotation(first) == _annotation(other)
    return _annotation(first) == _annotation(other) and same_sound(first.audio, other.audio)


def _annotation(one: Recording) -> tuple[object, ...]:
    """What copies must share; two filters of one stethoscope may be the same to the bit."""
    cycles = tuple((cycle.start_seconds, cycle.end_seconds, cycle.label) for cycle in one.cycles)
    return one.corpus, one.patient, one.label, cycles


def _note(copies: Sequence[str]) -> tuple[str, ...]:
    """How many recordings are copies of others."""
    return tuple(f"{len(copies)} of the recordings are there twice and count once, as in {one}" for one in copies[:1])


def _same_bytes(recordings: Iterable[Recording]) -> list[list[Recording]]:
    """Groups of two and more recordings with identical files, in their order."""
    sizes: dict[object, list[Recording]] = defaultdict(list)
    for one in recordings:
        if one.audio is not None and one.audio.is_file():
            sizes[one.audio.stat().st_size].append(one)
    groups = [group for group in sizes.values() if len(group) > 1]
    for digest in (_middle, _whole):
        groups = [part for group in groups for part in _divided(group, digest)]
    return groups


def _divided(group: Sequence[Recording], digest: Callable[[Path], bytes]) -> list[list[Recording]]:
    parts: dict[bytes, list[Recording]] = defaultdict(list)
    for one in group:
        if one.audio is not None:
            parts[digest(one.audio)].append(one)
    return [part for part in parts.values() if len(part) > 1]


def _middle(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return hashlib.sha256(file.read(PIECE)).digest()


def _whole(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
