"""The summary of a session: verdict, reasons, and the account of every sample."""

from dataclasses import dataclass
from typing import Any, Final

from device.signal import SAMPLE_RATE
from device.verdict.circumstances import PLAIN, Circumstances
from device.verdict.site import Verdict

ACCOUNT: Final = ("heard", "missing", "dropped", "gradable")


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
    circumstances: Circumstances = PLAIN
    """Under what the verdict is given."""

    @property
    def seconds(self) -> dict[str, float]:
        """The account: heard + missing + dropped is the session's length, gradable is part of heard."""
        account = (self.heard_samples, self.missing_samples, self.dropped_samples, self.gradable_samples)
        return {name: samples / SAMPLE_RATE for name, samples in zip(ACCOUNT, account, strict=True)}

    def as_json(self) -> dict[str, Any]:
        """The `summary` object of `listen --json`."""
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
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "reasons": list(self.reasons),
            "breaths_per_minute": None if self.breaths_per_minute is None else round(self.breaths_per_minute, 1),
            "not_validated": list(self.not_validated),
            **self.circumstances.as_json(),
        }
