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
    FRAME_SAMPLES,
    FRAMES,
    HOP_SAMPLES,
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
    pad_frames,
    resample,
    split,
)
from trainer.audio_cache import AudioCache
from trainer.corpora.cycle import POOR_QUALITY, Corpus, Cycle, union
from trainer.metrics import Float64Array, IntArray
from trainer.recipe import AugmentationRecipe, DataRecipe

OVERLAP_SECONDS = 0.05  # an event that reaches less far into a stretch is not heard in it
ATTEMPTS = 4
UNKNOWN = -1  # class of a moment that nobody has annotated
FRAME_CENTRES = np.arange(FRAMES) * HOP_SAMPLES + FRAME_SAMPLES // 2


def overlapping(cycles: Sequence[Cycle], start_seconds: float, end_seconds: float) -> list[Cycle]:
    """The cycles that share more than 0.05 s with the stretch."""
    return [
        cycle
        for cycle in cycles
        if min(cycle.end_seconds, end_seconds) - max(cycle.start_seconds, start_seconds) > OVERLAP_SECONDS
    ]


def noises(corpus: Corpus) -> list[str]:
    """Names of the poor quality recordings of patients in whom nothing abnormal was ever heard.

    A model that has met clean sound alone calls rubbing and talking a crackle: it flagged six of ten stretches of such
    recordings of held-out patients. Laid under normal and abnormal crops alike, noise tells nothing of the label;
    taught as normal, it hid the findings beneath it (held-out sensitivity in noise 0.66 instead of 0.91).
    """
    ill = {cycle.patient for cycle in corpus.cycles if cycle.label != "normal"}
    return [one.name for one in corpus.recordings if one.label == POOR_QUALITY and one.patient not in ill]


def overlaid(samples: FloatArray, below: FloatArray, snr_db: float) -> FloatArray:
    """Samples (n,) with `below`, repeated or cut to as many, added at a signal-to-noise ratio in dB."""
    below = np.resize(below, samples.size)
    gain = np.std(samples) / max(float(np.std(below)), 1e-12) * 10 ** (-snr_db / 20)
    return (samples + gain * below).astype(np.float32)


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


