"""Weighted random sampling (WRS): which cycles an epoch draws."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from device.labels import LABELS, Label
from trainer.run.recipe import Balance


def weights(
    labels: Sequence[Label],
    balance: Balance,
    patients: Sequence[str] = (),
    patient_balance: float = 0.0,
    *,
    corpora: Sequence[str] = (),
    corpus_balance: float = 0.0,
    devices: Sequence[str] = (),
    device_balance: float = 0.0,
    class_balance: float = 1.0,
) -> npt.NDArray[np.float64]:
    """Draw probability of each cycle (n,), summing to 1.

    Corpora are divided into stethoscopes, these into classes, these into patients. At each level a part of c cycles is
    drawn in proportion to c ** (1 - its balance): 0 draws every cycle alike, 1 every part, however many cycles it has.
    `balance` chooses the classes: 'class' all four (inverse class frequency, arXiv 2512.22564), 'binary'
    normal and abnormal, with the natural mix inside each (a class of thirty events is then not shown a hundred times an
    epoch), 'none' one.
    """
    classes = np.array([LABELS.index(label) for label in labels])
    if balance == "binary":
        classes = np.minimum(classes, 1)
    elif balance == "none":
        classes = np.zeros_like(classes)
    levels = (
        (corpora, corpus_balance),
        (devices, device_balance),
        (classes.tolist(), class_balance),
        (patients, patient_balance),
    )
    probability, parents = np.ones(1), np.zeros(len(classes), np.int64)
    for names, strength in levels:
        if not len(names):
            continue
        rows = list(zip(parents.tolist(), names, strict=True))
        numbers = {part: number for number, part in enumerate(dict.fromkeys(rows))}
        parts = np.array([numbers[row] for row in rows])
        above = np.array([parent for parent, _ in numbers])
        size = np.bincount(parts) ** (1.0 - strength)
        probability = probability[above] * size / np.bincount(above, size)[above]
        parents = parts
    result: npt.NDArray[np.float64] = probability[parents] / np.bincount(parents)[parents]
    return result


def draw(probabilities: npt.NDArray[np.float64], count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Indices (count,) of the cycles of one epoch, with replacement; the same for the same seed and epoch."""
    return np.random.default_rng((seed, epoch)).choice(len(probabilities), size=count, p=probabilities)
