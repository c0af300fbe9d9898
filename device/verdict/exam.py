"""Several sites of one patient: what they come to together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from device.verdict.site import Verdict
from device.verdict.summary import Summary


@dataclass(frozen=True)
class Exam:
    """The sites that were asked for, and what was heard at each so far."""

    required: tuple[str, ...]
    heard: Mapping[str, Summary]

    @property
    def verdict(self) -> Verdict:
        """`flagged` as soon as one site is; `nothing flagged` only when every required site is complete and says so."""
        verdicts = [answer(self.heard[site]) if site in self.heard else "not enough" for site in self.required]
        if "flagged" in [*verdicts, *(summary.verdict for summary in self.heard.values())]:
            return "flagged"
        if all(verdict == "nothing flagged" for verdict in verdicts):
            return "nothing flagged"
        return "not enough" if "not enough" in verdicts else "poor quality"

    @property
    def reasons(self) -> list[str]:
        """Site by site, in words; the sites that hold the verdict back are named."""
        lines = []
        for site in self.required:
            summary = self.heard.get(site)
            why = ["not heard yet"] if summary is None else [summary.verdict, *summary.reasons, progress(summary)]
            lines.append(f"{site}: {'; '.join(why)}")
        return lines

    @property
    def not_validated(self) -> tuple[str, ...]:
        """Every site's reasons, each once."""
        return tuple(dict.fromkeys(why for summary in self.heard.values() for why in summary.not_validated))

    def as_json(self) -> dict[str, Any]:
        """The `exam` object of `exam --json`."""
        return {
            "type": "exam",
            "verdict": self.verdict,
            "sites": {site: summary.as_json() for site, summary in self.heard.items()},
            "required": list(self.required),
            "reasons": self.reasons,
            "not_validated": list(self.not_validated),
        }


def answer(summary: Summary) -> Verdict:
    """What a site says to its exam: a stretch that is not complete clears nobody."""
    complete = summary.verdict != "nothing flagged" or summary.stretches > 0
    return summary.verdict if complete else "not enough"


def progress(summary: Summary) -> str:
    """How far a site's first stretch came."""
    if summary.stretches:
        return "stretch complete"
    return (
        f"stretch not complete, {summary.breaths_wanted} more good breath{'s' * (summary.breaths_wanted != 1)} needed"
    )


def left(required: Sequence[str], heard: Mapping[str, Summary]) -> list[str]:
    """Sites still to be heard, those that gave no answer among them."""
    return [site for site in required if site not in heard or answer(heard[site]) in ("not enough", "poor quality")]
