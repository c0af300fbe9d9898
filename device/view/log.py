"""A session in the log: sound lost and found, complete stretches, the verdict."""

import logging
from typing import Any, Final

from device.capture.timeline import Entry
from device.listening.agreement import Agreement
from device.listening.cycle import CycleResult
from device.listening.live import Session
from device.verdict.summary import Summary
from device.view.view import View

LOG: Final = logging.getLogger("device")
TROUBLE: Final = frozenset(
    {"safe mode", "lost", "gap", "overflow", "restart", "clip", "mute", "drift", "rate", "dropped"}
)


class LogView(View):
    """Logs a session for an engineer; of the patient only verdicts."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._stretches = self._flagged = 0

    def show(self, item: CycleResult | Entry) -> None:
        """Log a timeline entry, a complete stretch, and at level debug every cycle."""
        if isinstance(item, Entry):
            level = logging.WARNING if item.kind in TROUBLE else logging.INFO
            # the name of a recording may contain a patient's name
            note = item.note if self.session.source.live or item.kind not in ("start", "end") else ""
            _log_fields(level, f"sound: {item.kind}", seconds=round(item.seconds, 2), note=note)
            return
        _log_fields(
            logging.DEBUG,
            "cycle",
            number=item.number,
            kind=item.kind,
            flag=item.flagged,
            reason=item.quality.reason,
            inference_seconds=round(item.inference_seconds, 4),
        )
        decision = self.session.decision
        if decision.stretches > self._stretches:
            verdict = "flagged" if decision.stretches_flagged > self._flagged else "nothing flagged"
            self._stretches, self._flagged = decision.stretches, decision.stretches_flagged
            _log_fields(logging.INFO, "stretch complete", number=self._stretches, verdict=verdict)

    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """Log the verdict and the account."""
        _log_fields(
            logging.INFO,
            "session ends",
            verdict=summary.verdict,
            cycles=summary.cycles,
            gradable=summary.gradable,
            flagged=summary.flagged,
            stretches=summary.stretches,
            stretches_flagged=summary.stretches_flagged,
            **summary.circumstances.as_json(),
            **{f"{name}_seconds": round(value, 2) for name, value in summary.seconds.items()},
        )


def _log_fields(level: int, message: str, **fields: Any) -> None:
    LOG.log(level, message, extra={"fields": {name: value for name, value in fields.items() if value != ""}})
