"""The run folder that `trainer fit` writes, `evaluate` and `export` read: safetensors for weights, else JSON.

Torch is imported where tensors are read: what a folder holds is known without it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from device.bundle import CalibrationBounds, Population, Segmentation, SiteRule, ThresholdChoice
from device.signal import FrontEnd
from firmware_config.errors import RespSAMError
from firmware_config.files import replacing
from trainer.choices import Protocol
from trainer.corpora.cycle import Grain, Source, joined_names
from trainer.documents import first_problem
from trainer.reading import Reading
from trainer.run.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.model.network import Ensemble, Network

SCHEMA: Final = 2
RUN_FILE: Final = "run.json"
WEIGHTS_FILE: Final = "model.safetensors"
CHECKPOINT_FILE: Final = "checkpoint.safetensors"
METRICS_FILE: Final = "metrics.jsonl"
METRICS_KEYS: Final = {"epoch", "loss", "seconds"}
EVENTS_FOLDER: Final = "tensorboard"
LOG_FILE: Final = "log.txt"
REPORT_FILE: Final = "report.html"
READINGS_FILE: Final = (
    "readings.jsonl"  # every reading of this run's accuracy, one a line, so that a test part read twice shows
)
LONGEST_VALUES: Final = 40  # characters of the two values of a key that are shown
DECIDING: Final = {"temperature", "cycle_threshold", "site_rule", "segmentation"}


class RunError(RespSAMError):
    """A run folder that is missing, unfinished, damaged, or of another recipe."""


class Choice(BaseModel):
    """The choices of the held-out patients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: list[int]
    """Each member's kept one, counted from 1: its best, or its last where models of all patients serve."""
    temperature: float
    threshold: ThresholdChoice
    cycle_threshold: float
    site_rule: SiteRule
    site_threshold: ThresholdChoice | None
    calibration: CalibrationBounds | None
    """How far healthy people may raise the sites' threshold; None where no recordings were annotated."""
    segmentation: Segmentation
    readings: dict[Protocol, Reading]
    """Of the held-out patients with all of this, by protocol."""


class RunFacts(BaseModel):
    """Everything about a finished run but its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    recipe_name: str
    recipe: Recipe
    front_end: FrontEnd
    """The recipe's front end with the measured mean and std."""
    seed: int
    corpora: list[Source]
    """Where the corpora were when the run was made."""
    part: str | None
    split: str
    parts: list[str]
    """Of the corpus, those that trained or chose."""
    lenient: bool
    patients: list[str]
    """All of the part's: trained on by every member that does not hold them out."""
    held_out: list[list[str]]
    """By member, the patients that it never met and was validated on."""
    population: Population
    label_grains: dict[Grain, int] = {}
    """Recordings by what has a label in them; empty for a run that was made before this was kept."""
    choice: Choice
    epochs_done: list[int]
    """By member."""
    refit_epochs: list[int] = []
    """By model of all patients; these are served in the members' place."""
    weights: str
    """sha256 of the weights' file."""
    versions: dict[str, str]

    @property
    def corpus(self) -> str:
        """Names of its corpora, joined by +."""
        return joined_names(self.corpora)

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides a verdict: weights, front end, segmentation, thresholds, rule."""
        chosen = self.choice.model_dump_json(include=DECIDING)
        return hashlib.sha256(f"{self.weights} {self.front_end.model_dump_json()} {chosen}".encode()).hexdigest()


def read_metrics(folder: Path, number: int) -> list[dict[str, Any]]:
    """One row an epoch of a run's member, counted from 0; none where it kept none, RunError names a damaged line."""
    path = member_folder(folder, number) / METRICS_FILE
    return read_rows(path, METRICS_KEYS, "an epoch's metrics; restore the file, or remove it and do without its curves")


def read_rows(path: Path, keys: set[str], what: str) -> list[dict[str, Any]]:
    """The lines of a JSON lines file, none where there is no file; RunError names one that lacks a key."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines() if path.is_file() else (), 1):
        try:
            row = json.loads(line)
            missing = keys - set(row)
        except (ValueError, TypeError):
            missing = {"JSON"}
        if missing:
            raise RunError(f"{path}:{number}: no {min(missing)}, so not {what}")
        rows.append(row)
    return rows


def save_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, Any]) -> None:
    """Safetensors with JSON metadata, replaced atomically; FileError when they cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path, SafetensorError) as partial:
        save_file(contiguous, partial, {"json": json.dumps(metadata)})


