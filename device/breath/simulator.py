"""A small physically motivated auscultation: breath noise, crackles, wheezes, heart, contact noise, with ground truth.

For the demo, the bundle's self-test and the tests; nothing is trained on it alone.
Amplitudes are relative to the RMS of inspiratory noise at its loudest. Defaults are checked against SPRSound: spectrum
of normal events, crackle crest (about 11 times the RMS between 150 Hz and 2 kHz), recorded level.
Definitions: Sovijarvi et al., Eur Respir Rev 2000, 10(77), 597-610 (CORSA: crackle two-cycle duration below and above
10 ms; wheeze at least 100 ms); Reichert et al., Clin Med Circ Respirat Pulm Med 2008, 2, 45-58 (fine about 650 Hz and
5 ms, coarse about 350 Hz and 15 ms).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.signal

from device.labels import LABELS, Label
from device.signal import Float64Array, FloatArray
from firmware_config.errors import RespSAMError

LEVEL_DBFS: Final = -40.0
MICROPHONE_DB: Final = -45.0  # white noise relative to the chest; in SPRSound this is the 16-bit quantisation
STETHOSCOPE_HZ: Final = (
    500.0  # fourth-order roll-off of chest wall and pick-up; without it 600 Hz is 12 dB above SPRSound
)
FINE_SECONDS: Final = (0.0045, 0.0055)  # two-cycle durations
COARSE_SECONDS: Final = (0.010, 0.015)
FIRST_DEFLECTION: Final = 0.14  # of the two-cycle duration: 0.7 of 5 ms, 1.5 of 10.7 ms


class SimulatorError(RespSAMError):
    """An auscultation that cannot be simulated: a length, rate, share or label out of range."""


@dataclass(frozen=True)
class Breath:
    """Ground truth of one breath cycle, in seconds from the start of the auscultation."""

    onset_seconds: float
    expiration_seconds: float
    """Where inspiration ends and expiration begins."""
    end_seconds: float
    label: Label

    def later(self, seconds: float) -> "Breath":
        """The same breath, later by `seconds`."""
        onset, expiration, end = self.onset_seconds, self.expiration_seconds, self.end_seconds
        return Breath(onset + seconds, expiration + seconds, end + seconds, self.label)


@dataclass(frozen=True)
class Simulated:
    """The simulated recording, and the truth about it."""

    samples: FloatArray
    """float32 (n,), full scale 1.0."""
    sample_rate: int
    """Hz."""
    breaths: tuple[Breath, ...]
    """Contiguous, from 0 to the end."""
    contacts: tuple[tuple[float, float], ...]
    """Spans of contact noise in seconds, in order, apart from each other."""


def simulate(
    seed: int,
    seconds: float,
    *,
    sample_rate: int = 16_000,
    breaths_per_minute: float = 20.0,
    abnormal_share: float = 0.3,
    heart_rate: float | None = 90.0,
    contacts_per_minute: float = 0.0,
    level_dbfs: float = LEVEL_DBFS,
) -> Simulated:
    """Simulate an auscultation; the same arguments give the same samples, bit for bit.

    Whole breaths fill the time (their number is rounded, at least one), and `abnormal_share` of them, rounded, are
    abnormal, with crackle, wheeze and both in turn. Heart (None for none) and contact noise leave the breaths as they
    are; the heart counts in the level. `level_dbfs` is the RMS without contact noise; samples over full scale are
    clipped. Raises SimulatorError naming the argument that is out of range.
    """
    _within("breaths_per_minute", breaths_per_minute, 4, 120)
    _within("abnormal_share", abnormal_share, 0, 1)
    _within("contacts_per_minute", contacts_per_minute, 0, 60)
    _within("level_dbfs", level_dbfs, -90, 0)
    if heart_rate is not None:
        _within("heart_rate", heart_rate, 20, 300)
    plan_rng, chest_rng, heart_rng, contact_rng = _generators(seed, seconds, sample_rate)
    breaths = _plan(plan_rng, seconds, breaths_per_minute, abnormal_share)
    chest = _chest(chest_rng, breaths, round(seconds * sample_rate), sample_rate)
    if heart_rate is not None:
        _add_heart(heart_rng, chest, heart_rate, sample_rate)
    recorded = _recorded(chest_rng, chest, level_dbfs, sample_rate)
    contacts = _contact_spans(contact_rng, seconds, contacts_per_minute)
    for start, end in contacts:
        first, stop = round(start * sample_rate), round(end * sample_rate)
        recorded[first:stop] += 10 ** (level_dbfs / 20) * _rub(contact_rng, stop - first, sample_rate)
    return Simulated(_float32(recorded), sample_rate, breaths, contacts)


def breath(seed: int, label: Label, seconds: float = 3.0, *, sample_rate: int = 16_000) -> FloatArray:
    """One breath cycle without heart or contact noise: float32 (n,), RMS -40 dBFS; SimulatorError as `simulate`."""
    if label not in LABELS:
        raise SimulatorError(f"label is {label!r} in a simulated breath: take one of {', '.join(LABELS)}")
    plan_rng, chest_rng, _, _ = _generators(seed, seconds, sample_rate)
    cycle = Breath(0.0, seconds * plan_rng.uniform(0.33, 0.4), seconds, label)
    chest = _chest(chest_rng, (cycle,), round(seconds * sample_rate), sample_rate)
    return _float32(_recorded(chest_rng, chest, LEVEL_DBFS, sample_rate))


def crackle(two_cycle_seconds: float, sample_rate: int) -> Float64Array:
    """One crackle: two decaying cycles, each half-cycle longer than the one before; peak 1 (n,).

    The waveform of Kiyokawa et al., Chest 2001, 119(6), 1886-1892.
    """
    time = np.arange(round(two_cycle_seconds * sample_rate)) / (two_cycle_seconds * sample_rate)
    carrier = np.sin(4 * np.pi * time ** (np.log(0.25) / np.log(FIRST_DEFLECTION)))
    wave = carrier * 0.5 * (1 + np.cos(2 * np.pi * (np.sqrt(time) - 0.5)))
    return np.asarray(wave / np.abs(wave).max(), np.float64)


def wheeze(rng: np.random.Generator, seconds: float, sample_rate: int) -> Float64Array:
    """One wheeze: a fundamental of 200-600 Hz that glides slowly, and two harmonics, faded; (n,), peak about 1."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    glide = rng.uniform(-0.12, 0.12) * (time / seconds - 0.5)
    vibrato = 0.01 * np.sin(2 * np.pi * rng.uniform(3, 6) * time)
    pitch = 200 * 3 ** rng.random() * (1 + glide + vibrato)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate + rng.uniform(0, 2 * np.pi)
    tone = np.sin(phase) + rng.uniform(0.2, 0.45) * np.sin(2 * phase) + rng.uniform(0.05, 0.15) * np.sin(3 * phase)
    return np.asarray(tone * scipy.signal.windows.tukey(len(time), 0.4), np.float64)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise SimulatorError(f"{name} is {value} in a simulated auscultation: take a value from {low} to {high}")


