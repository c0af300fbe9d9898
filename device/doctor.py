"""Checks of this device, in the order of the sound: microphone, bundle, store, clock, heat, power and profile."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from device.breath.quality import level_dbfs
from device.capture.process import CaptureError, Device, find_device, input_devices
from firmware_config.board import ROOT, BoardError, board_name, check_board, power_mode, read_text, shortcomings
from firmware_config.command_line import counted
from firmware_config.errors import RespSAMError
from firmware_config.passports import recognise
from firmware_config.settings import (
    AudioSettings,
    BoardSettings,
    BundleSettings,
    Settings,
    SettingsError,
    StoreSettings,
)

if TYPE_CHECKING:
    from device.model.classifier import Classifier

LISTENING_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 6.0  # to receive that second of sound
FREE_BYTES: Final = (50e6, 1e9)  # less than the first fails, less than the second is a warning
HOT_CELSIUS: Final = 85.0  # a Jetson slows down at about 97
BUILT_IN_YEAR: Final = 2025  # an earlier clock was never set
LOW_BATTERY_PERCENT: Final = 20
TIMED_BREATHS: Final = 5


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    state: Literal["ok", "warning", "FAIL"]
    found: str
    """What was found, and what to do if it is not ok."""

    def as_json(self) -> dict[str, str]:
        """One object of `doctor --json`."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.state:<7}  {self.check:<11}  {self.found}"


def device_line(device: Device) -> str:
    """An input in one line."""
    default = "  (default)" if device["default"] else ""
    channels = counted(device["channels"], "channel")
    return f"{device['name']}  {channels}, {device['sample_rate']} Hz, {device['host_api']}{default}"


def examine(settings: Settings, microphone: bool = True) -> Iterator[Finding]:
    """All checks; none of them raises. Without `microphone` it leaves that alone, because a session listens to it."""
    if microphone:
        yield from _microphone(settings)
    yield _access_to_sound()
    yield from _bundle(settings.bundle, settings.board.real_time_factor)
    yield from _store(settings.store)
    yield from broker(settings)
    yield _clock()
    yield from board()
    yield from profile(settings.board)


def _microphone(settings: Settings) -> Iterator[Finding]:
    check, audio = "audio stack", settings.audio
    try:
        devices = input_devices()
        hosts = ", ".join(sorted({device["host_api"] for device in devices})) or "no host"
        yield Finding(check, "ok", f"PortAudio answers ({hosts})")
        check = "microphone"
        found = find_device(devices, audio.device)
        yield Finding(check, "ok", device_line(found))
        yield _passport(found["name"], settings.audio)
        check = "sound"
        yield _sound(settings)
    except CaptureError as error:
        yield Finding(check, "FAIL", str(error))


def _passport(device: str, settings: AudioSettings) -> Finding:
    try:
        found = recognise(device, settings.passport)
    except RespSAMError as error:
        return Finding("passport", "FAIL", str(error))
    if found is None:
        return Finding("passport", "ok", "none; 'respsam-device passport new' makes one and finds later drift")
    calibrations = found.passport.calibrations
    return Finding(
        "passport",
        "ok",
        f"{found.passport.name} ({found.key}), " + (calibrations[-1].name if calibrations else "not calibrated"),
    )


def _sound(settings: Settings) -> Finding:
    """Listen for one second."""
    from device.capture.blocks import SILENCE
    from device.capture.microphone import MicrophoneSource
    from device.signal import SAMPLE_RATE

    source, samples, problems = MicrophoneSource(settings.audio), SILENCE, list[str]()
    until = time.monotonic() + TIMEOUT_SECONDS
    with closing(source.blocks()) as blocks:
        for block in blocks:
            samples = np.concatenate([samples, block.samples])
            problems += [block.note] * bool(block.note)
            if samples.size >= LISTENING_SECONDS * SAMPLE_RATE or time.monotonic() > until:
                break
    if samples.size < LISTENING_SECONDS * SAMPLE_RATE:
        return Finding("sound", "FAIL", "; ".join(problems) or f"{source.name} gives no sound: plug it in again")
    if samples.min() == samples.max():
        return Finding("sound", "warning", "complete silence: the microphone is muted, or nothing is plugged into it")
    level = level_dbfs(samples)
    problems += [source.unverified] * bool(source.unverified)
    problems += ["very quiet: turn the gain up, or check the cable"] * (level < settings.quality.minimum_level_dbfs)
    return Finding("sound", "warning" if problems else "ok", "; ".join([f"{level:.1f} dBFS", *problems]))


