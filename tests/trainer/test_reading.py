"""A reading's JSON goes there and back; how a figure is written; what an earlier version did not read."""

import json
from pathlib import Path

import pytest

from tests.trainer.evaluation.test_evaluate import outcome
from trainer.evaluation.history import read_readings
from trainer.evaluation.score import score
from trainer.metrics import Interval
from trainer.reading import Reading
from trainer.run.folder import READINGS_FILE, RunError

ABOUT = {"corpus": "icbhi", "part": "test", "protocol": "events", "bundle": "f", "patients_seen_in_training": None}


@pytest.fixture(scope="module")
def printed() -> dict[str, object]:
    return {**score(outcome(40)), **ABOUT}


def test_json_goes_there_and_back_with_nothing_added_or_lost(printed: dict[str, object]) -> None:
    reading = Reading.model_validate(printed)
    assert reading.as_json() == printed
    assert json.loads(json.dumps(reading.as_json())) == printed
    more = {**printed, "of_a_later_version": [1]}
    assert Reading.model_validate(more).as_json() == more


def test_an_earlier_reading_lacks_what_was_not_read_then(printed: dict[str, object]) -> None:
    earlier = {name: value for name, value in printed.items() if name not in ("per_corpus", "auprc", "ece")}
    reading = Reading.model_validate(earlier)
    assert str(reading.auprc) == "-" and reading.per_corpus == {}
    assert reading.as_json() == earlier


@pytest.mark.parametrize(
    ("interval", "form", "written"),
    [
        (Interval(0.8123, 0.7, 0.9), "", "0.812 [0.700, 0.900]"),
        (Interval(-0.01, -0.02, 0.0), "+.4f", "-0.0100 [-0.0200, +0.0000]"),
        (Interval(0.5, float("nan"), float("nan")), "", "0.500"),
        (Interval.UNKNOWN, "+.3f", "-"),
    ],
)
def test_one_way_of_writing_an_interval(interval: Interval, form: str, written: str) -> None:
    assert format(interval, form) == written


def test_a_damaged_figure_in_the_log_is_one_line(tmp_path: Path, printed: dict[str, object]) -> None:
    (tmp_path / READINGS_FILE).write_text(json.dumps({**printed, "n": "many"}) + "\n")
    with pytest.raises(RunError, match=r"readings\.jsonl: n: .*, so not a reading; remove the line") as raised:
        read_readings(tmp_path)
    assert "\n" not in str(raised.value)
