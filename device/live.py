"""The live path, source to decision; `listen`, `screen` and the trainer's `recordings` protocol all run it."""

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from device.bundle import Segmentation, SiteRule
from device.decision import Judgement, SiteDecision, Span, Verdict
from device.quality import SILENCE_DBFS, Quality, judge, level_dbfs
from device.segmenter import LEAST_RHYTHM, Float64Array, Segment, Segmenter
from device.signal import SAMPLE_RATE, FloatArray, quantise
from device.sources import Block, CaptureError, Source
from device.timeline import BREAKS, Entry, Timeline
from firmware_config.errors import RespSAMError
from firmware_config.settings import QualitySettings

LATEST_CYCLES = 16  # kept for the view
RATE_CYCLES = 9  # a rate older than so many cycles is no longer shown
LEAST_INTERVALS = 3  # from onset to onset
LONGEST_INTERVAL_SECONDS = 8.0  # a breath or more was missed in longer ones
INTERVAL_TOLERANCE = 0.25  # of the median
STEADY_SHARE = 0.6  # of the intervals within the tolerance, and of the periods near a whole number of them
OCTAVE_TOLERANCE = 0.15  # of a whole number of intervals
PAUSED_SECONDS = 1.5  # from one block to the next, beside the processor's time: this program did not run
SURE_RHYTHM = 0.4  # confidence of a rhythm that no breaths confirm
PATIENCE_SECONDS = 0.3  # sound that has waited so long is taken before another cycle is judged
WAITING_CYCLES = 4  # more than these wait: the oldest is dropped
FINISH_SECONDS = 0.5  # for the cycles that still wait when a session is stopped
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Judge(Protocol):
    """What the live path needs of a model: a bundle's Classifier on the device, a run's own model in the trainer."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def segmentation(self) -> Segmentation: ...

    @property
    def site_rule(self) -> SiteRule: ...

    def judge(self, samples: FloatArray, span: Span | None = None) -> Judgement: ...


@dataclass(frozen=True)
class CycleResult:
    """One judged stretch; `judgement` is None when it was not gradable."""

    number: int
    start_seconds: float
    end_seconds: float
    kind: str
    rhythm: float
    quality: Quality
    judgement: Judgement | None
    inference_seconds: float = field(compare=False)
    demo: bool
    samples: FloatArray = field(repr=False, compare=False)
    """(n,) at 16 kHz, exactly as they were judged: the cycle, and the sound around a short one."""
    span: Span | None = None
    """Where the cycle lies in these samples; None where it is all of them."""
    phase_seconds: float | None = None
    """Where inspiration gives way to expiration, where a pause between them was heard."""
    period_seconds: float = 0.0
    """From breath to breath; 0 where there was no rhythm."""

    @property
    def flagged(self) -> bool:
        """Whether this cycle is abnormal at the bundle's threshold."""
        return self.judgement is not None and self.judgement.abnormal

    def without_samples(self) -> "CycleResult":
        """The same, for lists that grow with a session; no view, which would keep all the samples."""
        return replace(self, samples=np.empty(0, np.float32))

    def as_json(self) -> dict[str, Any]:
        """One `cycle` object of `listen --json`."""
        judgement = self.judgement
        return {
            "type": "cycle",
            "number": self.number,
            "start": round(self.start_seconds, 3),
            "end": round(self.end_seconds, 3),
            "kind": self.kind,
            "phase": None if self.phase_seconds is None else round(self.phase_seconds, 3),
            "rhythm": round(self.rhythm, 3),
            "gradable": self.quality.gradable,
            "reason": self.quality.reason,
            "level_dbfs": round(self.quality.level_dbfs, 1),
            "probability": None if judgement is None else round(judgement.probability, 6),
            "class": None if judgement is None else judgement.label,
            "flag": self.flagged,
            "demo": self.demo,
        }


