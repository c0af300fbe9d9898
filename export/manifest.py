"""The manifest of a run's bundle; nothing in it depends on the folder or the hour of the build.

Of the machine only the order of the files does, unless `--prefer` states it.
"""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from device.bundle import Manifest, ModelFile, SelfTest
from device.labels import LABELS
from trainer.corpora.cycle import PARTS
from trainer.reading import Reading
from trainer.run.folder import READINGS_FILE, RunFacts
from trainer.run.initial import HUB
from trainer.run.recipe import Recipe


def make_manifest(
    facts: RunFacts,
    *,
    name: str | None,
    parameters: int,
    files: tuple[ModelFile, ...],
    self_test: SelfTest,
    readings: Sequence[Reading],
    earlier: int,
    measured: dict[str, Any],
    quantization: dict[str, Any],
) -> Manifest:
    """Everything about the bundle.

    `readings` are `trainer evaluate`'s, `earlier` counts those of other weights or thresholds in the same run,
    `measured` is what the build's gates read, `quantization` how files were made.
    """
    recipe_name = Path(facts.recipe_name).stem  # a recipe may have been given as a file
    choice = facts.choice
    chosen = "epoch, " if facts.recipe.data.keep == "best" else ""
    return Manifest(
        name=name or f"{recipe_name}-{facts.corpus}",
        architecture={
            **facts.recipe.model.model_dump(mode="json"),
            "moments": facts.recipe.model.moments,
            "members": facts.recipe.data.refit or facts.recipe.data.members,
            "parameters": parameters,
        },
        labels=LABELS,
        front_end=facts.front_end,
        files=files,
        threshold=choice.threshold,
        site_rule=choice.site_rule,
        site_threshold=choice.site_threshold,
        calibration=choice.calibration,
        segmentation=choice.segmentation,
        population=facts.population,
        corpus=facts.corpus,
        split=(
            f"by patient within part '{facts.part or 'train'}' ({facts.split} split): {_split(facts)} chose "
            f"{chosen}temperature, threshold and site rule"
        ),
        seen_parts=_seen(facts),
        metrics={
            "validation": {protocol: _without_paths(reading) for protocol, reading in choice.readings.items()},
            "readings": [_without_paths(reading) for reading in readings],
            "earlier_readings": earlier,
            "export": {**measured},
            "label_grains": facts.label_grains,
        },
        recipe={
            "name": recipe_name,
            "seed": facts.seed,
            "kept_epochs": choice.epochs,
            "epochs_done": facts.epochs_done,
            **({"refit_epochs": facts.refit_epochs} if facts.refit_epochs else {}),
            "run": facts.fingerprint,
            **facts.recipe.model_dump(mode="json", exclude={"model", "front_end", "init", "init_sha256"}),
            **_began(facts.recipe),
            **({"quantization": quantization} if quantization else {}),
        },
        versions={
            **facts.versions,
            "torch of the export": version("torch"),
            **{package: version(package) for package in ("onnx", "onnxscript", "onnxruntime")},
        },
        self_test=self_test,
    )


def _split(facts: RunFacts) -> str:
    held = " / ".join(str(len(patients)) for patients in facts.held_out)
    if facts.recipe.data.choose_on == "test":
        return f"{len(facts.patients)} patients trained, and {held} of THE TEST PART, whose readings it flatters,"
    models = len(facts.refit_epochs)
    served = (
        f"{models} further model{'s' * (models > 1)} of all patients serve{'s' * (models == 1)}; " if models else ""
    )
    if len(facts.held_out) == 1:
        return f"{served}of {len(facts.patients)} patients {held} were held out and"
    return (
        f"{served}of {len(facts.patients)} patients each of {len(facts.held_out)} models held out others ({held}), who"
    )


def _seen(facts: RunFacts) -> tuple[str, ...]:
    """Parts whose patients trained or tuned the model, more of them than were read where parts share patients."""
    seen = set(facts.parts)
    if facts.split == "as-published":
        seen.update(PARTS)
    if seen & {"train", "intra"}:  # SPRSound's intra-patient test holds training patients only
        seen.update({"train", "intra"})
    return tuple(sorted(seen))


def _began(recipe: Recipe) -> dict[str, str]:
    """Where the weights began, for others: a path is of the machine of the fit."""
    name = recipe.init if recipe.init.startswith(HUB) else Path(recipe.init).name
    return {key: value for key, value in (("init", name), ("init_sha256", recipe.init_sha256)) if value}


def _without_paths(reading: Reading) -> dict[str, Any]:
    """A reading whose notes name no files: paths are those of the machine where it was read."""
    kept = [note for note in reading.notes if os.sep not in note]
    if len(kept) < len(reading.notes):
        kept.append(f"{len(reading.notes) - len(kept)} more notes name files; they are in the run's {READINGS_FILE}")
    return reading.model_copy(update={"notes": kept}).as_json()
