"""What `fit` chooses at its end."""

import pytest

from trainer.finish import preferred

# (Score, AUROC) of the ways of cutting, in the order of preference
CASES = [
    ([(0.80, 0.90), (0.805, 0.905)], 0),  # as good as the best in both: the preferred one
    ([(0.80, 0.90), (0.82, 0.90)], 1),  # behind in Score
    ([(0.80, 0.88), (0.80, 0.90)], 1),  # behind in AUROC, whatever its Score
    ([(0.83, 0.88), (0.80, 0.90), (0.81, 0.885)], 0),  # none is as good in both: the best Score
]


@pytest.mark.parametrize(("reached", "index"), CASES)
def test_a_way_of_cutting_has_to_be_as_good_in_score_and_in_auroc(
    reached: list[tuple[float, float]], index: int
) -> None:
    assert preferred(reached) == index
