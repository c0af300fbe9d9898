"""Whom a verdict was never validated for."""

from pathlib import Path

import pytest

from device.bundle import BundleError, ThresholdChoice, read_bundle
from device.model.classifier import Classifier
from device.verdict.population import Subject, not_validated
from tests.device.bundle_maker import make_bundle

CURVE = ((0.0, 1.0, 0.0), (0.2, 0.95, 0.5), (0.4, 0.8, 0.8), (0.9, 0.1, 1.0))


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        (Subject(), ()),
        (Subject(age_years=5.0, site="p1", highest_hz=8000.0, live=True), ()),
        (Subject(live=True), ("age not given",)),
        (Subject(age_years=67.0), ("age 67,",)),
        (Subject(age_years=0.0), ("age 0,",)),
        (Subject(site="Tc"), ("site Tc,",)),
        (Subject(highest_hz=2000.0), ("up to 2000 Hz only",)),
        (Subject(age_years=67.0, site="Tc", highest_hz=2000.0), ("age 67,", "site Tc,", "up to 2000 Hz only")),
    ],
)
def test_what_lies_outside_of_the_training_population_is_said(
    tmp_path: Path, subject: Subject, said: tuple[str, ...]
) -> None:
    manifest = read_bundle(make_bundle(tmp_path / "bundle")).manifest
    population = manifest.population.model_copy(
        update={"youngest_years": 0.2, "oldest_years": 16.0, "sites": ("p1", "p2")}
    )
    front_end = manifest.front_end.model_copy(update={"high_hz": 4000.0})
    reasons = not_validated(manifest.model_copy(update={"population": population, "front_end": front_end}), subject)
    assert len(reasons) == len(said)
    assert all(word in reason for word, reason in zip(said, reasons, strict=True))


@pytest.mark.parametrize(("wanted", "threshold"), [(0.95, 0.2), (0.9, 0.2), (0.8, 0.4), (0.05, 0.9), (1.0, 0.0)])
def test_a_wanted_sensitivity_takes_the_highest_threshold_that_reached_it(wanted: float, threshold: float) -> None:
    assert ThresholdChoice(rule="r", protocol="windows", curve=CURVE).at_sensitivity(wanted) == threshold


def test_a_sensitivity_that_nobody_reached_is_refused() -> None:
    with pytest.raises(BundleError, match=r"sensitivity 0\.99 was never reached on windows, 0\.95 at most"):
        ThresholdChoice(rule="r", protocol="windows", curve=CURVE[1:]).at_sensitivity(0.99)


def test_cycle_and_site_are_both_set_to_the_wanted_sensitivity(tmp_path: Path) -> None:
    bundle = read_bundle(make_bundle(tmp_path / "bundle"))
    choice = ThresholdChoice(rule="r", protocol="windows", curve=CURVE)
    sites = ThresholdChoice(rule="r", protocol="recordings", curve=((0.1, 1.0, 0.2), (0.3, 0.9, 0.7), (0.6, 0.5, 0.9)))
    changed = bundle.manifest.model_copy(update={"threshold": choice, "site_threshold": sites})
    object.__setattr__(bundle, "manifest", changed)
    classifier = Classifier(bundle, sensitivity=0.9)
    assert (classifier.threshold, classifier.site_rule.threshold) == (0.2, 0.3)
    own = Classifier(bundle)
    assert (own.threshold, own.site_rule) == (own.file.threshold, bundle.manifest.site_rule)
