"""Every sample has a number: what was heard, what was missing or dropped, and what happened in between."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from device.signal import SAMPLE_RATE

Kind = Literal["start", "lost", "back", "gap", "overflow", "restart", "clip", "mute", "rate", "dropped", "end"]
BREAKS: Final[frozenset[Kind]] = frozenset({"lost", "back", "gap", "overflow", "restart"})
"""The sound before and after does not belong together: no cycle crosses these."""


@dataclass(frozen=True)
class Entry:
    """One event on the timeline; `sample` counts 16 kHz samples from the start, missing ones included."""

    sample: int
    kind: Kind
    missing_samples: int = 0
    """Of a loss's end: all that it cost."""
    note: str = ""

    @property
    def seconds(self) -> float:
        """From the start of the session."""
        return self.sample / SAMPLE_RATE

    def as_json(self, demo: bool) -> dict[str, Any]:
        """One `timeline` object of `listen --json`."""
        return {"type": "timeline", "seconds": round(self.seconds, 3), **asdict(self), "demo": demo}


@dataclass
class Timeline:
    """Account of one session's samples: `heard + missing + dropped` is always the position."""

    heard: int = 0
    """Arrived, and were offered to the model."""
    missing: int = 0
    """Never arrived."""
    dropped: int = 0
    """Arrived, but in cycles that the model had no time for: unheard too."""
    _losing: int = 0

    @property
    def position(self) -> int:
        """Number of the next sample."""
        return self.heard + self.missing + self.dropped

    def hear(self, samples: int) -> None:
        """So many samples arrived."""
        self.heard += samples

    def drop(self, samples: int) -> None:
        """So many that had arrived were never judged."""
        self.heard -= samples
        self.dropped += samples

    def miss(self, samples: int) -> None:
        """So many samples were lost; the entry that ends the loss names their sum."""
        self.missing += samples
        self._losing += samples

    def entry(self, kind: Kind, note: str) -> Entry:
        """Something happened here."""
        lost, self._losing = (self._losing, 0) if kind in BREAKS else (0, self._losing)
        return Entry(self.position, kind, lost, note)
