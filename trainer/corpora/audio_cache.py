"""16 kHz mono float32 audio of a corpus in one memory-mapped file, so that an epoch reads no codec and no resampler."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from device.capture.recording import AudioError, AudioWarning, ChannelWarning, scan
from device.signal import SAMPLE_RATE, FloatArray, resample
from firmware_config.files import replacing, write_atomically
from trainer.corpora import Purpose, load_corpora
from trainer.corpora.cycle import Corpus, CorpusError, Cycle, Recording, Source

CONSTANT = 1e-6  # a silence's ripple after resampling; a recorder's step of 16 bits is thirty times as large
RINGING = SAMPLE_RATE // 25  # samples that the resampler rings on beside a sudden silence
LAYOUT = 2  # raise when the bytes below would mean something else


@dataclass(frozen=True)
class AudioCache:
    """Read-only samples of every recording by name."""

    file: Path
    spans: dict[str, tuple[int, int]]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a command says of the recordings' sound, each time alike, and of the cache itself."""

    @cached_property
    def samples(self) -> FloatArray:
        """Every recording end to end, memory-mapped."""
        return np.memmap(self.file, dtype=np.float32, mode="r")

    def __getitem__(self, name: str) -> FloatArray:
        """Samples (n,) at 16 kHz of the recording `name`."""
        start, end = self.spans[name]
        return self.samples[start:end]

    def cut(self, name: str, start_seconds: float, end_seconds: float) -> FloatArray:
        """A stretch of one recording, clipped to it; (n,) float32."""
        start, end = self.spans[name]
        first = min(max(start + round(start_seconds * SAMPLE_RATE), start), end)
        last = min(max(start + round(end_seconds * SAMPLE_RATE), first), end)
        return self.samples[first:last]

    def seconds(self, name: str) -> float:
        """Length of one recording."""
        start, end = self.spans[name]
        return (end - start) / SAMPLE_RATE


def _audio_of(recording: Recording) -> Path:
    if recording.audio is None:
        raise CorpusError(
            f"{recording.name}: annotation without a recording; put its wav or flac beside it or use --lenient"
        )
    return recording.audio


def _decode(path: Path) -> tuple[FloatArray, tuple[AudioWarning, ...]] | str:
    """Samples (n,) at 16 kHz and what is odd, or why there are none; a string, as the pool loses the error's place."""
    try:
        recorded = scan(path)
        return resample(recorded.samples(), recorded.header.sample_rate), recorded.remarks
    except AudioError as error:
        return str(error)


def _fingerprint(recordings: Sequence[Recording]) -> str:
    """What the cached bytes depend on: which files, their size and time, and the resampler."""
    import soxr

    digest = hashlib.sha256(f"{LAYOUT} {SAMPLE_RATE} {soxr.__version__}".encode())
    for recording in recordings:
        path = _audio_of(recording)
        # what is not there is said by _decode, like everything that cannot be read
        status = path.stat() if path.is_file() else None
        stamp = f"{status.st_size}\0{status.st_mtime_ns}" if status else "missing"
        digest.update(f"{recording.name}\0{path.resolve()}\0{stamp}\n".encode())
    return digest.hexdigest()[:24]


