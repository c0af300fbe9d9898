"""The end of `trainer fit`: the best epoch's weights, and everything that the validation patients choose about them."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from device.bundle import Population, Segmentation, SiteRule, ThresholdChoice
from device.decision import abnormal_probability
from firmware_config.settings import QualitySettings
from trainer.audio_cache import AudioCache
from trainer.corpora import Corpus
from trainer.evaluate import evaluate, run_subject
from trainer.files import write_atomically
from trainer.fit import Fit, FitError, calibrate
from trainer.metrics import operating_curve
from trainer.model import AST
from trainer.recordings import RunModel, fit_site_rule, gradable, hear, site_score
from trainer.run import RUN_FILE, WEIGHTS_FILE, Choice, RunFacts, save_tensors

CURVE_ROWS = 101
AS_GOOD = 0.02  # about the standard error of a Score on a few hundred recordings
# In the order of preference: the first that is as good as the best is taken. A breath is what a nurse hears, too.
CANDIDATES = (
    Segmentation(method="breath"),
    Segmentation(method="windows", window_seconds=3.5),
    Segmentation(method="windows"),
)
RULE = "maximises (Se + Sp) / 2 on validation patients subject to Se >= Sp"


def finish(
    fit: Fit,
    folder: Path,
    training: Corpus,
    validation: Corpus,
    cache: AudioCache,
    facts: dict[str, Any],
    quality: QualitySettings,
) -> RunFacts:
    """Write the best epoch's weights and `run.json`; `facts` are the fields of RunFacts that the command line knows.

    Temperature and cycle threshold come from the default protocol; segmentation and site rule from whole recordings.
    All of them from the validation patients, whose own readings are therefore a little too good, and are labelled so.
    """
    if not fit.best_weights:
        raise FitError(f"{folder}: no epoch is finished yet; give it more --minutes")
    model = AST(fit.recipe.model).to(fit.device)
    model.load_state_dict(fit.best_weights)
    logits = fit.validation.logits(model, fit.device)
    labels = fit.validation.labels
    temperature, threshold = calibrate(logits, labels)
    curve = operating_curve(labels > 0, abnormal_probability(logits, temperature))
    rows = curve[np.unique(np.linspace(0, len(curve) - 1, CURVE_ROWS).round().astype(int))]
    segmentation, site_rule = choose_site_rule(
        model, fit.device, validation, cache, fit.crops.front_end, (temperature, threshold), quality
    )
    choice = Choice(
        epoch=fit.progress.best_epoch,
        temperature=temperature,
        threshold=ThresholdChoice(
            rule=RULE,
            protocol=fit.validation.protocol,
            curve=tuple((round(float(t), 6), round(float(se), 4), round(float(sp), 4)) for t, se, sp in rows),
        ),
        cycle_threshold=threshold,
        site_rule=site_rule,
        segmentation=segmentation,
        readings={},
    )
    run = RunFacts(
        **facts,
        front_end=fit.crops.front_end,
        seed=fit.seed,
        training_patients=list(training.patients),
        validation_patients=list(validation.patients),
        population=population(training),
        choice=choice,
        epochs_done=fit.progress.epochs_done,
        versions=versions(),
    )
    subject = run_subject(model, run, folder.resolve().name, fit.device)
    readings = {
        protocol: evaluate(subject, validation, cache, protocol, quality)
        for protocol in (fit.validation.protocol, "recordings")
        if protocol != "recordings" or scorable(validation)
    }
    run = run.model_copy(update={"choice": choice.model_copy(update={"readings": readings})})
    save_tensors(folder / WEIGHTS_FILE, model.state_dict(), {"architecture": run.recipe.model.architecture})
    # last: a folder with run.json is a finished run
    write_atomically(folder / RUN_FILE, run.model_dump_json(indent=1))
    return run


def scorable(corpus: Corpus) -> bool:
    """Whether its gradable recordings hold both normal and abnormal ones."""
    return len({recording.label == "normal" for recording in gradable(corpus)}) == 2


def choose_site_rule(
    model: AST,
    device: torch.device,
    validation: Corpus,
    cache: AudioCache,
    front_end: Any,
    calibration: tuple[float, float],
    quality: QualitySettings,
) -> tuple[Segmentation, SiteRule]:
    """The way of cutting and the k of n that score best on the validation patients' recordings.

    Without normal or abnormal recordings to fit on (a corpus of cut cycles): breath cycles, one flagged cycle flags.
    """
    temperature, threshold = calibration
    fallback = SiteRule(k=1, threshold=threshold, least_cycles=2)
    if not scorable(validation):
        return Segmentation(), fallback
    reached: list[tuple[float, Segmentation, SiteRule]] = []
    for segmentation in CANDIDATES:
        served = RunModel(model, device, front_end, segmentation, fallback, temperature, threshold)
        heard = hear(gradable(validation), cache, served, quality)
        rule = fit_site_rule(heard, threshold)
        reached.append((site_score(heard, rule), segmentation, rule))
    highest = max(score for score, _, _ in reached)
    return next((segmentation, rule) for score, segmentation, rule in reached if score >= highest - AS_GOOD)


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
