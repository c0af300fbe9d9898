"""Sensitivity, specificity and Score in both conventions, areas, calibration, and patient-bootstrap intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from device.labels import LABELS
from device.model.judgement import abnormal_probability, softmax

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

BOOTSTRAP_ROUNDS: Final = 1000
CALIBRATION_BINS: Final = 15
NO_VERDICT: Final = len(LABELS)
"""Predicted 'class' of a recording without a verdict (not enough, poor quality): wrong on both sides."""
LEAST_PATIENTS: Final = 10  # fewer have no interval: resampled, so few look too certain
FEW_PATIENTS: Final = 50  # an interval over fewer is wider than most differences between models


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; NaN for what cannot be computed (one class only, too few patients)."""

    value: float
    low: float
    high: float

    UNKNOWN: ClassVar["Interval"]

    @classmethod
    def of(cls, read: Any) -> Any:
        """Inverse of `as_json`; anything else as it is."""
        return cls(*(np.nan if read[name] is None else read[name] for name in _PLACES)) if type(read) is dict else read

    @property
    def varies(self) -> bool:
        """Whether resamples differ; a width of zero looks certain, and knows nothing of other patients."""
        return self.low < self.high

    def as_json(self) -> dict[str, float | None]:
        """`{value, low, high}`, null for what is unknown."""
        shown = self if self.varies else Interval(self.value, np.nan, np.nan)
        return {name: None if np.isnan(x) else round(float(x), 4) for name, x in vars(shown).items()}

    def __format__(self, form: str) -> str:
        """`0.812 [0.771, 0.850]`, each number in this form (`.3f` without one); '-' for what is unknown."""
        if not self.varies:
            return self.alone(form)
        value, low, high = (format(number, form or ".3f") for number in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def alone(self, form: str = "") -> str:
        """The value without its interval."""
        return "-" if np.isnan(self.value) else format(self.value, form or ".3f")

    def __str__(self) -> str:
        return format(self)


_PLACES: Final = ("value", "low", "high")
Interval.UNKNOWN = Interval(np.nan, np.nan, np.nan)


def too_few(patients: int) -> str:
    """What is to be said of a result from so many patients; '' from FEW_PATIENTS up."""
    return (
        f"too few patients for any claim: {patients}, {FEW_PATIENTS} are the least" if patients < FEW_PATIENTS else ""
    )


@dataclass(frozen=True)
class Rates:
    """Se = share of abnormal called right, Sp = share of normal called normal, Score = their mean (ICBHI 2017)."""

    sensitivity: float
    specificity: float

    @property
    def score(self) -> float:
        """(Se + Sp) / 2."""
        return (self.sensitivity + self.specificity) / 2

    def by_name(self) -> dict[str, float]:
        """`{sensitivity, specificity, score}`."""
        return {"sensitivity": self.sensitivity, "specificity": self.specificity, "score": self.score}


def confusion(true: IntArray, predicted: IntArray) -> IntArray:
    """Counts (4 true classes, 4 predicted classes and NO_VERDICT)."""
    columns = len(LABELS) + 1
    return np.bincount(true * columns + predicted, minlength=len(LABELS) * columns).reshape(len(LABELS), columns)


def binary_rates(matrix: IntArray) -> Rates:
    """Any abnormal class counts for an abnormal cycle; `matrix` as `confusion` gives it."""
    return Rates(_ratio(matrix[1:, 1:NO_VERDICT].sum(), matrix[1:].sum()), _ratio(matrix[0, 0], matrix[0].sum()))


def exact_rates(matrix: IntArray) -> Rates:
    """An abnormal cycle counts only when its exact class is named (ICBHI 2017's official convention)."""
    return Rates(_ratio(np.trace(matrix[1:, 1:]), matrix[1:].sum()), _ratio(matrix[0, 0], matrix[0].sum()))


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")


def levels(score: npt.NDArray[np.floating]) -> IntArray:
    """The place (n,) of every score among the distinct ones, ascending from 0; -1 where it is NaN."""
    known = ~np.isnan(score)
    places = np.full(len(score), -1, np.int64)
    places[known] = np.unique(score[known], return_inverse=True)[1]
    return places


def tally(abnormal: BoolArray, level: IntArray) -> IntArray:
    """Counts (2, distinct scores) of normal and abnormal at every level of `levels`; unknown ones do not count.

    All that follows needs no more than this, and a bootstrap that has ranked once need not sort in every draw.
    """
    counts = np.bincount(2 * (level + 1) + abnormal, minlength=2 * (level.max(initial=0) + 2))
    return counts.reshape(-1, 2)[1:].T


def area(counts: IntArray) -> float:
    """Area under the ROC, ties counted half (Hanley & McNeil 1982); NaN when one class is absent."""
    normal, abnormal = counts
    below = np.cumsum(normal) - normal / 2
    return _ratio((abnormal * below).sum(), float(normal.sum() * abnormal.sum()))


def average_precision(counts: IntArray) -> float:
    """Area under precision over recall as steps, ties taken together, as scikit-learn has it; NaN without abnormal."""
    found = np.cumsum(counts[1, ::-1])
    called = np.cumsum(counts.sum(axis=0)[::-1])
    return _ratio((counts[1, ::-1] * found / np.maximum(called, 1)).sum(), counts[1].sum())


def sensitivity_at(counts: IntArray, specificity: float) -> float:
    """The highest sensitivity at which specificity is at least as given; NaN when one class is absent."""
    normal, abnormal = (np.concatenate([[0], np.cumsum(kind)]) for kind in counts)
    if not normal[-1] or not abnormal[-1]:
        return float("nan")
    first = np.searchsorted(normal / normal[-1], specificity)
    return float((abnormal[-1] - abnormal[first]) / abnormal[-1])


def calibration_error(abnormal: BoolArray, probability: Float64Array) -> float:
    """Expected calibration error of the abnormal probability in 15 equal-width bins (Naeini et al. 2015)."""
    bins = np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    return _ratio(np.abs(np.bincount(bins, weights=probability - abnormal)).sum(), len(abnormal))


def auroc(abnormal: BoolArray, score: npt.NDArray[np.floating]) -> float:
    """`area` of scores; those that are NaN do not count."""
    return area(tally(abnormal, levels(score)))


def patient_bootstrap(
    patients: npt.NDArray[np.str_] | list[str],
    statistic: Callable[[IntArray], Float64Array],
    rounds: int = BOOTSTRAP_ROUNDS,
    seed: int = 0,
    least: int = LEAST_PATIENTS,
) -> list[Interval]:
    """95 % percentile intervals of every entry of `statistic(indices)`, resampling whole patients.

    Cycles of one patient are alike, so resampling cycles would look far too certain. Fewer patients than `least` would,
    too, and have no interval.
    """
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    members = [np.flatnonzero(owner == index) for index in range(len(names))]
    value = statistic(np.arange(len(owner)))
    if len(members) < least:
        return [Interval(float(one), np.nan, np.nan) for one in value]
    random = np.random.default_rng(seed)
    draws = np.full((rounds, len(value)), np.nan)
    for row in draws:
        picked = random.integers(0, len(members), len(members))
        row[:] = statistic(np.concatenate([members[index] for index in picked]))
    low, high = np.full(len(value), np.nan), np.full(len(value), np.nan)
    # a resample may hold one class only; such a one is left out for that entry
    known = ~np.isnan(draws).all(axis=0)
    low[known], high[known] = np.nanpercentile(draws[:, known], [2.5, 97.5], axis=0)
    return [Interval(float(v), float(lo), float(hi)) for v, lo, hi in zip(value, low, high, strict=True)]


def choose_threshold(abnormal: BoolArray, probability: npt.NDArray[np.floating]) -> tuple[float, Rates]:
    """The threshold that maximises (Se + Sp) / 2 subject to Se >= Sp (a missed patient is the worst outcome).

    A cycle is abnormal when probability >= threshold. Raises ValueError when a class is absent.
    """
    best = best_row(operating_curve(abnormal, probability))
    return float(best[0]), Rates(float(best[1]), float(best[2]))


def best_row(curve: Float64Array) -> Float64Array:
    """The row (threshold, Se, Sp) of a curve that maximises (Se + Sp) / 2 subject to Se >= Sp."""
    allowed = curve[curve[:, 1] >= curve[:, 2]]
    best: Float64Array = allowed[np.argmax(allowed[:, 1] + allowed[:, 2])]
    return best


def operating_curve(abnormal: BoolArray, probability: npt.NDArray[np.floating]) -> Float64Array:
    """Rows (threshold, Se, Sp), thresholds ascending and half-way between neighbouring probabilities, from 0 to 1."""
    if not abnormal.any() or abnormal.all():
        raise ValueError("a threshold needs normal and abnormal cycles; one of the two is absent")
    values = np.unique(probability.astype(np.float64))
    thresholds = np.concatenate([[0.0], (values[:-1] + values[1:]) / 2, [1.0]])
    positive, negative = np.sort(probability[abnormal]), np.sort(probability[~abnormal])
    # one division each: 1 - 9/10 is not 1/10, and Se >= Sp would then refuse an equal pair
    sensitivity = (len(positive) - np.searchsorted(positive, thresholds, side="left")) / len(positive)
    specificity = np.searchsorted(negative, thresholds, side="left") / len(negative)
    return np.stack([thresholds, sensitivity, specificity], axis=1)


def balanced_curve(
    abnormal: BoolArray, probability: Float64Array, groups: Sequence[str], counted: BoolArray | None = None
) -> Float64Array:
    """`operating_curve` with Se and Sp as means over groups of equal weight.

    A group without abnormal ones does not count in Se, one without normal ones not in Sp. Rows that are not `counted`
    are wrong at every threshold.
    """
    if not abnormal.any() or abnormal.all():
        raise ValueError("a threshold needs normal and abnormal cycles; one of the two is absent")
    counted = np.ones(len(abnormal), np.bool_) if counted is None else counted
    values = np.unique(probability.astype(np.float64))
    thresholds = np.concatenate([[0.0], (values[:-1] + values[1:]) / 2, [1.0]])
    names = np.asarray(groups)
    sensitivities: list[Float64Array] = []
    specificities: list[Float64Array] = []
    for name in sorted(set(groups)):
        for kind, found in ((abnormal, sensitivities), (~abnormal, specificities)):
            rows = kind & (names == name)
            if rows.any():
                below = np.searchsorted(np.sort(probability[rows & counted]), thresholds, side="left")
                right = (rows & counted).sum() - below if kind is abnormal else below
                found.append(right / rows.sum())
    return np.stack([thresholds, np.mean(sensitivities, axis=0), np.mean(specificities, axis=0)], axis=1)


def fit_temperature(logits: npt.NDArray[np.floating], labels: IntArray) -> float:
    """Temperature in 0.05-20 that minimises the negative log-likelihood (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        chosen = softmax(logits, float(np.exp(log_temperature)))[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(chosen, 1e-12)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded").x))


def calibrate(logits: Float64Array, labels: IntArray) -> tuple[float, float]:
    """Temperature, then the threshold on the calibrated probability, both from validation logits."""
    temperature = fit_temperature(logits, labels)
    threshold, _ = choose_threshold(labels > 0, abnormal_probability(logits, temperature))
    return temperature, threshold
