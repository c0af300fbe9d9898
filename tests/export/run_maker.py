"""Finished runs in code: a tiny model with a fitted head, and what validation would choose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from device.bundle import Segmentation, SiteRule, ThresholdChoice
from device.model.judgement import abnormal_probability
from device.signal import FrontEnd
from firmware_config.files import write_atomically
from firmware_config.settings import load_settings
from trainer.corpora import Source
from trainer.corpora.audio_cache import open_corpora
from trainer.corpora.cycle import number_of_grain
from trainer.corpora.splits import patient_folds
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.served import of_run
from trainer.evaluation.validation import Validation
from trainer.model.config import MobileNetConfig, ModelConfig
from trainer.model.network import AST, Network, network
from trainer.run.folder import RUN_FILE, WEIGHTS_FILE, Choice, RunFacts, assemble, file_digest, read_facts, save_tensors
from trainer.run.machine import start
from trainer.run.recipe import Recipe, load_recipe
from trainer.training.finish import population, versions

MELS = 24
PATCH = ModelConfig(mels=MELS, dim=16, depth=2, heads=2, stride=16)
MOBILENET = MobileNetConfig(mels=32, dropout=0.1)


def make_model(config: ModelConfig | MobileNetConfig, seed: int = 0, gain: float = 10.0) -> Network:
    """Random weights; a narrow AST needs a `gain`, or windows differ by no more than their fifth digit."""
    torch.manual_seed(seed)
    model = network(config).eval()
    if isinstance(model, AST):
        with torch.no_grad():
            for block in model.blocks:
                for parameter in block.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(gain)
    return model


def fit_head(model: Network, held: Validation) -> None:
    """Batch norms and the head as training would leave them: statistics of the windows, and ridge regression."""
    windows = torch.from_numpy(held.inputs)
    _settle_batch_norms(model, windows)
    with torch.no_grad():
        if isinstance(model, AST):
            features = model.tokens(windows)[:, 2:].mean(dim=1)
            targets = 4.0 * np.eye(4)[held.labels] - 1.0
        else:
            # every moment by itself: fitted on their means alone, single moments had logits of a hundred
            features = model.features(windows).mean(dim=2).transpose(1, 2).flatten(0, 1)
            # of crackle and wheeze; 'both' is both
            sounds = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]])[held.labels]
            targets = 0.4 * np.repeat(sounds, model.config.moments, axis=0)
        weight, bias = _ridge(features.numpy().astype(np.float64), targets)
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))


def _ridge(features: Any, targets: Any) -> tuple[Any, Any]:
    mean = features.mean(axis=0)
    centred = features - mean
    spread = np.square(centred).mean() * len(centred)
    weight = np.linalg.solve(centred.T @ centred + 0.1 * spread * np.eye(features.shape[1]), centred.T @ targets)
    return weight.T, targets.mean(axis=0) - mean @ weight


def _settle_batch_norms(model: Network, windows: torch.Tensor) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(windows)
    model.eval()


def make_run(
    run: Path,
    data: Path,
    cache: Path,
    config: ModelConfig | MobileNetConfig,
    change: Callable[[Network], None] = lambda model: None,
    members: int = 1,
    gain: float = 10.0,
    fitted: bool = True,
) -> RunFacts:
    """Write a finished run on the SPRSound corpus at `data`; its threshold lies in the widest gap of probabilities.

    `change` is made to the weights before the head is `fitted`.
    """
    run.mkdir(parents=True)
    values = load_recipe("mobilenet").model_dump()
    values.update(init="", init_sha256="")
    values["model"], values["front_end"] = config.model_dump(), front_end_of(config).model_dump()
    values["data"].update(folds=3, members=members, refit=0)
    values["augmentation"].update(time_mask_frames=8, mel_mask_bands=4)
    recipe = Recipe.model_validate(values)
    front_end = recipe.front_end.model_copy(update={"mean": -6.0, "std": 3.0})
    source = Source("sprsound", data)
    corpus, audio = open_corpora([source], cache, part="train")
    folds = [held_out for _, held_out in patient_folds(corpus, 3, 3)[:members]]
    validation = folds[0]
    held = Validation(validation, audio, front_end)
    made = [make_model(config, seed, gain) for seed in range(members)]
    for one in made:
        with torch.no_grad():
            change(one)
        if fitted:
            fit_head(one, held)
    model = assemble(made)
    save_tensors(run / WEIGHTS_FILE, model.state_dict(), {"architecture": config.architecture})
    threshold = widest_gap(abnormal_probability(held.logits(model, start("cpu")), 1.5))
    facts = RunFacts(
        recipe_name="small",
        recipe=recipe,
        front_end=front_end,
        seed=3,
        corpora=[source],
        part="train",
        split="official",
        parts=["train"],
        lenient=False,
        patients=list(corpus.patients),
        held_out=[list(held_out.patients) for held_out in folds],
        population=population(corpus),
        choice=Choice(
            epochs=[2] * members,
            temperature=1.5,
            threshold=ThresholdChoice(
                rule="maximises nothing, it is a test", protocol="windows", curve=((0.5, 1.0, 0.0),)
            ),
            cycle_threshold=threshold,
            site_threshold=None,
            site_rule=SiteRule(threshold=threshold, stretch_cycles=4, least_cycles=2),
            calibration=None,
            segmentation=Segmentation(),
            readings={},
        ),
        epochs_done=[5] * members,
        label_grains=number_of_grain(corpus.recordings),
        weights=file_digest(run / WEIGHTS_FILE),
        versions=versions(),
    )
    reading = evaluate(
        of_run(model, facts, run.name, torch.device("cpu")), validation, audio, "windows", load_settings().quality
    )
    facts = facts.model_copy(update={"choice": facts.choice.model_copy(update={"readings": {"windows": reading}})})
    write_atomically(run / RUN_FILE, facts.model_dump_json())
    return facts


def with_weights(run: Path, model: nn.Module) -> None:
    """Other weights for a finished run, as if it had been trained to them."""
    save_tensors(run / WEIGHTS_FILE, model.state_dict(), {})
    facts = read_facts(run).model_copy(update={"weights": file_digest(run / WEIGHTS_FILE)})
    write_atomically(run / RUN_FILE, facts.model_dump_json())


def front_end_of(config: ModelConfig | MobileNetConfig) -> FrontEnd:
    """As many bands as the model takes; few of them stop where the made corpora do."""
    return FrontEnd(mels=config.mels, high_hz=4000.0 if config.mels <= MOBILENET.mels else 8000.0)


def widest_gap(probability: Any) -> float:
    """The middle of the widest gap in the inner half of the probabilities: a threshold that rounding does not cross."""
    values = np.sort(probability)
    quarter = len(values) // 4
    inner = values[quarter : len(values) - quarter]
    widest = int(np.diff(inner).argmax())
    return float((inner[widest] + inner[widest + 1]) / 2)
