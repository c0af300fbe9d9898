"""Probabilities against scipy, the site's rule against brute force over all stretches of cycles."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from device.bundle import SiteRule
from device.decision import Judgement, SiteDecision, abnormal_probability, judge, softmax, sounds
from device.labels import LABELS

RULE = SiteRule(k=2, n=4, threshold=0.6, least_cycles=3)


def judgement(probability: float, leading: int = 1) -> Judgement:
    return Judgement(probability, probability >= 0.5, LABELS[leading])


def decided(rule: SiteRule, *probabilities: float, refused: int = 0) -> SiteDecision:
    decision = SiteDecision(rule)
    for probability in probabilities:
        decision.add(judgement(probability))
    for _ in range(refused):
        decision.refuse("too quiet")
    return decision


@pytest.mark.parametrize(
    ("probabilities", "verdict"), [((), "not enough"), ((0.1,) * 9, "not enough"), ((0.1, 0.9, 0.9, 0.1), "flagged")]
)
def test_a_model_that_failed_withdraws_no_flag_and_clears_nobody(
    probabilities: tuple[float, ...], verdict: str
) -> None:
    decision = decided(RULE, *probabilities)
    decision.failure = "the model answers NaN"
    assert decision.verdict == verdict
    assert (decision.reasons[0] == "the model answers NaN") == (verdict != "flagged")


def test_probabilities_are_scipys() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (50, 4)).astype(np.float32)
    expected = scipy.special.softmax(logits.astype(np.float64) / 1.7, axis=1)
    np.testing.assert_allclose(softmax(logits, 1.7), expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(abnormal_probability(logits, 1.7), 1 - expected[:, 0], rtol=1e-9, atol=1e-15)


def test_a_cycle_is_abnormal_from_the_threshold_on_and_named_by_its_likeliest_abnormal_class() -> None:
    # softmax of (ln 3, 0, 0, 0) is (1/2, 1/6, 1/6, 1/6)
    even = np.log(np.array([[3.0, 1.0, 1.0, 1.0]]))
    probability = float(abnormal_probability(even)[0])
    assert probability == pytest.approx(0.5)
    assert judge(even, 1.0, probability).abnormal
    assert not judge(even, 1.0, np.nextafter(probability, 1)).abnormal
    # normal has the highest logit, yet the cycle is abnormal: the class is then sought among the abnormal ones
    heard = judge(np.array([[1.0, 0.2, 0.9, 0.1]]), 1.0, 0.5)
    assert (heard.abnormal, heard.label) == (True, "wheeze")
    assert judge(np.array([[5.0, 0.2, 0.9, 0.1]]), 1.0, 0.5).label == "normal"


def test_the_worst_window_speaks_for_a_long_cycle() -> None:
    logits = np.array([[4.0, 0, 0, 0], [0, 0, 0, 3.0], [4.0, 0, 2.0, 0]])
    heard = judge(logits, 1.0, 0.5)
    assert heard.label == "both"
    assert heard.probability == pytest.approx(float(abnormal_probability(logits).max()))


@given(st.lists(st.floats(0, 1), max_size=14), st.integers(1, 3), st.integers(3, 6))
def test_a_site_is_flagged_when_k_of_any_n_cycles_in_a_row_reach_the_threshold(
    probabilities: list[float], k: int, n: int
) -> None:
    decision = decided(SiteRule(k=k, n=n, threshold=0.6, least_cycles=k), *probabilities)
    rows = [probabilities[start : start + n] for start in range(len(probabilities))]
    assert (decision.verdict == "flagged") == any(sum(one >= 0.6 for one in row) >= k for row in rows)


@given(st.lists(st.floats(0.01, 0.99), max_size=14), st.integers(1, 3), st.integers(3, 6))
def test_cycles_speak_together_by_the_mean_of_their_log_odds(probabilities: list[float], k: int, n: int) -> None:
    rule = SiteRule(pooling="mean", k=k, n=n, threshold=0.6, least_cycles=k)
    rows = [probabilities[max(0, end - n) : end] for end in range(1, len(probabilities) + 1)]
    means = [float(scipy.special.expit(np.mean(scipy.special.logit(row)))) for row in rows if len(row) >= k]
    if means:
        assert decided(rule, *probabilities).probability == pytest.approx(max(means))
    else:
        assert decided(rule, *probabilities).probability is None


def test_one_certain_cycle_does_not_outweigh_all_others() -> None:
    rule = SiteRule(pooling="mean", k=3, threshold=0.5, least_cycles=3)
    assert decided(rule, 1.0, 0.02, 0.02, 0.02, 0.02).verdict == "nothing flagged"


@pytest.mark.parametrize("rule", [RULE, SiteRule(pooling="mean", k=2, n=4, threshold=0.6, least_cycles=3)])
@given(heard=st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=20))
def test_a_flag_is_never_withdrawn_and_its_probability_never_falls(rule: SiteRule, heard: list[float | None]) -> None:
    decision, flagged, highest = SiteDecision(rule), False, 0.0
    for probability in heard:
        if probability is None:
            decision.refuse("too quiet")
        else:
            decision.add(judgement(probability))
        assert decision.verdict == "flagged" or not flagged
        assert (decision.probability or 0.0) >= highest
        flagged, highest = decision.verdict == "flagged", decision.probability or 0.0


def test_flagged_outranks_not_enough() -> None:
    assert decided(RULE, 0.9, 0.7).verdict == "flagged"
    assert decided(RULE, 0.9, 0.7).probability == 0.7


def test_too_few_gradable_cycles_are_not_enough_and_mostly_ungradable_ones_poor_quality() -> None:
    assert decided(RULE).verdict == "not enough"
    assert decided(RULE, 0.9).verdict == "not enough"
    assert decided(RULE, 0.9).probability is None
    assert decided(RULE, 0.1, 0.1).reasons == ["2 gradable cycles, 3 are needed; listen longer"]
    assert decided(RULE, 0.1, 0.1, refused=2).verdict == "not enough"
    assert decided(RULE, 0.1, 0.1, refused=3).verdict == "poor quality"
    assert decided(RULE, refused=3).reasons == ["too quiet (3 cycles)"]
    assert decided(RULE, 0.1, 0.1, 0.1, refused=9).verdict == "nothing flagged"


def test_reasons_name_what_was_heard() -> None:
    decision = SiteDecision(RULE)
    for leading in (1, 2, 1):
        decision.add(judgement(0.8, leading))
    assert decision.reasons == ["crackle and wheeze, 3 of 3 cycles flagged"]
    # cycles flagged on their own are counted as the page counts them, whatever the site's threshold is
    together = RULE.model_copy(update={"threshold": 0.4})
    assert decided(together, 0.8, 0.45, 0.1).reasons == ["crackle, 1 of 3 cycles flagged"]
    assert decided(together, 0.45, 0.45, 0.1).reasons == ["crackle, only cycles together"]
    assert decided(RULE, 0.1, 0.2, 0.1).reasons == []
    assert decided(RULE, 0.1, 0.9, 0.1).reasons[0].startswith("1 of 3 cycles abnormal, not enough for the site (2 of 4")


def test_a_rule_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(ValidationError, match="3 of 2 cycles in a row is impossible"):
        SiteRule(k=3, n=2, threshold=0.5, least_cycles=3)


def test_both_is_told_as_its_two_sounds() -> None:
    assert sounds(["both"]) == ["crackle", "wheeze"]
    assert sounds(["both", "crackle"]) == ["crackle", "wheeze"]
    assert sounds(["wheeze", "wheeze"]) == ["wheeze"]
