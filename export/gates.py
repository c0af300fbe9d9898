"""How much a model file may lose: fp32 against torch, every other against fp32, on held-out patients."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from device.labels import NORMAL
from device.model.judgement import abnormal_probability, leading_class, pool, softmax
from device.signal import FloatArray
from trainer.corpora.protocols import worst_window
from trainer.evaluation.compare import rates_shift
from trainer.evaluation.validation import Validation
from trainer.metrics import Float64Array, IntArray, Interval, Rates, binary_rates, calibrate, confusion
from trainer.reading import RateIntervals

LARGEST_PARITY: Final = 1e-4  # difference of a logit
LARGEST_LOSS: Final = 0.005  # of Score
NEAR: Final = 0.01  # relative error of the logits: int8 of a transformer has 0.001, of a MobileNet 0.02


def gate_patients(members: int, refits: int) -> str:
    """The gates' patients, and whether the served models have met them: a Score on those looks too good."""
    if refits:
        return "the first fold, whom the models of all patients have met"
    return "the first fold, whom the other models have met" if members > 1 else "the first fold"


@dataclass(frozen=True)
class Turned:
    """Stretches that are abnormal by one file and normal by the other."""

    stretches: int
    patients: int
    farthest: float
    """Their largest distance from the threshold, by fp32's probability."""
    threshold: float

    def __str__(self) -> str:
        return (
            f"{self.stretches} of the stretches ({self.patients} patients) lie within {self.farthest:.1g} of the "
            f"threshold {self.threshold:.3f} by fp32's probability and change sides"
        )


@dataclass(frozen=True)
class Comparison:
    """How far the answers of a converted file are from fp32's."""

    agreement: float
    """Share of windows whose likeliest class is the same."""
    relative_error: float
    """Length of the difference of all moments' logits over the length of fp32's."""
    divergence: float
    """Kullback-Leibler divergence of the classes' probabilities from fp32's, mean in nats."""
    unchanged: RateIntervals
    """At the run's temperature and threshold."""
    refitted: RateIntervals
    """At both refitted, for fp32 and the file each on its own logits: refitting only one would hide damage."""
    turned: Turned
    """In the reading that lost more."""

    @property
    def lost(self) -> float:
        """The larger loss of Score; below 0 when both readings gained, NaN when there is no reading."""
        return float(np.maximum(-self.unchanged.score.value, -self.refitted.score.value))

    @property
    def near(self) -> bool:
        """Whether the logits are fp32's but for rounding, so that no layer is to blame for a loss."""
        return self.agreement == 1.0 and self.relative_error <= NEAR

    def __str__(self) -> str:
        return (
            f"same top-1 class in {self.agreement:.4f} of the windows, relative error of the logits "
            f"{self.relative_error:.4f}, KL {self.divergence:.1e} nats, Score {self.unchanged.score:+.4f}, "
            f"refitted {self.refitted.score:+.4f}"
        )

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "top1_agreement": round(self.agreement, 4),
            "relative_logit_error": float(f"{self.relative_error:.2g}"),
            "kl_nats": float(f"{self.divergence:.2g}"),
            "unchanged": self.unchanged.as_json(),
            "refitted": self.refitted.as_json(),
        }


def compare(fp32: FloatArray, other: FloatArray, held: Validation, temperature: float, threshold: float) -> Comparison:
    """Compare logits (m, moments, classes) of the validation inputs with fp32's, pooled over all moments."""
    if not np.isfinite(other).all():
        nothing = RateIntervals(*[Interval.UNKNOWN] * 3)
        return Comparison(0.0, float("inf"), float("inf"), nothing, nothing, Turned(0, 0, 0.0, threshold))
    expected, found = softmax(pool(fp32), temperature), softmax(pool(other), temperature)
    divergence = (expected * (np.log(expected + 1e-12) - np.log(found + 1e-12))).sum(axis=1).mean()
    unchanged, refits = (temperature, threshold), (_refit(fp32, held), _refit(other, held))
    calls = [
        (predicted(fp32, held, *ours), predicted(other, held, *theirs))
        for ours, theirs in ((unchanged, unchanged), refits)
    ]
    shifts = [rates_shift(held.patients, held.labels, *pair) for pair in calls]
    lost_more = int(shifts[1].score.value < shifts[0].score.value)
    return Comparison(
        agreement(other, fp32),
        relative_error(other, fp32),
        max(float(divergence), 0.0),
        shifts[0],
        shifts[1],
        _turned(fp32, held, *calls[lost_more], *(unchanged, refits[0])[lost_more]),
    )


def _turned(
    fp32: FloatArray, held: Validation, before: IntArray, after: IntArray, temperature: float, threshold: float
) -> Turned:
    """What the called classes (n,) of fp32 and of another file differ in."""
    rows = np.flatnonzero((before == NORMAL) != (after == NORMAL))
    distance = np.abs(_worst(fp32, held, temperature)[1][rows] - threshold)
    people = len({held.patients[row] for row in rows})
    return Turned(len(rows), people, float(distance.max(initial=0.0)), threshold)


def predicted(logits: FloatArray, held: Validation, temperature: float, threshold: float) -> IntArray:
    """Classes (n,) of the validation stretches from logits (m >= n, moments, classes) of their windows."""
    worst, probability = _worst(logits, held, temperature)
    return np.where(probability >= threshold, leading_class(worst), NORMAL)


def score(logits: FloatArray, held: Validation, temperature: float, threshold: float) -> Rates:
    """Binary rates of the validation stretches."""
    return binary_rates(confusion(held.labels, predicted(logits, held, temperature, threshold)))


def agreement(found: FloatArray, expected: FloatArray) -> float:
    """Share of the windows of logits (m, moments, classes) whose likeliest class is the same."""
    return float((pool(found).argmax(axis=1) == pool(expected).argmax(axis=1)).mean())


def relative_error(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """Length of the difference over the length of what was expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _refit(logits: FloatArray, held: Validation) -> tuple[float, float]:
    return calibrate(_worst(logits, held)[0], held.labels)


def _worst(logits: FloatArray, held: Validation, temperature: float = 1.0) -> tuple[Float64Array, Float64Array]:
    """Pooled logits (n, classes) and probability (n,) of each stretch's worst window."""
    pooled = pool(logits)
    return worst_window(pooled, abnormal_probability(pooled, temperature), held.owner)
