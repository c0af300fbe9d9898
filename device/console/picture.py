"""Pictures of sound: log-mel columns of a stream as bytes, their colours, and PNG files of them."""

import struct
import zlib
from collections import deque
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt

from device.signal import FRAME_SAMPLES, HOP_SAMPLES, SAMPLE_RATE, FloatArray, FrontEnd, exact_div, log_mel

Bytes = npt.NDArray[np.uint8]

COLUMNS_PER_SECOND = exact_div(SAMPLE_RATE, HOP_SAMPLES)  # 100
LEVEL_SECONDS = 6.0  # the picture's gain follows the level of so much sound
LEAST_RMS = 1e-6  # silence stays dark
RANGE = (-1.2, 1.4)  # of the normalised log-mel: from the darkest colour to the brightest
# polynomials of viridis, lowest degree first, a row each for red, green and blue; fitted by Matt Zucker (public domain)
VIRIDIS = (
    (0.27773, 0.10509, -0.33086, -4.63423, 6.22827, 4.77638, -5.43546),
    (0.00541, 1.40461, 0.21485, -5.79910, 14.17993, -13.74515, 4.64585),
    (0.33410, 1.38459, 0.09510, -19.33244, 56.69055, -65.35303, 26.31244),
)


@lru_cache(maxsize=1)
def palette() -> Bytes:
    """256 colours (256, 3), dark blue to yellow: equal steps in brightness, also for the colour-blind."""
    at = np.linspace(0.0, 1.0, 256)
    colours = np.stack([np.polynomial.polynomial.polyval(at, row) for row in VIRIDIS], axis=1)
    return np.asarray(np.round(np.clip(colours, 0.0, 1.0) * 255), dtype=np.uint8)


def _as_bytes(log_mels: FloatArray, front_end: FrontEnd) -> Bytes:
    normalised = (log_mels - front_end.mean) / (2 * front_end.std)
    low, high = RANGE
    return np.asarray(np.clip((normalised - low) / (high - low), 0.0, 1.0) * 255, dtype=np.uint8)


def still(samples: FloatArray, front_end: FrontEnd) -> Bytes:
    """The log-mel (columns, mels) of samples (n >= 400,) at the level that the model gets, as bytes."""
    rms = float(np.std(samples, dtype=np.float64))
    return _as_bytes(log_mel(samples * np.float32(front_end.level / max(rms, LEAST_RMS)), front_end), front_end)


class Stream:
    """The log-mel of a stream, column by column; its gain follows the level of the last seconds."""

    def __init__(self, front_end: FrontEnd) -> None:
        self.front_end = front_end
        self._rest = np.empty(0, np.float32)
        self._next = 0
        self._powers: deque[float] = deque(maxlen=round(LEVEL_SECONDS * 10))

    def add(self, start_sample: int, samples: FloatArray) -> tuple[int, Bytes]:
        """The columns (n, mels) that these samples complete, and the number of the first; n may be 0."""
        if start_sample != self._next:
            self._rest = np.empty(0, np.float32)
        self._next = start_sample + samples.size
        self._powers.append(float(np.var(samples, dtype=np.float64)) if samples.size else 0.0)
        rest = np.concatenate([self._rest, samples])
        first = (self._next - rest.size) // HOP_SAMPLES
        count = max(0, 1 + (rest.size - FRAME_SAMPLES) // HOP_SAMPLES)
        self._rest = rest[count * HOP_SAMPLES :]
        if not count:
            return first, np.empty((0, self.front_end.mels), np.uint8)
        rms = max(float(np.sqrt(np.mean(self._powers))), LEAST_RMS)
        levelled = rest[: (count - 1) * HOP_SAMPLES + FRAME_SAMPLES] * np.float32(self.front_end.level / rms)
        return first, _as_bytes(log_mel(levelled, self.front_end), self.front_end)


def outline(samples: FloatArray) -> npt.NDArray[np.float32]:
    """Least and greatest sample (n, 2) of each 10 ms of samples; the last one may be shorter."""
    if not samples.size:
        return np.empty((0, 2), np.float32)
    padded = np.pad(samples, (0, -samples.size % HOP_SAMPLES), mode="edge").reshape(-1, HOP_SAMPLES)
    return np.stack([padded.min(axis=1), padded.max(axis=1)], axis=1)


def png(columns: Bytes, scale: int = 1) -> bytes:
    """A picture file of columns (n, mels): time to the right, frequency up."""
    pixels = np.repeat(columns.T[::-1], scale, axis=0)
    height, width = pixels.shape
    rows = b"".join(chain.from_iterable((b"\0", row.tobytes()) for row in pixels))
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bit, by palette
    chunks = ((b"IHDR", header), (b"PLTE", palette().tobytes()), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
