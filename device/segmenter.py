"""Online breath cycles: valleys of the band-passed envelope at the rhythm's pace, else fixed windows.

Decisions fall on a fixed 50 ms grid counted from the first sample, so the cycles do not depend on how the stream was
cut into blocks.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, correlate, sosfilt

from device.bundle import Segmentation
from device.signal import SAMPLE_RATE, FloatArray, exact_div

STEP_SAMPLES = exact_div(SAMPLE_RATE, 20)  # 800: the envelope's 50 ms grid
STEPS_PER_SECOND = exact_div(SAMPLE_RATE, STEP_SAMPLES)
BAND_HZ = (150.0, 1000.0)  # below lies the heart, above little of a breath
SMOOTH_SECONDS = 0.15
RHYTHM_SECONDS = 12.0  # how far back the rhythm is looked for
LEAST_RHYTHM_SECONDS = 4.0  # less audio than this shows no rhythm
PERIOD_SECONDS = (1.0, 6.0)  # 60 down to 10 breaths a minute
LEAST_CONFIDENCE = 0.3  # to find a rhythm
KEPT_CONFIDENCE = 0.2  # to keep the one that the last breath was cut by: breaths vary, and 0.3 lost every third one
LEAST_DEPTH = 0.15  # standard deviation of the log envelope; steady noise has 0.04-0.09, and any period fits it
PERIOD_SHARE = 0.75  # two breaths often correlate better than one; a shorter peak this high is the breath
LEAST_TAIL_SECONDS = 0.5  # less than this at the end stays unjudged
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

    The shortest period between 1 and 6 s at which the normalised autocorrelation, corrected for the shrinking overlap,
    has a peak about as high as its highest.
    """
    count = log_envelope.size
    shortest, longest = round(PERIOD_SECONDS[0] * STEPS_PER_SECOND), round(PERIOD_SECONDS[1] * STEPS_PER_SECOND)
    # a period has to be seen about twice
    longest = min(longest, count // 2)
    if count < LEAST_RHYTHM_SECONDS * STEPS_PER_SECOND or longest <= shortest:
        return 0.0, 0.0
    centred = log_envelope - log_envelope.mean()
    power = float(np.mean(np.square(centred)))
    if power < LEAST_DEPTH**2:
        return 0.0, 0.0
    lags = np.arange(shortest, longest + 1)
    products = correlate(centred, centred, method="fft")[count - 1 + lags]
    correlation = products / (count - lags) / power
    peaks = np.flatnonzero((correlation[1:-1] >= correlation[:-2]) & (correlation[1:-1] > correlation[2:])) + 1
    peaks = peaks[correlation[peaks] > 0]
    if not peaks.size:
        return 0.0, 0.0
    best = peaks[correlation[peaks] >= PERIOD_SHARE * correlation[peaks].max()][0]
    return float(lags[best]) / STEPS_PER_SECOND, min(float(correlation[best]), 1.0)


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
        self._in_rhythm = False

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
        """The stream breaks off here: what was not yet judged, in windows up to the end; `reset` comes next."""
        end = self._cursor + self._audio.size
        wanted = round(self.settings.window_seconds * SAMPLE_RATE)
        least = round(LEAST_TAIL_SECONDS * SAMPLE_RATE)
        segments: list[Segment] = []
        while self._audio.size >= wanted + least:
            segments.append(self._cut_window())
        tail = self._audio[-wanted:]
        if end - self._emitted_end >= least and tail.size >= self.settings.shortest_seconds * SAMPLE_RATE:
            segments.append(Segment(end - tail.size, tail, "window", 0.0))
        return segments

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
        self._in_rhythm = confidence >= (KEPT_CONFIDENCE if self._in_rhythm else LEAST_CONFIDENCE)
        if not self._in_rhythm:
            return [self._cut_window()]
        latest = min(self.settings.longest_seconds, max(self.settings.shortest_seconds, (1 + SLACK) * period))
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
