"""Each of the method's failures is recognised where it shows, and only there."""

import numpy as np
import pytest

from trainer.metrics import confusion
from trainer.report.explain import Share
from trainer.report.signatures import (
    attention_on,
    clustered,
    deaf,
    few_patients,
    never_named,
    oscillating,
    sharp_minimum,
    stopped_early,
    worse_than_confounder,
)

FALLING = [1.6, 1.2, 0.9, 0.7, 0.6, 0.55]


def test_a_model_that_calls_nearly_everything_normal() -> None:
    found = deaf(0.42, 0.81, "on held-out patients")
    assert found is not None
    assert "Se 0.420 at Sp 0.810 on held-out patients" in found.fact
    assert "data.balance" in found.remedy and "rho" in found.remedy


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.85, 0.81), (0.42, 0.5), (float("nan"), 0.9)])
def test_low_sensitivity_alone_is_another_failure(sensitivity: float, specificity: float) -> None:
    assert deaf(sensitivity, specificity, "") is None


def test_a_loss_that_climbs_back_oscillates() -> None:
    found = oscillating([1.6, 1.1, 1.5, 1.0, 1.45, 1.1], "member 2")
    assert found is not None
    assert found.fact.startswith("member 2: in 6 epochs the training loss rose 2 times, by 0.850")
    assert "learning_rate" in found.remedy


@pytest.mark.parametrize(
    "losses",
    [
        FALLING,
        [1.6, 1.1, 0.9, 0.91, 0.9, 0.92, 0.89],  # the noise of a plateau
        [1.6, 0.8, 1.5, 0.7, 0.6],  # one bump
        [1.0, 1.5, 1.0],  # too short to tell
        [],
    ],
)
def test_noise_is_no_oscillation(losses: list[float]) -> None:
    assert oscillating(losses, "") is None


def test_unseen_patients_get_worse_while_training_goes_on() -> None:
    rising = [1.3, 1.0, 0.9, 1.0, 1.1, 1.2]
    last = sharp_minimum(FALLING, rising, "member 1", "last")
    assert last is not None and last.remedy.endswith("the kept weights are the last epoch's")
    found = sharp_minimum(FALLING, rising, "member 1")
    assert found is not None
    assert "after epoch 3 the training loss fell from 0.900 to 0.550" in found.fact
    assert "0.900 to 1.200" in found.fact and "rho" in found.remedy


@pytest.mark.parametrize(
    ("training", "held_out"),
    [
        (FALLING, [1.3, 1.0, 0.9, 0.85, 0.84, 0.86]),  # both fall
        ([1.0, 0.99, 0.98, 0.98, 0.98, 0.98], [0.9, 0.8, 0.9, 1.0, 1.1, 1.2]),  # training stands still
        (FALLING, [None] * 6),  # a run that did not write it down
        (FALLING, [None, None, None, 0.8, 0.9, 1.2]),
    ],
)
def test_what_is_unknown_or_falls_is_no_sharp_minimum(training: list[float], held_out: list[float | None]) -> None:
    assert sharp_minimum(training, held_out, "") is None


def test_a_model_below_a_confounder_alone() -> None:
    found = worse_than_confounder(0.737, {"duration": 0.53, "age": 0.782, "level": float("nan")}, "recordings")
    assert found is not None and found.name == "worse than a confounder alone"
    assert found.fact == "recordings: AUROC 0.737, age alone 0.782"
    both = worse_than_confounder(0.6, {"duration": 0.8, "age": 0.7}, "")
    assert both is not None and both.fact.endswith("duration alone 0.800, age alone 0.700")
    assert worse_than_confounder(0.83, {"duration": 0.82, "age": float("nan")}, "") is None
    assert worse_than_confounder(float("nan"), {"duration": 0.8}, "") is None


def test_a_schedule_that_was_not_finished() -> None:
    found = stopped_early([24, 1], 24)
    assert found is not None and found.fact == "24 / 1 of 24 epochs" and "--resume" in found.remedy
    assert stopped_early([24, 24], 24) is None


def test_too_few_patients_for_any_claim() -> None:
    found = few_patients(49, "windows of held-out patients")
    assert found is not None
    assert found.fact == "windows of held-out patients: 49 patients, 50 are the least for any claim"
    assert few_patients(50, "") is None


def test_a_threshold_in_the_middle_of_a_cluster_of_scores() -> None:
    random = np.random.default_rng(0)
    spread, crowd = 1 / (1 + np.exp(-random.normal(0, 2, 1000))), 0.4 + random.normal(0, 0.01, 1000)
    found = clustered(crowd, 0.4, "of held-out patients")
    assert found is not None and "% of the probabilities of held-out patients lie within 0.04 log-odds" in found.fact
    assert clustered(crowd, 0.5, "") is None and clustered(spread, 0.4, "") is None
    # at a low prevalence all probabilities are low, and near each other only in absolute numbers
    assert clustered(1 / (1 + np.exp(4 - random.normal(0, 2, 1000))), 0.02, "") is None
    assert clustered(np.array([0.0, 1.0]), 0.5, "") is None and clustered(np.array([]), 0.5, "") is None
    assert clustered(np.array([0.2, 0.5]), 1.0, "") is None and clustered(np.array([0.2, 0.5]), 0.0, "") is None


def test_a_class_that_is_never_named() -> None:
    true, predicted = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 1, 1, 3, 1, 3])
    found = never_named(confusion(true, predicted), "windows")
    assert found is not None and found.name == "never named: wheeze"
    assert found.fact == "windows: 1 are wheeze, and none is called so"
    assert never_named(confusion(true[:4], predicted[:4]), "") is None, "a class without examples is not missed"


@pytest.mark.parametrize("place", ["seams", "silence"])
def test_attention_where_nothing_is_to_be_heard(place: str) -> None:
    found = attention_on(place, Share(even=0.02, rollout=0.08, gradient=0.11))
    assert found is not None
    assert found.name == f"attention on {place}"
    assert "8.0 %" in found.fact and "11.0 %" in found.fact and "2.0 %" in found.fact


@pytest.mark.parametrize(
    "share",
    [
        Share(even=0.02, rollout=0.02, gradient=0.02),
        Share(even=0.01, rollout=0.03, gradient=0.03),  # three times even, and yet hardly anything
        Share(even=0.30, rollout=0.36, gradient=0.40),  # much in all, little more than even
        Share(even=0.02, rollout=0.02, gradient=0.30),  # one reading alone
        Share(even=0.0, rollout=0.0, gradient=0.0),
    ],
)
def test_a_little_more_than_even_is_chance(share: Share) -> None:
    assert attention_on("seams", share) is None
