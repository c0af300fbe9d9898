"""The metrics against scikit-learn, a hand count, and brute force."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score, roc_auc_score

from trainer.metrics import (
    NO_VERDICT,
    BoolArray,
    Float64Array,
    IntArray,
    Interval,
    Rates,
    auroc,
    balanced_curve,
    best_row,
    binary_rates,
    choose_threshold,
    confusion,
    exact_rates,
    fit_temperature,
    operating_curve,
    patient_bootstrap,
)


def guesses(seed: int, count: int = 400) -> tuple[IntArray, IntArray]:
    random = np.random.default_rng(seed)
    true = random.choice(4, count, p=[0.6, 0.25, 0.1, 0.05])
    return true, np.where(random.random(count) < 0.6, true, random.integers(0, 4, count))


def scored(seed: int, count: int = 60, decimals: int = 2) -> tuple[BoolArray, Float64Array]:
    """Overlapping classes with ties."""
    random = np.random.default_rng(seed)
    abnormal = random.random(count) < 0.3
    abnormal[:2] = (True, False)
    return abnormal, np.clip(random.normal(0.4 + 0.2 * abnormal, 0.2), 0, 1).round(decimals)


@pytest.mark.parametrize("seed", range(5))
def test_rates_equal_scikit_learn(seed: int) -> None:
    true, predicted = guesses(seed)
    matrix = confusion(true, predicted)
    np.testing.assert_array_equal(matrix, confusion_matrix(true, predicted, labels=range(5))[:4])
    binary = binary_rates(matrix)
    assert binary.sensitivity == pytest.approx(recall_score(true > 0, predicted > 0))
    assert binary.specificity == pytest.approx(recall_score(true == 0, predicted == 0))
    exact = exact_rates(matrix)
    recalls = recall_score(true, predicted, labels=[1, 2, 3], average=None)
    assert exact.sensitivity == pytest.approx(np.average(recalls, weights=np.bincount(true, minlength=4)[1:]))
    assert exact.specificity == binary.specificity


def test_the_two_conventions_on_a_hand_count() -> None:
    """10 normal, 8 kept; 4 crackles: 2 named, 1 called wheeze, 1 missed; 4 wheezes: 1 named, 2 called both, 1 missed;
    2 both: 1 named, 1 called crackle. ICBHI 2017's official Se counts 4 of 10, the binary one 8 of 10."""
    matrix = np.array([[8, 1, 1, 0, 0], [1, 2, 1, 0, 0], [1, 0, 1, 2, 0], [0, 1, 0, 1, 0]])
    assert exact_rates(matrix) == Rates(0.4, 0.8)
    assert binary_rates(matrix) == Rates(0.8, 0.8)
    assert exact_rates(matrix).score == pytest.approx(0.6)
    assert binary_rates(matrix).score == pytest.approx(0.8)


def test_no_verdict_is_wrong_on_both_sides() -> None:
    true, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, NO_VERDICT, 1, NO_VERDICT, 3])
    matrix = confusion(true, predicted)
    assert matrix.sum() == 5
    assert binary_rates(matrix) == Rates(pytest.approx(2 / 3), 0.5)  # type: ignore[arg-type]
    assert exact_rates(matrix) == Rates(pytest.approx(1 / 3), 0.5)  # type: ignore[arg-type]


def test_a_rate_without_cases_is_unknown_not_zero() -> None:
    matrix = confusion(np.zeros(5, np.int64), np.zeros(5, np.int64))
    assert np.isnan(binary_rates(matrix).sensitivity)
    assert binary_rates(matrix).specificity == 1.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [1, 15])
def test_auroc_equals_scikit_learn_with_and_without_ties(seed: int, decimals: int) -> None:
    abnormal, score = scored(seed, 300, decimals)
    assert auroc(abnormal, score) == pytest.approx(roc_auc_score(abnormal, score), abs=1e-12)


def test_auroc_of_one_class_is_unknown() -> None:
    assert np.isnan(auroc(np.ones(4, bool), np.arange(4.0)))
    assert np.isnan(auroc(np.zeros(4, bool), np.arange(4.0)))


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_the_best_of_all_with_se_not_below_sp(seed: int) -> None:
    abnormal, probability = scored(seed)
    threshold, rates = choose_threshold(abnormal, probability)
    best = 0.0
    for candidate in np.concatenate([[0.0], np.unique(probability) + 1e-9, [1.0]]):
        called = probability >= candidate
        se, sp = called[abnormal].mean(), (~called[~abnormal]).mean()
        if se >= sp:
            best = max(best, (se + sp) / 2)
    assert rates.score == pytest.approx(best)
    assert rates.sensitivity >= rates.specificity
    called = probability >= threshold
    assert rates.sensitivity == pytest.approx(recall_score(abnormal, called))
    assert rates.specificity == pytest.approx(recall_score(~abnormal, ~called))


def test_a_missed_patient_is_the_worst_outcome() -> None:
    """Se = 0.75 with Sp = 1 would score more, but it misses more of the ill than it alarms of the healthy."""
    abnormal = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    probability = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.25, 0.7, 0.8, 0.9])
    threshold, rates = choose_threshold(abnormal, probability)
    assert rates == Rates(0.75, pytest.approx(4 / 6))  # type: ignore[arg-type]
    assert 0.4 < threshold < 0.5