class TrainingCrops(Dataset[tuple[Tensor, int, Tensor]]):
    """Window (frames, mels), class, and class of each frame (frames,); keys are (epoch, position, cycle index).

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
        self.calm, self.poor = sorted(self.wholly_normal), noises(corpus)
        self.by_recording: dict[str, list[Cycle]] = defaultdict(list)
        for cycle in self.cycles:
            self.by_recording[cycle.recording].append(cycle)

    def __len__(self) -> int:
        return len(self.cycles)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int, Tensor]:
        epoch, position, index = key
        random = np.random.default_rng((self.seed, epoch, position))
        name = self.cycles[index].recording
        start, end, label = self.crop(self.cycles[index], random)
        with located(name, start, end):
            samples = self.cache.cut(name, start, end)
            if random.random() < self.augmentation.background_share:
                samples = overlaid(
                    samples, self.background(end - start, random), random.uniform(*self.augmentation.background_snr_db)
                )
            samples, speed = sped(samples, self.augmentation.speed, random)
            window, places = augmented_window(samples, self.front_end, self.augmentation, random)
        heard = self.heard_at(name, start + speed * places / SAMPLE_RATE)
        return torch.from_numpy(window), LABELS.index(label), torch.from_numpy(np.where(places >= 0, heard, UNKNOWN))

    def background(self, length: float, random: np.random.Generator) -> FloatArray:
        """Up to `length` s (n,) from anywhere in a recording without findings, half of them of poor quality."""
        pool = self.poor if self.poor and (not self.calm or random.random() < 0.5) else self.calm
        name = pool[int(random.integers(len(pool)))]
        limit = self.cache.seconds(name)
        return self.cache.cut(name, *place(0.0, limit, length, limit, random.random()))

    def heard_at(self, recording: str, seconds: Float64Array) -> IntArray:
        """Class index at each time (n,); UNKNOWN outside of the annotation, unless the whole recording is normal."""
        found = np.full(len(seconds), LABELS.index("normal") if recording in self.wholly_normal else UNKNOWN)
        # the abnormal last, for they lie over the normal
        for cycle in sorted(self.by_recording[recording], key=lambda one: one.label != "normal"):
            inside = (seconds >= cycle.start_seconds) & (seconds < cycle.end_seconds)
            found[inside] = LABELS.index(cycle.label)
        return found

    def length(self, random: np.random.Generator) -> float:
        """Seconds of a random crop."""
        shortest, longest = self.data.crop_seconds
        if self.data.crop_lengths == "uniform":
            return float(random.uniform(shortest, longest))
        return float(np.exp(random.uniform(np.log(shortest), np.log(longest))))

    def crop(self, cycle: Cycle, random: np.random.Generator) -> tuple[float, float, Label]:
        """Start and end in seconds, and what is heard there: every event of the crop counts, not only the drawn one."""
        if self.data.crops == "events":
            return cycle.start_seconds, cycle.end_seconds, cycle.label
        limit = self.cache.seconds(cycle.recording)
        anywhere = (
            cycle.label == "normal" and cycle.recording in self.wholly_normal and random.random() < self.data.anywhere
        )
        for _ in range(ATTEMPTS):
            length = self.length(random)
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


def sped(samples: FloatArray, largest: float, random: np.random.Generator) -> tuple[FloatArray, float]:
    """Samples (n,) played at a random speed between 1 / (1 + `largest`) and 1 + `largest`, and that speed."""
    if not largest or samples.size < FRAME_SAMPLES:
        return samples, 1.0
    rate = round(SAMPLE_RATE * float(np.exp(random.uniform(-np.log1p(largest), np.log1p(largest)))))
    return resample(samples, rate), rate / SAMPLE_RATE


def repetition(size: int, front_end: FrontEnd) -> tuple[int, int]:
    """Samples from one repeat of a cycle of `size` samples to the next in its window, and of the fade between them.

    WINDOW_SAMPLES and 0 where nothing is repeated.
    """
    if front_end.padding != "cyclic" or size >= WINDOW_SAMPLES:
        return WINDOW_SAMPLES, 0
    seam = min(SEAM_SAMPLES if front_end.seam == "crossfade" else 0, size // 2)
    return size - seam, seam


def augmented_window(
    samples: FloatArray, front_end: FrontEnd, augmentation: AugmentationRecipe, random: np.random.Generator
) -> tuple[FloatArray, IntArray]:
    """A crop (n,) to its normalised, varied window (frames, mels), and which sample each frame (frames,) is about.

    A frame of padding that repeats nothing is about -1.
    """
    first = 0
    if samples.size > WINDOW_SAMPLES:
        parts = split(samples)
        chosen = int(random.integers(len(parts)))
        first = round(chosen * (samples.size - WINDOW_SAMPLES) / (len(parts) - 1))
        samples = parts[chosen]
    levelled = level(samples, front_end.level)
    if random.random() < augmentation.noise_share:
        noisy = overlaid(levelled, _noise(levelled.size, random), random.uniform(*augmentation.noise_snr_db))
        levelled = level(noisy, front_end.level)
    if augmentation.gain_db:
        levelled = levelled * np.float32(10 ** (random.uniform(-augmentation.gain_db, augmentation.gain_db) / 20))
    (period, seam), shift = repetition(levelled.size, front_end), 0
    if period < WINDOW_SAMPLES and augmentation.cyclic_shift:
        shift = int(random.integers(levelled.size))
    padded = cyclic_pad(levelled, WINDOW_SAMPLES + shift, seam)[shift:] if shift else pad(levelled, front_end)
    places = (FRAME_CENTRES + shift) % period
    log_mels = log_mel(padded, front_end)
    if augmentation.equalise_db:
        log_mels += frequency_response(front_end.mels, augmentation.equalise_db, random)
    window = _mask(normalise(pad_frames(log_mels, front_end), front_end), augmentation, random)
    about = np.full(len(window), -1)
    about[:FRAMES] = np.where(places < levelled.size, first + places, -1)
    return window, about


def _noise(size: int, random: np.random.Generator) -> FloatArray:
    """Noise (size,) between white and brown."""
    spectrum = np.fft.rfft(random.standard_normal(size, dtype=np.float32))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50.0)
    return np.fft.irfft(spectrum * frequency ** -random.uniform(0.0, 1.0), size).astype(np.float32)


def frequency_response(mels: int, decibels: float, random: np.random.Generator) -> FloatArray:
    """A smooth curve over the bands (mels,), in the log-mel's natural-log power units."""
    position = np.linspace(0.0, 1.0, mels)
    curve = sum(random.normal() / order * np.cos(np.pi * order * position) for order in (1, 2, 3, 4))
    return np.asarray(curve * decibels * np.log(10) / 10, dtype=np.float32)


def _mask(window: FloatArray, augmentation: AugmentationRecipe, random: np.random.Generator) -> FloatArray:
    """SpecAugment with the mean (0 after normalisation)."""
    for _ in range(augmentation.time_masks):
        width = int(random.integers(augmentation.time_mask_frames + 1))
        start = int(random.integers(len(window) - width + 1))
        window[start : start + width] = 0.0
    for _ in range(augmentation.mel_masks):
        width = int(random.integers(augmentation.mel_mask_bands + 1))
        start = int(random.integers(window.shape[1] - width + 1))
        window[:, start : start + width] = 0.0
    return window
