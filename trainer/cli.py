"""`trainer`: data describe, fit, evaluate, compare, explain, report, study, segmentation, grading.

Parses and prints; the work is in functions that a notebook could call.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from firmware_config.command_line import ConfigOption, application, json_text, next_step, run
from trainer.choices import (
    CORPORA,
    CorpusName,
    CropKind,
    DeviceKind,
    HoldOut,
    LabelForm,
    Part,
    Precision,
    Protocol,
    Sharpness,
    Split,
    document,
    shipped,
)

if TYPE_CHECKING:
    from firmware_config.settings import Settings
    from trainer.api import Studied
    from trainer.corpora import Source
    from trainer.run.request import Request, Where


def versions() -> list[str]:
    """Of the device's formats and model, of runs and of torch; a line each."""
    from importlib.metadata import PackageNotFoundError, version

    from device.versions import versions as of_device
    from trainer.run.folder import SCHEMA

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "is not installed"
    return [*of_device(), f"run schema {SCHEMA}", f"torch {torch}"]


app = application("Train and evaluate RespSAM's model on annotated lung sounds.", versions)
data_app = application("Look at a corpus, or make a manifest of your labels.")
app.add_typer(data_app, name="data")
cache_app = application("Look at the decoded audio that is kept for later commands, or remove it.")
data_app.add_typer(cache_app, name="cache")


def corpora_named(names: list[str] | None) -> list[str] | None:
    """The names of --corpus; typer.BadParameter for another word. Typer's own choices are not for lists."""
    for name in names or []:
        if name not in CORPORA:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(CORPORA)}")
    return names


def document_named(folder: str) -> Callable[[str], str]:
    """A callback that takes the name of a shipped TOML file or a path, else raises typer.BadParameter."""

    def check(name: str) -> str:
        if document(folder, name) is None:
            raise typer.BadParameter(f"{name!r} is neither a file nor one of {', '.join(shipped(folder))}")
        return name

    return check


def a_run(path: Path) -> Path:
    """A path where a run or a bundle may be; typer.BadParameter where nothing is."""
    if not path.exists():
        raise typer.BadParameter(f"{path}: no run here; make one with 'respsam-trainer fit'")
    return path


