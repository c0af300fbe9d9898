"""From a model's logits to the judgement of one cycle."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from device.bundle import BundleError
from device.model.judgement import abnormal_probability, judge, moments_of, pool, softmax
from device.signal import WINDOW_SAMPLES


def test_probabilities_are_scipys() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (50, 4)).astype(np.float32)
    expected = scipy.special.softmax(logits.astype(np.float64) / 1.7, axis=1)
    np.testing.assert_allclose(softmax(logits, 1.7), expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(abnormal_probability(logits, 1.7), 1 - expected[:, 0], rtol=1e-9, atol=1e-15)


def test_a_cycle_is_abnormal_from_the_threshold_on_and_named_by_its_likeliest_abnormal_class() -> None:
    # softmax of (ln 3, 0, 0, 0) is (1/2, 1/6, 1/6, 1/6)
    even = np.log(np.array([[[3.0, 1.0, 1.0, 1.0]]]))
    probability = float(abnormal_probability(pool(even))[0])
    assert probability == pytest.approx(0.5)
    assert judge(even, 1.0, probability).abnormal
    assert not judge(even, 1.0, np.nextafter(probability, 1)).abnormal
    # normal has the highest logit, yet the cycle is abnormal: the class is then sought among the abnormal ones
    heard = judge(np.array([[[1.0, 0.2, 0.9, 0.1]]]), 1.0, 0.5)
    assert (heard.abnormal, heard.label) == (True, "wheeze")
    assert judge(np.array([[[5.0, 0.2, 0.9, 0.1]]]), 1.0, 0.5).label == "normal"


def test_the_worst_window_speaks_for_a_long_cycle() -> None:
    logits = np.array([[4.0, 0, 0, 0], [0, 0, 0, 3.0], [4.0, 0, 2.0, 0]])
    heard = judge(logits[:, None], 1.0, 0.5)
    assert heard.label == "both"
    assert heard.probability == pytest.approx(float(abnormal_probability(logits).max()))


def test_pooling_is_the_log_of_the_mean_odds_against_normal() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (25, 4)).astype(np.float32)
    odds = np.exp(logits.astype(np.float64) - logits[:, :1].astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(pool(logits), np.log(odds), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(pool(np.stack([logits, logits]))[1], pool(logits))
    # odds that float64 cannot hold
    assert pool(np.array([[0.0, 2000.0, 0, 0], [0, 0, 0, 0]]))[1] == pytest.approx(2000 - np.log(2))


def test_one_moment_is_the_window_itself() -> None:
    logits = np.random.default_rng(1).normal(0, 5, (9, 1, 4)).astype(np.float32)
    expected = abnormal_probability(logits[:, 0], 1.3)
    np.testing.assert_allclose(abnormal_probability(pool(logits), 1.3), expected, rtol=1e-12)


@given(st.integers(1, 40), st.integers(0, WINDOW_SAMPLES - 1), st.integers(1, WINDOW_SAMPLES))
def test_the_moments_of_a_cycle_have_their_centre_in_it(moments: int, start: int, size: int) -> None:
    end = min(start + size, WINDOW_SAMPLES)
    centres = np.array([moment * WINDOW_SAMPLES / moments + 200 for moment in range(moments)])
    inside = np.flatnonzero((centres >= start) & (centres < end))
    if not inside.size:
        inside = np.array([np.abs(centres - (start + end) / 2).argmin()])
    np.testing.assert_array_equal(np.arange(moments)[moments_of((start, end), moments)], inside)


def test_only_the_moments_of_the_cycle_speak_and_every_moment_must_be_a_number() -> None:
    logits = np.zeros((1, 25, 4), np.float32)
    logits[0, :, 0] = 6.0
    logits[0, 10] = 0.0, 9.0, 0.0, 0.0  # centred at 51 400
    assert judge(logits, 1.0, 0.5, (50_000, 60_000)).label == "crackle"
    assert not judge(logits, 1.0, 0.5, (60_000, 70_000)).abnormal
    logits[0, 0, 0] = np.nan
    with pytest.raises(BundleError, match="answers NaN"):
        judge(logits, 1.0, 0.5, (60_000, 70_000))
