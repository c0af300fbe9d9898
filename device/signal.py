"""From the samples of one breath cycle to the log-mel window that the model reads; the only implementation.

The trainer and the device call the same functions, so training sees exactly what the device computes.
All audio is mono float32 with full scale 1.0.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import scipy.fft
from pydantic import BaseModel, ConfigDict, Field, model_validator

from device.runtime import one_blas_thread
from firmware_config.errors import RespSAMError

FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Span = tuple[int, int]
"""First sample of a cycle and one past its last, counted in the samples handed to the model."""


def exact_div(numerator: float, denominator: float) -> int:
    """Quotient of two numbers that must divide without remainder; ValueError otherwise."""
    quotient = round(numerator / denominator)
    if abs(quotient * denominator - numerator) > 1e-9 * abs(numerator):
        raise ValueError(f"{numerator} is not a multiple of {denominator}")
    return quotient


# One window, everywhere the same. Frames are a floor: kaldi drops the frame that would run over the end (snip_edges).
SAMPLE_RATE: Final = 16_000  # Hz
WINDOW_SECONDS: Final = 8
WINDOW_SAMPLES: Final = SAMPLE_RATE * WINDOW_SECONDS  # 128 000
FRAME_SAMPLES: Final = exact_div(SAMPLE_RATE * 25, 1000)  # 400: 25 ms
HOP_SAMPLES: Final = exact_div(SAMPLE_RATE * 10, 1000)  # 160: 10 ms
FFT_SAMPLES: Final = 512
FRAMES: Final = 1 + (WINDOW_SAMPLES - FRAME_SAMPLES) // HOP_SAMPLES  # 798
BLOCK_FRAMES: Final = exact_div(FRAMES, 7)  # 114
PREEMPHASIS: Final = 0.97
INT24: Final = 1 << 23  # full scale of a 24-bit sample
MEL_FLOOR: Final = 1.192092955078125e-07  # float32 epsilon, kaldi's log floor
SEAM_SAMPLES: Final = exact_div(SAMPLE_RATE * 10, 1000)  # 160: 10 ms cross-fade
ROUND_HZ: Final = (200, 500, 1000, 2000, 4000, 8000)  # marks beside a spectrogram


class SignalError(RespSAMError):
    """Samples that cannot become a window: empty, constant, not finite, or not mono."""


class FrontEnd(BaseModel):
    """How a cycle is prepared for the model; the bundle contains it, and the device applies it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    sample_rate: Literal[16_000] = SAMPLE_RATE
    """Hz."""
    window_seconds: Literal[8] = WINDOW_SECONDS
    """Length every cycle is padded to."""
    padding: Literal["cyclic"] = "cyclic"
    """How a cycle shorter than the window fills it."""
    seam: Literal["crossfade", "hard"] = "crossfade"
    """What joins two repeats of a cycle; 'hard' reproduces arXiv 2512.22564 and clicks like a crackle."""
    level: float = Field(default=0.1, ge=0.0, le=1.0)
    """RMS that a cycle is levelled to; 0 leaves it as recorded."""
    hop: Literal[160] = HOP_SAMPLES  # type: ignore[assignment]  # derived: mypy sees an int
    """Samples between frames."""
    frames: Literal[798, 1024] = FRAMES  # type: ignore[assignment]  # derived: mypy sees an int
    """Frames of the model's input; 1024 adds frames of zeros, as the common AST extractor does."""
    mels: int = Field(default=128, ge=8, le=256)
    """Mel bands."""
    low_hz: float = Field(default=20.0, ge=0.0)
    """Lower edge of the first band."""
    high_hz: float = Field(default=8000.0, le=SAMPLE_RATE / 2)
    """Upper edge of the last band."""
    mean: float = 0.0
    """Mean log-mel of the training windows."""
    std: float = Field(default=0.5, gt=0.0)
    """Standard deviation of the same; a window is normalised to (x - mean) / (2 std)."""
    floor: float = Field(default=MEL_FLOOR, ge=MEL_FLOOR, le=1.0)
    """Smallest mel energy before the logarithm; kaldi's is the default."""

    @model_validator(mode="after")
    def _edges_in_order(self) -> "FrontEnd":
        if self.low_hz >= self.high_hz:
            raise ValueError(f"low_hz {self.low_hz} is not below high_hz {self.high_hz}")
        return self


def quantise(samples: FloatArray) -> FloatArray:
    """Samples (n,) on the grid of 24-bit integers, so that the stored FLAC is exactly what was judged."""
    whole = np.round(np.clip(samples, -1.0, 1.0 - 1.0 / INT24) * INT24).astype(np.float32)
    return whole / np.float32(INT24) + np.float32(0.0)  # an integer has no minus zero


def resample(samples: FloatArray, sample_rate: float, target_rate: float = SAMPLE_RATE) -> FloatArray:
    """Samples (n,) at `sample_rate` Hz to `target_rate` Hz with soxr at high quality."""
    import soxr

    if sample_rate == target_rate:
        return np.asarray(samples, dtype=np.float32)
    return np.asarray(soxr.resample(samples, sample_rate, target_rate, quality="HQ"), dtype=np.float32)


