"""A stethoscope is measured (noise, band, loudest sound), and compared with its passport when it is plugged in."""

import glob
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.signal import welch

from device.breath.quality import FULL_SCALE, SILENCE_DBFS
from device.capture.blocks import SILENCE, Block
from device.signal import SAMPLE_RATE, Float64Array, FloatArray, exact_div
from firmware_config.passports import (
    Match,
    Measured,
    Passport,
    PassportError,
    Words,
    new_file,
    read_passport,
    usb_of,
    write_passport,
)

if TYPE_CHECKING:
    from device.capture.microphone import MicrophoneSource

FRAME: Final = exact_div(SAMPLE_RATE, 20)  # 50 ms
BREATH_FROM_HZ: Final = 100.0  # the heart is below
ROLLOFF_SHARE: Final = 0.95
PLUG_IN_SECONDS: Final = 15.0  # of sound that are compared with the passport
PATIENCE: Final = 3.0  # times the seconds of a step, before a stethoscope without sound is given up
# What is drift: more than two chests or two rooms differ
QUIETER_DB: Final = 6.0  # below its own noise: no room is more silent than the amplifier
LOUDER_DB: Final = 25.0  # above the level on another chest
NARROWER: Final = 0.5  # share of the roll-off frequency
LEAST_BREATH_DB: Final = 3.0  # of a chest above the noise, to make a passport
CLIPPED_SAMPLES: Final = 3  # as loud as the loudest one: a ceiling


def frame_levels(samples: FloatArray) -> Float64Array:
    """Levels in dBFS of frames of 50 ms; samples (n,) with at least one frame."""
    frames = samples[: samples.size - samples.size % FRAME].reshape(-1, FRAME)
    rms = np.std(frames, axis=1, dtype=np.float64)
    levels: Float64Array = np.maximum(SILENCE_DBFS, 20.0 * np.log10(np.maximum(rms, 1e-12)))
    return levels


def rolloff_hz(samples: FloatArray) -> float:
    """The frequency below which 95 % of the power from 100 Hz on lies; samples (n,) at 16 kHz."""
    frequencies, power = welch(samples, SAMPLE_RATE, nperseg=1024)
    power = np.where(frequencies >= BREATH_FROM_HZ, power, 0.0)
    return float(frequencies[np.searchsorted(np.cumsum(power), ROLLOFF_SHARE * power.sum())])


def drift(known: Measured, samples: FloatArray) -> list[str]:
    """How a stethoscope differs from its own passport, one phrase each; samples (n,) at 16 kHz, without gain."""
    levels = frame_levels(samples)
    quietest, level = float(np.percentile(levels, 10)), float(np.median(levels))
    when = f"when its passport was made ({known.made_at[:10]})"
    if samples.min() == samples.max():
        return [f"a dead channel: complete silence, {known.noise_dbfs:.0f} dBFS {when}; look at cable and plug"]
    if level < known.noise_dbfs - QUIETER_DB:
        return [
            f"another gain, or a dead channel: {level:.0f} dBFS, its noise alone was {known.noise_dbfs:.0f} dBFS "
            f"{when}; turn the gain up, or look at cable and capsule"
        ]
    found = []
    if quietest > known.chest_dbfs + LOUDER_DB:
        found.append(f"another gain: {level:.0f} dBFS, {known.chest_dbfs:.0f} dBFS {when}; turn the gain down")
    # a level near the noise says nothing about the band of breath
    heard = level > known.noise_dbfs + LEAST_BREATH_DB
    if heard and (rolloff := rolloff_hz(samples)) < NARROWER * known.rolloff_hz:
        found.append(
            f"a narrower band: up to {rolloff:.0f} Hz, {known.rolloff_hz:.0f} Hz {when}; a torn or loose membrane, or "
            "another filter"
        )
    return found


class PlugInTest:
    """Collects the first sound after a stethoscope is plugged in, and compares it with its passport once."""

    def __init__(self, known: Measured, gain_db: float) -> None:
        self._known, self._gain = known, np.float32(10.0 ** (-gain_db / 20.0))
        self._samples: list[FloatArray] = []
        self._missing = round(PLUG_IN_SECONDS * SAMPLE_RATE)

    def look(self, block: Block) -> Iterator[Block]:
        """A block with words for each drift, once there is enough sound."""
        if block.note and block.kind == "back":
            self._samples, self._missing = [], round(PLUG_IN_SECONDS * SAMPLE_RATE)
        if self._missing <= 0 or not block.samples.size:
            return
        self._samples.append(block.samples)
        self._missing -= block.samples.size
        if self._missing <= 0:
            for words in drift(self._known, np.concatenate(self._samples) * self._gain):
                yield Block(SILENCE, 0, "drift", words)
            self._samples = []


@dataclass(frozen=True)
class Step:
    """One step of the self-test."""

    what: str
    """What to do with the stethoscope."""
    share: float
    """Of the time of the self-test."""


STEPS: Final = (
    Step("lay the stethoscope down, membrane up, and be quiet", 0.2),
    Step("hold it on a healthy chest, and breathe deeply through the open mouth", 0.6),
    Step("tap the membrane with a finger, ten times, harder and harder", 0.2),
)