def test_equal_shares_are_equal_to_the_last_bit() -> None:
    """Se = Sp = 1 / 10 must pass Se >= Sp; 1 - 9 / 10 is a little less than 1 / 10."""
    abnormal = np.repeat([True, False], 10)
    probability = np.concatenate([np.full(9, 0.2), [0.9], [0.1], np.full(9, 0.9)])
    curve = operating_curve(abnormal, probability)
    assert [(se, sp) for _, se, sp in curve if 0 < sp < 1] == [(1.0, 0.1), (0.1, 0.1)]


def test_the_curve_is_that_of_the_shown_rule() -> None:
    abnormal, probability = scored(3)
    curve = operating_curve(abnormal, probability.astype(np.float32))
    assert (np.diff(curve[:, 0]) > 0).all()
    for threshold, se, sp in curve:
        called = probability.astype(np.float32) >= threshold
        assert se == pytest.approx(called[abnormal].mean())
        assert sp == pytest.approx((~called[~abnormal]).mean())


@pytest.mark.parametrize("value", [True, False])
def test_one_class_has_no_threshold(value: bool) -> None:
    with pytest.raises(ValueError, match="absent"):
        choose_threshold(np.full(4, value), np.linspace(0, 1, 4))


@pytest.mark.parametrize("seed", range(3))
def test_a_curve_over_one_group_is_the_plain_one(seed: int) -> None:
    abnormal, probability = scored(seed)
    np.testing.assert_allclose(
        balanced_curve(abnormal, probability, ["a"] * len(abnormal)), operating_curve(abnormal, probability), atol=1e-12
    )


def test_in_a_balanced_curve_every_group_counts_alike() -> None:
    """A group of ten and one of two hundred, beside one of normal rows alone and one of abnormal rows alone."""
    parts = [scored(0, 10), scored(1, 200), (np.zeros(5, np.bool_), np.linspace(0.1, 0.6, 5))]
    parts.append((np.ones(4, np.bool_), np.linspace(0.3, 0.9, 4)))
    abnormal, probability = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    groups = np.repeat(["few", "many", "normal", "abnormal"], [len(one) for one, _ in parts]).tolist()
    curve = balanced_curve(abnormal, probability, groups)
    assert curve[0].tolist() == [0.0, 1.0, 0.0] and (np.diff(curve[:, 0]) > 0).all()
    for threshold, sensitivity, specificity in curve:
        found = [(p[a] >= threshold).mean() for a, p in parts if a.any()]
        kept = [(p[~a] < threshold).mean() for a, p in parts if not a.all()]
        assert (sensitivity, specificity) == pytest.approx((np.mean(found), np.mean(kept)))
    best = best_row(curve)
    assert best[1] >= best[2]
    assert best[1] + best[2] == max(se + sp for _, se, sp in curve if se >= sp)


def test_what_is_not_counted_is_wrong_at_every_threshold() -> None:
    abnormal, probability = np.array([True, True, False, False]), np.array([0.9, 0.0, 0.1, 0.0])
    curve = balanced_curve(abnormal, probability, ["a"] * 4, np.array([True, False, True, False]))
    assert curve[:, 1].max() == 0.5 and curve[:, 2].max() == 0.5
    with pytest.raises(ValueError, match="absent"):
        balanced_curve(np.ones(2, np.bool_), np.array([0.1, 0.2]), ["a", "a"])


def hits_of_patients(seed: int, patients: int = 40, cycles: int = 10) -> BoolArray:
    """Every patient's cycles are right together or wrong together, 70 % of the patients right."""
    return np.repeat(np.random.default_rng(seed).random(patients) < 0.7, cycles)


def test_the_interval_resamples_patients_not_cycles() -> None:
    """Against the textbook width 2 * 1.96 * sqrt(p q / n): n counts patients, since the cycles of each are alike."""
    hits = hits_of_patients(0)
    owners = [f"p{index // 10}" for index in range(len(hits))]

    def statistic(indices: IntArray) -> Float64Array:
        return np.array([hits[indices].mean()])

    (by_patient,) = patient_bootstrap(owners, statistic)
    (by_cycle,) = patient_bootstrap([str(index) for index in range(len(hits))], statistic)
    p = hits.mean()
    assert by_patient.value == p
    assert by_patient.high - by_patient.low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 40), rel=0.15)
    assert by_cycle.high - by_cycle.low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.15)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    owners = [f"p{index // 10}" for index in range(400)]
    covered = 0
    for seed in range(60):
        hits = hits_of_patients(seed)
        (interval,) = patient_bootstrap(owners, lambda indices, h=hits: np.array([h[indices].mean()]), rounds=300)  # type: ignore[misc]
        covered += interval.low <= 0.7 <= interval.high
    assert covered >= 50  # 95 % of 60 is 57; under that rate fewer than 51 would come once in several hundred runs


def test_the_interval_is_the_same_every_time_and_unknown_where_nothing_is_known() -> None:
    owners = ["a", "a", "b", "c"]

    def statistic(indices: IntArray) -> Float64Array:
        return np.array([indices.mean(), np.nan])

    once, again = patient_bootstrap(owners, statistic), patient_bootstrap(owners, statistic)
    assert once[0] == again[0]
    assert once[1].as_json() == {"value": None, "low": None, "high": None}
    assert str(once[1]) == "-"
    assert Interval(0.81234, 0.7, 0.9).as_json() == {"value": 0.8123, "low": 0.7, "high": 0.9}


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 8.0])
def test_the_temperature_of_overconfident_logits_is_recovered(temperature: float) -> None:
    """Labels are drawn from softmax(logits), and the model is then shown as `temperature` times too sure."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (20_000, 4))
    # the Gumbel trick: an arg max of noisy logits is a draw from their softmax
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)
