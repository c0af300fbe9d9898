"""Fitting, evaluating and studying as functions with typed arguments and results, for commands and notebooks."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Final

import torch
from rich.console import Console

from firmware_config.settings import Settings, load_settings
from trainer.choices import Protocol
from trainer.corpora import Corpus, CorpusError, Source, load_corpora
from trainer.corpora.audio_cache import AudioCache, with_audio
from trainer.corpora.protocols import FLATTERED, protocol_for
from trainer.evaluation import evaluate as evaluation
from trainer.evaluation.compare import Compared, on_corpus
from trainer.evaluation.history import log_reading
from trainer.evaluation.served import ServedModel, open_served
from trainer.reading import Reading
from trainer.report.report import write_report
from trainer.run.folder import REPORT_FILE, RunFacts, begun, read_facts
from trainer.run.machine import Machine, check_started, follows, resolved, start
from trainer.run.preflight import check_weights, finished
from trainer.run.recipe import Recipe
from trainer.run.request import Request, Where
from trainer.studies.cells import Cell, Plan, plan_cells, run_cells
from trainer.studies.report import Line, lines_of, notes_on
from trainer.studies.report import write_report as write_study
from trainer.studies.study import Study
from trainer.training.checkpoints import initial_weights
from trainer.training.experiment import Prepared, prepare
from trainer.training.finish import finish, finish_seconds
from trainer.training.members import Call, train_members
from trainer.training.progress import FitView, lasting
from trainer.training.train import run_folder, write_log


@dataclass(frozen=True)
class Fitted:
    """A finished run."""

    facts: RunFacts
    report: Path
    """It holds patients' sound."""


HERE: Final = Where()


def quiet() -> FitView:
    """A view that shows nothing."""
    return FitView(Console(quiet=True))


def fit(
    request: Request,
    out: Path,
    where: Where = HERE,
    *,
    resume: bool = False,
    minutes: float | None = None,
    view: FitView | None = None,
    settings: Settings | None = None,
) -> Fitted | None:
    """Train on the request's corpora into the run folder `out`; None in a process that only helps another one.

    All of it takes `minutes`: training stops in time for the finish, within an epoch where need be. `resume` goes on
    with the run in `out`; a finished one is returned as it is. A fit that fails before its first checkpoint leaves no
    folder. Raises RespSAMError's children for what does not hold, before training where that can be known.
    """
    began, view, settings = time.monotonic(), view or quiet(), settings or load_settings()
    kind = resolved(where.device)
    check_started(where.processes, where.nodes)
    if finished(request, out, resume) and (out / REPORT_FILE).is_file():
        return Fitted(read_facts(out), out / REPORT_FILE)
    check_weights(request, out)
    with nullcontext() if follows() else run_folder(out):
        prepared, machine = _begin(request, out, where, kind, view, settings)
        left = (
            None if minutes is None else _minutes_to_train(request, prepared, machine, began, minutes, view, settings)
        )
        with view.stage("training"):
            try:
                trained = train_members(request, prepared, out, Call(machine, view, resume, left))
            except KeyboardInterrupt:
                kept = "finished epochs are saved, go on with --resume" if begun(out) else "no epoch was finished"
                view.say(f"interrupted; {kept}")
                raise
        if machine.rank != 0:
            return None
        with view.stage("calibrating on the held-out patients' recordings"):
            facts = finish(trained, out, request, prepared, settings.quality, machine.device)
        with view.stage("writing the report"):
            return Fitted(facts, write_report(out, prepared.corpus, prepared.cache, machine.device))


def _begin(
    request: Request, out: Path, where: Where, kind: str, view: FitView, settings: Settings
) -> tuple[Prepared, Machine]:
    """The corpus, ready to train on, and this process among those that train; shown and logged."""
    lines = _first_lines(request.recipe, out)
    with view.stage("reading audio") as progress:
        prepared = prepare(request, settings.training.folder, progress)
    prepared.cache.trim(settings.training.folder, settings.training.cache_gigabytes)
    for line in lines:
        view.say(line)
    # after the corpus has been checked: one process reports its problems, not several
    machine = start(
        kind,
        processes=where.processes,
        nodes=where.nodes,
        precision=request.recipe.optimizer.precision,
        workers=settings.training.workers,
        compiled=where.compiled,
        checkpointing=where.checkpointing,
    )
    use_threads(settings)
    if machine.rank == 0:
        notes = (*prepared.corpus.notes, *prepared.stethoscopes(request.recipe.data))
        view.notes(notes)
        write_log(out, [*notes, *lines])
    view.say(machine.in_words)
    return prepared, machine


def _minutes_to_train(
    request: Request,
    prepared: Prepared,
    machine: Machine,
    began: float,
    minutes: float,
    view: FitView,
    settings: Settings,
) -> float:
    """The minutes left for training, without the finish; a note where none are left."""
    finishing = 0.0
    if machine.rank == 0:  # it decides for the others
        with view.stage("measuring how long the finish will take"):
            finishing = finish_seconds(request, prepared, settings.quality, machine.device)
    now = time.monotonic()
    left = began + 60 * minutes - now - finishing
    view.ends = now + left
    if left <= 0:
        view.say(
            f"note: --minutes {minutes:.3g} is less than this run takes: {lasting(now - began)} are over, and the "
            f"finish takes about {lasting(finishing)}; a model that has not trained yet takes one step"
        )
    return left / 60


