"""`trainer evaluate`: one reading of accuracy in both conventions, with intervals and what its confounders reach."""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from device.breath.quality import level_dbfs
from device.bundle import MANIFEST, BundleError, Calibration, SiteRule, read_bundle
from device.labels import LABELS, NORMAL
from device.listening.live import Judge
from device.model.classifier import Classifier
from device.model.judgement import abnormal_probability, leading_class, softmax
from device.signal import FloatArray, FrontEnd
from firmware_config.command_line import one_line
from firmware_config.settings import QualitySettings
from trainer import healthy
from trainer.audio_cache import AudioCache
from trainer.corpora import Corpus, CorpusError, load_corpora
from trainer.corpora.cycle import AGES, Recording, Source, abnormal_shares, stage_of_life
from trainer.files import replacing, write_atomically
from trainer.metrics import (
    NO_VERDICT,
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
from trainer.model import Ensemble, Network
from trainer.protocols import Protocol, check_protocol, examples, inputs_of, labels_of, worst_window
from trainer.recordings import Heard, RunModel, gradable, hear, listen_longer, predicted_class
from trainer.run import READINGS_FILE, RUN_FILE, RunError, RunFacts, load_model, read_facts, read_rows
from trainer.splits import SplitError, refuse_shared_patients

BATCH = 64
ALONE = "alone."
TEXTS = ("patients", "recordings", "devices", "sites", "corpora")


READING_KEYS = {"protocol", "corpus", "part", "n", "binary", "exact", "auroc", "confounders", "confusion", "bundle"}


@dataclass(frozen=True)
class Subject:
    """What is read: the model in the form that every protocol needs, and what it was trained on."""

    name: str
    fingerprint: str
    """sha256 of a bundle's manifest or of a run's facts."""
    model: Judge
    logits: Callable[[FloatArray], Float64Array]
    """(n, 4), over all moments, of model inputs (n, frames, mels)."""
    front_end: FrontEnd
    temperature: float
    threshold: float
    calibration: Calibration | None
    trained_corpora: frozenset[str]
    trained_patients: frozenset[str] | None
    """Known for a run, `CORPUS/PATIENT`; a bundle does not carry patients' names."""
    seen_parts: tuple[str, ...] = ()
    """Parts of that corpus whose patients trained or tuned it, where the patients are not known."""


def open_subject(path: Path, device: torch.device) -> Subject:
    """A run folder or a bundle; the error says what is missing."""
    if (path / RUN_FILE).is_file():
        return _run_subject(path, device)
    if path.is_file() or (path / MANIFEST).is_file():
        classifier = Classifier(read_bundle(path), threads=torch.get_num_threads())
        manifest = classifier.bundle.manifest
        return Subject(
            manifest.name,
            classifier.fingerprint,
            classifier,
            classifier.pooled,
            manifest.front_end,
            classifier.file.temperature,
            classifier.file.threshold,
            manifest.calibration,
            frozenset(manifest.corpus.split("+")),
            None,
            manifest.seen_parts,
        )
    if not path.exists():
        raise BundleError(f"{path}: neither a run nor a bundle is here; check the path")
    read_facts(path)  # says whether it is an unfinished run
    raise RunError(f"{path}: neither a run nor a bundle")


def _run_subject(path: Path, device: torch.device) -> Subject:
    facts = read_facts(path)
    return run_subject(load_model(path, facts).to(device), facts, path.resolve().name, device)


def as_served(model: Network | Ensemble, facts: RunFacts, device: torch.device) -> RunModel:
    """A run's model with all that its validation patients chose, as the live path takes it."""
    choice = facts.choice
    return RunModel(
        model,
        device,
        facts.front_end,
        choice.segmentation,
        choice.site_rule,
        choice.temperature,
        choice.cycle_threshold,
    )


def run_subject(model: Network | Ensemble, facts: RunFacts, name: str, device: torch.device) -> Subject:
    """`as_served`, with whom it met."""
    choice, served = facts.choice, as_served(model, facts, device)
    return Subject(
        name,
        facts.fingerprint,
        served,
        served.pooled,
        facts.front_end,
        choice.temperature,
        choice.cycle_threshold,
        choice.calibration,
        frozenset(source.name for source in facts.corpora),
        # those of a test part that chose, too
        frozenset(facts.patients).union(*facts.held_out),
    )


@dataclass(frozen=True)
class Outcome:
    """Per example: what is true, what was predicted, what else could have told, and where it was heard; all (n,)."""

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


def read_stretches(corpus: Corpus, cache: AudioCache, subject: Subject, protocol: Protocol) -> Outcome:
    """Outcome on `events` or `windows`."""
    chosen = examples(corpus, protocol, cache)
    by_name = {recording.name: recording for recording in corpus.recordings}
    heard = [by_name[example.recording] for example in chosen]
    logits, probability = [], []
    # in pieces: all windows of a corpus at once would not fit into a small machine
    for start in range(0, len(chosen), BATCH):
        inputs, owner = inputs_of(chosen[start : start + BATCH], cache, subject.front_end)
        raw = subject.logits(inputs)
        one, likely = worst_window(raw, abnormal_probability(raw, subject.temperature), owner)
        logits.append(one)
        probability.append(likely)
    likely = np.concatenate([np.empty(0), *probability])
    worst = np.concatenate([np.empty((0, len(LABELS))), *logits])
    return Outcome(
        labels_of(chosen),
        np.where(likely >= subject.threshold, leading_class(worst), NORMAL),
        likely,
        [example.patient for example in chosen],
        {
            "duration": np.array([example.event_seconds for example in chosen]),
            "age": _ages([example.age_years for example in chosen]),
            "level": np.array([level_dbfs(cache.cut(e.recording, e.start_seconds, e.end_seconds)) for e in chosen]),
        },
        [recording.name for recording in heard],
        np.array([example.start_seconds for example in chosen]),
        np.array([example.end_seconds for example in chosen]),
        [recording.device for recording in heard],
        [recording.site for recording in heard],
        softmax(worst, subject.temperature),
        [recording.corpus for recording in heard],
    )


def of_shown(heard: Sequence[Heard], cache: AudioCache) -> Outcome:
    """Outcome of `live`: every annotated event or cycle against the cycle on the screen that overlaps it most.

    An abnormal one that no gradable cycle meets is missed; a normal one says nothing then, and is left out.
    """
    pairs = [(one, cycle, one.shown_for(cycle)) for one in heard for cycle in one.recording.cycles]
    met = [pair for pair in pairs if pair[2] is not None or pair[1].label != "normal"]
    judgements = [None if shown is None else shown.judgement for _, _, shown in met]
    recordings, cycles = [one.recording for one, _, _ in met], [cycle for _, cycle, _ in met]
    return Outcome(
        np.array([LABELS.index(cycle.label) for cycle in cycles], dtype=np.int64),
        np.array([NO_VERDICT if one is None else LABELS.index(one.label) for one in judgements], dtype=np.int64),
        np.array([0.0 if one is None else one.probability for one in judgements]),
        [recording.patient for recording in recordings],
        {
            "duration": np.array([cycle.duration_seconds for cycle in cycles]),
            "age": _ages([recording.age_years for recording in recordings]),
            "level": np.array([level_dbfs(cache.cut(c.recording, c.start_seconds, c.end_seconds)) for c in cycles]),
        },
        [recording.name for recording in recordings],
        np.array([cycle.start_seconds for cycle in cycles]),
        np.array([cycle.end_seconds for cycle in cycles]),
        [recording.device for recording in recordings],
        [recording.site for recording in recordings],
        np.full((len(met), len(LABELS)), np.nan),
        [recording.corpus for recording in recordings],
    )


def share_not_met(outcome: Outcome, corpus: Corpus) -> float:
    """Of the annotated events or cycles, those that no gradable cycle on the screen met, of an outcome of `live`."""
    annotated = sum(len(recording.cycles) for recording in gradable(corpus))
    return 1.0 - float((outcome.predicted != NO_VERDICT).sum()) / max(annotated, 1)


def of_heard(heard: Sequence[Heard], cache: AudioCache, rule: SiteRule) -> Outcome:
    """Outcome of whole recordings; 'not enough' and 'poor quality' verdicts are wrong on both sides."""
    predicted, probability = [], []
    for one in heard:
        decided = one.decision(rule)
        given = decided.verdict in ("flagged", "nothing flagged")
        predicted.append(LABELS.index(predicted_class(decided)) if given else NO_VERDICT)
        probability.append(decided.probability or 0.0)
    recordings = [one.recording for one in heard]
    seconds = np.array([cache.seconds(recording.name) for recording in recordings])
    return Outcome(
        np.array([LABELS.index(recording.label) for recording in recordings], dtype=np.int64),
        np.array(predicted, dtype=np.int64),
        np.array(probability),
        [recording.patient for recording in recordings],
        {
            "duration": seconds,
            "age": _ages([recording.age_years for recording in recordings]),
            "level": np.array([level_dbfs(cache[recording.name]) for recording in recordings]),
        },
        [recording.name for recording in recordings],
        np.zeros(len(heard)),
        seconds,
        [recording.device for recording in recordings],
        [recording.site for recording in recordings],
        np.full((len(heard), len(LABELS)), np.nan),
        [recording.corpus for recording in recordings],
    )


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


def _ages(ages: Sequence[float | None]) -> Float64Array:
    return np.array([np.nan if age is None else age for age in ages])


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
    subject: Subject,
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
    outcome = outcome_of(subject, corpus, cache, protocol, quality, progress)
    read = reading(outcome, protocol, subject, corpus)
    if protocol == "recordings":
        joined = listen_longer(gradable(corpus), cache, subject.model, quality, progress)
        read["listening"] = [asdict(one) for one in joined]
        if calibrate_on is not None:
            rule = subject.model.site_rule
            read["calibration"] = healthy.calibrate_on(outcome, rule, subject.calibration, calibrate_on)
    return read


def outcome_of(
    subject: Subject,
    corpus: Corpus,
    cache: AudioCache,
    protocol: Protocol,
    quality: QualitySettings,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Outcome of a subject on a corpus; where it met these patients in training, with what they alone would tell."""
    check_protocol(corpus, protocol)
    if protocol in ("live", "recordings"):
        heard = hear(gradable(corpus), cache, subject.model, quality, progress)
        outcome = of_shown(heard, cache) if protocol == "live" else of_heard(heard, cache, subject.model.site_rule)
    else:
        outcome = read_stretches(corpus, cache, subject, protocol)
    training = seen_annotations(subject, corpus)
    if not training:
        return outcome
    patient = np.array(abnormal_shares(training, outcome.patients))
    return replace(outcome, confounders=outcome.confounders | {"patient": patient})


def reading(outcome: Outcome, protocol: Protocol, subject: Subject, corpus: Corpus) -> dict[str, Any]:
    """What `trainer evaluate --json` prints of an outcome: its scores, and what was read."""
    parts = sorted({recording.part for recording in corpus.recordings})
    return {
        "protocol": protocol,
        **score(outcome),
        **({"not_met": round(share_not_met(outcome, corpus), 4)} if protocol == "live" else {}),
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


def refuse_trained_patients(subject: Subject, corpus: Corpus, split: str) -> None:
    """SplitError when a run would be read on its own patients, but where the reading is labelled so.

    That is SPRSound's intra part, whose patients are in training by design, and anything under `as-published`.
    """
    if subject.trained_patients is None or split == "as-published":
        return
    read = [recording.patient for recording in corpus.recordings if recording.part != "intra"]
    try:
        refuse_shared_patients(sorted(subject.trained_patients), read, f"{subject.name} on {corpus.where}")
    except SplitError as error:
        raise SplitError(
            f"{error}; read a --part of other patients (--split as-published reads on, labelled)"
        ) from None


def seen_in_training(subject: Subject, corpus: Corpus) -> bool | None:
    """Whether any of these patients trained or tuned the model; None when a bundle cannot tell."""
    if subject.trained_patients is not None:
        return bool(subject.trained_patients & set(corpus.patients))
    known = [recording for recording in corpus.recordings if _corpus_of(recording, corpus) in subject.trained_corpora]
    if not known:
        return False
    parts, seen = {recording.part for recording in known}, set(subject.seen_parts)
    # a corpus without parts says nothing of who is in it
    return True if parts & seen - {""} else None if "" in parts | seen else False


def _corpus_of(recording: Recording, corpus: Corpus) -> str:
    return recording.corpus or corpus.name


def seen_annotations(subject: Subject, corpus: Corpus) -> tuple[Recording, ...]:
    """The train part of these patients' corpora, annotations alone; () where they are strangers or it is not there."""
    if "train" in {recording.part for recording in corpus.recordings} or not seen_in_training(subject, corpus):
        return ()
    return tuple(recording for source in corpus.sources for recording in _published(source))


def _published(source: Source) -> tuple[Recording, ...]:
    """A corpus's train part, with every patient that a model may have met; () where the folder holds none."""
    try:
        return load_corpora([source], part="train", split="as-published", audio=False, lenient=True).recordings
    except CorpusError:  # a folder that holds the test part alone
        return ()
