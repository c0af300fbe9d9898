"""Probabilities against scipy, pooling against plain numpy, the site's rule against brute force over stretches."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from device.bundle import SiteRule
from device.labels import LABELS
from device.model.judgement import Judgement
from device.verdict.site import SiteDecision, sounds, together

RULE = SiteRule(threshold=0.6, stretch_cycles=4, least_cycles=2)


def judgement(probability: float, leading: int = 1) -> Judgement:
    return Judgement(probability, probability >= 0.5, LABELS[leading])


def decided(rule: SiteRule, *probabilities: float, refused: int = 0, ended: bool = True) -> SiteDecision:
    decision = SiteDecision(rule)
    decision.ended = ended
    for probability in probabilities:
        decision.add(judgement(probability))
    for _ in range(refused):
        decision.refuse("too quiet")
    return decision


@pytest.mark.parametrize(
    ("probabilities", "verdict"), [((), "not enough"), ((0.1,) * 9, "not enough"), ((0.9,) * 4, "flagged")]
)
def test_a_model_that_failed_withdraws_no_flag_and_clears_nobody(
    probabilities: tuple[float, ...], verdict: str
) -> None:
    decision = decided(RULE, *probabilities)
    decision.failure = "the model answers NaN"
    assert decision.verdict == verdict
    assert (decision.reasons[0] == "the model answers NaN") == (verdict != "flagged")


@given(st.lists(st.floats(0.01, 0.99), max_size=14), st.integers(2, 6))
def test_a_site_is_flagged_when_its_first_stretch_reaches_the_threshold_together(
    probabilities: list[float], stretch: int
) -> None:
    rule = SiteRule(threshold=0.6, stretch_cycles=stretch, least_cycles=2)
    first = probabilities[:stretch]
    reached = len(first) >= 2 and float(scipy.special.expit(np.mean(scipy.special.logit(first)))) >= 0.6
    assert (decided(rule, *probabilities).verdict == "flagged") == reached


@given(st.lists(st.floats(0.01, 0.99), max_size=14))
def test_cycles_speak_together_by_the_mean_of_their_log_odds(probabilities: list[float]) -> None:
    first = probabilities[:4]
    if len(first) < 2:
        assert decided(RULE, *probabilities).probability is None
    else:
        expected = float(scipy.special.expit(np.mean(scipy.special.logit(first))))
        assert decided(RULE, *probabilities).probability == pytest.approx(expected)


def test_one_certain_cycle_does_not_outweigh_all_others() -> None:
    assert together(np.array([1.0, 0.02, 0.02, 0.02])) < 0.5


@given(heard=st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=20))
def test_a_verdict_is_never_withdrawn_and_does_not_change_with_listening(
    heard: list[float | None],
) -> None:
    decision, said = SiteDecision(RULE), "not enough"
    complete: tuple[str, float | None] | None = None
    for probability in heard:
        if probability is None:
            decision.refuse("too quiet")
        else:
            decision.add(judgement(probability))
        now = decision.verdict
        assert now == said or said in ("not enough", "poor quality")
        assert decision.stretches or now != "nothing flagged"
        if complete is not None:
            assert complete == (now, decision.probability)
        if decision.stretches:
            complete = (now, decision.probability)
        said = now
    decision.end()
    assert decision.verdict == said or said in ("not enough", "poor quality")
    assert complete is None or complete == (decision.verdict, decision.probability)


def test_later_stretches_are_counted_and_change_nothing() -> None:
    decision = decided(RULE, *[0.1] * 4, *[0.9] * 4, *[0.9] * 3, ended=False)
    assert decision.verdict == "nothing flagged"
    assert decision.probability == pytest.approx(0.1)
    assert (decision.stretches, decision.stretches_flagged, decision.breaths_wanted) == (2, 1, 1)


def test_a_running_stretch_says_how_many_good_breaths_it_still_needs() -> None:
    assert decided(RULE, 0.1, ended=False).reasons == ["3 more good breaths"]
    assert decided(RULE, 0.1, 0.1, 0.1, refused=1, ended=False).reasons == [
        "1 more good breath",
        "too quiet (1 cycle)",
    ]


def test_a_flag_that_no_further_breath_can_change_is_said_at_once() -> None:
    assert decided(RULE, *[0.999] * 3, ended=False).verdict == "flagged"
    assert decided(RULE, 0.999, 0.999, ended=False).verdict == "not enough"
    assert decided(RULE, 0.7, 0.7, ended=False).verdict == "not enough"
    assert decided(RULE, 0.7, 0.7).verdict == "flagged"


def test_too_few_gradable_cycles_are_not_enough_and_mostly_ungradable_ones_poor_quality() -> None:
    assert decided(RULE).verdict == "not enough"
    assert decided(RULE, 0.9).verdict == "not enough"
    assert decided(RULE, 0.9).probability is None
    assert decided(RULE, 0.1).reasons == ["1 good breath, 2 are needed; listen longer"]
    assert decided(RULE, 0.1, refused=1).verdict == "not enough"
    assert decided(RULE, 0.1, refused=2).verdict == "poor quality"
    assert decided(RULE, refused=3).reasons == ["too quiet (3 cycles)"]
    assert decided(RULE, 0.1, 0.1, refused=9).verdict == "nothing flagged"


def test_one_sentence_says_why() -> None:
    decision = SiteDecision(RULE)
    for probability, leading in ((0.8, 1), (0.7, 2), (0.5, 1), (0.5, 3)):
        decision.add(judgement(probability, leading))
    decision.end()
    assert decision.reasons == ["crackle and wheeze: 4 breaths together 0.64, flagged from 0.60"]
    assert decided(RULE, 0.8, 0.8).reasons == ["crackle: 2 breaths together 0.80, flagged from 0.60"]
    assert decided(RULE, 0.1, 0.1, 0.1).reasons == ["3 breaths together 0.10, flagged from 0.60"]


def test_a_rule_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(ValidationError, match="least_cycles 3 is more than stretch_cycles 2"):
        SiteRule(threshold=0.5, stretch_cycles=2, least_cycles=3)


def test_both_is_told_as_its_two_sounds() -> None:
    assert sounds(["both"]) == ["crackle", "wheeze"]
    assert sounds(["both", "crackle"]) == ["crackle", "wheeze"]
    assert sounds(["wheeze", "wheeze"]) == ["wheeze"]
