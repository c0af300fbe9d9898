"""Breaths a minute, from the breaths found and the rhythm measured."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from device.listening.cycle import CycleResult

RATE_CYCLES: Final = 9  # how many of the latest cycles count
LEAST_INTERVALS: Final = 3  # from onset to onset
LONGEST_INTERVAL_SECONDS: Final = 8.0  # a longer one misses a breath
INTERVAL_TOLERANCE: Final = 0.25  # of the median
STEADY_SHARE: Final = 0.6  # of the intervals within the tolerance, and of the periods near a whole number of them
OCTAVE_TOLERANCE: Final = 0.15  # of a whole number of intervals
SURE_RHYTHM: Final = 0.4  # confidence that a rhythm needs where no breaths confirm it


def respiratory_rate(cycles: "Sequence[CycleResult]") -> float | None:
    """Breaths a minute over the latest cycles; None where the breaths found and the autocorrelation disagree.

    The autocorrelation alone is wrong by an octave in a quarter of simulated sessions at 20 a minute, in most at 60.
    Two phases of a breath found as two breaths are wrong by an octave in the other direction.
    """
    from device.breath.segmenter import LEAST_RHYTHM  # here: whoever reads stored breaths needs no filters of scipy

    latest = cycles[-RATE_CYCLES:]
    periods = np.array([cycle.period_seconds for cycle in latest if cycle.rhythm >= LEAST_RHYTHM])
    intervals = _intervals([(cycle.start_seconds, cycle.kind) for cycle in latest])
    if len(intervals) < LEAST_INTERVALS:
        # several breaths were found as one: only a strong and steady rhythm gives their length
        sure = np.count_nonzero([cycle.rhythm >= SURE_RHYTHM for cycle in latest]) >= STEADY_SHARE * len(latest)
        steady = periods.size >= LEAST_INTERVALS and sure and _steady(periods.tolist())
        return 60.0 / float(np.median(periods)) if steady else None
    interval = median(intervals)
    if periods.size and abs(float(np.median(periods)) - interval) <= INTERVAL_TOLERANCE * interval:
        return 60.0 / interval
    octaves = np.maximum(1, np.round(periods / interval)) * interval
    resolved = np.count_nonzero(np.abs(periods - octaves) <= OCTAVE_TOLERANCE * octaves) >= STEADY_SHARE * periods.size
    return 60.0 / interval if resolved and _steady(intervals) else None


def rate_of_onsets(onsets: Sequence[tuple[float, str]]) -> float | None:
    """Breaths a minute of stored cycles in order, each with start in seconds and kind; None where they are not steady.

    The store does not keep the rhythm's period, so nothing but the breaths confirms it.
    """
    intervals = _intervals(onsets)
    sure = len(intervals) >= LEAST_INTERVALS and _steady(intervals)
    return 60.0 / median(intervals) if sure else None


def _intervals(onsets: Sequence[tuple[float, str]]) -> list[float]:
    """Seconds from the onset of a breath to that of the next."""
    pairs = [pair for pair in pairwise(onsets) if {kind for _, kind in pair} == {"breath"}]
    seconds = [after - before for (before, _), (after, _) in pairs]
    return [one for one in seconds if one <= LONGEST_INTERVAL_SECONDS]


def _steady(seconds: Sequence[float]) -> bool:
    """Whether most of these are near their median; not by numpy, which is slow for a few numbers."""
    middle = median(seconds)
    near = sum(abs(one - middle) <= INTERVAL_TOLERANCE * middle for one in seconds)
    return near / len(seconds) >= STEADY_SHARE