def open_cache(
    recordings: Sequence[Recording],
    folder: Path,
    *,
    lenient: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> AudioCache:
    """The cache of these recordings below `folder`, made first where it is absent; again, and noted, where damaged.

    `progress(done, total)` is called as recordings are decoded. Raises AudioError, CorpusError or FileError naming the
    file; with `lenient` a recording that cannot be decoded is missing from the cache and named in its `problems`.
    """
    key = _fingerprint(recordings)
    audio, index = folder / f"{key}.f32", folder / f"{key}.json"
    cache = _existing(audio, index)
    if cache is None:
        damaged = audio.exists() or index.exists()
        cache = _make(recordings, audio, index, lenient, progress)
        if damaged:
            note = f"{audio}: the audio cache was damaged or incomplete and has been made again"
            cache = dataclasses.replace(cache, notes=(*cache.notes, note))
    if cache.problems and not lenient:
        raise AudioError(cache.problems[0])
    return cache


def _existing(audio: Path, index: Path) -> AudioCache | None:
    if not (audio.is_file() and index.is_file()):
        return None
    try:
        held = json.loads(index.read_text())
        spans = {name: (int(start), int(end)) for name, start, end in held["spans"]}
        problems, notes = (tuple(str(one) for one in held[kind]) for kind in ("problems", "notes"))
    except (ValueError, KeyError, TypeError):
        return None
    whole = audio.stat().st_size == 4 * max((end for _, end in spans.values()), default=0)
    return AudioCache(audio, spans, problems, notes) if whole else None


def _make(
    recordings: Sequence[Recording],
    audio: Path,
    index: Path,
    lenient: bool,
    progress: Callable[[int, int], None] | None,
) -> AudioCache:
    spans: dict[str, tuple[int, int]] = {}
    problems: list[str] = []
    odd: dict[tuple[str, bool], list[str]] = {}
    position = 0
    # threads: libsndfile and soxr work outside the interpreter lock, and nothing has to be started or sent back
    with replacing(audio) as partial, partial.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(_decode, [_audio_of(recording) for recording in recordings])
        for done, (recording, found) in enumerate(zip(recordings, decoded, strict=True), 1):
            if isinstance(found, str):
                if not lenient:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise AudioError(found)
                problems.append(found)
            else:
                samples, remarks = found
                file.write(samples.tobytes())
                spans[recording.name] = (position, position + samples.size)
                position += samples.size
                for remark in remarks:
                    kind = (recording.corpus, isinstance(remark, ChannelWarning))
                    odd.setdefault(kind, []).append(str(remark))
            if progress is not None:
                progress(done, len(recordings))
    notes = tuple(_odd(*kind, said) for kind, said in odd.items())
    held = {"spans": [[name, *span] for name, span in spans.items()], "problems": problems, "notes": notes}
    write_atomically(index, json.dumps(held))
    return AudioCache(audio, spans, tuple(problems), notes)


def _odd(corpus: str, channels: bool, said: list[str]) -> str:
    """What is odd about the sound of a corpus, in one line."""
    if channels:
        which = "1 recording has" if len(said) == 1 else f"{len(said)} recordings have"
        return f"{corpus}: {which} more than one channel; only the first is used"
    return said[0] + (f" ({len(said) - 1} more like it)" if len(said) > 1 else "")


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
    """The corpus and its cache; with `lenient`, what cannot be decoded and cycles without sound are left out and noted.

    CorpusError names the recording and the cycle that is muted (constant samples, which no window can be made of).
    """
    cache = open_cache(corpus.recordings, folder, lenient=lenient, progress=progress)
    heard = tuple(recording for recording in corpus.recordings if recording.name in cache.spans)
    notes = [f"left out ({n} of {len(cache.problems)}): {text}" for n, text in enumerate(cache.problems, 1)]
    muted = [(one, cycle) for one in heard for cycle in one.cycles if _muted(cache, cycle)]
    if muted:
        recording, cycle = muted[0]
        where = f"{recording.audio}: {cycle.label} event {cycle.start_seconds:.2f}-{cycle.end_seconds:.2f} s"
        if not lenient:
            more = f" ({len(muted) - 1} more like it)" if len(muted) > 1 else ""
            raise CorpusError(f"{where} has no sound; remove it, or give --lenient to leave it out{more}")
        notes.append(f"{len(muted)} events without sound are left out, the first {where}")
        silent = {cycle for _, cycle in muted}
        heard = tuple(_without(recording, silent) for recording in heard)
    return dataclasses.replace(corpus, recordings=heard, notes=(*corpus.notes, *cache.notes, *notes)), cache


def _muted(cache: AudioCache, cycle: Cycle) -> bool:
    """Whether all samples of a cycle are the same but for its edges; three of them say no for almost every cycle."""
    samples = cache.cut(cycle.recording, cycle.start_seconds, cycle.end_seconds)
    inner = samples[RINGING:-RINGING] if samples.size > 4 * RINGING else samples
    few = inner[[0, inner.size // 2, -1]] if inner.size else inner
    return not inner.size or bool(np.ptp(few) < CONSTANT and np.ptp(inner) < CONSTANT)


def _without(recording: Recording, cycles: set[Cycle]) -> Recording:
    return dataclasses.replace(recording, cycles=tuple(cycle for cycle in recording.cycles if cycle not in cycles))
