"""The live path, from source to decision; `listen`, `screen` and the trainer's `recordings` protocol run it."""

import math
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from device.breath.quality import SILENCE_DBFS, assess, level_dbfs
from device.breath.segmenter import Segment, Segmenter
from device.bundle import Segmentation, SiteRule
from device.capture.blocks import Block, Source
from device.capture.process import CaptureError
from device.capture.timeline import BREAKS, Entry, Timeline
from device.listening.cycle import CycleResult
from device.listening.respiratory_rate import respiratory_rate
from device.model.judgement import Judgement
from device.signal import SAMPLE_RATE, FloatArray, Span, quantise
from device.verdict.circumstances import PLAIN, Circumstances
from device.verdict.site import SiteDecision
from device.verdict.summary import Summary
from firmware_config.errors import RespSAMError
from firmware_config.settings import QualitySettings

LATEST_CYCLES: Final = 16  # that the view can show
PAUSED_SECONDS: Final = 1.5  # between two blocks, without processor time: this program was stopped
PATIENCE_SECONDS: Final = 0.3  # sound that waits longer is read before another cycle is judged
WAITING_CYCLES: Final = 4  # when more wait, the oldest is dropped
FINISH_SECONDS: Final = 0.5  # to judge the cycles that wait when a session is stopped
STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Judge(Protocol):
    """What the live path needs of a model: the device has a bundle's Classifier, the trainer a run's model."""

    @property
    def fingerprint(self) -> str:
        """Identifies the model."""
        ...

    @property
    def segmentation(self) -> Segmentation:
        """How the stream is cut into cycles."""
        ...

    @property
    def site_rule(self) -> SiteRule:
        """How cycles decide about a site."""
        ...

    def judge(self, samples: FloatArray, span: Span | None = None) -> Judgement:
        """Judge samples (n,) at 16 kHz, or their part `span`; RespSAMError when the model fails."""
        ...


class Watcher(Protocol):
    """Follows a session more closely than by its results; its calls must return at once."""

    def sound(self, start_sample: int, samples: FloatArray) -> None:
        """Take samples (n,) at 16 kHz that were received; `start_sample` counts from the session's start."""
        ...

    def found(self, segment: Segment) -> None:
        """Take a cycle that was found and waits to be judged."""
        ...


class Stoppable(Protocol):
    """Ends soon after `stop`, which is safe in a signal handler."""

    def stop(self, note: str) -> None:
        """End, for the reason in `note`."""
        ...


