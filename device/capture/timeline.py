"""The timeline: every sample has a number, and is counted as heard, missing or dropped."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field
from typing_extensions import TypedDict

from device.signal import SAMPLE_RATE

Kind = Literal[
    "start",
    "safe mode",
    "passport",
    "lost",
    "back",
    "gap",
    "overflow",
    "restart",
    "clip",
    "mute",
    "drift",
    "rate",
    "dropped",
    "end",
]
BREAKS: Final[frozenset[Kind]] = frozenset({"lost", "back", "gap", "overflow", "restart"})
"""The sound before and after is not continuous: no cycle crosses these."""


class TimelineObject(TypedDict):
    """The `timeline` object of `listen --json`."""

    type: Literal["timeline"]
    seconds: Annotated[float, Field(description="From the start of the session, missing sound included.")]
    sample: Annotated[int, Field(description="The same in samples of 16 kHz.")]
    kind: Annotated[Kind, Field(description="What happened.")]
    missing_samples: Annotated[int, Field(description="At the end of a loss: all samples that it cost.")]
    note: Annotated[str, Field(description="In words; at the start the source, at the end why it ended.")]
    demo: Annotated[bool, Field(description="Whether the sound is simulated.")]


@dataclass(frozen=True)
class Entry:
    """One event on the timeline; `sample` counts 16 kHz samples from the start, missing ones included."""

    sample: int
    kind: Kind
    missing_samples: int = 0
    """For the end of a loss: all samples that it cost."""
    note: str = ""

    @property
    def seconds(self) -> float:
        """From the start of the session."""
        return self.sample / SAMPLE_RATE

    def as_json(self, demo: bool) -> TimelineObject:
        """For `listen --json`."""
        return {
            "type": "timeline",
            "seconds": round(self.seconds, 3),
            "sample": self.sample,
            "kind": self.kind,
            "missing_samples": self.missing_samples,
            "note": self.note,
            "demo": demo,
        }


@dataclass
class Timeline:
    """The account of a session's samples: `heard + missing + dropped` is always the position."""

    heard: int = 0
    """Received, and judged or waiting to be judged."""
    missing: int = 0
    """Never received."""
    dropped: int = 0
    """Received, but in cycles that the model had no time to judge."""
    _losing: int = 0

    @property
    def position(self) -> int:
        """Number of the next sample."""
        return self.heard + self.missing + self.dropped

    def receive(self, samples: int) -> None:
        """Count samples that were received."""
        self.heard += samples

    def drop(self, samples: int) -> None:
        """Count samples that were received but are not judged."""
        self.heard -= samples
        self.dropped += samples

    def miss(self, samples: int) -> None:
        """Count lost samples; the entry that ends the loss has their sum."""
        self.missing += samples
        self._losing += samples

    def entry(self, kind: Kind, note: str) -> Entry:
        """An entry at the present position."""
        lost, self._losing = (self._losing, 0) if kind in BREAKS else (0, self._losing)
        return Entry(self.position, kind, lost, note)
