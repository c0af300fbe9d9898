"""The folder of decoded audio: one file for each recording, named by what its samples depend on, within a limit.

Mono at 16 kHz: int16 where the samples are 16-bit numbers, which those of a 16-bit file at 16 kHz are, else float32.
Of a resampled recording nothing smaller is the same to the front end, which levels quiet recordings up and takes the
logarithm: of stethoscopes' recordings, int16 scaled to the peak moves a normalised log-mel by up to 0.7, float16 by
1.0, 24 bits by 0.4 and 24 bits scaled to the peak by 0.004.
"""

import hashlib
import json
import mmap
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from device.capture.recording import AudioError, ChannelWarning, read_whole
from device.signal import SAMPLE_RATE, FloatArray, resample
from firmware_config.command_line import counted
from firmware_config.files import replacing

LAYOUT: Final = 3  # raise when the bytes below would mean something else
HEADER_BYTES: Final = 128
CONSTANT: Final = 1e-6  # a silence's ripple after resampling; a recorder's step of 16 bits is thirty times as large
CONSTANT_SAMPLES: Final = SAMPLE_RATE // 25  # of a stretch that is noted as constant
OPEN_MAPS: Final = 128  # each holds a file descriptor, and a process may have no more than 256 (macOS) or 1024 (Linux)
FULL_SCALE: Final = 1 << 15  # of int16
SAMPLE_TYPES: Final = (np.dtype("<f4"), np.dtype("<i2"))
EARLIER_LAYOUT: Final = re.compile(r"\.?[0-9a-f]{24}\.(f32|json)(\.\d+\.part)?")
Stored = NDArray[Any]
"""Samples as a file has them: float32, or int16 of full scale."""


@dataclass(frozen=True)
class Decoded:
    """Facts about a decoded file."""

    length: int
    """Samples."""
    bytes: int
    """Of the file."""
    remarks: tuple[tuple[bool, str], ...] = ()
    """Remarks about the recording, and whether each is about its number of channels."""
    partly_constant: bool = False
    """Whether it may have a constant stretch of 2 CONSTANT_SAMPLES; it has none without."""


@dataclass(frozen=True)
class Usage:
    """What a folder of decoded audio holds, or what was removed from it."""

    recordings: int
    bytes: int
    earlier_bytes: int = 0
    """In files of earlier versions, which nothing uses any more."""

    @property
    def in_words(self) -> str:
        """`1210 recordings, 2.4 GB`."""
        return f"{counted(self.recordings, 'recording')}, {_size(self.bytes)}"

    @property
    def and_earlier(self) -> str:
        """` and 80 MB of earlier versions`, "" without any."""
        return f" and {_size(self.earlier_bytes)} of earlier versions" * bool(self.earlier_bytes)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def file_of(audio: Path, folder: Path) -> Path:
    """Where the decoded samples of `audio`, a path without symbolic links in its folders, are kept below `folder`."""
    import soxr

    try:
        status = audio.stat()
        stamp = f"{status.st_size}\0{status.st_mtime_ns}"
    except OSError:  # `decode` reports it, like everything that cannot be read
        stamp = "missing"
    depends_on = f"{LAYOUT}\0{SAMPLE_RATE}\0{soxr.__version__}\0{audio}\0{stamp}"
    key = hashlib.sha256(depends_on.encode(errors="surrogateescape")).hexdigest()[:32]
    return folder / f"{key[:2]}/{key}.npy"


