"""What shows a session: the terminal's views and the log."""

from abc import ABC, abstractmethod

from device.capture.timeline import Entry
from device.listening.agreement import Agreement
from device.listening.cycle import CycleResult
from device.verdict.summary import Summary


class View(ABC):
    """Shows a session while it runs; entered when the session starts, left when it has ended."""

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_error: object) -> None:
        return None  # most views have nothing to give back

    @abstractmethod
    def show(self, item: CycleResult | Entry) -> None:
        """Show a cycle or a timeline entry."""

    @abstractmethod
    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """Show the summary; `agreement` only for a demo."""
