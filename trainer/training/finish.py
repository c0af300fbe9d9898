"""The end of `trainer fit`: the run's weights as one model, and the thresholds that held-out patients choose."""

import dataclasses
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch

from device.bundle import Population, ThresholdChoice
from firmware_config.files import write_atomically
from firmware_config.settings import QualitySettings
from trainer.choices import Protocol
from trainer.corpora import Corpus, parts_of
from trainer.corpora.cycle import number_of_grain
from trainer.corpora.protocols import stretch_protocol
from trainer.evaluation.evaluate import reading
from trainer.evaluation.outcome import Outcome, join, read_stretches, save_outcome
from trainer.evaluation.recordings import gradable, hear
from trainer.evaluation.score import score
from trainer.evaluation.served import of_network, of_run, segmentation_for
from trainer.metrics import fit_temperature
from trainer.model.network import network
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
from trainer.run.request import Request
from trainer.training.experiment import Prepared
from trainer.training.members import Trained
from trainer.training.thresholds import choose_thresholds, hear_held_out, operating_rows, rule_in_words

REHEARSED: Final = 8  # recordings
READINGS: Final = 3  # of stretches, of the live path, of recordings
REPORT_SECONDS: Final = 10.0  # its pictures
REPORT_PASSES: Final = 32 * 20  # windows that its sharpness and attention take of a model
MARGIN: Final = 1.2


def finish(
    trained: Trained,
    folder: Path,
    request: Request,
    prepared: Prepared,
    quality: QualitySettings,
    device: torch.device,
) -> RunFacts:
    """Write the weights to serve as one model, the members' predictions for held-out patients, and `run.json`.

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
    # the files written from here on belong together: without run.json the run counts as unfinished
    (folder / RUN_FILE).unlink(missing_ok=True)
    model = assemble(trained.served)
    save_tensors(folder / WEIGHTS_FILE, model.state_dict(), {"architecture": request.recipe.model.architecture})
    choice = Choice(
        epochs=[member.epoch for member in members],
        temperature=temperature,
        threshold=ThresholdChoice(rule=words, protocol=chosen.protocol, curve=operating_rows(chosen.cycle_curve)),
        cycle_threshold=chosen.cycle_threshold,
        site_rule=chosen.site_rule,
        site_threshold=None
        if chosen.site_curve is None
        else ThresholdChoice(rule=words, protocol="recordings", curve=operating_rows(chosen.site_curve)),
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
        label_grains=number_of_grain(corpus.recordings),
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


def finish_seconds(request: Request, prepared: Prepared, quality: QualitySettings, device: torch.device) -> float:
    """About how long `finish` and the report take on this machine, by an untrained model on a few recordings."""
    data, cache = request.recipe.data, prepared.cache
    served = of_network(
        network(request.recipe.model).to(device).eval(), device, request.recipe, prepared.front_end, temperature=1.0
    )
    held_out = [one for _, corpus in prepared.folds[: data.members] for one in gradable(corpus)]
    if not held_out:
        return REPORT_SECONDS
    few = dataclasses.replace(prepared.corpus, recordings=tuple(held_out[:: -(-len(held_out) // REHEARSED)]))
    times = sum(cache.seconds(one.name) for one in held_out) / sum(cache.seconds(one.name) for one in few.recordings)
    began = time.monotonic()
    hear(few.recordings, cache, served, quality)
    outcome = read_stretches(few, cache, served, stretch_protocol(prepared.corpus))
    listening, rows = time.monotonic() - began, len(outcome.true)
    whole = outcome.at(np.resize(np.arange(rows), round(rows * times)))
    began = time.monotonic()
    if rows:
        score(whole)
    scoring = time.monotonic() - began
    began = time.monotonic()
    served.logits(np.zeros((1, prepared.front_end.frames, prepared.front_end.mels), np.float32))
    report = REPORT_SECONDS + REPORT_PASSES * (data.refit or data.members) * (time.monotonic() - began)
    return MARGIN * (listening * times + READINGS * scoring + report)


def population(corpus: Corpus) -> Population:
    """The patients of this corpus, in figures: a bundle states them."""
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
