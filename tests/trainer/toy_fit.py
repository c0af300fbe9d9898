"""A training run of seconds on a made corpus, put together as `trainer fit` does; also a process that can be killed."""

import sys
from pathlib import Path
from typing import Any

import torch

from trainer.audio_cache import with_audio
from trainer.corpora import load_corpus
from trainer.crops import TrainingCrops
from trainer.fit import Fit, Validation, identity, measure_normalisation, train
from trainer.recipe import Recipe, with_changes
from trainer.splits import patient_folds

RECIPE = Recipe.model_validate(
    {
        "model": {
            "stem": "convolutional",
            "stem_channels": [4, 8],
            "stem_strides": [[4, 8], [4, 4], [2, 2]],
            "dim": 16,
            "depth": 1,
            "heads": 2,
            "dropout": 0.1,
        },
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
            "frame_loss": 0.5,
        },
        "data": {"crops": "random", "draws": 24, "balance": "binary", "patient_balance": 0.5, "folds": 3},
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


class Silent:
    """A watcher that shows nothing."""

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        pass

    def stepped(self, step: int, loss: float, samples_per_second: float) -> None:
        pass

    def epoch_ended(self, row: dict[str, Any]) -> None:
        pass


class Halting(Silent):
    """Says "here" in the middle of an epoch and waits there for the kill."""

    def __init__(self, halt_epoch: int) -> None:
        self.halt_epoch, self.epoch = halt_epoch, -1

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        self.epoch = epoch

    def stepped(self, step: int, loss: float, samples_per_second: float) -> None:
        if (self.epoch, step) == (self.halt_epoch, 2):
            print("here", flush=True)
            sys.stdin.readline()


def toy_fit(corpus: Path, cache: Path, seed: int = 0, **changes: object) -> tuple[Fit, dict[str, Any]]:
    """A run before its first epoch, and its identity; `changes` are `section__field` of the recipe."""
    recipe = with_changes(RECIPE, {key.replace("__", "."): value for key, value in changes.items()})
    read, held = with_audio(load_corpus("sprsound", corpus), cache)
    training, validation = patient_folds(read, recipe.data.folds, seed)[0]
    plain = TrainingCrops(training, held, recipe.front_end, recipe.data, recipe.augmentation, seed)
    front_end = measure_normalisation(plain, recipe.front_end, seed)
    crops = TrainingCrops(training, held, front_end, recipe.data, recipe.augmentation, seed)
    fit = Fit(recipe, crops, Validation(validation, held, front_end), torch.device("cpu"), seed)
    return fit, identity(recipe, read)


def run(corpus: Path, cache: Path, out: Path, *, resume: bool = False, workers: int = 0, **changes: object) -> Fit:
    """A whole run into `out`."""
    fit, known = toy_fit(corpus, cache, **changes)  # type: ignore[arg-type]
    out.mkdir(parents=True, exist_ok=True)
    train(fit, out, known, resume=resume, minutes=None, workers=workers, watcher=Silent())
    return fit


if __name__ == "__main__":
    corpus_folder, cache_folder, out_folder = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    state, run_identity = toy_fit(corpus_folder, cache_folder)
    out_folder.mkdir()
    train(state, out_folder, run_identity, resume=False, minutes=None, workers=0, watcher=Halting(1))
