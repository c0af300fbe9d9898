"""Refusal of recordings against brute force, the fit of its limit, and what the simulator's faults come to."""

import numpy as np
import pytest

from device.breath.quality import QualityMeasures
from firmware_config.settings import load_settings
from trainer.breaths.grading import Group, Heard, fit_clarity, group_of, refused_shares, shares, simulated
from trainer.corpora.cycle import Recording

SETTINGS = load_settings(environment={}).quality
GOOD = QualityMeasures(-40.0, 0.0, -10.0, 2.0, 0.0, 0.0)


def heard(group: Group, clarities: list[float | None]) -> Heard:
    return Heard(group, tuple((GOOD, clarity, 20.0) for clarity in clarities))


@pytest.mark.parametrize(
    ("clarities", "refused"),
    [([], True), ([0.1], True), ([0.1, 0.9], False), ([0.1, 0.1, 0.9], True), ([None, 0.1], False), ([None], False)],
)
def test_a_recording_is_refused_when_most_of_it_is(clarities: list[float | None], refused: bool) -> None:
    assert heard("normal", clarities).refused(SETTINGS) == refused


def test_shares_of_each_group() -> None:
    assert shares([("normal", True), ("normal", False), ("abnormal", False)]) == {"abnormal": 0.0, "normal": 0.5}


def test_the_fitted_limit_keeps_the_price_in_both_groups() -> None:
    random = np.random.default_rng(0)
    recordings = [heard("normal", [float(c)]) for c in random.normal(0.7, 0.08, 300)]
    recordings += [heard("abnormal", [float(c)]) for c in random.normal(0.6, 0.08, 200)]
    recordings += [heard("poor quality", [float(c)]) for c in random.normal(0.4, 0.1, 100)]
    fitted = fit_clarity(recordings, SETTINGS, price=0.05)
    reached = refused_shares(recordings, fitted)
    assert max(reached["normal"], reached["abnormal"]) <= 0.05
    # the abnormal ones are the harder: a hundredth more would cost too many of them
    more = fitted.model_copy(update={"minimum_clarity": fitted.minimum_clarity + 0.01})
    assert refused_shares(recordings, more)["abnormal"] > 0.05
    assert reached["poor quality"] > 0.6


def test_no_limit_is_fitted_where_even_the_lowest_costs_too_much() -> None:
    assert fit_clarity([heard("abnormal", [0.0])] * 10, SETTINGS).minimum_clarity == 0.0


@pytest.mark.parametrize(
    ("label", "group"), [("poor quality", "poor quality"), ("normal", "normal"), ("both", "abnormal")]
)
def test_groups(label: str, group: str) -> None:
    assert group_of(Recording("one", None, "patient", "", "", None, "", label, ())) == group


def test_the_simulator_clean_and_with_its_faults() -> None:
    refused = simulated(SETTINGS)
    assert refused["clean normal"] == refused["clean abnormal"] == refused["loud heart"] == 0.0
    assert refused["contact noise"] > 0.6
    assert refused["overloaded"] == refused["too quiet"] == 1.0
