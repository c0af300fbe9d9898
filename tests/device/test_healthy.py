"""The calibration on healthy colleagues: what it shows, what it writes, what it refuses, and how it is undone."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from device.breath.simulator import simulate
from device.bundle import CalibrationBounds, read_bundle
from device.healthy import Draft, SiteReading, Uncalibrated, propose, share
from device.model.classifier import Classifier
from device.signal import SAMPLE_RATE
from device.verdict.calibration import CalibrationError
from firmware_config.passports import Match, Passport, Words, find_passport, own_folder, write_passport
from tests.device.bundle_maker import make_bundle
from tests.device.conftest import Device, one_error

MADE_AT = "2026-12-01T10:00:00+01:00"
BOUNDS = CalibrationBounds(healthy_flagged=0.1, largest_shift=2.0, sensitivity_floor=0.75)


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that may be calibrated."""
    folder = tmp_path_factory.mktemp("bounded") / "bundle"
    return make_bundle(folder, changes=lambda manifest: manifest.update(calibration=BOUNDS.model_dump()))


@pytest.fixture(scope="module")
def base(bounded: Path) -> Uncalibrated:
    return Uncalibrated.of(Classifier(read_bundle(bounded)))


def people(*sites: tuple[float | None, ...]) -> dict[str, dict[str, SiteReading]]:
    """One person for each tuple of site probabilities."""
    return {
        f"p{number}": {str(at): SiteReading(value, 6, 1) for at, value in enumerate(values)}
        for number, values in enumerate(sites)
    }


def test_a_share_has_the_wider_of_two_intervals() -> None:
    none = share([0] * 5, [4] * 5)
    assert (none.count, none.of, none.low) == (0, 20, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 20))  # Clopper and Pearson
    assert str(none) == "0 of 20 (0 %, 0 to 17 %)"
    one_person = share([4, 0, 0, 0, 0], [4] * 5)
    assert one_person.low == 0.0  # five people of whom one is always flagged say little of others
    assert one_person.high >= 0.6
    assert share([], []) == share([0], [0])


def test_a_proposal_shows_strangers_to_the_threshold(base: Uncalibrated) -> None:
    threshold = base.rule.threshold
    high = min(0.99, threshold + 0.1)
    proposal = propose(people((high, 0.01), *[(0.01, None)] * 5), base, "steth", MADE_AT)
    assert proposal.calibration.threshold > high
    assert (proposal.before.count, proposal.before.of) == (1, 7)
    assert proposal.after.count == 1  # the others alone would not have raised it
    assert (proposal.breaths.count, proposal.breaths.of) == (12, 72)
    found = proposal.calibration
    assert (found.people, found.sites, found.bundle, found.bundle_threshold) == (6, 7, base.fingerprint, threshold)
    assert found.name.startswith("steth-2026-12-01-")
    assert any("not changed" in line for line in proposal.lines())
    assert "kept a sensitivity of 0.75" in proposal.lines()[-1]


def test_too_few_people_flagged_chests_and_bundles_without_bounds_are_refused(
    base: Uncalibrated, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match="4 healthy people are too few to calibrate on; record at least 5"):
        propose(people(*[(0.01,)] * 4), base, "steth", MADE_AT)
    with pytest.raises(CalibrationError, match="p1: no site with a verdict"):
        propose(people((0.01,), (None,), *[(0.01,)] * 4), base, "steth", MADE_AT)
    with pytest.raises(CalibrationError, match="p0: flagged even at the highest threshold"):
        propose(people((1.0,), *[(0.01,)] * 4), base, "steth", MADE_AT)
    unbounded = Uncalibrated.of(Classifier(read_bundle(make_bundle(tmp_path / "unbounded"))))
    with pytest.raises(CalibrationError, match="states no bounds"):
        propose(people(*[(0.01,)] * 5), unbounded, "steth", MADE_AT)


def test_a_draft_is_kept_for_one_bundle_and_a_damaged_one_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    draft = Draft("steth", "a")
    draft.add("colleague 1", "left", SiteReading(0.25, 6, 1))
    draft.add("colleague 1", "right", SiteReading(None, 0, 0))
    assert Draft("steth", "a").people == draft.people
    assert Draft("steth", "b").people == {} == Draft("other", "a").people
    draft.file.write_text(draft.file.read_text()[:-5])
    assert Draft("steth", "a").people == {}
    draft.discard()
    assert not draft.file.exists()


@pytest.fixture
def colleagues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five people with two recordings each, and a passport that is chosen by name."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("RESPSAM_AUDIO__PASSPORT", "steth")
    words = Words(text="a wire", source="this test")
    known = Passport(name="Steth", connection=words, match=Match(names=("steth",)))
    write_passport(own_folder() / "steth.toml", known)
    for person in range(5):
        for site in range(2):
            file = tmp_path / "colleagues" / f"person {person}" / f"site {site}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, simulate(10 * person + site, 12.0).samples, SAMPLE_RATE)
    return tmp_path / "colleagues"


def lenient(tmp_path: Path) -> Path:
    """A bundle whose threshold may rise as far as healthy people need."""
    far = BOUNDS.model_copy(update={"largest_shift": 50.0})
    return make_bundle(tmp_path / "far", changes=lambda manifest: manifest.update(calibration=far.model_dump()))


def test_calibrate_shows_writes_and_undoes(respsam_device: Device, colleagues: Path, tmp_path: Path) -> None:
    bundle = lenient(tmp_path)
    command = ("calibrate", "--recordings", colleagues, "--bundle", bundle)
    before = (own_folder() / "steth.toml").read_bytes()
    assert "give the option" in one_error(respsam_device(*command))
    assert (own_folder() / "steth.toml").read_bytes() == before
    done = respsam_device(*command, "--yes")
    assert (done.code, done.error) == (0, "")
    assert "healthy sites flagged now: " in done.out and "healthy sites flagged calibrated: " in done.out
    (calibration,) = find_passport("steth").passport.calibrations
    assert calibration.name in done.out
    assert (calibration.people, calibration.threshold >= calibration.bundle_threshold) == (5, True)
    undone = respsam_device("calibrate", "--undo", "--bundle", bundle)
    assert (undone.code, undone.out) == (0, f"{calibration.name} is removed; in force: the threshold of the bundle\n")
    assert (own_folder() / "steth.toml").read_bytes() == before
    assert "has no calibration for this bundle" in one_error(respsam_device("calibrate", "--undo", "--bundle", bundle))


def test_calibrate_without_people_or_passport(
    respsam_device: Device, colleagues: Path, bounded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("calibrate", "--yes", "--bundle", bounded, "--recordings")
    assert "no folder of a person in it" in one_error(respsam_device(*command, colleagues / "person 0"))
    monkeypatch.setenv("RESPSAM_AUDIO__PASSPORT", "none")
    assert "no passport for" in one_error(respsam_device(*command, colleagues))


def test_a_shipped_passport_is_copied_before_it_is_calibrated(
    respsam_device: Device, colleagues: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESPSAM_AUDIO__PASSPORT", "thinklabs-one")
    shipped = find_passport("thinklabs-one")
    done = respsam_device("calibrate", "--recordings", colleagues, "--bundle", lenient(tmp_path), "--yes")
    assert done.code == 0, done.error
    own = find_passport("thinklabs-one")
    assert own.own and not shipped.own
    assert own.passport.model_copy(update={"calibrations": ()}) == shipped.passport
    assert len(own.passport.calibrations) == 1 and not np.isnan(own.passport.calibrations[0].threshold)
