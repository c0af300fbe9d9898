"""The end of `trainer fit`: the run's weights as one model, and what held-out patients choose about it."""

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from device.bundle import CalibrationBounds, Population, SiteRule, ThresholdChoice
from firmware_config.files import write_atomically
from firmware_config.settings import QualitySettings
from trainer.corpora import Corpus, parts_of
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.protocols import Protocol, stretch_protocol
from trainer.evaluation.evaluate import reading
from trainer.evaluation.outcome import Outcome, join, of_heard, of_shown, read_stretches, save_outcome
from trainer.evaluation.recordings import Heard, calibration_of, fit_site_rule, gradable, hear, rejudged, voices
from trainer.evaluation.served import UNFITTED, of_network, of_run, segmentation_for
from trainer.metrics import Float64Array, balanced_curve, best_row, fit_temperature
from trainer.run.folder import (
    RUN_FILE,
    WEIGHTS_FILE,
    Choice,
    RunFacts,
    assemble,
    file_digest,
    outcome_file,
    save_tensors,
)
from trainer.run.recipe import Recipe
from trainer.training.experiment import Prepared, Request
from trainer.training.members import Member, Trained
from trainer.training.train import FitError

CURVE_ROWS = 101


def rule_in_words(request: Request) -> str:
    """How the thresholds were chosen, for the run, the bundle and the model card."""
    where = "held-out patients" if request.recipe.data.choose_on == "held-out" else "THE TEST PART (as published)"
    return f"maximises (Se + Sp) / 2 on {where}, every stethoscope as much as another, subject to Se >= Sp"


def finish(
    trained: Trained,
    folder: Path,
    request: Request,
    prepared: Prepared,
    quality: QualitySettings,
    device: torch.device,
) -> RunFacts:
    """Write the weights to serve as one model, what members said of held-out patients, and `run.json`.

    The temperature comes from the default protocol, the thresholds of cycles and sites from the live path.
    Each patient is judged by the member that never met it. These readings are a little too good all the same, because
    they chose thresholds and rule (and the epochs, where members serve), and are labelled so; the mean of several
    models is not in them.
    """
    corpus, cache, members = prepared.corpus, prepared.cache, trained.members
    protocol, words = stretch_protocol(corpus), rule_in_words(request)
    temperature = fit_temperature(
        np.concatenate([member.logits for member in members]), np.concatenate([member.labels for member in members])
    )
    chosen = choose_thresholds(hear_held_out(members, prepared, request.recipe, temperature, quality, device), cache)
    # what is written from here on belongs together: without run.json the run counts as unfinished
    (folder / RUN_FILE).unlink(missing_ok=True)
    model = assemble(trained.served)
    save_tensors(folder / WEIGHTS_FILE, model.state_dict(), {"architecture": request.recipe.model.architecture})
    choice = Choice(
        epochs=[member.epoch for member in members],
        temperature=temperature,
        threshold=ThresholdChoice(rule=words, protocol=chosen.protocol, curve=_rows(chosen.cycle_curve)),
        cycle_threshold=chosen.cycle_threshold,
        site_rule=chosen.site_rule,
        site_threshold=None
        if chosen.site_curve is None
        else ThresholdChoice(rule=words, protocol="recordings", curve=_rows(chosen.site_curve)),
        calibration=chosen.calibration,
        segmentation=segmentation_for(request.recipe),
        readings={},
    )
    run = RunFacts(
        recipe_name=request.recipe_name,
        recipe=request.recipe,
        front_end=prepared.front_end,
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
        refit_epochs=[one.epochs_done for one in trained.refitted],
        weights=file_digest(folder / WEIGHTS_FILE),
        versions=versions(),
    )
    name = folder.resolve().name
    served = of_run(model, run, name, device)
    judged = dataclasses.replace(
        corpus, recordings=tuple(one for member in members for one in member.held_out.recordings), notes=()
    )
    stretches = [
        read_stretches(member.held_out, cache, of_run(member.model, run, name, device), protocol) for member in members
    ]
    outcomes: dict[Protocol, Outcome] = {protocol: join(stretches), **chosen.outcomes}
    for read_on, outcome in outcomes.items():
        save_outcome(outcome_file(folder, read_on), outcome)
    readings = {read_on: reading(outcome, read_on, served, judged) for read_on, outcome in outcomes.items()}
    run = run.model_copy(update={"choice": choice.model_copy(update={"readings": readings})})
    # last: a folder with run.json is a finished run
    write_atomically(folder / RUN_FILE, run.model_dump_json(indent=1))
    return run


@dataclass(frozen=True)
class Thresholds:
    """What held-out patients choose, and how they are read with it."""

    protocol: Protocol
    """What the cycle threshold was chosen on."""
    cycle_threshold: float
    cycle_curve: Float64Array
    site_rule: SiteRule
    site_curve: Float64Array | None
    """None without normal or abnormal recordings to fit on."""
    calibration: CalibrationBounds | None
    outcomes: dict[Protocol, Outcome]
    """Through the live path."""


def hear_held_out(
    members: Sequence[Member],
    prepared: Prepared,
    recipe: Recipe,
    temperature: float,
    quality: QualitySettings,
    device: torch.device,
) -> list[Heard]:
    """Every held-out patient's recordings through the live path, by the member that never met the patient."""
    heard = []
    for member in members:
        served = of_network(member.model, device, recipe, prepared.front_end, temperature)
        heard += hear(gradable(member.held_out), prepared.cache, served, quality)
    return heard


def choose_thresholds(heard: Sequence[Heard], cache: AudioCache) -> Thresholds:
    """The cycle threshold on what the screen showed for annotated cycles, the site rule on whole recordings.

    Where no cycle is annotated, the cycle threshold is the one of the sites.
    """
    live = of_shown(heard, cache)
    labels = np.array([one.recording.label != "normal" for one in heard])
    site_rule, site_curve, calibration = UNFITTED, None, None
    if len(np.unique(labels)) == 2:
        site_rule, site_curve = fit_site_rule(heard)
        calibration = calibration_of(site_rule, site_curve)
    protocol: Protocol = "live"
    if len(np.unique(live.true > 0)) == 2:
        cycle_curve = balanced_curve(live.true > 0, live.probability, voices(live.devices, live.patients))
        threshold = round(float(best_row(cycle_curve)[0]), 6)
    elif site_curve is not None:
        protocol, cycle_curve, threshold = "recordings", site_curve, site_rule.threshold
    else:
        raise FitError("the held-out patients' cycles are normal or abnormal only; add patients")
    if site_curve is None:
        site_rule = site_rule.model_copy(update={"threshold": threshold})
    heard = [rejudged(one, threshold) for one in heard]
    outcomes: dict[Protocol, Outcome] = {}
    if protocol == "live":
        outcomes["live"] = of_shown(heard, cache)
    if site_curve is not None:
        outcomes["recordings"] = of_heard(heard, cache, site_rule)
    return Thresholds(protocol, threshold, cycle_curve, site_rule, site_curve, calibration, outcomes)


def _rows(curve: Float64Array) -> tuple[tuple[float, float, float], ...]:
    """The operating curve at about a hundred thresholds."""
    rows = curve[np.unique(np.linspace(0, len(curve) - 1, CURVE_ROWS).round().astype(int))]
    return tuple((round(float(t), 6), round(float(se), 4), round(float(sp), 4)) for t, se, sp in rows)


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
