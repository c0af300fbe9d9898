"""The live path, source to decision; `listen`, `screen` and the trainer's `recordings` protocol all run it."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from device.bundle import Segmentation, SiteRule
from device.decision import Judgement, SiteDecision, Verdict
from device.quality import SILENCE_DBFS, Quality, judge, level_dbfs
from device.segmenter import Segment, Segmenter
from device.signal import SAMPLE_RATE, FloatArray
from device.sources import Block, CaptureError, Source
from device.timeline import Entry, Timeline
from firmware_config.settings import QualitySettings


class Judge(Protocol):
    """What the live path needs of a model: a bundle's Classifier on the device, a run's own model in the trainer."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def segmentation(self) -> Segmentation: ...

    @property
    def site_rule(self) -> SiteRule: ...

    def judge(self, samples: FloatArray) -> Judgement: ...


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
    inference_seconds: float
    demo: bool

    @property
    def flagged(self) -> bool:
        """Whether this cycle is abnormal at the bundle's threshold."""
        return self.judgement is not None and self.judgement.abnormal

    def as_json(self) -> dict[str, Any]:
        """One `cycle` object of `listen --json`."""
        judgement = self.judgement
        return {
            "type": "cycle",
            "number": self.number,
            "start": round(self.start_seconds, 3),
            "end": round(self.end_seconds, 3),
            "kind": self.kind,
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
    heard_seconds: float
    missing_seconds: float
    gradable_seconds: float
    reasons: tuple[str, ...]

    @property
    def seconds(self) -> dict[str, float]:
        """The account in seconds: heard, missing, gradable."""
        return {
            "heard": round(self.heard_seconds, 3),
            "missing": round(self.missing_seconds, 3),
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
            "seconds": self.seconds,
            "reasons": list(self.reasons),
        }


def entry_as_json(entry: Entry, demo: bool) -> dict[str, Any]:
    """One `timeline` object of `listen --json`."""
    return {"type": "timeline", "seconds": round(entry.seconds, 3), **asdict(entry), "demo": demo}


class Auscultation:
    """One session at one site: iterate `run` for what happens, read `summary` at any time.

    It ends with its source, after `seconds` of sound, or soon after `stop`.
    """

    def __init__(self, source: Source, model: Judge, quality: QualitySettings, seconds: float | None = None) -> None:
        self.source, self.model, self.quality = source, model, quality
        self._limit = None if seconds is None else round(seconds * SAMPLE_RATE)
        self._ending = ""
        self.timeline = Timeline()
        self.segmenter = Segmenter(model.segmentation)
        self.decision = SiteDecision(model.site_rule)
        self.results: list[CycleResult] = []
        self.level_dbfs = SILENCE_DBFS
        self._gradable_end = 0
        self._gradable_samples = 0

    def run(self) -> Iterator[CycleResult | Entry]:
        """Cycles and timeline entries as they come; CaptureError, after all that was heard, when a microphone goes."""
        yield self.timeline.start(self.source.name)
        try:
            for block in self.source.blocks():
                yield from self._hear(block)
                if self._ending:
                    break
        except CaptureError as error:
            yield from self._finish(str(error))
            raise
        yield from self._finish(self._ending or "the source ended")

    def stop(self, note: str) -> None:
        """End at the next block; safe in a signal handler, as it only sets a word."""
        self._ending = note

    def _hear(self, block: Block) -> Iterator[CycleResult | Entry]:
        if block.missing or block.note:
            yield from map(self._judge, self.segmenter.flush())
            yield self.timeline.gap(block.missing, block.note)
            self.segmenter.reset(self.timeline.position)
        if self._limit is not None:
            block = replace(block, samples=block.samples[: max(0, self._limit - self.timeline.position)])
        self.timeline.hear(block.samples.size)
        self.level_dbfs = level_dbfs(block.samples)
        yield from map(self._judge, self.segmenter.feed(block.samples))
        if self._limit is not None and self.timeline.position >= self._limit:
            self.stop(f"{self._limit / SAMPLE_RATE:g} s are over")

    def _finish(self, note: str) -> Iterator[CycleResult | Entry]:
        yield from map(self._judge, self.segmenter.flush())
        self.segmenter.reset(self.timeline.position)
        yield self.timeline.end(note)

    def _judge(self, segment: Segment) -> CycleResult:
        quality = judge(segment.samples, self.quality.minimum_level_dbfs, self.quality.maximum_clipped_share)
        judgement, seconds = None, 0.0
        if quality.gradable:
            began = time.perf_counter()
            judgement = self.model.judge(segment.samples)
            seconds = time.perf_counter() - began
            self.decision.add(judgement)
            # overlapping windows share samples; each counts once
            self._gradable_samples += max(0, segment.end - max(segment.start, self._gradable_end))
            self._gradable_end = max(self._gradable_end, segment.end)
        else:
            self.decision.refuse(quality.reason)
        result = CycleResult(
            len(self.results) + 1,
            segment.start_seconds,
            segment.end_seconds,
            segment.kind,
            segment.rhythm,
            quality,
            judgement,
            seconds,
            self.source.demo,
        )
        self.results.append(result)
        return result

    @property
    def summary(self) -> Summary:
        """The session so far."""
        gradable = [result for result in self.results if result.judgement is not None]
        return Summary(
            source=self.source.name,
            demo=self.source.demo,
            bundle=self.model.fingerprint,
            verdict=self.decision.verdict,
            probability=self.decision.probability,
            cycles=len(self.results),
            gradable=len(gradable),
            flagged=sum(result.flagged for result in gradable),
            heard_seconds=self.timeline.heard / SAMPLE_RATE,
            missing_seconds=self.timeline.missing / SAMPLE_RATE,
            gradable_seconds=self._gradable_samples / SAMPLE_RATE,
            reasons=tuple(self.decision.reasons),
        )


@contextmanager
def stopped_by_signals(session: Auscultation) -> Iterator[list[signal.Signals]]:
    """SIGINT and SIGTERM end the session properly, with its account, instead of the process; yields those that came."""
    came: list[signal.Signals] = []

    def stop(number: int, _frame: Any) -> None:
        came.append(signal.Signals(number))
        session.stop(f"stopped by {came[-1].name}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
