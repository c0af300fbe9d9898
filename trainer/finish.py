"""The end of `trainer fit`: the run's weights as one model, and what held-out patients choose about it."""

import dataclasses
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from device.bundle import Population, Segmentation, SiteRule, ThresholdChoice
from device.decision import abnormal_probability
from device.signal import FrontEnd
from firmware_config.settings import QualitySettings
from trainer.audio_cache import AudioCache
from trainer.corpora import Corpus, parts_of
from trainer.evaluate import Outcome, join, of_heard, read_stretches, reading, run_subject, save_outcome
from trainer.experiment import Prepared, Request
from trainer.files import write_atomically
from trainer.fit import calibrate
from trainer.members import Member, Refitted
from trainer.metrics import BoolArray, Float64Array, auroc, operating_curve
from trainer.protocols import Protocol, stretch_protocol
from trainer.recordings import Heard, RunModel, fit_site_rule, gradable, hear, site_probabilities, site_score
from trainer.run import RUN_FILE, WEIGHTS_FILE, Choice, RunFacts, assemble, file_digest, outcome_file, save_tensors

CURVE_ROWS = 101
AS_GOOD = 0.01  # of Score and of AUROC; half the standard error of a Score on a thousand recordings
# In the order of preference: the first that is as good as the best is taken. A breath is what a nurse hears, too.
CANDIDATES = (
    Segmentation(method="breath", context_seconds=3.5),
    Segmentation(method="windows", window_seconds=3.5),
    Segmentation(method="windows"),
)


def rule_in_words(request: Request) -> str:
    """How the thresholds were chosen, for the run, the bundle and the model card."""
    where = "held-out patients" if request.recipe.data.choose_on == "held-out" else "THE TEST PART (as published)"
    return f"maximises (Se + Sp) / 2 on {where} subject to Se >= Sp"


def finish(
    members: Sequence[Member],
    refitted: Sequence[Refitted],
    folder: Path,
    request: Request,
    prepared: Prepared,
    quality: QualitySettings,
    device: torch.device,
) -> RunFacts:
    """Write the weights to serve as one model, what members said of held-out patients, and `run.json`.

    The model is the mean of the `refitted`, or of the members where there are none.
    Temperature and cycle threshold come from the default protocol; segmentation and site rule from whole recordings.
    Each patient is judged by the member that never met it. These readings are a little too good all the same, because
    they chose thresholds and rule (and the epochs, where members serve), and are labelled so; the mean of several
    models is not in them.
    """
    corpus, cache, front_end = prepared.corpus, prepared.cache, prepared.front_end
    labels = np.concatenate([member.labels for member in members])
    logits = np.concatenate([member.logits for member in members])
    temperature, threshold = calibrate(logits, labels)
    segmentation, site_rule, heard = choose_site_rule(
        members, device, cache, front_end, (temperature, threshold), quality
    )
    protocol = stretch_protocol(corpus)
    # what is written from here on belongs together: without run.json the run counts as unfinished
    (folder / RUN_FILE).unlink(missing_ok=True)
    model = assemble([one.model for one in refitted or members])
    save_tensors(folder / WEIGHTS_FILE, model.state_dict(), {"architecture": request.recipe.model.architecture})
    choice = Choice(
        epochs=[member.epoch for member in members],
        temperature=temperature,
        threshold=ThresholdChoice(
            rule=rule_in_words(request),
            protocol=protocol,
            curve=_curve(labels > 0, abnormal_probability(logits, temperature)),
        ),
        cycle_threshold=threshold,
        site_rule=site_rule,
        site_threshold=_site_threshold(heard, site_rule, rule_in_words(request)),
        segmentation=segmentation,
        readings={},
    )
    run = RunFacts(
        recipe_name=request.recipe_name,
        recipe=request.recipe,
        front_end=front_end,
        seed=request.seed,
        corpora=[dataclasses.replace(source, data=source.data.resolve()) for source in request.sources],
        part=request.part,
        split=request.split,
        parts=sorted(set(parts_of(corpus)).union(*(parts_of(member.held_out) for member in members))),
        lenient=request.lenient,
        patients=list(corpus.patients),
        held_out=[list(member.held_out.patients) for member in members],
        population=population(corpus),
        choice=choice,
        epochs_done=[member.epochs_done for member in members],
        refit_epochs=[one.epochs_done for one in refitted],
        weights=file_digest(folder / WEIGHTS_FILE),
        versions=versions(),
    )
    name = folder.resolve().name
    served = run_subject(model, run, name, device)
    judged = dataclasses.replace(
        corpus, recordings=tuple(one for member in members for one in member.held_out.recordings), notes=()
    )
    stretches = [
        read_stretches(member.held_out, cache, run_subject(member.model, run, name, device), protocol)
        for member in members
    ]
    outcomes: dict[Protocol, Outcome] = {protocol: join(stretches)}
    if heard:
        outcomes["recordings"] = of_heard(heard, cache, site_rule)
    for read_on, outcome in outcomes.items():
        save_outcome(outcome_file(folder, read_on), outcome)
    readings = {read_on: reading(outcome, read_on, served, judged) for read_on, outcome in outcomes.items()}
    run = run.model_copy(update={"choice": choice.model_copy(update={"readings": readings})})
    # last: a folder with run.json is a finished run
    write_atomically(folder / RUN_FILE, run.model_dump_json(indent=1))
    return run