def decode(audio: Path, file: Path) -> Decoded | str:
    """Write the samples of `audio` to `file`; the reason if there are none. FileError when they cannot be written."""
    try:
        recorded, samples = read_whole(audio)
        samples = resample(samples, recorded.header.sample_rate)
    except AudioError as error:
        return str(error)  # a thread pool loses the error's place
    blocks = samples[: samples.size // CONSTANT_SAMPLES * CONSTANT_SAMPLES].reshape(-1, CONSTANT_SAMPLES)
    remarks = tuple((isinstance(one, ChannelWarning), str(one)) for one in recorded.remarks)
    constant = bool((np.ptp(blocks, axis=1) < CONSTANT).any())
    stored = _stored_form(samples)
    # not flushed: what a power cut damages is decoded again, and flushing took half of the time of all this
    if remarks or constant:  # first, so that samples with nothing beside them are of an ordinary recording
        with replacing(file.with_suffix(".json"), flushed=False) as partial:
            partial.write_text(json.dumps([remarks, constant]))
    with replacing(file, flushed=False) as partial, partial.open("wb") as opened:
        opened.write(_header(stored.size, stored.dtype))
        opened.write(stored.data)
    return Decoded(stored.size, HEADER_BYTES + stored.nbytes, remarks, constant)


def _stored_form(samples: FloatArray) -> Stored:
    """As int16 where that is exact, else as they are."""
    scaled = samples * np.float32(FULL_SCALE)
    whole = np.rint(scaled)
    exact = bool(np.array_equal(whole, scaled)) and whole.min() >= -FULL_SCALE and whole.max() < FULL_SCALE
    return whole.astype("<i2") if exact else samples


def as_float(stored: Stored) -> FloatArray:
    """Samples (n,) float32 of full scale 1.0."""
    if stored.dtype.kind == "i":
        return stored.astype(np.float32) * np.float32(1 / FULL_SCALE)
    return stored.view(np.float32)


def kept(file: Path) -> Decoded | None:
    """The facts of `file`, which is marked as used now; None when it is absent or damaged."""
    beside = file.with_suffix(".json")
    try:
        with FileIO(file) as opened:
            length, sample_type = _shape(opened)
        remarks, constant = json.loads(beside.read_text()) if beside.exists() else ((), False)
        noted = tuple((bool(channels), str(text)) for channels, text in remarks)
        found = Decoded(length, HEADER_BYTES + length * sample_type.itemsize, noted, bool(constant))
    except (OSError, ValueError, TypeError):
        return None
    with suppress(OSError):  # a shared folder may be read-only
        os.utime(file)
    return found


@lru_cache(OPEN_MAPS)
def mapped(file: Path) -> Stored:
    """The samples (n,) of a file, read-only, from the disk when used; OSError or ValueError if there are none."""
    with FileIO(file) as opened:
        length, sample_type = _shape(opened)
        whole = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(whole, sample_type, length, HEADER_BYTES)


def _header(length: int, sample_type: "np.dtype[Any]") -> bytes:
    """The header of numpy's format 1.0; `np.load` takes ten times as long as comparing and mapping."""
    described = f"{{'descr': '{sample_type.newbyteorder('<').str}', 'fortran_order': False, 'shape': ({length},), }}"
    return b"\x93NUMPY\x01\x00v\x00" + described.ljust(HEADER_BYTES - 11).encode() + b"\n"


def _shape(opened: FileIO) -> "tuple[int, np.dtype[Any]]":
    """Number and type of the samples in a file; ValueError unless it is as long as its header says."""
    size, header = os.fstat(opened.fileno()).st_size - HEADER_BYTES, opened.read(HEADER_BYTES)
    for sample_type in SAMPLE_TYPES:
        if header == _header(size // sample_type.itemsize, sample_type):
            return size // sample_type.itemsize, sample_type
    raise ValueError(f"{opened.name}: not a whole file of samples")


def usage(folder: Path) -> Usage:
    """What the folder contains."""
    sizes = [size for _, size, _ in _stored(folder)]
    return Usage(len(sizes), sum(sizes), sum(size for _, size, _ in _stamped(_earlier(folder))))


def trim(folder: Path, gigabytes: float, in_use: Collection[Path]) -> None:
    """Remove files of earlier layouts, then those used longest ago until the rest fits; files in use always stay."""
    for file in _earlier(folder):
        _remove(file)
    names = {file.name for file in in_use}
    stored = sorted(_stored(folder))
    excess = sum(size for _, size, _ in stored) - gigabytes * 1e9
    for _, size, file in stored:
        if excess <= 0:
            break
        if file.name not in names and _remove(file):
            excess -= size


def clear(folder: Path) -> Usage:
    """Remove all of it; returns what was freed."""
    freed = [size for _, size, file in _stored(folder) if _remove(file)]
    earlier = [size for _, size, file in _stamped(_earlier(folder)) if _remove(file)]
    return Usage(len(freed), sum(freed), sum(earlier))


def _stored(folder: Path) -> Iterator[tuple[float, int, Path]]:
    return _stamped(folder.glob("[0-9a-f][0-9a-f]/*.npy"))


def _earlier(folder: Path) -> list[Path]:
    """Files of the layouts that had one file for a whole set of recordings."""
    return [file for file in folder.glob("*") if EARLIER_LAYOUT.fullmatch(file.name)]


def _stamped(files: Iterator[Path] | list[Path]) -> Iterator[tuple[float, int, Path]]:
    """Time of the last use, bytes, and the file; another command may remove some meanwhile."""
    for file in files:
        with suppress(OSError):
            status = file.stat()
            yield status.st_mtime, status.st_size, file


def _remove(file: Path) -> bool:
    """Whether a file and its remarks were removed; those of another user may be protected."""
    try:
        file.unlink()
        file.with_suffix(".json").unlink(missing_ok=True)
    except OSError:
        return False
    return True