def level(samples: FloatArray, rms: float) -> FloatArray:
    """Remove the mean and scale to the given RMS (0: only the mean).

    Stethoscopes record so quietly that the log floor swallows most bins; levelling also makes the verdict independent
    of the stethoscope's gain. Raises SignalError on empty, constant or non-finite samples.
    """
    if samples.ndim != 1:
        raise SignalError(f"a cycle must be mono, one-dimensional samples; got shape {samples.shape}")
    if samples.size == 0:
        raise SignalError("the cycle is empty (0 samples); check its start and end")
    # float64 accumulators: a minute of quiet float32 samples loses the mean otherwise
    with np.errstate(invalid="ignore"):  # infinity minus infinity is reported below
        centred = samples - samples.mean(dtype=np.float64).astype(np.float32)
        measured = float(np.sqrt(np.mean(np.square(centred, dtype=np.float64))))
    if not np.isfinite(measured):
        raise SignalError("the cycle holds NaN or infinite samples; the recording is damaged")
    # a constant at full scale leaves a rounding residue near 1e-9, far below one 24-bit step (1.2e-7)
    if measured < 1e-8:
        raise SignalError("the cycle is constant (no sound at all); check the microphone and the cable")
    levelled: FloatArray = centred if rms == 0.0 else centred * np.float32(rms / measured)
    return levelled


def cyclic_pad(samples: FloatArray, length: int, seam_samples: int = SEAM_SAMPLES) -> FloatArray:
    """Repeat samples (n,) to exactly `length`, cross-fading each seam over `seam_samples` at equal power.

    A hard seam (`seam_samples` = 0, as published in arXiv 2512.22564) is a click, and a click looks like a crackle.
    The fade overlaps the end of one repeat with the start of the next, so a repeat is n - seam samples long; the first
    repeat starts unfaded. A cycle shorter than two seams fades over half of itself. SignalError for an empty cycle.
    """
    if samples.size == 0:
        raise SignalError("the cycle is empty (0 samples); check its start and end")
    if samples.size >= length:
        return samples[:length]
    seam = min(seam_samples, samples.size // 2)
    period = samples.size - seam
    # sin and cos: the two sides of a seam are unrelated noise, so powers add, not amplitudes
    angle = (np.arange(seam, dtype=np.float32) + 0.5) * np.float32(np.pi / 2 / max(seam, 1))
    repeat = samples[:period].copy()
    repeat[:seam] = samples[:seam] * np.sin(angle) + samples[period:] * np.cos(angle)
    padded = np.resize(repeat, length)
    padded[:period] = samples[:period]
    return padded


def pad(samples: FloatArray, front_end: FrontEnd) -> FloatArray:
    """Fill the window (WINDOW_SAMPLES,) with repeats of samples (n <= WINDOW_SAMPLES,), by the front end's seam."""
    return cyclic_pad(samples, WINDOW_SAMPLES, SEAM_SAMPLES if front_end.seam == "crossfade" else 0)


def repetition(size: int, front_end: FrontEnd) -> tuple[int, int]:
    """Samples from one repeat of a cycle of `size` samples to the next in its window, and of the fade between them.

    WINDOW_SAMPLES and 0 where nothing is repeated.
    """
    if size >= WINDOW_SAMPLES:
        return WINDOW_SAMPLES, 0
    seam = min(SEAM_SAMPLES if front_end.seam == "crossfade" else 0, size // 2)
    return size - seam, seam


def mel_edges(mels: int, low_hz: float, high_hz: float) -> Float64Array:
    """Edges (mels + 2,) of kaldi's triangular filters, in mel."""
    return np.linspace(1127.0 * np.log1p(low_hz / 700.0), 1127.0 * np.log1p(high_hz / 700.0), mels + 2)


def mel_centres(mels: int, low_hz: float, high_hz: float) -> Float64Array:
    """Hz (mels,) at the peaks of the same filters."""
    result: Float64Array = 700.0 * np.expm1(mel_edges(mels, low_hz, high_hz)[1:-1] / 1127.0)
    return result


def heights(hertz: Sequence[float] | Float64Array, front_end: FrontEnd) -> list[float]:
    """Where frequencies in Hz lie from the bottom (0) to the top (1) of a spectrogram."""
    centres = mel_centres(front_end.mels, front_end.low_hz, front_end.high_hz)
    return [float(place) for place in np.interp(hertz, centres, np.linspace(0.0, 1.0, len(centres)))]


def hertz_ticks(front_end: FrontEnd) -> list[tuple[int, float]]:
    """Round frequencies in Hz, and where they lie from the bottom (0) to the top (1) of the picture."""
    centres = mel_centres(front_end.mels, front_end.low_hz, front_end.high_hz)
    marks = [hertz for hertz in ROUND_HZ if centres[0] <= hertz <= centres[-1]]
    return list(zip(marks, heights(marks, front_end), strict=True))


@lru_cache(maxsize=8)
def mel_filters(mels: int, low_hz: float, high_hz: float) -> FloatArray:
    """Kaldi's triangular filters (FFT bins, mels): triangles in mel space, peak 1, no area normalisation."""
    bins = np.fft.rfftfreq(FFT_SAMPLES, 1 / SAMPLE_RATE)
    mel = 1127.0 * np.log1p(bins / 700.0)[:, None]
    edges = mel_edges(mels, low_hz, high_hz)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    filters: FloatArray = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    # kaldi never fills the Nyquist bin
    filters[-1] = 0.0
    return filters


@lru_cache(maxsize=1)
def _hann() -> Float64Array:
    return np.hanning(FRAME_SAMPLES)


def _power_spectrum(frames: Float64Array) -> FloatArray:
    """Power (frames, bins) of frames (frames, FRAME_SAMPLES): mean removed, pre-emphasis, Hann."""
    frames = frames - frames.mean(axis=1, keepdims=True)
    emphasised = np.empty_like(frames)
    np.multiply(frames[:, :-1], -PREEMPHASIS, out=emphasised[:, 1:])
    emphasised[:, 1:] += frames[:, 1:]
    emphasised[:, 0] = frames[:, 0] * (1.0 - PREEMPHASIS)
    emphasised *= _hann()
    spectrum = scipy.fft.rfft(emphasised, FFT_SAMPLES, axis=1).view(np.float64)
    np.square(spectrum, out=spectrum)
    power: FloatArray = (spectrum[:, 0::2] + spectrum[:, 1::2]).astype(np.float32)
    return power


def log_mel(samples: FloatArray, front_end: FrontEnd) -> FloatArray:
    """Kaldi-compatible log-mel energies (frames, mels) of samples (n >= 400,) at 16 kHz, natural log.

    Per frame: remove the mean, pre-emphasis 0.97, symmetric Hann, 512-point power spectrum, triangular filters, log of
    at least the front end's floor. Source: kaldi's compute-fbank-feats without dither, as AST uses it (Gong et al.
    2021).
    """
    # float64 up to the spectrum: in float32 the FFT's rounding of a loud tone fills the empty bands (0.005 off kaldi).
    # Blocks that stay in the cache: all frames at once took four times as long.
    framed = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), FRAME_SAMPLES)[::HOP_SAMPLES]
    filters = mel_filters(front_end.mels, front_end.low_hz, front_end.high_hz)
    energies = np.empty((len(framed), front_end.mels), dtype=np.float32)
    with one_blas_thread():
        for start in range(0, len(framed), BLOCK_FRAMES):
            power = _power_spectrum(framed[start : start + BLOCK_FRAMES])
            np.matmul(power, filters, out=energies[start : start + BLOCK_FRAMES])
    return np.log(np.maximum(energies, np.float32(front_end.floor), out=energies), out=energies)


