"""A reading of accuracy against scikit-learn, and what it says of itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score, roc_auc_score

from device.bundle import BundleError
from trainer.evaluate import Outcome, Subject, log_reading, open_subject, score, seen_in_training
from trainer.metrics import NO_VERDICT
from trainer.run import READINGS_FILE, RUN_FILE, RunError


def outcome(n: int = 400, patients: int = 40, seed: int = 0) -> Outcome:
    """Random truth; predictions right in two of three."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 4, n)
    predicted = np.where(random.random(n) < 0.66, true, random.integers(0, 4, n))
    return Outcome(
        true,
        predicted,
        (true > 0) * 0.3 + random.random(n),
        [f"p{owner}" for owner in random.integers(0, patients, n)],
        {"duration": random.random(n) * 2 - (true > 0), "age": np.full(n, np.nan)},
    )


def test_both_conventions_against_scikit_learn() -> None:
    made = outcome()
    reading = score(made)
    abnormal, called = made.true > 0, made.predicted > 0
    assert reading["n"] == 400
    assert reading["binary"]["sensitivity"]["value"] == pytest.approx(recall_score(abnormal, called), abs=1e-4)
    assert reading["binary"]["specificity"]["value"] == pytest.approx(recall_score(~abnormal, ~called), abs=1e-4)
    right = (made.true == made.predicted)[abnormal]
    assert reading["exact"]["sensitivity"]["value"] == pytest.approx(right.mean(), abs=1e-4)
    assert reading["exact"]["sensitivity"]["value"] < reading["binary"]["sensitivity"]["value"]
    assert reading["auroc"]["value"] == pytest.approx(roc_auc_score(abnormal, made.probability), abs=1e-4)
    for value in (reading["binary"]["score"], reading["exact"]["score"], reading["auroc"]):
        assert value["low"] < value["value"] < value["high"]


def test_confounders_are_read_in_their_better_direction_and_absent_ones_are_null() -> None:
    reading = score(outcome())
    made = outcome()
    expected = 1 - roc_auc_score(made.true > 0, made.confounders["duration"])
    assert expected > 0.6
    assert reading["confounders"]["duration"]["value"] == pytest.approx(expected, abs=1e-4)
    assert reading["confounders"]["age"] == {"value": None, "low": None, "high": None}


def test_no_verdict_is_wrong_on_both_sides() -> None:
    true = np.array([0, 0, 1, 2])
    made = Outcome(true, np.full(4, NO_VERDICT), np.zeros(4), ["a", "b", "c", "d"], {})
    reading = score(made)
    assert reading["binary"]["sensitivity"]["value"] == reading["binary"]["specificity"]["value"] == 0.0
    assert [row[-1] for row in reading["confusion"]["counts"]] == [2, 1, 1, 0]


def test_reading_is_plain_json() -> None:
    assert json.loads(json.dumps(score(outcome())))["confusion"]["columns"][-1] == "no verdict"


def test_every_reading_of_a_run_is_logged(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("{}")
    for number in range(2):
        log_reading(tmp_path, {"protocol": "events", "n": number})
    lines = [json.loads(line) for line in (tmp_path / READINGS_FILE).read_text().splitlines()]
    assert [line["n"] for line in lines] == [0, 1]
    assert all("time" in line for line in lines)


def test_neither_run_nor_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="neither a run nor a bundle"):
        open_subject(tmp_path / "absent", torch.device("cpu"))
    with pytest.raises(RunError, match=r"run\.json is missing"):
        open_subject(tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("corpus_name", "parts", "patients", "expected"),
    [
        ("icbhi", ["train"], None, False),
        ("sprsound", ["intra"], None, True),
        ("sprsound", ["inter"], None, False),
        ("sprsound", [""], None, None),
        ("sprsound", ["inter"], frozenset({"p0"}), True),
        ("sprsound", ["intra"], frozenset({"other"}), False),
    ],
)
def test_patients_seen_in_training(
    corpus_name: str, parts: list[str], patients: frozenset[str] | None, expected: bool | None
) -> None:
    from trainer.corpora import Corpus, Recording

    recordings = tuple(
        Recording(f"r{n}", None, f"p{n}", "d", "s", None, part, "normal", ()) for n, part in enumerate(parts)
    )
    subject = Subject("m", "f", None, None, None, 1.0, 0.5, "sprsound", patients)  # type: ignore[arg-type]
    assert seen_in_training(subject, Corpus(corpus_name, Path(), recordings)) is expected