class Session:
    """One session at one site: iterate `run` for cycles and timeline entries, read `summary` at any time.

    It ends with its source, after `seconds` of sound, or soon after `stop`. Memory is bounded.
    """

    def __init__(
        self,
        source: Source,
        model: Judge,
        quality: QualitySettings,
        seconds: float | None = None,
        not_validated: Callable[[], tuple[str, ...]] = tuple,
        circumstances: Circumstances = PLAIN,
        blocks: Iterator[Block] | None = None,
    ) -> None:
        """`not_validated` gives the reasons why the model is not validated here; they are part of every summary.

        It is called each time: the bandwidth of a microphone is known only after it was opened. `blocks` is what the
        session before on the same source has left.
        """
        self.source, self.model, self.quality, self.not_validated = source, model, quality, not_validated
        self.id = secrets.token_hex(16)
        """Identifies the session in JSON lines."""
        self.circumstances = circumstances
        self._limit = None if seconds is None else round(seconds * SAMPLE_RATE)
        self._ending = ""
        self.hands_over = False
        """Whether another session goes on with the sound."""
        self._before = blocks
        self.left: Iterator[Block] | None = None
        """The sound for the next session, after `hand_over`."""
        self.watchers: Sequence[Watcher] = ()
        self.timeline = Timeline()
        self.segmenter = Segmenter(model.segmentation)
        self.decision = SiteDecision(model.site_rule)
        self.latest: deque[CycleResult] = deque(maxlen=LATEST_CYCLES)
        self.cycles = 0
        self.dropped_cycles = 0
        self.level_dbfs = SILENCE_DBFS
        self.lost_seconds: float | None = None
        """Since when the microphone is lost; None while sound comes."""
        self.after_block: Callable[[], object] = lambda: None
        """Called after every block, with sound or without: at least twice a second unless something is stuck."""
        self._waiting: deque[Segment] = deque()
        self._idle, self._paused = math.inf, False
        self._gradable_samples = 0

    def run(self) -> Iterator[CycleResult | Entry]:
        """Cycles and timeline entries as they come.

        Raises CaptureError when the microphone is lost for good, after the last cycle; and the model's error when it
        fails: the verdict is then never 'nothing flagged'.
        """
        yield self.timeline.entry("start", self.source.name)
        known = self.circumstances
        if known.safe_mode:
            yield self.timeline.entry("safe mode", known.safe_mode)
        if known.passport:
            under = f", calibration {known.calibration}" if known.calibration else ", not calibrated"
            yield self.timeline.entry("passport", known.passport + under)
        try:
            try:
                for block in self._blocks():
                    yield from self._receive(block)
                    if self._ending:
                        break
                    yield from self._judge_waiting(block.waiting_seconds)
                    self.after_block()
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
        """End at the next block; safe in a signal handler."""
        self._ending, self.hands_over = note, False

    def hand_over(self, note: str) -> None:
        """End at the next block and leave the source open for the next session, unless the session ends already.

        No sample is lost between the two sessions.
        """
        if not self._ending:
            self._ending, self.hands_over = note, True

    @property
    def between_stretches(self) -> bool:
        """Whether no stretch has begun or the last one is complete, sound comes, and the session does not end yet."""
        complete = self.decision.breaths_wanted == self.decision.rule.stretch_cycles
        return complete and not self._ending and self.lost_seconds is None

    @property
    def waiting_cycles(self) -> int:
        """Cycles that are found and not judged yet."""
        return len(self._waiting)

    def _blocks(self) -> Iterator[Block]:
        blocks, self._before = self._before or self.source.blocks(), None
        try:
            for block in blocks:  # noqa: UP028 - `yield from` would close what is left
                yield block
        except GeneratorExit:
            if self.hands_over:
                self.left = blocks
            raise

    def _receive(self, block: Block) -> Iterator[CycleResult | Entry]:
        broken = bool(block.missing) or (bool(block.note) and block.kind in BREAKS)
        if broken:
            self._found(self.segmenter.flush())
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
        for watcher in self.watchers:
            watcher.sound(self.timeline.position, samples)
        self.timeline.receive(samples.size)
        if samples.size:
            self.level_dbfs, self.lost_seconds = level_dbfs(samples), None
        self._found(self.segmenter.feed(samples))
        if self._limit is not None and self.timeline.position >= self._limit:
            self.stop(f"{self._limit / SAMPLE_RATE:g} s are over")

    def _found(self, segments: Sequence[Segment]) -> None:
        self._waiting.extend(segments)
        for watcher in self.watchers:
            for segment in segments:
                watcher.found(segment)

    def _judge_waiting(self, sound_waiting_seconds: float) -> Iterator[CycleResult | Entry]:
        """Judge the waiting cycles; new sound comes first, and the oldest cycles may be dropped."""
        # sources give a block at least twice a second, also without sound; a slow model uses processor time
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
        self._found(self.segmenter.flush())
        self.segmenter.reset(self.timeline.position)
        until = time.monotonic() + FINISH_SECONDS
        while self._waiting:
            if self.source.live and time.monotonic() > until:
                yield self._drop("the session was stopped before the model received to it")
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
        quality = assess(segment.samples, self.quality, segment.clarity, segment.snr_db)
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
            segment.start,
            segment.end,
            segment.kind,
            segment.rhythm,
            quality,
            judgement,
            self.source.demo,
            segment.judged,
            segment.span,
            segment.phase,
            segment.period_seconds,
            seconds,
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
            heard_samples=self.timeline.heard,
            missing_samples=self.timeline.missing,
            dropped_samples=self.timeline.dropped,
            gradable_samples=self._gradable_samples,
            reasons=tuple(self.decision.reasons),
            breaths_per_minute=respiratory_rate(list(self.latest)),
            not_validated=self.not_validated(),
            stretches=self.decision.stretches,
            stretches_flagged=self.decision.stretches_flagged,
            breaths_wanted=self.decision.breaths_wanted,
            session=self.id,
            circumstances=self.circumstances,
        )


@contextmanager
def stopped_by_signals(session: Stoppable) -> Iterator[list[signal.Signals]]:
    """SIGINT, SIGTERM and SIGHUP stop the session, so that it ends with a summary; yields the signals received.

    A signal that is ignored, as SIGHUP under nohup, stays ignored.
    """
    received: list[signal.Signals] = []

    def stop(number: int, _frame: Any) -> None:
        received.append(signal.Signals(number))
        session.stop(f"stopped by {received[-1].name}")

    handled = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
