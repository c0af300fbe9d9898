"""The decoded audio of a corpus, so that an epoch reads no codec and no resampler; each recording is decoded once."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from device.capture.recording import AudioError
from device.signal import SAMPLE_RATE, FloatArray
from trainer.corpora import Purpose, load_corpora
from trainer.corpora.cycle import Corpus, CorpusError, Cycle, Recording, Source
from trainer.corpora.decoded import (
    CONSTANT,
    CONSTANT_SAMPLES,
    Decoded,
    Stored,
    Usage,
    as_float,
    decode,
    file_of,
    kept,
    mapped,
    trim,
)

RINGING: Final = CONSTANT_SAMPLES  # samples that the resampler rings on beside a sudden silence


@dataclass(frozen=True)
class AudioCache:
    """Read-only samples of recordings by name. Lengths need no access to the samples."""

    lengths: dict[str, int]
    """Samples of every recording."""
    files: dict[str, Path]
    """Where they are."""
    sources: dict[str, Path] = field(default_factory=dict)
    """What they were decoded from."""
    partly_constant: frozenset[str] = frozenset()
    """The recordings that may have constant stretches of 4 RINGING samples or more."""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Remarks about the recordings' sound, the same in each run, and about the cache itself."""

    def __getitem__(self, name: str) -> FloatArray:
        """Samples (n,) at 16 kHz of the recording `name`."""
        return as_float(self._stored(name))

    def cut(self, name: str, start_seconds: float, end_seconds: float) -> FloatArray:
        """A stretch of one recording, clipped to it; (n,) float32."""
        return as_float(self._stored(name)[self.span(name, start_seconds, end_seconds)])

    def _stored(self, name: str) -> Stored:
        try:
            return mapped(self.files[name])
        except (OSError, ValueError):  # since it was opened, another command has needed the room or cleared the folder
            if isinstance(problem := decode(self.sources[name], self.files[name]), str):
                raise AudioError(problem) from None
        return mapped(self.files[name])

    def span(self, name: str, start_seconds: float, end_seconds: float) -> slice:
        """The samples of a stretch that lie in the recording."""
        length = self.lengths[name]
        first = min(max(round(start_seconds * SAMPLE_RATE), 0), length)
        return slice(first, min(max(round(end_seconds * SAMPLE_RATE), first), length))

    def trim(self, folder: Path, gigabytes: float) -> None:
        """Remove what was used longest ago below `folder` until the rest fits, but none of these recordings."""
        trim(folder, gigabytes, self.files.values())

    def seconds(self, name: str) -> float:
        """Length of one recording."""
        return self.lengths[name] / SAMPLE_RATE


def _audio_of(recording: Recording) -> Path:
    if recording.audio is None:
        raise CorpusError(
            f"{recording.name}: annotation without a recording; put its wav or flac beside it or use --lenient"
        )
    return recording.audio


