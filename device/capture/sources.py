"""Sources that need no microphone: a recording, and the built-in demo."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from device.capture.blocks import Block, StreamResampler, paced
from device.capture.recording import Channel, scan
from device.signal import SAMPLE_RATE, FloatArray
from firmware_config.command_line import printable

if TYPE_CHECKING:
    from device.breath.simulator import Breath

PIECE_SECONDS: Final = 60.0  # simulating ten minutes at once takes 500 MB
SEEDS: Final = 1 << 32  # of the settings' range: no piece repeats another demo's


class FileSource:
    """One channel of a recording, in real time or `fast`; AudioError when it cannot be read whole.

    It is read in blocks, once to check it and once for its sound: memory does not depend on its length.
    """

    demo = False

    def __init__(self, path: Path, *, fast: bool = False, channel: Channel = 0) -> None:
        self.recorded = scan(path, channel)
        header = self.recorded.header
        several = f", channel {self.recorded.channel} of {header.channels} (counted from 0)"
        self.name = printable(path) + several * (header.channels > 1)
        self.highest_hz = header.sample_rate / 2
        self.live = not fast

    def blocks(self) -> Iterator[Block]:
        """The whole recording."""
        return paced(self._resampled(), not self.live)

    def _resampled(self) -> Iterator[FloatArray]:
        resampler = StreamResampler(self.recorded.header.sample_rate)
        for block in self.recorded.blocks():
            yield resampler.push(block)
        yield resampler.flush()


class DemoSource:
    """Simulated auscultations of at most `PIECE_SECONDS` in a row: memory does not depend on the length.

    `breaths` is the truth so far, for the report at the end; no verdict depends on it.
    """

    demo, highest_hz = True, SAMPLE_RATE / 2

    def __init__(self, seed: int, seconds: float, *, fast: bool = False) -> None:
        self.name = f"demo (simulated auscultation, seed {seed})"
        self.live = not fast
        self.breaths: list[Breath] = []
        self._seed, self._seconds = seed, seconds

    def blocks(self) -> Iterator[Block]:
        """The whole demo."""
        return paced(self._pieces(), not self.live)

    def _pieces(self) -> Iterator[FloatArray]:
        from device.breath.simulator import simulate

        pieces = math.ceil(self._seconds / PIECE_SECONDS)
        seconds = self._seconds / pieces
        for number in range(pieces):
            piece = simulate(self._seed + number * SEEDS, seconds)
            self.breaths += [breath.later(number * seconds) for breath in piece.breaths]
            yield piece.samples
