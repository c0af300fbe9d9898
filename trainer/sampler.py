"""Weighted random sampling (WRS): which cycles an epoch draws."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from device.labels import LABELS, Label

Balance = Literal["none", "class", "binary"]


def weights(
    labels: Sequence[Label], balance: Balance, patients: Sequence[str] = (), patient_balance: float = 0.0
) -> npt.NDArray[np.float64]:
    """Draw probability of each cycle (n,), summing to 1.

    'class': inverse class frequency over the four classes (arXiv 2512.22564). 'binary': normal and abnormal in equal
    parts, the natural mix inside each; a class of thirty events is then not shown a hundred times an epoch.
    'none': all alike. Inside each of those groups a patient with c cycles is drawn in proportion to
    c ** (1 - `patient_balance`), so that a few much recorded patients do not stand for all.
    """
    groups = np.array([LABELS.index(label) for label in labels])
    if balance == "binary":
        groups = np.minimum(groups, 1)
    elif balance == "none":
        groups = np.zeros_like(groups)
    share = np.ones(len(groups))
    if patient_balance:
        own = list(zip(groups.tolist(), patients, strict=True))
        counts = Counter(own)
        share = np.array([counts[one] ** -patient_balance for one in own])
    inverse = share / np.bincount(groups, share)[groups]
    result: npt.NDArray[np.float64] = inverse / inverse.sum()
    return result


def draw(probabilities: npt.NDArray[np.float64], count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Indices (count,) of the cycles of one epoch, with replacement; the same for the same seed and epoch."""
    return np.random.default_rng((seed, epoch)).choice(len(probabilities), size=count, p=probabilities)
