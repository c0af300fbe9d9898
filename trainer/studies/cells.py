"""The cells of a study: one setting with one seed each, trained with one fold held out and read on its patients.

A cell's folder is named after all that decides its result, so studies share cells and nothing is trained twice.
"""

import hashlib
import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from threadpoolctl import threadpool_limits

from device.cluster import on_ray
from firmware_config.command_line import one_line
from firmware_config.errors import RespSAMError
from firmware_config.files import write_atomically
from firmware_config.settings import QualitySettings
from trainer.choices import Protocol
from trainer.corpora import Corpus, Source
from trainer.corpora.audio_cache import AudioCache, open_corpora
from trainer.corpora.decoded import trim
from trainer.corpora.protocols import default_protocol
from trainer.evaluation.evaluate import outcome_on
from trainer.evaluation.outcome import save_outcome
from trainer.evaluation.served import of_network
from trainer.model.network import network
from trainer.run.folder import WEIGHTS_FILE, load_tensors, read_metrics, save_tensors
from trainer.run.machine import Machine, start
from trainer.run.recipe import Recipe
from trainer.run.request import Request
from trainer.studies.study import Study, StudyError
from trainer.training.experiment import Prepared, prepare
from trainer.training.members import Call, train_members
from trainer.training.progress import FitView
from trainer.training.train import identity

CELL_FILE: Final = "cell.json"
ERROR_FILE: Final = "error.txt"
LAYOUT: Final = 3  # raise when the same recipe, seed and corpus would give another result


@dataclass(frozen=True)
class Target:
    """What a cell is read on; `key` is the name of the reading's file."""

    key: str
    protocol: Protocol
    elsewhere: str = ""
    """Another corpus, all of it; else the cell's held-out patients."""

    @property
    def words(self) -> str:
        """`windows of held-out patients`."""
        return f"{self.protocol} of {self.elsewhere or 'held-out patients'}"


@dataclass(frozen=True)
class Plan:
    """What all cells of a study share."""

    request: Request
    """What a cell is made of, but for its setting's recipe; its seed divides the patients, for every cell alike."""
    audio_cache: Path
    quality: QualitySettings
    to_corpus: str = ""
    to_data: Path = Path()
    device: str = "cpu"
    minutes: float | None = None
    targets: tuple[Target, ...] = ()
    cache_gigabytes: float = math.inf
    """What the audio cache may hold."""

    def prepared(self, recipe: Recipe) -> Prepared:
        """The training corpus as `trainer fit` would take it.

        Mean and deviation of the front end are measured on the first fold's training side, for every fold: two numbers.
        """
        return _prepared(replace(self.request, recipe=recipe), self.audio_cache)

    def other(self) -> tuple[Corpus, AudioCache]:
        """The corpus that is read but never trained on."""
        to = Source(self.to_corpus, self.to_data)
        return open_corpora([to], self.audio_cache, lenient=self.request.lenient, part="all")


@lru_cache(maxsize=8)
def _prepared(request: Request, audio_cache: Path) -> Prepared:
    """What the seeds of one setting share, in one process."""
    with threadpool_limits(1):
        return prepare(request, audio_cache)