def pad_frames(log_mels: FloatArray, front_end: FrontEnd) -> FloatArray:
    """Log-mels (FRAMES, mels) and, where the front end has more, frames of zeros at their end: (frames, mels).

    Zeros before normalisation, as transformers' ASTFeatureExtractor adds them: no silence, but bright energy.
    """
    missing = front_end.frames - len(log_mels)
    return np.pad(log_mels, ((0, missing), (0, 0))) if missing else log_mels


def raw_window(samples: FloatArray, front_end: FrontEnd) -> FloatArray:
    """One cycle (n <= WINDOW_SAMPLES,) at 16 kHz to log-mels (FRAMES, mels), not normalised; SignalError as `level`."""
    if samples.size > WINDOW_SAMPLES:
        raise SignalError(
            f"a window holds {WINDOW_SECONDS} s; split the cycle of {samples.size / SAMPLE_RATE:.2f} s first"
        )
    return log_mel(pad(level(samples, front_end.level), front_end), front_end)


def normalise(log_mels: FloatArray, front_end: FrontEnd) -> FloatArray:
    """(x - mean) / (2 std), AST's normalisation (Gong et al. 2021)."""
    return (log_mels - np.float32(front_end.mean)) * np.float32(0.5 / front_end.std)


def window(samples: FloatArray, front_end: FrontEnd) -> FloatArray:
    """One cycle (n <= WINDOW_SAMPLES,) at 16 kHz to the model's input (frames, mels); SignalError as `level`."""
    return normalise(pad_frames(raw_window(samples, front_end), front_end), front_end)


def split(samples: FloatArray) -> list[FloatArray]:
    """Cut samples (n,) longer than 8 s into windows of equal stride that overlap by at least half; else [samples]."""
    if samples.size <= WINDOW_SAMPLES:
        return [samples]
    count = 1 + -(-(samples.size - WINDOW_SAMPLES) // (WINDOW_SAMPLES // 2))
    starts = np.linspace(0, samples.size - WINDOW_SAMPLES, count).round().astype(int)
    return [samples[start : start + WINDOW_SAMPLES] for start in starts]


def windows(samples: FloatArray, front_end: FrontEnd) -> FloatArray:
    """One cycle of any length to its windows (count, frames, mels); the most abnormal of them decides."""
    return np.stack([window(part, front_end) for part in split(samples)])
