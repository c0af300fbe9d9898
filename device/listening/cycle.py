"""One judged cycle: its fields, and their names and units in JSON and in the store."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from device.breath.quality import Quality
from device.model.judgement import Judgement
from device.signal import SAMPLE_RATE, FloatArray, Span


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

    def as_json(self) -> dict[str, Any]:
        """The `cycle` object of `listen --json`: the same names, times in seconds."""
        row, shown = self.row(), ("kind", "rhythm", "reason", "level_dbfs", "probability", "class", "flag", "demo")
        digits = {"rhythm": 3, "level_dbfs": 1, "probability": 6}
        return {
            "type": "cycle",
            "number": self.number,
            "start": round(self.start_seconds, 3),
            "end": round(self.end_seconds, 3),
            "phase": None if self.phase_sample is None else round(self.phase_sample / SAMPLE_RATE, 3),
            "gradable": self.quality.gradable,
            **{name: _rounded(row[name], digits.get(name)) for name in shown},
        }


def _rounded(value: Any, digits: int | None) -> Any:
    return value if digits is None or value is None else round(value, digits)
