"""What shows a session: the terminal's views, the log and the console."""

from abc import ABC, abstractmethod

from device.breath.segmenter import Segment
from device.capture.timeline import Entry
from device.listening.agreement import Agreement
from device.listening.cycle import CycleResult
from device.signal import FloatArray
from device.verdict.summary import Summary


class View(ABC):
    """Shows a session while it runs; entered when the session starts, left when it has ended."""

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_error: object) -> None:
        return None  # most views have nothing to give back

    def sound(self, start_sample: int, samples: FloatArray) -> None:
        """Take samples (n,) at 16 kHz as they are received; must return at once."""
        return None  # most views show results alone

    def found(self, segment: Segment) -> None:
        """Take a cycle that was found and is not judged yet; must return at once."""
        return None

    @abstractmethod
    def show(self, item: CycleResult | Entry) -> None:
        """Show a cycle or a timeline entry."""

    @abstractmethod
    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """Show the summary; `agreement` only for a demo."""
