"""A calibration on healthy people, read on people who were not used for it."""

import numpy as np
import pytest

from device.bundle import Calibration, SiteRule
from device.calibration import CalibrationError
from trainer.evaluate import Outcome
from trainer.healthy import ROUNDS, calibrate_on, healthy_people
from trainer.metrics import NO_VERDICT

RULE = SiteRule(threshold=0.4, stretch_cycles=6, least_cycles=2)
FAR = Calibration(largest_shift=10.0, sensitivity_floor=0.0)


def outcome_of(normal: np.ndarray, abnormal: np.ndarray) -> Outcome:
    """One recording a person."""
    probability = np.concatenate([normal, abnormal])
    true = np.repeat([0, 1], [len(normal), len(abnormal)])
    predicted = (probability >= RULE.threshold).astype(np.int64)
    return Outcome(true, predicted, probability, [f"p{n}" for n in range(len(true))], {})


def test_a_stethoscope_that_flags_everybody_is_set_right() -> None:
    """Everything sounds twice as suspicious through it, but the ill still more than the healthy."""
    random = np.random.default_rng(0)
    read = calibrate_on(outcome_of(random.uniform(0.5, 0.6, 40), random.uniform(0.65, 0.9, 40)), RULE, FAR, 10)
    assert (read["before"]["sensitivity"], read["before"]["specificity"]) == (1.0, 0.0)
    assert read["after"]["sensitivity"] == 1.0 and read["after"]["specificity"] > 0.8
    assert (read["people"], read["rounds"]) == (10, ROUNDS)


def test_the_bounds_hold_and_a_threshold_never_falls() -> None:
    high = outcome_of(np.full(20, 0.9), np.full(20, 0.95))
    none = Calibration(largest_shift=0.0, sensitivity_floor=0.75)
    assert calibrate_on(high, RULE, none, 5)["after"] == calibrate_on(high, RULE, none, 5)["before"]
    low = outcome_of(np.full(20, 0.1), np.full(20, 0.95))
    assert calibrate_on(low, RULE, FAR, 5)["after"]["threshold"] == RULE.threshold


def test_only_people_without_any_finding_and_with_a_verdict_are_healthy() -> None:
    outcome = outcome_of(np.array([0.1, 0.2, 0.3]), np.array([0.9]))
    outcome.patients[3] = "p0"
    outcome.predicted[2] = NO_VERDICT
    assert healthy_people(outcome) == {"p1": [0.2]}


def test_too_few_healthy_people_are_one_line() -> None:
    outcome = outcome_of(np.full(5, 0.1), np.full(5, 0.9))
    with pytest.raises(CalibrationError, match="5 healthy people are too few to calibrate on 5"):
        calibrate_on(outcome, RULE, FAR, 5)
    with pytest.raises(CalibrationError, match="states no bounds"):
        calibrate_on(outcome, RULE, None, 2)
