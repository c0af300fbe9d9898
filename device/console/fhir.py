"""An exam as a Bundle of HL7 FHIR R4, for a clinic's systems: report, observations, devices. No names of people.

https://hl7.org/fhir/R4/diagnosticreport.html
"""

from datetime import datetime, timezone
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from device.console.chest import SITES, in_words
from device.console.report import NOTICE
from device.console.visit import threshold_of
from device.verdict.population import NOT_VALIDATED
from firmware_config.errors import RespSAMError

Resource = dict[str, Any]

LOINC, SNOMED, UNITS = "http://loinc.org", "http://snomed.info/sct", "http://unitsofmeasure.org"
HL7: Final = "http://terminology.hl7.org/CodeSystem"
CODES: Final = {
    "respiratory rate": (LOINC, "9279-1", "Respiratory rate"),
    "crackle": (SNOMED, "48409008", "Respiratory crackles"),
    "wheeze": (SNOMED, "56018004", "Wheezing"),
    "trachea": (SNOMED, "44567001", "Tracheal structure"),
    "left anterior": (SNOMED, "1290343009", "Structure of left half of anterior chest wall"),
    "right anterior": (SNOMED, "1290342004", "Structure of right half of anterior chest wall"),
    "left posterior": (SNOMED, "788647001", "Structure of left half of posterior chest wall"),
    "right posterior": (SNOMED, "788648006", "Structure of right half of posterior chest wall"),
    "left lateral": (SNOMED, "40768004", "Left thorax structure"),
    "right lateral": (SNOMED, "51872008", "Right thorax structure"),
}
"""Everything that has a code of others; their sources are in docs/fhir.md. What has none is a text."""
URN: Final = "urn:ietf:rfc:3986"  # the system of an identifier that is a URI
DEMO: Final = {"security": [{"system": f"{HL7}/v3-ActReason", "code": "HTEST", "display": "test health data"}]}
VERDICT: Final = {"text": "Lung sounds, automated screening"}
UNANSWERED: Final = ("not enough", "poor quality")


class FhirError(RespSAMError):
    """An exam that cannot become a Bundle."""


def fhir_bundle(document: dict[str, Any]) -> Resource:
    """A transaction that puts an exam's resources, validated; the same exam replaces itself. FhirError."""
    if not any(site["summary"] for site in document["sites"].values()):
        raise FhirError(f"exam {document['id']} has no result: nothing was recorded at any site")
    software, exam = _software(document["model"]), _Exam(document)
    stethoscopes, observations = dict[str, Resource](), list[Resource]()
    for code, site in document["sites"].items():
        device = None if site["summary"] is None else _stethoscope(site["summary"], software)
        stethoscopes |= {} if device is None else {device["fullUrl"]: device}
        observations += exam.observations(code, site, device)
    entries = [exam.report(observations), *observations, *stethoscopes.values(), software]
    for entry in entries:
        entry["resource"] |= {"meta": DEMO} if document["demo"] else {}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    _validate(bundle)
    return bundle


def _validate(bundle: Resource) -> None:
    try:
        # R4B: R4 with other resources for medicines; it has not changed those that are used here
        from fhir.resources.R4B.bundle import Bundle
    except ModuleNotFoundError as error:
        raise FhirError("FHIR needs fhir.resources: pip install 'respsam[fhir]'") from error
    try:
        Bundle.model_validate(bundle)
    except ValueError as error:
        raise FhirError(f"this exam is no valid Bundle: {error}") from error