def _generators(seed: int, seconds: float, sample_rate: int) -> list[np.random.Generator]:
    """One independent stream for the plan, chest, heart and contacts, so that none of them moves another."""
    _within("seed", seed, 0, 2**63 - 1)
    _within("seconds", seconds, 0.5, 3600)
    _within("sample_rate", sample_rate, 4_000, 192_000)
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)]


def _float32(samples: Float64Array) -> FloatArray:
    return np.clip(samples, -1.0, 1.0).astype(np.float32)


def _plan(rng: np.random.Generator, seconds: float, per_minute: float, abnormal_share: float) -> tuple[Breath, ...]:
    count = max(1, round(seconds * per_minute / 60))
    periods = np.exp(rng.normal(0, 0.1, count))
    bounds = [float(bound) for bound in np.cumsum([0, *periods]) * (seconds / periods.sum())]
    bounds[-1] = float(seconds)
    labels: list[Label] = ["normal"] * count
    for turn, place in enumerate(rng.permutation(count)[: round(abnormal_share * count)]):
        labels[place] = LABELS[1 + turn % 3]
    inspirations = rng.uniform(0.33, 0.4, count)  # I:E of 1:1.5 to 1:2, the pause counted in
    return tuple(
        Breath(onset, onset + float(share) * (end - onset), end, label)
        for onset, end, share, label in zip(bounds[:-1], bounds[1:], inspirations, labels, strict=True)
    )


