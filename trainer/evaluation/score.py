"""What is counted from an outcome: rates in both conventions, areas, and both by class, device, site and age."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from device.labels import LABELS, NORMAL
from trainer.corpora.cycle import AGES, stage_of_life
from trainer.evaluation.outcome import Outcome
from trainer.metrics import (
    LEAST_PATIENTS,
    BoolArray,
    Float64Array,
    IntArray,
    Interval,
    area,
    auroc,
    average_precision,
    binary_rates,
    calibration_error,
    confusion,
    exact_rates,
    levels,
    patient_bootstrap,
    sensitivity_at,
    tally,
)

SPECIFICITIES: Final = (0.80, 0.90, 0.95)
# what is taken of a class and of a device, site or age, and where `headline` has it
OF_A_CLASS: Final[dict[str, tuple[str, ...]]] = {
    "any_abnormal": ("binary", "sensitivity"),
    "exact": ("exact", "sensitivity"),
    "auroc": ("auroc",),
}
OF_A_PLACE: Final = {name: ("binary", name) for name in ("sensitivity", "specificity", "score")}
Figures = dict[tuple[str, ...], float]
"""Readings by their place in `trainer evaluate --json`."""


def headline(outcome: Outcome) -> Callable[[IntArray], Figures]:
    """Rates in both conventions and the AUROC of any rows of an outcome."""
    abnormal, level = outcome.true > 0, levels(outcome.probability)

    def of(rows: IntArray) -> Figures:
        matrix = confusion(outcome.true[rows], outcome.predicted[rows])
        rates = {"binary": binary_rates(matrix), "exact": exact_rates(matrix)}
        figures: Figures = {("auroc",): area(tally(abnormal[rows], level[rows]))}
        return figures | {(key, name): value for key, rate in rates.items() for name, value in rate.by_name().items()}

    return of


def _details(outcome: Outcome, groups: dict[tuple[str, str], BoolArray]) -> Callable[[IntArray], Figures]:
    """All else that is read of any rows of an outcome; a class is read beside the normal rows."""
    main, abnormal, level = headline(outcome), outcome.true > 0, levels(outcome.probability)
    # a confounder's better direction is read off once: the interval must not take the better of two in every draw
    alone = {name: levels(_direction(abnormal, values) * values) for name, values in outcome.confounders.items()}

    def of(rows: IntArray) -> Figures:
        counts = tally(abnormal[rows], level[rows])
        figures: Figures = {("confounders", name): area(tally(abnormal[rows], it[rows])) for name, it in alone.items()}
        figures["auprc",] = average_precision(counts)
        figures["ece",] = calibration_error(abnormal[rows], outcome.probability[rows])
        figures |= {("sensitivity_at", f"{at:.2f}"): sensitivity_at(counts, at) for at in SPECIFICITIES}
        for (key, name), inside in groups.items():
            by_class = key == "per_class"
            part = main(rows[(inside | ~abnormal if by_class else inside)[rows]])
            figures |= {(key, name, to): part[place] for to, place in (OF_A_CLASS if by_class else OF_A_PLACE).items()}
        return figures

    return of


def _groups(outcome: Outcome) -> dict[tuple[str, str], BoolArray]:
    """The rows (n,) of every abnormal class, corpus, device, site and stage of life; '' where it is unknown."""
    years = outcome.confounders.get("age", np.full(len(outcome.true), np.nan))
    columns = {
        "per_class": np.asarray(LABELS)[outcome.true],
        "per_corpus": np.array(outcome.corpora),
        "per_device": np.array(outcome.devices),
        "per_site": np.array(outcome.sites),
        "per_age": np.array([stage_of_life(age) for age in years]),
    }
    groups = {
        (key, str(name)): column == name
        for key, column in columns.items()
        for name in sorted(set(column.tolist()), key=lambda one: (AGES.get(one, -1.0), one))
    }
    return {group: inside for group, inside in groups.items() if group != ("per_class", LABELS[NORMAL])}


def score(outcome: Outcome) -> dict[str, Any]:
    """What `trainer evaluate --json` prints of accuracy: every reading `{value, low, high}`, and the confusion matrix.

    A class, corpus, device, site or age of fewer than LEAST_PATIENTS has no interval: it would look too certain.
    """
    groups = _groups(outcome)
    parts = headline(outcome), _details(outcome, groups)

    def measured(rows: IntArray) -> Figures:
        return {path: value for part in parts for path, value in part(rows).items()}

    paths = list(measured(np.arange(len(outcome.true))))
    intervals = patient_bootstrap(outcome.patients, lambda rows: np.array(list(measured(rows).values())))
    counts = confusion(outcome.true, outcome.predicted).tolist()
    read: dict[str, Any] = {
        "n": len(outcome.true),
        "binary": {},
        "exact": {},
        "auroc": {},
        "confounders": {},
        "confusion": {"rows": list(LABELS), "columns": [*LABELS, "no verdict"], "counts": counts},
        "auprc": {},
        "ece": {},
        "sensitivity_at": {},
        "per_class": {},
        "per_corpus": {},
        "per_device": {},
        "per_site": {},
        "per_age": {},
    }
    for (key, name), inside in groups.items():
        patients = {patient for patient, within in zip(outcome.patients, inside, strict=True) if within}
        abnormal = int((outcome.true[inside] > 0).sum())
        read[key][name] = {"n": int(inside.sum()), "abnormal": abnormal, "patients": len(patients)}
    for path, interval in zip(paths, intervals, strict=True):
        place = read
        for name in path[:-1]:
            place = place[name]
        few = place.get("patients", LEAST_PATIENTS) < LEAST_PATIENTS
        place[path[-1]] = (Interval(interval.value, np.nan, np.nan) if few else interval).as_json()
    return read


def _direction(abnormal: Any, values: Float64Array) -> float:
    return -1.0 if auroc(abnormal, values) < 0.5 else 1.0
