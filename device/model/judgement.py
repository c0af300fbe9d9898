"""From a model's logits to the judgement of one cycle."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device.bundle import BundleError
from device.labels import LABELS, NORMAL, Label
from device.signal import FRAME_SAMPLES, WINDOW_SAMPLES, Float64Array, Span


@dataclass(frozen=True)
class Judgement:
    """The model's result for one cycle."""

    probability: float
    """Of being abnormal, calibrated."""
    abnormal: bool
    """Whether the probability reaches the threshold."""
    leading: Label
    """The likeliest abnormal class, whether or not the cycle is abnormal."""

    @property
    def label(self) -> Label:
        """The class that is shown."""
        return self.leading if self.abnormal else LABELS[NORMAL]


def softmax(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> Float64Array:
    """Class probabilities (n, classes) of logits (n, classes) divided by `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    result: Float64Array = exponent / exponent.sum(axis=1, keepdims=True)
    return result


def abnormal_probability(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> Float64Array:
    """1 - softmax(logits / temperature)[normal], (n,)."""
    result: Float64Array = 1.0 - softmax(logits, temperature)[:, NORMAL]
    return result


def leading_class(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Index (n,) of the likeliest abnormal class of logits (n, classes)."""
    result: npt.NDArray[np.int64] = 1 + logits[:, 1:].argmax(axis=1)
    return result


def pool(logits: npt.NDArray[np.floating]) -> Float64Array:
    """Logits (..., classes) of moments' (..., moments, classes): log of the mean odds against normal, normal at 0."""
    against_normal = logits.astype(np.float64) - logits[..., NORMAL : NORMAL + 1].astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN stays NaN: `judge` reports it
        result: Float64Array = np.logaddexp.reduce(against_normal, axis=-2) - np.log(logits.shape[-2])
    return result


def moment_centres(moments: int) -> Float64Array:
    """Sample numbers (moments,) of the centres of a window's moments."""
    result: Float64Array = np.arange(moments, dtype=np.float64) * (WINDOW_SAMPLES / moments) + FRAME_SAMPLES / 2
    return result


def moments_of(span: Span, moments: int) -> slice:
    """The moments whose centre lies in the span; without one, the moment nearest to the span's middle."""
    centres = moment_centres(moments)
    first, last = (int(place) for place in np.searchsorted(centres, span))
    if first == last:
        first = int(np.abs(centres - sum(span) / 2).argmin())
        last = first + 1
    return slice(first, last)


def judge(
    logits: npt.NDArray[np.floating], temperature: float, threshold: float, span: Span | None = None
) -> Judgement:
    """Judge one cycle from the logits of its windows (count, moments, classes): the most abnormal window decides.

    `span` is where the cycle lies in its window, None for all of it. BundleError when a logit is not finite: NaN is
    below every threshold and would look healthy.
    """
    if not np.isfinite(logits).all():
        raise BundleError(
            "the model answers NaN: this machine computes something else than its maker did; do not use it, run "
            "'respsam-device doctor'"
        )
    pooled = pool(logits if span is None else logits[:, moments_of(span, logits.shape[1])])
    probability = abnormal_probability(pooled, temperature)
    worst = int(probability.argmax())
    return Judgement(
        float(probability[worst]), bool(probability[worst] >= threshold), LABELS[int(leading_class(pooled)[worst])]
    )
