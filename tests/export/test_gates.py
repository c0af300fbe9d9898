"""What a converted file loses: hand-made logits whose readings are known."""

import numpy as np
import pytest

from device.labels import LABELS
from device.signal import FloatArray
from export.gates import Comparison, compare, gate_patients
from trainer.evaluation.validation import Validation

PATIENTS = 20
TEMPERATURE, THRESHOLD = 1.0, 0.5


def held() -> Validation:
    """Five stretches a patient, the last two of each normal; a stretch is one window."""
    made = Validation.__new__(Validation)
    made.labels = np.tile([1, 2, 3, 0, 0], PATIENTS)
    made.patients = [f"p{number}" for number in range(PATIENTS) for _ in range(5)]
    made.owner = np.arange(len(made.labels))
    return made


def logits(margin: FloatArray) -> FloatArray:
    """`margin` over normal for the true class, or crackle where that is normal; nothing for the others."""
    result = np.full((len(margin), 1, len(LABELS)), -20.0, np.float32)
    result[..., 0] = 0.0
    result[np.arange(len(margin)), 0, np.maximum(held().labels, 1)] = margin
    return result


@pytest.fixture
def margins() -> FloatArray:
    spread = np.random.default_rng(0).uniform(0.5, 1.5, 5 * PATIENTS)
    return (np.where(held().labels > 0, 2.0, -2.0) * spread).astype(np.float32)


def of(before: FloatArray, after: FloatArray) -> Comparison:
    return compare(logits(before), logits(after), held(), TEMPERATURE, THRESHOLD)


def test_the_same_logits_lose_nothing(margins: FloatArray) -> None:
    same = of(margins, margins)
    assert (same.agreement, same.relative_error, same.divergence, same.lost) == (1.0, 0.0, 0.0, 0.0)
    assert same.unchanged.score.low == same.unchanged.score.high == 0.0
    assert same.near and same.turned.stretches == 0


def test_verdicts_of_a_few_patients_that_turn_are_counted_in_both_readings(margins: FloatArray) -> None:
    wrong = margins.copy()
    wrong[:5] = [-4.0, -4.0, -4.0, 4.0, 4.0]  # one patient of twenty, surely wrong
    found = of(margins, wrong)
    assert found.unchanged.sensitivity.value == found.unchanged.specificity.value == pytest.approx(-0.05)
    assert found.unchanged.score.value == found.refitted.score.value == pytest.approx(-0.05)
    assert found.lost == pytest.approx(0.05) and found.agreement == 0.95
    # one patient of twenty is often not drawn at all, and hardly ever four times
    assert -0.2 < found.unchanged.score.low < -0.05 < found.unchanged.score.high == 0.0


def test_scores_at_the_threshold_are_to_blame_and_no_layer(margins: FloatArray) -> None:
    """Three patients' first stretch lies a hair above the threshold, and rounding takes it below."""
    before, after, odds = margins.copy(), margins.copy(), np.log(0.3 / 0.7)
    before[[0, 5, 10]], after[[0, 5, 10]] = odds + 0.001, odds - 0.001
    found = compare(logits(before), logits(after), held(), TEMPERATURE, 0.3)
    assert found.lost == pytest.approx(0.025) and found.near
    assert (found.turned.stretches, found.turned.patients) == (3, 3)
    assert found.turned.farthest == pytest.approx(0.3 * 0.7 * 0.001, rel=0.01)
    assert str(found.turned).startswith("3 of the stretches (3 patients) lie within 0.0002 of the threshold 0.300")


def test_damage_is_a_layers_and_not_near(margins: FloatArray) -> None:
    assert not of(margins, 3.0 * margins).near
    assert not of(margins, margins + 3.0).near


def test_refitting_alone_would_hide_a_shift(margins: FloatArray) -> None:
    found = of(margins, margins + 3.0)
    assert found.refitted.score.value == 0.0
    assert found.unchanged.specificity.value < -0.5 and found.lost > 0.25


def test_a_damage_that_the_threshold_does_not_see_is_not_a_loss_but_shows(margins: FloatArray) -> None:
    found = of(margins, 0.1 * margins)
    assert found.lost == 0.0 and found.agreement == 1.0
    assert found.relative_error > 0.05 and found.divergence > 0.1


def test_verdicts_are_of_all_moments_and_the_error_of_each(margins: FloatArray) -> None:
    """Two moments that change places say the same of the whole window."""
    two = np.concatenate([logits(margins), logits(margins + 1.0)], axis=1)
    found = compare(two, two[:, ::-1], held(), TEMPERATURE, THRESHOLD)
    assert found.agreement == 1.0 and found.lost == 0.0 and found.divergence < 1e-6
    assert found.relative_error > 0.01


def test_divergence_is_kullback_s() -> None:
    before, after = np.full(5 * PATIENTS, 1.0, np.float32), np.full(5 * PATIENTS, -1.0, np.float32)
    odds = np.exp(1.0)
    p, q = odds / (1 + odds), 1 / (1 + odds)
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert of(before, after).divergence == pytest.approx(expected, rel=1e-4)


def test_what_is_not_a_number_is_never_small_enough(margins: FloatArray) -> None:
    broken = margins.copy()
    broken[3] = np.nan
    assert not of(margins, broken).lost <= 1.0


def test_it_says_whether_the_served_models_have_met_the_gates_patients() -> None:
    assert [gate_patients(1, 0), gate_patients(3, 0), gate_patients(3, 3), gate_patients(1, 1)] == [
        "the first fold",
        "the first fold, whom the other models have met",
        *["the first fold, whom the models of all patients have met"] * 2,
    ]