class CellFacts(BaseModel):
    """Facts of a trained cell beside its weights and readings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    recipe: Recipe
    seed: int
    held_out: list[str]
    """Patients that the model never met."""
    epochs_done: int
    minutes: float | None
    """The budget it was trained under."""
    seconds: float
    """Of training and validation."""
    step_seconds: float


@dataclass(frozen=True)
class Cell:
    """One setting with one seed."""

    setting: str
    seed: int
    recipe: Recipe
    folder: Path

    def facts(self) -> CellFacts | None:
        """None before the cell has been trained."""
        path = self.folder / CELL_FILE
        try:
            return CellFacts.model_validate_json(path.read_text()) if path.is_file() else None
        except ValidationError as error:
            raise StudyError(f"{path}: damaged or of another version; delete {self.folder}") from error

    def trained(self, minutes: float | None) -> bool:
        """Whether its schedule is over, or a budget as large as this one is spent."""
        facts = self.facts()
        if facts is None or facts.epochs_done == self.recipe.optimizer.epochs:
            return facts is not None
        return minutes is not None and facts.minutes is not None and minutes <= facts.minutes

    def reading(self, target: Target) -> Path:
        """Where its outcome on a target is kept."""
        return self.folder / f"{target.key}.npz"

    def done(self, plan: Plan) -> bool:
        """Whether it is trained and everything is read."""
        return self.trained(plan.minutes) and all(self.reading(target).is_file() for target in plan.targets)


def plan_cells(
    study: Study, plan: Plan, recipes: Mapping[str, Recipe], seeds: int, folder: Path
) -> tuple[Plan, list[Cell], tuple[str, ...]]:
    """The plan with its targets, all cells below `folder` seed by seed, and the corpora's notes.

    Whatever is wrong with the corpora or the folder is said here, before anything is trained; audio is decoded.
    """
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "cells" / ".writable", "")
    except OSError as error:
        raise StudyError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    prepared = plan.prepared(recipes[study.reference])
    corpus, folds, notes = prepared.corpus, prepared.folds, prepared.corpus.notes
    # what is gradable decides what the live path reads
    quality = _digest(plan.quality.model_dump(mode="json"))[:8]
    targets = [
        Target(f"{one}-{quality}" if one in ("live", "recordings") else one, one)
        for one in study.protocols or [default_protocol(corpus)]
    ]
    in_use = [*prepared.cache.files.values()]
    if plan.to_corpus:
        other, cache = plan.other()
        in_use += cache.files.values()
        protocol = default_protocol(other)
        key = f"{protocol}-{other.name}-{_digest(sorted(one.name for one in other.recordings))[:8]}"
        targets.append(Target(key, protocol, elsewhere=other.name))
        notes += other.notes
    trim(plan.audio_cache, plan.cache_gigabytes, in_use)
    cells = [
        Cell(
            name,
            seed,
            recipe,
            folder.resolve()
            / "cells"
            / _digest([LAYOUT, seed, identity(recipe, corpus, folds[seed % len(folds)][1])])[:20],
        )
        for seed in range(seeds)
        for name, recipe in recipes.items()
    ]
    return replace(plan, targets=tuple(targets)), cells, notes


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def finish_cell(cell: Cell, plan: Plan) -> None:
    """Train what is left of a cell and read what has not been read.

    One thread, wherever it runs: the result must not depend on how many cells run at once, nor on the threads by which
    numpy's BLAS divides a log-mel.
    """
    torch.set_num_threads(1)
    with threadpool_limits(1):
        _finish_cell(cell, plan)


def _finish_cell(cell: Cell, plan: Plan) -> None:
    prepared = plan.prepared(cell.recipe)
    machine = start(plan.device, precision=cell.recipe.optimizer.precision)
    training, held_out = prepared.folds[cell.seed % len(prepared.folds)]
    if not cell.trained(plan.minutes):
        train_cell(cell, plan, prepared, (training, held_out), machine)
    model = network(cell.recipe.model).to(machine.device)
    model.load_state_dict(load_tensors(cell.folder / WEIGHTS_FILE)[0])
    served = of_network(model, machine.device, cell.recipe, prepared.front_end)
    for target in plan.targets:
        if not cell.reading(target).is_file():
            corpus, cache = plan.other() if target.elsewhere else (held_out, prepared.cache)
            # `predicted` is the leading abnormal class, whatever the probability
            save_outcome(cell.reading(target), outcome_on(served, corpus, cache, target.protocol, plan.quality))


def train_cell(cell: Cell, plan: Plan, prepared: Prepared, fold: tuple[Corpus, Corpus], machine: Machine) -> None:
    """Weights and facts of one model; the last epoch is kept, not the best, so held-out patients choose nothing."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    for stale in cell.folder.glob("*.npz"):  # of fewer epochs
        stale.unlink()
    request = replace(plan.request, recipe=cell.recipe, seed=cell.seed)
    minutes = minutes_left(cell, plan.minutes)
    call = Call(machine, FitView(Console(quiet=True)), resume=True, minutes=minutes, whole_epochs=True)
    (member,) = train_members(request, prepared, cell.folder, call, [fold], keep="last").members
    rows = read_metrics(cell.folder, 0)
    facts = CellFacts(
        recipe=cell.recipe,
        seed=cell.seed,
        held_out=list(member.held_out.patients),
        epochs_done=member.epochs_done,
        minutes=plan.minutes,
        seconds=sum(row["seconds"] for row in rows),
        step_seconds=float(np.mean([row["step_seconds"] for row in rows])),
    )
    save_tensors(cell.folder / WEIGHTS_FILE, member.model.state_dict(), {})
    write_atomically(cell.folder / CELL_FILE, facts.model_dump_json(indent=1))


def minutes_left(cell: Cell, minutes: float | None) -> float | None:
    """Of a cell's budget, after what earlier calls trained; 0 where no further epoch would fit."""
    seconds = [row["seconds"] for row in read_metrics(cell.folder, 0)]
    if minutes is None or not seconds:
        return minutes
    left = minutes - sum(seconds) / 60
    return left if left >= max(seconds) / 60 else 0.0


def attempt(cell: Cell, plan: Plan) -> str | None:
    """`finish_cell`; returns one line of what went wrong, because the other cells go on whatever it was."""
    with suppress(OSError):  # of an earlier call
        (cell.folder / ERROR_FILE).unlink()
    try:
        finish_cell(cell, plan)
    except RespSAMError as error:
        return one_line(str(error))
    except Exception as error:
        return unforeseen(cell, error)
    return None


def unforeseen(cell: Cell, error: Exception) -> str:
    """One line of an error that is not the input's; the traceback is kept in the cell's folder."""
    # Ray wraps what a worker raised, and may repeat its traceback in the message
    path, cause = cell.folder / ERROR_FILE, getattr(error, "cause", None) or error
    said = f"{type(cause).__name__}: {one_line(str(cause).partition('traceback: ')[0])}"
    with suppress(RespSAMError):  # the disk may be what is wrong
        write_atomically(path, "".join(traceback.format_exception(error)))
        said += f"; in full in {path}"
    return said


def run_cells(
    cells: Sequence[Cell], plan: Plan, ended: Callable[[Cell, str | None], None], jobs: int = 1, cluster: str = ""
) -> int:
    """Finish every cell that is not done; calls `ended` for each, with its problem. Returns how many have one.

    One after another in this process, or as tasks of Ray: `jobs` at a time here, or as many as fit into `cluster`, at
    whose address all see the same folders. A worker that dies is replaced, and its cell goes on from its checkpoint.
    """
    left = [*{cell.folder: cell for cell in cells if not cell.done(plan)}.values()]  # two settings may share one

    def lost(cell: Cell, error: Exception) -> str:
        return f"{unforeseen(cell, error)}; finished epochs are kept"

    here = enumerate(attempt(cell, plan) for cell in left)
    there = on_ray(attempt, left, (plan,), lost, address=cluster, processes=jobs, gpu=plan.device == "cuda")
    problems = 0
    for index, problem in here if jobs == 1 and not cluster else there:
        ended(left[index], problem)
        problems += problem is not None
    return problems
