"""One exam as it runs: subject, sites in turn, their summaries and strongest cycles, and the result."""

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from device.console.chest import in_words
from device.verdict.exam import Exam, answer, remaining
from device.verdict.summary import Summary

Cycle = dict[str, Any]

EVIDENCE_CYCLES: Final = 3
ADVANCE_SECONDS: Final = 8.0  # to move the stethoscope, when sites follow each other by themselves


@dataclass
class SiteVisit:
    """What one site has so far."""

    summary: Summary | None = None
    session: int | None = None
    """Number of the stored session."""
    threshold: float | None = None
    """By which it is flagged; None for the model's."""
    cycles: list[Cycle] = field(default_factory=list)
    pictures: dict[int, bytes] = field(default_factory=dict)
    """PNG of the strongest cycles."""


@dataclass
class Visit:
    """An exam that is being made."""

    subject: str
    age_years: float | None
    required: tuple[str, ...]
    advance: bool
    """Whether the next site begins by itself."""
    model: Mapping[str, Any]
    """Name, fingerprint and thresholds of the bundle."""
    started_at: float = field(default_factory=time.time)
    id: int | None = None
    sites: dict[str, SiteVisit] = field(default_factory=dict)
    listening: str = ""
    """The site where a session runs."""
    demo: bool = False
    finishing: bool = False
    """It is finished as soon as the session at the listening site has ended."""
    finished: bool = False

    @property
    def exam(self) -> Exam:
        """The device's own exam of the summaries so far."""
        return Exam(self.required, {code: site.summary for code, site in self.sites.items() if site.summary})

    @property
    def next_site(self) -> str:
        """The first site without an answer; empty when every one has one."""
        summaries = self.exam.summaries
        # a site of poor quality is offered again after those that were not recorded yet
        return min(remaining(self.required, summaries), key=lambda code: code in summaries, default="")

    def begin(self, code: str) -> None:
        """A session begins at a site; what was there before is replaced."""
        self.sites[code] = SiteVisit()
        self.listening = code

    def add(self, cycle: Cycle, summary: Summary, picture: bytes) -> None:
        """Take a judged cycle of the listening site; `picture` is a PNG of it, or empty."""
        site = self.sites[self.listening]
        site.summary = summary
        site.cycles.append(cycle)
        if picture and cycle["probability"] is not None:
            site.pictures[cycle["number"]] = picture
            for number in list(site.pictures):
                if number not in {one["number"] for one in strongest(site.cycles)}:
                    del site.pictures[number]

    def end(self, summary: Summary | None, session: int | None) -> None:
        """The session at the listening site has ended."""
        site = self.sites[self.listening]
        site.summary, site.session = summary or site.summary, session
        if site.summary is None:
            del self.sites[self.listening]
        else:
            self.demo |= site.summary.demo
        self.listening = ""

    def state(self) -> dict[str, Any]:
        """For the pages while it runs."""
        document = self.document()
        for site in document["sites"].values():
            del site["cycles"]
        return {**document, "listening": self.listening, "next": self.next_site, "advance": self.advance}

    def document(self) -> dict[str, Any]:
        """The exam as it is stored, and as the report shows it."""
        exam = self.exam
        return {
            "id": self.id,
            "subject": self.subject,
            "age_years": self.age_years,
            "started_at": self.started_at,
            "demo": self.demo,
            "finished": self.finished,
            "model": dict(self.model),
            "required": list(self.required),
            "verdict": exam.verdict,
            "not_validated": list(exam.not_validated),
            "sites": {code: self._site(code, exam) for code in self.required},
            "evidence": self._evidence(),
        }

    def _site(self, code: str, exam: Exam) -> dict[str, Any]:
        site, summary = self.sites.get(code, SiteVisit()), exam.summaries.get(code)
        needed = self.model["stretch_cycles"]
        return {
            "words": in_words(code),
            "verdict": None if summary is None else answer(summary),
            "reasons": [] if summary is None else list(summary.reasons),
            "summary": None if summary is None else summary.as_json(),
            "good": 0 if summary is None else needed if summary.stretches else needed - summary.breaths_wanted,
            "needed": needed,
            "session": site.session,
            "threshold": site.threshold,
            "cycles": site.cycles,
        }

    def _evidence(self) -> list[dict[str, Any]]:
        """The strongest cycles of all sites with their pictures; flagged ones first, then by probability."""
        found: list[dict[str, Any]] = [
            {
                "site": code,
                "words": in_words(code),
                "session": site.session,
                "cycle": cycle,
                "picture": encoded(picture),
            }
            for code, site in self.sites.items()
            for cycle in strongest(site.cycles)
            if (picture := site.pictures.get(cycle["number"], b""))
        ]
        return sorted(found, key=lambda one: _strength(one["cycle"]))[:EVIDENCE_CYCLES]


def threshold_of(site: Mapping[str, Any], model: Mapping[str, Any]) -> float:
    """The threshold by which a site of an exam's document was flagged; the model's in one of an earlier version."""
    own = site.get("threshold")
    return float(model["site_threshold"] if own is None else own)


def strongest(cycles: Sequence[Cycle]) -> list[Cycle]:
    """The gradable cycles that speak most for something abnormal."""
    return sorted((one for one in cycles if one["probability"] is not None), key=_strength)[:EVIDENCE_CYCLES]


def _strength(cycle: Cycle) -> tuple[bool, float]:
    return not cycle["flag"], -cycle["probability"]


def encoded(picture: bytes) -> str:
    """A PNG as a `data:` address."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