CORPUS: Final = typer.Option(
    "--corpus", metavar="|".join(CORPORA), callback=corpora_named, help="Kind of corpus; once for every --data."
)
CorpusOption = Annotated[list[str], CORPUS]
DataOption = Annotated[
    list[Path], typer.Option("--data", help="Corpus root as published, or any folder of pairs; may be repeated.")
]
MovedOption = Annotated[
    list[Path] | None,
    typer.Option("--data", help="The run's corpora, where they have moved since the fit, in the same order."),
]
PartOption = Annotated[Part | None, typer.Option("--part", help="Of the corpus, where it has parts.")]
SplitOption = Annotated[Split, typer.Option("--split", help="Of ICBHI; official leaves out who is on both sides.")]
LenientOption = Annotated[
    bool, typer.Option("--lenient", help="Leave bad recordings out, counted, instead of stopping.")
]
ProtocolOption = Annotated[Protocol | None, typer.Option("--protocol", help="What is read; else the corpus's own.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
DeviceOption = Annotated[DeviceKind, typer.Option("--device", help="Where torch computes.")]
RecipeOption = Annotated[
    str,
    typer.Option(
        "--recipe",
        metavar="|".join([*shipped("recipes"), "FILE"]),
        callback=document_named("recipes"),
        help="A shipped recipe or a TOML file.",
    ),
]

InitOption = Annotated[
    str | None, typer.Option("--init", help="Weights to begin at: hub:OWNER/NAME, a folder, a .pth or .pt.")
]
MembersOption = Annotated[
    int | None, typer.Option("--members", min=1, help="Models, each with its own held-out fold; over the recipe's.")
]
RefitOption = Annotated[
    int | None, typer.Option("--refit", min=0, help="Models of all patients, served then; over the recipe's.")
]
HoldOutOption = Annotated[
    HoldOut | None, typer.Option("--hold-out", help="A fold of patients, or one stethoscope or maker a fold.")
]
BatchOption = Annotated[int | None, typer.Option("--batch", min=2, help="Cycles a micro-batch; over the recipe's.")]
CheckpointingOption = Annotated[
    bool, typer.Option("--checkpointing", help="Less memory, a third more time: recompute activations.")
]


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
    from trainer.corpora.describe import describe as description_of
    from trainer.corpora.describe import render
    from trainer.training.progress import FitView

    load_settings(config)
    # as published: the counts of the literature; the notes still name the leaking patients
    read = load_corpora(sources_of(corpus, data), part=part, split="as-published", audio=False, lenient=lenient)
    FitView(Console(stderr=True)).notes(read.notes)
    description = description_of(read)
    if json_output:
        _print_json(asdict(description))
    else:
        render(description, Console())
        pairs = " ".join(f"--corpus {source.name} --data {source.data}" for source in read.sources)
        next_step(f"respsam-trainer fit {pairs} --init FILE")


@data_app.command("import")
def import_labels(
    data: Annotated[Path, typer.Argument(help="A label file, or a folder of them beside their recordings.")],
    form: Annotated[LabelForm, typer.Option("--format", help="Audacity label tracks or Raven selection tables.")],
    patient: Annotated[
        str, typer.Option("--patient", metavar="PATTERN", help="Regular expression that finds the patient in a path.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The manifest to write, a new CSV file.")],
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="WORD=CLASS", help="What a word of yours means; WORD= leaves it out."),
    ] = None,
    device: Annotated[str, typer.Option("--stethoscope", help="Of all recordings.")] = "",
    site: Annotated[str, typer.Option("--site", help="Of all recordings.")] = "",
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Leave bad lines out, counted, instead of stopping.")
    ] = False,
) -> None:
    """Turn label tracks of Audacity or selection tables of Raven into a manifest."""
    from rich.console import Console

    from trainer.corpora import left_out
    from trainer.corpora.label_tracks import Rules, pattern_of, read_tracks, words_of, write_manifest
    from trainer.training.progress import FitView

    rules = Rules(pattern_of(patient), words_of(label or []), device, site)
    read = read_tracks(data, form, rules, out.parent)
    FitView(Console(stderr=True)).notes(left_out(read.problems, lenient))
    write_manifest(out, read.rows)
    dropped = f", {read.left_out} stretches left out" * bool(read.left_out)
    typer.echo(f"{out}: {len(read.rows)} rows{dropped}")
    next_step(f"respsam-trainer data describe --corpus manifest --data {out}")


@cache_app.command("list")
def list_cache(json_output: JsonOption = False, config: ConfigOption = None) -> None:
    """Say where it is, how much it holds and how much it may hold."""
    from firmware_config.settings import load_settings
    from trainer.corpora.decoded import usage

    training = load_settings(config).training
    found = usage(training.folder)
    if json_output:
        limit = round(training.cache_gigabytes * 1e9)
        _print_json({"folder": str(training.folder), **vars(found), "limit_bytes": limit})
    else:
        typer.echo(f"{training.folder}: {found.in_words} of at most {training.cache_gigabytes:g} GB{found.and_earlier}")
        next_step("'respsam-trainer data cache clear' removes it; training.cache_gigabytes sets the limit")


@cache_app.command("clear")
def clear_cache(config: ConfigOption = None) -> None:
    """Remove all of it; what is needed again is decoded again."""
    from firmware_config.settings import load_settings
    from trainer.corpora.decoded import clear

    folder = load_settings(config).training.folder
    freed = clear(folder)
    typer.echo(f"{folder}: {freed.in_words}{freed.and_earlier} removed")
    next_step("nothing; the next command that needs audio decodes it again")


