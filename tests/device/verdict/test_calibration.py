"""A threshold that healthy people raise, against brute force over all rises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit

from device.bundle import CalibrationBounds, SiteRule
from device.verdict.calibration import CalibrationError, calibrated

RULE = SiteRule(threshold=0.5, stretch_cycles=6, least_cycles=2)
BOUNDS = CalibrationBounds(healthy_flagged=0.1, largest_shift=2.0, sensitivity_floor=0.75)


def flagged(rule: SiteRule, healthy: dict[str, list[float]]) -> int:
    return sum(any(site >= rule.threshold for site in sites) for sites in healthy.values())


@given(
    st.lists(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4), min_size=2, max_size=12),
    st.floats(0.0, 0.9),
)
def test_the_threshold_rises_as_little_as_needed_and_as_much_as_allowed(
    people: list[list[float]], share: float
) -> None:
    healthy = {str(number): sites for number, sites in enumerate(people)}
    found = calibrated(RULE, healthy, BOUNDS.model_copy(update={"healthy_flagged": share}))
    rise = logit(found.threshold) - logit(RULE.threshold)
    assert 0.0 <= rise <= BOUNDS.largest_shift + 1e-9
    allowed = share * len(people) + 1e-9
    assert flagged(found, healthy) <= allowed or rise == pytest.approx(BOUNDS.largest_shift)
    if rise > 0:
        lower = RULE.model_copy(update={"threshold": float(np.nextafter(found.threshold, 0.0))})
        assert flagged(lower, healthy) > allowed
    assert found.model_copy(update={"threshold": RULE.threshold}) == RULE


def test_a_person_counts_once_however_many_sites_are_flagged() -> None:
    healthy = {"a": [0.9, 0.8, 0.7, 0.6], **{str(number): [0.1, 0.2] for number in range(9)}}
    assert calibrated(RULE, healthy, BOUNDS) == RULE


@pytest.mark.parametrize(
    ("healthy", "said"),
    [({"a": [0.1]}, "1 healthy people are too few"), ({"a": [0.1], "b": []}, "b: no site with a verdict")],
)
def test_too_few_people_are_refused(healthy: dict[str, list[float]], said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        calibrated(RULE, healthy, BOUNDS)
