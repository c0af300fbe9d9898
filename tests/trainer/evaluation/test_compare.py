"""The difference of two readings: by hand, against unpaired intervals, and as the command finds it."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from tests.conftest import RunCli
from tests.export.run_maker import MOBILENET, make_run
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.evaluation.test_evaluate import outcome
from trainer.evaluation.compare import NAMES, SAYS, CompareError, Difference, compare, direction, paired, rates_shift
from trainer.evaluation.outcome import Outcome, save_outcome
from trainer.metrics import (
    FEW_PATIENTS,
    Float64Array,
    IntArray,
    Interval,
    binary_rates,
    confusion,
    patient_bootstrap,
)
from trainer.run.folder import outcome_file


def worse(made: Outcome, share: float = 0.1, seed: int = 1) -> Outcome:
    """The same answers, but some turned."""
    random = np.random.default_rng(seed)
    turned = random.random(len(made.true)) < share
    return dataclasses.replace(
        made,
        predicted=np.where(turned, np.where(made.true > 0, 0, 1), made.predicted),
        probability=np.where(turned, 0.65, made.probability),
    )


def test_the_difference_is_b_minus_a_by_scikit_learn() -> None:
    a = outcome(patients=60)
    b = worse(a)
    found = compare(a, b).as_json()
    abnormal = a.true > 0
    recalls = [recall_score(abnormal, one.predicted > 0) for one in (a, b)]
    areas = [roc_auc_score(abnormal, one.probability) for one in (a, b)]
    read = found["readings"]
    assert list(read) == list(NAMES.values())
    assert read["sensitivity"]["difference"]["value"] == pytest.approx(recalls[1] - recalls[0], abs=1e-4)
    assert read["AUROC"]["difference"]["value"] == pytest.approx(areas[1] - areas[0], abs=1e-4)
    assert read["AUROC"]["a"] == pytest.approx(areas[0], abs=1e-4)
    assert read["Score, binary"]["says"].startswith("A is better")
    assert compare(b, a).as_json()["readings"]["Score, binary"]["says"].startswith("B is better")
    assert found["n"] == 400 and found["judged_by_one_only"] == 0
    assert json.loads(json.dumps(found)) == found


def test_the_paired_interval_is_narrower_than_the_unpaired_one() -> None:
    a = outcome()
    b = worse(a, 0.02)

    def score(one: Outcome) -> Interval:
        def statistic(rows: IntArray) -> Float64Array:
            return np.array([binary_rates(confusion(one.true[rows], one.predicted[rows])).score])

        return patient_bootstrap(one.patients, statistic)[0]

    unpaired = math.hypot(*(one.high - one.low for one in (score(a), score(b))))
    shift = rates_shift(a.patients, a.true, a.predicted, b.predicted).score
    assert shift.high - shift.low < 0.5 * unpaired


def test_only_what_both_judged_is_compared_whatever_the_order() -> None:
    made = outcome(patients=60)
    forward, backward = np.arange(0, 300), np.arange(399, 99, -1)
    found = compare(made.at(forward), made.at(backward)).as_json()
    assert (found["n"], found["judged_by_one_only"]) == (200, 200)
    assert all(read["difference"] == {"value": 0.0, "low": None, "high": None} for read in found["readings"].values())
    assert all(read["says"].startswith("no difference seen") for read in found["readings"].values())
    moved = dataclasses.replace(made, start_seconds=made.start_seconds + 0.5)
    with pytest.raises(CompareError, match="nothing in common"):
        compare(made, moved)


def test_a_reading_of_one_class_is_unknown() -> None:
    made = outcome(800, patients=60)
    normal = made.at(np.flatnonzero(made.true == 0))
    read = compare(normal, normal).as_json()["readings"]
    assert read["sensitivity"]["a"] is None and read["sensitivity"]["says"].startswith("unknown")
    assert read["specificity"]["difference"]["value"] == 0.0


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.02, "B is better"), (-0.02, -0.01, "A is better"), (-0.01, 0.01, "no diff"), (0.0, 0.1, "no diff")],
)
def test_words(low: float, high: float, said: str) -> None:
    shift = Interval((low + high) / 2, low, high)
    assert Difference(0.5, 0.5 + shift.value, shift, FEW_PATIENTS).says.startswith(said)
    assert Difference(0.5, 0.5 + shift.value, shift, FEW_PATIENTS - 1).says == SAYS["few"]


def test_one_patient_names_no_winner() -> None:
    """150 windows of one patient: every resample is the same, and the width of zero means nothing."""
    made = outcome(150, patients=1)
    found = compare(made, worse(made, 0.5)).as_json()
    assert found["patients"] == 1 and found["readings"]["Score, binary"]["difference"]["value"] < -0.05
    assert all(read["difference"]["low"] is None for read in found["readings"].values())
    assert {read["says"] for read in found["readings"].values()} == {"too few patients"}


def test_a_width_of_zero_names_no_winner_however_many_patients_there_are() -> None:
    """One abnormal patient among sixty: the sensitivity is hers in every resample."""
    patients = [f"p{number}" for number in range(60)]
    true = np.array([1] + [0] * 59)
    shift = rates_shift(patients, true, true, np.zeros(60, np.int64)).sensitivity
    assert shift.value == shift.low == shift.high == -1.0
    assert direction(shift, 60) == "unknown"
    assert shift.as_json() == {"value": -1.0, "low": None, "high": None} and f"{shift:+.3f}" == "-1.000"


def test_both_sides_see_the_same_patients() -> None:
    patients = [f"p{number}" for number in range(20)]
    hard = np.random.default_rng(0).random(20)
    (shift,) = paired(patients, lambda rows: np.array([hard[rows].mean()]), lambda rows: np.array([hard[rows].mean()]))
    assert (shift.low, shift.high) == (0.0, 0.0)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and two runs on it, with what they said of made-up held-out patients."""
    root = tmp_path_factory.mktemp("compare")
    make_sprsound(root / "corpus")
    make_sprsound(root / "corpus", part="inter")
    make_run(root / "a", root / "corpus", root / "cache", MOBILENET)
    shutil.copytree(root / "a", root / "b")
    save_outcome(outcome_file(root / "a", "windows"), outcome(patients=60))
    save_outcome(outcome_file(root / "b", "windows"), worse(outcome(patients=60)))
    return root


