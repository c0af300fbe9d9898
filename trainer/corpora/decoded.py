"""The folder of decoded audio: one file a recording, named by what its samples depend on; what goes beyond a limit.

Mono float32 at 16 kHz. Nothing smaller is the same to the front end, which levels quiet recordings up and takes the
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

import numpy as np

from device.capture.recording import AudioError, ChannelWarning, scan
from device.signal import SAMPLE_RATE, FloatArray, resample
from firmware_config.files import replacing, write_atomically

LAYOUT = 3  # raise when the bytes below would mean something else
HEADER_BYTES = 128
CONSTANT = 1e-6  # a silence's ripple after resampling; a recorder's step of 16 bits is thirty times as large
CONSTANT_SAMPLES = SAMPLE_RATE // 25  # of a stretch that is noted as constant
OPEN_MAPS = 128  # each holds a file descriptor, and a process may have no more than 256 (macOS) or 1024 (Linux)
EARLIER_LAYOUT = re.compile(r"\.?[0-9a-f]{24}\.(f32|json)(\.\d+\.part)?")


@dataclass(frozen=True)
class Decoded:
    """What a file says beside its samples."""

    length: int
    """Samples."""
    remarks: tuple[tuple[bool, str], ...] = ()
    """What is odd about the recording, and whether that is its number of channels."""
    partly_constant: bool = False
    """Whether it may have a constant stretch of 2 CONSTANT_SAMPLES; it has none without."""


@dataclass(frozen=True)
class Usage:
    """What a folder of decoded audio holds, or what was removed from it."""

    recordings: int
    bytes: int

    @property
    def in_words(self) -> str:
        """`1210 recordings, 2.4 GB`."""
        size = f"{self.bytes / 1e9:.1f} GB" if self.bytes >= 1e9 else f"{self.bytes / 1e6:.0f} MB"
        return f"{self.recordings} recording{'s' * (self.recordings != 1)}, {size}"


def file_of(audio: Path, folder: Path) -> Path:
    """Where the decoded samples of `audio`, a path without symbolic links in its folders, are kept below `folder`."""
    import soxr

    try:
        status = audio.stat()
        stamp = f"{status.st_size}\0{status.st_mtime_ns}"
    except OSError:  # said by `decode`, like everything that cannot be read
        stamp = "missing"
    depends_on = f"{LAYOUT}\0{SAMPLE_RATE}\0{soxr.__version__}\0{audio}\0{stamp}"
    key = hashlib.sha256(depends_on.encode(errors="surrogateescape")).hexdigest()[:32]
    return folder / f"{key[:2]}/{key}.npy"


def decode(audio: Path, file: Path) -> Decoded | str:
    """Write the samples of `audio` to `file`, or why there are none; FileError when they cannot be written."""
    try:
        recorded = scan(audio)
        samples = resample(recorded.samples(), recorded.header.sample_rate)
    except AudioError as error:
        return str(error)  # a thread pool loses the error's place
    blocks = samples[: samples.size // CONSTANT_SAMPLES * CONSTANT_SAMPLES].reshape(-1, CONSTANT_SAMPLES)
    remarks = tuple((isinstance(one, ChannelWarning), str(one)) for one in recorded.remarks)
    found = Decoded(samples.size, remarks, bool((np.ptp(blocks, axis=1) < CONSTANT).any()))
    if found != Decoded(samples.size):  # first, so that samples with nothing beside them are of an ordinary recording
        write_atomically(file.with_suffix(".json"), json.dumps([remarks, found.partly_constant]))
    with replacing(file) as partial, partial.open("wb") as opened:
        opened.write(_header(samples.size))
        opened.write(samples.data)
    return found


def kept(file: Path) -> Decoded | None:
    """What `file` says, and that it is used now; None when it is absent or damaged."""
    beside = file.with_suffix(".json")
    try:
        with FileIO(file) as opened:
            length = _length(opened)
        remarks, constant = json.loads(beside.read_text()) if beside.exists() else ((), False)
        found = Decoded(length, tuple((bool(channels), str(text)) for channels, text in remarks), bool(constant))
    except (OSError, ValueError, TypeError):
        return None
    with suppress(OSError):  # others may share a folder that they cannot write
        os.utime(file)
    return found


@lru_cache(OPEN_MAPS)
def mapped(file: Path) -> FloatArray:
    """Its samples (n,), read-only, from the disk as they are used; OSError or ValueError when there are none."""
    with FileIO(file) as opened:
        length = _length(opened)
        whole = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(whole, np.float32, length, HEADER_BYTES)


def _header(length: int) -> bytes:
    """Of numpy's format 1.0. Made and compared here, because `np.load` takes ten times as long as the mapping."""
    described = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({length},), }}"
    return b"\x93NUMPY\x01\x00v\x00" + described.ljust(HEADER_BYTES - 11).encode() + b"\n"


def _length(opened: FileIO) -> int:
    """Samples in a file that is as long as its header says; ValueError for any other."""
    length = (os.fstat(opened.fileno()).st_size - HEADER_BYTES) // 4
    if opened.read(HEADER_BYTES) != _header(length):
        raise ValueError(f"{opened.name}: not a whole file of samples")
    return length


def usage(folder: Path) -> Usage:
    """What is there, files of earlier layouts included in the size."""
    sizes = [size for _, size, _ in _stored(folder)]
    return Usage(len(sizes), sum(sizes) + sum(size for _, size, _ in _stamped(_earlier(folder))))


def trim(folder: Path, gigabytes: float, in_use: Collection[Path]) -> None:
    """Remove earlier layouts, and what was used longest ago until the rest fits; what is in use stays in any case."""
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
    """Remove all of it, and say what was freed."""
    freed = [size for _, size, file in _stored(folder) if _remove(file)]
    earlier = [size for _, size, file in _stamped(_earlier(folder)) if _remove(file)]
    return Usage(len(freed), sum(freed) + sum(earlier))


def _stored(folder: Path) -> Iterator[tuple[float, int, Path]]:
    return _stamped(folder.glob("[0-9a-f][0-9a-f]/*.npy"))


def _earlier(folder: Path) -> list[Path]:
    """Files of the layouts that had one file for a whole set of recordings."""
    return [file for file in folder.glob("*") if EARLIER_LAYOUT.fullmatch(file.name)]


def _stamped(files: Iterator[Path] | list[Path]) -> Iterator[tuple[float, int, Path]]:
    """When each was last used, its bytes, and the file; another command may remove some meanwhile."""
    for file in files:
        with suppress(OSError):
            status = file.stat()
            yield status.st_mtime, status.st_size, file


def _remove(file: Path) -> bool:
    """Whether a file and its remarks went; somebody else's may not be ours to remove."""
    try:
        file.unlink()
        file.with_suffix(".json").unlink(missing_ok=True)
    except OSError:
        return False
    return True
