"""The `recordings` protocol: whole recordings through the device's own live path, and the site rule fitted on it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from device.bundle import Segmentation, SiteRule
from device.decision import Judgement, SiteDecision, judge
from device.live import Auscultation, CycleResult, Judge
from device.signal import FloatArray, FrontEnd, windows
from device.sources import Block, paced
from firmware_config.settings import QualitySettings
from trainer.audio_cache import AudioCache
from trainer.corpora.cycle import POOR_QUALITY, Corpus, Recording, union
from trainer.fit import predict
from trainer.metrics import BoolArray, Float64Array
from trainer.model import AST, Ensemble

LEAST_CYCLES = 2  # one breath is not an examination
UNHEARD = np.empty(0, np.float32)  # a corpus of judged samples would not fit into memory
# (pooling, k) in the order of preference
RULES: tuple[tuple[Literal["kth", "mean"], int], ...] = (
    *(("kth", k) for k in range(1, 5)),
    *(("mean", k) for k in range(1, 7)),
)
WORTH = 0.005  # a rule that asks for more cycles has to score this much better: it flags later


class RunModel:
    """A torch model where the live path expects a bundle's classifier."""

    fingerprint = "unbundled run"

    def __init__(
        self,
        model: AST | Ensemble,
        device: torch.device,
        front_end: FrontEnd,
        segmentation: Segmentation,
        site_rule: SiteRule,
        temperature: float,
        threshold: float,
    ) -> None:
        self.model, self.device, self.front_end = model.eval(), device, front_end
        self.segmentation, self.site_rule = segmentation, site_rule
        self.temperature, self.threshold = temperature, threshold

    def logits(self, inputs: FloatArray) -> FloatArray:
        """Logits (batch, 4) of model inputs (batch, frames, mels)."""
        return predict(self.model, inputs, self.device)

    def judge(self, samples: FloatArray) -> Judgement:
        """One cycle (n,) at 16 kHz; the worst window speaks."""
        return judge(self.logits(windows(samples, self.front_end)), self.temperature, self.threshold)


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
        return decided


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
    """Every recording through segmenter, quality and model, as the device would hear it."""
    heard = []
    for done, recording in enumerate(recordings, 1):
        session = Auscultation(CachedSource(recording.name, cache[recording.name]), model, quality)
        results = [replace(one, samples=UNHEARD) for one in session.run() if isinstance(one, CycleResult)]
        heard.append(Heard(recording, tuple(results)))
        if progress is not None:
            progress(done, len(recordings))
    return heard


def predicted_class(decided: SiteDecision) -> str:
    """The class that a site's verdict names: the union of its flagged cycles' classes, else normal."""
    if decided.verdict != "flagged":
        return "normal"
    return union(list(decided.named))


def site_score(heard: Sequence[Heard], rule: SiteRule) -> float:
    """(Se + Sp) / 2 of the rule's verdicts; 'not enough' and 'poor quality' are wrong on both sides."""
    abnormal = np.array([one.recording.label != "normal" for one in heard])
    verdicts = np.array([one.decision(rule).verdict for one in heard])
    sensitivity = np.mean(verdicts[abnormal] == "flagged")
    return float(sensitivity + np.mean(verdicts[~abnormal] == "nothing flagged")) / 2


def site_probabilities(heard: Sequence[Heard], rule: SiteRule) -> tuple[BoolArray, Float64Array]:
    """Whether each recording is labelled abnormal, and its probability under the rule (0 where there is none)."""
    abnormal = np.array([one.recording.label != "normal" for one in heard])
    return abnormal, np.array([one.decision(rule).probability or 0.0 for one in heard])


def fit_site_rule(heard: Sequence[Heard], cycle_threshold: float) -> SiteRule:
    """Pooling, k and threshold that maximise (Se + Sp) / 2 on these recordings subject to Se >= Sp.

    'Not enough' counts as wrong. For each pooling and k the threshold is chosen among the sites' own probabilities;
    the first of RULES within half a point of the best is taken.
    """
    counts = np.array([sum(result.judgement is not None for result in one.results) for one in heard])
    reached: list[tuple[float, SiteRule]] = []
    for pooling, k in RULES:
        least = max(LEAST_CYCLES, k)
        reach_all = SiteRule(pooling=pooling, k=k, threshold=0.0, least_cycles=least)
        abnormal, scores = site_probabilities(heard, reach_all)
        values = np.unique(scores)
        middles = (values[:-1] + values[1:]) / 2
        if pooling == "kth":
            # not below the cycle's own: a site of normal cycles is not flagged
            middles = np.array([cycle_threshold, *middles[middles > cycle_threshold]])
        best: tuple[float, SiteRule] | None = None
        for threshold in middles:
            flagged = scores >= threshold
            cleared = ~flagged & (counts >= least)
            sensitivity, specificity = float(flagged[abnormal].mean()), float(cleared[~abnormal].mean())
            score = (sensitivity + specificity) / 2
            if sensitivity >= specificity and (best is None or score > best[0]):
                best = score, reach_all.model_copy(update={"threshold": round(float(threshold), 6)})
        if best is not None:
            reached.append(best)
    # where even the lowest threshold misses more than it falsely flags, one flagged cycle flags the site
    if not reached:
        return SiteRule(k=1, threshold=cycle_threshold, least_cycles=LEAST_CYCLES)
    highest = max(score for score, _ in reached)
    return next(rule for score, rule in reached if score >= highest - WORTH)
