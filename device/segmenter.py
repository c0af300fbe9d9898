"""Online breath cycles: valleys of the band-passed envelope at the rhythm's pace, fixed windows where there is no rhythm.

Decisions fall on a fixed 50 ms grid counted from the first sample, so the cycles do not depend on how the stream was cut
into blocks.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, sosfilt

from device.bundle import Segmentation
from device.signal import SAMPLE_RATE, FloatArray, exact_div

STEP_SAMPLES = exact_div(SAMPLE_RATE, 20)  # 800: the envelope's 50 ms grid
STEPS_PER_SECOND = exact_div(SAMPLE_RATE, STEP_SAMPLES)
BAND_HZ = (150.0, 1000.0)  # below lies the heart, above little of a breath
SMOOTH_SECONDS = 0.15
RHYTHM_SECONDS = 12.0  # how far back the rhythm is looked for
LEAST_RHYTHM_SECONDS = 4.0  # less audio than this shows no rhythm
PERIOD_SECONDS = (1.0, 6.0)  # 60 down to 10 breaths a minute
LEAST_CONFIDENCE = 0.35
SLACK = 0.4  # a breath may be this share shorter or longer than the rhythm

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """One stretch to be judged; sample numbers count from the session's start at 16 kHz."""

    start: int
    samples: FloatArray
    kind: Literal["breath", "window"]
    rhythm: float
    """Confidence in the rhythm, 0-1: the autocorrelation of the envelope at its period."""

    @property
    def end(self) -> int:
        """One past the last sample."""
        return self.start + self.samples.size

    @property
    def start_seconds(self) -> float:
        """From the session's start."""
        return self.start / SAMPLE_RATE

    @property
    def end_seconds(self) -> float:
        """From the session's start."""
        return self.end / SAMPLE_RATE


