"""Recordings on disk, in any format that libsndfile reads: checked as a whole, read in blocks, one channel."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from device.capture.wav_header import Mended, WavHeader, read_wav_header, unfinished
from device.signal import FloatArray
from firmware_config.errors import RespSAMError

if TYPE_CHECKING:
    import soundfile

SUFFIXES: Final = (".wav", ".flac")  # of a corpus's recordings
_SOUND = (
    "wav wave bwf rf64 w64 flac ogg oga opus mp3 mp2 aif aiff aifc au snd caf m4a mp4 aac wma amr 3gp webm mka ape wv"
)
SOUND_SUFFIXES: Final = frozenset("." + name for name in _SOUND.split())
"""Suffixes of files that look like a recording; those that cannot be read are refused by name."""
SOUND_MAGIC: Final = (b"fLaC", b"OggS", b"ID3", b"caff", b".snd", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")
CONTAINERS: Final = {(b"RIFF", b"WAVE"), (b"RIFX", b"WAVE"), (b"RF64", b"WAVE"), (b"FORM", b"AIFF"), (b"FORM", b"AIFC")}
SAMPLE_RATES: Final = (1_000, 1_000_000)  # Hz; a damaged header's 1 Hz, resampled to 16 kHz, would fill the memory
BLOCK_VALUES: Final = 1 << 20  # of all channels together
UNKNOWN_FRAMES: Final = 1 << 62  # a FLAC from a pipe has no length; libsndfile gives the largest number
ESTIMATED: Final = frozenset({"MP3", "OGG"})  # the header's length may be a guess
LARGEST_FLOAT: Final = 4.0  # float samples above this are on an integer's scale, not overdriven
INTEGER_SCALES: Final = (1 << 15, 1 << 23, 1 << 31)

Channel = int | Literal["auto"]


class AudioError(RespSAMError):
    """A recording that cannot be read whole: missing, empty, truncated, not audio, or not finite."""


class AudioWarning(UserWarning):
    """A recording that is read, with a remark."""


class ChannelWarning(AudioWarning):
    """A recording has several channels; only one is used."""


@dataclass(frozen=True)
class Header:
    """Format and length of a recording."""

    sample_rate: int
    frames: int
    channels: int
    is_float: bool = False
    """Samples may exceed full scale."""
    exact: bool = True
    """Whether `frames` is a count, not an estimate."""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate


@dataclass(frozen=True)
class Recorded:
    """A recording that was checked from end to end, to be read again in blocks."""

    path: Path
    header: Header
    channel: int
    """Counted from 0."""
    gain: float = 1.0
    remarks: tuple[AudioWarning, ...] = ()
    """What is left out or irregular."""

    def samples(self) -> FloatArray:
        """All samples (n,) float32."""
        return np.concatenate([np.zeros(0, np.float32), *self.blocks()])

    def blocks(self) -> Iterator[FloatArray]:
        """Samples (n,) float32 at the recording's own rate; AudioError when it has changed meanwhile."""
        for block in _blocks(self.path, self.channel):
            yield block if self.gain == 1.0 else block * np.float32(self.gain)


def looks_like_sound(path: Path) -> bool:
    """Whether a file is sound by its suffix, else by its first bytes."""
    if path.suffix.lower() in SOUND_SUFFIXES:
        return True
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(12)
            return start.startswith(SOUND_MAGIC) or (start[:4], start[8:]) in CONTAINERS
    return False


def read_header(path: Path) -> Header:
    """Rate, length and channels; reads the samples only where the length is unknown; raises AudioError."""
    with _opened(path) as (file, header):
        if header.frames < UNKNOWN_FRAMES:
            return header
        frames = sum(map(len, _pieces(path, file, header.channels)))
    return Header(header.sample_rate, frames, header.channels, header.is_float)


def read_audio(path: Path, channel: Channel = 0) -> tuple[FloatArray, int]:
    """Samples (n,) float32 of one channel, counted from 0, and the sample rate in Hz.

    `auto` takes the channel with most breathing. Raises AudioError unless the recording is complete and finite; warns
    (AudioWarning) of what is left out or irregular.
    """
    recorded, samples = read_whole(path, channel)
    for remark in recorded.remarks:
        warnings.warn(remark, stacklevel=2)
    return samples, recorded.header.sample_rate


def read_whole(path: Path, channel: Channel = 0) -> tuple[Recorded, FloatArray]:
    """`scan` and all samples (n,), decoded once; raises AudioError."""
    blocks: list[FloatArray] = []
    recorded = _check(path, channel, blocks.append)
    samples = np.concatenate(blocks)
    return recorded, samples if recorded.gain == 1.0 else samples * np.float32(recorded.gain)


def scan(path: Path, channel: Channel = 0) -> Recorded:
    """Check a recording from end to end, in blocks; as `read_audio`, but without samples and warnings; AudioError."""
    return _check(path, channel, lambda _: None)


