"""Sound as it comes: blocks of mono float32 at 16 kHz, and what gives them."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from device.capture.timeline import Kind
from device.signal import SAMPLE_RATE, FloatArray, exact_div

BLOCK_SAMPLES = exact_div(SAMPLE_RATE, 10)  # 100 ms
SILENCE: Final = np.empty(0, np.float32)


@dataclass(frozen=True)
class Block:
    """Sound as it comes, perhaps none; `missing` samples at 16 kHz were lost right before it."""

    samples: FloatArray
    missing: int = 0
    kind: Kind = "gap"
    """What happened right before it, when `note` says that something did."""
    note: str = ""
    waiting_seconds: float = 0.0
    """Sound that has come in after this block and was not taken yet; only where sound does not wait for us."""


class Source(Protocol):
    """A stream of blocks with a name; `demo` sound is no patient's, `live` sound does not wait for its listener."""

    name: str
    demo: bool
    live: bool

    @property
    def highest_hz(self) -> float | None:
        """Half its own sample rate: nothing above it is heard; None while unknown."""
        ...

    def blocks(self) -> Iterator[Block]:
        """The sound, in order, until it ends."""
        ...


def recut(pieces: Iterable[FloatArray], length: int) -> Iterator[FloatArray]:
    """Samples in pieces of any size as pieces of `length`, the last one shorter."""
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
    """Samples (n,), or pieces of them, in 100 ms blocks, at the pace of a clock or as fast as they are taken."""
    began, end = time.monotonic(), 0
    for block in recut([samples] if isinstance(samples, np.ndarray) else samples, BLOCK_SAMPLES):
        late, end = 0.0, end + block.size
        if not fast:
            # a block can be heard only once it has been said
            late = time.monotonic() - began - end / SAMPLE_RATE
            time.sleep(max(0.0, -late))
        yield Block(block, waiting_seconds=max(0.0, late))


class StreamResampler:
    """One stretch of sound from any rate to 16 kHz, piece by piece; together the pieces are the one-shot result."""

    def __init__(self, sample_rate: int) -> None:
        import soxr

        same = sample_rate == SAMPLE_RATE
        self._stream = None if same else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, "float32", quality="HQ")

    def push(self, samples: FloatArray, last: bool = False) -> FloatArray:
        """What can be given after these samples (n,); the resampler holds the last few milliseconds back."""
        if self._stream is None:
            return samples
        return np.asarray(self._stream.resample_chunk(samples, last=last), dtype=np.float32)

    def flush(self) -> FloatArray:
        """What it held back; the stretch ends here."""
        return self.push(SILENCE, last=True)