def _band_noise(white: Float64Array, low_hz: float, high_hz: float, sample_rate: int) -> Float64Array:
    """White noise with 12 dB an octave off both sides of the band; RMS 1."""
    sections = scipy.signal.butter(2, (low_hz, high_hz), "bandpass", fs=sample_rate, output="sos")
    shaped = scipy.signal.sosfilt(sections, white)
    return np.asarray(shaped / np.sqrt(np.mean(shaped**2)), np.float64)


def _chest(rng: np.random.Generator, breaths: tuple[Breath, ...], count: int, sample_rate: int) -> Float64Array:
    """Vesicular noise of each phase, and what the label adds to it, before chest wall and stethoscope (count,)."""
    white = rng.standard_normal(count)
    phases = np.zeros((2, count))
    added = np.zeros(count)
    for cycle in breaths:
        onset, turn, end = (
            round(at * sample_rate) for at in (cycle.onset_seconds, cycle.expiration_seconds, cycle.end_seconds)
        )
        amplitude = np.exp(rng.normal(0, 0.12))
        phases[0, onset:turn] = amplitude * np.sin(np.pi * np.linspace(0, 1, turn - onset))
        # Expiration peaks early, fades, and is over before the cycle is: the pause.
        filtered = round(rng.uniform(0.7, 0.85) * (end - turn))
        phases[1, turn : turn + filtered] = 0.45 * amplitude * np.sin(np.pi * np.linspace(0, 1, filtered) ** 0.6)
        if cycle.label in ("crackle", "both"):
            for at, wave in _crackles(rng, cycle, sample_rate):
                _add(added, at, amplitude * wave, sample_rate)
        if cycle.label in ("wheeze", "both"):
            for at, wave in _wheezes(rng, cycle, sample_rate):
                _add(added, at, amplitude * wave, sample_rate)
    inspiration = _band_noise(white, 100, 300, sample_rate)
    expiration = _band_noise(white, 100, 220, sample_rate)
    return np.asarray(phases[0] * inspiration + phases[1] * expiration + added, np.float64)