@app.command()
def fit(
    corpus: CorpusOption,
    data: DataOption,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; else the next of runs/fit-1, -2, ...")] = None,
    recipe: RecipeOption = "mobilenet",
    part: PartOption = None,
    split: SplitOption = "official",
    lenient: LenientOption = False,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; else the last one.")] = False,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.0, help="For everything, from the start to the report.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")] = 0,
    crops: Annotated[CropKind | None, typer.Option("--crops", help="What is cut; over the recipe's.")] = None,
    init: InitOption = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Over the recipe's.")] = None,
    members: MembersOption = None,
    refit: RefitOption = None,
    hold_out: HoldOutOption = None,
    batch: BatchOption = None,
    accumulation: Annotated[int | None, typer.Option("--accumulation", min=1, help="Micro-batches a step.")] = None,
    rho: Annotated[
        float | None, typer.Option("--rho", min=0.0, help="SAM's radius, 0 without; over the recipe's.")
    ] = None,
    sharpness: Annotated[Sharpness | None, typer.Option("--sharpness", help="Over the recipe's.")] = None,
    precision: Annotated[Precision | None, typer.Option("--precision", help="Over the recipe's.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="On this machine, one a GPU.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines, with torchrun or SLURM.")] = 1,
    compiled: Annotated[bool, typer.Option("--compile", help="Train through torch.compile.")] = False,
    checkpointing: CheckpointingOption = False,
    config: ConfigOption = None,
) -> None:
    """Train on a corpus; temperature, threshold and site rule come from held-out patients.

    So does the epoch, unless further models of all patients are to serve (--refit).
    """
    began = time.monotonic()
    if processes > 1:
        # before numpy and torch are imported: each process and each of its workers would start a thread a core
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    from firmware_config.settings import load_settings
    from trainer.run.preflight import check_weights, finished, next_of, numbered
    from trainer.run.recipe import load_recipe, with_changes
    from trainer.run.request import Request, Where

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
    settings, sources = load_settings(config), sources_of(corpus, data)
    chosen = with_changes(load_recipe(recipe), changes)
    request = Request(chosen, recipe, sources, part, split, lenient, seed)
    if out is None and processes * nodes > 1:
        raise typer.BadParameter("several processes write into one folder; name it", param_hint="--out")
    out = out or numbered(resume)
    # what is wrong or done is said before torch is imported
    if done := finished(request, out, resume):
        typer.echo(done)
        next_step(next_of(out))
        return
    check_weights(request, out)
    where = Where(device, processes, nodes, compiled, checkpointing)
    _fit_and_show(request, out, where, settings, resume=resume, minutes=minutes, began=began)


def _fit_and_show(
    request: "Request",
    out: Path,
    where: "Where",
    settings: "Settings",
    *,
    resume: bool,
    minutes: float | None,
    began: float,
) -> None:
    """`trainer.fit`, with its progress and its result; the minutes count from `began`, the command's start."""
    from rich.console import Console

    from trainer import api
    from trainer.run.machine import follows
    from trainer.run.preflight import next_of
    from trainer.training.progress import FitView
    from trainer.view import show_fit

    view = FitView(Console(stderr=True, quiet=follows()))
    # torch has been imported by now, which takes seconds
    left = None if minutes is None else minutes - (time.monotonic() - began) / 60
    fitted = api.fit(request, out, where, resume=resume, minutes=left, view=view, settings=settings)
    if fitted is not None:
        show_fit(fitted.facts, Console())
        typer.echo(f"report in {fitted.report} (it holds patients' sound)")
        next_step(next_of(out))


@app.command()
def evaluate(
    subject: Annotated[Path, typer.Argument(help="A run folder or a bundle.", metavar="RUN|BUNDLE", callback=a_run)],
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

    settings, sources = load_settings(config), sources_of(corpus, data)
    from trainer import api
    from trainer.training.progress import FitView
    from trainer.view import show_reading

    selection, view = api.Selection(sources, part, split, lenient, protocol), FitView(Console(stderr=True))
    reading = api.evaluate(subject, selection, calibrate_on=calibrate_on, device=device, view=view, settings=settings)
    if json_output:
        _print_json(reading.as_json())
    else:
        show_reading(reading, Console())
        next_step(f"respsam-trainer compare {subject} OTHER with the same --corpus and --data: is another one better?")


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            callback=document_named("studies"),
            help=f"One of {', '.join(shipped('studies'))}, or a TOML file.",
        ),
    ],
    corpus: CorpusOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of tables, pictures and cells; studies share it.")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Models a setting, each holds out another fold.")] = 3,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.0, help="Of training a cell in all; at least one epoch.")
    ] = None,
    recipe: RecipeOption = "mobilenet",
    draws: Annotated[int | None, typer.Option("--draws", min=1, help="An epoch; over the recipe's.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Over the recipe's.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--settings", help="This one and the reference alone; may be repeated.")
    ] = None,
    to_corpus: Annotated[
        CorpusName | None, typer.Option("--to-corpus", help="Read this corpus, too, and never train on it.")
    ] = None,
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
    from trainer.run.recipe import load_recipe
    from trainer.run.request import Request
    from trainer.studies.study import StudyError, load_study

    settings, sources = load_settings(config), sources_of(corpus, data)
    asked, chosen = load_study(name).only(only or []), load_recipe(recipe)
    if bool(to_corpus) != bool(to_data):
        raise typer.BadParameter("another corpus is read with --to-corpus C --to-data DIR", param_hint="--to-corpus")
    from trainer import api
    from trainer.run.machine import resolved
    from trainer.studies.cells import Plan
    from trainer.training.progress import FitView

    plan = Plan(
        Request(chosen, "study", api.absolute(sources), part, split, lenient),
        settings.training.folder.resolve(),
        settings.quality,
        to_corpus or "",
        (to_data or Path()).resolve(),
        resolved(device),
        minutes,
        cache_gigabytes=settings.training.cache_gigabytes,
    )
    studied = api.study(
        asked,
        plan,
        out,
        seeds=seeds,
        changes={"data.draws": draws, "optimizer.epochs": epochs},
        jobs=jobs,
        cluster=ray,
        name=Path(name).stem,
        view=FitView(Console(stderr=True)),
    )
    _show_study(studied, out / f"{Path(name).stem}.md")
    if studied.failed:
        raise StudyError(f"{studied.failed} of {studied.cells} cells failed, see above; what the others gave is kept")
    next_step(f"read {out / Path(name).stem}.md, and change the recipe by what it shows")


