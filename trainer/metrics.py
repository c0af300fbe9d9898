"""Sensitivity, specificity and Score in both conventions, AUROC, and patient-bootstrap intervals; written once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from device.decision import softmax
from device.labels import LABELS

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

BOOTSTRAP_ROUNDS = 1000
NO_VERDICT = len(LABELS)
"""Predicted 'class' of a recording that was heard too little or too badly: wrong on both sides."""


@dataclass(frozen=True)
class Interval:
    """A reading with its 95 % interval; NaN where it cannot be computed (one class only)."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """`{value, low, high}`, null for what cannot be computed."""
        return {name: None if np.isnan(x) else round(float(x), 4) for name, x in vars(self).items()}

    def __str__(self) -> str:
        return "-" if np.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Rates:
    """Se = share of abnormal called right, Sp = share of normal called normal, Score = their mean (ICBHI 2017)."""

    sensitivity: float
    specificity: float

    @property
    def score(self) -> float:
        """(Se + Sp) / 2."""
        return (self.sensitivity + self.specificity) / 2


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


def auroc(abnormal: BoolArray, score: npt.NDArray[np.floating]) -> float:
    """Area under the ROC by ranks, ties counted half (Hanley & McNeil 1982); NaN when one class is absent."""
    positives = int(abnormal.sum())
    negatives = len(abnormal) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[abnormal].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def patient_bootstrap(
    patients: npt.NDArray[np.str_] | list[str],
    statistic: Callable[[IntArray], Float64Array],
    rounds: int = BOOTSTRAP_ROUNDS,
    seed: int = 0,
) -> list[Interval]:
    """95 % percentile intervals of every entry of `statistic(indices)`, resampling whole patients.

    Cycles of one patient are alike, so resampling cycles would look far too certain.
    """
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    members = [np.flatnonzero(owner == index) for index in range(len(names))]
    value = statistic(np.arange(len(owner)))
    random = np.random.default_rng(seed)
    draws = np.full((rounds, len(value)), np.nan)
    for row in draws:
        picked = random.integers(0, len(members), len(members))
        row[:] = statistic(np.concatenate([members[index] for index in picked]))
    low, high = np.full(len(value), np.nan), np.full(len(value), np.nan)
    # a resample may hold one class only; it says nothing of that entry
    known = ~np.isnan(draws).all(axis=0)
    low[known], high[known] = np.nanpercentile(draws[:, known], [2.5, 97.5], axis=0)
    return [Interval(float(v), float(lo), float(hi)) for v, lo, hi in zip(value, low, high, strict=True)]


def choose_threshold(abnormal: BoolArray, probability: npt.NDArray[np.floating]) -> tuple[float, Rates]:
    """The threshold that maximises (Se + Sp) / 2 subject to Se >= Sp (a missed patient is the worst outcome).

    A cycle is abnormal when probability >= threshold. Raises ValueError when a class is absent.
    """
    curve = operating_curve(abnormal, probability)
    allowed = curve[curve[:, 1] >= curve[:, 2]]
    best = allowed[np.argmax(allowed[:, 1] + allowed[:, 2])]
    return float(best[0]), Rates(float(best[1]), float(best[2]))


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


def fit_temperature(logits: npt.NDArray[np.floating], labels: IntArray) -> float:
    """Temperature in 0.05-20 that minimises the negative log-likelihood (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        chosen = softmax(logits, float(np.exp(log_temperature)))[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(chosen, 1e-12)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded").x))
