"""How much breathing a channel of a recording has, by the measures that make a cycle gradable."""

from collections.abc import Iterable
from typing import Final

from device.breath.quality import assess
from device.breath.segmenter import Segmenter
from device.bundle import Segmentation
from device.capture.blocks import BLOCK_SAMPLES, StreamResampler, recut
from device.signal import SAMPLE_RATE, FloatArray, quantise
from firmware_config.settings import load_settings

LONGEST_SECONDS: Final = 600.0  # of sound that is examined

Breathing = tuple[float, float, bool]
"""Seconds of gradable cycles, seconds of breaths found, and whether there is any sound: more is better."""


def breathing(blocks: Iterable[FloatArray], sample_rate: int) -> Breathing:
    """How much breathing is in the first ten minutes of a channel; blocks (n,) at `sample_rate` Hz."""
    segmenter, resampler = Segmenter(Segmentation()), StreamResampler(sample_rate)
    limits = load_settings(environment={}).quality
    gradable, breaths, sounding, received = 0.0, 0.0, False, 0
    for block in recut((resampler.push(block) for block in blocks), BLOCK_SAMPLES):
        sounding = sounding or bool(block.min() != block.max())
        for segment in segmenter.feed(quantise(block)):
            seconds = segment.samples.size / SAMPLE_RATE
            good = assess(segment.samples, limits, segment.clarity, segment.snr_db).gradable
            gradable, breaths = gradable + seconds * good, breaths + seconds * (segment.kind == "breath")
        received += block.size
        if received >= LONGEST_SECONDS * SAMPLE_RATE:
            break
    return gradable, breaths, sounding
