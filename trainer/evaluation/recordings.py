"""The `live` and `recordings` readings: whole recordings through the device's own live path, and the site rule."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from scipy.special import logit

from device.bundle import CalibrationBounds, SiteRule
from device.capture.blocks import Block, paced
from device.listening.cycle import CycleResult
from device.listening.live import Judge, Session
from device.signal import SAMPLE_RATE, FloatArray
from device.verdict.site import SiteDecision
from firmware_config.settings import QualitySettings
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.cycle import POOR_QUALITY, Corpus, Cycle, Recording, union
from trainer.corpora.splits import maker
from trainer.evaluation.served import LEAST_CYCLES, UNFITTED
from trainer.metrics import LEAST_PATIENTS, BoolArray, Float64Array, balanced_curve, best_row
from trainer.reading import Joined

NO_SAMPLES: Final = np.empty(0, np.float32)  # a corpus of judged samples would not fit into memory
MOST_PEOPLE: Final = 30  # of each kind: who listens four times to everybody waits long
JOINED_SECONDS: Final = (12.0, 24.0, 48.0, 96.0)
SENSITIVITY_FLOOR: Final = 0.75  # that a calibration on healthy people may not go below
HEALTHY_FLAGGED: Final = 0.1


class CachedSource:
    """A cached recording as a source of the live path."""

    demo = live = False
    highest_hz = None

    def __init__(self, name: str, samples: FloatArray) -> None:
        self.name, self.samples = name, samples

    def blocks(self) -> Iterator[Block]:
        """The whole recording, as fast as it is taken."""
        return paced(self.samples, fast=True)


@dataclass(frozen=True)
class Heard:
    """One recording after the live path."""

    recording: Recording
    results: tuple[CycleResult, ...]

    def decision(self, rule: SiteRule) -> SiteDecision:
        """The site decision that `rule` takes on these cycles."""
        decided = SiteDecision(rule)
        for result in self.results:
            if result.judgement is None:
                decided.refuse(result.quality.reason)
            else:
                decided.add(result.judgement)
        decided.end()
        return decided

    def shown_for(self, cycle: Cycle) -> CycleResult | None:
        """The gradable cycle on the screen that overlaps an annotated one most, by at least half of the shorter."""

        def shared(one: CycleResult) -> float:
            return min(cycle.end_seconds, one.end_seconds) - max(cycle.start_seconds, one.start_seconds)

        def meets(one: CycleResult) -> bool:
            shorter = min(cycle.duration_seconds, one.end_seconds - one.start_seconds)
            return one.judgement is not None and shared(one) >= shorter / 2

        return max(filter(meets, self.results), key=shared, default=None)


def gradable(corpus: Corpus) -> tuple[Recording, ...]:
    """The recordings that are scored: all but those annotated as of poor quality."""
    return tuple(recording for recording in corpus.recordings if recording.label != POOR_QUALITY)


def hear(
    recordings: Sequence[Recording],
    cache: AudioCache,
    model: Judge,
    quality: QualitySettings,
    progress: Callable[[int, int], None] | None = None,
) -> list[Heard]:
    """Every recording through segmenter, quality and model, as on the device."""
    heard = []
    for done, recording in enumerate(recordings, 1):
        session = Session(CachedSource(recording.name, cache[recording.name]), model, quality)
        results = [replace(one, samples=NO_SAMPLES) for one in session.run() if isinstance(one, CycleResult)]
        heard.append(Heard(recording, tuple(results)))
        if progress is not None:
            progress(done, len(recordings))
    return heard


def predicted_class(decided: SiteDecision) -> str:
    """The class that a site's verdict names: the union of its flagged cycles' classes, else normal."""
    if decided.verdict != "flagged":
        return "normal"
    return union(list(decided.named))


def rejudged(heard: Heard, threshold: float) -> Heard:
    """The same cycles at another threshold."""

    def at(one: CycleResult) -> CycleResult:
        judgement = one.judgement
        return replace(one, judgement=judgement and replace(judgement, abnormal=judgement.probability >= threshold))

    return replace(heard, results=tuple(at(one) for one in heard.results))


def site_statistics(heard: Sequence[Heard], rule: SiteRule) -> tuple[BoolArray, Float64Array]:
    """Whether each recording is labelled abnormal, and its statistic under the rule (0 where there is none)."""
    abnormal = np.array([one.recording.label != "normal" for one in heard])
    return abnormal, np.array([one.decision(rule).probability or 0.0 for one in heard])


def voices(devices: Sequence[str], patients: Sequence[str]) -> list[str]:
    """Which stethoscope each row counts with when a threshold is chosen: its maker's.

    One with fewer than LEAST_PATIENTS patients is noise and must not have a full vote: it counts with the most frequent
    maker.
    """
    makers = [maker(device) for device in devices]
    people = Counter(name for name, _ in set(zip(makers, patients, strict=True)))
    largest = max(people, key=people.__getitem__, default="")
    return [name if people[name] >= LEAST_PATIENTS else largest for name in makers]


def fit_site_rule(heard: Sequence[Heard]) -> tuple[SiteRule, Float64Array]:
    """The site rule whose threshold separates these recordings best, and its curve (threshold, Se, Sp).

    Sensitivity and specificity are the means over stethoscopes, each as much as another: a threshold must travel.
    'Not enough' counts as wrong.
    """
    counts = np.array([sum(result.judgement is not None for result in one.results) for one in heard])
    recordings = [one.recording for one in heard]
    groups = voices([one.device for one in recordings], [one.patient for one in recordings])
    return site_rule_of(*site_statistics(heard, UNFITTED), groups, counts >= LEAST_CYCLES)


def site_rule_of(
    abnormal: BoolArray, probability: Float64Array, groups: Sequence[str], counted: BoolArray
) -> tuple[SiteRule, Float64Array]:
    """`fit_site_rule` from each recording's label and statistic (n,), its stethoscope and whether it has a verdict."""
    curve = balanced_curve(abnormal, probability, groups, counted)
    return UNFITTED.model_copy(update={"threshold": round(float(best_row(curve)[0]), 6)}), curve


