"""Accuracy through a stethoscope that did not choose the threshold, before and after healthy people shift it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from device.bundle import CalibrationBounds, SiteRule
from device.verdict.calibration import CalibrationError, calibrated
from trainer.corpora.splits import maker
from trainer.evaluation.outcome import Outcome
from trainer.evaluation.recordings import calibration_of, site_rule_of, voices
from trainer.metrics import NO_VERDICT, BoolArray, auroc

ROUNDS: Final = 20  # of choosing other people
PEOPLE: Final = (2, 5, 10)  # healthy ones to calibrate on


def healthy_people(outcome: Outcome) -> dict[str, list[float]]:
    """The site probabilities of everybody in whom every recording is normal and has a verdict."""
    sites: dict[str, list[float]] = defaultdict(list)
    excluded = set()
    for patient, true, predicted, probability in zip(
        outcome.patients, outcome.true, outcome.predicted, outcome.probability, strict=True
    ):
        sites[patient].append(float(probability))
        if true > 0 or predicted == NO_VERDICT:
            excluded.add(patient)
    return {patient: values for patient, values in sites.items() if patient not in excluded}


def calibrate_on(
    outcome: Outcome, rule: SiteRule, calibration: CalibrationBounds | None, people: int, seed: int = 0
) -> dict[str, Any]:
    """Se and Sp of an outcome of `recordings` before and after a calibration on so many healthy people.

    Mean over ROUNDS of choosing them; whoever is chosen is not read. CalibrationError when there are too few.
    """
    if calibration is None:
        raise CalibrationError("this model states no bounds for a calibration; build it again with 'trainer fit'")
    healthy = healthy_people(outcome)
    if len(healthy) <= people:
        raise CalibrationError(
            f"{len(healthy)} healthy people are too few to calibrate on {people} and read the others; lower "
            "--calibrate-on, or read a corpus with more of them"
        )
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(ROUNDS):
        chosen = random.choice(sorted(healthy), people, replace=False).tolist()
        shifted = calibrated(rule, {person: healthy[person] for person in chosen}, calibration)
        read = ~np.isin(outcome.patients, chosen)
        before, after = (rates(outcome, one.threshold, read) for one in (rule, shifted))
        rows.append((*before, *after, shifted.threshold))
    mean = [round(float(value), 4) for value in np.mean(rows, axis=0)]
    return {
        "people": people,
        "rounds": ROUNDS,
        "before": {"sensitivity": mean[0], "specificity": mean[1], "threshold": round(rule.threshold, 4)},
        "after": {"sensitivity": mean[2], "specificity": mean[3], "threshold": mean[4]},
    }


def rates(outcome: Outcome, threshold: float, read: BoolArray) -> tuple[float, float]:
    """Se and Sp of the `read` recordings (n,) at a site threshold; one without a verdict is wrong on both sides."""
    given = outcome.predicted != NO_VERDICT
    flagged, abnormal = outcome.probability >= threshold, outcome.true > 0
    return float((flagged & given)[read & abnormal].mean()), float((~flagged & given)[read & ~abnormal].mean())


@dataclass(frozen=True)
class Stranger:
    """Recordings through one maker's stethoscopes, with the site threshold that recordings through the others chose."""

    maker: str
    patients: int
    recordings: int
    auroc: float
    sensitivity: float
    specificity: float
    threshold: float
    calibrated: dict[int, dict[str, Any]]
    """`calibrate_on` so many healthy people, where there are enough."""


def strangers(outcome: Outcome, people: Sequence[int] = PEOPLE) -> list[Stranger]:
    """Every maker's stethoscopes in an outcome of `recordings`, as strangers to the threshold.

    Those with normal or abnormal recordings only are left out, and all where no other maker has both.
    """
    makers = np.array([maker(device) for device in outcome.devices])
    abnormal, given = outcome.true > 0, outcome.predicted != NO_VERDICT
    found = []
    for name in sorted(set(makers)):
        own, others = np.flatnonzero(makers == name), np.flatnonzero(makers != name)
        if any(len(np.unique(abnormal[rows])) < 2 for rows in (own, others)):
            continue
        elsewhere, here = outcome.at(others), outcome.at(own)
        groups = voices(elsewhere.devices, elsewhere.patients)
        rule, curve = site_rule_of(abnormal[others], elsewhere.probability, groups, given[others])
        calibration, enough = calibration_of(rule, curve), len(healthy_people(here))
        found.append(
            Stranger(
                name,
                len(set(here.patients)),
                len(own),
                auroc(abnormal[own], here.probability),
                *rates(here, rule.threshold, np.ones(len(own), np.bool_)),
                rule.threshold,
                {count: calibrate_on(here, rule, calibration, count) for count in people if count < enough},
            )
        )
    return found
