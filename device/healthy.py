"""The calibration on healthy colleagues: what it would change, and writing and undoing it in the passport."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.special import betaincinv

from device.bundle import CalibrationBounds, SiteRule
from device.capture.recording import looks_like_sound
from device.listening.screening import screen_recording
from device.model.classifier import Classifier
from device.verdict.calibration import CalibrationError, calibrated
from device.verdict.summary import Summary
from firmware_config.files import FileError, write_atomically
from firmware_config.passports import Calibration, PassportFile, find_passport, own_folder, write_passport
from firmware_config.settings import QualitySettings

LEAST_PEOPLE: Final = 5
SITES: Final = ("left posterior", "right posterior", "left anterior", "right anterior")
DRAWS: Final = 2000  # of people, for the interval
TAIL: Final = 0.025


class SiteReading(NamedTuple):
    """What a calibration takes from one site of one person."""

    probability: float | None
    breaths: int
    """Gradable ones."""
    flagged: int
    """Of these."""


People = Mapping[str, Mapping[str, SiteReading]]
"""The sites of each person."""


def reading(summary: Summary) -> SiteReading:
    """The reading of a site from its session."""
    return SiteReading(summary.probability, summary.gradable, summary.flagged)


class Uncalibrated(NamedTuple):
    """What a calibration begins with: the bundle's own site threshold, and how far it may rise."""

    fingerprint: str
    """Of the bundle."""
    rule: SiteRule
    limits: CalibrationBounds | None

    @classmethod
    def of(cls, classifier: Classifier) -> "Uncalibrated":
        """Of a classifier without a calibration."""
        return cls(classifier.fingerprint, classifier.site_rule, classifier.bundle.manifest.calibration)

    @property
    def bounds(self) -> CalibrationBounds:
        """CalibrationError when the bundle states none."""
        if self.limits is None:
            raise CalibrationError("this bundle states no bounds for a calibration; install one that does")
        return self.limits


class Draft:
    """The sites so far of a calibration, kept in a file after each one: an interrupted calibration goes on."""

    def __init__(self, key: str, bundle: str) -> None:
        """Of the stethoscope with this passport and one bundle; a damaged file is begun anew."""
        self.file, self._bundle = own_folder() / f".{key}.calibration.json", bundle
        self.people: dict[str, dict[str, SiteReading]] = {}
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            kept = json.loads(self.file.read_text())
            if kept["bundle"] == bundle:
                self.people = {
                    person: {site: SiteReading(*values) for site, values in sites.items()}
                    for person, sites in kept["people"].items()
                }

    def add(self, person: str, site: str, found: SiteReading) -> None:
        """Keep one site; FileError when it cannot be written."""
        self.people.setdefault(person, {})[site] = found
        self._write()

    def forget(self, person: str) -> None:
        """Drop the sites of one person; FileError when the file cannot be written."""
        if self.people.pop(person, None) is not None:
            self._write()

    def discard(self) -> None:
        """Remove the file: the calibration is written, or nobody wants it. FileError if that fails."""
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            raise FileError(f"{self.file}: cannot be removed ({error.strerror}); remove it by hand") from error
        self.people = {}

    def _write(self) -> None:
        write_atomically(self.file, json.dumps({"bundle": self._bundle, "people": self.people}))