def record(
    source: "MicrophoneSource", seconds: float, go_on: Callable[[Block], bool] = lambda _block: True
) -> FloatArray:
    """So many seconds of sound (n,) at 16 kHz without gain, from the present on; empty when `go_on` says no.

    PassportError when the sound stops.
    """
    wanted, pieces, until = round(seconds * SAMPLE_RATE), [SILENCE], time.monotonic() + PATIENCE * seconds
    source.gain_db = 0.0
    with closing(source.blocks()) as blocks:
        for block in blocks:
            if not go_on(block):
                return SILENCE
            pieces.append(block.samples)
            if block.note and block.kind in ("lost", "gap", "overflow"):
                raise PassportError(f"{source.name}: {block.note}; record it again")
            wanted -= block.samples.size
            if wanted <= 0 or time.monotonic() > until:
                break
    if wanted > 0:
        raise PassportError(f"{source.name} gives no sound: plug it in again, and record it again")
    return np.concatenate(pieces)


class SelfTest:
    """A self-test as it is made, step by step: the command and the console record each step, and give it the sound."""

    steps: Final = STEPS

    def __init__(self, name: str, *, replace: bool = False) -> None:
        """PassportError as `new_file`; with `replace` the stethoscope is compared with its former passport."""
        self.name, self.file = name, new_file(name, replace=replace)
        self.device = ""
        self.facts: list[str] = []
        """What each step has shown, in words."""
        self._sounds: list[FloatArray] = []

    @property
    def step(self) -> Step | None:
        """The next one; None when all are done."""
        return self.steps[len(self._sounds)] if len(self._sounds) < len(self.steps) else None

    def add(self, device: str, sound: FloatArray) -> None:
        """Take the next step's sound (n,); PassportError when it shows nothing: record the step again."""
        number = len(self._sounds)
        if number == 0:
            fact = f"noise {noise_dbfs(sound, device):.1f} dBFS"
        elif number == 1:
            level, rolloff = chest_of(sound, noise_dbfs(self._sounds[0], device), device)
            fact = f"on a chest {level:.1f} dBFS, breath up to {rolloff:.0f} Hz"
        else:
            ceiling = clipping_dbfs(sound)
            fact = "clipping not reached" if ceiling is None else f"clipping at {ceiling:.1f} dBFS"
        self.device = device
        self._sounds.append(sound)
        self.facts.append(fact)

    def passport(self) -> Passport:
        """The passport that would be written, once all steps are done."""
        return self_test_passport(self.name, self.device, self._sounds, self.file)

    def drift(self) -> list[str]:
        """How the stethoscope differs from the passport that this one replaces, one phrase each."""
        known = read_passport(self.file).passport.measured if self.file.exists() else None
        return [] if known is None else drift(known, self._sounds[1])

    def save(self) -> Measured:
        """Write the passport; FileError when it cannot be written."""
        made = self.passport()
        write_passport(self.file, made)
        assert made.measured is not None
        return made.measured


def self_test_passport(name: str, device: str, sounds: Sequence[FloatArray], file: Path) -> Passport:
    """The passport from the sound (n,) of each step, with gain and calibrations of `file`; errors as `measured`."""
    made_at = datetime.now().astimezone().isoformat(timespec="seconds")
    quiet, chest, taps = sounds
    usb, before = usb_of(device), read_passport(file).passport if file.exists() else None
    return Passport(
        name=name,
        connection=Words(text=f"the input {device}", source="'respsam-device passport new' on this device"),
        match=Match(usb=(usb,) if usb else (), names=(glob.escape(device),)),
        measured=measured(quiet, chest, taps, device, made_at),
        gain_db=before.gain_db if before else 0.0,
        calibrations=before.calibrations if before else (),
    )


def measured(quiet: FloatArray, chest: FloatArray, taps: FloatArray, device: str, made_at: str) -> Measured:
    """The self-test's result from the sound (n,) of its steps; PassportError when a step shows nothing."""
    noise = noise_dbfs(quiet, device)
    level, rolloff = chest_of(chest, noise, device)
    return Measured(
        made_at=made_at,
        device=device,
        noise_dbfs=round(noise, 1),
        chest_dbfs=round(level, 1),
        rolloff_hz=round(rolloff),
        clipping_dbfs=clipping_dbfs(taps),
    )


def noise_dbfs(quiet: FloatArray, device: str) -> float:
    """Level of the quietest tenth of sound (n,) away from a chest; PassportError for complete silence."""
    if quiet.min() == quiet.max():
        raise PassportError(
            f"{device}: complete silence: it is muted, or nothing is plugged into it; nothing is written"
        )
    return float(np.percentile(frame_levels(quiet), 10))


def chest_of(chest: FloatArray, noise: float, device: str) -> tuple[float, float]:
    """Median level in dBFS and roll-off in Hz of sound (n,) on a chest; PassportError when it is hardly above noise."""
    level = float(np.median(frame_levels(chest)))
    if level < noise + LEAST_BREATH_DB:
        raise PassportError(
            f"{device}: no breath: {level:.0f} dBFS on the chest, {noise:.0f} dBFS off it; hold it on skin, in a quiet "
            "room; nothing is written"
        )
    return level, rolloff_hz(chest)


def clipping_dbfs(taps: FloatArray) -> float | None:
    """The loudest level of taps (n,); None when they did not reach a ceiling."""
    loudest = float(np.abs(taps).max())
    if np.count_nonzero(np.abs(taps) >= min(loudest, FULL_SCALE)) < CLIPPED_SAMPLES:
        return None
    return round(max(SILENCE_DBFS, min(0.0, 20 * float(np.log10(max(loudest, 1e-8))))), 1)