@dataclass(frozen=True)
class Summary:
    """What a session comes to."""

    source: str
    demo: bool
    bundle: str
    verdict: Verdict
    probability: float | None
    cycles: int
    gradable: int
    flagged: int
    dropped: int
    heard_seconds: float
    missing_seconds: float
    dropped_seconds: float
    gradable_seconds: float
    reasons: tuple[str, ...]
    breaths_per_minute: float | None
    """Over the last few breath cycles; None where there is no rhythm, or none that the breaths found agree with."""
    not_validated: tuple[str, ...]
    """Why this subject is outside of what the model was validated on."""
    stretches: int = 0
    """Complete ones; the first decided the verdict."""
    stretches_flagged: int = 0
    """Of these."""
    breaths_wanted: int = 0
    """Good breaths that complete the running stretch."""

    @property
    def seconds(self) -> dict[str, float]:
        """The account: heard + missing + dropped is the session's length, gradable is part of heard."""
        return {
            "heard": round(self.heard_seconds, 3),
            "missing": round(self.missing_seconds, 3),
            "dropped": round(self.dropped_seconds, 3),
            "gradable": round(self.gradable_seconds, 3),
        }

    def as_json(self) -> dict[str, Any]:
        """The `summary` object of `listen --json`."""
        return {
            "type": "summary",
            "source": self.source,
            "demo": self.demo,
            "bundle": self.bundle,
            "verdict": self.verdict,
            "probability": None if self.probability is None else round(self.probability, 6),
            "cycles": self.cycles,
            "gradable": self.gradable,
            "flagged": self.flagged,
            "stretches": self.stretches,
            "stretches_flagged": self.stretches_flagged,
            "breaths_wanted": self.breaths_wanted,
            "dropped": self.dropped,
            "seconds": self.seconds,
            "reasons": list(self.reasons),
            "breaths_per_minute": None if self.breaths_per_minute is None else round(self.breaths_per_minute, 1),
            "not_validated": list(self.not_validated),
        }


def entry_as_json(entry: Entry, demo: bool) -> dict[str, Any]:
    """One `timeline` object of `listen --json`."""
    return {"type": "timeline", "seconds": round(entry.seconds, 3), **asdict(entry), "demo": demo}


