"""What a session comes to: its verdict, why, and the account of every sample."""

from dataclasses import dataclass
from typing import Any, Final

from device.signal import SAMPLE_RATE
from device.verdict.site import Verdict

ACCOUNT: Final = ("heard", "missing", "dropped", "gradable")


@dataclass(frozen=True)
class Summary:
    """What a session comes to."""

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
    """Over the last few breath cycles; None where there is no rhythm, or none that the breaths found agree with."""
    not_validated: tuple[str, ...]
    """Why this subject is outside of what the model was validated on."""
    stretches: int = 0
    """Complete ones; the first decided the verdict."""
    stretches_flagged: int = 0
    """Of these."""
    breaths_wanted: int = 0
    """Good breaths that complete the running stretch."""

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
        }
