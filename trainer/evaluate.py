"""`trainer evaluate`: one reading of accuracy in both conventions, with intervals and what its confounders reach."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from device.labels import LABELS, NORMAL
from firmware_config.settings import QualitySettings
from trainer import healthy
from trainer.audio_cache import AudioCache
from trainer.corpora import Corpus, CorpusError, load_corpora
from trainer.corpora.cycle import AGES, Recording, Source, abnormal_shares, stage_of_life
from trainer.files import write_atomically
from trainer.metrics import (
    BoolArray,
    Float64Array,
    IntArray,
    Interval,
    area,
    auroc,
    average_precision,
    binary_rates,
    calibration_error,
    confusion,
    exact_rates,
    levels,
    patient_bootstrap,
    sensitivity_at,
    tally,
)
from trainer.outcome import Outcome, of_heard, of_shown, read_stretches, share_not_met
from trainer.protocols import Protocol, check_protocol
from trainer.recordings import gradable, hear, listen_longer
from trainer.run import READINGS_FILE, RUN_FILE, RunFacts, read_rows
from trainer.served import ServedModel
from trainer.splits import SplitError, refuse_shared_patients

READING_KEYS = {"protocol", "corpus", "part", "n", "binary", "exact", "auroc", "confounders", "confusion", "bundle"}
SPECIFICITIES = (0.80, 0.90, 0.95)
LEAST_PATIENTS = 10
# what is taken of a class and of a device, site or age, and where `headline` has it
OF_A_CLASS = {"any_abnormal": ("binary", "sensitivity"), "exact": ("exact", "sensitivity"), "auroc": ("auroc",)}
OF_A_PLACE = {name: ("binary", name) for name in ("sensitivity", "specificity", "score")}
Figures = dict[tuple[str, ...], float]
"""Readings by their place in `trainer evaluate --json`."""


def headline(outcome: Outcome) -> Callable[[IntArray], Figures]:
    """Rates in both conventions and the AUROC of any rows of an outcome."""
    abnormal, level = outcome.true > 0, levels(outcome.probability)

    def of(rows: IntArray) -> Figures:
        matrix = confusion(outcome.true[rows], outcome.predicted[rows])
        rates = {"binary": binary_rates(matrix), "exact": exact_rates(matrix)}
        figures: Figures = {("auroc",): area(tally(abnormal[rows], level[rows]))}
        return figures | {(key, name): value for key, rate in rates.items() for name, value in rate.by_name().items()}

    return of


def _details(outcome: Outcome, groups: dict[tuple[str, str], BoolArray]) -> Callable[[IntArray], Figures]:
    """All else that is read of any rows of an outcome; a class is read beside the normal rows."""
    main, abnormal, level = headline(outcome), outcome.true > 0, levels(outcome.probability)
    # a confounder's better direction is read off once: the interval must not take the better of two in every draw
    alone = {name: levels(_direction(abnormal, values) * values) for name, values in outcome.confounders.items()}

    def of(rows: IntArray) -> Figures:
        counts = tally(abnormal[rows], level[rows])
        figures: Figures = {("confounders", name): area(tally(abnormal[rows], it[rows])) for name, it in alone.items()}
        figures["auprc",] = average_precision(counts)
        figures["ece",] = calibration_error(abnormal[rows], outcome.probability[rows])
        figures |= {("sensitivity_at", f"{at:.2f}"): sensitivity_at(counts, at) for at in SPECIFICITIES}
        for (key, name), inside in groups.items():
            by_class = key == "per_class"
            part = main(rows[(inside | ~abnormal if by_class else inside)[rows]])
            figures |= {(key, name, to): part[place] for to, place in (OF_A_CLASS if by_class else OF_A_PLACE).items()}
        return figures

    return of


def _groups(outcome: Outcome) -> dict[tuple[str, str], BoolArray]:
    """The rows (n,) of every abnormal class, corpus, device, site and stage of life; '' where it is unknown."""
    years = outcome.confounders.get("age", np.full(len(outcome.true), np.nan))
    columns = {
        "per_class": np.asarray(LABELS)[outcome.true],
        "per_corpus": np.array(outcome.corpora),
        "per_device": np.array(outcome.devices),
        "per_site": np.array(outcome.sites),
        "per_age": np.array([stage_of_life(age) for age in years]),
    }
    groups = {
        (key, str(name)): column == name
        for key, column in columns.items()
        for name in sorted(set(column.tolist()), key=lambda one: (AGES.get(one, -1.0), one))
    }
    return {group: inside for group, inside in groups.items() if group != ("per_class", LABELS[NORMAL])}


def score(outcome: Outcome) -> dict[str, Any]:
    """What `trainer evaluate --json` prints of accuracy: every reading `{value, low, high}`, and the confusion matrix.

    A class, corpus, device, site or age of fewer than LEAST_PATIENTS has no interval: it would look too certain.
    """
    groups = _groups(outcome)
    parts = headline(outcome), _details(outcome, groups)

    def measured(rows: IntArray) -> Figures:
        return {path: value for part in parts for path, value in part(rows).items()}

    paths = list(measured(np.arange(len(outcome.true))))
    intervals = patient_bootstrap(outcome.patients, lambda rows: np.array(list(measured(rows).values())))
    counts = confusion(outcome.true, outcome.predicted).tolist()
    read: dict[str, Any] = {
        "n": len(outcome.true),
        "binary": {},
        "exact": {},
        "auroc": {},
        "confounders": {},
        "confusion": {"rows": list(LABELS), "columns": [*LABELS, "no verdict"], "counts": counts},
        "auprc": {},
        "ece": {},
        "sensitivity_at": {},
        "per_class": {},
        "per_corpus": {},
        "per_device": {},
        "per_site": {},
        "per_age": {},
    }
    for (key, name), inside in groups.items():
        patients = {patient for patient, within in zip(outcome.patients, inside, strict=True) if within}
        abnormal = int((outcome.true[inside] > 0).sum())
        read[key][name] = {"n": int(inside.sum()), "abnormal": abnormal, "patients": len(patients)}
    for path, interval in zip(paths, intervals, strict=True):
        place = read
        for name in path[:-1]:
            place = place[name]
        few = place.get("patients", LEAST_PATIENTS) < LEAST_PATIENTS
        place[path[-1]] = (Interval(interval.value, np.nan, np.nan) if few else interval).as_json()
    return read


def _direction(abnormal: Any, values: Float64Array) -> float:
    return -1.0 if auroc(abnormal, values) < 0.5 else 1.0


def evaluate(
    served: ServedModel,
    corpus: Corpus,
    cache: AudioCache,
    protocol: Protocol,
    quality: QualitySettings,
    progress: Callable[[int, int], None] | None = None,
    calibrate_on: int | None = None,
) -> dict[str, Any]:
    """One reading, as `trainer evaluate --json` prints it.

    Of whole recordings, with who is flagged by listening time, and with what a calibration on so many healthy people is
    worth. CalibrationError when there are too few.
    """
    outcome = outcome_on(served, corpus, cache, protocol, quality, progress)
    read = reading(outcome, protocol, served, corpus)
    if protocol == "recordings":
        joined = listen_longer(gradable(corpus), cache, served, quality, progress)
        read["listening"] = [asdict(one) for one in joined]
        if calibrate_on is not None:
            rule = served.site_rule
            read["calibration"] = healthy.calibrate_on(outcome, rule, served.calibration, calibrate_on)
    return read


def outcome_on(
    served: ServedModel,
    corpus: Corpus,
    cache: AudioCache,
    protocol: Protocol,
    quality: QualitySettings,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Outcome of a model on a corpus; where it met these patients in training, with what they alone would tell."""
    check_protocol(corpus, protocol)
    if protocol in ("live", "recordings"):
        heard = hear(gradable(corpus), cache, served, quality, progress)
        outcome = of_shown(heard, cache) if protocol == "live" else of_heard(heard, cache, served.site_rule)
    else:
        outcome = read_stretches(corpus, cache, served, protocol)
    training = seen_annotations(served, corpus)
    if not training:
        return outcome
    patient = np.array(abnormal_shares(training, outcome.patients))
    return replace(outcome, confounders=outcome.confounders | {"patient": patient})