def _access_to_sound() -> Finding:
    cards = sorted(Path("/dev/snd").glob("pcm*c"))
    closed = [str(card) for card in cards if not os.access(card, os.R_OK | os.W_OK)]
    if closed:
        advice = "add the user to the group audio ('sudo usermod -aG audio USER') and log in again"
        return Finding("permissions", "FAIL", f"no access to {', '.join(closed)}; {advice}")
    return Finding("permissions", "ok", f"{len(cards)} sound cards with an input, all open to this user")


def profile(settings: BoardSettings, root: Path = ROOT) -> Iterator[Finding]:
    """The board against what its profile expects; nothing without a profile."""
    if not settings.profile:
        return
    try:
        check_board(settings, root)
    except BoardError as error:
        yield Finding("board", "FAIL", str(error))
        return
    lacking = shortcomings(settings, root)
    found = "; ".join(lacking) or f"{board_name(root) or 'this computer'} is what {settings.profile} expects"
    yield Finding("board", "warning" if lacking else "ok", found)


def _speed(classifier: "Classifier", expected: float) -> Finding:
    """The model's time for a second of breath, the median of some breaths."""
    from device.breath.simulator import breath
    from device.signal import SAMPLE_RATE

    factors = []
    for seed in range(TIMED_BREATHS):
        samples = breath(seed, "normal")
        began = time.perf_counter()
        classifier.judge(samples)
        factors.append((time.perf_counter() - began) * SAMPLE_RATE / samples.size)
    factor = sorted(factors)[TIMED_BREATHS // 2]
    found = f"the model computes {factor:.3f} s for a second of breath, at most {expected:g} s expected"
    slow = f"{found}; close other programs, or see board.power_mode, bundle.threads and bundle.precision"
    return Finding("speed", "warning", slow) if factor > expected else Finding("speed", "ok", found)


def _bundle(settings: BundleSettings, real_time_factor: float) -> Iterator[Finding]:
    from device.model.classifier import self_test
    from device.model.opening import open_classifier
    from device.runtime import load_onnxruntime

    onnxruntime, warnings = load_onnxruntime(), list[str]()
    try:
        classifier = open_classifier(settings, warnings.append)
        worst = self_test(classifier)
    except RespSAMError as error:
        yield Finding("bundle", "FAIL", str(error))
    else:
        manifest = classifier.bundle.manifest
        if settings.chosen is None:
            # why another bundle than the active one is in use now, else what failed here before
            wrong = "; ".join(warnings) or _failed_updates(settings)
            yield from [Finding("update", "warning", wrong)] * bool(wrong)
        tested = f"self-test of {len(manifest.self_test.seeds)} breaths within {worst:.4f}"
        yield Finding("bundle", "ok", f"{manifest.name} ({classifier.fingerprint[:12]}), {tested}")
        yield _speed(classifier, real_time_factor)
        if classifier.fallback:
            yield Finding("engine", "warning", classifier.fallback)
            return
        if classifier.engine is not None:
            yield Finding("engine", "ok", "TensorRT, built on this machine")
            return
    providers = ", ".join(onnxruntime.get_available_providers())
    yield Finding("engine", "ok", f"onnxruntime {onnxruntime.__version__} ({providers})")


def _failed_updates(settings: BundleSettings) -> str:
    """Which bundles failed on this box, and why; empty without one."""
    from device.model.opening import open_slots

    try:
        failed = open_slots(settings).state().failed
        return "; ".join(f"bundle {fingerprint[:12]} failed here: {why}" for fingerprint, why in failed.items())
    except RespSAMError as error:
        return str(error)


def _store(settings: StoreSettings) -> Iterator[Finding]:
    try:
        folder = settings.file.parent
    except SettingsError as error:
        yield Finding("store", "FAIL" if settings.enabled else "ok", str(error))
        return
    while not folder.exists():
        folder = folder.parent
    if not settings.enabled:
        yield Finding("store", "ok", "nothing is stored (store.enabled = false)")
    elif settings.file.is_dir():
        yield Finding("store", "FAIL", f"{settings.file} is a folder; set store.path to a file")
    elif folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        yield Finding("store", "ok", str(settings.file))
    else:
        yield Finding("store", "FAIL", f"{folder} cannot be written to; set store.path or change its owner")
    free = shutil.disk_usage(folder).free
    if free >= FREE_BYTES[1]:
        yield Finding("disk", "ok", f"{free / 1e9:.1f} GB free")
    else:
        little = f"only {free / 1e6:.0f} MB free at {folder}; delete what is not needed"
        yield Finding("disk", "FAIL" if free < FREE_BYTES[0] else "warning", little)


def broker(settings: Settings) -> Iterator[Finding]:
    """The MQTT broker, and what waits for it; nothing without one."""
    outputs = settings.outputs
    if not outputs.mqtt_host:
        return
    from device.mqtt import BrokerError, check_broker
    from device.store.outbox import Outbox

    place = f"{outputs.mqtt_host}:{outputs.mqtt_port}"
    try:
        waiting, unsent = Outbox(settings.store.file).count()
        waits = f"; {counted(waiting, 'message')} wait" * bool(waiting) + f"; {unsent} removed unsent" * bool(unsent)
        check_broker(outputs)
        yield Finding("MQTT", "ok", f"{place} takes what this box sends{waits}")
    except BrokerError as error:
        yield Finding("MQTT", "FAIL", f"{place}: {error}{waits}")
    except RespSAMError as error:
        yield Finding("MQTT", "FAIL", str(error))


def _clock() -> Finding:
    now, before = datetime.now().astimezone(), time.monotonic()
    time.sleep(0.01)
    if time.monotonic() <= before:
        return Finding("clock", "FAIL", "the monotonic clock stands still; restart the machine")
    if now.year < BUILT_IN_YEAR:
        return Finding("clock", "warning", f"{now:%Y-%m-%d %H:%M} was never set; 'sudo timedatectl set-ntp true'")
    return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M %Z}")


