"""A recipe: all choices of a training, as a TOML file."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from device.labels import LABELS
from device.signal import FrontEnd
from firmware_config.errors import RespSAMError
from trainer.choices import CropKind, HoldOut, Precision, Sharpness
from trainer.documents import first_problem, load
from trainer.model.config import MobileNetConfig, ModelConfig

Balance = Literal["none", "class", "binary"]


class RecipeError(RespSAMError):
    """A recipe that does not exist or does not hold."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class OptimizerRecipe(_Section):
    """SAM around AdamW."""

    rho: float = Field(ge=0.0)
    """Radius of SAM's climb; 0 is plain AdamW."""
    sharpness: Sharpness = "sam"
    """'asam' measures the climb relative to each weight (arXiv 2102.11600); its rho is about ten times SAM's."""
    precision: Precision = "32"
    """'bf16' runs forward and backward in bfloat16 autocast; weights and their optimizer stay in float32."""
    learning_rate: float = Field(gt=0.0)
    """Peak of the cosine schedule."""
    weight_decay: float = Field(ge=0.0)
    """AdamW's decay, on matrices and kernels only."""
    batch: int = Field(ge=2)
    """Cycles a micro-batch."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches a step; SAM climbs in each (m-sharpness)."""
    epochs: int = Field(ge=1)
    """Length of the schedule."""
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    """Linear warm-up."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the target spread over all classes."""
    average_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Exponential moving average of the weights that is validated and kept; 0 keeps the weights themselves."""
    clip_norm: float = Field(default=0.0, ge=0.0)
    """Largest gradient norm; 0 does not clip."""
    cycle_loss: float = Field(default=0.0, ge=0.0)
    """Weight of the loss on each annotated cycle inside a crop, for a model with moments; 0 learns from whole crops."""


class DataRecipe(_Section):
    """The draws of an epoch."""

    crops: CropKind
    """'random': a crop of random length around the event; 'events': the annotated span."""
    crop_seconds: tuple[float, float] = (1.5, 4.0)
    """Shortest and longest random crop; as many from 0.5 to 1 s as from 2 to 4 s."""
    whole_windows: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the random crops that take the whole window's length: a cycle in the sound around it."""
    anywhere: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the normal draws from wholly normal recordings that are cut anywhere in the recording."""
    balance: Balance = "class"
    """Weighted random sampling: by class, by normal against abnormal, or none."""
    corpus_balance: float = Field(default=0.0, ge=0.0, le=1.0)
    """Of several corpora: 0 draws every cycle alike, 1 every corpus, however many cycles it has."""
    device_balance: float = Field(default=0.0, ge=0.0, le=1.0)
    """The same of the stethoscopes of a corpus."""
    patient_balance: float = Field(default=0.0, ge=0.0, le=1.0)
    """Inside a balanced group: 0 draws every cycle alike, 1 every patient, however many cycles each has."""
    draws: int = Field(default=0, ge=0)
    """Draws an epoch; 0 draws as many as there are cycles."""
    folds: int = Field(default=5, ge=2)
    """Patient-wise folds of the training patients; a model's own fold chooses its epoch, temperature and threshold."""
    members: int = Field(default=1, ge=1)
    """Models trained, each with another fold held out; the run's model is the mean of their logits."""
    refit: int = Field(default=0, ge=0)
    """Models trained on all patients to the end of the schedule, which the run then serves in the members' place.

    The members are then kept at that end, too, so that their held-out patients' thresholds fit such a model."""
    hold_out: HoldOut = "patients"
    """'patients': stratified folds of them; 'device': one stethoscope a fold, 'maker': one maker; that fold's model
    does not train on its patients. `refit` models train on every stethoscope."""
    choose_on: Literal["held-out", "test"] = "held-out"
    """The patients that choose epoch, temperature and thresholds. 'test' is common in the literature and wrong: all
    training patients train, the test part chooses, and every reading of it is too good."""

    @property
    def keep(self) -> Literal["best", "last"]:
        """A member's epoch: its best, or the last where models of all patients serve, which have no best to choose."""
        return "last" if self.refit else "best"

    @model_validator(mode="after")
    def _a_fold_each(self) -> "DataRecipe":
        if self.choose_on == "test" and self.members > 1:
            raise ValueError("choose_on = 'test' trains on all training patients; members must be 1")
        if self.choose_on == "test" and self.refit:
            raise ValueError("choose_on = 'test' trains on all training patients already; refit must be 0")
        if self.hold_out == "patients" and self.members > self.folds:
            raise ValueError(f"{self.members} members need as many folds, there are {self.folds}")
        return self

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "DataRecipe":
        if not 0.0 < self.crop_seconds[0] <= self.crop_seconds[1] <= 8.0:
            raise ValueError(f"crop_seconds must rise within 0-8, got {list(self.crop_seconds)}")
        return self