class Colleagues:
    """A calibration as it is made, site by site: the command and the console listen, and give it each summary."""

    def __init__(
        self,
        passport: PassportFile,
        base: Uncalibrated,
        people: int = LEAST_PEOPLE,
        sites: Sequence[str] = SITES,
        *,
        restart: bool = False,
    ) -> None:
        """An interrupted calibration goes on, unless `restart`. CalibrationError when the bundle states no bounds."""
        self.passport, self.base, self.sensitivity_floor = passport, base, base.bounds.sensitivity_floor
        self.asked = [(f"colleague {number}", site) for number in range(1, people + 1) for site in sites]
        self.draft = Draft(passport.key, base.fingerprint)
        if restart:
            self.draft.discard()

    @property
    def waiting(self) -> list[tuple[str, str]]:
        """The persons and sites that have no reading yet, in order."""
        return [(person, site) for person, site in self.asked if site not in self.draft.people.get(person, {})]

    def take(self, summary: Summary, *, again: bool = True) -> bool:
        """Keep the summary of the first waiting site; with `again` not one without a verdict. FileError as `Draft`."""
        if again and summary.probability is None:
            return False
        self.draft.add(*self.waiting[0], reading(summary))
        return True

    def propose(self, people: "People | None" = None) -> "Proposal":
        """What these people, or those so far, would change; CalibrationError as `propose`."""
        made_at = datetime.now().astimezone().isoformat(timespec="seconds")
        return propose(people or self.draft.people, self.base, self.passport.key, made_at)

    def save(self, proposal: "Proposal") -> Path:
        """Write the calibration into the passport, and forget the sites; returns the file. FileError if that fails."""
        # the passport of now: it may have been measured again meanwhile
        file = write_calibration(find_passport(self.passport.key), proposal.calibration)
        with suppress(FileError):  # the calibration is in force already
            self.draft.discard()
        return file


@dataclass(frozen=True)
class Share:
    """A count among healthy people, with a 95 % interval."""

    count: int
    of: int
    low: float
    high: float

    def __str__(self) -> str:
        percent = 100 * self.count / max(self.of, 1)
        return f"{self.count} of {self.of} ({percent:.0f} %, {100 * self.low:.0f} to {100 * self.high:.0f} %)"


def share(counts: Sequence[int], totals: Sequence[int]) -> Share:
    """The share over people, each with a count and a total.

    The interval is the wider one of two, because both are too narrow alone: Clopper and Pearson's takes a person's
    sites as independent, and a bootstrap over few people knows nothing of those who are not flagged.
    """
    count, of = sum(counts), sum(totals)
    if not of:
        return Share(0, 0, 0.0, 1.0)
    low = float(betaincinv(count, of - count + 1, TAIL)) if count else 0.0
    high = float(betaincinv(count + 1, of - count, 1 - TAIL)) if count < of else 1.0
    drawn = np.random.default_rng(0).integers(0, len(counts), (DRAWS, len(counts)))
    shares = np.array(counts)[drawn].sum(axis=1) / np.maximum(np.array(totals)[drawn].sum(axis=1), 1)
    drawn_low, drawn_high = np.quantile(shares, (TAIL, 1 - TAIL))
    return Share(count, of, min(low, float(drawn_low)), max(high, float(drawn_high)))


@dataclass(frozen=True)
class Proposal:
    """A calibration, and what it changes for healthy people."""

    calibration: Calibration
    breaths: Share
    """Flagged breaths; a calibration does not change them."""
    before: Share
    """Flagged sites at the bundle's threshold."""
    after: Share
    """Flagged sites at thresholds that the other people chose: each person is a stranger to the threshold."""
    sensitivity_floor: float

    def as_json(self) -> dict[str, Any]:
        """For the pages."""
        shares = {name: asdict(getattr(self, name)) for name in ("breaths", "before", "after")}
        return {**shares, "sensitivity_floor": self.sensitivity_floor, **self.calibration.model_dump()}

    def lines(self) -> list[str]:
        """For the person who decides."""
        found = self.calibration
        return [
            f"{found.people} healthy people, {found.sites} sites with a verdict",
            f"healthy sites flagged now:         {self.before}",
            f"healthy sites flagged calibrated:  {self.after}, each person at the threshold that the others chose",
            f"healthy breaths flagged:           {self.breaths}, not changed: a calibration moves the sites' threshold",
            f"a site's threshold: {found.bundle_threshold:.3f} -> {found.threshold:.3f}; on held-out patients the "
            f"largest possible rise kept a sensitivity of {self.sensitivity_floor:.2f}",
        ]