def _check(path: Path, channel: Channel, take: Callable[[FloatArray], None]) -> Recorded:
    """`take` gets every block (n,) as it was decoded."""
    remarks: list[AudioWarning] = []
    with _opened(path, remarks) as (_, header):
        pass
    chosen = breathing_channel(path, header) if channel == "auto" else channel
    if chosen >= header.channels:
        if header.channels > 1:
            raise AudioError(
                f"{path}: has no channel {chosen}, its {header.channels} are counted from 0; set audio.channel or give "
                "--channel"
            )
        chosen = 0  # the setting is for the microphone: a mono recording is still read
    frames, peak = 0, 0.0
    for block in _blocks(path, chosen):
        finite = np.isfinite(block)
        if not finite.all():
            bad = (frames + int(np.flatnonzero(~finite)[0])) / header.sample_rate
            raise AudioError(f"{path}: NaN or infinite sample at {bad:.3f} s; export the recording again")
        frames, peak = frames + block.size, max(peak, float(np.abs(block).max()))
        take(block)
    if header.exact and frames < header.frames < UNKNOWN_FRAMES:
        raise AudioError(f"{path}: truncated, {frames} of {header.frames} frames can be read; copy it again")
    if not frames:
        raise AudioError(f"{path}: holds no samples; record it again")
    header = Header(header.sample_rate, frames, header.channels, header.is_float)
    if header.channels > 1:
        remarks.append(_of_channels(path, header.channels, chosen, channel == "auto"))
    gain = _gain(path, header, peak, remarks)
    return Recorded(path, header, chosen, gain, tuple(remarks))


def _of_channels(path: Path, channels: int, chosen: int, by_itself: bool) -> ChannelWarning:
    which = "only the first is used" if chosen == 0 and not by_itself else f"only channel {chosen} is used"
    counted = "" if which.endswith("first is used") else " (counted from 0)"
    because = ", the one with breathing in it" if by_itself else ""
    return ChannelWarning(f"{path}: {channels} channels, {which}{counted}{because}")


def _gain(path: Path, header: Header, peak: float, remarks: list[AudioWarning]) -> float:
    """The factor that brings float samples on an integer's scale to full scale 1.0."""
    if not header.is_float or peak <= LARGEST_FLOAT:
        return 1.0
    scale = next((scale for scale in INTEGER_SCALES if peak <= scale), None)
    if scale is None:
        raise AudioError(f"{path}: float samples up to {peak:.3g}, where full scale is 1.0; export the recording again")
    words = f"float samples up to {peak:.0f}, where full scale is 1.0; taken as integers and divided by {scale}"
    remarks.append(AudioWarning(f"{path}: {words}"))
    return 1.0 / scale


def breathing_channel(path: Path, header: Header) -> int:
    """The channel with most gradable breathing in its first minutes; the first of equals."""
    from device.capture.channels import breathing

    if header.channels == 1:
        return 0
    found = [breathing(_blocks(path, channel), header.sample_rate) for channel in range(header.channels)]
    return found.index(max(found))


@contextmanager
def _opened(path: Path, remarks: list[AudioWarning] | None = None) -> Iterator[tuple["soundfile.SoundFile", Header]]:
    """Open a recording with libsndfile, behind a corrected header where needed; AudioError when it cannot be opened."""
    import soundfile

    try:
        _refuse_what_is_no_file(path)
        wav = read_wav_header(path)
        mended = _mended(path, wav, [] if remarks is None else remarks)
        with _forward_only(os.fsencode(path) if mended is None else mended) as file:  # bytes: it need not be UTF-8
            known = file.frames < UNKNOWN_FRAMES and file.format not in ESTIMATED
            header = Header(file.samplerate, file.frames, file.channels, file.subtype in ("FLOAT", "DOUBLE"), known)
            if header.frames == 0:
                raise AudioError(f"{path}: holds no samples; record it again")
            if not SAMPLE_RATES[0] <= header.sample_rate <= SAMPLE_RATES[1]:
                raise AudioError(
                    f"{path}: no recorder has a sample rate of {header.sample_rate} Hz; copy the recording again"
                )
            yield file, header
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(
            f"{path}: not a readable wav or flac file ({_reason(error)}); convert or record it again"
        ) from error


def _refuse_what_is_no_file(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise AudioError(f"{path}: a link that leads nowhere; copy the recording itself")
    if not path.is_file():
        what = "no file" if path.exists() and not path.is_dir() else "no such recording"
        raise AudioError(f"{path}: {what}; check the path")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty; record or copy it again")


def _mended(path: Path, wav: WavHeader | None, remarks: list[AudioWarning]) -> Mended | None:
    """The file with a corrected header where its own is wrong, else None; AudioError where sound is missing."""
    if wav is None:
        return None
    if wav.seconds_missing:
        promised = wav.promised / wav.bytes_per_second
        raise AudioError(
            f"{path}: truncated, {wav.seconds_there:.1f} of {promised:.1f} s are there; copy the recording again"
        )
    if unfinished(path, wav):
        seconds = wav.there / wav.bytes_per_second
        words = f"{path}: the recorder did not finish the file; the {seconds:.1f} s that are there are read"
        remarks.append(AudioWarning(words))
        return Mended(path, wav)
    # libsndfile would stop at the 2 GiB that the writer of a longer stream put here
    return Mended(path, wav) if wav.streamed and wav.there > wav.promised else None


def _forward_only(file: Any) -> "soundfile.SoundFile":
    """soundfile seeks after each read, which fails at the end of a FLAC of unknown length."""
    import soundfile

    class Forward(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return Forward(file)


def _blocks(path: Path, channel: int) -> Iterator[FloatArray]:
    """Samples (n,) of one channel, block by block."""
    with _opened(path) as (file, header):
        for block in _pieces(path, file, header.channels):
            yield np.ascontiguousarray(block[:, channel])


def _pieces(path: Path, file: "soundfile.SoundFile", channels: int) -> Iterator[FloatArray]:
    """Samples (n, channels); in blocks, as a header may promise more frames than memory holds."""
    import soundfile

    try:
        while len(block := file.read(max(1, BLOCK_VALUES // channels), dtype="float32", always_2d=True)):
            yield block
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path}: damaged inside ({_reason(error)}); copy the recording again") from error


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.rsplit(": ", 1)[-1].rstrip(".")
