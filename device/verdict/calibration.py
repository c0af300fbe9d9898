"""Healthy people raise the site's threshold for another stethoscope, within bounds that keep sensitivity."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from scipy.special import expit, logit

from device.bundle import CalibrationBounds, SiteRule
from firmware_config.errors import RespSAMError

LEAST_PEOPLE: Final = 2


class CalibrationError(RespSAMError):
    """Healthy recordings that cannot set a threshold."""


def calibrated(rule: SiteRule, healthy: Mapping[str, Sequence[float]], calibration: CalibrationBounds) -> SiteRule:
    """The rule with the lowest threshold, not below its own, at which few enough healthy people are flagged.

    `healthy` maps each person to the probabilities of their sites; one flagged site flags the person. The threshold
    rises by at most `largest_shift` log-odds. Raises CalibrationError when there are too few people or no verdicts.
    """
    if len(healthy) < LEAST_PEOPLE:
        raise CalibrationError(
            f"{len(healthy)} healthy people are too few to calibrate on; record at least {LEAST_PEOPLE}"
        )
    for person, sites in healthy.items():
        if not sites or not np.isfinite(sites).all():
            raise CalibrationError(f"{person}: no site with a verdict; record this person again, or leave them out")
    highest = sorted((max(sites) for sites in healthy.values()), reverse=True)
    may_be_flagged = int(calibration.healthy_flagged * len(highest) + 1e-9)
    # a probability equal to the threshold is flagged: take the next number above
    wanted = float(np.nextafter(highest[may_be_flagged], 1.0))
    most = max(rule.threshold, float(expit(logit(rule.threshold) + calibration.largest_shift)))
    return rule.model_copy(update={"threshold": float(np.clip(wanted, rule.threshold, most))})
