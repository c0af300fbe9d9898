"""What a model predicted of examples, beside the truth: the rows that every reading is counted from."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from device.breath.quality import level_dbfs
from device.bundle import SiteRule
from device.labels import LABELS, NORMAL, Label
from device.model.judgement import abnormal_probability, leading_class, softmax
from firmware_config.command_line import one_line
from firmware_config.files import replacing
from trainer.choices import Protocol
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.cycle import Corpus
from trainer.corpora.protocols import Example, example_of, examples, inputs_of, labels_of, worst_window
from trainer.evaluation.recordings import Heard, gradable, predicted_class
from trainer.evaluation.served import ServedModel
from trainer.metrics import NO_VERDICT, Float64Array, IntArray
from trainer.run.folder import RunError

BATCH: Final = 64
ALONE: Final = "alone."
TEXTS: Final = ("patients", "recordings", "devices", "sites", "corpora")


@dataclass(frozen=True)
class Outcome:
    """Per example: the truth, the prediction, its confounders, and where it was recorded; all (n,)."""

    true: IntArray
    predicted: IntArray
    probability: Float64Array
    """Calibrated, of being abnormal."""
    patients: list[str]
    confounders: dict[str, Float64Array]
    recordings: list[str] = field(default_factory=list)
    start_seconds: Float64Array = field(default_factory=lambda: np.empty(0))
    end_seconds: Float64Array = field(default_factory=lambda: np.empty(0))
    devices: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    classes: Float64Array = field(default_factory=lambda: np.empty((0, len(LABELS))))
    """Calibrated probabilities (n, 4) of all classes; NaN for whole recordings."""
    corpora: list[str] = field(default_factory=list)

    def at(self, rows: IntArray) -> "Outcome":
        """The same of some rows only."""
        return _outcome({name: column[rows] for name, column in _columns(self).items()})


def outcome_of(
    chosen: Sequence[Example],
    predicted: Sequence[int] | IntArray,
    probability: Sequence[float] | Float64Array,
    cache: AudioCache,
    classes: Float64Array | None = None,
) -> Outcome:
    """The outcome of predicted classes (n,) and calibrated probabilities (n,) on n examples."""
    seconds = [(one.start_seconds, one.end_seconds) for one in chosen]
    levels = [level_dbfs(cache.cut(one.recording, *span)) for one, span in zip(chosen, seconds, strict=True)]
    return Outcome(
        labels_of(chosen),
        np.array(predicted, dtype=np.int64),
        np.array(probability, dtype=np.float64),
        [one.patient for one in chosen],
        {
            "duration": np.array([one.event_seconds for one in chosen]),
            "age": np.array([np.nan if one.age_years is None else one.age_years for one in chosen]),
            "level": np.array(levels),
        },
        [one.recording for one in chosen],
        np.array([start for start, _ in seconds]),
        np.array([end for _, end in seconds]),
        [one.device for one in chosen],
        [one.site for one in chosen],
        np.full((len(chosen), len(LABELS)), np.nan) if classes is None else classes,
        [one.corpus for one in chosen],
    )


def read_stretches(corpus: Corpus, cache: AudioCache, served: ServedModel, protocol: Protocol) -> Outcome:
    """Outcome on `events`, `windows` or `stretches`."""
    chosen = examples(corpus, protocol, cache)
    logits, probability = [np.empty((0, len(LABELS)))], [np.empty(0)]
    # in pieces: all windows of a corpus at once would not fit into a small machine
    for start in range(0, len(chosen), BATCH):
        inputs, owner = inputs_of(chosen[start : start + BATCH], cache, served.front_end)
        raw = served.pooled(inputs)
        one, likely = worst_window(raw, abnormal_probability(raw, served.temperature), owner)
        logits.append(one)
        probability.append(likely)
    worst, likely = np.concatenate(logits), np.concatenate(probability)
    predicted = np.where(likely >= served.threshold, leading_class(worst), NORMAL)
    return outcome_of(chosen, predicted, likely, cache, softmax(worst, served.temperature))


def of_shown(heard: Sequence[Heard], cache: AudioCache) -> Outcome:
    """Outcome of `live`: every annotated event or cycle against the cycle on the screen that overlaps it most.

    An abnormal one that no gradable cycle meets is missed; a normal one is then left out.
    """
    pairs = [(one.recording, cycle, one.shown_for(cycle)) for one in heard for cycle in one.recording.cycles]
    met = [pair for pair in pairs if pair[2] is not None or pair[1].label != "normal"]
    judgements = [None if shown is None else shown.judgement for _, _, shown in met]
    return outcome_of(
        [
            example_of(recording, (cycle.start_seconds, cycle.end_seconds), cycle.label, cycle.duration_seconds)
            for recording, cycle, _ in met
        ],
        [NO_VERDICT if one is None else LABELS.index(one.label) for one in judgements],
        [0.0 if one is None else one.probability for one in judgements],
        cache,
    )


def of_heard(heard: Sequence[Heard], cache: AudioCache, rule: SiteRule) -> Outcome:
    """Outcome of whole recordings; 'not enough' and 'poor quality' verdicts are wrong on both sides."""
    chosen, predicted, probability = [], [], []
    for one in heard:
        decided, seconds = one.decision(rule), cache.seconds(one.recording.name)
        given = decided.verdict in ("flagged", "nothing flagged")
        label = cast(Label, one.recording.label)  # one of poor quality is left out
        chosen.append(example_of(one.recording, (0.0, seconds), label, seconds))
        predicted.append(LABELS.index(predicted_class(decided)) if given else NO_VERDICT)
        probability.append(decided.probability or 0.0)
    return outcome_of(chosen, predicted, probability, cache)


def share_not_met(outcome: Outcome, corpus: Corpus) -> float:
    """Of the annotated events or cycles, those that no gradable cycle on the screen met, of an outcome of `live`."""
    annotated = sum(len(recording.cycles) for recording in gradable(corpus))
    return 1.0 - float((outcome.predicted != NO_VERDICT).sum()) / max(annotated, 1)


def join(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of several models, each on patients of its own, as one."""
    columns = [_columns(one) for one in outcomes]
    return _outcome({name: np.concatenate([one[name] for one in columns]) for name in columns[0]})


def save_outcome(path: Path, outcome: Outcome) -> None:
    """All of an outcome in one .npz, replaced atomically; FileError when it cannot be written."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **_columns(outcome))


def load_outcome(path: Path) -> Outcome:
    """Inverse of `save_outcome`; RunError names a file that is missing or damaged."""
    try:
        with np.load(path) as file:
            columns = {name: file[name] for name in file.files}
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("columns of different lengths")
        return _outcome(columns)
    except FileNotFoundError:
        raise RunError(f"{path}: not there; this run kept no judgements of held-out patients, train again") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{path}: damaged ({one_line(str(error))}); restore it from a backup or train again") from error


def _columns(outcome: Outcome) -> dict[str, Any]:
    """An outcome as arrays by name; every confounder is one."""
    columns = {name: np.asarray(value) for name, value in vars(outcome).items() if name != "confounders"}
    return columns | {f"{ALONE}{name}": value for name, value in outcome.confounders.items()}


def _outcome(columns: dict[str, Any]) -> Outcome:
    """Inverse of `_columns`; TypeError where one is missing or unknown."""
    plain = {
        name: column.tolist() if name in TEXTS else column
        for name, column in columns.items()
        if not name.startswith(ALONE)
    }
    alone = {name[len(ALONE) :]: column for name, column in columns.items() if name.startswith(ALONE)}
    return Outcome(**plain, confounders=alone)
