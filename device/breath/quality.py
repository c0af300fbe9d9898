"""Is a cycle gradable? Measured on the samples as recorded, before levelling hides how quiet they are.

Wheezes resemble speech and crackles resemble knocks; each limit refuses few *abnormal* good recordings
(docs/accuracy.md). Without a segmenter's clarity and SNR those two limits do not apply.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from device.signal import SAMPLE_RATE, Float64Array, FloatArray, exact_div
from firmware_config.settings import QualitySettings

FULL_SCALE: Final = 0.999
SILENCE_DBFS: Final = -160.0
QUALITY_FRAME_SAMPLES: Final = 1024  # 64 ms: two periods of the lowest voice
HEART_HZ, BREATH_HZ, AIR_HZ = (20, 100), (100, 1000), (1000, 4000)  # hardly anything of a chest reaches the last one
PITCH_HZ: Final = (80, 400)
VOICE_HZ: Final = (80, 4000)
PERIODIC: Final = 0.6  # autocorrelation of a voiced frame at its pitch
VOICE_DB: Final = (
    -15.0
)  # and its power in the air's band relative to the breath's: a wheeze through a chest has much less
MAINS_HZ: Final = (50, 60)
MAINS_HARMONICS: Final = 5
MAINS_FUNDAMENTAL: Final = 0.1  # of a hum's power, at least: a steady wheeze at 200 Hz is no hum
MAINS_SAMPLES: Final = exact_div(SAMPLE_RATE, 1000)  # averaged: 1 kHz is enough for hum
TINY_POWER: Final = 1e-12


@dataclass(frozen=True)
class QualityMeasures:
    """Measures of the samples of one cycle."""

    level_dbfs: float
    """RMS about the mean, dB of full scale."""
    clipped_share: float
    """Share of samples at full scale."""
    heart_db: float
    """Power of 20-100 Hz over that of 100-1000 Hz."""
    knock_db: float
    """Loudest frame over the median frame at 1-4 kHz: bursts there come from the membrane or the room."""
    voice_share: float
    """Share of frames that are periodic and bright like a voice."""
    hum_share: float
    """Share of power at the mains' frequency and its harmonics."""


@dataclass(frozen=True)
class Quality(QualityMeasures):
    """The measures, and the reason why the cycle is not gradable, with what to do about it; '' if it is gradable."""

    reason: str = ""

    @property
    def gradable(self) -> bool:
        """Whether the model may judge it."""
        return not self.reason


def level_dbfs(samples: FloatArray) -> float:
    """RMS of samples (n,) about their mean, dB of full scale; -160 for silence."""
    rms = float(np.std(samples, dtype=np.float64)) if samples.size else 0.0
    return max(SILENCE_DBFS, 20.0 * float(np.log10(max(rms, 1e-12))))


def _decibels(power: npt.ArrayLike) -> Float64Array:
    return 10.0 * np.log10(np.asarray(power, np.float64) + TINY_POWER)


def _bins(band_hz: tuple[int, int]) -> slice:
    return slice(*(round(hertz * QUALITY_FRAME_SAMPLES / SAMPLE_RATE) for hertz in band_hz))