class _Exam:
    """Makes the entries of one exam."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._key = f"exam {document['id']} {document['started_at']!r} {document['model']['fingerprint']}"
        at = datetime.fromtimestamp(document["started_at"], timezone.utc).isoformat(timespec="seconds")
        patient = {"type": "Patient", "identifier": {"value": document["subject"]}}
        self._common = {"effectiveDateTime": at} | ({"subject": patient} if document["subject"] else {})

    def report(self, observations: list[Resource]) -> Resource:
        document = self._document
        doubts = document["not_validated"]
        sentences = (
            "DEMO: simulated sound, no patient." * document["demo"],
            f"Lung sound screening: {document['verdict']}.",
            f"{NOT_VALIDATED}: {'; '.join(doubts)}." if doubts else "",
            NOTICE,
        )
        return _entry(
            "DiagnosticReport",
            self._key,
            # a screening aid's report is never final
            status="preliminary" if document["finished"] else "partial",
            code={"text": "Lung sound screening"},
            result=[_reference(one) for one in observations],
            conclusion=" ".join(filter(None, sentences)),
            **self._common,
        )

    def observations(self, code: str, site: dict[str, Any], device: Resource | None) -> list[Resource]:
        """The verdict of a site, and the respiratory rate there."""
        summary = site["summary"]
        words = SITES[code].words if code in SITES else code
        common: Resource = {"status": "preliminary", "bodySite": _concept(words, in_words(code)), **self._common}
        if summary is None or device is None:
            absent = _absent("not-performed", "not recorded")
            return [_entry("Observation", f"{self._key} {code}", code=VERDICT, **absent, **common)]
        doubts = [f"{NOT_VALIDATED}: {'; '.join(summary['not_validated'])}"] if summary["not_validated"] else []
        notes = [{"text": text} for text in (*site["reasons"], *doubts)]
        common |= {"device": _reference(device)} | ({"note": notes} if notes else {})
        verdict = _absent("unknown", site["verdict"])
        if site["verdict"] not in UNANSWERED:
            verdict = {"valueCodeableConcept": {"text": site["verdict"]}}
        components = _components(site, threshold_of(site, self._document["model"]))
        rate = summary["breaths_per_minute"]
        measured = _absent("unknown", "no rhythm was found") if rate is None else _quantity(rate, "/min", "breaths/min")
        vital = [{"coding": [{"system": f"{HL7}/observation-category", "code": "vital-signs"}]}]
        breathing = {"category": vital, "code": _concept("respiratory rate"), **measured}
        return [
            _entry("Observation", f"{self._key} {code}", code=VERDICT, **verdict, component=components, **common),
            _entry("Observation", f"{self._key} {code} rate", **breathing, **common),
        ]


def _components(site: dict[str, Any], threshold: float) -> list[Resource]:
    summary, shown = site["summary"], [cycle["class"] for cycle in site["cycles"]]
    probability = summary["probability"]
    likely = _absent("unknown", site["verdict"]) if probability is None else _quantity(round(probability, 3), "1")
    return [
        {"code": {"text": "probability of abnormal lung sounds"}, **likely},
        {"code": {"text": "threshold of the probability"}, **_quantity(round(threshold, 3), "1")},
        *(_found(sound, shown, site["verdict"]) for sound in ("crackle", "wheeze")),
        {"code": {"text": "breaths judged"}, "valueInteger": summary["gradable"]},
        {"code": {"text": "breaths flagged"}, "valueInteger": summary["flagged"]},
    ]


def _found(sound: str, shown: list[str | None], verdict: str) -> Resource:
    """Whether a flagged breath has this sound; without one, only a site where nothing is flagged can say no.

    A site may be flagged by breaths together, none of which is flagged alone.
    """
    present = sound in shown or "both" in shown
    no_answer = verdict != "nothing flagged" and not present
    return {"code": _concept(sound), **(_absent("unknown", verdict) if no_answer else {"valueBoolean": present})}


def _software(model: dict[str, Any]) -> Resource:
    bundle = f"{model['name']} {model['fingerprint']}"
    return _entry(
        "Device",
        bundle,
        type={"text": "lung sound screening software"},
        deviceName=[{"name": "RespSAM", "type": "model-name"}],
        version=[{"type": {"text": "bundle"}, "value": bundle}],
    )


def _stethoscope(summary: dict[str, Any], software: Resource) -> Resource:
    """What a site was recorded with; one entry for all sites with the same stethoscope, passport and calibration."""
    source = summary["source"] or "a microphone"
    notes = [f"{what} {summary[what]}" for what in ("passport", "calibration") if summary.get(what)]
    return _entry(
        "Device",
        " ".join((source, *notes, software["fullUrl"])),
        type={"text": "stethoscope"},
        deviceName=[{"name": source, "type": "user-friendly-name"}],
        parent=_reference(software),
        **({"note": [{"text": note} for note in notes]} if notes else {}),
    )


def _entry(kind: str, key: str, **fields: Any) -> Resource:
    """A resource with an identifier that `key` decides, so that sending it again replaces it."""
    urn = uuid5(NAMESPACE_URL, f"urn:respsam:{kind}:{key}").urn
    identified = {"resourceType": kind, "identifier": [{"system": URN, "value": urn}], **fields}
    request = {"method": "PUT", "url": f"{kind}?identifier={URN}|{urn}"}
    return {"fullUrl": urn, "resource": identified, "request": request}


def _reference(entry: Resource) -> Resource:
    return {"reference": entry["fullUrl"]}


def _concept(what: str, text: str = "") -> Resource:
    """A concept with its code where it has one; `text` replaces the code's own words."""
    if what not in CODES:
        return {"text": text or what}
    system, code, display = CODES[what]
    return {"coding": [{"system": system, "code": code, "display": display}], "text": text or display}


def _quantity(value: float, code: str, unit: str = "") -> Resource:
    return {"valueQuantity": {"value": value, "unit": unit or code, "system": UNITS, "code": code}}


def _absent(code: str, text: str) -> Resource:
    return {"dataAbsentReason": {"coding": [{"system": f"{HL7}/data-absent-reason", "code": code}], "text": text}}
