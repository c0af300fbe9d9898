"""Subjects, sources and engines for which the model was not validated."""

from dataclasses import dataclass
from typing import Final

from device.bundle import Manifest

NOT_VALIDATED: Final = "NOT VALIDATED for this subject"


@dataclass(frozen=True)
class Subject:
    """What is known of the subject and of the source; None where unknown."""

    age_years: float | None = None
    site: str | None = None
    """Auscultation site, in the corpus's words."""
    highest_hz: float | None = None
    """Half the source's own sample rate: it carries nothing above."""
    live: bool = False
    """The patient is present and can be asked."""
    fallback: str = ""
    """Which engine replaces the requested one, and why; empty if none does."""


def not_validated(manifest: Manifest, subject: Subject) -> tuple[str, ...]:
    """Why the model is not validated for this subject, one phrase each; empty if it is.

    An unknown age counts only for a live patient, who can be asked.
    """
    known, reasons = manifest.population, []
    youngest, oldest = known.youngest_years, known.oldest_years
    if youngest is not None and oldest is not None:
        trained = f"the model knows {youngest:g} to {oldest:g} years"
        if subject.age_years is None:
            reasons += [f"age not given, {trained}"] if subject.live else []
        elif not youngest <= subject.age_years <= oldest:
            reasons.append(f"age {subject.age_years:g}, {trained}")
    if subject.site is not None and known.sites and subject.site not in known.sites:
        reasons.append(f"site {subject.site}, the model knows {', '.join(known.sites)}")
    needed = manifest.front_end.high_hz
    if subject.highest_hz is not None and subject.highest_hz < needed:
        reasons.append(f"sound up to {subject.highest_hz:g} Hz only, the model listens up to {needed:g} Hz")
    if subject.fallback:
        reasons.append(subject.fallback)
    return tuple(reasons)
