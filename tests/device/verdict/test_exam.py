"""What several sites come to: a flag outranks everything, and silence of one site is no clearance."""

import itertools
from dataclasses import replace

import pytest

from device.verdict.exam import Exam, remaining
from device.verdict.site import Verdict
from device.verdict.summary import Summary

SITES = ("p1", "p2", "p3")
VERDICTS: tuple[Verdict, ...] = ("flagged", "nothing flagged", "not enough", "poor quality")
SUMMARY = Summary(
    "s", False, "b", "not enough", None, 0, 0, 0, 0, 16_000, 0, 0, 0, ("listen longer",), None, (), 1, 0, 6
)


def exam(*verdicts: Verdict | None) -> Exam:
    heard = {site: replace(SUMMARY, verdict=one) for site, one in zip(SITES, verdicts, strict=True) if one is not None}
    return Exam(SITES, heard)


@pytest.mark.parametrize("verdicts", list(itertools.product((*VERDICTS, None), repeat=3)))
def test_every_combination(verdicts: tuple[Verdict | None, ...]) -> None:
    verdict = exam(*verdicts).verdict
    assert (verdict == "flagged") == ("flagged" in verdicts)
    assert (verdict == "nothing flagged") == (verdicts == ("nothing flagged",) * 3)
    if verdict == "poor quality":
        assert "poor quality" in verdicts and not {None, "not enough", "flagged"} & set(verdicts)


def test_a_site_that_nobody_asked_for_still_flags() -> None:
    assert Exam(("p1",), {"p2": replace(SUMMARY, verdict="flagged")}).verdict == "flagged"


def test_sites_without_an_answer_are_left() -> None:
    one = exam("nothing flagged", "poor quality", None)
    assert remaining(SITES, one.summaries) == ["p2", "p3"]
    assert one.reasons == [
        "p1: nothing flagged; listen longer; stretch complete",
        "p2: poor quality; listen longer; stretch complete",
        "p3: not recorded yet",
    ]


def test_a_stretch_that_is_not_complete_clears_nobody_and_is_heard_again() -> None:
    short = replace(SUMMARY, verdict="nothing flagged", stretches=0, breaths_wanted=1)
    one = Exam(("p1",), {"p1": short})
    assert one.verdict == "not enough"
    assert remaining(("p1",), one.summaries) == ["p1"]
    assert one.reasons[0].endswith("stretch not complete, 1 more good breath needed")
    flagged = replace(short, verdict="flagged")
    assert Exam(("p1",), {"p1": flagged}).verdict == "flagged"
    assert remaining(("p1",), {"p1": flagged}) == []


def test_what_was_not_validated_is_said_once() -> None:
    heard = {site: replace(SUMMARY, not_validated=("age 67",)) for site in SITES}
    assert Exam(SITES, heard).as_json()["not_validated"] == ["age 67"]
