"""A training run of seconds on a made corpus, put together as `trainer fit` does; also a process that can be killed."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from firmware_config.errors import RespSAMError
from firmware_config.files import write_atomically
from trainer.corpora import load_corpus
from trainer.corpora.audio_cache import with_audio
from trainer.corpora.splits import patient_folds
from trainer.evaluation.validation import Validation
from trainer.run.machine import Machine, start
from trainer.run.recipe import Recipe, load_recipe, with_changes
from trainer.training.crops import crops_of
from trainer.training.train import Fit, identity, measure_normalisation, train

RECIPE = Recipe.model_validate(
    {
        "model": {"architecture": "mobilenet", "dropout": 0.1},
        "front_end": {"mels": 32, "high_hz": 4000.0},
        "optimizer": {
            "rho": 0.05,
            "learning_rate": 3e-3,
            "weight_decay": 0.05,
            "batch": 4,
            "accumulation": 2,
            "epochs": 3,
            "warmup_epochs": 0.5,
            "label_smoothing": 0.1,
            "average_decay": 0.9,
            "clip_norm": 5.0,
            "cycle_loss": 1.0,
        },
        "data": {"crops": "random", "draws": 16, "balance": "binary", "patient_balance": 0.5, "folds": 3},
        "augmentation": {
            "cyclic_shift": True,
            "mixup": 0.3,
            "equalise_db": 3.0,
            "noise_share": 0.5,
            "background_share": 0.5,
            "time_masks": 1,
            "time_mask_frames": 40,
            "mel_masks": 1,
            "mel_mask_bands": 4,
        },
    }
)

AST = {"architecture": "ast", "dim": 16, "depth": 1, "heads": 2, "mlp_ratio": 1.0, "stride": 16, "dropout": 0.1}


class Silent:
    """A watcher that shows nothing."""

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        pass

    def stepped(self, step: int, loss: float, samples_per_second: float) -> None:
        pass

    def epoch_ended(self, row: dict[str, Any]) -> None:
        pass


class Halting(Silent):
    """Leaves its process number as `halted-RANK` in the middle of an epoch, and waits there for a kill or for `go`."""

    def __init__(self, folder: Path, rank: int, halt_epoch: int) -> None:
        self.folder, self.rank, self.halt_epoch, self.epoch = folder, rank, halt_epoch, -1

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        self.epoch = epoch

    def stepped(self, step: int, loss: float, samples_per_second: float) -> None:
        if (self.epoch, step) == (self.halt_epoch, 2):
            write_atomically(self.folder / f"halted-{self.rank}", str(os.getpid()))
            while not (self.folder / "go").exists():
                time.sleep(0.02)


def toy_fit(
    corpus: Path,
    cache: Path,
    seed: int = 0,
    machine: Machine | None = None,
    recipe: Recipe = RECIPE,
    **changes: object,
) -> tuple[Fit, dict[str, Any]]:
    """A run before its first epoch, and its identity; `changes` are `section__field` of the recipe."""
    recipe = with_changes(recipe, {key.replace("__", "."): value for key, value in changes.items()})
    read, held = with_audio(load_corpus("sprsound", corpus), cache)
    training, validation = patient_folds(read, recipe.data.folds, seed)[0]
    plain = crops_of(training, held, recipe.front_end, recipe, seed)
    front_end = measure_normalisation(plain, recipe.front_end, seed)
    crops = crops_of(training, held, front_end, recipe, seed)
    fit = Fit(recipe, crops, Validation(validation, held, front_end), machine or start("cpu"), seed)
    return fit, identity(recipe, read, validation, fit.machine.processes)


def run(corpus: Path, cache: Path, out: Path, *, resume: bool = False, workers: int = 0, **changes: object) -> Fit:
    """A whole run into `out`."""
    fit, known = toy_fit(corpus, cache, machine=start("cpu", workers=workers), **changes)  # type: ignore[arg-type]
    out.mkdir(parents=True, exist_ok=True)
    train(fit, out, known, resume=resume, minutes=None, watcher=Silent())
    return fit


def main() -> None:
    """A run in processes of its own: corpus, cache, run folder, and changes of the recipe as SECTION.FIELD=JSON."""
    parser = argparse.ArgumentParser()
    for name in ("corpus", "cache", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("changes", nargs="*")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--recipe", help="a shipped one instead of the toy")
    for name in ("--halt", "--resume"):
        parser.add_argument(name, action="store_true")
    asked = parser.parse_args()
    changes = {key.replace(".", "__"): json.loads(value) for key, _, value in (c.partition("=") for c in asked.changes)}
    machine = start("cpu", processes=asked.processes)
    torch.set_num_threads(1)
    recipe = load_recipe(asked.recipe) if asked.recipe else RECIPE
    fit, known = toy_fit(asked.corpus, asked.cache, machine=machine, recipe=recipe, **changes)
    asked.out.mkdir(exist_ok=True)
    watcher = Halting(asked.out, machine.rank, 1) if asked.halt else Silent()
    train(fit, asked.out, known, resume=asked.resume, minutes=asked.minutes, watcher=watcher)


if __name__ == "__main__":
    try:
        main()
    except RespSAMError as problem:
        sys.exit(str(problem))
