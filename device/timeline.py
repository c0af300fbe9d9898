"""Every sample has a number: what was heard, what was missing, and what happened in between."""

from dataclasses import dataclass, field
from typing import Literal

from device.signal import SAMPLE_RATE

Kind = Literal["start", "gap", "end"]


@dataclass(frozen=True)
class Entry:
    """One event on the timeline; `sample` counts 16 kHz samples from the start, missing ones included."""

    sample: int
    kind: Kind
    missing_samples: int = 0
    note: str = ""

    @property
    def seconds(self) -> float:
        """From the start of the session."""
        return self.sample / SAMPLE_RATE


@dataclass
class Timeline:
    """Account of one session's samples; `heard + missing` is always the position."""

    heard: int = 0
    missing: int = 0
    entries: list[Entry] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Number of the next sample."""
        return self.heard + self.missing

    def start(self, note: str) -> Entry:
        """The session begins."""
        return self._add(Entry(self.position, "start", note=note))

    def hear(self, samples: int) -> None:
        """So many samples arrived."""
        self.heard += samples

    def gap(self, samples: int, note: str) -> Entry:
        """So many samples were lost; no cycle may cross this place."""
        entry = self._add(Entry(self.position, "gap", samples, note))
        self.missing += samples
        return entry

    def end(self, note: str) -> Entry:
        """The session ends."""
        return self._add(Entry(self.position, "end", note=note))

    def _add(self, entry: Entry) -> Entry:
        self.entries.append(entry)
        return entry