def load_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Inverse of `save_tensors`; RunError names a file that is missing or damaged."""
    with _opened(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["json"])  # noqa: SIM118


def load_metadata(path: Path) -> dict[str, Any]:
    """The metadata alone of what `save_tensors` wrote, without torch; RunError as `load_tensors`."""
    with _opened(path, "np") as file:
        metadata: dict[str, Any] = json.loads(file.metadata()["json"])
    return metadata


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}: not a readable checkpoint ({error}); train again or restore it from a backup"
        ) from error


def under(tensors: "dict[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    """The tensors with a name that starts with `prefix.`, by the rest of it."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


def prefixed(tensors: "dict[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    """Inverse of `under`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def member_folder(folder: Path, number: int) -> Path:
    """Where a run's member keeps its checkpoint and its metrics; members count from 0, folders from 1."""
    return folder / f"member-{number + 1}"


def refit_folder(folder: Path, number: int) -> Path:
    """The same for a model of all patients."""
    return folder / f"all-{number + 1}"


def outcome_file(folder: Path, protocol: str) -> Path:
    """Where a run keeps its members' predictions for their held-out patients; `load_outcome` reads it."""
    return folder / f"held_out-{protocol}.npz"


def begun(folder: Path) -> bool:
    """Whether a run in this folder has a checkpoint."""
    return any(folder.glob(f"member-*/{CHECKPOINT_FILE}"))


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys in which two descriptions of a run differ, and both values where they are short."""
    found = []
    for key in dict.fromkeys((*now, *kept)):
        old, new = kept.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            parent = "" if key == "recipe" else f"{key}."
            found += [f"{parent}{one}" for one in differences(old, new)]
        elif old != new:
            values = f" ({old} there, {new} here)"
            found.append(key + values * (len(values) <= LONGEST_VALUES))
    return found


def refuse_another(path: Path, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """RunError where the run that `path` is of differs from the one that is to go on."""
    if other := differences(kept, now):
        raise RunError(
            f"{path}: of a run that differs in {', '.join(other)}; go on with the same, or choose another --out"
        )


def assemble(members: "Sequence[Network]") -> "Network | Ensemble":
    """The model that a run serves: its only member, or the mean of several."""
    from trainer.model.network import Ensemble

    return members[0] if len(members) == 1 else Ensemble(members)


def read_facts(folder: Path) -> RunFacts:
    """The facts of a finished run; RunError names the problem."""
    path = folder / RUN_FILE
    if not path.is_file():
        if begun(folder):
            raise RunError(f"{folder}: the run is not finished; go on with 'trainer fit … --out {folder} --resume'")
        raise RunError(f"{folder}: no run here ({RUN_FILE} is missing); make one with 'trainer fit'")
    try:
        return RunFacts.model_validate_json(path.read_text())
    except ValidationError as error:
        if '"corpora"' not in path.read_text():
            raise RunError(f"{path}: the run is of an earlier version (schema 1), train again") from error
        said = first_problem(error, RunFacts)
        raise RunError(f"{path}: {said}; the run is of another version, train again") from error


def load_model(folder: Path, facts: RunFacts) -> "Network | Ensemble":
    """The finished model of a run in eval mode; keys and shapes are matched strictly."""
    import torch

    from trainer.model.network import network

    tensors, _ = load_tensors(folder / WEIGHTS_FILE)
    if file_digest(folder / WEIGHTS_FILE) != facts.weights:
        raise RunError(
            f"{folder / WEIGHTS_FILE}: not the weights that {RUN_FILE} is about; go on with the run by 'trainer fit … "
            "--resume', or restore it from a backup"
        )
    data = facts.recipe.data
    model = assemble([network(facts.recipe.model) for _ in range(data.refit or data.members)])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunError(f"{folder / WEIGHTS_FILE}: does not fit the recipe: {' '.join(str(error).split())}") from error
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise RunError(f"{folder / WEIGHTS_FILE}: NaN or infinite weights in {bad[0]}; train again")
    return model.eval()
