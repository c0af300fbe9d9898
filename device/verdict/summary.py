"""The summary of a session: verdict, reasons, and the account of every sample."""

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from pydantic import Field
from typing_extensions import TypedDict

from device.signal import SAMPLE_RATE
from device.verdict.circumstances import PLAIN, Circumstances, CircumstancesObject
from device.verdict.site import Verdict

ACCOUNT: Final = ("heard", "missing", "dropped", "gradable")


SessionId = Annotated[
    str,
    Field(
        description="The same for all lines of one session. An exam line and a screening have that of their run.",
        pattern="^[0-9a-f]{32}$",
    ),
]


class SecondsObject(TypedDict):
    """heard + missing + dropped is the session's length; gradable is part of heard."""

    heard: float
    missing: float
    dropped: float
    gradable: float


class SummaryObject(CircumstancesObject):
    """The `summary` object of `listen --json`."""

    type: Literal["summary"]
    source: Annotated[str, Field(description="Microphone, recording or demo.")]
    demo: Annotated[bool, Field(description="Whether the sound is simulated.")]
    bundle: Annotated[str, Field(description="sha256 of the model's file.")]
    verdict: Annotated[Verdict, Field(description="Of the first stretch of gradable cycles.")]
    probability: Annotated[float | None, Field(description="Of the first stretch; null before its least cycles.")]
    cycles: Annotated[int, Field(description="Found.")]
    gradable: Annotated[int, Field(description="Of these, judged by the model.")]
    flagged: Annotated[int, Field(description="Of these, abnormal.")]
    stretches: Annotated[int, Field(description="Complete ones; the first decides the verdict.")]
    stretches_flagged: Annotated[int, Field(description="Of these, flagged.")]
    breaths_wanted: Annotated[int, Field(description="Good breaths that the running stretch still needs.")]
    dropped: Annotated[int, Field(description="Cycles that the model had no time for.")]
    seconds: SecondsObject
    reasons: Annotated[list[str], Field(description="Of the verdict.")]
    breaths_per_minute: Annotated[float | None, Field(description="Over the latest cycles; null without a rhythm.")]
    not_validated: Annotated[list[str], Field(description="Why the model is not validated for this subject.")]
    session: SessionId


@dataclass(frozen=True)
class Summary:
    """The result of a session, or of a session so far."""

    source: str
    demo: bool
    bundle: str
    verdict: Verdict
    probability: float | None
    cycles: int
    gradable: int
    flagged: int
    dropped: int
    heard_samples: int
    missing_samples: int
    dropped_samples: int
    gradable_samples: int
    reasons: tuple[str, ...]
    breaths_per_minute: float | None
    """Over the latest cycles; None without a rhythm that the breaths found confirm."""
    not_validated: tuple[str, ...]
    """Why the model is not validated for this subject."""
    stretches: int = 0
    """Complete stretches; the first one decides the verdict."""
    stretches_flagged: int = 0
    """Flagged ones among these."""
    breaths_wanted: int = 0
    """Good breaths that the running stretch still needs."""
    session: str = field(default="", compare=False)
    """Identifies the session."""
    circumstances: Circumstances = PLAIN
    """Under what the verdict is given."""

    @property
    def seconds(self) -> dict[str, float]:
        """The account: heard + missing + dropped is the session's length, gradable is part of heard."""
        account = (self.heard_samples, self.missing_samples, self.dropped_samples, self.gradable_samples)
        return {name: samples / SAMPLE_RATE for name, samples in zip(ACCOUNT, account, strict=True)}

    def as_json(self) -> SummaryObject:
        """For `listen --json`."""
        seconds = self.seconds
        return {
            "type": "summary",
            "source": self.source,
            "demo": self.demo,
            "bundle": self.bundle,
            "verdict": self.verdict,
            "probability": None if self.probability is None else round(self.probability, 6),
            "cycles": self.cycles,
            "gradable": self.gradable,
            "flagged": self.flagged,
            "stretches": self.stretches,
            "stretches_flagged": self.stretches_flagged,
            "breaths_wanted": self.breaths_wanted,
            "dropped": self.dropped,
            "seconds": {
                "heard": round(seconds["heard"], 3),
                "missing": round(seconds["missing"], 3),
                "dropped": round(seconds["dropped"], 3),
                "gradable": round(seconds["gradable"], 3),
            },
            "reasons": list(self.reasons),
            "breaths_per_minute": None if self.breaths_per_minute is None else round(self.breaths_per_minute, 1),
            "not_validated": list(self.not_validated),
            "session": self.session,
            **self.circumstances.as_json(),
        }
