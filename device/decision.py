"""From calibrated probabilities to verdicts: one cycle, one site. A flag is never delayed or withdrawn."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from device.bundle import BundleError, SiteRule
from device.labels import LABELS, NORMAL, Label

Verdict = Literal["flagged", "nothing flagged", "not enough", "poor quality"]
SUREST = 0.01  # no single cycle outweighs all others in a mean of log-odds


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
    """Verdict of one cycle from the logits of its windows (count, classes): the worst window speaks.

    BundleError when one of them is not a number: it would be below every threshold, and so look like health.
    """
    probability = abnormal_probability(logits, temperature)
    if not np.isfinite(probability).all():
        raise BundleError(
            "the model answers NaN: this machine computes something else than its maker did; do not use it, run "
            "'respsam-device doctor'"
        )
    worst = int(probability.argmax())
    return Judgement(
        float(probability[worst]), bool(probability[worst] >= threshold), LABELS[int(leading_class(logits)[worst])]
    )


def sounds(labels: Sequence[Label]) -> list[str]:
    """The sounds in cycles of these abnormal classes, 'both' taken apart: crackle, wheeze."""
    return sorted({sound for label in labels for sound in (("crackle", "wheeze") if label == "both" else (label,))})


def pooled(probability: npt.NDArray[np.float64], rule: SiteRule) -> float:
    """One probability of k or more cycles' (count,): the k-th highest, or that of their mean log-odds."""
    if rule.pooling == "kth":
        return float(np.sort(probability)[-rule.k])
    bounded = np.clip(probability, SUREST, 1.0 - SUREST)
    return float(1.0 / (1.0 + np.exp(-np.log(bounded / (1.0 - bounded)).mean())))


class SiteDecision:
    """Running verdict of one auscultation site by the bundle's rule over its gradable cycles, in bounded memory."""

    def __init__(self, rule: SiteRule) -> None:
        self.rule = rule
        self.graded = 0
        """Gradable cycles so far."""
        self.abnormal = 0
        """Of these, at the cycle's own threshold."""
        self.named: Counter[Label] = Counter()
        """Leading classes of the cycles that reach the rule's threshold."""
        self.ungradable: Counter[str] = Counter()
        """Why the others were not graded."""
        self.failure = ""
        """Why the model could not judge to the end, in words; nothing is ruled out then."""
        self.probability: float | None = None
        """The rule's pooled probability over those n cycles in a row where it is highest: what meets the threshold.

        None before k cycles. More cycles never lower it, so a flag is never withdrawn.
        """
        self._latest: deque[float] = deque(maxlen=rule.n)

    def add(self, judgement: Judgement) -> None:
        """One more gradable cycle."""
        self.graded += 1
        self.abnormal += judgement.abnormal
        if judgement.probability >= self.rule.threshold:
            self.named[judgement.leading] += 1
        self._latest.append(judgement.probability)
        if len(self._latest) >= self.rule.k:
            self.probability = max(self.probability or 0.0, pooled(np.array(self._latest), self.rule))

    def refuse(self, reason: str) -> None:
        """One more cycle that is not gradable."""
        self.ungradable[reason] += 1

    @property
    def verdict(self) -> Verdict:
        """`flagged` outranks everything."""
        if self.probability is not None and self.probability >= self.rule.threshold:
            return "flagged"
        if self.failure:
            return "not enough"
        if self.graded >= self.rule.least_cycles:
            return "nothing flagged"
        # all or most of what was heard could not be graded: the remedy is another recording, not a longer one
        return "poor quality" if self.ungradable.total() > self.graded else "not enough"

    @property
    def reasons(self) -> list[str]:
        """What was heard, or why there is no verdict, in words."""
        verdict = self.verdict
        if verdict == "flagged":
            named = " and ".join(sounds(list(self.named)))
            alone = f"{self.abnormal} of {self.graded} cycles flagged" if self.abnormal else "only cycles together"
            return [f"{named}, {alone}"]
        # a copy first: the live page reads this from another thread while cycles come in
        listed = [f"{reason} ({count} cycles)" for reason, count in list(self.ungradable.items())]
        if verdict == "nothing flagged" and self.abnormal:
            together = "together" if self.rule.pooling == "mean" else f"{self.rule.k} of {self.rule.n}"
            needed = f"{together} at probability {self.rule.threshold:.2f}"
            listed.insert(0, f"{self.abnormal} of {self.graded} cycles abnormal, not enough for the site ({needed})")
        if self.failure:
            listed.insert(0, self.failure)
        elif verdict == "not enough":
            listed.insert(0, f"{self.graded} gradable cycles, {self.rule.least_cycles} are needed; listen longer")
        return listed
