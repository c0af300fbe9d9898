"""`trainer evaluate`: one reading of accuracy in both conventions, with intervals and what its confounders reach."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from device.bundle import MANIFEST, BundleError, SiteRule, open_bundle
from device.classifier import Classifier
from device.decision import abnormal_probability, leading_class
from device.labels import LABELS, NORMAL
from device.live import Judge
from device.quality import level_dbfs
from device.signal import FloatArray, FrontEnd
from firmware_config.settings import QualitySettings
from trainer.audio_cache import AudioCache
from trainer.corpora import Corpus
from trainer.metrics import (
    NO_VERDICT,
    Float64Array,
    IntArray,
    Interval,
    Rates,
    auroc,
    binary_rates,
    confusion,
    exact_rates,
    patient_bootstrap,
)
from trainer.protocols import Protocol, examples, inputs_of, labels_of, worst_window
from trainer.recordings import Heard, RunModel, gradable, hear, predicted_class
from trainer.run import READINGS_FILE, RUN_FILE, RunError, RunFacts, load_model, read_facts

BATCH = 64
SEEN_PARTS = ("train", "intra")  # SPRSound's intra-patient test holds training patients only


@dataclass(frozen=True)
class Subject:
    """What is read: the model in the form that every protocol needs, and what it was trained on."""

    name: str
    fingerprint: str
    """sha256 of a bundle's manifest or of a run's facts."""
    model: Judge
    logits: Callable[[FloatArray], FloatArray]
    front_end: FrontEnd
    temperature: float
    threshold: float
    trained_corpus: str
    trained_patients: frozenset[str] | None
    """Known for a run; a bundle does not carry patients' names."""


def open_subject(path: Path, device: torch.device) -> Subject:
    """A run folder or a bundle; the error says what is missing."""
    if (path / RUN_FILE).is_file():
        return _run_subject(path, device)
    if path.is_file() or (path / MANIFEST).is_file():
        classifier = Classifier(open_bundle(path), threads=torch.get_num_threads())
        manifest = classifier.bundle.manifest
        return Subject(
            manifest.name,
            classifier.fingerprint,
            classifier,
            classifier.logits,
            manifest.front_end,
            classifier.file.temperature,
            classifier.file.threshold,
            manifest.corpus,
            None,
        )
    if not path.exists():
        raise BundleError(f"{path}: neither a run nor a bundle is here; check the path")
    read_facts(path)  # says whether it is an unfinished run
    raise RunError(f"{path}: neither a run nor a bundle")


def _run_subject(path: Path, device: torch.device) -> Subject:
    facts = read_facts(path)
    return run_subject(load_model(path, facts).to(device), facts, path.resolve().name, device)


def run_subject(model: nn.Module, facts: RunFacts, name: str, device: torch.device) -> Subject:
    """A run's model with all that its validation patients chose."""
    choice = facts.choice
    served = RunModel(
        model,
        device,
        facts.front_end,
        choice.segmentation,
        choice.site_rule,
        choice.temperature,
        choice.cycle_threshold,
    )
    return Subject(
        name,
        facts.fingerprint,
        served,
        served.logits,
        facts.front_end,
        choice.temperature,
        choice.cycle_threshold,
        facts.corpus,
        frozenset(facts.patients),
    )


@dataclass(frozen=True)
class Outcome:
    """Per example: what is true, what was predicted, and what else could have told; all (n,)."""

    true: IntArray
    predicted: IntArray
    probability: Float64Array
    patients: list[str]
    confounders: dict[str, Float64Array]


def read_stretches(corpus: Corpus, cache: AudioCache, subject: Subject, protocol: Protocol) -> Outcome:
    """Outcome on `events` or `windows`."""
    chosen = examples(corpus, protocol, cache)
    logits, probability = [], []
    # in pieces: all windows of a corpus at once would not fit into a small machine
    for start in range(0, len(chosen), BATCH):
        inputs, owner = inputs_of(chosen[start : start + BATCH], cache, subject.front_end)
        raw = subject.logits(inputs)
        one, likely = worst_window(raw, abnormal_probability(raw, subject.temperature), owner)
        logits.append(one)
        probability.append(likely)
    likely = np.concatenate(probability) if probability else np.empty(0)
    leading = leading_class(np.concatenate(logits)) if logits else np.empty(0, np.int64)
    return Outcome(
        labels_of(chosen),
        np.where(likely >= subject.threshold, leading, NORMAL),
        likely,
        [example.patient for example in chosen],
        {
            "duration": np.array([example.event_seconds for example in chosen]),
            "age": _ages([example.age_years for example in chosen]),
            "level": np.array([level_dbfs(cache.cut(e.recording, e.start_seconds, e.end_seconds)) for e in chosen]),
        },
    )


