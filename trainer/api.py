"""Fitting, evaluating and studying as functions with typed arguments and results: what commands and notebooks call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from firmware_config.settings import Settings, load_settings
from trainer.corpora import Corpus, CorpusError, Source, load_corpora
from trainer.corpora.audio_cache import AudioCache, with_audio
from trainer.corpora.protocols import FLATTERED, Protocol, check_protocol, default_protocol
from trainer.evaluation import evaluate as evaluation
from trainer.evaluation.compare import Compared, on_corpus
from trainer.evaluation.history import log_reading
from trainer.evaluation.served import ServedModel, open_served
from trainer.reading import Reading
from trainer.report.report import write_report
from trainer.run.folder import RunFacts, begun
from trainer.run.machine import check_started, resolved, start
from trainer.run.recipe import Recipe
from trainer.studies.cells import Cell, Plan, plan_cells, run_cells
from trainer.studies.report import Line, lines_of, notes_on
from trainer.studies.report import write_report as write_study
from trainer.studies.study import Study
from trainer.training.checkpoints import initial_weights
from trainer.training.experiment import Request, prepare
from trainer.training.finish import finish
from trainer.training.members import Call, train_members
from trainer.training.progress import FitView, audio_bar
from trainer.training.train import prepare_folder, write_log


@dataclass(frozen=True)
class Where:
    """Where a fit runs: `device` is auto, cpu or cuda; several processes and nodes share its steps."""

    device: str = "auto"
    processes: int = 1
    nodes: int = 1
    compiled: bool = False
    """Through torch.compile."""
    checkpointing: bool = False
    """Less memory, a third more time: activations are computed again."""


@dataclass(frozen=True)
class Fitted:
    """A finished run."""

    facts: RunFacts
    report: Path
    """It holds patients' sound."""


HERE = Where()


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

    `minutes` ends it after the epoch that fits, and `resume` goes on with the run in `out`. Raises RespSAMError's
    children for what does not hold, before training where that can be known.
    """
    view, settings, recipe = view or quiet(), settings or load_settings(), request.recipe
    kind = resolved(where.device)
    check_started(where.processes, where.nodes)
    prepare_folder(out, resume)
    said = _first_lines(recipe, out)
    with audio_bar(view.console, "reading audio") as progress:
        prepared = prepare(request, settings.training.folder, progress)
    prepared.cache.trim(settings.training.folder, settings.training.cache_gigabytes)
    for line in said:
        view.say(line)
    # what is wrong with the corpus has been said by one process before there are several
    machine = start(
        kind,
        processes=where.processes,
        nodes=where.nodes,
        precision=recipe.optimizer.precision,
        workers=settings.training.workers,
        compiled=where.compiled,
        checkpointing=where.checkpointing,
    )
    use_threads(settings)
    if machine.rank == 0:
        notes = (*prepared.corpus.notes, *prepared.stethoscopes(recipe.data))
        view.notes(notes)
        write_log(out, [*notes, *said])
    view.console.print(machine.in_words)
    with view:
        try:
            trained = train_members(request, prepared, out, Call(machine, view, resume, minutes))
        except KeyboardInterrupt:
            view.say("interrupted; finished epochs are saved, go on with --resume")
            raise
    if machine.rank != 0:
        return None
    with view.console.status("calibrating on the held-out patients' recordings"):
        facts = finish(trained, out, request, prepared, settings.quality, machine.device)
    with view.console.status("writing the report"):
        return Fitted(facts, write_report(out, prepared.corpus, prepared.cache, machine.device))


def _first_lines(recipe: Recipe, out: Path) -> list[str]:
    """What a run's first lines and its log say of its recipe; CheckpointError before any audio is read."""
    said = [f"warning: {FLATTERED}"] if recipe.data.choose_on == "test" else []
    # a run that goes on has its weights
    if begun(out) or not recipe.init:
        return said
    return [*said, str(initial_weights(recipe.init, recipe.model, recipe.init_sha256)[1])]


@dataclass(frozen=True)
class Selection:
    """What is read: corpora, their part (None: the test part where there is one), and how."""

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
    with audio_bar(view.console, "listening") as progress:
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
    with audio_bar(view.console, "listening") as progress:
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
    protocol = selection.protocol or default_protocol(corpus)
    check_protocol(corpus, protocol)
    for model in models:
        evaluation.refuse_trained_patients(model, corpus, selection.split)
    with audio_bar(view.console, "reading audio") as progress:
        corpus, cache = with_audio(corpus, settings.training.folder, lenient=selection.lenient, progress=progress)
    cache.trim(settings.training.folder, settings.training.cache_gigabytes)
    view.notes(corpus.notes)
    return corpus, cache, protocol


@dataclass(frozen=True)
class Studied:
    """What a study found."""

    lines: list[Line]
    """One a setting and a target, the reference first."""
    notes: list[str]
    """What a reader must know before believing the lines."""
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
    with view.console.status("reading audio"):
        plan, cells, notes = plan_cells(asked, plan, recipes, seeds, out)
    view.notes(notes)
    done = sum(cell.done(plan) for cell in cells)
    view.say(f"{len(recipes)} settings x {seeds} seeds = {len(cells)} cells, {done} of them done before")

    def ended(cell: Cell, problem: str | None) -> None:
        facts = cell.facts()
        how = f"{facts.epochs_done} epochs in {facts.seconds:.0f} s" if facts and not problem else f"FAILED: {problem}"
        view.say(f"{cell.setting}, seed {cell.seed}: {how}")

    failed = run_cells(cells, plan, ended, jobs, cluster)
    lines = lines_of(asked, cells, plan.targets)
    studied = Studied(lines, notes_on(asked, lines, seeds), len(cells), failed)
    if lines:
        write_study(name, asked, lines, studied.notes, out)
    return studied


def absolute(sources: Sequence[Source]) -> tuple[Source, ...]:
    """With whole paths: a worker of Ray has another working folder."""
    return tuple(replace(source, data=source.data.resolve()) for source in sources)


def torch_device(wanted: str, settings: Settings) -> torch.device:
    """The device of that name (auto, cpu, cuda), and torch with as many threads as the settings say."""
    use_threads(settings)
    return torch.device(resolved(wanted))


def use_threads(settings: Settings) -> None:
    """As many threads of torch as the settings say; 0 leaves them."""
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
