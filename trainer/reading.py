"""A reading of accuracy as `trainer evaluate --json` prints it: rates and areas with intervals, and what was read."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, SerializerFunctionWrapHandler
from pydantic import model_serializer as serializer

from trainer.metrics import Interval

Measured = Annotated[Interval, BeforeValidator(Interval.of), PlainSerializer(Interval.as_json)]


@dataclass(frozen=True)
class RateIntervals:
    """Se, Sp and Score with 95 % patient-bootstrap intervals: rates, or the difference of two models' rates."""

    sensitivity: Measured
    specificity: Measured
    score: Measured

    def as_json(self) -> dict[str, Any]:
        """`{sensitivity, specificity, score}`, each `{value, low, high}`."""
        return {name: interval.as_json() for name, interval in vars(self).items()}


@dataclass(frozen=True)
class ClassReading:
    """How one abnormal class is found, beside the normal examples."""

    n: int
    abnormal: int
    patients: int
    any_abnormal: Measured
    """Share called abnormal."""
    exact: Measured
    """Share whose exact class is named."""
    auroc: Measured


@dataclass(frozen=True)
class GroupReading:
    """Binary rates of one corpus, device, site or age."""

    n: int
    abnormal: int
    patients: int
    sensitivity: Measured
    specificity: Measured
    score: Measured


@dataclass(frozen=True)
class Confusion:
    """Counts of the true classes (rows) by what was predicted (columns); 'no verdict' is the last column."""

    rows: list[str]
    columns: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class Joined:
    """People who are flagged on one person's recordings of one kind, end to end and again, up to so many seconds."""

    seconds: float
    abnormal: int
    abnormal_flagged: int
    normal: int
    normal_flagged: int


class Reading(BaseModel):
    """One reading; fields that an earlier version or another protocol lacks are left out of its JSON, too."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    time: str = ""
    """When it was logged, and how often the same had been read of the run by then."""
    times_read: int = 1
    protocol: str
    n: int
    binary: RateIntervals
    """Any abnormal class counts for an abnormal example."""
    exact: RateIntervals
    """An abnormal example counts only when its exact class is named."""
    auroc: Measured
    confounders: dict[str, Measured]
    """The AUROC that each reaches alone."""
    confusion: Confusion
    auprc: Measured = Interval.UNKNOWN
    ece: Measured = Interval.UNKNOWN
    sensitivity_at: dict[str, Measured] = {}
    """By specificity."""
    per_class: dict[str, ClassReading] = {}
    per_corpus: dict[str, GroupReading] = {}
    per_device: dict[str, GroupReading] = {}
    per_site: dict[str, GroupReading] = {}
    per_age: dict[str, GroupReading] = {}
    not_met: float | None = None
    """Of `live`: the share of annotated events or cycles that no gradable cycle on the screen met."""
    corpus: str
    part: str
    patients: int = 0
    patients_seen_in_training: bool | None = None
    """None where a bundle cannot tell."""
    recordings: int = 0
    model: str = ""
    bundle: str
    """Fingerprint of the model."""
    threshold: float = float("nan")
    notes: list[str] = []
    listening: list[Joined] | None = None
    """Of `recordings`: flagged people by listening time."""
    calibration: dict[str, Any] | None = None
    """Of `recordings`: before and after a calibration on healthy people."""

    @serializer(mode="wrap")
    def _without_what_was_not_read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}

    def as_json(self) -> dict[str, Any]:
        """The object that `trainer evaluate --json` prints."""
        return self.model_dump(mode="json")

    @property
    def what(self) -> tuple[str, str, str]:
        """Corpus, part and protocol: two readings of the same share them."""
        return self.corpus, self.part, self.protocol


REQUIRED: Final = {name for name, field in Reading.model_fields.items() if field.is_required()}