class AugmentationRecipe(_Section):
    """How a drawn crop varies; every field at its zero leaves the crop alone."""

    cyclic_shift: bool = False
    """Start the cyclic repetition at a random point of the crop."""
    speed: float = Field(default=0.0, ge=0.0, le=1.0)
    """Played up to this share faster or as much slower, pitch and all (Ko et al. 2015): 0.15 is 0.87-1.15 x."""
    mixup: float = Field(default=0.0, ge=0.0)
    """Beta(a, a) of mixup (Zhang et al. 2018)."""
    gain_db: float = Field(default=0.0, ge=0.0)
    """Largest change of the level up or down, after levelling, which would undo it before."""
    equalise_db: float = Field(default=0.0, ge=0.0)
    """Standard deviation of a smooth random frequency response: another stethoscope."""
    lowpass_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the crops that end at a frequency between those of `lowpass_hz`: a stethoscope of 4 kHz ends at 2."""
    lowpass_hz: tuple[float, float] = (800.0, 4000.0)
    """Lowest and highest corner, drawn log-uniformly."""
    highpass_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the crops that begin at a frequency between those of `highpass_hz`."""
    highpass_hz: tuple[float, float] = (50.0, 250.0)
    """Lowest and highest corner, drawn log-uniformly."""
    noise_snr_db: tuple[float, float] = (20.0, 40.0)
    """Range of the signal-to-noise ratio of added pink-to-white noise."""
    noise_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the crops that get noise."""
    background_snr_db: tuple[float, float] = (3.0, 20.0)
    """Range of the ratio of a crop to the other recording that is laid under it."""
    background_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the crops, normal or not, with such a background: of poor quality or wholly normal, half and half."""
    time_masks: int = Field(default=0, ge=0)
    """SpecAugment: stretches of time blanked (Park et al. 2019)."""
    time_mask_frames: int = Field(default=0, ge=0)
    """Longest of them."""
    mel_masks: int = Field(default=0, ge=0)
    """SpecAugment: bands blanked."""
    mel_mask_bands: int = Field(default=0, ge=0)
    """Widest of them."""


class Recipe(_Section):
    """One training recipe; mean and std of the front end are measured by `fit`, unless a mean is stated."""

    init: str = ""
    """Where the weights begin: hub:OWNER/NAME, a Hugging Face folder, an original .pth or .pt; empty is at random."""
    init_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Of that file, where the recipe is meant for one alone."""
    model: ModelConfig | MobileNetConfig = Field(discriminator="architecture")
    front_end: FrontEnd
    optimizer: OptimizerRecipe
    data: DataRecipe
    augmentation: AugmentationRecipe

    @model_validator(mode="before")
    @classmethod
    def _one_size_of_windows(cls, values: Any) -> Any:
        # the front end states frames and bands once; the model's input follows
        if (
            isinstance(values, dict)
            and isinstance(values.get("model"), dict)
            and isinstance(values.get("front_end"), dict)
        ):
            for size in ("frames", "mels"):
                stated = values["front_end"].get(size, getattr(FrontEnd(), size))
                values = {**values, "model": {"architecture": "ast", size: stated, **values["model"]}}
                if values["model"][size] != stated:
                    raise ValueError(f"model.{size} {values['model'][size]} is not front_end.{size} {stated}")
        return values

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        if self.model.classes != len(LABELS):
            raise ValueError(f"model.classes must be {len(LABELS)}, the labels")
        masks, window = self.augmentation, self.front_end
        if masks.time_mask_frames > window.frames or masks.mel_mask_bands > window.mels:
            raise ValueError(f"augmentation masks more than the window of {window.frames} frames x {window.mels} mels")
        return self


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or a TOML file by path; RecipeError names the file and the key."""
    return load("recipe", "recipes", name_or_path, Recipe, RecipeError)


def with_changes(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with `init` or some `section.field` replaced (None leaves one); RecipeError when a value is wrong."""
    values = recipe.model_dump()
    for key, value in changes.items():
        if value is not None:
            section, _, field = key.rpartition(".")
            (values[section] if section else values)[field] = value
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"changed recipe: {first_problem(error, Recipe)}") from error
