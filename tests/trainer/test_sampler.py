"""Weighted random sampling: drawn frequencies against the expectation, and the same draws for the same seed."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from device.labels import Label
from trainer.sampler import Balance, draw, weights

COUNTS: dict[Label, int] = {"normal": 700, "crackle": 200, "wheeze": 95, "both": 5}
LABELS = [label for label, count in COUNTS.items() for _ in range(count)]
DRAWS = 20_000


@pytest.mark.parametrize(
    ("balance", "shares"),
    [
        ("none", {"normal": 0.7, "crackle": 0.2, "wheeze": 0.095, "both": 0.005}),
        ("class", {"normal": 0.25, "crackle": 0.25, "wheeze": 0.25, "both": 0.25}),
        ("binary", {"normal": 0.5, "crackle": 0.5 * 200 / 300, "wheeze": 0.5 * 95 / 300, "both": 0.5 * 5 / 300}),
    ],
)
def test_drawn_frequencies_are_the_expected_ones(balance: Balance, shares: dict[Label, float]) -> None:
    probabilities = weights(LABELS, balance)
    assert probabilities.sum() == pytest.approx(1.0)
    counts = Counter(LABELS[index] for index in draw(probabilities, DRAWS, seed=0, epoch=0))
    observed = [counts[label] for label in shares]
    # a right sampler fails one seed in ten thousand; this seed is fixed
    assert chisquare(observed, [share * DRAWS for share in shares.values()]).pvalue > 1e-4


@pytest.mark.parametrize("balance", ["none", "class", "binary"])
def test_within_a_class_every_cycle_is_as_likely(balance: Balance) -> None:
    probabilities = weights(LABELS, balance)
    for label in ("normal", "crackle", "wheeze", "both"):
        assert len({probabilities[index] for index, other in enumerate(LABELS) if other == label}) == 1
    picked = draw(probabilities, DRAWS, seed=1, epoch=0)
    normal = np.bincount(picked[picked < 700], minlength=700)
    assert chisquare(normal).pvalue > 1e-4


@pytest.mark.parametrize("balance", ["none", "class", "binary"])
def test_an_absent_class_is_no_error(balance: Balance) -> None:
    np.testing.assert_allclose(weights(["normal", "both", "normal"], balance).sum(), 1.0)
    np.testing.assert_allclose(weights(["normal", "normal"], balance), [0.5, 0.5])


def test_the_same_seed_and_epoch_draw_the_same_and_others_do_not() -> None:
    probabilities = weights(LABELS, "class")
    first = draw(probabilities, 500, seed=3, epoch=2)
    np.testing.assert_array_equal(first, draw(probabilities, 500, seed=3, epoch=2))
    for seed, epoch in ((3, 3), (2, 2), (2, 3)):
        assert not np.array_equal(first, draw(probabilities, 500, seed=seed, epoch=epoch))
    np.testing.assert_array_equal(first[:100], draw(probabilities, 100, seed=3, epoch=2))


@pytest.mark.parametrize(("patient_balance", "ratio"), [(0.0, 9.0), (0.5, 3.0), (1.0, 1.0)])
def test_a_much_recorded_patient_is_tempered_inside_a_group(patient_balance: float, ratio: float) -> None:
    labels: list[Label] = [*["normal"] * 10, *["crackle"] * 10]  # type: ignore[list-item]
    patients = (["much"] * 9 + ["little"]) * 2
    probabilities = weights(labels, "binary", patients, patient_balance)
    for group in (slice(0, 10), slice(10, 20)):
        shares = probabilities[group]
        assert shares.sum() == pytest.approx(0.5)
        assert shares[:9].sum() / shares[9] == pytest.approx(ratio)
