"""The models of one run: each trains with another fold of the patients held out, and is read on those alone.

Once these have chosen, a recipe may train further ones on all patients, who then serve in their place.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from device.signal import FloatArray, FrontEnd
from trainer.audio_cache import AudioCache
from trainer.corpora.cycle import Corpus
from trainer.crops import TrainingCrops
from trainer.fit import Fit, FitError, Validation, Watcher, identity, train
from trainer.machine import Machine
from trainer.metrics import IntArray
from trainer.model import AST
from trainer.recipe import Recipe
from trainer.run import member_folder, refit_folder
from trainer.splits import Fold

SEED_STEP = 1000  # between members, so that no member of one seed repeats a member of the next


@dataclass(frozen=True)
class Member:
    """One trained model, and what it says of patients whom it has never met."""

    model: AST
    held_out: Corpus
    """Those patients."""
    labels: IntArray
    """Of their stretches on the corpus's default protocol, (n,)."""
    logits: FloatArray
    """Of the same stretches, (n, classes)."""
    epoch: int
    """The kept one, counted from 1."""
    epochs_done: int


@dataclass(frozen=True)
class Refitted:
    """A model that all patients trained."""

    model: AST
    epochs_done: int


class MemberWatcher(Watcher, Protocol):
    """A Watcher that also hears which member begins."""

    def member_started(self, number: int, members: int, training: Corpus, held_out: Corpus | None) -> None: ...


def train_members(
    recipe: Recipe,
    corpus: Corpus,
    folds: Sequence[Fold],
    cache: AudioCache,
    front_end: FrontEnd,
    folder: Path,
    *,
    machine: Machine,
    seed: int,
    resume: bool,
    minutes: float | None,
    watcher: MemberWatcher,
    keep: Literal["best", "last"] = "best",
) -> list[Member]:
    """Train a model on each of `folds`, one after another; each has its checkpoint, and `resume` goes on in the last.

    `minutes` are shared out evenly over the models that are left, `refit` too. `keep` is the epoch whose weights a
    member gets: the last where the held-out patients must not choose. Raises FitError when a member has no whole epoch.
    """
    began = time.monotonic()
    members = []
    for number, (training, held_out) in enumerate(folds):
        watcher.member_started(number, len(folds), training, held_out)
        crops = TrainingCrops(training, cache, front_end, recipe.data, recipe.augmentation, seed + SEED_STEP * number)
        held = Validation(held_out, cache, front_end)
        fit = Fit(recipe, crops, held, machine, seed + SEED_STEP * number)
        models_left = len(folds) - number + recipe.data.refit
        where = member_folder(folder, number)
        where.mkdir(parents=True, exist_ok=True)
        train(
            fit,
            where,
            identity(recipe, corpus, held_out, machine.processes),
            resume=resume,
            minutes=_share(minutes, began, models_left),
            watcher=watcher,
        )
        if not fit.best_weights:
            raise FitError(f"{folder}: member {number + 1} has no finished epoch; raise --epochs or --minutes")
        model = _served(fit, fit.best_weights if keep == "best" else fit.serving.state_dict())
        progress = fit.progress
        epoch = progress.best_epoch if keep == "best" else progress.epochs_done
        members.append(Member(model, held_out, held.labels, held.logits(model, machine), epoch, progress.epochs_done))
        # a fold's inputs are some hundred megabytes: gone before the next fold's are made
        del held, fit
        gc.collect()
    return members


def train_on_all(
    recipe: Recipe,
    corpus: Corpus,
    cache: AudioCache,
    front_end: FrontEnd,
    folder: Path,
    *,
    machine: Machine,
    seed: int,
    resume: bool,
    minutes: float | None,
    watcher: MemberWatcher,
) -> list[Refitted]:
    """`recipe.data.refit` models of all patients, each the end of its schedule: nobody is left who could choose.

    What the members' held-out patients chose serves them, too. `resume` and `minutes` as in `train_members`.
    """
    began = time.monotonic()
    models = []
    for number in range(recipe.data.refit):
        watcher.member_started(number, recipe.data.refit, corpus, None)
        own_seed = seed + SEED_STEP * (recipe.data.members + number)
        crops = TrainingCrops(corpus, cache, front_end, recipe.data, recipe.augmentation, own_seed)
        fit = Fit(recipe, crops, None, machine, own_seed)
        where = refit_folder(folder, number)
        where.mkdir(parents=True, exist_ok=True)
        train(
            fit,
            where,
            identity(recipe, corpus, None, machine.processes),
            resume=resume,
            minutes=_share(minutes, began, recipe.data.refit - number),
            watcher=watcher,
        )
        models.append(Refitted(_served(fit, fit.serving.state_dict()), fit.progress.epochs_done))
    return models


def _share(minutes: float | None, began: float, models_left: int) -> float | None:
    """Of the minutes since `began`, what the next model gets."""
    return None if minutes is None else (minutes - (time.monotonic() - began) / 60) / models_left


def _served(fit: Fit, weights: dict[str, Tensor]) -> AST:
    model = AST(fit.recipe.model).to(fit.machine.device).eval()
    model.load_state_dict(weights)
    return model