def _first_lines(recipe: Recipe, out: Path) -> list[str]:
    """The first lines of a run and of its log, about its recipe; CheckpointError before any audio is read."""
    lines = [f"warning: {FLATTERED}"] if recipe.data.choose_on == "test" else []
    # a run that goes on has its weights
    if begun(out) or not recipe.init:
        return lines
    return [*lines, str(initial_weights(recipe.init, recipe.model, recipe.init_sha256)[1])]


@dataclass(frozen=True)
class Selection:
    """The corpora of a reading, their part (None: the test part where there is one), and the protocol."""

    sources: tuple[Source, ...]
    part: str | None = None
    split: str = "official"
    lenient: bool = False
    """Leave bad recordings out, noted, instead of stopping."""
    protocol: Protocol | None = None
    """None: the corpus's own."""


def evaluate(
    model: Path,
    selection: Selection,
    *,
    calibrate_on: int | None = None,
    device: str = "auto",
    view: FitView | None = None,
    settings: Settings | None = None,
) -> Reading:
    """Read the accuracy of a run or a bundle; a run's reading is logged in its folder, a second one of the same noted.

    `calibrate_on` also reads whole recordings after a calibration on so many healthy people.
    """
    view, settings = view or quiet(), settings or load_settings()
    served = open_served(model, torch_device(device, settings))
    corpus, cache, protocol = open_selection([served], selection, view, settings)
    if calibrate_on is not None and protocol != "recordings":
        raise CorpusError("a calibration is of whole recordings: add --protocol recordings")
    with view.stage("listening") as progress:
        reading = evaluation.evaluate(served, corpus, cache, protocol, settings.quality, progress, calibrate_on)
    view.notes(log_reading(model, reading))
    return reading


def compare(
    first: Path,
    second: Path,
    selection: Selection,
    *,
    device: str = "auto",
    view: FitView | None = None,
    settings: Settings | None = None,
) -> Compared:
    """Two runs or bundles read on the same examples: B - A with paired intervals. Runs log their readings."""
    view, settings = view or quiet(), settings or load_settings()
    kind = torch_device(device, settings)
    models = open_served(first, kind), open_served(second, kind)
    corpus, cache, protocol = open_selection(models, selection, view, settings)
    with view.stage("listening") as progress:
        compared, readings = on_corpus(models, corpus, cache, protocol, settings.quality, progress)
    for path, reading in zip((first, second), readings, strict=True):
        view.notes(log_reading(path, reading))
    return compared


def open_selection(
    models: Sequence[ServedModel], selection: Selection, view: FitView, settings: Settings
) -> tuple[Corpus, AudioCache, Protocol]:
    """The corpus that these models are read on, its audio, and how; SplitError when one of them was trained on it."""
    corpus = load_corpora(
        selection.sources,
        part=selection.part,
        split=selection.split,
        lenient=selection.lenient,
        purpose="evaluate",
    )
    protocol = protocol_for(selection.protocol, corpus)
    for model in models:
        evaluation.refuse_trained_patients(model, corpus, selection.split)
    with view.stage("reading audio") as progress:
        corpus, cache = with_audio(corpus, settings.training.folder, lenient=selection.lenient, progress=progress)
    cache.trim(settings.training.folder, settings.training.cache_gigabytes)
    view.notes(corpus.notes)
    return corpus, cache, protocol


@dataclass(frozen=True)
class Studied:
    """The results of a study."""

    lines: list[Line]
    """One a setting and a target, the reference first."""
    notes: list[str]
    """Limits of these results."""
    cells: int
    failed: int


def study(
    asked: Study,
    plan: Plan,
    out: Path,
    *,
    seeds: int = 3,
    changes: Mapping[str, object] | None = None,
    jobs: int = 1,
    cluster: str = "",
    name: str = "study",
    view: FitView | None = None,
) -> Studied:
    """Train and read every setting with every seed, and write OUT/NAME.md and .svg; goes on where it stopped.

    `changes` are `section.field` over the recipe of the plan's request, for all settings. `jobs` cells run at once by
    Ray, here or at the address `cluster`.
    """
    view = view or quiet()
    recipes = asked.recipes(plan.request.recipe, changes or {})
    with view.stage("reading audio"):
        plan, cells, notes = plan_cells(asked, plan, recipes, seeds, out)
    view.notes(notes)
    before = sum(cell.done(plan) for cell in cells)
    view.say(f"{len(recipes)} settings x {seeds} seeds = {len(cells)} cells, {before} of them done before")
    with view.stage("training cells") as progress:
        ended = count(1)

        def show(cell: Cell, problem: str | None) -> None:
            facts = cell.facts()
            how = (
                f"{facts.epochs_done} epochs in {facts.seconds:.0f} s"
                if facts and not problem
                else f"FAILED: {problem}"
            )
            view.say(f"{cell.setting}, seed {cell.seed}: {how}")
            progress(next(ended), len(cells) - before)

        failed = run_cells(cells, plan, show, jobs, cluster)
    lines = lines_of(asked, cells, plan.targets)
    studied = Studied(lines, notes_on(asked, lines, seeds), len(cells), failed)
    if lines:
        write_study(name, asked, lines, studied.notes, out)
    return studied


def absolute(sources: Sequence[Source]) -> tuple[Source, ...]:
    """With whole paths: a worker of Ray has another working folder."""
    return tuple(replace(source, data=source.data.resolve()) for source in sources)


def torch_device(wanted: str, settings: Settings) -> torch.device:
    """The device of that name (auto, cpu, cuda); torch gets the threads of the settings."""
    use_threads(settings)
    return torch.device(resolved(wanted))


def use_threads(settings: Settings) -> None:
    """Give torch the threads of the settings; 0 leaves its own number."""
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
