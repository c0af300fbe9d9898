"""Blocks of sound, mono float32 at 16 kHz, and the sources that give them."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from device.capture.timeline import Kind
from device.signal import SAMPLE_RATE, FloatArray, exact_div

BLOCK_SAMPLES: Final = exact_div(SAMPLE_RATE, 10)  # 100 ms
SILENCE: Final = np.empty(0, np.float32)


@dataclass(frozen=True)
class Block:
    """Samples (n,), n may be 0; `missing` samples at 16 kHz were lost right before them."""

    samples: FloatArray
    missing: int = 0
    kind: Kind = "gap"
    """The event right before it, if `note` is not empty."""
    note: str = ""
    waiting_seconds: float = 0.0
    """Sound that was captured after this block and waits to be read; 0 for sources that wait for their reader."""


class Source(Protocol):
    """A stream of blocks with a name; `demo` means simulated sound, `live` that sound comes in real time."""

    name: str
    demo: bool
    live: bool

    @property
    def highest_hz(self) -> float | None:
        """Half its own sample rate: it carries nothing above; None while unknown."""
        ...

    def blocks(self) -> Iterator[Block]:
        """The sound, in order, until it ends."""
        ...


def recut(pieces: Iterable[FloatArray], length: int) -> Iterator[FloatArray]:
    """Cut pieces (n,) of any size into pieces of `length`, the last one shorter."""
    rest = SILENCE
    for piece in pieces:
        samples = np.concatenate([rest, piece]) if rest.size else piece
        whole = samples.size - samples.size % length
        for start in range(0, whole, length):
            yield samples[start : start + length]
        rest = samples[whole:]
    if rest.size:
        yield rest


def paced(samples: FloatArray | Iterable[FloatArray], fast: bool) -> Iterator[Block]:
    """Samples (n,), or pieces of them, in 100 ms blocks, in real time or `fast`."""
    began, end = time.monotonic(), 0
    for block in recut([samples] if isinstance(samples, np.ndarray) else samples, BLOCK_SAMPLES):
        late, end = 0.0, end + block.size
        if not fast:
            # a block is complete only after its last sample
            late = time.monotonic() - began - end / SAMPLE_RATE
            time.sleep(max(0.0, -late))
        yield Block(block, waiting_seconds=max(0.0, late))


class StreamResampler:
    """Resamples sound of any rate to 16 kHz, piece by piece; the result equals that of one call for all."""

    def __init__(self, sample_rate: int) -> None:
        import soxr

        same = sample_rate == SAMPLE_RATE
        self._stream = None if same else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, "float32", quality="HQ")

    def push(self, samples: FloatArray, last: bool = False) -> FloatArray:
        """Resampled sound (m,) after these samples (n,); the last few milliseconds stay inside until `flush`."""
        if self._stream is None:
            return samples
        return np.asarray(self._stream.resample_chunk(samples, last=last), dtype=np.float32)

    def flush(self) -> FloatArray:
        """The remaining samples (m,); the sound ends here."""
        return self.push(SILENCE, last=True)
