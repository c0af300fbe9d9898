"""What a serving form may lose: fp32 against torch, every other against fp32, on validation patients."""

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

LARGEST_PARITY: Final = 1e-4  # logits
LARGEST_LOSS: Final = 0.005  # of Score


def whose(members: int, refits: int) -> str:
    """Whom the gates read, and whether the served models have met them: a Score on those looks too good."""
    if refits:
        return "the first fold, whom the models of all patients have met"
    return "the first fold, whom the other models have met" if members > 1 else "the first fold"


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

    @property
    def lost(self) -> float:
        """The larger loss of Score; below 0 when both readings gained, NaN when there is no reading."""
        return float(np.maximum(-self.unchanged.score.value, -self.refitted.score.value))

    def __str__(self) -> str:
        return (
            f"top-1 {self.agreement:.4f}, logits off by {self.relative_error:.4f}, KL {self.divergence:.1e}, Score "
            f"{self.unchanged.score:+.4f}, refitted {self.refitted.score:+.4f}"
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
        return Comparison(0.0, float("inf"), float("inf"), nothing, nothing)
    expected, found = softmax(pool(fp32), temperature), softmax(pool(other), temperature)
    divergence = (expected * (np.log(expected + 1e-12) - np.log(found + 1e-12))).sum(axis=1).mean()
    before = [predicted(fp32, held, temperature, threshold), predicted(fp32, held, *_refit(fp32, held))]
    after = [predicted(other, held, temperature, threshold), predicted(other, held, *_refit(other, held))]

    shifts = (rates_shift(held.patients, held.labels, *pair) for pair in zip(before, after, strict=True))
    return Comparison(
        agreement(other, fp32),
        relative_error(other, fp32),
        max(float(divergence), 0.0),
        *shifts,
    )


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
