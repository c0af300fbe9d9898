"""`trainer`: data describe, fit, evaluate, compare, explain, report, study, segmentation, grading.

Parses and prints; the work is in functions that a notebook could call.
"""

import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firmware_config.command_line import ConfigOption, application, run

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from firmware_config.settings import Settings
    from trainer.audio_cache import AudioCache
    from trainer.corpora import Corpus, Source
    from trainer.protocols import Protocol
    from trainer.recipe import Recipe
    from trainer.served import ServedModel

app = application("Train and evaluate RespSAM's model on annotated lung sounds.")
data_app = application("Look at a corpus.")
app.add_typer(data_app, name="data")

NOTES_SHOWN = 5

CorpusOption = Annotated[
    list[str], typer.Option("--corpus", help="icbhi, sprsound, kauh or manifest; once for every --data.")
]
DataOption = Annotated[
    list[Path], typer.Option("--data", help="Corpus root as published, or any folder of pairs; may be repeated.")
]
MovedOption = Annotated[
    list[Path] | None,
    typer.Option("--data", help="The run's corpora, where they have moved since the fit, in the same order."),
]
PartOption = Annotated[str | None, typer.Option("--part", help="train, test, intra, inter or all.")]
SplitOption = Annotated[str, typer.Option("--split", help="ICBHI: official or as-published.")]
LenientOption = Annotated[
    bool, typer.Option("--lenient", help="Leave bad recordings out, counted, instead of stopping.")
]
ProtocolOption = Annotated[
    str | None, typer.Option("--protocol", help="events, windows, stretches, live or recordings.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def main() -> None:
    """Entry point of `trainer`."""
    # before torch is imported: spinning OpenMP threads make a step 2-6 times slower when anything else runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run(app, "respsam-trainer")


@data_app.command()
def describe(
    corpus: CorpusOption,
    data: DataOption,
    part: PartOption = None,
    lenient: LenientOption = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    config: ConfigOption = None,
) -> None:
    """Count a corpus by class, patient, device, site and duration, from its annotations alone."""
    from dataclasses import asdict

    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer.corpora import load_corpora
    from trainer.describe import describe as description_of
    from trainer.describe import render

    load_settings(config)
    # as published: the counts of the literature; the notes still name the leaking patients
    read = load_corpora(sources_of(corpus, data), part=part, split="as-published", audio=False, lenient=lenient)
    _show_notes(read.notes)
    description = description_of(read)
    if json_output:
        _print_json(asdict(description))
    else:
        render(description, Console())


@app.command()
def fit(
    corpus: CorpusOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Run folder.")],
    recipe: Annotated[str, typer.Option("--recipe", help="A shipped recipe or a TOML file.")] = "mobilenet",
    part: PartOption = None,
    split: SplitOption = "official",
    lenient: LenientOption = False,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.0, help="Stop after the epoch that fits.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")] = 0,
    crops: Annotated[str | None, typer.Option("--crops", help="random or events; over the recipe's.")] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="Weights to begin at: hub:OWNER/NAME, a folder, a .pth or .pt.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Over the recipe's.")] = None,
    members: Annotated[
        int | None, typer.Option("--members", min=1, help="Models, each with its own held-out fold; over the recipe's.")
    ] = None,
    refit: Annotated[
        int | None, typer.Option("--refit", min=0, help="Models of all patients, served then; over the recipe's.")
    ] = None,
    hold_out: Annotated[
        str | None, typer.Option("--hold-out", help="patients (folds of them), device or maker (one a fold).")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=2, help="Cycles a micro-batch; over the recipe's.")
    ] = None,
    accumulation: Annotated[int | None, typer.Option("--accumulation", min=1, help="Micro-batches a step.")] = None,
    rho: Annotated[
        float | None, typer.Option("--rho", min=0.0, help="SAM's radius, 0 without; over the recipe's.")
    ] = None,
    sharpness: Annotated[str | None, typer.Option("--sharpness", help="sam or asam; over the recipe's.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="32 or bf16; over the recipe's.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="On this machine, one a GPU.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines, with torchrun or SLURM.")] = 1,
    compiled: Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory, a third more time: recompute activations.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Train on a corpus; temperature, threshold and site rule come from held-out patients.

    So does the epoch, unless further models of all patients are to serve (--refit).
    """
    if processes > 1:
        # before numpy and torch are imported: each process and each of its workers would start a thread a core
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer.experiment import Request, prepare
    from trainer.finish import finish
    from trainer.fit import prepare_folder, write_log
    from trainer.machine import check_started, follows, resolved, start
    from trainer.members import train_members
    from trainer.recipe import load_recipe, with_changes
    from trainer.report import write_report
    from trainer.view import EpochView

    settings, sources = load_settings(config), sources_of(corpus, data)
    changes = {
        "init": init,
        "data.crops": crops,
        "data.hold_out": hold_out,
        "data.members": members,
        "data.refit": refit,
        "optimizer.rho": rho,
        "optimizer.sharpness": sharpness,
        "optimizer.precision": precision,
        "optimizer.epochs": epochs,
        "optimizer.batch": batch,
        "optimizer.accumulation": accumulation,
    }
    chosen = with_changes(load_recipe(recipe), changes)
    console = Console(stderr=True, quiet=follows())
    kind = resolved(device)
    check_started(processes, nodes)
    prepare_folder(out, resume)
    said = _said_first(chosen, out)
    request = Request(chosen, recipe, sources, part, split, lenient, seed)
    with _progress(console, "reading audio") as progress:
        prepared = prepare(request, settings.training.folder, progress)
    for line in said:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    # what is wrong with the corpus has been said by one process before there are several
    machine = start(
        kind,
        processes=processes,
        nodes=nodes,
        precision=chosen.optimizer.precision,
        workers=settings.training.workers,
        compiled=compiled,
        checkpointing=checkpointing,
    )
    _use_threads(settings)
    if machine.rank == 0:
        notes = (*prepared.corpus.notes, *prepared.stethoscopes(chosen.data))
        _show_notes(notes)
        write_log(out, [*notes, *said])
    console.print(machine.in_words)
    with EpochView(console) as view:
        try:
            trained, refitted = train_members(
                chosen,
                prepared.corpus,
                prepared.folds[: chosen.data.members],
                prepared.cache,
                prepared.front_end,
                out,
                machine=machine,
                seed=seed,
                resume=resume,
                minutes=minutes,
                watcher=view,
                keep=chosen.data.keep,
            )
        except KeyboardInterrupt:
            console.print("interrupted; finished epochs are saved, go on with --resume")
            raise
    if machine.rank == 0:
        with console.status("calibrating on the held-out patients' recordings"):
            facts = finish(trained, refitted, out, request, prepared, settings.quality, machine.device)
        _show_fit(facts)
        with console.status("writing the report"):
            written = write_report(out, prepared.corpus, prepared.cache, machine.device)
        typer.echo(
            f"report in {written} (it holds patients' sound); next: respsam-export build {out} --int8 --out BUNDLE"
        )


def _said_first(recipe: "Recipe", out: Path) -> list[str]:
    """What a run's first lines and its log say of its recipe; CheckpointError before any audio is read."""
    from trainer.checkpoints import initial_weights
    from trainer.run import begun
    from trainer.view import FLATTERED

    said = [f"warning: {FLATTERED}"] if recipe.data.choose_on == "test" else []
    # a run that goes on has its weights
    if begun(out) or not recipe.init:
        return said
    return [*said, str(initial_weights(recipe.init, recipe.model, recipe.init_sha256)[1])]


def _show_fit(facts: Any) -> None:
    from rich.console import Console

    from trainer.view import FLATTERED, readings_table

    console = Console()
    choice = facts.choice
    console.print(
        f"{facts.recipe.data.keep} epoch {' / '.join(map(str, choice.epochs))} of {max(facts.epochs_done)}, "
        f"temperature {choice.temperature:.2f}, threshold {choice.cycle_threshold:.3f}; "
        f"a site is flagged when {choice.site_rule.in_words} ({choice.segmentation.method})"
    )
    whose = "held-out patients (they chose the above: a little too good)"
    if facts.recipe.data.choose_on == "test":
        whose = f"THE TEST PART: {FLATTERED}"
    console.print(readings_table(choice.readings.values(), whose))


@app.command()
def evaluate(
    subject: Annotated[Path, typer.Argument(help="A run folder or a bundle.", metavar="RUN|BUNDLE")],
    corpus: CorpusOption,
    data: DataOption,
    part: PartOption = None,
    protocol: ProtocolOption = None,
    split: SplitOption = "official",
    lenient: LenientOption = False,
    device: DeviceOption = "auto",
    calibrate_on: Annotated[
        int | None,
        typer.Option("--calibrate-on", min=2, help="Also after a calibration on so many healthy people (recordings)."),
    ] = None,
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Read accuracy in both conventions with patient-bootstrap intervals, and what the confounders reach alone."""
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer import evaluate as evaluation
    from trainer.history import log_reading
    from trainer.served import open_served
    from trainer.view import show_reading

    settings = load_settings(config)
    console = Console(stderr=True)
    sources = sources_of(corpus, data)
    opened = open_served(subject, _device(device, settings))
    read, cache, chosen = _to_read([opened], sources, part, protocol, split, lenient, settings)
    if calibrate_on is not None and chosen != "recordings":
        raise typer.BadParameter("a calibration is of whole recordings: add --protocol recordings")
    with _progress(console, "listening") as progress:
        reading = evaluation.evaluate(opened, read, cache, chosen, settings.quality, progress, calibrate_on)
    _show_notes(log_reading(subject, reading))
    if json_output:
        _print_json(reading.as_json())
    else:
        show_reading(reading, Console())


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="ablation, rho, stethoscopes, padding, level, duration, or a TOML file.")],
    corpus: CorpusOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of tables, pictures and cells; studies share it.")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Models a setting, each holds out another fold.")] = 3,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.0, help="Of training a cell in all; at least one epoch.")
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="A shipped recipe or a TOML file.")] = "mobilenet",
    draws: Annotated[int | None, typer.Option("--draws", min=1, help="An epoch; over the recipe's.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Over the recipe's.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--settings", help="This one and the reference alone; may be repeated.")
    ] = None,
    to_corpus: Annotated[str, typer.Option("--to-corpus", help="Read this corpus, too, and never train on it.")] = "",
    to_data: Annotated[Path | None, typer.Option("--to-data", help="Its root.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Cells at once, a thread each; above 1 by Ray.")] = 1,
    ray: Annotated[str, typer.Option("--ray", metavar="ADDRESS", help="Of a Ray cluster that sees --out.")] = "",
    part: PartOption = None,
    split: SplitOption = "official",
    lenient: LenientOption = False,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
) -> None:
    """Train in several settings with several seeds and compare them on held-out patients; goes on where it stopped."""
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer.cells import Cell, Plan, plan_cells, run_cells
    from trainer.corpora import Source
    from trainer.experiment import Request
    from trainer.machine import resolved
    from trainer.recipe import load_recipe
    from trainer.study import StudyError, load_study
    from trainer.study_report import lines_of, notes_on, tables, write_report

    settings = load_settings(config)
    # a worker of Ray has another working folder
    sources = tuple(Source(one.name, one.data.resolve()) for one in sources_of(corpus, data))
    asked = load_study(name).only(only or [])
    if bool(to_corpus) != bool(to_data):
        raise typer.BadParameter("another corpus is read with --to-corpus C --to-data DIR", param_hint="--to-corpus")
    base = load_recipe(recipe)
    recipes = asked.recipes(base, {"data.draws": draws, "optimizer.epochs": epochs})
    plan = Plan(
        Request(base, "study", sources, part, split, lenient),
        settings.training.folder.resolve(),
        settings.quality,
        to_corpus,
        (to_data or Path()).resolve(),
        resolved(device),
        minutes,
    )
    progress, shown = Console(stderr=True, soft_wrap=True, highlight=False, markup=False), Console(soft_wrap=True)
    with progress.status("reading audio"):
        plan, cells, corpus_notes = plan_cells(asked, plan, recipes, seeds, out)
    _show_notes(corpus_notes)
    done = sum(cell.done(plan) for cell in cells)
    progress.print(f"{len(recipes)} settings x {seeds} seeds = {len(cells)} cells, {done} of them done before")

    def told(cell: Cell, problem: str | None) -> None:
        facts = cell.facts()
        how = f"{facts.epochs_done} epochs in {facts.seconds:.0f} s" if facts and not problem else f"FAILED: {problem}"
        progress.print(f"{cell.setting}, seed {cell.seed}: {how}")

    failed = run_cells(cells, plan, told, jobs, ray)
    lines, stem = lines_of(asked, cells, plan.targets), Path(name).stem
    notes = notes_on(asked, lines, seeds)
    if lines:
        write_report(stem, asked, lines, notes, out)
        for table in tables(lines):
            shown.print(table, soft_wrap=False)
        for note in notes:
            shown.print(f"- {note}", highlight=False, markup=False)
        shown.print(f"in full in {out / stem}.md, as a picture in {out / stem}.svg", highlight=False)
    if failed:
        raise StudyError(f"{failed} of {len(cells)} cells failed, see above; what the others gave is kept")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run folder or a bundle.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="Another.", metavar="B")],
    corpus: Annotated[
        list[str] | None, typer.Option("--corpus", help="icbhi, sprsound, kauh or manifest; once for every --data.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Corpus root, or any folder of pairs; may be repeated.")
    ] = None,
    part: PartOption = None,
    protocol: ProtocolOption = None,
    split: SplitOption = "official",
    lenient: LenientOption = False,
    device: DeviceOption = "auto",
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Is B better than A? B - A with paired intervals: of two runs on what both held out, or on a --part read now."""
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer import compare as comparing
    from trainer.history import log_reading
    from trainer.served import open_served
    from trainer.view import show_comparison

    settings = load_settings(config)
    sources = sources_of(corpus or [], data or [])
    shared = comparing.protocol_of_runs(first, second) if part is None and not sources else None
    if shared is not None:
        compared = comparing.on_held_out(first, second, protocol_named(protocol or shared))
    elif not sources:
        raise typer.BadParameter("a --part, or a bundle, is read on a corpus: give --corpus and --data")
    else:
        one, other = (open_served(path, _device(device, settings)) for path in (first, second))
        read, cache, chosen = _to_read([one, other], sources, part, protocol, split, lenient, settings)
        with _progress(Console(stderr=True), "listening") as progress:
            compared, readings = comparing.on_corpus(one, other, read, cache, chosen, settings.quality, progress)
        for path, reading in zip((first, second), readings, strict=True):
            _show_notes(log_reading(path, reading))
    if json_output:
        _print_json(compared.as_json())
    else:
        show_comparison(compared, Console())


def _to_read(
    subjects: "list[ServedModel]",
    sources: "tuple[Source, ...]",
    part: str | None,
    protocol: str | None,
    split: str,
    lenient: bool,
    settings: "Settings",
) -> "tuple[Corpus, AudioCache, Protocol]":
    """The corpus that these models are read on, its audio, and how; SplitError when one of them was trained on it."""
    from rich.console import Console

    from trainer.audio_cache import with_audio
    from trainer.corpora import load_corpora
    from trainer.evaluate import refuse_trained_patients

    asked = None if protocol is None else protocol_named(protocol)
    read = load_corpora(sources, part=part, split=split, lenient=lenient, purpose="evaluate")
    chosen = protocol_for(asked, read)
    for subject in subjects:
        refuse_trained_patients(subject, read, split)
    with _progress(Console(stderr=True), "reading audio") as progress:
        read, cache = with_audio(read, settings.training.folder, lenient=lenient, progress=progress)
    _show_notes(read.notes)
    return read, cache, chosen


@app.command()
def segmentation(
    corpus: CorpusOption,
    data: DataOption,
    part: PartOption = None,
    folds: Annotated[int, typer.Option("--folds", min=0, help="Patient-wise; 0 scores the shipped detector.")] = 5,
    out: Annotated[Path | None, typer.Option("--out", help="Fit on all of it and write the detector here.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of folds and fit.")] = 0,
    lenient: LenientOption = False,
    config: ConfigOption = None,
) -> None:
    """Score how breaths are found, against fixed windows, by patient-wise cross-validation; or fit the detector."""
    from trainer import segmentation as finding

    read, cache, _ = _heard(corpus, data, part, lenient, config)
    if out is not None:
        finding.save_detector(finding.fit_detector(read.recordings, cache, seed), out)
        return
    _print_json(finding.compare(read, cache, finding.fold_detectors(read, cache, folds, seed)))


@app.command()
def grading(
    corpus: CorpusOption,
    data: DataOption,
    part: PartOption = None,
    folds: Annotated[int, typer.Option("--folds", min=0, help="Patient-wise; 0 takes detector and limits as set.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of folds and fit.")] = 0,
    lenient: LenientOption = False,
    config: ConfigOption = None,
) -> None:
    """Score how poor recordings are refused, and what it costs in good ones, by patient-wise cross-validation."""
    from trainer.grading import compare
    from trainer.segmentation import fold_detectors

    read, cache, settings = _heard(corpus, data, part, lenient, config)
    _print_json(compare(fold_detectors(read, cache, folds, seed), cache, settings.quality))


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")],
    file: Annotated[Path, typer.Argument(help="A wav or flac.", metavar="FILE")],
    at: Annotated[float | None, typer.Option("--at", help="Second to explain; else the most suspicious.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Draw it here: .png or .svg.")] = None,
    device: DeviceOption = "auto",
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show where a run's attention lies in a recording, and how much of it on seams and on silence."""
    from firmware_config.settings import load_settings
    from trainer import explain as explaining

    settings = load_settings(config)
    told = explaining.explain(run, file, _device(device, settings), settings.quality, at)
    if out is not None:
        explaining.draw(told, out)
    if json_output:
        _print_json(told.as_json())
    else:
        typer.echo(told.in_words)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A finished run folder.", metavar="RUN")],
    data: MovedOption = None,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
) -> None:
    """Write RUN/report.html again: curves, confusion, ROC, reliability, sharpness, worst mistakes with their sound."""
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer.experiment import prepare, request_of
    from trainer.report import write_report
    from trainer.run import read_facts

    settings = load_settings(config)
    console = Console(stderr=True)
    request = request_of(read_facts(run), data or [])
    with _progress(console, "reading audio") as progress:
        prepared = prepare(request, settings.training.folder, progress)
    with console.status("writing the report"):
        path = write_report(run, prepared.corpus, prepared.cache, _device(device, settings))
    typer.echo(f"{path} holds patients' sound: keep it where their recordings are kept")


def _heard(
    corpus: list[str], data: list[Path], part: str | None, lenient: bool, config: Path | None
) -> tuple[Any, Any, Any]:
    """A corpus, its audio and the settings."""
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer.audio_cache import open_corpora

    settings, sources = load_settings(config), sources_of(corpus, data)
    _use_threads(settings)
    with _progress(Console(stderr=True), "reading audio") as progress:
        read, cache = open_corpora(sources, settings.training.folder, part=part, lenient=lenient, progress=progress)
    _show_notes(read.notes)
    return read, cache, settings


def sources_of(corpus: list[str], data: list[Path]) -> "tuple[Source, ...]":
    """The pairs of --corpus and --data, in order; typer.BadParameter where one lacks the other."""
    from trainer.corpora import Source

    if len(corpus) != len(data):
        raise typer.BadParameter(
            f"{len(corpus)} --corpus and {len(data)} --data: they are given in pairs, --corpus NAME --data DIR",
            param_hint="--corpus",
        )
    return tuple(Source(name, folder) for name, folder in zip(corpus, data, strict=True))


def protocol_named(asked: str) -> "Protocol":
    """The protocol of that name; typer.BadParameter for another word."""
    from trainer.protocols import PROTOCOLS

    chosen = next((known for known in PROTOCOLS if known == asked), None)
    if chosen is None:
        raise typer.BadParameter(f"{asked!r} is not one of {', '.join(PROTOCOLS)}", param_hint="--protocol")
    return chosen


def protocol_for(asked: "Protocol | None", corpus: "Corpus") -> "Protocol":
    """What was asked, else the corpus's own; CorpusError where its labels do not allow it."""
    from trainer.protocols import check_protocol, default_protocol

    chosen = asked or default_protocol(corpus)
    check_protocol(corpus, chosen)
    return chosen


def _device(wanted: str, settings: "Settings") -> "torch.device":
    import torch

    from trainer.machine import resolved

    _use_threads(settings)
    return torch.device(resolved(wanted))


def _use_threads(settings: "Settings") -> None:
    import torch

    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)


def _show_notes(notes: tuple[str, ...]) -> None:
    for note in notes[:NOTES_SHOWN]:
        typer.echo(f"note: {note}", err=True)
    if len(notes) > NOTES_SHOWN:
        typer.echo(f"note: and {len(notes) - NOTES_SHOWN} more", err=True)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, default=str))


@contextmanager
def _progress(console: "Console", what: str) -> Any:
    """A bar on stderr that appears with the first call of what it yields."""
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    # off a terminal a bar that goes leaves an empty line
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task: list[Any] = []

    def advance(done: int, total: int) -> None:
        if not task:
            bar.start()
            task.append(bar.add_task(what, total=total))
        bar.update(task[0], completed=done)

    shown: Callable[[int, int], None] = advance
    try:
        yield shown
    finally:
        # a bar that never started would leave an empty line where the error is to stand
        if task:
            bar.stop()