def _show_study(studied: "Studied", page: Path) -> None:
    """Tables and notes, and where the page and the picture are; nothing while no cell is read."""
    from rich.console import Console

    from trainer.studies.report import tables

    console = Console(soft_wrap=True)
    for one in tables(studied.lines):
        console.print(one, soft_wrap=False)
    if studied.lines:
        for note in studied.notes:
            console.print(f"- {note}", highlight=False, markup=False)
        console.print(f"in full in {page}, as a picture in {page.with_suffix('.svg')}", highlight=False)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run folder or a bundle.", metavar="A", callback=a_run)],
    second: Annotated[Path, typer.Argument(help="Another.", metavar="B", callback=a_run)],
    corpus: Annotated[list[str] | None, CORPUS] = None,
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

    settings, sources = load_settings(config), sources_of(corpus or [], data or [])
    from trainer import api
    from trainer.evaluation import compare as comparing
    from trainer.training.progress import FitView
    from trainer.view import show_comparison

    shared = comparing.protocol_of_runs(first, second) if part is None and not sources else None
    if shared is not None:
        compared = comparing.on_held_out(first, second, protocol or shared)
    elif not sources:
        raise typer.BadParameter("a --part, or a bundle, is read on a corpus: give --corpus and --data")
    else:
        selection = api.Selection(sources, part, split, lenient, protocol)
        view = FitView(Console(stderr=True))
        compared = api.compare(first, second, selection, device=device, view=view, settings=settings)
    if json_output:
        _print_json(compared.as_json())
    else:
        show_comparison(compared, Console())
        next_step("respsam-export build RUN --int8 --out BUNDLE")


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
    from trainer.breaths import segmentation as finding

    read, cache, _ = _opened(corpus, data, part, lenient, config)
    if out is not None:
        finding.save_detector(finding.fit_detector(read.recordings, cache, seed), out)
        next_step("the same command without --out, which scores it on patients that it was not fitted on")
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
    from trainer.breaths.grading import compare
    from trainer.breaths.segmentation import fold_detectors

    read, cache, settings = _opened(corpus, data, part, lenient, config)
    _print_json(compare(fold_detectors(read, cache, folds, seed), cache, settings.quality))


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN", callback=a_run)],
    file: Annotated[Path, typer.Argument(help="A wav or flac.", metavar="FILE")],
    at: Annotated[float | None, typer.Option("--at", help="Second to explain; else the most suspicious.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Draw it here: .png or .svg.")] = None,
    device: DeviceOption = "auto",
    json_output: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show where a run's attention lies in a recording, and how much of it on seams and on silence."""
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer.api import torch_device
    from trainer.report import explain as explaining
    from trainer.training.progress import FitView

    settings = load_settings(config)
    explained = explaining.explain(run, file, torch_device(device, settings), settings.quality, at)
    FitView(Console(stderr=True)).notes(explained.notes)
    if out is not None:
        explaining.draw(explained, out)
    if json_output:
        _print_json(explained.as_json())
    else:
        typer.echo(explained.in_words)
        next_step(f"look at {out}" if out else "the same with --out PICTURE.svg, which draws it")


