"""`trainer evaluate`: one reading of accuracy in both conventions, with intervals, beside its confounders."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from firmware_config.settings import QualitySettings
from trainer.choices import Protocol
from trainer.corpora import Corpus, CorpusError, load_corpora
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.cycle import Recording, Source, abnormal_shares
from trainer.corpora.protocols import check_protocol
from trainer.corpora.splits import SplitError, refuse_shared_patients
from trainer.evaluation import healthy
from trainer.evaluation.outcome import Outcome, of_heard, of_shown, read_stretches, share_not_met
from trainer.evaluation.recordings import gradable, hear, listen_longer
from trainer.evaluation.score import score
from trainer.evaluation.served import ServedModel
from trainer.metrics import too_few
from trainer.reading import Reading


def evaluate(
    served: ServedModel,
    corpus: Corpus,
    cache: AudioCache,
    protocol: Protocol,
    quality: QualitySettings,
    progress: Callable[[int, int], None] | None = None,
    calibrate_on: int | None = None,
) -> Reading:
    """One reading; of `recordings`, also who is flagged by listening time.

    With `calibrate_on`, also Se and Sp after a calibration on so many healthy people; CalibrationError when there are
    too few.
    """
    outcome = outcome_on(served, corpus, cache, protocol, quality, progress)
    read = reading(outcome, protocol, served, corpus)
    if protocol != "recordings":
        return read
    more: dict[str, Any] = {"listening": listen_longer(gradable(corpus), cache, served, quality, progress)}
    if calibrate_on is not None:
        more["calibration"] = healthy.calibrate_on(outcome, served.site_rule, served.calibration, calibrate_on)
    return read.model_copy(update=more)


def outcome_on(
    served: ServedModel,
    corpus: Corpus,
    cache: AudioCache,
    protocol: Protocol,
    quality: QualitySettings,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Outcome of a model on a corpus; where training had these patients, the patient alone is a confounder, too."""
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


def reading(outcome: Outcome, protocol: Protocol, served: ServedModel, corpus: Corpus) -> Reading:
    """The scores of an outcome, and what was read."""
    parts = sorted({recording.part for recording in corpus.recordings})
    met = {"not_met": round(share_not_met(outcome, corpus), 4)} if protocol == "live" else {}
    people = len(set(outcome.patients))
    return Reading(
        protocol=protocol,
        **score(outcome),
        **met,
        corpus=corpus.name,
        part="+".join(parts) or "all",
        patients=people,
        patients_seen_in_training=seen_in_training(served, corpus),
        recordings=len(corpus.recordings),
        model=served.name,
        bundle=served.fingerprint,
        threshold=served.threshold,
        notes=[*corpus.notes, *filter(None, [too_few(people)])],
    )


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
    # in a corpus without parts nobody knows who is in training
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
