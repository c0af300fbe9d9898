"""Thresholds of cycles and sites, chosen on held-out patients' recordings through the live path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from device.bundle import CalibrationBounds, SiteRule
from firmware_config.settings import QualitySettings
from trainer.choices import Protocol
from trainer.corpora.audio_cache import AudioCache
from trainer.evaluation.outcome import Outcome, of_heard, of_shown
from trainer.evaluation.recordings import Heard, calibration_of, fit_site_rule, gradable, hear, rejudged, voices
from trainer.evaluation.served import UNFITTED, of_network
from trainer.metrics import Float64Array, balanced_curve, best_row
from trainer.run.recipe import Recipe
from trainer.run.request import Request
from trainer.training.experiment import Prepared
from trainer.training.members import Member
from trainer.training.train import FitError

CURVE_ROWS: Final = 101


def rule_in_words(request: Request) -> str:
    """How the thresholds were chosen, for the run, the bundle and the model card."""
    where = "held-out patients" if request.recipe.data.choose_on == "held-out" else "THE TEST PART (as published)"
    return f"maximises (Se + Sp) / 2 on {where}, every stethoscope as much as another, subject to Se >= Sp"


@dataclass(frozen=True)
class Thresholds:
    """The thresholds that held-out patients choose, and their own outcomes at these."""

    protocol: Protocol
    """The protocol on which the cycle threshold was chosen."""
    cycle_threshold: float
    cycle_curve: Float64Array
    site_rule: SiteRule
    site_curve: Float64Array | None
    """None without normal or abnormal recordings to fit on."""
    calibration: CalibrationBounds | None
    outcomes: dict[Protocol, Outcome]
    """Through the live path."""


def hear_held_out(
    members: Sequence[Member],
    prepared: Prepared,
    recipe: Recipe,
    temperature: float,
    quality: QualitySettings,
    device: torch.device,
) -> list[Heard]:
    """Every held-out patient's recordings through the live path, by the member that never met the patient."""
    heard = []
    for member in members:
        served = of_network(member.model, device, recipe, prepared.front_end, temperature)
        heard += hear(gradable(member.held_out), prepared.cache, served, quality)
    return heard


def choose_thresholds(heard: Sequence[Heard], cache: AudioCache) -> Thresholds:
    """The cycle threshold on what the screen showed for annotated cycles, the site rule on whole recordings.

    Where no cycle is annotated, the cycle threshold is the one of the sites.
    """
    live = of_shown(heard, cache)
    labels = np.array([one.recording.label != "normal" for one in heard])
    site_rule, site_curve, calibration = UNFITTED, None, None
    if len(np.unique(labels)) == 2:
        site_rule, site_curve = fit_site_rule(heard)
        calibration = calibration_of(site_rule, site_curve)
    protocol: Protocol = "live"
    if len(np.unique(live.true > 0)) == 2:
        cycle_curve = balanced_curve(live.true > 0, live.probability, voices(live.devices, live.patients))
        threshold = round(float(best_row(cycle_curve)[0]), 6)
    elif site_curve is not None:
        protocol, cycle_curve, threshold = "recordings", site_curve, site_rule.threshold
    else:
        raise FitError("the held-out patients' cycles are normal or abnormal only; add patients")
    if site_curve is None:
        site_rule = site_rule.model_copy(update={"threshold": threshold})
    heard = [rejudged(one, threshold) for one in heard]
    outcomes: dict[Protocol, Outcome] = {}
    if protocol == "live":
        outcomes["live"] = of_shown(heard, cache)
    if site_curve is not None:
        outcomes["recordings"] = of_heard(heard, cache, site_rule)
    return Thresholds(protocol, threshold, cycle_curve, site_rule, site_curve, calibration, outcomes)


def operating_rows(curve: Float64Array) -> tuple[tuple[float, float, float], ...]:
    """The operating curve at about a hundred thresholds."""
    rows = curve[np.unique(np.linspace(0, len(curve) - 1, CURVE_ROWS).round().astype(int))]
    return tuple((round(float(t), 6), round(float(se), 4), round(float(sp), 4)) for t, se, sp in rows)
