"""Online breath cycles: a small causal network detects where breaths sound and begin; fixed windows elsewhere.

Decisions are made on a fixed 50 ms grid from the first sample, and each step is computed by itself in float64, so the
cycles do not depend on the size of the blocks. Accuracy: docs/accuracy.md.
"""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import correlate
from scipy.special import expit

from device.bundle import Segmentation
from device.signal import SAMPLE_RATE, Float64Array, FloatArray, Span, exact_div

Weights = dict[str, Float64Array]

STEP_SAMPLES: Final = exact_div(SAMPLE_RATE, 20)  # 800: the 50 ms grid
STEPS_PER_SECOND: Final = exact_div(SAMPLE_RATE, STEP_SAMPLES)
SPECTRUM_SAMPLES: Final = 2 * STEP_SAMPLES
# the heart is below; stethoscopes that sample at 4 kHz end at 2 kHz
EDGES_HZ: Final = (60, 100, 150, 200, 250, 300, 350, 400, 500, 600, 700, 850, 1000, 1250, 1500)
BANDS: Final = len(EDGES_HZ) - 1
BREATH_BANDS: Final = slice(2, 11)  # 150-850 Hz
FLOOR: Final = 1e-12  # of a band's power: far below a 24-bit step's noise
MEMORY_STEPS: Final = 6 * STEPS_PER_SECOND  # each band minus its mean over this time: gain and microphone cancel
DILATIONS: Final = (1, 2, 4, 8, 16, 32)  # three taps each: a receptive field of 6.4 s
DELAY_STEPS: Final = 6  # the network's output is for 0.3 s ago
DETECTOR_FILE: Final = Path(__file__).with_name("breath_detector.npz")

SOUNDING: Final = 0.45  # a breath begins above, and ends below
ONSET: Final = 0.45  # a peak above this within a breath begins another one
LEAST_RHYTHM: Final = 0.3  # a rhythm needs this confidence
LEAST_GAP_SECONDS: Final = (
    1.2  # a longer gap between breaths becomes a window; within a rhythm only a gap of its period
)
RHYTHM_STEPS: Final = 12 * STEPS_PER_SECOND  # the rhythm is that of this time
LEAST_RHYTHM_SECONDS: Final = 4.0  # less sound has no rhythm
PERIOD_SECONDS: Final = (1.0, 6.0)  # 60 down to 10 breaths a minute
PERIOD_SHARE: Final = (
    0.75  # of the highest peak: two breaths often correlate better than one, so a shorter peak wins from here
)
LEAST_DEPTH: Final = 0.05  # standard deviation of the activity; below it breathing does not come and go
FLOOR_PERCENT: Final = 10
CLARITY_PERCENT: Final = (95, 99)
LEAST_CLARITY_STEPS: Final = 3 * STEPS_PER_SECOND
DECIBELS: Final = 10.0 / float(np.log(10.0))  # of a neper of power
PHASE_DEPTH: Final = 0.7  # nepers of power (3 dB): so far the pause lies below both phases
PHASE_SPAN: Final = (0.2, 0.8)  # share of a breath: the pause lies between
PHASE_SMOOTH_STEPS: Final = 2.0


@dataclass(frozen=True)
class Segment:
    """One cycle to be judged; sample numbers count from the session's start at 16 kHz."""

    start: int
    samples: FloatArray
    kind: Literal["breath", "window"]
    rhythm: float
    """Confidence in the rhythm, 0-1: the autocorrelation of the breathing of the last 12 s at its period."""
    phase: int | None = None
    """Sample number where expiration begins; None if no pause between the phases was found."""
    clarity: float | None = None
    """How clear breaths and onsets were in the last 12 s, 0-1: 95th percentile of activity times 99th of onset."""
    snr_db: float | None = None
    """Power of 150-850 Hz over the quietest tenth of the last 12 s."""
    period_seconds: float = 0.0
    """Between the onsets of breaths, in the rhythm of the last 12 s; 0 without a rhythm."""
    context: FloatArray | None = None
    """(m,) the samples with the sound around them; None if they are long enough."""
    context_start: int = 0
    """Sample number of the context's first sample."""

    @property
    def span(self) -> Span | None:
        """Where the cycle lies in `judged`; None if it is all of it."""
        begins = self.start - self.context_start
        return None if self.context is None else (begins, begins + self.samples.size)

    @property
    def judged(self) -> FloatArray:
        """The model's input for this cycle, (m,) at 16 kHz."""
        return self.samples if self.context is None else self.context

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


