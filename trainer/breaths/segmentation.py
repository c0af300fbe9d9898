"""How well breaths are found: scores of a segmenter on annotated corpora, and the fit of its detector.

Annotated events are not all the breaths of a recording, so what is found outside them is no error: a *stretch* is a run
of events with at most `JOIN_SECONDS` between one's end and the next one's start, and a segment is a false positive when
its middle lies in a stretch and it matches no event of any class. A segment matches an event when their intersection
over union is at least 0.5, one to one, as many as possible. F1 counts Normal events; abnormal ones are annotated short,
so of them the covered share is read: of each event's time, the largest part inside one segment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from device.breath.segmenter import (
    BANDS,
    DELAY_STEPS,
    DILATIONS,
    MEMORY_STEPS,
    SPECTRUM_SAMPLES,
    STEP_SAMPLES,
    STEPS_PER_SECOND,
    Segment,
    Segmenter,
    Weights,
    bands,
)
from device.bundle import Segmentation
from device.signal import SAMPLE_RATE, FloatArray
from firmware_config.errors import RespSAMError
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.cycle import Corpus, Cycle, Recording

Float64Array = npt.NDArray[np.float64]
Spans = Sequence[tuple[float, float]]

LEAST_OVERLAP: Final = 0.5
JOIN_SECONDS: Final = 1.0
CHANNELS, DROPOUT, EPOCHS, BATCH, PEAK_RATE = 16, 0.1, 10, 32, 5e-3
TILT: Final = (
    0.3  # standard deviation in nepers of each band's offset: another stethoscope, another start of the memory
)
MARGIN_SECONDS: Final = 0.25  # so much beside a stretch is still known to be silence
UNSURE_SECONDS: Final = 1.0  # around an abnormal event the breath goes on for nobody knows how long
ONSET_SECONDS: Final = 0.07  # standard deviation of the bump that marks an onset


class SegmentationError(RespSAMError):
    """A detector that cannot be fitted or written."""


@dataclass(frozen=True)
class Counts:
    """What one recording, or many together, come to."""

    matched: int = 0
    false: int = 0
    missed: int = 0
    onset_errors: tuple[float, ...] = ()
    """Seconds, found minus annotated, of matched Normal events."""
    end_errors: tuple[float, ...] = ()
    covered: tuple[float, ...] = ()
    """Of each abnormal event, 0-1."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN), three decimals; None when there is nothing to count."""
        whole = 2 * self.matched + self.false + self.missed
        return round(2 * self.matched / whole, 3) if whole else None

    def as_json(self) -> dict[str, float | None]:
        """What is reported: shares 0-1, errors in ms."""

        def median_ms(errors: Sequence[float]) -> float | None:
            return round(1000 * float(np.median(np.abs(errors)))) if errors else None

        found = self.matched + self.false
        return {
            "f1": self.f1,
            "precision": round(self.matched / found, 3) if found else None,
            "recall": round(self.matched / (self.matched + self.missed), 3) if self.matched + self.missed else None,
            "abnormal_covered": round(float(np.mean(self.covered)), 3) if self.covered else None,
            "onset_error_ms": median_ms(self.onset_errors),
            "end_error_ms": median_ms(self.end_errors),
        }


def intersections(spans: Spans, others: Spans) -> tuple[Float64Array, Float64Array]:
    """Seconds shared by each pair, and intersection over union, both (spans, others)."""
    one, two = np.reshape(spans, (-1, 1, 2)), np.reshape(others, (1, -1, 2))
    shared = np.clip(np.minimum(one[..., 1], two[..., 1]) - np.maximum(one[..., 0], two[..., 0]), 0.0, None)
    union = (one[..., 1] - one[..., 0]) + (two[..., 1] - two[..., 0]) - shared
    return shared, shared / union


def stretches(events: Spans) -> list[tuple[float, float]]:
    """Runs of events (start, end) with at most JOIN_SECONDS between them."""
    runs: list[tuple[float, float]] = []
    for start, end in sorted(events):
        if runs and start - runs[-1][1] <= JOIN_SECONDS:
            runs[-1] = (runs[-1][0], max(runs[-1][1], end))
        else:
            runs.append((start, end))
    return runs


