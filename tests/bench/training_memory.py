"""Seconds of a training step with the memory of the step before kept or not, channels last or first, in turns.

Run from the repository, with nothing else running:
    python -m tests.bench.training_memory [--pairs 5] [--recipe mobilenet]

The C library is told once a process, so every turn is a process of its own, on one core with one thread.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from tests.bench.training_speed import noise_corpus, our_fit, ours, spread
from trainer.run import machine
from trainer.run.recipe import load_recipe

WAYS = ("as before", "kept", "channels last", "kept, channels last")
BATCH, STEPS = 32, 6


def turn(recipe: str, way: str) -> float:
    """Median seconds of a step, batches left out."""
    torch.set_num_threads(1)
    if "kept" not in way:
        machine.keep_freed_memory = lambda: None
    with tempfile.TemporaryDirectory() as folder:
        fit = our_fit(load_recipe(recipe), *noise_corpus(Path(folder)), 0.0, BATCH)
        if "channels last" not in way:
            fit.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        contender = ours(way, fit)
        batch = contender.make()
        taken = []
        for _ in range(STEPS):
            began = perf_counter()
            contender.step(batch)
            taken.append(perf_counter() - began)
    return float(np.median(taken[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="rounds in which each takes a turn (default 5)")
    parser.add_argument("--recipe", default="mobilenet", help="whose model (default mobilenet)")
    parser.add_argument("--turn", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.turn:
        return print(turn(asked.recipe, asked.turn))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    command = [sys.executable, "-m", "tests.bench.training_memory", "--recipe", asked.recipe, "--turn"]
    seconds = np.array(
        [[float(subprocess.check_output([*command, way], text=True)) for way in WAYS] for _ in range(asked.pairs)]
    ).T
    for way, own in zip(WAYS, seconds, strict=True):
        print(f"{way:22s} {spread(own)} s a step of {BATCH}, {spread(seconds[0] / own)} times as fast")


if __name__ == "__main__":
    main()
