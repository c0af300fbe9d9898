"""Blocks of sound: in order, at their pace, resampled piece by piece."""

import time
from itertools import pairwise

import numpy as np
import pytest

from device.breath.simulator import simulate
from device.capture.blocks import StreamResampler, paced
from device.signal import SAMPLE_RATE, resample


def test_blocks_are_the_whole_sound_in_order() -> None:
    samples = simulate(1, 2.05).samples
    blocks = list(paced(samples, fast=True))
    np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), samples)
    assert {block.samples.size for block in blocks[:-1]} == {1600}
    assert not any(block.missing or block.note for block in blocks)


def test_a_paced_block_comes_when_it_has_been_said_and_not_before() -> None:
    began = time.monotonic()
    arrived = [time.monotonic() - began for _ in paced(np.zeros(8_000, np.float32), fast=False)]
    assert all(at >= 0.1 * number for number, at in enumerate(arrived, 1))
    assert all(later > earlier for earlier, later in pairwise(arrived))


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_resampled_piece_by_piece_is_the_one_shot_result(sample_rate: int) -> None:
    rng = np.random.default_rng(sample_rate)
    samples = rng.standard_normal(3 * sample_rate + 17).astype(np.float32)
    cuts = np.sort(rng.integers(0, samples.size, 50))
    stream = StreamResampler(sample_rate)
    pieces = [stream.push(piece) for piece in np.split(samples, cuts) if piece.size]
    together = np.concatenate([*pieces, stream.flush()])
    np.testing.assert_allclose(together, resample(samples, sample_rate), atol=1e-4)
    # a sample more or less at every break would add up
    assert together.size == round(samples.size * SAMPLE_RATE / sample_rate)