def _crackles(rng: np.random.Generator, cycle: Breath, sample_rate: int) -> Iterator[tuple[float, Float64Array]]:
    """Fine crackles late in inspiration, or coarse ones early in both phases: start in seconds, waveform."""
    inspiration = cycle.expiration_seconds - cycle.onset_seconds
    expiration = cycle.end_seconds - cycle.expiration_seconds
    if rng.random() < 0.5:
        number, durations = int(rng.integers(8, 21)), FINE_SECONDS
        starts = cycle.onset_seconds + inspiration * (0.5 + 0.48 * _evenly(rng, number))
    else:
        number, durations = int(rng.integers(4, 9)), COARSE_SECONDS
        early = cycle.onset_seconds + inspiration * (0.08 + 0.4 * _evenly(rng, number - number // 2))
        starts = np.append(early, cycle.expiration_seconds + expiration * (0.05 + 0.45 * _evenly(rng, number // 2)))
    for at in starts:
        yield float(at), rng.uniform(6, 12) * crackle(rng.uniform(*durations), sample_rate)


def _evenly(rng: np.random.Generator, number: int) -> Float64Array:
    """Numbers in 0..1, one in each of as many equal parts, so that crackles rarely fall on each other."""
    return np.asarray((np.arange(number) + rng.random(number)) / number, np.float64)


def _wheezes(rng: np.random.Generator, cycle: Breath, sample_rate: int) -> Iterator[tuple[float, Float64Array]]:
    """A wheeze in expiration, in three cycles of ten a weaker one in inspiration too: start in seconds, waveform."""
    inspiration = cycle.expiration_seconds - cycle.onset_seconds
    expiration = cycle.end_seconds - cycle.expiration_seconds
    seconds = min(rng.uniform(0.4, 1.0), 0.8 * expiration)
    yield cycle.expiration_seconds + 0.05 * expiration, rng.uniform(1.5, 3) * wheeze(rng, seconds, sample_rate)
    if rng.random() < 0.3:
        seconds = min(rng.uniform(0.4, 0.7), 0.8 * inspiration)
        yield cycle.onset_seconds + 0.15 * inspiration, rng.uniform(1, 2) * wheeze(rng, seconds, sample_rate)


def _add(samples: Float64Array, at_seconds: float, wave: Float64Array, sample_rate: int) -> None:
    first = round(at_seconds * sample_rate)
    room = len(samples) - first
    samples[first : first + len(wave)] += wave[: max(room, 0)]


def _add_heart(rng: np.random.Generator, chest: Float64Array, per_minute: float, sample_rate: int) -> None:
    """S1 and S2 as damped bursts of 40-75 Hz; the time between them follows the beat's length (Bazett)."""
    first_hz, second_hz, strength = rng.uniform(40, 55), rng.uniform(55, 75), rng.uniform(0.8, 1.5)
    beat = 60 / per_minute
    at, end = rng.uniform(0, beat), len(chest) / sample_rate
    while at < end:
        for start, hertz, decay, gain in ((at, first_hz, 0.02, 1.0), (at + 0.32 * beat**0.5, second_hz, 0.014, 0.7)):
            time = np.arange(round(10 * decay * sample_rate)) / sample_rate
            burst = time / decay * np.exp(1 - time / decay) * np.sin(2 * np.pi * hertz * time)
            _add(chest, start, strength * gain * rng.uniform(0.85, 1.15) * burst, sample_rate)
        at += beat * float(np.exp(rng.normal(0, 0.03)))


def _recorded(rng: np.random.Generator, chest: Float64Array, level_dbfs: float, sample_rate: int) -> Float64Array:
    """Chest wall, stethoscope and microphone: roll-off, level, and the microphone's own noise."""
    sections = scipy.signal.butter(4, STETHOSCOPE_HZ, fs=sample_rate, output="sos")
    filtered = scipy.signal.sosfilt(sections, chest)
    filtered /= np.sqrt(np.mean(filtered**2))
    noise = 10 ** (MICROPHONE_DB / 20) * rng.standard_normal(len(chest))
    return np.asarray(10 ** (level_dbfs / 20) * (filtered + noise), np.float64)


def _contact_spans(rng: np.random.Generator, seconds: float, per_minute: float) -> tuple[tuple[float, float], ...]:
    """As many spans of 0.2-0.8 s as the rate asks for, each within its own equal part of the time."""
    count = round(seconds * per_minute / 60)
    slot = seconds / max(count, 1)
    lengths = np.minimum(rng.uniform(0.2, 0.8, count), 0.8 * slot)
    starts = slot * np.arange(count) + rng.random(count) * (slot - lengths)
    return tuple((float(start), float(start + length)) for start, length in zip(starts, lengths, strict=True))


def _rub(rng: np.random.Generator, count: int, sample_rate: int) -> Float64Array:
    """A membrane rubbing on skin or cloth: noise from 15 Hz up, coming and going, about 20 dB above the chest."""
    noise = _band_noise(rng.standard_normal(count), 15, 150, sample_rate) + 0.1 * rng.standard_normal(count)
    strokes = np.abs(np.sin(np.pi * rng.uniform(4, 9) * np.arange(count) / sample_rate))
    return np.asarray(rng.uniform(10, 25) * strokes * scipy.signal.windows.tukey(count, 0.3) * noise, np.float64)
