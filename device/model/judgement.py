"""From a model's logits to the judgement of one cycle."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device.bundle import BundleError
from device.labels import LABELS, NORMAL, Label
from device.signal import FRAME_SAMPLES, WINDOW_SAMPLES, Span


@dataclass(frozen=True)
class Judgement:
    """What the model says of one cycle."""

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


def softmax(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Class probabilities (n, classes) of logits (n, classes) over `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = exponent / exponent.sum(axis=1, keepdims=True)
    return result


def abnormal_probability(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """1 - softmax(logits / temperature)[normal], (n,)."""
    result: npt.NDArray[np.float64] = 1.0 - softmax(logits, temperature)[:, NORMAL]
    return result


def leading_class(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Index (n,) of the likeliest abnormal class of logits (n, classes)."""
    result: npt.NDArray[np.int64] = 1 + logits[:, 1:].argmax(axis=1)
    return result


def pool(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Logits (..., classes) of moments' (..., moments, classes): log of the mean odds against normal, normal at 0."""
    against_normal = logits.astype(np.float64) - logits[..., NORMAL : NORMAL + 1].astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN stays NaN: whoever judges says so in words
        result: npt.NDArray[np.float64] = np.logaddexp.reduce(against_normal, axis=-2) - np.log(logits.shape[-2])
    return result


def moment_centres(moments: int) -> npt.NDArray[np.float64]:
    """Samples (moments,) of a window that its moments are about."""
    result: npt.NDArray[np.float64] = (
        np.arange(moments, dtype=np.float64) * (WINDOW_SAMPLES / moments) + FRAME_SAMPLES / 2
    )
    return result


def moments_of(span: Span, moments: int) -> slice:
    """The moments of a window whose centre lies in a span; where there is none, the one nearest to its middle."""
    centres = moment_centres(moments)
    first, last = (int(place) for place in np.searchsorted(centres, span))
    if first == last:
        first = int(np.abs(centres - sum(span) / 2).argmin())
        last = first + 1
    return slice(first, last)


def judge(
    logits: npt.NDArray[np.floating], temperature: float, threshold: float, span: Span | None = None
) -> Judgement:
    """Verdict of one cycle from the logits of its windows (count, moments, classes): the worst window speaks.

    `span` is where the cycle lies in its window, None where it is all of it. BundleError when a logit is not a number:
    it would be below every threshold, and so look like health.
    """
    if not np.isfinite(logits).all():
        raise BundleError(
            "the model answers NaN: this machine computes something else than its maker did; do not use it, run "
            "'respsam-device doctor'"
        )
    heard = pool(logits if span is None else logits[:, moments_of(span, logits.shape[1])])
    probability = abnormal_probability(heard, temperature)
    worst = int(probability.argmax())
    return Judgement(
        float(probability[worst]), bool(probability[worst] >= threshold), LABELS[int(leading_class(heard)[worst])]
    )
