"""An exam as a Bundle of FHIR R4: what it says, what it must not say, and that the library takes it."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device.console.chest import SITES
from device.console.fhir import CODES, FhirError, fhir_bundle
from device.console.visit import Visit
from device.store.exams import Exams
from device.verdict.summary import Summary
from tests.device.conftest import Device, one_error
from tests.device.console.conftest import summary_of

MODEL = {"name": "m", "fingerprint": "ab" * 32, "cycle_threshold": 0.5, "site_threshold": 0.4, "stretch_cycles": 6}
EXAMPLE = Path("docs/fhir-example.json")


def visit_of(*sites: tuple[str, Summary, str], finished: bool = True) -> Visit:
    """An exam of two sites with a summary and one breath of a class at each."""
    visit = Visit("kid-17", 4.0, ("p1", "p3"), False, MODEL, started_at=1_790_000_000.25, id=3, finished=finished)
    for code, summary, shown in sites:
        visit.begin(code)
        judged = {"probability": 0.1 if shown == "normal" else 0.9, "class": shown, "flag": shown != "normal"}
        visit.add({"number": 1, "start": 1.0, "end": 2.0, "reason": "", **judged}, summary, b"")
        visit.end(summary, 1)
    return visit


def real(summary: Summary) -> Summary:
    why = ("crackle and wheeze: 6 breaths together 0.90, flagged from 0.40",)
    return replace(summary, demo=False, source="Thinklabs One", reasons=why)


def quiet(good: int, verdict: str) -> Summary:
    """Nothing is flagged; fewer than six good breaths complete no stretch."""
    return replace(real(summary_of(good, verdict)), flagged=0, stretches_flagged=0, probability=0.1, reasons=())


def of_kind(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


def screening(bundle: dict[str, Any], site: str) -> dict[str, Any]:
    """The observation with the verdict of a site."""
    (found,) = [
        one
        for one in of_kind(bundle, "Observation")
        if "automated" in str(one["code"]) and site in one["bodySite"]["text"]
    ]
    return found


def components(observation: dict[str, Any]) -> dict[str, Any]:
    """The value of each component by its text; the reason where it has none."""
    return {
        one["code"]["text"]: one.get("dataAbsentReason", {}).get("text")
        or next(value for name, value in one.items() if name.startswith("value"))
        for one in observation["component"]
    }


def flagged_visit() -> Visit:
    return visit_of(("p1", real(summary_of(6)), "both"), ("p3", quiet(6, "nothing flagged"), "normal"))


def test_a_report_has_the_verdict_the_sites_and_what_was_used() -> None:
    bundle = fhir_bundle(flagged_visit().document())
    (report,) = of_kind(bundle, "DiagnosticReport")
    assert report["status"] == "preliminary"
    assert report["effectiveDateTime"] == "2026-09-21T14:13:20+00:00"
    assert report["conclusion"].startswith("Lung sound screening: flagged. This is a screening aid, not a diagnosis")
    urls = {entry["fullUrl"] for entry in bundle["entry"]}
    assert len(urls) == len(bundle["entry"]) and {one["reference"] for one in report["result"]} < urls
    left, right = screening(bundle, "left posterior"), screening(bundle, "right posterior")
    assert left["valueCodeableConcept"] == {"text": "flagged"}
    assert right["valueCodeableConcept"] == {"text": "nothing flagged"}
    assert left["bodySite"]["coding"][0]["code"] == "788647001"
    found = components(left)
    assert found["Respiratory crackles"] is found["Wheezing"] is True
    assert found["probability of abnormal lung sounds"]["value"] == 0.9
    assert (found["breaths judged"], found["breaths flagged"]) == (6, 6)
    assert components(right)["Wheezing"] is False
    rates = [one for one in of_kind(bundle, "Observation") if "vital-signs" in str(one.get("category"))]
    assert [one["valueQuantity"]["value"] for one in rates] == [20.0, 20.0]
    (coding,) = rates[0]["code"]["coding"]
    assert coding == {"system": "http://loinc.org", "code": "9279-1", "display": "Respiratory rate"}
    stethoscope, software = of_kind(bundle, "Device")  # both sites were recorded with the same one
    assert stethoscope["deviceName"][0]["name"] == "Thinklabs One"
    assert stethoscope["parent"]["reference"] == software["identifier"][0]["value"]
    assert software["version"][0]["value"] == f"m {'ab' * 32}"
    assert "HTEST" not in json.dumps(bundle)


def test_no_name_is_in_it_and_no_subject_where_none_is_given() -> None:
    visit = flagged_visit()
    (report,) = of_kind(fhir_bundle(visit.document()), "DiagnosticReport")
    assert report["subject"] == {"type": "Patient", "identifier": {"value": "kid-17"}}
    visit.subject = ""
    assert '"subject"' not in json.dumps(fhir_bundle(visit.document()))


@pytest.mark.parametrize("verdict", ["not enough", "poor quality"])
def test_a_site_without_an_answer_has_no_value_and_says_no_to_nothing(verdict: str) -> None:
    visit = visit_of(("p1", quiet(2, verdict), "normal"), finished=False)
    bundle = fhir_bundle(visit.document())
    site = screening(bundle, "left posterior")
    assert "valueCodeableConcept" not in site and site["dataAbsentReason"]["text"] == verdict
    assert components(site)["Wheezing"] == components(site)["Respiratory crackles"] == verdict
    missing = screening(bundle, "right posterior")
    assert missing["dataAbsentReason"]["coding"][0]["code"] == "not-performed" and "device" not in missing
    assert of_kind(bundle, "DiagnosticReport")[0]["status"] == "partial"


def test_breaths_that_are_flagged_together_and_not_alone_say_no_to_nothing() -> None:
    bundle = fhir_bundle(visit_of(("p1", real(summary_of(6)), "normal")).document())
    found = components(screening(bundle, "left posterior"))
    assert found["Wheezing"] == found["Respiratory crackles"] == "flagged"


def test_each_site_has_the_threshold_that_it_was_judged_by() -> None:
    visit = visit_of(("p1", real(summary_of(6)), "crackle"), ("p3", real(summary_of(6)), "crackle"))
    visit.sites["p3"].threshold = 0.3
    bundle = fhir_bundle(visit.document())
    found = [components(screening(bundle, f"{side} posterior")) for side in ("left", "right")]
    assert [one["threshold of the probability"]["value"] for one in found] == [0.4, 0.3]


def test_a_flag_stays_where_the_site_has_no_answer() -> None:
    bundle = fhir_bundle(visit_of(("p1", quiet(2, "not enough"), "wheeze")).document())
    assert components(screening(bundle, "left posterior"))["Wheezing"] is True


def test_a_subject_outside_of_the_population_is_noted_and_a_demo_is_test_data() -> None:
    summary = replace(summary_of(6), not_validated=("age 90, the model knows 0 to 18 years",), breaths_per_minute=None)
    bundle = fhir_bundle(visit_of(("p1", summary, "crackle")).document())
    doubt = "NOT VALIDATED for this subject: age 90, the model knows 0 to 18 years"
    assert doubt in [note["text"] for note in screening(bundle, "left posterior")["note"]]
    (report,) = of_kind(bundle, "DiagnosticReport")
    assert doubt in report["conclusion"] and report["conclusion"].startswith("DEMO")
    assert all(entry["resource"]["meta"]["security"][0]["code"] == "HTEST" for entry in bundle["entry"])
    assert "no rhythm was found" in json.dumps(bundle)


def test_the_same_exam_replaces_itself() -> None:
    first, again = fhir_bundle(flagged_visit().document()), fhir_bundle(flagged_visit().document())
    assert first == again
    other = flagged_visit()
    other.started_at += 0.001
    urls, others = ({entry["fullUrl"] for entry in one["entry"]} for one in (first, fhir_bundle(other.document())))
    assert len(urls & others) == 2  # the devices
    for entry in first["entry"]:
        identified = f"?identifier=urn:ietf:rfc:3986|{entry['resource']['identifier'][0]['value']}"
        assert entry["request"] == {"method": "PUT", "url": entry["resource"]["resourceType"] + identified}


def test_every_site_has_a_body_site_with_a_code() -> None:
    assert {site.words for site in SITES.values()} <= set(CODES)
    documented = Path("docs/fhir.md").read_text()
    assert all(code in documented and display in documented for _, code, display in CODES.values())


def test_the_example_of_the_documents_is_todays() -> None:
    """To write it anew: EXAMPLE.write_text(...) of what is compared here."""
    assert json.loads(EXAMPLE.read_text()) == fhir_bundle(flagged_visit().document())


# the command


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Visit], int]:
    monkeypatch.setenv("RESPSAM_STORE__PATH", str(tmp_path / "store.sqlite"))

    def save(visit: Visit) -> int:
        visit.id = None
        return Exams(tmp_path / "store.sqlite").save(visit.document())

    return save


def test_the_command_lists_and_exports(respsam_device: Device, stored: Callable[[Visit], int], tmp_path: Path) -> None:
    number = stored(flagged_visit())
    assert re.search(rf"{number} +2026-09-21 .* kid-17 +4.00 +flagged", respsam_device("exams", "list").out)
    (row,) = respsam_device("exams", "list", "--json").objects
    assert (row["id"], row["verdict"]) == (number, "flagged")
    assert json.loads(respsam_device("exams", "export", number).out)["subject"] == "kid-17"
    assert respsam_device("exams", "export", number, "--format", "fhir", "--out", tmp_path / "exam.json").code == 0
    assert json.loads((tmp_path / "exam.json").read_text())["resourceType"] == "Bundle"
    again = respsam_device("exams", "export", number, "--format", "fhir", "--out", tmp_path / "exam.json")
    assert "name a new file" in one_error(again)


def test_what_cannot_be_exported_is_one_line(
    respsam_device: Device, stored: Callable[[Visit], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no exams are stored here" in one_error(respsam_device("exams", "list"))
    number = stored(visit_of())
    assert "there is no exam 77" in one_error(respsam_device("exams", "export", 77, "--format", "fhir"))
    empty = one_error(respsam_device("exams", "export", number, "--format", "fhir"))
    assert f"exam {number} has no result: nothing was recorded at any site" in empty
    number = stored(flagged_visit())
    monkeypatch.setitem(sys.modules, "fhir.resources.R4B.bundle", None)
    assert "pip install 'respsam[fhir]'" in one_error(respsam_device("exams", "export", number, "--format", "fhir"))


def test_the_library_refuses_what_is_no_fhir() -> None:
    document = flagged_visit().document()
    document["sites"]["p1"]["summary"]["breaths_per_minute"] = "many"
    with pytest.raises(FhirError, match="this exam is no valid Bundle"):
        fhir_bundle(document)


def test_an_exam_without_a_site_has_no_bundle() -> None:
    with pytest.raises(FhirError, match="exam 3 has no result"):
        fhir_bundle(visit_of().document())
