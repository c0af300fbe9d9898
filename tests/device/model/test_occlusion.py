"""Where a model looks: a place that decides is found, and a model that looks nowhere is called flat."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from device.breath.simulator import breath
from device.model.classifier import Classifier
from device.model.occlusion import AT_ONCE, BANDS, Occlusion, occlusion
from device.signal import SAMPLE_RATE, WINDOW_SAMPLES, FloatArray, FrontEnd, SignalError

FRONT_END = FrontEnd(mels=64)


@dataclass
class Loudness:
    """A model whose crackle logit is the mean of some mels over the whole window."""

    mels: slice
    gain: float = 4.0
    batches: list[int] = field(default_factory=list)
    bundle: Any = field(default_factory=lambda: SimpleNamespace(manifest=SimpleNamespace(front_end=FRONT_END)))
    file: Any = field(default_factory=lambda: SimpleNamespace(temperature=1.0))

    def logits(self, inputs: FloatArray) -> FloatArray:
        self.batches.append(len(inputs))
        logits = np.full((len(inputs), 25, 4), -9.0, np.float32)
        logits[:, :, 0] = 0.0
        logits[:, :, 1] = self.gain * inputs[:, :, self.mels].max(axis=(1, 2))[:, None] / 8 - 2.0
        return logits


def tone(at_seconds: float, hertz: float, seconds: float = 3.0) -> FloatArray:
    """Quiet noise with one short loud tone."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    loud = (time >= at_seconds) & (time < at_seconds + 0.2)
    noise = 0.001 * np.random.default_rng(1).standard_normal(time.size)
    return (noise + 0.3 * loud * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def looked(model: Loudness, samples: FloatArray, span: tuple[int, int] | None = None) -> Occlusion:
    return occlusion(cast(Classifier, model), samples, span)


@pytest.mark.parametrize("context", [False, True])
def test_the_place_that_decides_is_found_in_a_repeated_breath_and_in_one_amid_sound(context: bool) -> None:
    samples, span = tone(1.05, 1000.0), None
    if context:
        quiet = np.resize(samples[:SAMPLE_RATE], WINDOW_SAMPLES - samples.size)
        span = (SAMPLE_RATE, SAMPLE_RATE + samples.size)
        samples = np.concatenate([quiet[:SAMPLE_RATE], samples, quiet[SAMPLE_RATE:]])
    found = looked(Loudness(slice(0, 64), gain=6.0), samples, span)
    row, column = np.unravel_index(found.falls.argmax(), found.falls.shape)
    assert found.seconds[column] <= 1.15 <= found.seconds[column + 1]
    assert found.hertz[row] <= 1000.0 <= found.hertz[row + 1]
    assert not found.flat and "Most depends on" in found.in_words()
    assert (found.seconds[0], found.seconds[-1]) == (0.0, 3.0)
    assert np.all(np.diff(found.hertz) > 0)


def test_a_model_that_looks_nowhere_is_flat() -> None:
    model = Loudness(slice(0, 64), gain=0.0)
    found = looked(model, breath(3, "crackle"))
    assert found.flat and found.in_words().startswith("Flat: no hidden place changes the odds by more than 10%")
    assert max(model.batches) <= AT_ONCE and sum(model.batches) == 1 + found.falls.size
    assert len(found.falls) == BANDS


def test_a_place_that_speaks_against_is_no_evidence_for() -> None:
    found = looked(Loudness(slice(0, 64), gain=-6.0), tone(1.05, 1000.0))
    assert found.falls.min() < -0.1 and "Nothing speaks for an abnormal sound" in found.in_words()


def test_the_probability_is_the_judged_one() -> None:
    found = Occlusion(np.array([0.0, 1.0]), np.array([20.0, 8000.0]), np.array([[3.0]]), 1.0)
    assert found.probability == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert found.in_words() == (
        "Most depends on 0.0-1.0 s of the breath, 20-8000 Hz: without it the probability is 0.12 instead of 0.73."
    )


def test_a_cycle_longer_than_a_window_is_refused() -> None:
    with pytest.raises(SignalError, match="longer than a window"):
        looked(Loudness(slice(0, 64)), np.ones(WINDOW_SAMPLES + 1, np.float32))
