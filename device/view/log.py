"""A session as lines of the log: sound lost and found, stretches and their verdicts, what it came to."""

import logging
from types import TracebackType
from typing import Any

from device.capture.timeline import Entry
from device.listening.agreement import Agreement
from device.listening.cycle import CycleResult
from device.listening.live import Auscultation
from device.verdict.summary import Summary

LOG = logging.getLogger("device")
TROUBLE = frozenset({"lost", "gap", "overflow", "restart", "clip", "mute", "rate", "dropped"})


class LogView:
    """Writes what an engineer wants to know afterwards; of a patient nothing but verdicts."""

    def __init__(self, session: Auscultation) -> None:
        self.session = session
        self._stretches = self._flagged = 0

    def __enter__(self) -> "LogView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def show(self, happened: CycleResult | Entry) -> None:
        """A line for trouble with the sound and for a complete stretch, one at level debug for every cycle."""
        if isinstance(happened, Entry):
            level = logging.WARNING if happened.kind in TROUBLE else logging.INFO
            # the name of a recording may be a patient's
            note = happened.note if self.session.source.live or happened.kind not in ("start", "end") else ""
            _log(level, f"sound: {happened.kind}", seconds=round(happened.seconds, 2), note=note)
            return
        _log(
            logging.DEBUG,
            "cycle",
            number=happened.number,
            kind=happened.kind,
            flag=happened.flagged,
            reason=happened.quality.reason,
            inference_seconds=round(happened.inference_seconds, 4),
        )
        decision = self.session.decision
        if decision.stretches > self._stretches:
            verdict = "flagged" if decision.stretches_flagged > self._flagged else "nothing flagged"
            self._stretches, self._flagged = decision.stretches, decision.stretches_flagged
            _log(logging.INFO, "stretch complete", number=self._stretches, verdict=verdict)

    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """The verdict and the account."""
        _log(
            logging.INFO,
            "session ends",
            verdict=summary.verdict,
            cycles=summary.cycles,
            gradable=summary.gradable,
            flagged=summary.flagged,
            stretches=summary.stretches,
            stretches_flagged=summary.stretches_flagged,
            **{f"{name}_seconds": round(value, 2) for name, value in summary.seconds.items()},
        )


def _log(level: int, message: str, **fields: Any) -> None:
    LOG.log(level, message, extra={"fields": {name: value for name, value in fields.items() if value != ""}})