def of_heard(heard: Sequence[Heard], cache: AudioCache, rule: SiteRule) -> Outcome:
    """Outcome of whole recordings; 'not enough' and 'poor quality' verdicts are wrong on both sides."""
    predicted, probability = [], []
    for one in heard:
        decided = one.decision(rule)
        given = decided.verdict in ("flagged", "nothing flagged")
        predicted.append(LABELS.index(predicted_class(decided)) if given else NO_VERDICT)
        probability.append(decided.probability or 0.0)
    recordings = [one.recording for one in heard]
    return Outcome(
        np.array([LABELS.index(recording.label) for recording in recordings], dtype=np.int64),
        np.array(predicted, dtype=np.int64),
        np.array(probability),
        [recording.patient for recording in recordings],
        {
            "duration": np.array([cache.seconds(recording.name) for recording in recordings]),
            "age": _ages([recording.age_years for recording in recordings]),
            "level": np.array([level_dbfs(cache[recording.name]) for recording in recordings]),
        },
    )


def join(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of several models, each on patients of its own, as one."""
    return Outcome(
        np.concatenate([one.true for one in outcomes]),
        np.concatenate([one.predicted for one in outcomes]),
        np.concatenate([one.probability for one in outcomes]),
        [patient for one in outcomes for patient in one.patients],
        {name: np.concatenate([one.confounders[name] for one in outcomes]) for name in outcomes[0].confounders},
    )


def _ages(ages: Sequence[float | None]) -> Float64Array:
    return np.array([np.nan if age is None else age for age in ages])


def score(outcome: Outcome) -> dict[str, Any]:
    """Both conventions, AUROC and the confounders' own AUROC, each `{value, low, high}`, and the confusion matrix."""
    abnormal = outcome.true > 0
    names = list(outcome.confounders)
    # a confounder's better direction is read off once: the interval must not take the better of two in every draw
    signs = [_direction(abnormal, outcome.confounders[name]) for name in names]

    def statistic(rows: IntArray) -> Float64Array:
        matrix = confusion(outcome.true[rows], outcome.predicted[rows])
        scores = [outcome.probability] + [s * outcome.confounders[n] for s, n in zip(signs, names, strict=True)]
        rates = [value for part in (binary_rates(matrix), exact_rates(matrix)) for value in _triple(part)]
        return np.array(rates + [_auroc_of_known(abnormal[rows], values[rows]) for values in scores])

    intervals = patient_bootstrap(outcome.patients, statistic)
    return {
        "n": len(outcome.true),
        "binary": _rates_json(intervals[0:3]),
        "exact": _rates_json(intervals[3:6]),
        "auroc": intervals[6].as_json(),
        "confounders": {name: value.as_json() for name, value in zip(names, intervals[7:], strict=True)},
        "confusion": {
            "rows": list(LABELS),
            "columns": [*LABELS, "no verdict"],
            "counts": confusion(outcome.true, outcome.predicted).tolist(),
        },
    }


def _triple(rates: Rates) -> list[float]:
    return [rates.sensitivity, rates.specificity, rates.score]


def _rates_json(intervals: Sequence[Interval]) -> dict[str, Any]:
    return {
        name: value.as_json() for name, value in zip(("sensitivity", "specificity", "score"), intervals, strict=True)
    }


def _auroc_of_known(abnormal: Any, values: Float64Array) -> float:
    known = ~np.isnan(values)
    return auroc(abnormal[known], values[known])


def _direction(abnormal: Any, values: Float64Array) -> float:
    return -1.0 if _auroc_of_known(abnormal, values) < 0.5 else 1.0


def evaluate(
    subject: Subject,
    corpus: Corpus,
    cache: AudioCache,
    protocol: Protocol,
    quality: QualitySettings,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """One reading, as `trainer evaluate --json` prints it."""
    if protocol == "recordings":
        heard = hear(gradable(corpus), cache, subject.model, quality, progress)
        outcome = of_heard(heard, cache, subject.model.site_rule)
    else:
        outcome = read_stretches(corpus, cache, subject, protocol)
    return reading(outcome, protocol, subject, corpus)


def reading(outcome: Outcome, protocol: Protocol, subject: Subject, corpus: Corpus) -> dict[str, Any]:
    """What `trainer evaluate --json` prints of an outcome: its scores, and what was read."""
    parts = sorted({recording.part for recording in corpus.recordings})
    return {
        "protocol": protocol,
        **score(outcome),
        "corpus": corpus.name,
        "part": "+".join(parts) or "all",
        "patients": len(set(outcome.patients)),
        "patients_seen_in_training": seen_in_training(subject, corpus),
        "recordings": len(corpus.recordings),
        "model": subject.name,
        "bundle": subject.fingerprint,
        "threshold": subject.threshold,
        "notes": list(corpus.notes),
    }


def log_reading(path: Path, reading: dict[str, Any]) -> None:
    """Append a reading to its run's `readings.jsonl`, so that a test part read twice shows; a bundle keeps no log."""
    if (path / RUN_FILE).is_file():
        line = {"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **reading}
        with (path / READINGS_FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")


def seen_in_training(subject: Subject, corpus: Corpus) -> bool | None:
    """Whether any of these patients trained or tuned the model; None when a bundle cannot tell."""
    if subject.trained_corpus != corpus.name:
        return False
    if subject.trained_patients is not None:
        return bool(subject.trained_patients & set(corpus.patients))
    parts = {recording.part for recording in corpus.recordings}
    return True if parts & set(SEEN_PARTS) else None if "" in parts else False
