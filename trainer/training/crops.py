"""From a drawn cycle to a training window: the crop, its labels, its augmentation; all from one seed per draw."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from device.labels import LABELS, Label
from device.model.judgement import moment_centres
from device.signal import (
    FRAME_SAMPLES,
    MEL_FLOOR,
    PREEMPHASIS,
    SAMPLE_RATE,
    WINDOW_SAMPLES,
    WINDOW_SECONDS,
    FloatArray,
    FrontEnd,
    cyclic_pad,
    level,
    log_mel,
    mel_centres,
    normalise,
    pad,
    pad_frames,
    repetition,
    resample,
    split,
)
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.cycle import POOR_QUALITY, WHOLE_RECORDING_SECONDS, Corpus, Cycle, union
from trainer.corpora.stretches import located, overlapping, place
from trainer.metrics import Float64Array, IntArray
from trainer.run.recipe import AugmentationRecipe, DataRecipe, Recipe

ATTEMPTS: Final = 4
SPANS: Final = 8  # of a crop that are learnt from: the whole of it, and so many annotated cycles less one
# so much of a cycle has to lie in the crop: an event sounds all along, a breath's finding may be anywhere in it
VISIBLE: Final = {"event": 0.6, "cycle": 0.9}
NEPERS: Final = np.log(10.0) / 10.0  # of power in a decibel
STEEPEST_DB: Final = 400.0  # of a low-pass, an octave: what a resampler leaves


def noises(corpus: Corpus) -> list[str]:
    """Names of the poor quality recordings of patients without any abnormal cycle.

    A model that has met clean sound alone takes rubbing and talking for crackles: it flagged six of ten stretches of
    such recordings of held-out patients. Mixed into normal and abnormal crops alike, noise does not predict the label.
    Taught as normal, it hid the findings in it (held-out sensitivity in noise 0.66 instead of 0.91).
    """
    ill = {cycle.patient for cycle in corpus.cycles if cycle.label != "normal"}
    return [one.name for one in corpus.recordings if one.label == POOR_QUALITY and one.patient not in ill]


def overlaid(samples: FloatArray, below: FloatArray, snr_db: float) -> FloatArray:
    """Samples (n,) with `below`, repeated or cut to as many, added at a signal-to-noise ratio in dB."""
    below = np.resize(below, samples.size)
    gain = np.std(samples) / max(float(np.std(below)), 1e-12) * 10 ** (-snr_db / 20)
    return (samples + gain * below).astype(np.float32)


@dataclass(frozen=True)
class Crop:
    """A stretch of a recording, and the label of all of it; None where the annotation does not state one."""

    start_seconds: float
    end_seconds: float
    label: Label | None


class TrainingCrops(Dataset[tuple[Tensor, ...]]):
    """Windows and their training targets; keys are (epoch, position, cycle index).

    An item is a window (frames, mels), and of each of its SPANS which moments belong to it (SPANS, moments), its class
    (SPANS,) and its weight (SPANS,): first the whole crop, then the annotated cycles in it.
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
        moments: int = 1,
        cycle_loss: float = 0.0,
    ) -> None:
        """`moments` of the model; `cycle_loss` weighs the cycles of a crop beside the crop itself."""
        self.cycles = corpus.cycles
        self.cache, self.front_end, self.data, self.augmentation, self.seed = cache, front_end, data, augmentation, seed
        self.moments, self.cycle_loss = moments, cycle_loss
        self.recordings = {recording.name: recording for recording in corpus.recordings}
        self.wholly_normal = {recording.name for recording in corpus.recordings if recording.label == "normal"}
        self.calm, self.poor = sorted(self.wholly_normal), noises(corpus)

    def __len__(self) -> int:
        return len(self.cycles)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, ...]:
        epoch, position, index = key
        random = np.random.default_rng((self.seed, epoch, position))
        name = self.cycles[index].recording
        crop = self.crop(self.cycles[index], random)
        start, end = crop.start_seconds, crop.end_seconds
        with located(name, start, end):
            samples = self.cache.cut(name, start, end)
            if random.random() < self.augmentation.background_share:
                samples = overlaid(
                    samples, self.background(end - start, random), random.uniform(*self.augmentation.background_snr_db)
                )
            samples, speed = sped(samples, self.augmentation.speed, random)
            window, places = augmented_window(samples, self.front_end, self.augmentation, random, self.moments)
            seconds = start + speed * places / SAMPLE_RATE
        spans = self.spans(name, crop, seconds, random)
        return torch.from_numpy(window), *(torch.from_numpy(one) for one in spans)

    def background(self, length: float, random: np.random.Generator) -> FloatArray:
        """Up to `length` s (n,) from anywhere in a recording without findings, half of them of poor quality."""
        pool = self.poor if self.poor and (not self.calm or random.random() < 0.5) else self.calm
        name = pool[int(random.integers(len(pool)))]
        limit = self.cache.seconds(name)
        return self.cache.cut(name, *place(0.0, limit, length, limit, random.random()))

    def spans(
        self, name: str, crop: Crop, seconds: Float64Array, random: np.random.Generator
    ) -> tuple[FloatArray, IntArray, FloatArray]:
        """Moments (SPANS, moments), classes (SPANS,) and weights (SPANS,) of a crop; its moments are at `seconds`.

        A cycle that falls between two moments has the nearest one.
        """
        members = np.zeros((SPANS, self.moments), np.float32)
        classes, weights = np.zeros(SPANS, np.int64), np.zeros(SPANS, np.float32)
        members[0] = 1.0
        if crop.label is not None:
            classes[0], weights[0] = LABELS.index(crop.label), 1.0
        inside = self.visible(name, crop.start_seconds, crop.end_seconds) if self.cycle_loss else []
        chosen = [inside[int(place)] for place in random.permutation(len(inside))[: SPANS - 1]]
        for row, cycle in enumerate(chosen, 1):
            belongs = (seconds >= cycle.start_seconds) & (seconds < cycle.end_seconds)
            if not belongs.any():
                belongs[np.abs(seconds - (cycle.start_seconds + cycle.end_seconds) / 2).argmin()] = True
            members[row], classes[row] = belongs, LABELS.index(cycle.label)
            weights[row] = self.cycle_loss / len(chosen)
        return members, classes, weights

    def visible(self, name: str, start: float, end: float) -> list[Cycle]:
        """The annotated cycles that lie in a stretch as far as their label needs; none of whole recordings."""
        share = VISIBLE.get(self.recordings[name].grain)
        if share is None:
            return []
        return [
            cycle
            for cycle in self.recordings[name].cycles
            if min(cycle.end_seconds, end) - max(cycle.start_seconds, start) >= share * cycle.duration_seconds
        ]

    def length(self, cycle: Cycle, random: np.random.Generator) -> float:
        """Seconds of a random crop, log-uniform; a breath's finding may be anywhere in it, so it is taken whole."""
        grain = self.recordings[cycle.recording].grain
        shortest, longest = self.data.crop_seconds
        if grain == "recording":
            shortest = min(max(shortest, WHOLE_RECORDING_SECONDS), longest)
        length = float(np.exp(random.uniform(np.log(shortest), np.log(longest))))
        if random.random() < self.data.whole_windows:
            length = float(WINDOW_SECONDS)
        return min(max(length, cycle.duration_seconds), WINDOW_SECONDS) if grain == "cycle" else length

    def crop(self, cycle: Cycle, random: np.random.Generator) -> Crop:
        """A stretch around a cycle, and its label: every event of the crop counts, not only the drawn one."""
        if self.data.crops == "events":
            return Crop(cycle.start_seconds, cycle.end_seconds, cycle.label)
        limit = self.cache.seconds(cycle.recording)
        grain = self.recordings[cycle.recording].grain
        anywhere = grain == "recording" or (
            cycle.label == "normal" and cycle.recording in self.wholly_normal and random.random() < self.data.anywhere
        )
        for _ in range(ATTEMPTS):
            length = self.length(cycle, random)
            if anywhere:
                start, end = place(0.0, limit, length, limit, random.random())
            else:
                start, end = place(cycle.start_seconds, cycle.end_seconds, length, limit, random.random())
            crop = Crop(start, end, self.label(cycle, start, end))
            # a normal cycle beside an abnormal one: another length or place may leave the neighbour out
            if cycle.label != "normal" or crop.label == "normal":
                break
        return crop

    def label(self, drawn: Cycle, start: float, end: float) -> Label | None:
        """Of a stretch around the drawn cycle, which counts even where it is shorter than an overlap.

        None where a part of a breath might or might not hold that breath's finding.
        """
        recording = self.recordings[drawn.recording]
        if recording.grain == "recording":
            return drawn.label
        found = union([drawn.label, *(cycle.label for cycle in overlapping(recording.cycles, start, end))])
        if recording.grain == "event":
            return found
        whole = union([cycle.label for cycle in self.visible(drawn.recording, start, end)])
        return found if found == whole else None