class Auscultation:
    """One session at one site: iterate `run` for what happens, read `summary` at any time.

    It ends with its source, after `seconds` of sound, or soon after `stop`. Memory stays bounded however long it runs.
    """

    def __init__(
        self,
        source: Source,
        model: Judge,
        quality: QualitySettings,
        seconds: float | None = None,
        not_validated: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """`not_validated` says why nobody knows how good this session's verdict is; it stands in every summary.

        It is asked anew each time: what a microphone hears is known only when it has been opened.
        """
        self.source, self.model, self.quality, self.not_validated = source, model, quality, not_validated
        self._limit = None if seconds is None else round(seconds * SAMPLE_RATE)
        self._ending = ""
        self.timeline = Timeline()
        self.segmenter = Segmenter(model.segmentation)
        self.decision = SiteDecision(model.site_rule)
        self.latest: deque[CycleResult] = deque(maxlen=LATEST_CYCLES)
        self.cycles = 0
        self.dropped_cycles = 0
        self.level_dbfs = SILENCE_DBFS
        self.lost_seconds: float | None = None
        """Since when no sound comes, for a microphone is gone; None while it comes."""
        self._waiting: deque[Segment] = deque()
        self._idle, self._paused = math.inf, False
        self._gradable_samples = 0

    def run(self) -> Iterator[CycleResult | Entry]:
        """Cycles and timeline entries as they come.

        CaptureError, after all that was heard, when a microphone goes; the model's error when it fails, and then nobody
        is cleared by what it had judged before.
        """
        yield self.timeline.entry("start", self.source.name)
        try:
            try:
                for block in self.source.blocks():
                    yield from self._hear(block)
                    if self._ending:
                        break
                    yield from self._judge_waiting(block.waiting_seconds)
            except CaptureError as error:
                yield from self._finish(str(error))
                raise
            yield from self._finish(self._ending or "the source ended")
        except RespSAMError:
            if self.decision.failure:
                while self._waiting:
                    yield self._drop("the model failed")
                self.decision.end()
                yield self.timeline.entry("end", self.decision.failure)
            raise

    def stop(self, note: str) -> None:
        """End at the next block; safe in a signal handler, as it only sets a word."""
        self._ending = note

    def _hear(self, block: Block) -> Iterator[CycleResult | Entry]:
        broken = bool(block.missing) or (bool(block.note) and block.kind in BREAKS)
        if broken:
            self._waiting.extend(self.segmenter.flush())
            self.timeline.miss(block.missing)
        if block.note:
            if block.kind == "lost" and self.lost_seconds is None:
                self.lost_seconds = self.timeline.position / SAMPLE_RATE
            yield self.timeline.entry(block.kind, block.note)
        if broken:
            self.segmenter.reset(self.timeline.position)
        samples = quantise(block.samples)
        if self._limit is not None:
            samples = samples[: max(0, self._limit - self.timeline.position)]
        self.timeline.hear(samples.size)
        if samples.size:
            self.level_dbfs, self.lost_seconds = level_dbfs(samples), None
        self._waiting.extend(self.segmenter.feed(samples))
        if self._limit is not None and self.timeline.position >= self._limit:
            self.stop(f"{self._limit / SAMPLE_RATE:g} s are over")

    def _judge_waiting(self, sound_waiting_seconds: float) -> Iterator[CycleResult | Entry]:
        """All of them, unless sound comes in meanwhile: that is taken first, and the oldest cycles may be dropped."""
        # sources give a block at least twice a second, also without sound; a slow model takes the processor's time
        idle = time.monotonic() - time.process_time()
        paused = idle - self._idle > PAUSED_SECONDS
        self._idle = idle
        self._paused = paused or (self._paused and sound_waiting_seconds > PATIENCE_SECONDS)
        yield from self._judge_all(sound_waiting_seconds)

    def _judge_all(self, sound_waiting_seconds: float) -> Iterator[CycleResult | Entry]:
        while self._waiting and not self._ending:
            if self.source.live and sound_waiting_seconds > PATIENCE_SECONDS:
                if len(self._waiting) > WAITING_CYCLES:
                    paused = "it waited while this program was stopped or the machine was busy"
                    yield self._drop(paused if self._paused else "the model is slower than the breathing")
                    continue
                return
            began = time.monotonic()
            yield self._judge(self._waiting.popleft())
            sound_waiting_seconds += time.monotonic() - began

    def _finish(self, note: str) -> Iterator[CycleResult | Entry]:
        self._waiting.extend(self.segmenter.flush())
        self.segmenter.reset(self.timeline.position)
        until = time.monotonic() + FINISH_SECONDS
        while self._waiting:
            if self.source.live and time.monotonic() > until:
                yield self._drop("the session was stopped before the model came to it")
            else:
                yield self._judge(self._waiting.popleft())
        self.decision.end()
        yield self.timeline.entry("end", note)

    def _drop(self, reason: str) -> Entry:
        segment = self._waiting.popleft()
        self.dropped_cycles += 1
        self.timeline.drop(segment.samples.size)
        span = f"{segment.start_seconds:.1f}-{segment.end_seconds:.1f} s"
        return self.timeline.entry("dropped", f"cycle at {span} not judged: {reason}")

    def _judge(self, segment: Segment) -> CycleResult:
        quality = judge(segment.samples, self.quality, segment.clarity, segment.snr_db)
        judgement, seconds = None, 0.0
        if quality.gradable:
            began = time.perf_counter()
            try:
                judgement = self.model.judge(segment.judged, segment.span)
            except RespSAMError as error:
                self.decision.failure = str(error)
                raise
            seconds = time.perf_counter() - began
            self.decision.add(judgement)
            self._gradable_samples += segment.samples.size
        else:
            self.decision.refuse(quality.reason)
        self.cycles += 1
        result = CycleResult(
            self.cycles,
            segment.start_seconds,
            segment.end_seconds,
            segment.kind,
            segment.rhythm,
            quality,
            judgement,
            seconds,
            self.source.demo,
            segment.judged,
            segment.span,
            None if segment.phase is None else segment.phase / SAMPLE_RATE,
            segment.period_seconds,
        )
        self.latest.append(result)
        return result

    @property
    def summary(self) -> Summary:
        """The session so far."""
        return Summary(
            source=self.source.name,
            demo=self.source.demo,
            bundle=self.model.fingerprint,
            verdict=self.decision.verdict,
            probability=self.decision.probability,
            cycles=self.cycles,
            gradable=self.decision.graded,
            flagged=self.decision.abnormal,
            dropped=self.dropped_cycles,
            heard_seconds=self.timeline.heard / SAMPLE_RATE,
            missing_seconds=self.timeline.missing / SAMPLE_RATE,
            dropped_seconds=self.timeline.dropped / SAMPLE_RATE,
            gradable_seconds=self._gradable_samples / SAMPLE_RATE,
            reasons=tuple(self.decision.reasons),
            breaths_per_minute=respiratory_rate(list(self.latest)),
            not_validated=self.not_validated(),
            stretches=self.decision.stretches,
            stretches_flagged=self.decision.stretches_flagged,
            breaths_wanted=self.decision.breaths_wanted,
        )


def respiratory_rate(cycles: Sequence[CycleResult]) -> float | None:
    """Breaths a minute lately; None where the breaths that were found and the autocorrelation do not agree.

    The autocorrelation alone is wrong by an octave in a quarter of simulated sessions at 20 a minute, in most at 60.
    Two phases of a breath that were found as two breaths are wrong by an octave on the other side.
    """
    latest = cycles[-RATE_CYCLES:]
    periods = np.array([cycle.period_seconds for cycle in latest if cycle.rhythm >= LEAST_RHYTHM])
    pairs = [pair for pair in pairwise(latest) if {cycle.kind for cycle in pair} == {"breath"}]
    onsets = np.array([after.start_seconds - before.start_seconds for before, after in pairs])
    intervals = onsets[onsets <= LONGEST_INTERVAL_SECONDS]
    if intervals.size < LEAST_INTERVALS:
        # breaths were heard as one: only a strong and steady rhythm says how long they are
        sure = np.count_nonzero([cycle.rhythm >= SURE_RHYTHM for cycle in latest]) >= STEADY_SHARE * len(latest)
        return (
            60.0 / float(np.median(periods)) if periods.size >= LEAST_INTERVALS and sure and _steady(periods) else None
        )
    interval = float(np.median(intervals))
    if periods.size and abs(float(np.median(periods)) - interval) <= INTERVAL_TOLERANCE * interval:
        return 60.0 / interval
    octaves = np.maximum(1, np.round(periods / interval)) * interval
    resolved = np.count_nonzero(np.abs(periods - octaves) <= OCTAVE_TOLERANCE * octaves) >= STEADY_SHARE * periods.size
    return 60.0 / interval if resolved and _steady(intervals) else None


def _steady(seconds: Float64Array) -> bool:
    """Whether most of these are alike."""
    middle = float(np.median(seconds))
    return bool(np.mean(np.abs(seconds - middle) <= INTERVAL_TOLERANCE * middle) >= STEADY_SHARE)


@contextmanager
def stopped_by_signals(session: Auscultation) -> Iterator[list[signal.Signals]]:
    """SIGINT, SIGTERM and SIGHUP end the session properly, with its account; yields those that came.

    A signal that is ignored, as SIGHUP is below nohup, stays so.
    """
    came: list[signal.Signals] = []

    def stop(number: int, _frame: Any) -> None:
        came.append(signal.Signals(number))
        session.stop(f"stopped by {came[-1].name}")

    heeded = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