def measure(samples: FloatArray) -> QualityMeasures:
    """Measure one cycle (n,); measures that need a spectrum are 0 for less than a frame."""
    loudness = level_dbfs(samples)
    clipped = float(np.mean(np.abs(samples) >= FULL_SCALE)) if samples.size else 0.0
    if samples.size < QUALITY_FRAME_SAMPLES or loudness <= SILENCE_DBFS:
        return QualityMeasures(loudness, clipped, 0.0, 0.0, 0.0, 0.0)
    # at RMS 1 the limits below do not depend on the gain
    levelled = (samples - samples.mean(dtype=np.float64)) / 10 ** (loudness / 20)
    frames = np.lib.stride_tricks.sliding_window_view(levelled, QUALITY_FRAME_SAMPLES)[:: QUALITY_FRAME_SAMPLES // 2]
    spectrum = np.fft.rfft(frames * np.hanning(QUALITY_FRAME_SAMPLES), axis=1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    heart, breath, air = (power[:, _bins(band)].sum(axis=1) for band in (HEART_HZ, BREATH_HZ, AIR_HZ))
    in_air = _decibels(air)
    return QualityMeasures(
        loudness,
        clipped,
        float(_decibels(heart.sum()) - _decibels(breath.sum())),
        float(in_air.max() - np.median(in_air)),
        # only bright frames: the autocorrelation is expensive, and most cycles have none
        float(np.sum(periodicity(power[in_air - _decibels(breath) > VOICE_DB]) > PERIODIC)) / len(power),
        hum_share(levelled),
    )


def periodicity(power: Float64Array) -> Float64Array:
    """Normalised autocorrelation (frames,) at the best pitch of 80-400 Hz, of power spectra (frames, bins)."""
    if not len(power):
        return np.empty(0)
    low, high = (round(SAMPLE_RATE / hertz) for hertz in reversed(PITCH_HZ))
    spoken = np.zeros_like(power)
    spoken[:, _bins(VOICE_HZ)] = power[:, _bins(VOICE_HZ)]  # the heart's rumble would look like a pitch
    correlation = np.fft.irfft(spoken, axis=1)
    peaks: Float64Array = correlation[:, low : high + 1].max(axis=1) / (correlation[:, 0] + TINY_POWER)
    return peaks


@lru_cache(maxsize=1)
def _mains() -> Float64Array:
    return np.outer(MAINS_HZ, np.arange(1.0, MAINS_HARMONICS + 1))


def hum_share(levelled: Float64Array) -> float:
    """Share of power of samples (n,) of RMS 1 in tones at 50 or 60 Hz and harmonics; 0 without the fundamental."""
    slow = levelled[: levelled.size // MAINS_SAMPLES * MAINS_SAMPLES].reshape(-1, MAINS_SAMPLES).mean(axis=1)
    seconds = np.arange(slow.size) * MAINS_SAMPLES / SAMPLE_RATE
    tones = np.exp(2j * np.pi * _mains()[..., None] * seconds)
    lines = 2.0 * np.square(np.abs(tones @ slow / slow.size))
    shares = lines.sum(axis=1)
    return float(np.where(lines[:, 0] >= MAINS_FUNDAMENTAL * shares, shares, 0.0).max())


def assess(
    samples: FloatArray, settings: QualitySettings, clarity: float | None = None, snr_db: float | None = None
) -> Quality:
    """Quality of one cycle (n,); `clarity` and `snr_db` come from its `Segment`, None means that they do not count."""
    measured = measure(samples)
    return Quality(**vars(measured), reason=reason(measured, clarity, snr_db, settings))


def reason(measured: QualityMeasures, clarity: float | None, snr_db: float | None, settings: QualitySettings) -> str:
    """The first reason that applies, overload before its consequences; '' if none does."""
    # silence cannot be levelled, whatever the settings allow
    if measured.level_dbfs < settings.minimum_level_dbfs or measured.level_dbfs <= SILENCE_DBFS:
        return "too quiet: press the diaphragm flat on the skin and check the cable"
    if measured.clipped_share > settings.maximum_clipped_share:
        return "overloaded: turn the gain down or hold the stethoscope still"
    if measured.hum_share > settings.maximum_hum_share:
        return "mains hum: move away from chargers and cables, check the plug"
    if measured.voice_share > settings.maximum_voice_share:
        return "too much talking: ask for silence and listen again"
    if measured.knock_db > settings.maximum_knock_db:
        return "rubbing or knocking: hold the diaphragm still, off clothes and hair"
    if clarity is not None and clarity < settings.minimum_clarity:
        # not a reason by itself: good recordings of other stethoscopes rumble as much
        if measured.heart_db > settings.maximum_heart_db:
            return "the heart drowns the breath: move away from it"
        return "no breathing heard clearly: press the diaphragm flat and ask for deep breaths"
    if snr_db is not None and snr_db < settings.minimum_snr_db:
        return "breath hardly louder than the noise: make the room quiet, press the diaphragm flat"
    return ""
