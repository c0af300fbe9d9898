"""Is a cycle gradable? Judged on the samples as recorded, before levelling hides how quiet they were."""

from dataclasses import dataclass

import numpy as np

from device.signal import FloatArray

FULL_SCALE = 0.999
SILENCE_DBFS = -160.0


@dataclass(frozen=True)
class Quality:
    """What was measured on one cycle, and why it is not gradable, in words a nurse can act on ('' if it is)."""

    level_dbfs: float
    clipped_share: float
    reason: str

    @property
    def gradable(self) -> bool:
        """Whether the model may judge it."""
        return not self.reason


def level_dbfs(samples: FloatArray) -> float:
    """RMS about the mean in dB of full scale; -160 for silence."""
    rms = float(np.std(samples, dtype=np.float64)) if samples.size else 0.0
    return max(SILENCE_DBFS, 20.0 * float(np.log10(max(rms, 1e-12))))


def judge(samples: FloatArray, minimum_level_dbfs: float, maximum_clipped_share: float) -> Quality:
    """Quality of one cycle (n,). Only what no model can undo is refused here: no sound, and overload."""
    loudness = level_dbfs(samples)
    clipped = float(np.mean(np.abs(samples) >= FULL_SCALE)) if samples.size else 0.0
    # a constant cannot be levelled, whatever the settings allow
    if loudness < minimum_level_dbfs or loudness <= SILENCE_DBFS:
        reason = "too quiet: press the diaphragm flat on the skin and check the cable"
    elif clipped > maximum_clipped_share:
        reason = "overloaded: turn the gain down or hold the stethoscope still"
    else:
        reason = ""
    return Quality(loudness, clipped, reason)
