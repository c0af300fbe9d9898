"""From calibrated probabilities to verdicts: one cycle, one site. A flag is never delayed or withdrawn."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from device.bundle import SiteRule
from device.labels import LABELS, NORMAL, Label

Verdict = Literal["flagged", "nothing flagged", "not enough", "poor quality"]


@dataclass(frozen=True)
class Judgement:
    """What the model says of one cycle."""

    probability: float
    """Of being abnormal, calibrated."""
    abnormal: bool
    """Whether the probability reaches the threshold."""
    leading: Label
    """The likeliest abnormal class, whether or not the cycle is abnormal."""

    @property
    def label(self) -> Label:
        """The class that is shown."""
        return self.leading if self.abnormal else LABELS[NORMAL]


def softmax(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Class probabilities (n, classes) of logits (n, classes) over `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = exponent / exponent.sum(axis=1, keepdims=True)
    return result


def abnormal_probability(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """1 - softmax(logits / temperature)[normal], (n,)."""
    result: npt.NDArray[np.float64] = 1.0 - softmax(logits, temperature)[:, NORMAL]
    return result


def leading_class(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Index (n,) of the likeliest abnormal class of logits (n, classes)."""
    result: npt.NDArray[np.int64] = 1 + logits[:, 1:].argmax(axis=1)
    return result


def judge(logits: npt.NDArray[np.floating], temperature: float, threshold: float) -> Judgement:
    """Verdict of one cycle from the logits of its windows (count, classes): the worst window speaks."""
    probability = abnormal_probability(logits, temperature)
    worst = int(probability.argmax())
    return Judgement(
        float(probability[worst]), bool(probability[worst] >= threshold), LABELS[int(leading_class(logits)[worst])]
    )


def sounds(labels: Sequence[Label]) -> list[str]:
    """The sounds in cycles of these abnormal classes, 'both' taken apart: crackle, wheeze."""
    return sorted({sound for label in labels for sound in (("crackle", "wheeze") if label == "both" else (label,))})


@dataclass
class SiteDecision:
    """Running verdict of one auscultation site by k of n gradable cycles."""

    rule: SiteRule
    judgements: list[Judgement] = field(default_factory=list)
    ungradable: list[str] = field(default_factory=list)
    probability: float | None = None
    """The k-th highest of those n cycles in a row where it is highest: what the threshold is held against.

    None before k cycles. More cycles never lower it, so a flag is never withdrawn.
    """

    def add(self, judgement: Judgement) -> None:
        """One more gradable cycle."""
        self.judgements.append(judgement)
        latest = sorted((judgement.probability for judgement in self.judgements[-self.rule.n :]), reverse=True)
        if len(latest) >= self.rule.k:
            self.probability = max(self.probability or 0.0, latest[self.rule.k - 1])

    def refuse(self, reason: str) -> None:
        """One more cycle that is not gradable."""
        self.ungradable.append(reason)

    @property
    def over(self) -> list[Judgement]:
        """The cycles that reach the rule's threshold."""
        return [judgement for judgement in self.judgements if judgement.probability >= self.rule.threshold]

    @property
    def verdict(self) -> Verdict:
        """`flagged` outranks everything."""
        if self.probability is not None and self.probability >= self.rule.threshold:
            return "flagged"
        if len(self.judgements) >= self.rule.least_cycles:
            return "nothing flagged"
        # all or most of what was heard could not be graded: the remedy is another recording, not a longer one
        return "poor quality" if len(self.ungradable) > len(self.judgements) else "not enough"

    @property
    def reasons(self) -> list[str]:
        """What was heard, or why there is no verdict, in words."""
        verdict = self.verdict
        if verdict == "flagged":
            named = " and ".join(sounds([judgement.leading for judgement in self.over]))
            return [f"{named} in {len(self.over)} of {len(self.judgements)} cycles"]
        listed = [f"{reason} ({count} cycles)" for reason, count in Counter(self.ungradable).items()]
        alone = sum(judgement.abnormal for judgement in self.judgements)
        if verdict == "nothing flagged" and alone:
            needed = f"{self.rule.k} of {self.rule.n} at probability {self.rule.threshold:.2f}"
            listed.insert(0, f"{alone} of {len(self.judgements)} cycles abnormal, not enough for the site ({needed})")
        if verdict == "not enough":
            listed.insert(
                0, f"{len(self.judgements)} gradable cycles, {self.rule.least_cycles} are needed; listen longer"
            )
        return listed