def choose_site_rule(
    members: Sequence[Member],
    device: torch.device,
    cache: AudioCache,
    front_end: FrontEnd,
    calibration: tuple[float, float],
    quality: QualitySettings,
) -> tuple[Segmentation, SiteRule, list[Heard]]:
    """The way of cutting and its site rule, chosen on held-out patients' recordings, and what was heard so.

    Without normal or abnormal recordings to fit on (a corpus of cut cycles): breath cycles, one flagged cycle flags.
    """
    temperature, threshold = calibration
    fallback = SiteRule(k=1, threshold=threshold, least_cycles=2)
    recordings = [recording for member in members for recording in gradable(member.held_out)]
    if len({recording.label == "normal" for recording in recordings}) < 2:
        return Segmentation(), fallback, []
    reached: list[tuple[float, float, Segmentation, SiteRule, list[Heard]]] = []
    for segmentation in CANDIDATES:
        heard = []
        for member in members:
            served = RunModel(member.model, device, front_end, segmentation, fallback, temperature, threshold)
            heard += hear(gradable(member.held_out), cache, served, quality)
        rule = fit_site_rule(heard, threshold)
        reached.append((site_score(heard, rule), auroc(*site_probabilities(heard, rule)), segmentation, rule, heard))
    *_, segmentation, rule, heard = reached[preferred([(score, ranking) for score, ranking, *_ in reached])]
    return segmentation, rule, heard


def preferred(reached: Sequence[tuple[float, float]]) -> int:
    """Index of the first way whose Score and AUROC are both as good as the best; if none is, of the best Score.

    Both, because a Score is read at the threshold that suits these patients best, while `--sensitivity` moves it.
    """
    highest = np.max(reached, axis=0)
    return next((i for i, one in enumerate(reached) if (one >= highest - AS_GOOD).all()), int(np.argmax(reached, 0)[0]))


def _curve(abnormal: BoolArray, probability: Float64Array) -> tuple[tuple[float, float, float], ...]:
    """The operating curve at about a hundred thresholds."""
    curve = operating_curve(abnormal, probability)
    rows = curve[np.unique(np.linspace(0, len(curve) - 1, CURVE_ROWS).round().astype(int))]
    return tuple((round(float(t), 6), round(float(se), 4), round(float(sp), 4)) for t, se, sp in rows)


def _site_threshold(heard: Sequence[Heard], rule: SiteRule, words: str) -> ThresholdChoice | None:
    if not heard:
        return None
    return ThresholdChoice(rule=words, protocol="recordings", curve=_curve(*site_probabilities(heard, rule)))


def population(corpus: Corpus) -> Population:
    """Whom a model trained on this corpus has met."""
    ages = [recording.age_years for recording in corpus.recordings if recording.age_years is not None]
    return Population(
        youngest_years=min(ages, default=None),
        oldest_years=max(ages, default=None),
        sites=tuple(sorted({recording.site for recording in corpus.recordings})),
        stethoscopes=tuple(sorted({recording.device for recording in corpus.recordings})),
        patients=len(corpus.patients),
    )


def versions() -> dict[str, str]:
    """Of everything that shapes the weights."""
    packages = ("respsam", "torch", "numpy", "scipy", "soxr")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
