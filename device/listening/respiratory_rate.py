"""Breaths a minute, from the breaths found and the rhythm measured."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from device.breath.segmenter import LEAST_RHYTHM
from device.listening.cycle import CycleResult
from device.signal import Float64Array

RATE_CYCLES: Final = 9  # how many of the latest cycles count
LEAST_INTERVALS: Final = 3  # from onset to onset
LONGEST_INTERVAL_SECONDS: Final = 8.0  # a longer one misses a breath
INTERVAL_TOLERANCE: Final = 0.25  # of the median
STEADY_SHARE: Final = 0.6  # of the intervals within the tolerance, and of the periods near a whole number of them
OCTAVE_TOLERANCE: Final = 0.15  # of a whole number of intervals
SURE_RHYTHM: Final = 0.4  # confidence that a rhythm needs where no breaths confirm it


def respiratory_rate(cycles: Sequence[CycleResult]) -> float | None:
    """Breaths a minute over the latest cycles; None where the breaths found and the autocorrelation disagree.

    The autocorrelation alone is wrong by an octave in a quarter of simulated sessions at 20 a minute, in most at 60.
    Two phases of a breath found as two breaths are wrong by an octave in the other direction.
    """
    latest = cycles[-RATE_CYCLES:]
    periods = np.array([cycle.period_seconds for cycle in latest if cycle.rhythm >= LEAST_RHYTHM])
    pairs = [pair for pair in pairwise(latest) if {cycle.kind for cycle in pair} == {"breath"}]
    onsets = np.array([after.start_seconds - before.start_seconds for before, after in pairs])
    intervals = onsets[onsets <= LONGEST_INTERVAL_SECONDS]
    if intervals.size < LEAST_INTERVALS:
        # several breaths were found as one: only a strong and steady rhythm gives their length
        sure = np.count_nonzero([cycle.rhythm >= SURE_RHYTHM for cycle in latest]) >= STEADY_SHARE * len(latest)
        return (
            60.0 / float(np.median(periods)) if periods.size >= LEAST_INTERVALS and sure and _steady(periods) else None
        )
    interval = float(np.median(intervals))
    if periods.size and abs(float(np.median(periods)) - interval) <= INTERVAL_TOLERANCE * interval:
        return 60.0 / interval
    octaves = np.maximum(1, np.round(periods / interval)) * interval
    resolved = np.count_nonzero(np.abs(periods - octaves) <= OCTAVE_TOLERANCE * octaves) >= STEADY_SHARE * periods.size
    return 60.0 / interval if resolved and _steady(intervals) else None


def _steady(seconds: Float64Array) -> bool:
    """Whether most of these (n,) are near their median."""
    middle = float(np.median(seconds))
    return bool(np.mean(np.abs(seconds - middle) <= INTERVAL_TOLERANCE * middle) >= STEADY_SHARE)