def count(found: Spans, cycles: Sequence[Cycle], *, every_class: bool = False) -> Counts:
    """One recording's counts; with `every_class` abnormal cycles are matched too (ICBHI: whole, contiguous)."""
    events = [(cycle.start_seconds, cycle.end_seconds) for cycle in cycles]
    shared, overlap = intersections(found, events)
    # a match is worth more than any sum of overlaps
    rows, columns = linear_sum_assignment(
        (overlap >= LEAST_OVERLAP) + overlap / (1e3 * (1 + len(events))), maximize=True
    )
    pairs = {int(j): int(i) for i, j in zip(rows, columns, strict=True) if overlap[i, j] >= LEAST_OVERLAP}
    scored = [j for j, cycle in enumerate(cycles) if every_class or cycle.label == "normal"]
    matched = [(found[pairs[j]], events[j]) for j in scored if j in pairs]
    runs = stretches(events)
    unmatched = [span for i, span in enumerate(found) if i not in pairs.values()]
    return Counts(
        matched=len(matched),
        false=sum(any(start <= sum(span) / 2 <= end for start, end in runs) for span in unmatched),
        missed=len(scored) - len(matched),
        onset_errors=tuple(one[0] - other[0] for one, other in matched),
        end_errors=tuple(one[1] - other[1] for one, other in matched),
        covered=tuple(
            float(shared[:, j].max(initial=0.0)) / cycle.duration_seconds
            for j, cycle in enumerate(cycles)
            if cycle.label != "normal"
        ),
    )


def cut(samples: FloatArray, segmentation: Segmentation, weights: Weights | None = None) -> list[Segment]:
    """A recording (n,) through the device's segmenter."""
    segmenter = Segmenter(segmentation, weights)
    return segmenter.feed(samples) + segmenter.flush()


def spans_of(segments: Iterable[Segment]) -> list[tuple[float, float]]:
    """Their times in seconds."""
    return [(segment.start_seconds, segment.end_seconds) for segment in segments]


def score(
    recordings: Sequence[Recording],
    cache: AudioCache,
    segmentation: Segmentation,
    weights: Weights | None = None,
    *,
    every_class: bool = False,
) -> Counts:
    """All annotated recordings together."""
    total = Counts()
    for recording in recordings:
        if recording.cycles:
            found = spans_of(cut(cache[recording.name], segmentation, weights))
            total += count(found, recording.cycles, every_class=every_class)
    return total


