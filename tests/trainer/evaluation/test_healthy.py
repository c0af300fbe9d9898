"""A calibration on healthy people, read on people who were not used for it."""

from io import StringIO
from typing import cast

import numpy as np
import pytest
from rich.console import Console

from device.bundle import CalibrationBounds, SiteRule
from device.verdict.calibration import CalibrationError
from trainer.choices import HoldOut
from trainer.evaluation.healthy import ROUNDS, calibrate_on, healthy_people, strangers
from trainer.evaluation.outcome import Outcome, join
from trainer.metrics import NO_VERDICT
from trainer.view import show_strangers

RULE = SiteRule(threshold=0.4, stretch_cycles=6, least_cycles=2)
FAR = CalibrationBounds(largest_shift=10.0, sensitivity_floor=0.0)


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
    none = CalibrationBounds(largest_shift=0.0, sensitivity_floor=0.75)
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


def through(device: str, normal: np.ndarray, abnormal: np.ndarray) -> Outcome:
    """As `outcome_of`, through one stethoscope."""
    outcome = outcome_of(normal, abnormal)
    count = len(outcome.true)
    return Outcome(
        *(outcome.true, outcome.predicted, outcome.probability),
        patients=[f"{device} {patient}" for patient in outcome.patients],
        confounders={},
        recordings=[f"r{n}" for n in range(count)],
        start_seconds=np.zeros(count),
        end_seconds=np.ones(count),
        devices=[device] * count,
        sites=["p1"] * count,
        classes=np.full((count, 4), np.nan),
        corpora=["toy"] * count,
    )


def test_a_stethoscope_is_judged_by_what_the_others_chose() -> None:
    """Through the second one everything sounds more suspicious: its own threshold would be 0.8."""
    first = through("Meditron", np.full(20, 0.3), np.linspace(0.5, 0.9, 21))
    second = through("Litt3200", np.linspace(0.58, 0.78, 20), np.full(20, 0.9))
    found = {one.maker: one for one in strangers(join([first, second]))}
    assert set(found) == {"Littmann", "Meditron"}
    littmann = found["Littmann"]
    assert (littmann.patients, littmann.recordings, littmann.auroc) == (40, 40, 1.0)
    assert (littmann.sensitivity, littmann.specificity, littmann.threshold) == (1.0, 0.0, 0.4)
    assert set(littmann.calibrated) == {2, 5, 10}
    # three of four were found up to 0.61 through the other one: so far the healthy may raise it
    after = littmann.calibrated[5]["after"]
    assert after["threshold"] == pytest.approx(0.6, abs=0.02)
    assert (after["sensitivity"], after["specificity"]) == (1.0, pytest.approx(0.05, abs=0.05))


def test_stethoscopes_that_say_nothing_are_left_out() -> None:
    first = through("Meditron", np.full(4, 0.3), np.full(4, 0.7))
    ill = through("Litt3200", np.empty(0), np.full(6, 0.9))
    assert strangers(join([first, ill])) == []
    well = through("Yunting II", np.full(2, 0.2), np.full(4, 0.8))
    found = {one.maker: one for one in strangers(join([first, ill, well]))}
    assert set(found) == {"Meditron", "Yunting II"}
    assert set(found["Yunting II"].calibrated) == set()
    assert set(found["Meditron"].calibrated) == {2}


@pytest.mark.parametrize(("hold_out", "met"), [("maker", "never met the stethoscope"), ("patients", "met the steth")])
def test_a_table_says_whether_the_stethoscope_was_met(hold_out: HoldOut, met: str) -> None:
    first = through("Meditron", np.full(20, 0.3), np.linspace(0.5, 0.9, 21))
    second = through("Litt3200", np.linspace(0.58, 0.78, 20), np.full(20, 0.9))
    console = Console(width=200, file=StringIO())
    show_strangers(strangers(join([first, second])), hold_out, console)
    lines = cast("StringIO", console.file).getvalue().splitlines()
    assert met in lines[0]
    rows = [line.split() for line in lines[2:]]
    assert rows[0] == ["Littmann", "40", "40", "1.000", "1.000", "0.000", "0.400"]
    assert [row[:4] for row in rows[1:4]] == [["after", str(n), "healthy", "people"] for n in (2, 5, 10)]