def reading(outcome: Outcome, protocol: Protocol, served: ServedModel, corpus: Corpus) -> dict[str, Any]:
    """What `trainer evaluate --json` prints of an outcome: its scores, and what was read."""
    parts = sorted({recording.part for recording in corpus.recordings})
    return {
        "protocol": protocol,
        **score(outcome),
        **({"not_met": round(share_not_met(outcome, corpus), 4)} if protocol == "live" else {}),
        "corpus": corpus.name,
        "part": "+".join(parts) or "all",
        "patients": len(set(outcome.patients)),
        "patients_seen_in_training": seen_in_training(served, corpus),
        "recordings": len(corpus.recordings),
        "model": served.name,
        "bundle": served.fingerprint,
        "threshold": served.threshold,
        "notes": list(corpus.notes),
    }


def log_reading(path: Path, reading: dict[str, Any]) -> tuple[str, ...]:
    """Append a reading to its run's `readings.jsonl`; a note when the run has read the same before.

    A bundle keeps no log. RunError names a damaged line.
    """
    if not (path / RUN_FILE).is_file():
        return ()
    earlier = [one for one in read_readings(path) if _what(one) == _what(reading)]
    now, times = datetime.now(timezone.utc).isoformat(timespec="seconds"), len(earlier) + 1
    held = (path / READINGS_FILE).read_text() if (path / READINGS_FILE).exists() else ""
    line = json.dumps({"time": now, "times_read": times, **reading})
    write_atomically(path / READINGS_FILE, f"{held}{line}\n")
    if not earlier:
        return ()
    what, before = " ".join(_what(reading)), str(earlier[-1].get("time", "a day unknown"))[:10]
    return (
        f"{what} of {path}: read for the {_ordinal(times)} time on {now[:10]}, before on {before}: no longer a test",
    )


