"""`trainer compare`: is one model better than another on the same sound of the same patients?

Both are resampled together, so that a hard patient is hard for both: the interval of the difference is much narrower
than two intervals side by side suggest.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from firmware_config.errors import RespSAMError
from firmware_config.settings import QualitySettings
from trainer.choices import Protocol
from trainer.corpora import Corpus
from trainer.corpora.audio_cache import AudioCache
from trainer.evaluation.evaluate import outcome_on, reading
from trainer.evaluation.outcome import Outcome, load_outcome
from trainer.evaluation.score import headline
from trainer.evaluation.served import ServedModel
from trainer.metrics import (
    LEAST_PATIENTS,
    Float64Array,
    IntArray,
    Interval,
    binary_rates,
    confusion,
    patient_bootstrap,
    too_few,
)
from trainer.reading import RateIntervals, Reading
from trainer.run.folder import RUN_FILE, outcome_file, read_facts

NAMES: Final[dict[tuple[str, ...], str]] = {
    ("binary", "sensitivity"): "sensitivity",
    ("binary", "specificity"): "specificity",
    ("binary", "score"): "Score, binary",
    ("exact", "score"): "Score, exact",
    ("auroc",): "AUROC",
}
"""What is compared, and its name."""
HELD_OUT: Final = "held-out patients"
CHOSEN_ON: Final = "THE TEST PART, which chose epochs and thresholds: every figure is too good"
SAYS: Final = {
    "few": "too few patients",
    "unknown": "unknown: one class only, or patients who do not differ",
    "higher": "B is better: the interval is above 0",
    "lower": "A is better: the interval is below 0",
    "neither": "no difference seen: the interval holds 0",
}
Statistic = Callable[[IntArray], Float64Array]


class CompareError(RespSAMError):
    """Two models that judged nothing in common."""


@dataclass(frozen=True)
class Difference:
    """One figure of both models, and B's minus A's."""

    a: float
    b: float
    difference: Interval
    patients: int

    @property
    def says(self) -> str:
        """What the difference shows, in words."""
        return SAYS[direction(self.difference, self.patients)]

    def as_json(self) -> dict[str, Any]:
        """`{a, b, difference, says}`; null for what cannot be computed."""
        both = {name: None if np.isnan(value) else round(value, 4) for name, value in (("a", self.a), ("b", self.b))}
        return {**both, "difference": self.difference.as_json(), "says": self.says}


@dataclass(frozen=True)
class Compared:
    """The figures of two models on the examples that both judged."""

    n: int
    patients: int
    judged_by_one_only: int
    readings: dict[str, Difference]
    """By the names in NAMES."""
    a: str = "A"
    b: str = "B"
    corpus: str = ""
    part: str = ""
    protocol: str = ""

    def as_json(self) -> dict[str, Any]:
        """What `trainer compare --json` prints."""
        about = ("a", "b", "corpus", "part", "protocol", "n", "patients", "judged_by_one_only")
        readings = {name: read.as_json() for name, read in self.readings.items()}
        return {**{name: getattr(self, name) for name in about}, "readings": readings}


def paired(patients: list[str], first: Statistic, second: Statistic, least: int = LEAST_PATIENTS) -> list[Interval]:
    """95 % intervals of every entry of `second(rows)` minus `first(rows)`, both on the same resampled patients."""
    return patient_bootstrap(patients, lambda rows: second(rows) - first(rows), least=least)


def rates_shift(
    patients: list[str], true: IntArray, first: IntArray, second: IntArray, least: int = LEAST_PATIENTS
) -> RateIntervals:
    """Binary rates of the predicted classes (n,) of `second` minus those of `first`."""

    def rates(predicted: IntArray) -> Statistic:
        return lambda rows: np.array([*binary_rates(confusion(true[rows], predicted[rows])).by_name().values()])

    return RateIntervals(*paired(patients, rates(first), rates(second), least))


def compare(first: Outcome, second: Outcome) -> Compared:
    """Two outcomes: B - A on the examples that both judged.

    An example is the same recording from the same start to the same end. Raises CompareError when there is none.
    """
    both, alone = in_common(first, second)
    if not len(both):
        raise CompareError("the two judged nothing in common: other corpora, other patients, or other protocols")
    values = [_values(outcome.at(rows)) for outcome, rows in ((first, both[:, 0]), (second, both[:, 1]))]
    patients = [first.patients[row] for row in both[:, 0]]
    read = [value(np.arange(len(both))) for value in values]
    rows, people = zip(NAMES.values(), *read, paired(patients, values[0], values[1]), strict=True), len(set(patients))
    readings = {name: Difference(float(a), float(b), shift, people) for name, a, b, shift in rows}
    return Compared(len(both), people, alone, readings)


def _values(outcome: Outcome) -> Statistic:
    """The entries of NAMES."""
    figures = headline(outcome)

    def values(rows: IntArray) -> Float64Array:
        found = figures(rows)
        return np.array([found[place] for place in NAMES])

    return values


def in_common(first: Outcome, second: Outcome) -> tuple[IntArray, int]:
    """Rows (n, 2) of both outcomes that are the same example, and how many examples only one of them has."""
    ours, theirs = ({key: row for row, key in enumerate(_keys(outcome))} for outcome in (first, second))
    rows = [(row, theirs[key]) for key, row in ours.items() if key in theirs]
    return np.array(rows, dtype=np.int64).reshape(-1, 2), len(ours) + len(theirs) - 2 * len(rows)


def _keys(outcome: Outcome) -> list[tuple[str, float, float, int]]:
    """One key an example; its truth is in it, because two events may share a span."""
    spans = zip(outcome.recordings, outcome.start_seconds, outcome.end_seconds, outcome.true, strict=True)
    return [(name, round(float(start), 3), round(float(end), 3), int(true)) for name, start, end, true in spans]


def direction(shift: Interval, patients: int) -> str:
    """What the difference of two models on so many patients shows, a key of SAYS."""
    if too_few(patients):
        return "few"
    if shift.value == 0 or shift.low <= 0 <= shift.high:
        return "neither"
    if not shift.varies:
        return "unknown"
    return "higher" if shift.low > 0 else "lower"


def protocol_of_runs(first: Path, second: Path) -> Protocol | None:
    """How two runs read their held-out patients; None when one is no run, CompareError when their corpora differ."""
    if not all((path / RUN_FILE).is_file() for path in (first, second)):
        return None
    facts, others = read_facts(first), read_facts(second)
    one, other = facts.corpus, others.corpus
    if one != other:
        raise CompareError(
            f"{first} held out patients of {one}, {second} of {other}; give --corpus, --data and --part to read both"
        )
    return cast(Protocol, facts.choice.threshold.protocol)


def on_held_out(first: Path, second: Path, protocol: Protocol) -> Compared:
    """Compare two runs by their members' predictions for held-out patients; needs neither corpus nor audio.

    RunError names a run whose predictions are missing or damaged.
    """
    outcomes = [load_outcome(outcome_file(path, protocol)) for path in (first, second)]
    facts = [read_facts(path) for path in (first, second)]
    flattered = any(one.recipe.data.choose_on == "test" for one in facts)
    return replace(
        compare(*outcomes),
        a=first.resolve().name,
        b=second.resolve().name,
        corpus=facts[0].corpus,
        part=CHOSEN_ON if flattered else HELD_OUT,
        protocol=protocol,
    )


def on_corpus(
    models: tuple[ServedModel, ServedModel],
    corpus: Corpus,
    cache: AudioCache,
    protocol: Protocol,
    quality: QualitySettings,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Compared, list[Reading]]:
    """Two models read on the same examples, and the two readings themselves."""
    outcomes = [outcome_on(model, corpus, cache, protocol, quality, progress) for model in models]
    readings = [reading(outcome, protocol, of, corpus) for outcome, of in zip(outcomes, models, strict=True)]
    corpus_read, part, _ = readings[0].what
    found = compare(*outcomes)
    return replace(
        found, a=models[0].name, b=models[1].name, corpus=corpus_read, part=part, protocol=protocol
    ), readings