@lru_cache(maxsize=1)
def shipped_weights() -> Weights:
    """The weights that `trainer segmentation --out` wrote: `in`, `out`, per layer `taps` and `mix`, and biases."""
    with np.load(DETECTOR_FILE) as archive:
        return {name: archive[name].astype(np.float64) for name in archive.files}


@lru_cache(maxsize=1)
def _spectrum_plan() -> tuple[Float64Array, list[int]]:
    edges = [round(edge * SPECTRUM_SAMPLES / SAMPLE_RATE) for edge in EDGES_HZ]
    return np.hanning(SPECTRUM_SAMPLES), edges


def bands(samples: Float64Array) -> Float64Array:
    """Log power (..., BANDS) of frames (..., SPECTRUM_SAMPLES) between the edges of `EDGES_HZ`."""
    shape, edges = _spectrum_plan()
    spectrum = np.fft.rfft(samples * shape)[..., edges[0] : edges[-1]]
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    sums: Float64Array = np.add.reduceat(power, [edge - edges[0] for edge in edges[:-1]], axis=-1)
    return np.log(sums / SPECTRUM_SAMPLES + FLOOR)


class Detector:
    """The causal network: 50 ms of sound in; the probabilities that a breath sounds and begins out."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._latest = np.zeros(SPECTRUM_SAMPLES)
        self._memory = np.empty((0, BANDS))
        self._past = [np.zeros((2 * dilation + 1, weights["in"].shape[1])) for dilation in DILATIONS]

    def step(self, samples: FloatArray) -> tuple[float, float, float]:
        """Activity 0-1 and onset 0-1 of `DELAY_STEPS` ago, and the log power now, from samples (STEP_SAMPLES,)."""
        self._latest = np.concatenate([self._latest[STEP_SAMPLES:], samples])
        powers = bands(self._latest)
        self._memory = np.vstack([self._memory[-MEMORY_STEPS + 1 :], powers])
        weights = self._weights
        state = (powers - self._memory.mean(axis=0)) @ weights["in"] + weights["in_bias"]
        for layer, (dilation, past) in enumerate(zip(DILATIONS, self._past, strict=True)):
            past[:-1] = past[1:]
            past[-1] = state
            inner = past[::dilation].ravel() @ weights[f"taps{layer}"] + weights[f"taps{layer}_bias"]
            state = state + np.maximum(inner, 0.0) @ weights[f"mix{layer}"] + weights[f"mix{layer}_bias"]
        activity, onset = expit(np.maximum(state, 0.0) @ weights["out"] + weights["out_bias"])
        return float(activity), float(onset), float(np.log(np.exp(powers[BREATH_BANDS]).sum()))


def rhythm(activity: Float64Array) -> tuple[float, float]:
    """Period in seconds and confidence 0-1 of breathing (n,) on the 50 ms grid; (0, 0) where there is none.

    The shortest period between 1 and 6 s at which the normalised autocorrelation, corrected for the shrinking overlap,
    has a peak about as high as its highest.
    """
    count = activity.size
    shortest, longest = round(PERIOD_SECONDS[0] * STEPS_PER_SECOND), round(PERIOD_SECONDS[1] * STEPS_PER_SECOND)
    # a period must fit in about twice
    longest = min(longest, count // 2)
    if count < LEAST_RHYTHM_SECONDS * STEPS_PER_SECOND or longest <= shortest:
        return 0.0, 0.0
    centred = activity - activity.mean()
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
    """Samples in, segments out; call `flush` at a gap or at the end."""

    def __init__(self, settings: Segmentation, weights: Weights | None = None) -> None:
        self.settings = settings
        self._weights = weights
        self.reset(0)

    def reset(self, position: int) -> None:
        """Start anew; the next sample has the number `position`."""
        self._audio = np.empty(0, np.float32)  # from the cursor on
        self._past = np.empty(0, np.float32)  # up to the cursor, as much as a context may need
        self._received_end = position  # sample number up to which a context may reach
        self._cursor = position  # sample number from which the next segment may begin
        self._pending = np.empty(0, np.float32)  # not yet a whole step
        self._origin = position  # sample number of the first sample
        self._step = -DELAY_STEPS - 2  # the one to decide on; one before the detector's, as a peak shows afterwards
        self._detector = Detector(self._weights or shipped_weights())
        self._activity = deque([0.0, 0.0], RHYTHM_STEPS)
        self._onset = deque([0.0, 0.0], RHYTHM_STEPS)
        self._power: deque[float] = deque(maxlen=RHYTHM_STEPS)
        self._began: int | None = None  # step at which the present breath began
        self._ended: int | None = None  # and fell silent
        self._endless = False  # the sound is longer than any breath: noise

    def feed(self, samples: FloatArray) -> list[Segment]:
        """Take samples (n,) that follow the last ones; returns the segments they complete."""
        self._audio = np.concatenate([self._audio, samples])
        self._pending = np.concatenate([self._pending, samples])
        segments: list[Segment] = []
        whole = self._pending.size // STEP_SAMPLES
        for step in range(whole):
            segments += self._advance(self._pending[step * STEP_SAMPLES : (step + 1) * STEP_SAMPLES])
        self._pending = self._pending[whole * STEP_SAMPLES :]
        return segments

    def flush(self) -> list[Segment]:
        """End the stream here: the remaining breath and windows; call `reset` before the next samples."""
        self._received_end = end = self._cursor + self._audio.size
        latest = end if self._ended is None else min(end, self._sample(self._ended) + self._pause_samples)
        return [*self._close(latest), *self._between(end, self.settings.shortest_seconds)]

    def _advance(self, samples: FloatArray) -> list[Segment]:
        self._step += 1
        self._received_end += STEP_SAMPLES  # not the end of the block: cycles must not depend on how the stream was cut
        activity, onset, power = self._detector.step(samples)
        self._activity.append(activity)
        self._onset.append(onset)
        self._power.append(power)
        if self.settings.method == "windows":
            return self._windows(self._received_end)
        if self._step < 0:
            return []
        segments = self._decide(self._activity[-2])
        return segments if self._began is not None else segments + self._windows(self._sample(self._step))

    def _decide(self, activity: float) -> list[Segment]:
        """Begin or end a breath: it ends after its pause, or where the next one begins."""
        here = self._sample(self._step)
        if self._began is None:
            self._endless = self._endless and activity > SOUNDING
            self._began = self._step if activity > SOUNDING and not self._endless else None
            return []
        if self._ended is not None:
            if activity > SOUNDING:
                closed, self._began = self._close(here), self._step
                return closed
            over = here - self._sample(self._ended) >= self._pause_samples
            return self._close(here) if over else []
        seconds = (self._step - self._began) / STEPS_PER_SECOND
        before, onset, after = (self._onset[place] for place in (-3, -2, -1))
        if before <= onset > after and onset > ONSET and seconds >= self.settings.shortest_seconds:
            closed, self._began = self._close(here), self._step
            return closed
        if seconds >= self.settings.longest_seconds:
            self._began, self._endless = None, True
        elif activity < SOUNDING:
            self._ended = self._step
        return []

    def _close(self, end: int) -> list[Segment]:
        """The present breath up to sample `end`; before it windows, if the gap is longer than a pause."""
        began, ended = self._began, self._ended
        self._began = self._ended = None
        if began is None:
            return []
        start = self._sample(began)
        sounding = (end if ended is None else self._sample(ended)) - start
        longest = self.settings.longest_seconds * SAMPLE_RATE
        if not self.settings.shortest_seconds * SAMPLE_RATE <= sounding <= longest:
            return []
        end = min(end, start + round(longest))
        segments = self._between(start, LEAST_GAP_SECONDS)
        return [*segments, self._emit(start, end, "breath", self._phase(start, start + sounding))]

    def _phase(self, start: int, end: int) -> int | None:
        """Sample number where a breath is faintest between two louder parts; None without a deep pause."""
        power: Float64Array = gaussian_filter1d(self._powers(start, end), PHASE_SMOOTH_STEPS)
        low, high = (round(share * power.size) for share in PHASE_SPAN)
        if high - low < 1:
            return None
        valley = low + int(np.argmin(power[low:high]))
        louder = min(power[:valley].max(initial=-np.inf), power[valley + 1 :].max(initial=-np.inf))
        deep = bool(louder - power[valley] >= PHASE_DEPTH)
        return start + valley * STEP_SAMPLES if deep else None

    def _powers(self, start: int, end: int) -> Float64Array:
        """Log powers of the steps between two sample numbers, as far as they are in memory."""
        first = self._step + DELAY_STEPS + 2 - len(self._power)
        begins, ends = (max(0, (at - self._origin) // STEP_SAMPLES - first) for at in (start, end))
        return np.array(self._power)[begins:ends]

    def _sample(self, step: int) -> int:
        return self._origin + step * STEP_SAMPLES

    @property
    def _pause_samples(self) -> int:
        return round(self.settings.pause_seconds * STEPS_PER_SECOND) * STEP_SAMPLES

    @property
    def _context_samples(self) -> int:
        return round(self.settings.context_seconds * SAMPLE_RATE)

    def _windows(self, limit: int) -> list[Segment]:
        """As many windows as fit before sample `limit`; none in the pauses of a rhythm."""
        length = round(self.settings.window_seconds * SAMPLE_RATE)
        if self._cursor + length > limit or self._is_pause(limit):
            return []
        segments = []
        while self._cursor + length <= limit:
            segments.append(self._emit(self._cursor, self._cursor + length, "window"))
        return segments

    def _between(self, end: int, least_seconds: float) -> list[Segment]:
        """Windows up to sample `end`, the last one shorter."""
        if end - self._cursor < least_seconds * SAMPLE_RATE or self._is_pause(end):
            return []
        segments = self._windows(end)
        if end - self._cursor >= least_seconds * SAMPLE_RATE:
            segments.append(self._emit(self._cursor, end, "window"))
        return segments

    def _is_pause(self, end: int) -> bool:
        """Whether the gap from the cursor to sample `end` is a pause within a rhythm."""
        if self.settings.method == "windows":
            return False
        period, confidence = rhythm(np.array(self._activity))
        return confidence >= LEAST_RHYTHM and end - self._cursor < period * SAMPLE_RATE

    def _emit(
        self,
        start: int,
        end: int,
        kind: Literal["breath", "window"],
        phase: int | None = None,
    ) -> Segment:
        """The segment of samples `start` to `end`; moves the cursor to `end`."""
        samples = self._audio[start - self._cursor : end - self._cursor].copy()
        context, context_start = self._context(start, end)
        period, confidence = rhythm(np.array(self._activity))
        past = np.concatenate([self._past, self._audio[: end - self._cursor]])
        self._past = past[max(0, past.size - self._context_samples) :].copy()  # a view would keep all of it
        self._audio = self._audio[end - self._cursor :].copy()
        self._cursor = end
        clarity, snr_db = self._standing_out(start, end)
        return Segment(start, samples, kind, confidence, phase, clarity, snr_db, period, context, context_start)

    def _context(self, start: int, end: int) -> tuple[FloatArray | None, int]:
        """`context_seconds` of sound around samples `start` to `end`, as far as received; its first sample number."""
        length = self._context_samples
        if length <= end - start:
            return None, start
        oldest = self._cursor - self._past.size
        first = min((start + end - length) // 2, self._received_end - length)
        first = max(first, oldest)
        last = min(first + length, self._received_end)
        return np.concatenate([self._past, self._audio])[first - oldest : last - oldest].copy(), first

    def _standing_out(self, start: int, end: int) -> tuple[float | None, float | None]:
        """Clarity and SNR of the sound between two sample numbers; None where there is too little sound."""
        powers = self._powers(start, end)
        # less sound does not show whether breathing comes and goes
        if not powers.size or len(self._power) < LEAST_CLARITY_STEPS:
            return None, None
        floor = float(np.percentile(np.array(self._power), FLOOR_PERCENT))
        sounding, beginning = CLARITY_PERCENT
        clarity = np.percentile(np.array(self._activity), sounding) * np.percentile(np.array(self._onset), beginning)
        return float(clarity), float(DECIBELS * (np.log(np.exp(powers).mean()) - floor))
