"""Recordings on disk: wav and flac, any rate, 16/24/32-bit, mono or the first channel."""

import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device.signal import FloatArray
from firmware_config.errors import RespSAMError

SUFFIXES = (".wav", ".flac")
RIFF_UNKNOWN_SIZE = 0xFFFFFFFF  # what a recorder writes that cannot seek back
SAMPLE_RATES = (1_000, 1_000_000)  # Hz; a damaged header's 1 Hz, resampled to 16 kHz, would fill the memory
BLOCK_FRAMES = 1 << 20
CLUTTER = ("__MACOSX", "Thumbs.db", "desktop.ini")  # what a desktop leaves in folders; dot files are so, too


class AudioError(RespSAMError):
    """A recording that cannot be read whole: missing, empty, truncated, not audio, or not finite."""


class ChannelWarning(UserWarning):
    """A recording has several channels; only the first is heard."""


def is_clutter(path: Path) -> bool:
    """Whether a file or folder is a desktop's own (`._name.wav`, `.DS_Store`, `__MACOSX`, `Thumbs.db`)."""
    return path.name.startswith(".") or path.name in CLUTTER


@dataclass(frozen=True)
class Header:
    """What a recording says of itself."""

    sample_rate: int
    frames: int
    channels: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate


def _refuse_truncated(path: Path) -> None:
    """libsndfile shortens a truncated wav in silence; the RIFF header still knows how long it should be."""
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) == 8 and start[:4] == b"RIFF":
        promised = struct.unpack("<I", start[4:])[0]
        held = path.stat().st_size - 8
        # the pad byte of an odd last chunk is often left out
        if promised not in (0, RIFF_UNKNOWN_SIZE) and held < promised - 1:
            raise AudioError(
                f"{path}: truncated, {held + 8} of {promised + 8} bytes are there; copy the recording again"
            )


def read_header(path: Path) -> Header:
    """Rate, length and channels without reading the samples; raises AudioError."""
    import soundfile

    if not path.is_file():
        raise AudioError(f"{path}: no such recording; check the path")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty; record or copy it again")
    try:
        _refuse_truncated(path)
        info = soundfile.info(os.fsencode(path))  # as bytes: a name need not be UTF-8
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(
            f"{path}: not a readable wav or flac file ({_reason(error)}); convert or record it again"
        ) from error
    if info.frames == 0:
        raise AudioError(f"{path}: holds no samples; record it again")
    if not SAMPLE_RATES[0] <= info.samplerate <= SAMPLE_RATES[1]:
        raise AudioError(f"{path}: no recorder has a sample rate of {info.samplerate} Hz; copy the recording again")
    return Header(int(info.samplerate), int(info.frames), int(info.channels))


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.rsplit(": ", 1)[-1].rstrip(".")


def read_audio(path: Path) -> tuple[FloatArray, int]:
    """Samples (n,) float32 of the first channel, and the sample rate in Hz.

    Raises AudioError on anything but a whole, finite recording; warns (ChannelWarning) when channels are left out.
    """
    import soundfile

    header = read_header(path)
    # in blocks: a damaged header may promise more frames than memory holds
    blocks = [np.zeros(0, dtype=np.float32)]
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                blocks.append(block[:, 0])
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: damaged inside ({_reason(error)}); copy the recording again") from error
    first = np.concatenate(blocks)
    if len(first) < header.frames:
        raise AudioError(f"{path}: truncated, {len(first)} of {header.frames} frames can be read; copy it again")
    if header.channels > 1:
        warnings.warn(f"{path}: {header.channels} channels, only the first is heard", ChannelWarning, stacklevel=2)
    if not np.isfinite(first).all():
        bad = int(np.flatnonzero(~np.isfinite(first))[0])
        raise AudioError(
            f"{path}: NaN or infinite sample at {bad / header.sample_rate:.3f} s; export the recording again"
        )
    return first, header.sample_rate