def calibration_of(rule: SiteRule, curve: Float64Array) -> CalibrationBounds:
    """How far healthy people may raise the rule's threshold: to where held-out patients still reached the floor."""
    kept = curve[(curve[:, 1] >= SENSITIVITY_FLOOR) & (curve[:, 0] >= rule.threshold), 0]
    highest = float(kept.max(initial=rule.threshold))
    shift = max(0.0, float(logit(np.clip(highest, 1e-6, 1 - 1e-6)) - logit(np.clip(rule.threshold, 1e-6, 1 - 1e-6))))
    return CalibrationBounds(
        healthy_flagged=HEALTHY_FLAGGED, largest_shift=round(shift, 4), sensitivity_floor=SENSITIVITY_FLOOR
    )


def listen_longer(
    recordings: Sequence[Recording],
    cache: AudioCache,
    model: Judge,
    quality: QualitySettings,
    progress: Callable[[int, int], None] | None = None,
) -> list[Joined]:
    """How many people are flagged on their normal recordings alone, and on their abnormal ones, by listening time.

    A verdict must not depend on how long one listens. At most MOST_PEOPLE of each kind, evenly over the corpus.
    """
    every: dict[tuple[str, bool], list[str]] = {}
    for recording in recordings:
        every.setdefault((recording.patient, recording.label != "normal"), []).append(recording.name)
    kinds = [[key for key in every if key[1] == abnormal] for abnormal in (False, True)]
    people = {key: every[key] for kind in kinds for key in kind[:: -(-len(kind) // MOST_PEOPLE) or 1]}
    found, steps = [], len(people) * len(JOINED_SECONDS)
    for number, seconds in enumerate(JOINED_SECONDS):
        flagged = {True: 0, False: 0}
        for done, ((patient, abnormal), names) in enumerate(people.items(), 1):
            sound = np.resize(np.concatenate([cache[name] for name in names]), round(seconds * SAMPLE_RATE))
            session = Session(CachedSource(patient, sound), model, quality)
            for _ in session.run():
                pass
            flagged[abnormal] += session.summary.verdict == "flagged"
            if progress is not None:
                progress(number * len(people) + done, steps)
        ill = sum(abnormal for _, abnormal in people)
        found.append(Joined(seconds, ill, flagged[True], len(people) - ill, flagged[False]))
    return found