def crops_of(corpus: Corpus, cache: AudioCache, front_end: FrontEnd, recipe: Recipe, seed: int) -> TrainingCrops:
    """The training crops of a corpus, as a recipe draws and varies them."""
    moments = recipe.model.moments
    # a model of one moment would learn the label of a part for the whole crop
    cycle_loss = recipe.optimizer.cycle_loss if moments > 1 else 0.0
    return TrainingCrops(corpus, cache, front_end, recipe.data, recipe.augmentation, seed, moments, cycle_loss)


def sped(samples: FloatArray, largest: float, random: np.random.Generator) -> tuple[FloatArray, float]:
    """Samples (n,) played at a random speed between 1 / (1 + `largest`) and 1 + `largest`, and that speed."""
    if not largest or samples.size < FRAME_SAMPLES:
        return samples, 1.0
    rate = round(SAMPLE_RATE * float(np.exp(random.uniform(-np.log1p(largest), np.log1p(largest)))))
    return resample(samples, rate), rate / SAMPLE_RATE


def augmented_window(
    samples: FloatArray,
    front_end: FrontEnd,
    augmentation: AugmentationRecipe,
    random: np.random.Generator,
    moments: int = 1,
) -> tuple[FloatArray, IntArray]:
    """A crop (n,) to its normalised, varied window (frames, mels), and the sample at moments' centres (moments,)."""
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
    (period, seam), shift = repetition(levelled.size, front_end), 0
    if period < WINDOW_SAMPLES and augmentation.cyclic_shift:
        shift = int(random.integers(levelled.size))
    padded = cyclic_pad(levelled, WINDOW_SAMPLES + shift, seam)[shift:] if shift else pad(levelled, front_end)
    log_mels = log_mel(padded, front_end.model_copy(update={"floor": MEL_FLOOR}))
    log_mels = through(log_mels, response(front_end, augmentation, random), front_end)
    if augmentation.gain_db:
        log_mels += np.float32(random.uniform(-augmentation.gain_db, augmentation.gain_db) * NEPERS)
    np.maximum(log_mels, np.float32(np.log(front_end.floor)), out=log_mels)
    window = _mask(normalise(pad_frames(log_mels, front_end), front_end), augmentation, random)
    places = (moment_centres(moments) + shift).astype(np.int64) % period
    return window, first + places