def rhythm(log_envelope: Float64Array) -> tuple[float, float]:
    """Period in seconds and confidence 0-1 of a log envelope (n,) on the 50 ms grid; (0, 0) where there is none.

    The highest peak of the normalised autocorrelation between 1 and 6 s, corrected for the shrinking overlap.
    """
    count = log_envelope.size
    shortest, longest = round(PERIOD_SECONDS[0] * STEPS_PER_SECOND), round(PERIOD_SECONDS[1] * STEPS_PER_SECOND)
    # a period has to be seen about twice
    longest = min(longest, count // 2)
    if count < LEAST_RHYTHM_SECONDS * STEPS_PER_SECOND or longest <= shortest:
        return 0.0, 0.0
    centred = log_envelope - log_envelope.mean()
    power = float(np.mean(np.square(centred)))
    if power < 1e-6:
        return 0.0, 0.0
    lags = np.arange(shortest, longest + 1)
    correlation = np.array([np.mean(centred[lag:] * centred[:-lag]) for lag in lags]) / power
    peaks = np.flatnonzero((correlation[1:-1] >= correlation[:-2]) & (correlation[1:-1] > correlation[2:])) + 1
    if not peaks.size:
        return 0.0, 0.0
    best = peaks[np.argmax(correlation[peaks])]
    return float(lags[best]) / STEPS_PER_SECOND, float(np.clip(correlation[best], 0.0, 1.0))


class Segmenter:
    """Feed samples in, take segments out; `flush` at a gap or at the end."""

    def __init__(self, settings: Segmentation) -> None:
        self.settings = settings
        self._band = butter(2, BAND_HZ, "bandpass", fs=SAMPLE_RATE, output="sos")
        self.reset(0)

    def reset(self, position: int) -> None:
        """Forget everything; the next sample has the number `position`."""
        self._audio = np.empty(0, np.float32)  # from the cursor on
        self._cursor = position  # sample number of the first sample that no breath or window has claimed
        self._pending = np.empty(0, np.float32)  # not yet a whole step
        self._state = np.zeros((self._band.shape[0], 2))
        self._envelope = np.empty(0)
        self._first_step_sample = position  # sample number of the first envelope step held
        self._emitted_end = position

    def feed(self, samples: FloatArray) -> list[Segment]:
        """Take samples (n,) that follow the last ones; returns the segments they complete."""
        self._audio = np.concatenate([self._audio, samples])
        self._pending = np.concatenate([self._pending, samples])
        segments: list[Segment] = []
        whole = self._pending.size // STEP_SAMPLES
        for step in range(whole):
            self._advance(self._pending[step * STEP_SAMPLES : (step + 1) * STEP_SAMPLES])
            segments += self._decide()
        self._pending = self._pending[whole * STEP_SAMPLES :]
        return segments

    def flush(self) -> list[Segment]:
        """The stream breaks off here: the rest as a window, reaching back where it is short. Call `reset` next."""
        end = self._cursor + self._audio.size
        if end - self._emitted_end < 0.5 * SAMPLE_RATE:
            return []  # less than half a second was not yet judged
        wanted = round(self.settings.window_seconds * SAMPLE_RATE)
        tail = self._audio[-min(wanted, self._audio.size) :]
        if tail.size < self.settings.shortest_seconds * SAMPLE_RATE:
            return []
        return [Segment(end - tail.size, tail, "window", 0.0)]

    def _advance(self, step: FloatArray) -> None:
        filtered, self._state = sosfilt(self._band, step.astype(np.float64), zi=self._state)
        self._envelope = np.append(self._envelope, np.log(np.mean(np.square(filtered)) + 1e-14))
        surplus = self._envelope.size - round(RHYTHM_SECONDS * STEPS_PER_SECOND)
        if surplus > 0:
            self._envelope = self._envelope[surplus:]
            self._first_step_sample += surplus * STEP_SAMPLES

    def _decide(self) -> list[Segment]:
        """At most one segment a step: look only when the longest breath that could be cut now is all there."""
        now = self._first_step_sample + self._envelope.size * STEP_SAMPLES
        waiting = (now - self._cursor) / SAMPLE_RATE
        if waiting < self.settings.window_seconds or self._envelope.size < LEAST_RHYTHM_SECONDS * STEPS_PER_SECOND:
            return []
        period, confidence = (0.0, 0.0) if self.settings.method == "windows" else rhythm(self._smooth())
        if confidence < LEAST_CONFIDENCE:
            return [self._cut_window()]
        latest = min(self.settings.longest_seconds, (1 + SLACK) * period)
        if waiting < latest + 2 * SMOOTH_SECONDS:
            return []
        earliest = max(self.settings.shortest_seconds, (1 - SLACK) * period)
        return [self._cut_breath(min(earliest, latest), latest, confidence)]

    def _smooth(self) -> Float64Array:
        return np.asarray(gaussian_filter1d(self._envelope, SMOOTH_SECONDS * STEPS_PER_SECOND))

    def _cut_window(self) -> Segment:
        length = round(self.settings.window_seconds * SAMPLE_RATE)
        segment = Segment(self._cursor, self._audio[:length], "window", 0.0)
        self._move(round(self.settings.hop_seconds * SAMPLE_RATE), segment.end)
        return segment

    def _cut_breath(self, earliest: float, latest: float, confidence: float) -> Segment:
        """From the cursor to the deepest valley between the two times."""
        offset = (self._cursor - self._first_step_sample) / SAMPLE_RATE
        first = round((offset + earliest) * STEPS_PER_SECOND)
        last = max(first + 1, round((offset + latest) * STEPS_PER_SECOND))
        valley = first + int(np.argmin(self._smooth()[first:last]))
        length = self._first_step_sample + valley * STEP_SAMPLES - self._cursor
        segment = Segment(self._cursor, self._audio[:length], "breath", confidence)
        self._move(length, segment.end)
        return segment

    def _move(self, samples: int, emitted_end: int) -> None:
        self._audio = self._audio[samples:]
        self._cursor += samples
        self._emitted_end = emitted_end