def board(root: Path = ROOT) -> Iterator[Finding]:
    """Temperature and power, as far as the kernel shows them in the files below `root`."""
    zones = [_read_number(file) for file in sorted(root.glob("sys/class/thermal/thermal_zone*/temp"))]
    celsius = [value / 1000 for value in zones if value is not None]
    if not celsius:
        yield Finding("heat", "ok", "no temperature is shown here")
    elif max(celsius) >= HOT_CELSIUS:
        yield Finding("heat", "warning", f"{max(celsius):.0f} °C: it will slow down; let air to it")
    else:
        yield Finding("heat", "ok", f"{max(celsius):.0f} °C")
    supplies = root.glob("sys/class/power_supply/*/capacity")
    percent = [value for value in map(_read_number, supplies) if value is not None]
    mode = power_mode(root)
    shown = [f"battery {value:.0f} %" for value in percent] + [f"Jetson power mode {mode}"] * bool(mode)
    low = bool(percent) and min(percent) < LOW_BATTERY_PERCENT
    shown_power = ", ".join(shown) or "mains, or not shown here"
    yield Finding("power", "warning" if low else "ok", f"{shown_power}; plug it in" if low else shown_power)


def _read_number(file: Path) -> float | None:
    try:
        return float(read_text(file))
    except ValueError:
        return None
