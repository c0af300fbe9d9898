"""One judged cycle: its fields, and their names and units in JSON and in the store."""

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from device.breath.quality import Quality
from device.labels import Label
from device.model.judgement import Judgement
from device.signal import SAMPLE_RATE, FloatArray, Span

_Class = TypedDict("_Class", {"class": Annotated[Label | None, Field(description="As shown; null if not graded.")]})


class CycleObject(_Class):
    """The `cycle` object of `listen --json`."""

    type: Literal["cycle"]
    number: Annotated[int, Field(description="In the session, from 1.")]
    start: Annotated[float, Field(description="Seconds from the start of the session.")]
    end: Annotated[float, Field(description="Seconds from the start of the session.")]
    phase: Annotated[float | None, Field(description="Where expiration begins, in seconds; null if not found.")]
    gradable: Annotated[bool, Field(description="Whether the sound is good enough for the model.")]
    kind: Annotated[str, Field(description="breath, or window where no rhythm was found.")]
    rhythm: Annotated[float, Field(description="How regular the breathing is, 0 to 1.")]
    reason: Annotated[str, Field(description="Why it is not gradable; empty if it is.")]
    level_dbfs: Annotated[float, Field(description="RMS about the mean, dB of full scale.")]
    probability: Annotated[float | None, Field(description="Of being abnormal, calibrated; null if not graded.")]
    flag: Annotated[bool, Field(description="Whether the probability reaches the bundle's threshold.")]
    demo: Annotated[bool, Field(description="Whether the sound is simulated.")]


@dataclass(frozen=True)
class CycleResult:
    """One cycle; `judgement` is None when it was not gradable. Sample numbers count from the session's start."""

    number: int
    start_sample: int
    end_sample: int
    kind: str
    """`breath`, or `window` where no rhythm was found."""
    rhythm: float
    quality: Quality
    judgement: Judgement | None
    demo: bool
    samples: FloatArray = field(repr=False, compare=False)
    """(n,) at 16 kHz, exactly as judged: the cycle, and for a short one the sound around it."""
    span: Span | None = None
    """Where the cycle lies in `samples`; None if it is all of them."""
    phase_sample: int | None = None
    """Where expiration begins; None if no pause between the phases was found."""
    period_seconds: float = 0.0
    """Between the onsets of breaths; 0 without a rhythm."""
    inference_seconds: float = field(default=0.0, compare=False)

    @property
    def start_seconds(self) -> float:
        """From the start of the session."""
        return self.start_sample / SAMPLE_RATE

    @property
    def end_seconds(self) -> float:
        """From the start of the session."""
        return self.end_sample / SAMPLE_RATE

    @property
    def flagged(self) -> bool:
        """Whether this cycle is abnormal at the bundle's threshold."""
        return self.judgement is not None and self.judgement.abnormal

    def without_samples(self) -> "CycleResult":
        """A copy for lists that grow with a session; it keeps no reference to the samples."""
        return replace(self, samples=np.empty(0, np.float32))

    def row(self) -> dict[str, Any]:
        """Its values by the names of the store's columns; times in samples."""
        judgement = self.judgement
        return {
            "number": self.number,
            "demo": self.demo,
            "start_sample": self.start_sample,
            "end_sample": self.end_sample,
            "kind": self.kind,
            "rhythm": self.rhythm,
            "level_dbfs": self.quality.level_dbfs,
            "reason": self.quality.reason,
            "quality": asdict(self.quality),
            "probability": None if judgement is None else judgement.probability,
            "class": None if judgement is None else judgement.label,
            "flag": self.flagged,
            "inference_seconds": None if judgement is None else self.inference_seconds,
            "context_start_sample": None if self.span is None else self.start_sample - self.span[0],
        }

    def as_json(self) -> CycleObject:
        """For `listen --json`: the same names, times in seconds."""
        judgement = self.judgement
        return {
            "type": "cycle",
            "number": self.number,
            "start": round(self.start_seconds, 3),
            "end": round(self.end_seconds, 3),
            "phase": None if self.phase_sample is None else round(self.phase_sample / SAMPLE_RATE, 3),
            "gradable": self.quality.gradable,
            "kind": self.kind,
            "rhythm": round(self.rhythm, 3),
            "reason": self.quality.reason,
            "level_dbfs": round(self.quality.level_dbfs, 1),
            "probability": None if judgement is None else round(judgement.probability, 6),
            "class": None if judgement is None else judgement.label,
            "flag": self.flagged,
            "demo": self.demo,
        }