class DetectorNet(nn.Module):
    """The device's `Detector` for training: (batch, BANDS, steps) to logits (batch, 2, steps), `DELAY_STEPS` late."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(BANDS, CHANNELS, 1)
        self.taps = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 3, dilation=dilation) for dilation in DILATIONS)
        self.mix = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 1) for _ in DILATIONS)
        self.leave = nn.Conv1d(CHANNELS, 2, 1)

    def forward(self, heard: Tensor) -> Tensor:
        """Logits of activity and onset."""
        state: Tensor = self.enter(heard)
        for dilation, taps, mix in zip(DILATIONS, self.taps, self.mix, strict=True):
            inner = F.relu(taps(F.pad(state, (2 * dilation, 0))))
            state = state + F.dropout(mix(inner), DROPOUT, self.training)
        logits: Tensor = self.leave(F.relu(state))
        return logits

    def weights(self) -> Weights:
        """As the device reads them: matrices (inputs, outputs), the three taps of a layer one below the other."""
        names = {"enter": "in", "leave": "out"}
        held: Weights = {}
        for name, tensor in self.state_dict().items():
            *path, kind = name.split(".")
            device_name = names.get(path[0], "".join(path))
            if kind == "weight":
                held[device_name] = tensor.permute(2, 1, 0).reshape(-1, tensor.shape[0]).double().numpy()
            else:
                held[f"{device_name}_bias"] = tensor.double().numpy()
        return held


def features(samples: FloatArray) -> Float64Array:
    """What the device's detector hears at every step (steps, BANDS): log powers less their mean over the memory."""
    padded = np.concatenate([np.zeros(STEP_SAMPLES), samples[: samples.size // STEP_SAMPLES * STEP_SAMPLES]])
    heard = bands(np.lib.stride_tricks.sliding_window_view(padded, SPECTRUM_SAMPLES)[::STEP_SAMPLES])
    sums = np.concatenate([np.zeros((1, BANDS)), np.cumsum(heard, axis=0)])
    last = np.arange(1, len(heard) + 1)
    first = np.maximum(0, last - MEMORY_STEPS)
    relative: Float64Array = heard - (sums[last] - sums[first]) / (last - first)[:, None]
    return relative


def targets(cycles: Sequence[Cycle], steps: int) -> tuple[Float64Array, Float64Array]:
    """Activity and onset (2, steps), and how much each step counts: nothing where nobody annotated."""
    times = np.arange(steps) / STEPS_PER_SECOND
    wanted, known = np.zeros((2, steps)), np.zeros((2, steps))
    normal = [(cycle.start_seconds, cycle.end_seconds) for cycle in cycles if cycle.label == "normal"]
    for start, end in stretches(normal):
        known[:, (times > start - MARGIN_SECONDS) & (times < end + MARGIN_SECONDS)] = 1.0
    for cycle in cycles:
        if cycle.label != "normal":
            start, end = cycle.start_seconds - UNSURE_SECONDS, cycle.end_seconds + UNSURE_SECONDS
            known[:, (times > start) & (times < end)] = 0.0
    for cycle in cycles:
        inside = (times >= cycle.start_seconds) & (times < cycle.end_seconds)
        wanted[0, inside] = known[0, inside] = 1.0
        if cycle.label == "normal":
            bump = np.exp(-0.5 * np.square((times - cycle.start_seconds) / ONSET_SECONDS))
            wanted[1] = np.maximum(wanted[1], bump)
    return wanted, known


def fit_detector(recordings: Sequence[Recording], cache: AudioCache, seed: int) -> Weights:
    """The detector's weights from annotated recordings; the same seed, the same weights (one machine)."""
    rows = []
    for recording in recordings:
        if recording.cycles:
            sound = features(cache[recording.name])
            rows.append((sound.T, *targets(recording.cycles, len(sound))))
    if not rows:
        raise SegmentationError("no annotated recordings to fit a detector on; choose another --part or --data")
    longest = max(row[0].shape[1] for row in rows)
    heard, wanted, known = (
        torch.from_numpy(np.stack([np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in parts])).float()
        for parts in zip(*rows, strict=True)
    )
    torch.manual_seed(seed)
    net, random = DetectorNet(), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    steps = max(1, len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for chosen in np.array_split(random.permutation(len(rows)), steps):
            tilted = heard[chosen] + TILT * torch.randn(len(chosen), BANDS, 1)
            logits = net(tilted)[..., DELAY_STEPS:]
            loss = F.binary_cross_entropy_with_logits(logits, wanted[chosen][..., :-DELAY_STEPS], reduction="none")
            counted = known[chosen][..., :-DELAY_STEPS]
            optimizer.zero_grad()
            mean: Tensor = (loss * counted).sum() / counted.sum()
            mean.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net.weights()


def save_detector(weights: Weights, file: Path) -> None:
    """Write weights as the device reads them (`WEIGHTS_FILE`, float32); SegmentationError where that fails."""
    try:
        np.savez(file, **{name: matrix.astype(np.float32) for name, matrix in weights.items()})  # type: ignore[arg-type]
    except OSError as error:
        raise SegmentationError(f"{file}: cannot be written ({error.strerror}); choose another --out") from error


def fold_detectors(corpus: Corpus, cache: AudioCache, folds: int, seed: int) -> list[tuple[Corpus, Weights | None]]:
    """Held-out patients, each fold with a detector that never met them; 0 folds: all, with the shipped one."""
    from trainer.corpora.splits import patient_folds

    if not folds:
        return [(corpus, None)]
    return [
        (held_out, fit_detector(training.recordings, cache, seed))
        for training, held_out in patient_folds(corpus, folds, seed)
    ]


def compare(corpus: Corpus, cache: AudioCache, detectors: Sequence[tuple[Corpus, Weights | None]]) -> dict[str, Any]:
    """The detector's readings with each fold's F1, fixed windows beside it, and how late a breath is told."""
    whole = corpus.name == "icbhi"  # whole cycles one after the other, of every class
    per_fold = [
        score(held_out.recordings, cache, Segmentation(), weights, every_class=whole) for held_out, weights in detectors
    ]
    readings: dict[str, Any] = {"breath": sum(per_fold, Counts()).as_json()}
    readings["breath"]["f1_by_fold"] = [counts.f1 for counts in per_fold]
    for seconds in (1.5, 2.5):
        windows = Segmentation(method="windows", window_seconds=seconds)
        readings[f"windows {seconds} s"] = score(corpus.recordings, cache, windows, every_class=whole).as_json()
    found = [latencies(cache[one.name], weights) for held_out, weights in detectors for one in held_out.recordings]
    late = np.concatenate(found)
    mean, largest = (round(float(late.mean()), 3), round(float(late.max()), 3)) if late.size else (None, None)
    readings["latency_seconds"] = {"mean": mean, "largest": largest}
    return readings


def latencies(samples: FloatArray, weights: Weights | None = None) -> Float64Array:
    """Seconds from the end of each breath to its segment, of a recording heard in 50 ms blocks."""
    segmenter = Segmenter(Segmentation(), weights)
    late = [
        (at + STEP_SAMPLES - segment.end) / SAMPLE_RATE
        for at in range(0, samples.size - STEP_SAMPLES + 1, STEP_SAMPLES)
        for segment in segmenter.feed(samples[at : at + STEP_SAMPLES])
        if segment.kind == "breath"
    ]
    return np.array(late)
