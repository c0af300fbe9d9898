"""Which places of a cycle's spectrogram its judgement depends on: hide one place, judge again.

It needs nothing but the answers of the model, so it works with every bundle (Zeiler & Fergus 2014, arXiv 1311.2901).
A hidden place is as quiet as its bands are in the quiet moments around it: any other level would be a sound of its own.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from device.labels import NORMAL
from device.model.classifier import Classifier
from device.model.judgement import moments_of, pool
from device.signal import (
    FRAME_SAMPLES,
    FRAMES,
    HOP_SAMPLES,
    SAMPLE_RATE,
    WINDOW_SAMPLES,
    Float64Array,
    FloatArray,
    FrontEnd,
    SignalError,
    Span,
    mel_edges,
    repetition,
    window,
)

PLACE_SECONDS: Final = 0.32  # width of a place: one moment of the default bundle
BANDS: Final = 8  # equal in mel
QUIET: Final = 0.1  # quantile of a band's level in the window
AT_ONCE: Final = 16  # windows; more take memory and save no time
FLAT: Final = 0.1  # a change by less points at nothing; random weights differ by as much
SCALE: Final = 5.0  # times, where the colours of every picture end


@dataclass(frozen=True)
class Occlusion:
    """One cycle, and how its odds of being abnormal change where a place is hidden."""

    seconds: Float64Array
    """Edges (columns + 1,) of the places, from the start of the cycle."""
    hertz: Float64Array
    """Edges (rows + 1,), from the bottom."""
    falls: Float64Array
    """(rows, columns): how much the log-odds fall when the place is hidden; below 0, they rise."""
    log_odds: float
    """Of being abnormal, calibrated, with nothing hidden."""

    @property
    def flat(self) -> bool:
        """Whether it points at nothing: no place changes the odds by more than FLAT."""
        return bool(np.abs(self.falls).max() <= np.log1p(FLAT))

    @property
    def probability(self) -> float:
        """Of being abnormal, with nothing hidden."""
        return 1.0 / (1.0 + float(np.exp(-self.log_odds)))

    def in_words(self) -> str:
        """The place that speaks most for something abnormal, or that there is none."""
        if self.flat:
            return f"Flat: no hidden place changes the odds by more than {FLAT:.0%}. It points at nothing."
        row, column = np.unravel_index(int(self.falls.argmax()), self.falls.shape)
        fall = float(self.falls[row, column])
        if fall <= np.log1p(FLAT):
            return "Nothing speaks for an abnormal sound: where a place is hidden, the odds of one rise."
        low, high = self.hertz[row : row + 2]
        start, end = self.seconds[column : column + 2]
        without = 1.0 / (1.0 + float(np.exp(fall - self.log_odds)))
        return (
            f"Most depends on {start:.1f}-{end:.1f} s of the breath, {low:.0f}-{high:.0f} Hz: without it the "
            f"probability is {without:.2f} instead of {self.probability:.2f}."
        )


def occlusion(classifier: Classifier, samples: FloatArray, span: Span | None = None) -> Occlusion:
    """Hide each place of a cycle (n <= WINDOW_SAMPLES,) in turn; `span` as in `Classifier.judge`.

    Takes some 2 s on one core. SignalError for a cycle that is longer than a window.
    """
    if samples.size > WINDOW_SAMPLES:
        raise SignalError(f"a cycle of {samples.size / SAMPLE_RATE:.1f} s is longer than a window; no place is hidden")
    front_end = classifier.bundle.manifest.front_end
    plain, (start, end) = window(samples, front_end), span or (0, samples.size)
    edges = np.linspace(start, end, 1 + max(1, round((end - start) / SAMPLE_RATE / PLACE_SECONDS)))
    bands = np.round(np.linspace(0, front_end.mels, BANDS + 1)).astype(int)
    quiet = np.quantile(plain[:FRAMES], QUIET, axis=0).astype(np.float32)
    columns = _columns(samples.size, edges, front_end)
    hidden = [
        np.where(column[:, None] & _between(bands[row], bands[row + 1], front_end.mels), quiet, plain)
        for row in range(BANDS)
        for column in columns
    ]
    every = [plain, *hidden]
    batches = [np.stack(every[at : at + AT_ONCE]) for at in range(0, len(every), AT_ONCE)]
    odds = np.concatenate([_log_odds(classifier, batch, span) for batch in batches])
    mel = mel_edges(front_end.mels, front_end.low_hz, front_end.high_hz)
    between = (mel[bands] + mel[bands + 1]) / 2  # of two filters' peaks
    falls = (odds[0] - odds[1:]).reshape(BANDS, -1)
    hertz = 700.0 * np.expm1(between / 1127.0)
    return Occlusion((edges - start) / SAMPLE_RATE, hertz, falls, float(odds[0]))


def _columns(size: int, edges: Float64Array, front_end: FrontEnd) -> list[npt.NDArray[np.bool_]]:
    """The frames (frames,) of each place in time, in every repeat of a cycle that was padded."""
    period, _ = repetition(size, front_end)
    centres = (np.arange(FRAMES) * HOP_SAMPLES + FRAME_SAMPLES / 2) % period
    masks = [(centres >= first) & (centres < last) for first, last in pairwise(edges)]
    return [np.pad(mask, (0, front_end.frames - FRAMES)) for mask in masks]


def _between(first: int, last: int, mels: int) -> npt.NDArray[np.bool_]:
    bands = np.arange(mels)
    return np.asarray((bands >= first) & (bands < last))


def _log_odds(classifier: Classifier, inputs: FloatArray, span: Span | None) -> Float64Array:
    """Of being abnormal, calibrated, (batch,)."""
    logits = classifier.logits(inputs)
    pooled = pool(logits if span is None else logits[:, moments_of(span, logits.shape[1])])
    scaled = np.delete(pooled, NORMAL, axis=1) / classifier.file.temperature
    return np.asarray(np.logaddexp.reduce(scaled, axis=1))