def open_cache(
    recordings: Sequence[Recording],
    folder: Path,
    *,
    lenient: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> AudioCache:
    """The cache of these recordings below `folder`. Absent ones are decoded first, damaged ones again, with a note.

    `progress(done, total)` is called as recordings are decoded. Raises AudioError, CorpusError or FileError naming the
    file; with `lenient` a recording that cannot be decoded is missing from the cache and named in its `problems`.
    """
    sources = {one.name: _audio_of(one) for one in recordings}
    # resolving takes longer than all else here, and recordings share few folders
    resolved = {parent: parent.resolve() for parent in {audio.parent for audio in sources.values()}}
    files = {name: file_of(resolved[audio.parent] / audio.name, folder) for name, audio in sources.items()}
    found: dict[str, Decoded | str | None] = {name: kept(file) for name, file in files.items()}
    # by file: one recording may be in two corpora
    absent = {files[name]: sources[name] for name, one in found.items() if one is None}
    damaged = [file for file in absent if file.exists()]
    if absent:
        made = _made(absent, lenient, progress)
        found |= {name: made[files[name]] for name, one in found.items() if one is None}
        mapped.cache_clear()
    decoded = {name: one for name, one in found.items() if isinstance(one, Decoded)}
    cache = AudioCache(
        {name: one.length for name, one in decoded.items()},
        {name: files[name] for name in decoded},
        {name: sources[name] for name in decoded},
        frozenset(name for name, one in decoded.items() if one.partly_constant),
        tuple(one for one in found.values() if isinstance(one, str)),
        _odd([(recording.corpus, decoded[recording.name]) for recording in recordings if recording.name in decoded]),
    )
    if not absent:
        return cache
    size = Usage(len(decoded), sum(one.bytes for one in decoded.values()))
    return dataclasses.replace(
        cache, notes=(*cache.notes, f"audio cache: {size.in_words} in {folder}", *_repaired(damaged))
    )


def _made(
    absent: dict[Path, Path], lenient: bool, progress: Callable[[int, int], None] | None
) -> dict[Path, Decoded | str]:
    """Decode recordings (file to audio) and write each; AudioError at the first that cannot be, unless `lenient`."""
    made: dict[Path, Decoded | str] = {}
    # threads: libsndfile and soxr work outside the interpreter lock, and nothing has to be started or sent back
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for file, found in zip(absent, pool.map(decode, absent.values(), absent), strict=True):
                if isinstance(found, str) and not lenient:
                    raise AudioError(found)
                made[file] = found
                if progress is not None:
                    progress(len(made), len(absent))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return made


def _repaired(damaged: list[Path]) -> list[str]:
    more = f" ({len(damaged) - 1} more like it)" if len(damaged) > 1 else ""
    return [f"{damaged[0]}: the audio cache was damaged and this file has been made again{more}"] if damaged else []


def _odd(decoded: list[tuple[str, Decoded]]) -> tuple[str, ...]:
    """What is odd about the sound: one line for each corpus and kind."""
    odd: dict[tuple[str, bool], list[str]] = {}
    for corpus, one in decoded:
        for channels, text in one.remarks:
            odd.setdefault((corpus, channels), []).append(text)
    return tuple(_odd_line(*kind, texts) for kind, texts in odd.items())


def _odd_line(corpus: str, channels: bool, remarks: list[str]) -> str:
    """What is odd about the sound of a corpus, in one line."""
    if channels:
        which = "1 recording has" if len(remarks) == 1 else f"{len(remarks)} recordings have"
        return f"{corpus}: {which} more than one channel; only the first is used"
    return remarks[0] + (f" ({len(remarks) - 1} more like it)" if len(remarks) > 1 else "")


def open_corpora(
    sources: Sequence[Source],
    folder: Path,
    *,
    part: str | None = None,
    split: str = "official",
    lenient: bool = False,
    purpose: Purpose | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Corpus, AudioCache]:
    """`load_corpora` and `with_audio`: what `--corpus NAME --data DIR` name, and its decoded audio below `folder`."""
    read = load_corpora(sources, part=part, split=split, lenient=lenient, purpose=purpose)
    return with_audio(read, folder, lenient=lenient, progress=progress)


def with_audio(
    corpus: Corpus, folder: Path, *, lenient: bool = False, progress: Callable[[int, int], None] | None = None
) -> tuple[Corpus, AudioCache]:
    """The corpus and its cache. With `lenient`, bad recordings and cycles without sound are left out, with a note.

    CorpusError names the recording and the cycle without sound: no window can be made of constant samples.
    """
    cache = open_cache(corpus.recordings, folder, lenient=lenient, progress=progress)
    decoded = tuple(recording for recording in corpus.recordings if recording.name in cache.lengths)
    notes = [f"left out ({n} of {len(cache.problems)}): {text}" for n, text in enumerate(cache.problems, 1)]
    muted = [(one, cycle) for one in decoded for cycle in one.cycles if _muted(cache, cycle)]
    if muted:
        recording, cycle = muted[0]
        where = f"{recording.audio}: {cycle.label} event {cycle.start_seconds:.2f}-{cycle.end_seconds:.2f} s"
        if not lenient:
            more = f" ({len(muted) - 1} more like it)" if len(muted) > 1 else ""
            raise CorpusError(f"{where} has no sound; remove it, or give --lenient to leave it out{more}")
        notes.append(f"{len(muted)} events without sound are left out, the first {where}")
        silent = {cycle for _, cycle in muted}
        decoded = tuple(_without(recording, silent) for recording in decoded)
    return dataclasses.replace(corpus, recordings=decoded, notes=(*corpus.notes, *cache.notes, *notes)), cache


def _muted(cache: AudioCache, cycle: Cycle) -> bool:
    """Whether all samples of a cycle but its edges are the same; for almost every cycle no sample is needed."""
    span = cache.span(cycle.recording, cycle.start_seconds, cycle.end_seconds)
    if cycle.recording not in cache.partly_constant and span.stop - span.start > 4 * RINGING:
        return False
    samples = cache.cut(cycle.recording, cycle.start_seconds, cycle.end_seconds)
    inner = samples[RINGING:-RINGING] if samples.size > 4 * RINGING else samples
    return not inner.size or bool(np.ptp(inner) < CONSTANT)


def _without(recording: Recording, cycles: set[Cycle]) -> Recording:
    return dataclasses.replace(recording, cycles=tuple(cycle for cycle in recording.cycles if cycle not in cycles))