def propose(people: People, base: Uncalibrated, key: str, made_at: str) -> Proposal:
    """The calibration of the stethoscope with this passport; CalibrationError when these people cannot give one."""
    bounds, rule = base.bounds, base.rule
    if len(people) < LEAST_PEOPLE:
        raise CalibrationError(
            f"{len(people)} healthy people are too few to calibrate on; record at least {LEAST_PEOPLE}"
        )
    sites = {person: _probabilities(readings) for person, readings in people.items()}
    found = calibrated(rule, sites, bounds)
    still = [person for person, values in sites.items() if max(values) >= found.threshold]
    if len(still) > int(bounds.healthy_flagged * len(people) + 1e-9):
        raise CalibrationError(
            f"{', '.join(still)}: flagged even at the highest threshold that this bundle allows "
            f"({found.threshold:.3f}); let a clinician listen to them, and take others (--restart)"
        )
    left_out = {
        person: calibrated(rule, {name: values for name, values in sites.items() if name != person}, bounds)
        for person in sites
    }
    totals = [len(values) for values in sites.values()]
    before = share([_flagged(values, rule) for values in sites.values()], totals)
    after = share([_flagged(values, left_out[person]) for person, values in sites.items()], totals)
    flags = [sum(site.flagged for site in readings.values()) for readings in people.values()]
    breaths = [sum(site.breaths for site in readings.values()) for readings in people.values()]
    mark = hashlib.sha256(f"{base.fingerprint} {found.threshold!r} {made_at}".encode()).hexdigest()[:6]
    calibration = Calibration(
        name=f"{key}-{made_at[:10]}-{mark}",
        made_at=made_at,
        bundle=base.fingerprint,
        bundle_threshold=rule.threshold,
        threshold=found.threshold,
        people=len(people),
        sites=before.of,
        sites_flagged_before=before.count,
        sites_flagged_after=after.count,
    )
    return Proposal(calibration, share(flags, breaths), before, after, bounds.sensitivity_floor)


def _probabilities(readings: Mapping[str, SiteReading]) -> list[float]:
    return [site.probability for site in readings.values() if site.probability is not None]


def _flagged(values: Sequence[float], rule: SiteRule) -> int:
    return sum(value >= rule.threshold for value in values)


def recorded_people(folder: Path, classifier: Classifier, quality: QualitySettings) -> People:
    """Screen recordings of colleagues, a folder for each person with their sites; CalibrationError if there is none."""
    people: dict[str, dict[str, SiteReading]] = {}
    for person in sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []:
        recordings = sorted(path for path in person.iterdir() if looks_like_sound(path))
        screened = [screen_recording(path, classifier, quality) for path in recordings]
        people[person.name] = {one.recording.name: reading(one.summary) for one in screened if one.summary is not None}
    if not people:
        raise CalibrationError(f"{folder}: no folder of a person in it; make one for each, with their recordings")
    return people


def write_calibration(found: PassportFile, calibration: Calibration) -> Path:
    """Add a calibration to the passport; a shipped one is copied. Returns the file; FileError if that fails."""
    return _write(found, (*found.passport.calibrations, calibration))


def undo_calibration(found: PassportFile, bundle: str) -> tuple[Calibration, Calibration | None]:
    """Remove the calibration in force; returns it, and the one that is in force now. CalibrationError without one."""
    last = found.passport.calibration(bundle)
    if last is None:
        raise CalibrationError(f"{found.file}: passport {found.key} has no calibration for this bundle to undo")
    left = tuple(one for one in found.passport.calibrations if one is not last)
    _write(found, left)
    return last, found.passport.model_copy(update={"calibrations": left}).calibration(bundle)


def _write(found: PassportFile, calibrations: tuple[Calibration, ...]) -> Path:
    file = own_folder() / f"{found.key}.toml"
    write_passport(file, found.passport.model_copy(update={"calibrations": calibrations}))
    return file