def read_readings(run: Path) -> list[dict[str, Any]]:
    """What `trainer evaluate` read of the run's accuracy, oldest first; RunError names a damaged line."""
    what = "a reading; remove the line and run 'trainer evaluate' again"
    return read_rows(run / READINGS_FILE, READING_KEYS, what)


def readings_of(run: Path, facts: RunFacts) -> tuple[list[dict[str, Any]], int]:
    """Of the readings in a run's folder, those of the model that it holds now, and how many are of earlier ones.

    An earlier model's say nothing of this one, only that the corpus has been looked at.
    """
    read = read_readings(run)
    own = [reading for reading in read if reading["bundle"] == facts.fingerprint]
    return own, len(read) - len(own)


def latest(readings: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int]]:
    """The last reading of every corpus, part and protocol, and how often that was read: a second look shows."""
    last = {_what(reading): reading for reading in readings}
    return [(reading, reading.get("times_read", 1)) for reading in last.values()]


def _what(reading: Mapping[str, Any]) -> tuple[str, str, str]:
    return reading["corpus"], reading["part"], reading["protocol"]


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def refuse_trained_patients(served: ServedModel, corpus: Corpus, split: str) -> None:
    """SplitError when a run would be read on its own patients, but where the reading is labelled so.

    That is SPRSound's intra part, whose patients are in training by design, and anything under `as-published`.
    """
    if served.trained_patients is None or split == "as-published":
        return
    read = [recording.patient for recording in corpus.recordings if recording.part != "intra"]
    try:
        refuse_shared_patients(sorted(served.trained_patients), read, f"{served.name} on {corpus.where}")
    except SplitError as error:
        raise SplitError(
            f"{error}; read a --part of other patients (--split as-published reads on, labelled)"
        ) from None


def seen_in_training(served: ServedModel, corpus: Corpus) -> bool | None:
    """Whether any of these patients trained or tuned the model; None when a bundle cannot tell."""
    if served.trained_patients is not None:
        return bool(served.trained_patients & set(corpus.patients))
    known = [recording for recording in corpus.recordings if _corpus_of(recording, corpus) in served.trained_corpora]
    if not known:
        return False
    parts, seen = {recording.part for recording in known}, set(served.seen_parts)
    # a corpus without parts says nothing of who is in it
    return True if parts & seen - {""} else None if "" in parts | seen else False


def _corpus_of(recording: Recording, corpus: Corpus) -> str:
    return recording.corpus or corpus.name


def seen_annotations(served: ServedModel, corpus: Corpus) -> tuple[Recording, ...]:
    """The train part of these patients' corpora, annotations alone; () where they are strangers or it is not there."""
    if "train" in {recording.part for recording in corpus.recordings} or not seen_in_training(served, corpus):
        return ()
    return tuple(recording for source in corpus.sources for recording in _published(source))


def _published(source: Source) -> tuple[Recording, ...]:
    """A corpus's train part, with every patient that a model may have met; () where the folder holds none."""
    try:
        return load_corpora([source], part="train", split="as-published", audio=False, lenient=True).recordings
    except CorpusError:  # a folder that holds the test part alone
        return ()
