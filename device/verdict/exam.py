"""The verdict of an exam: several sites of one patient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from device.verdict.site import Verdict
from device.verdict.summary import Summary, SummaryObject
from firmware_config.command_line import counted


class ExamObject(TypedDict):
    """The `exam` object of `exam --json`."""

    type: Literal["exam"]
    verdict: Verdict
    sites: Annotated[dict[str, SummaryObject], Field(description="The latest summary of each site.")]
    required: Annotated[list[str], Field(description="Sites that the exam needs.")]
    reasons: Annotated[list[str], Field(description="One phrase a required site.")]
    not_validated: Annotated[list[str], Field(description="Why the model is not validated for this subject.")]


@dataclass(frozen=True)
class Exam:
    """The required sites, and the summary of each site so far."""

    required: tuple[str, ...]
    summaries: Mapping[str, Summary]

    @property
    def verdict(self) -> Verdict:
        """`flagged` when one site is; `nothing flagged` only when every required site is, with a complete stretch."""
        verdicts = [answer(self.summaries[site]) if site in self.summaries else "not enough" for site in self.required]
        if "flagged" in [*verdicts, *(summary.verdict for summary in self.summaries.values())]:
            return "flagged"
        if all(verdict == "nothing flagged" for verdict in verdicts):
            return "nothing flagged"
        return "not enough" if "not enough" in verdicts else "poor quality"

    @property
    def reasons(self) -> list[str]:
        """One phrase a required site: its verdict and reasons, and what is missing."""
        lines = []
        for site in self.required:
            summary = self.summaries.get(site)
            why = ["not recorded yet"] if summary is None else [summary.verdict, *summary.reasons, progress(summary)]
            lines.append(f"{site}: {'; '.join(why)}")
        return lines

    @property
    def not_validated(self) -> tuple[str, ...]:
        """The reasons of all sites, each once."""
        return tuple(dict.fromkeys(why for summary in self.summaries.values() for why in summary.not_validated))

    def as_json(self) -> ExamObject:
        """For `exam --json`."""
        return {
            "type": "exam",
            "verdict": self.verdict,
            "sites": {site: summary.as_json() for site, summary in self.summaries.items()},
            "required": list(self.required),
            "reasons": self.reasons,
            "not_validated": list(self.not_validated),
        }


def answer(summary: Summary) -> Verdict:
    """A site's verdict within an exam: 'nothing flagged' needs a complete stretch."""
    complete = summary.verdict != "nothing flagged" or summary.stretches > 0
    return summary.verdict if complete else "not enough"


def progress(summary: Summary) -> str:
    """How much of a site's first stretch is done."""
    if summary.stretches:
        return "stretch complete"
    return f"stretch not complete, {counted(summary.breaths_wanted, 'more good breath')} needed"


def remaining(required: Sequence[str], summaries: Mapping[str, Summary]) -> list[str]:
    """Sites without a verdict: not yet recorded, not enough, or poor quality."""
    return [
        site for site in required if site not in summaries or answer(summaries[site]) in ("not enough", "poor quality")
    ]