def _noise(size: int, random: np.random.Generator) -> FloatArray:
    """Noise (size,) between white and brown."""
    spectrum = np.fft.rfft(random.standard_normal(size, dtype=np.float32))
    frequency = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 50.0)
    return np.fft.irfft(spectrum * frequency ** -random.uniform(0.0, 1.0), size).astype(np.float32)


def response(front_end: FrontEnd, augmentation: AugmentationRecipe, random: np.random.Generator) -> Float64Array:
    """The frequency response of another stethoscope, dB at every band (mels,); all 0 where nothing is asked for."""
    hertz = mel_centres(front_end.mels, front_end.low_hz, front_end.high_hz)
    decibels = np.zeros(front_end.mels)
    if augmentation.equalise_db:
        position = np.linspace(0.0, 1.0, front_end.mels)
        curve = sum(random.normal() / order * np.cos(np.pi * order * position) for order in (1, 2, 3, 4))
        decibels += augmentation.equalise_db * curve
    if random.random() < augmentation.lowpass_share:
        corner = np.exp(random.uniform(*np.log(augmentation.lowpass_hz)))
        slope = np.exp(random.uniform(np.log(24.0), np.log(STEEPEST_DB)))
        decibels -= slope * np.maximum(0.0, np.log2(hertz / corner))
    if random.random() < augmentation.highpass_share:
        corner = np.exp(random.uniform(*np.log(augmentation.highpass_hz)))
        decibels -= random.uniform(6.0, 24.0) * np.maximum(0.0, np.log2(corner / hertz))
    return decibels


def through(log_mels: FloatArray, decibels: Float64Array, front_end: FrontEnd) -> FloatArray:
    """Log-mels (frames, mels) as another frequency response would have given them, levelled again.

    Power is counted without the pre-emphasis, which comes after the level.
    """
    if not decibels.any():
        return log_mels
    hertz = mel_centres(front_end.mels, front_end.low_hz, front_end.high_hz)
    emphasis = np.square(np.abs(1.0 - PREEMPHASIS * np.exp(-2j * np.pi * hertz / SAMPLE_RATE)))
    gain = decibels * NEPERS
    power = np.exp(log_mels.astype(np.float64)) / emphasis
    levelled = np.log(power.sum() / (power * np.exp(gain)).sum())
    return np.asarray(log_mels + (gain + levelled), dtype=np.float32)


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
