"""From a drawn cycle to a training window: the crop, its label, its augmentation; all from one seed per draw."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from device.labels import LABELS, Label
from device.signal import (
    FRAMES,
    SAMPLE_RATE,
    SEAM_SAMPLES,
    WINDOW_SAMPLES,
    FloatArray,
    FrontEnd,
    SignalError,
    cyclic_pad,
    level,
    log_mel,
    normalise,
    pad,
    split,
)
from trainer.audio_cache import AudioCache
from trainer.corpora.cycle import Corpus, Cycle, union
from trainer.recipe import AugmentationRecipe, DataRecipe

OVERLAP_SECONDS = 0.05  # an event that reaches less far into a stretch is not heard in it
ATTEMPTS = 4


def overlapping(cycles: Sequence[Cycle], start_seconds: float, end_seconds: float) -> list[Cycle]:
    """The cycles that share more than 0.05 s with the stretch."""
    return [
        cycle
        for cycle in cycles
        if min(cycle.end_seconds, end_seconds) - max(cycle.start_seconds, start_seconds) > OVERLAP_SECONDS
    ]


def place(start: float, end: float, length: float, limit: float, share: float) -> tuple[float, float]:
    """A stretch of `length` s that holds the event, or lies in it when shorter; seconds in and out.

    It begins `share` of the way along the room there is, shifted inside a recording of `limit` s; a recording shorter
    than `length` is taken whole.
    """
    length = min(length, limit)
    room = (end - start) - length
    first = start + share * room
    first = min(max(first, 0.0), limit - length)
    return first, first + length


@contextmanager
def located(recording: str, start_seconds: float, end_seconds: float) -> Iterator[None]:
    """Adds where it happened to a SignalError."""
    try:
        yield
    except SignalError as error:
        raise SignalError(f"{recording} {start_seconds:.2f}-{end_seconds:.2f} s: {error}") from error


class TrainingCrops(Dataset[tuple[Tensor, int]]):
    """Windows (FRAMES, mels) and class of a drawn cycle; keys are (epoch, position, cycle index).

    Everything random comes from (seed, epoch, position): the same draw is the same window in any process and order.
    """

    def __init__(
        self,
        corpus: Corpus,
        cache: AudioCache,
        front_end: FrontEnd,
        data: DataRecipe,
        augmentation: AugmentationRecipe,
        seed: int,
    ) -> None:
        self.cycles = corpus.cycles
        self.cache, self.front_end, self.data, self.augmentation, self.seed = cache, front_end, data, augmentation, seed
        self.wholly_normal = {recording.name for recording in corpus.recordings if recording.label == "normal"}
        self.by_recording: dict[str, list[Cycle]] = defaultdict(list)
        for cycle in self.cycles:
            self.by_recording[cycle.recording].append(cycle)

    def __len__(self) -> int:
        return len(self.cycles)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int]:
        epoch, position, index = key
        random = np.random.default_rng((self.seed, epoch, position))
        start, end, label = self.crop(self.cycles[index], random)
        name = self.cycles[index].recording
        with located(name, start, end):
            window = augmented_window(self.cache.cut(name, start, end), self.front_end, self.augmentation, random)
        return torch.from_numpy(window), LABELS.index(label)

    def crop(self, cycle: Cycle, random: np.random.Generator) -> tuple[float, float, Label]:
        """Start and end in seconds, and what is heard there: every event of the crop counts, not only the drawn one."""
        if self.data.crops == "events":
            return cycle.start_seconds, cycle.end_seconds, cycle.label
        limit = self.cache.seconds(cycle.recording)
        anywhere = (
            cycle.label == "normal" and cycle.recording in self.wholly_normal and random.random() < self.data.anywhere
        )
        for _ in range(ATTEMPTS):
            length = random.uniform(*self.data.crop_seconds)
            if anywhere:
                start, end = place(0.0, limit, length, limit, random.random())
            else:
                start, end = place(cycle.start_seconds, cycle.end_seconds, length, limit, random.random())
            heard = overlapping(self.by_recording[cycle.recording], start, end)
            # the drawn cycle counts even where it is shorter than an overlap
            label = union([cycle.label, *(other.label for other in heard)])
            # a normal cycle beside an abnormal one: another length or place may leave the neighbour out
            if cycle.label != "normal" or label == "normal":
                break
        return start, end, label


def augmented_window(
    samples: FloatArray, front_end: FrontEnd, augmentation: AugmentationRecipe, random: np.random.Generator
) -> FloatArray:
    """A crop (n,) to its normalised, varied window (FRAMES, mels)."""
    if samples.size > WINDOW_SAMPLES:
        parts = split(samples)
        samples = parts[int(random.integers(len(parts)))]
    levelled = level(samples, front_end.level)
    if random.random() < augmentation.noise_share:
        levelled = level(levelled + _noise(levelled, augmentation.noise_snr_db, random), front_end.level)
    if augmentation.cyclic_shift and front_end.padding == "cyclic" and levelled.size < WINDOW_SAMPLES:
        shift = int(random.integers(levelled.size))
        seam = SEAM_SAMPLES if front_end.seam == "crossfade" else 0
        padded = cyclic_pad(levelled, WINDOW_SAMPLES + shift, seam)[shift:]
    else:
        padded = pad(levelled, front_end)
    log_mels = log_mel(padded, front_end)
    if augmentation.equalise_db:
        log_mels += _frequency_response(front_end.mels, augmentation.equalise_db, random)
    return _mask(normalise(log_mels, front_end), augmentation, random)


def _noise(samples: FloatArray, snr_db: tuple[float, float], random: np.random.Generator) -> FloatArray:
    """Noise between white and brown at a random signal-to-noise ratio."""
    spectrum = np.fft.rfft(random.standard_normal(samples.size, dtype=np.float32))
    frequency = np.maximum(np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE), 50.0)
    noise = np.fft.irfft(spectrum * frequency ** -random.uniform(0.0, 1.0), samples.size)
    gain = np.std(samples) / max(float(np.std(noise)), 1e-12) * 10 ** (-random.uniform(*snr_db) / 20)
    return (noise * gain).astype(np.float32)


def _frequency_response(mels: int, decibels: float, random: np.random.Generator) -> FloatArray:
    """A smooth curve over the bands (mels,), in the log-mel's natural-log power units."""
    position = np.linspace(0.0, 1.0, mels)
    curve = sum(random.normal() / order * np.cos(np.pi * order * position) for order in (1, 2, 3, 4))
    return np.asarray(curve * decibels * np.log(10) / 10, dtype=np.float32)


def _mask(window: FloatArray, augmentation: AugmentationRecipe, random: np.random.Generator) -> FloatArray:
    """SpecAugment with the mean (0 after normalisation)."""
    for _ in range(augmentation.time_masks):
        width = int(random.integers(augmentation.time_mask_frames + 1))
        start = int(random.integers(FRAMES - width + 1))
        window[start : start + width] = 0.0
    for _ in range(augmentation.mel_masks):
        width = int(random.integers(augmentation.mel_mask_bands + 1))
        start = int(random.integers(window.shape[1] - width + 1))
        window[:, start : start + width] = 0.0
    return window
