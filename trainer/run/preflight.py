"""Checks before a fit that need neither torch nor audio: where it writes, whether it can begin, what is missing."""

import os
from pathlib import Path
from typing import Final

from firmware_config.command_line import counted
from trainer.corpora import CorpusError, load_corpora
from trainer.model.config import ModelConfig
from trainer.run.folder import (
    CHECKPOINT_FILE,
    REPORT_FILE,
    RUN_FILE,
    RunError,
    begun,
    load_metadata,
    member_folder,
    read_facts,
    refuse_another,
)
from trainer.run.initial import CheckpointError, initial_file
from trainer.run.recipe import OptimizerRecipe
from trainer.run.request import Request

RUNS: Final = Path("runs")
# AST base on one core (docs/performance.md, docs/gpu-checklist.md); other sizes by their multiplications and tokens
BASE: Final = ModelConfig()
BASE_SECONDS: Final = 13.0  # of a SAM step, a window
BASE_STATE_GB: Final = 2.4  # weights, gradients, AdamW's moments, the average
BASE_WINDOW_GB: Final = 1.1  # activations


def numbered(resume: bool, runs: Path = RUNS) -> Path:
    """`runs/fit-N`: the next that is not there, or the last one that is, to resume; RunError where there is none."""
    numbers = [int(path.name[4:]) for path in runs.glob("fit-*") if path.name[4:].isdecimal()]
    if resume and not numbers:
        raise RunError(f"{runs}: no run to resume here; name its folder with --out")
    return runs / f"fit-{max(numbers, default=0) + (not resume)}"


def finished(request: Request, out: Path, resume: bool) -> str | None:
    """A line about the run in `out` if nothing is left to train, None if something is left.

    RunError where `out` holds a run that would be overwritten, or one that is of another request.
    """
    if not resume:
        if (out / RUN_FILE).exists() or begun(out):
            raise RunError(f"{out}: already holds a run; go on with it by --resume, or choose another --out")
        return None
    checkpoint = member_folder(out, 0) / CHECKPOINT_FILE
    now = {"recipe": request.recipe.model_dump(mode="json"), "seed": request.seed}
    if checkpoint.is_file():
        kept = load_metadata(checkpoint)
        refuse_another(checkpoint, {"recipe": kept["identity"]["recipe"], "seed": kept["seed"]}, now)
    if not (out / RUN_FILE).is_file():
        return None
    facts = read_facts(out)
    chosen = ("part", "split")
    refuse_another(
        out / RUN_FILE,
        {"recipe": facts.recipe.model_dump(mode="json"), "seed": facts.seed, "corpora": facts.corpus}
        | {name: getattr(facts, name) for name in chosen},
        {**now, "corpora": request.corpus} | {name: getattr(request, name) for name in chosen},
    )
    epochs = request.recipe.optimizer.epochs
    if any(done < epochs for done in (*facts.epochs_done, *facts.refit_epochs)):
        return None
    return f"{out}: the run is finished, {counted(epochs, 'epoch')} of {epochs}; nothing is left to do"


def next_of(out: Path) -> str:
    """The command that comes after a finished run: its report, where that was interrupted, or a bundle."""
    if not (out / REPORT_FILE).is_file():
        return f"respsam-trainer report {out}"
    return f"respsam-export build {out} --int8 --out BUNDLE"


def check_weights(request: Request, out: Path) -> None:
    """Find the weights that the recipe begins at, or download them; a run in `out` that has begun has its own.

    CheckpointError where they are missing; it also names missing audio, memory and time.
    """
    if not request.recipe.init or begun(out):
        return
    try:
        initial_file(request.recipe.init, request.recipe.model)
    except CheckpointError as error:
        raise CheckpointError("; ".join([str(error), *_also(request)])) from error


def _also(request: Request) -> list[str]:
    """Missing audio, memory and time of a run, in words; from the annotations alone."""
    model, recipe, lines = request.recipe.model, request.recipe, []
    cycles = 0
    try:
        corpus = load_corpora(
            request.sources, part=request.part, split=request.split, lenient=True, audio=False, purpose="fit"
        )
        cycles, missing = len(corpus.cycles), sum(one.audio is None for one in corpus.recordings)
        if missing:
            where = ", ".join(str(source.data) for source in request.sources)
            lines.append(f"the audio of {missing} of {len(corpus.recordings)} recordings is not below {where}, either")
    except CorpusError as error:
        lines.append(str(error))
    if isinstance(model, ModelConfig):  # a MobileNet's needs are small
        draws, models = recipe.data.draws or cycles, recipe.data.members + recipe.data.refit
        gigabytes, hours = needs(model, recipe.optimizer, draws, models)
        cores = f" and about {_long(hours)} on the {os.cpu_count() or 1} cores here (a GPU is meant for it)"
        lines.append(f"training takes about {gigabytes:.0f} GB of memory{cores if hours else ''}")
    return lines


def needs(model: ModelConfig, optimizer: OptimizerRecipe, draws: int, models: int) -> tuple[float, float]:
    """Gigabytes and hours that training takes on this machine's cores, from what AST base took on one."""
    work, size, tokens = (f(model) / f(BASE) for f in (_multiplications, _weights, _tokens_kept))
    passes = 1.0 if optimizer.rho else 0.5
    seconds = BASE_SECONDS * work * passes * draws * optimizer.epochs * models / (os.cpu_count() or 1)
    return BASE_STATE_GB * size + BASE_WINDOW_GB * tokens * optimizer.batch, seconds / 3600


def _tokens(model: ModelConfig) -> int:
    rows, columns = model.grid
    return rows * columns + 2


def _weights(model: ModelConfig) -> float:
    return model.depth * (4 + 2 * model.mlp_ratio) * model.dim**2


def _tokens_kept(model: ModelConfig) -> float:
    return float(_tokens(model) * model.dim * model.depth)


def _multiplications(model: ModelConfig) -> float:
    return _tokens(model) * _weights(model) + 2.0 * model.depth * model.dim * _tokens(model) ** 2


def _long(hours: float) -> str:
    """`3 hours`, `12 days`."""
    return counted(round(hours / 24), "day") if hours >= 48 else counted(max(1, round(hours)), "hour")