@app.command()
def stethoscopes(
    run: Annotated[Path, typer.Argument(help="A finished run folder.", metavar="RUN", callback=a_run)],
    json_output: JsonOption = False,
) -> None:
    """Read every maker's stethoscopes at the threshold that the others chose, and after healthy people shifted it.

    From the models' predictions for whole recordings of their held-out patients; nothing is computed anew. After
    'fit --hold-out maker' no model has met the stethoscope that it is evaluated on.
    """
    from dataclasses import asdict

    from rich.console import Console

    from trainer.evaluation.healthy import strangers
    from trainer.evaluation.outcome import load_outcome
    from trainer.run.folder import outcome_file, read_facts
    from trainer.view import show_strangers

    hold_out = read_facts(run).recipe.data.hold_out
    found = strangers(load_outcome(outcome_file(run, "recordings")))
    if json_output:
        _print_json({"hold_out": hold_out, "stethoscopes": [asdict(stranger) for stranger in found]})
    else:
        show_strangers(found, hold_out, Console())
        next_step(f"respsam-export build {run} --int8 --out BUNDLE")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A finished run folder.", metavar="RUN", callback=a_run)],
    data: MovedOption = None,
    device: DeviceOption = "auto",
    config: ConfigOption = None,
) -> None:
    """Write RUN/report.html again: curves, confusion, ROC, reliability, sharpness, worst mistakes with their sound."""
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer.api import torch_device
    from trainer.report.report import write_report
    from trainer.run.folder import read_facts
    from trainer.training.experiment import open_run
    from trainer.training.progress import FitView

    settings, view = load_settings(config), FitView(Console(stderr=True))
    facts = read_facts(run)
    with view.stage("reading audio") as progress:
        opened = open_run(facts, data or [], settings.training.folder, progress)
    opened.cache.trim(settings.training.folder, settings.training.cache_gigabytes)
    with view.stage("writing the report"):
        path = write_report(run, opened.training, opened.cache, torch_device(device, settings))
    typer.echo(f"{path} holds patients' sound: keep it where their recordings are kept")
    next_step(f"open {path} in a browser")


def _opened(
    corpus: list[str], data: list[Path], part: str | None, lenient: bool, config: Path | None
) -> tuple[Any, Any, Any]:
    """A corpus, its audio and the settings."""
    from rich.console import Console

    from firmware_config.settings import load_settings

    settings, sources = load_settings(config), sources_of(corpus, data)
    from trainer.api import use_threads
    from trainer.corpora.audio_cache import open_corpora
    from trainer.training.progress import FitView

    use_threads(settings)
    view = FitView(Console(stderr=True))
    with view.stage("reading audio") as progress:
        read, cache = open_corpora(sources, settings.training.folder, part=part, lenient=lenient, progress=progress)
    cache.trim(settings.training.folder, settings.training.cache_gigabytes)
    view.notes(read.notes)
    return read, cache, settings


def sources_of(corpus: list[str], data: list[Path]) -> "tuple[Source, ...]":
    """The pairs of --corpus and --data, in order; typer.BadParameter where one lacks the other or is not there."""
    if len(corpus) != len(data):
        raise typer.BadParameter(
            f"{len(corpus)} --corpus and {len(data)} --data: they are given in pairs, --corpus NAME --data DIR",
            param_hint="--corpus",
        )
    for folder in data:
        if not folder.exists():
            raise typer.BadParameter(f"{folder}: no such folder", param_hint="--data")
    from trainer.corpora.cycle import Source

    return tuple(Source(name, folder) for name, folder in zip(corpus, data, strict=True))


def _print_json(value: Any) -> None:
    typer.echo(json_text(value))
