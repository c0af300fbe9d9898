"""Samples per second of the training step: ours and the usual Hugging Face loop, measured in turns on one core.

The usual loop: transformers' ASTForAudioClassification, its feature extractor per sample to 1024 frames of 128 bands,
and SAM as in davda54/sam. Ours: `trainer.fit.Fit`, which cuts, augments and mixes as `trainer fit` does.

Run from the repository:
    python -m tests.bench.training_speed --pairs N [--batch 8] [--recipe mobilenet] [--data SPRSOUND]
    python -m tests.bench.training_speed --data SPRSOUND --cache EMPTY_FOLDER       (the audio cache, on all cores)
    python -m tests.bench.training_speed --data SPRSOUND --memory                   (a child `trainer fit` for a minute)
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from device.labels import Label
from device.signal import SAMPLE_RATE, WINDOW_SAMPLES
from firmware_config.settings import load_settings
from tests.trainer.sounds import cache_of
from trainer.corpora import Corpus, Cycle, Recording, load_corpus
from trainer.corpora.audio_cache import AudioCache, with_audio
from trainer.corpora.splits import only_patients
from trainer.evaluation.validation import Validation
from trainer.model.config import ModelConfig
from trainer.run.machine import start
from trainer.run.recipe import Recipe, load_recipe, with_changes
from trainer.training.crops import crops_of
from trainer.training.train import Fit

Times = npt.NDArray[np.float64]
RHO = 0.05


@dataclass(frozen=True)
class Contender:
    """A loop in its two halves, so that both are known: a batch made of cached audio, and a step on it."""

    name: str
    make: Callable[[], Any]
    step: Callable[[Any], object]

    def turn(self) -> tuple[float, float]:
        """Seconds that a batch took to make and to learn from."""
        began = perf_counter()
        batch = self.make()
        made = perf_counter()
        self.step(batch)
        return made - began, perf_counter() - made


def noise_corpus(folder: Path) -> tuple[Corpus, AudioCache]:
    """Noise instead of recordings: 12 patients, normal and abnormal cycles of every other one."""
    random, sounds, recordings = np.random.default_rng(0), {}, []
    for number in range(24):
        label: Label = "crackle" if number % 2 else "normal"
        name, patient = f"noise {number}", f"patient {number // 2}"
        sounds[name] = (0.1 * random.standard_normal(10 * SAMPLE_RATE)).astype(np.float32)
        cycles = tuple(Cycle(name, at, at + 1.5, label, patient, "", "") for at in (0.5, 3.5, 6.5))
        recordings.append(Recording(name, None, patient, "", "", None, "", label, cycles))
    return Corpus("noise", folder, tuple(recordings)), cache_of(folder, sounds)


def like_theirs(recipe: Recipe, frames: int) -> Recipe:
    """The recipe with a small AST of 128 bands, so that both sides learn the same model."""
    values = {**recipe.model_dump(), "init": ""}
    if values["model"]["architecture"] != "ast":
        values["model"] = {"dim": 192, "depth": 4, "heads": 3, "stride": 16}
    values["model"] |= {"mels": 128, "frames": frames}
    values["front_end"] |= {"mels": 128, "low_hz": 20.0, "high_hz": 8000.0, "frames": frames}
    return Recipe.model_validate(values)


def our_fit(recipe: Recipe, corpus: Corpus, cache: AudioCache, rho: float, batch: int) -> Fit:
    """As `trainer fit` makes it, validated on one patient; the mean of the log-mels is a round number."""
    changes = {"init": "", "optimizer.rho": rho, "optimizer.batch": batch, "optimizer.accumulation": 1}
    changed = with_changes(recipe, changes)
    front_end = changed.front_end.model_copy(update={"mean": -10.7, "std": 4.2})
    crops = crops_of(corpus, cache, front_end, changed, 0)
    kinds = ((patient, only_patients(corpus, {patient})) for patient in corpus.patients)
    both = next(one for _, one in kinds if len({cycle.label == "normal" for cycle in one.cycles}) == 2)
    return Fit(changed, crops, Validation(both, cache, front_end), start("cpu"), 0)


def ours(name: str, fit: Fit) -> Contender:
    """The steps of an epoch."""
    batches: Iterator[tuple[Tensor, ...]] = (one for epoch in range(10**6) for one in fit.batches(epoch))
    fit.wrapped.train()

    def step(batch: tuple[Tensor, ...]) -> None:
        fit.micro_step(batch)
        fit.step(1)

    return Contender(name, lambda: next(batches), step)


def theirs(fit: Fit, batch: int) -> Contender:
    """transformers' model of the same sizes on the same draws as ours, repeated to 8 s, not augmented."""
    sizes, crops, random = fit.recipe.model, fit.crops, np.random.default_rng(0)
    assert isinstance(sizes, ModelConfig)
    extractor = ASTFeatureExtractor(max_length=1024, num_mel_bins=128)  # type: ignore[no-untyped-call]
    model = ASTForAudioClassification(
        ASTConfig(
            hidden_size=sizes.dim,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            intermediate_size=round(sizes.dim * sizes.mlp_ratio),
            hidden_dropout_prob=sizes.dropout,
            num_labels=sizes.classes,  # type: ignore[call-arg]
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-4)
    keys = (key for epoch in range(10**6) for key in fit.drawn(epoch))

    def make() -> tuple[Tensor, Tensor]:
        windows, labels = [], []
        for _ in range(batch):
            cycle = crops.cycles[next(keys)[2]]
            crop = crops.crop(cycle, random)
            samples = crops.cache.cut(cycle.recording, crop.start_seconds, crop.end_seconds)
            padded = np.resize(samples, WINDOW_SAMPLES)
            windows.append(extractor(padded, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values[0])
            labels.append(int(cycle.label != "normal"))
        return torch.stack(windows), torch.tensor(labels)

    def backward(windows: Tensor, labels: Tensor) -> None:
        F.cross_entropy(model(windows).logits, labels, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]

    def step(made: tuple[Tensor, Tensor]) -> None:
        backward(*made)
        with torch.no_grad():
            held = [(one, one.clone(), one.grad) for one in model.parameters() if one.grad is not None]
            norm = torch.norm(torch.stack([gradient.norm(p=2) for _, _, gradient in held]), p=2)
            for one, _, gradient in held:
                one.add_(gradient * (RHO / (norm + 1e-12)))
        optimizer.zero_grad()
        backward(*made)
        with torch.no_grad():
            for one, before, _ in held:
                one.copy_(before)
        optimizer.step()
        optimizer.zero_grad()

    return Contender("transformers, 128 bands, 1024 frames, SAM", make, step)


def spread(values: Times) -> str:
    """Median and 10-90 %."""
    low, median, high = np.percentile(values, [10, 50, 90])
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def race(recipe: Recipe, corpus: Corpus, cache: AudioCache, batch: int, pairs: int) -> None:
    """Rounds in which every contender takes a turn; ratios are of the same round."""
    recipes = {f"128 bands, {frames} frames": like_theirs(recipe, frames) for frames in (1024, 798)}
    if recipe.model.architecture != "ast":
        recipes[f"{recipe.model.architecture}, {recipe.front_end.mels} bands"] = recipe
    fits = {
        f"respsam, {name}, {kind}": our_fit(one, corpus, cache, rho, batch)
        for name, one in recipes.items()
        for kind, rho in (("SAM", RHO), ("AdamW", 0.0))
    }
    contenders = [theirs(next(iter(fits.values())), batch), *(ours(name, fit) for name, fit in fits.items())]
    for one in contenders:
        one.turn()
    turns = np.array([[one.turn() for one in contenders] for _ in range(pairs)])  # (pairs, contenders, 2)
    make, step, whole = turns[..., 0].T, turns[..., 1].T, turns.sum(axis=2).T
    print(f"{'median (10-90 %)':46s}", *(f"{title:>22s}" for title in ("samples/s", "log-mels/s", "s a step", "ratio")))
    for place, one in enumerate(contenders):
        columns = batch / whole[place], batch / make[place], step[place], whole[0] / whole[place]
        print(f"{one.name:46s}", *(f"{spread(column):>22s}" for column in columns))
    for sam in range(1, len(contenders), 2):
        print(f"{contenders[sam].name}: {spread(step[sam] / step[sam + 1])} times AdamW's step, without making batches")
    print(f"without making batches, of the same 1024 frames: transformers {spread(step[0] / step[1])} times ours")


def time_cache(data: Path, folder: Path) -> None:
    """A first start and a later one."""
    for what in ("first", "later"):
        began = perf_counter()
        corpus = load_corpus("sprsound", data, purpose="fit")
        read = perf_counter()
        corpus, cache = with_audio(corpus, folder)
        hours = sum(map(cache.seconds, cache.lengths)) / 3600
        print(
            f"{what} start: annotations {read - began:.1f} s, audio {perf_counter() - read:.1f} s "
            f"({len(corpus.recordings)} recordings, {hours:.1f} h, {hours * 3600 * SAMPLE_RATE * 4 / 1e9:.2f} GB)"
        )


def peak_memory(data: Path, recipe: str) -> None:
    """Of `trainer fit`, the pages of the memory-mapped audio among them."""
    with tempfile.TemporaryDirectory() as out:
        options = [
            "--corpus",
            "sprsound",
            "--data",
            str(data),
            "--recipe",
            recipe,
            "--out",
            out,
            "--members",
            "1",
            "--refit",
            "0",
        ]
        subprocess.run([sys.executable, "-m", "trainer", "fit", *options, "--minutes", "1"], check=True)
    print(f"peak memory of trainer fit: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="rounds in which each takes a turn (default 10)")
    parser.add_argument("--batch", type=int, default=8, help="samples a step (default 8)")
    parser.add_argument("--recipe", default="mobilenet", help="whose model (default mobilenet)")
    parser.add_argument("--data", type=Path, help="SPRSound; noise without")
    parser.add_argument("--cache", type=Path, help="with --data: time a first and a later start here instead")
    parser.add_argument("--memory", action="store_true", help="with --data: a minute of `trainer fit` instead")
    asked = parser.parse_args()
    if asked.data and (asked.cache or asked.memory):
        return time_cache(asked.data, asked.cache) if asked.cache else peak_memory(asked.data, asked.recipe)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    torch.set_num_threads(1)
    threadpool_limits(1)
    with tempfile.TemporaryDirectory() as folder:
        if asked.data:
            read = load_corpus("sprsound", asked.data, purpose="fit")
            corpus, cache = with_audio(read, load_settings(None).training.folder)
        else:
            corpus, cache = noise_corpus(Path(folder))
        race(load_recipe(asked.recipe), corpus, cache, asked.batch, asked.pairs)


if __name__ == "__main__":
    main()
