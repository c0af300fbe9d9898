"""`trainer`: data describe, fit, evaluate, segmentation, grading.

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
    from trainer.protocols import Protocol

app = application("Train and evaluate RespSAM's model on annotated lung sounds.")
data_app = application("Look at a corpus.")
app.add_typer(data_app, name="data")

NOTES_SHOWN = 5

CorpusOption = Annotated[str, typer.Option("--corpus", help="icbhi, sprsound or manifest.")]
DataOption = Annotated[Path, typer.Option("--data", help="Corpus root as published, or any folder of pairs.")]
PartOption = Annotated[str | None, typer.Option("--part", help="train, test, intra, inter or all.")]
SplitOption = Annotated[str, typer.Option("--split", help="ICBHI: official or as-published.")]
LenientOption = Annotated[
    bool, typer.Option("--lenient", help="Leave bad recordings out, counted, instead of stopping.")
]
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
    from trainer.corpora import load_corpus
    from trainer.describe import describe as description_of
    from trainer.describe import render

    load_settings(config)
    # as published: the counts of the literature; the notes still name the leaking patients
    read = load_corpus(corpus, data, part=part, split="as-published", audio=False, lenient=lenient)
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
    recipe: Annotated[str, typer.Option("--recipe", help="A shipped recipe or a TOML file.")] = "compact",
    part: PartOption = None,
    split: SplitOption = "official",
    lenient: LenientOption = False,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.0, help="Stop after the epoch that fits.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")] = 0,
    crops: Annotated[str | None, typer.Option("--crops", help="random or events; over the recipe's.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Over the recipe's.")] = None,
    members: Annotated[
        int | None, typer.Option("--members", min=1, help="Models, each with its own held-out fold; over the recipe's.")
    ] = None,
    hold_out: Annotated[
        str | None, typer.Option("--hold-out", help="patients (folds of them) or device (one a fold).")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=2, help="Cycles a micro-batch; over the recipe's.")
    ] = None,
    accumulation: Annotated[int | None, typer.Option("--accumulation", min=1, help="Micro-batches a step.")] = None,
    config: ConfigOption = None,
) -> None:
    """Train on a corpus; the best epoch, temperature, threshold and site rule come from held-out patients."""
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer.experiment import Request, prepare
    from trainer.finish import finish
    from trainer.fit import prepare_folder, write_log
    from trainer.members import train_members
    from trainer.recipe import load_recipe, with_changes
    from trainer.view import EpochView

    settings = load_settings(config)
    changes = {
        "data.crops": crops,
        "data.hold_out": hold_out,
        "data.members": members,
        "optimizer.epochs": epochs,
        "optimizer.batch": batch,
        "optimizer.accumulation": accumulation,
    }
    chosen = with_changes(load_recipe(recipe), changes)
    console = Console(stderr=True)
    prepare_folder(out, resume)
    request = Request(chosen, recipe, corpus, data, part, split, lenient, seed)
    chosen_device = _device(device, settings)
    with _progress(console, "reading audio") as progress:
        prepared = prepare(request, settings.training.folder, progress)
    _show_notes(prepared.corpus.notes)
    write_log(out, prepared.corpus.notes)
    console.print(f"training on {chosen_device}")
    with EpochView(console) as view:
        try:
            trained = train_members(
                chosen,
                prepared.corpus,
                prepared.folds[: chosen.data.members],
                prepared.cache,
                prepared.front_end,
                out,
                device=chosen_device,
                seed=seed,
                resume=resume,
                minutes=minutes,
                workers=settings.training.workers,
                watcher=view,
            )
        except KeyboardInterrupt:
            console.print("interrupted; finished epochs are saved, go on with --resume")
            raise
    with console.status("calibrating on the held-out patients' recordings"):
        facts = finish(trained, out, request, prepared, settings.quality, chosen_device)
    _show_fit(facts, out)


def _show_fit(facts: Any, out: Path) -> None:
    from rich.console import Console

    from trainer.view import readings_table

    console = Console()
    choice = facts.choice
    console.print(
        f"best epoch {' / '.join(map(str, choice.epochs))} of {max(facts.epochs_done)}, "
        f"temperature {choice.temperature:.2f}, threshold {choice.cycle_threshold:.3f}; "
        f"a site is flagged when {choice.site_rule.in_words} ({choice.segmentation.method})"
    )
    console.print(
        readings_table(list(choice.readings.values()), "held-out patients (they chose the above: a little too good)")
    )
    console.print(f"run in {out}; next: respsam-export build {out} --int8 --out BUNDLE", soft_wrap=True)


@app.command()
def evaluate(
    subject: Annotated[Path, typer.Argument(help="A run folder or a bundle.", metavar="RUN|BUNDLE")],
    corpus: CorpusOption,
    data: DataOption,
    part: PartOption = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="events, windows or recordings.")] = None,
    split: SplitOption = "official",
    lenient: LenientOption = False,
    device: DeviceOption = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    config: ConfigOption = None,
) -> None:
    """Read accuracy in both conventions with patient-bootstrap intervals, and what the confounders reach alone."""
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer import evaluate as evaluation
    from trainer.audio_cache import with_audio
    from trainer.corpora import load_corpus
    from trainer.view import show_reading

    settings = load_settings(config)
    console = Console(stderr=True)
    chosen = protocol_named(protocol, corpus)
    opened = evaluation.open_subject(subject, _device(device, settings))
    read = load_corpus(corpus, data, part=part, split=split, lenient=lenient, purpose="evaluate")
    with _progress(console, "reading audio") as progress:
        read, cache = with_audio(read, settings.training.folder, lenient=lenient, progress=progress)
    _show_notes(read.notes)
    with _progress(console, "listening") as progress:
        reading = evaluation.evaluate(opened, read, cache, chosen, settings.quality, progress)
    evaluation.log_reading(subject, reading)
    if json_output:
        _print_json(reading)
    else:
        show_reading(reading, Console())


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


def _heard(corpus: str, data: Path, part: str | None, lenient: bool, config: Path | None) -> tuple[Any, Any, Any]:
    """A corpus, its audio and the settings."""
    import torch
    from rich.console import Console

    from firmware_config.settings import load_settings
    from trainer.audio_cache import with_audio
    from trainer.corpora import load_corpus

    settings = load_settings(config)
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    read = load_corpus(corpus, data, part=part, lenient=lenient)
    with _progress(Console(stderr=True), "reading audio") as progress:
        read, cache = with_audio(read, settings.training.folder, lenient=lenient, progress=progress)
    _show_notes(read.notes)
    return read, cache, settings


def protocol_named(asked: str | None, corpus: str) -> "Protocol":
    """What --protocol says, else the corpus's own; typer.BadParameter for another word."""
    from trainer.protocols import PROTOCOLS, default_protocol

    wanted = asked or default_protocol(corpus)
    chosen = next((known for known in PROTOCOLS if known == wanted), None)
    if chosen is None:
        raise typer.BadParameter(f"{asked!r} is not one of {', '.join(PROTOCOLS)}", param_hint="--protocol")
    return chosen


def _device(wanted: str, settings: "Settings") -> "torch.device":
    import torch

    from trainer.fit import FitError

    if wanted not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"{wanted!r} is not auto, cpu or cuda", param_hint="--device")
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise FitError(
            "--device cuda: torch sees no GPU here; install its CUDA build and a driver, or use --device cpu"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


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

    bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True)
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
