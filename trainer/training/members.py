"""The models of one run: each trains with another fold of the patients held out, and is read on those alone.

A recipe may then train further models on all patients, which serve in their place.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from trainer.corpora.cycle import Corpus
from trainer.corpora.splits import Fold
from trainer.evaluation.validation import Validation
from trainer.metrics import Float64Array, IntArray
from trainer.model.network import Network, network
from trainer.run.folder import member_folder, refit_folder
from trainer.run.machine import Machine
from trainer.run.request import Request
from trainer.training.crops import crops_of
from trainer.training.experiment import Prepared
from trainer.training.train import Fit, Watcher, identity, train

SEED_STEP: Final = 1000  # between members, so that no member of one seed repeats a member of the next


@dataclass(frozen=True)
class Member:
    """One trained model, and its predictions for patients that it has never met."""

    model: Network
    held_out: Corpus
    """Those patients."""
    labels: IntArray
    """Of their stretches on the corpus's default protocol, (n,)."""
    logits: Float64Array
    """Of the same stretches, (n, classes)."""
    epoch: int
    """The kept one, counted from 1."""
    epochs_done: int


@dataclass(frozen=True)
class Refitted:
    """A model that all patients trained."""

    model: Network
    epochs_done: int


class MemberWatcher(Watcher, Protocol):
    """A Watcher that also learns which member begins."""

    def member_started(self, number: int, members: int, training: Corpus, held_out: Corpus | None) -> None: ...


@dataclass(frozen=True)
class Trained:
    """The models that a run has trained."""

    members: list[Member]
    refitted: list[Refitted]

    @property
    def served(self) -> list[Network]:
        """The models that serve: those of all patients, or the members where there are none."""
        return [one.model for one in self.refitted or self.members]


@dataclass(frozen=True)
class Call:
    """One call of a run: its machine and its watcher, whether it resumes, and its budget."""

    machine: Machine
    watcher: MemberWatcher
    resume: bool = False
    minutes: float | None = None
    """Of training and of reading the held-out patients afterwards, for all models."""
    whole_epochs: bool = False
    """Whether a model trains at least one epoch, and stops between epochs only."""


def train_members(
    request: Request,
    prepared: Prepared,
    folder: Path,
    call: Call,
    folds: Sequence[Fold] | None = None,
    keep: Literal["best", "last"] | None = None,
) -> Trained:
    """Train a model on each of the folds, then the recipe's `refit` models on all of the corpus, one after another.

    The folds are the first ones of `prepared`, unless stated. Each has its checkpoint, and a call that resumes goes on
    in the last. The call's minutes are shared out evenly over the models that are left. A member keeps the weights of
    the epoch `keep`, the recipe's unless stated: the last where the held-out patients must not choose. A model of all
    patients has no held-out patients, and keeps its last. A model that stopped in its first epoch serves as it is.
    """
    began, recipe, corpus = time.monotonic(), request.recipe, prepared.corpus
    folds = prepared.folds[: recipe.data.members] if folds is None else folds
    keep = keep or recipe.data.keep
    trained = Trained([], [])
    sides: list[tuple[Corpus, Corpus | None]] = [*folds, *[(corpus, None)] * recipe.data.refit]
    for number, (training, held_out) in enumerate(sides):
        call.watcher.member_started(number, len(sides), training, held_out)
        seed = request.seed + SEED_STEP * number
        crops = crops_of(training, prepared.cache, prepared.front_end, recipe, seed)
        held = None if held_out is None else Validation(held_out, prepared.cache, prepared.front_end)
        fit = Fit(recipe, crops, held, call.machine, seed)
        spent = (time.monotonic() - began) / 60
        left = None if call.minutes is None else (call.minutes - spent) / (len(sides) - number)
        where = refit_folder(folder, number - len(folds)) if held_out is None else member_folder(folder, number)
        where.mkdir(parents=True, exist_ok=True)
        known = identity(recipe, corpus, held_out, call.machine.processes)
        train(
            fit,
            where,
            known,
            resume=call.resume,
            minutes=left,
            watcher=call.watcher,
            whole_epochs=call.whole_epochs,
        )
        done = fit.progress.epochs_done
        best = held is not None and keep == "best" and done > 0
        model = network(recipe.model).to(call.machine.device).eval()
        model.load_state_dict(fit.best_weights if best else fit.serving.state_dict())
        if held_out is None or held is None:
            trained.refitted.append(Refitted(model, done))
        else:
            epoch = fit.progress.best_epoch if best else done
            logits = held.logits(model, call.machine)
            trained.members.append(Member(model, held_out, held.labels, logits, epoch, done))
        # a fold's inputs are some hundred megabytes: gone before the next fold's are made
        del held, fit
        gc.collect()
    return trained
