"""What a run's models say of strangers heard as if through other stethoscopes, and of simulated breaths.

Run from the repository, on a finished run; each of its models is asked about the patients whom it has left out:
    python -m tests.bench.other_stethoscopes RUN [--data CORPUS] [--decibels 3 6 10]

Another stethoscope is a smooth random frequency response, another one for every stretch (as `equalise_db` in training,
with other draws): at 6 dB two bands half of the range apart differ by some 10 dB. It is no recording of one. The
threshold is the one that the patients chose as they were recorded. A few minutes a run.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from device.breath.simulator import breath
from device.labels import LABELS, Label
from device.model.judgement import abnormal_probability, pool
from device.signal import FRAMES, FloatArray, FrontEnd, normalise, windows
from firmware_config.settings import load_settings
from trainer.corpora.protocols import worst_window
from trainer.corpora.splits import only_patients
from trainer.evaluation.validation import Validation
from trainer.metrics import BoolArray, Float64Array, auroc
from trainer.model.network import Network, network, predict
from trainer.run.folder import CHECKPOINT_FILE, RunFacts, load_tensors, member_folder, read_facts, under
from trainer.run.recipe import AugmentationRecipe
from trainer.training.crops import response, through
from trainer.training.experiment import open_run

BREATHS = 30  # a class
CPU = torch.device("cpu")


def members(run: Path, facts: RunFacts) -> Iterator[Network]:
    """The models that left patients out, as they were after their last epoch."""
    averaged = facts.recipe.optimizer.average_decay > 0
    for number in range(len(facts.held_out)):
        tensors, _ = load_tensors(member_folder(run, number) / CHECKPOINT_FILE)
        model = network(facts.recipe.model)
        model.load_state_dict(under(tensors, "average.module" if averaged else "model"))
        yield model.eval()


def heard_otherwise(inputs: FloatArray, front_end: FrontEnd, decibels: float) -> FloatArray:
    """Model inputs (n, frames, mels), each through a stethoscope of its own."""
    random, another = np.random.default_rng(0), AugmentationRecipe(equalise_db=decibels)
    changed = inputs.copy()
    for one in changed:
        log_mels = one[:FRAMES] * np.float32(2.0 * front_end.std) + np.float32(front_end.mean)
        moved = through(log_mels, response(front_end, another, random), front_end)
        one[:FRAMES] = normalise(np.maximum(moved, np.float32(np.log(front_end.floor))), front_end)
    return changed


def judged(model: Network, held: Validation, inputs: FloatArray, temperature: float) -> Float64Array:
    """Probability of every stretch (n,)."""
    logits = pool(predict(model, inputs, CPU))
    return worst_window(logits, abnormal_probability(logits, temperature), held.owner)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--data", type=Path, nargs="+", help="the corpora of the run (default: where they were then)")
    parser.add_argument("--decibels", type=float, nargs="+", default=[3.0, 6.0, 10.0], help="of the responses")
    asked = parser.parse_args()
    facts = read_facts(asked.run)
    temperature, threshold = facts.choice.temperature, facts.choice.cycle_threshold
    opened = open_run(facts, asked.data or (), load_settings(None).training.folder)
    corpus, cache = opened.training, opened.cache
    ways: dict[str, list[Float64Array]] = {"as recorded": [], **{f"{one:g} dB": [] for one in asked.decibels}}
    truth: list[BoolArray] = []
    called: dict[Label, list[float]] = {label: [] for label in LABELS}
    for model, patients in zip(members(asked.run, facts), facts.held_out, strict=True):
        held = Validation(only_patients(corpus, set(patients)), cache, facts.front_end)
        truth.append(held.labels > 0)
        for way, decibels in zip(ways, [0.0, *asked.decibels], strict=True):
            inputs = heard_otherwise(held.inputs, facts.front_end, decibels) if decibels else held.inputs
            ways[way].append(judged(model, held, inputs, temperature))
        for label, found in called.items():
            for seed in range(BREATHS):
                logits = pool(predict(model, windows(breath(seed, label), facts.front_end), CPU))
                found.append(float(abnormal_probability(logits, temperature).max()))
    abnormal = np.concatenate(truth)
    print(f"{asked.run}: {len(abnormal)} held-out {held.protocol}, threshold {threshold:.3f}")
    for way, parts in ways.items():
        probability = np.concatenate(parts)
        flagged = probability >= threshold
        sensitivity, specificity = flagged[abnormal].mean(), 1 - flagged[~abnormal].mean()
        print(
            f"{way:12s} AUROC {auroc(abnormal, probability):.3f}, Se {sensitivity:.3f}, Sp {specificity:.3f}, "
            f"Score {(sensitivity + specificity) / 2:.3f}"
        )
    for label, found in called.items():
        share = np.mean(np.array(found) >= threshold)
        print(f"simulated {label:8s} {share:.2f} flagged of {len(found)}, median probability {np.median(found):.2f}")


if __name__ == "__main__":
    main()