def test_two_runs_are_compared_without_corpus_or_audio(run_cli: RunCli, two_runs: Path) -> None:
    shown = run_cli("trainer", "compare", two_runs / "a", two_runs / "b")
    assert shown.returncode == 0, shown.stderr
    assert "60 patients, sprsound held-out patients" in shown.stdout and "A is better" in shown.stdout
    assert "too few" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines()[1:])) <= 80
    told = run_cli("trainer", "compare", two_runs / "a", two_runs / "b", "--json")
    assert json.loads(told.stdout)["readings"]["Score, binary"]["difference"]["high"] < 0
    absent = run_cli("trainer", "compare", two_runs / "a", two_runs / "b", "--protocol", "events")
    assert absent.returncode == 2 and "held_out-events.npz: not there" in absent.stderr


def test_two_runs_on_a_part_are_read_on_the_same_sound_and_logged(run_cli: RunCli, two_runs: Path) -> None:
    asked = ("--corpus", "sprsound", "--data", two_runs / "corpus", "--json")
    shown = run_cli("trainer", "compare", two_runs / "a", two_runs / "b", "--part", "inter", *asked[:-1])
    few = len(list((two_runs / "corpus" / "inter_test").glob("*.wav")))
    assert (
        shown.returncode == 0 and f"NOTE too few patients for any claim: {few // 2}, 50 are the least" in shown.stdout
    )
    assert "better" not in shown.stdout
    told = run_cli("trainer", "compare", two_runs / "a", two_runs / "b", "--part", "inter", *asked)
    assert told.returncode == 0, told.stderr
    compared = json.loads(told.stdout)
    assert compared["part"] == "inter" and compared["readings"]["AUROC"]["difference"]["value"] == 0.0
    assert all((two_runs / name / "readings.jsonl").is_file() for name in "ab")
    leak = run_cli("trainer", "compare", two_runs / "a", two_runs / "b", "--part", "train", *asked)
    assert leak.returncode == 2 and "are in training and in what is read" in leak.stderr


def test_a_part_without_corpus_is_one_line(run_cli: RunCli, two_runs: Path) -> None:
    refused = run_cli("trainer", "compare", two_runs / "a", two_runs / "b", "--part", "inter")
    assert refused.returncode == 2 and "give --corpus and --data" in refused.stderr
