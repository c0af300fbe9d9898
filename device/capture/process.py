"""Capture in a process of its own: PortAudio can crash or hang when a device goes, and a process can be killed.

The capture process is `python -m device.capture.process FD REQUEST`. FD is shared memory without a name (nothing can be
left behind) that holds the ring. When the parent ends, stdin closes and the capture process ends too. On stdout an
empty line stands for one more block in the ring; any other line is a message in JSON: the opened input, the sound
server's source, or the error. The parent judges by the blocks and the clock alone whether sound comes.
"""

import fcntl
import json
import mmap
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from device.capture.sound_server import ServerError, recorded_source
from firmware_config.errors import RespSAMError

RATES_HZ: Final = (
    48_000,
    44_100,
    32_000,
    16_000,
    8_000,
)  # tried in this order after the asked one and the device's own
READ_COUNT_BYTES: Final = 64  # a cache line of its own
INVALID_SAMPLE_RATE, UNAVAILABLE = -9997, -9985  # PortAudio's paInvalidSampleRate and paDeviceUnavailable
SERVER_LIBRARIES: Final = (
    "libpulse",
    "libpipewire",
    "libjack",
)  # a server behind these may move a stream to another source
LONGEST_ERRORS: Final = 100_000  # bytes of a capture process's stderr
IDENTITY_SECONDS: Final = 1.0  # from one look at the sound server to the next
UNVERIFIED_SECONDS: Final = 0.05  # the same before sound is taken from a source that has to be the one of before
ANSWER_SECONDS: Final = 10.0  # for the list of devices; a sound server that has stopped never answers
ENDING_SECONDS: Final = 1.0
HARDWARE: Final = re.compile(r"[\s:-]*\(hw:\d+,\d+\)$")
NO_ANSWER: Final = "the sound system does not answer; restart it, or the machine"

FloatArray = npt.NDArray[np.float32]
# an input as `input_devices` describes it
Device = Mapping[str, Any]


class CaptureError(RespSAMError):
    """No microphone, or one that does not open; `hopeless` if waiting for a device does not help.

    `absent` if the device is not there, as far as one can know: a sound server hides it.
    """

    def __init__(self, reason: str, hopeless: bool = False, absent: bool = False) -> None:
        super().__init__(reason)
        self.hopeless, self.absent = hopeless, absent


def clock() -> float:
    """Seconds on a monotonic clock, the same in all processes; on Linux it goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True)
class InputRequest:
    """What to record; `remembered` if `device` is the name of the input opened before, not the settings' text."""

    device: str
    sample_rate: int
    channel: int
    block_seconds: float
    queue_seconds: float
    host_api: str = ""
    source: str = ""
    """The sound server's name of the source; no other source is recorded."""
    remembered: bool = False


@dataclass(frozen=True)
class OpenedInput:
    """The input that was opened."""

    device: str
    """Stable part of the name, or all of it if two inputs share that part."""
    host_api: str
    sample_rate: int
    block_frames: int
    note: str
    """How it differs from the request; empty if it does not."""

    @property
    def block_seconds(self) -> float:
        """Length of one block."""
        return self.block_frames / self.sample_rate


@dataclass(frozen=True)
class Captured:
    """One captured block, with the counts of what was dropped before it."""

    samples: FloatArray
    clock: float
    """When its last frame came."""
    lost_frames: int
    overflows: int


class Ring:
    """Blocks of one channel in shared memory: one process puts, one takes; what does not fit is dropped and counted.

    Neither process waits for the other. A line in a pipe announces each block, and orders the memory accesses too.
    """

    def __init__(self, descriptor: int, block_frames: int, blocks: int = 0) -> None:
        """A new ring of `blocks`; without `blocks` the ring that the other process made."""
        slot = [("clock", "f8"), ("lost_frames", "i8"), ("overflows", "i8"), ("samples", "f4", (block_frames,))]
        size = np.dtype(slot).itemsize
        if blocks:
            os.ftruncate(descriptor, READ_COUNT_BYTES + blocks * size)
        memory = mmap.mmap(descriptor, 0)
        self._taken = np.frombuffer(memory, np.int64, 1)
        self._slots = np.frombuffer(memory, slot, offset=READ_COUNT_BYTES)
        self._put = 0
        self._lost_frames = 0
        self._overflows = 0

    def put(self, samples: FloatArray, now: float, overflowed: bool = False) -> bool:
        """Copy one block (block_frames,); False when it was dropped because the ring is full."""
        self._overflows += overflowed
        if self._put - self._taken[0] >= self._slots.size:
            self._lost_frames += samples.size
            return False
        slot = self._slots[self._put % self._slots.size]
        slot["samples"], slot["clock"] = samples, now
        slot["lost_frames"], slot["overflows"] = self._lost_frames, self._overflows
        self._put += 1
        return True

    def take(self) -> Captured:
        """Remove and return the oldest block; there must be one."""
        slot = self._slots[int(self._taken[0]) % self._slots.size]
        taken = Captured(slot["samples"].copy(), float(slot["clock"]), int(slot["lost_frames"]), int(slot["overflows"]))
        self._taken[0] += 1
        return taken


class CaptureProcess:
    """The capture process, seen from the parent: start it, `pump` its messages, `take` its blocks, `kill` it."""

    def __init__(self, request: InputRequest) -> None:
        self.started = clock()
        self.opened: OpenedInput | None = None
        self.source = ""
        """The sound server's name of the recorded source, if it is known."""
        self.unverified = ""
        """Why it cannot be verified that the microphone is still the same."""
        self.waiting = 0
        """Blocks that can be taken."""
        self.ended = False
        self.error = ""
        """Why it ended."""
        self.hopeless = False
        """Waiting for a device does not help."""
        self.absent = False
        """It ended because the device is not there."""
        self._memory, self._errors = _nameless_memory(), _nameless_memory()
        fcntl.fcntl(self._errors, fcntl.F_SETFL, os.O_APPEND)
        self._unread = b""
        arguments = [str(self._memory), json.dumps(asdict(request))]
        self._process = _start(arguments, self._errors, request.source, self._memory)
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()

    def pump(self, timeout_seconds: float) -> None:
        """Read its messages; wait at most `timeout_seconds` for one."""
        if self.ended or not select.select([self._output], [], [], timeout_seconds)[0]:
            return
        if os.fstat(self._errors).st_size > LONGEST_ERRORS:
            os.ftruncate(self._errors, 0)
        text = os.read(self._output, 65_536)
        *lines, self._unread = (self._unread + text).split(b"\n")
        for line in lines:
            if line:
                self._learn(json.loads(line))
            else:
                self.waiting += 1
        if not text:
            self.ended = True
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(ENDING_SECONDS)
            if not self.error:
                complaint = os.pread(self._errors, LONGEST_ERRORS, 0)
                self.error, self.hopeless = _end_in_words(self._process.returncode, complaint), self.opened is None

    def take(self) -> Captured | None:
        """The oldest block; None without one."""
        if not self.waiting:
            return None
        self.waiting -= 1
        return self._ring.take()

    def kill(self) -> None:
        """End it at once, even if it hangs; a second call does nothing."""
        if self._memory < 0:
            return
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        os.close(self._memory)
        os.close(self._errors)
        self._memory, self.ended, self.waiting = -1, True, 0

    def _learn(self, message: dict[str, Any]) -> None:
        if "opened" in message:
            self.opened = OpenedInput(**message["opened"])
            self._ring = Ring(self._memory, self.opened.block_frames)
        elif "source" in message:
            self.source = message["source"]
        elif "unverified" in message:
            self.unverified = message["unverified"]
        else:
            self.error, self.hopeless, self.absent = message["error"], message["hopeless"], message["absent"]


def input_devices() -> list[dict[str, Any]]:
    """Every input, now, as {index, name, host_api, channels, sample_rate, default}; CaptureError without an answer."""
    process = _start(["devices"], subprocess.PIPE)
    try:
        out, complaint = process.communicate(timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise CaptureError(NO_ANSWER) from None
    answer = json.loads(out or b"{}")
    if "devices" not in answer:
        raise CaptureError(answer.get("error") or _end_in_words(process.returncode, complaint))
    devices: list[dict[str, Any]] = answer["devices"]
    return devices


def find_device(devices: Sequence[Device], wanted: str, host_api: str = "", *, remembered: bool = False) -> Device:
    """The input that `wanted` names; CaptureError if there is none, or more than one.

    `wanted` is a name or a part of it, a number, or '' for the default; or, if `remembered`, the stable name of the
    input that was opened before, in its host API.
    """
    if not wanted:
        found = [device for device in devices if device["default"]]
    elif wanted.isdigit() and not remembered:
        found = [device for device in devices if device["index"] == int(wanted)]
    else:
        known = [device for device in devices if host_api in ("", device["host_api"])]
        found = [device for device in known if device["name"] == wanted]
        found = found or [device for device in known if stable_name(device["name"]) == wanted]
        if not found and not remembered:
            found = [device for device in known if wanted.casefold() in device["name"].casefold()]
    if len(found) > 1:
        listed = ", ".join(device["name"] for device in found)
        raise CaptureError(
            f"several microphones are called {wanted!r} ({listed}); set audio.device to one of them", True
        )
    if not found:
        missing = f"no microphone called {wanted!r}" if wanted else "no microphone: there is no default input"
        raise CaptureError(f"{missing}; plug it in, set audio.device, or use --source demo", absent=True)
    return found[0]


def stable_name(name: str) -> str:
    """The device's name without ALSA's card and device numbers, which change from one plug to the next."""
    return HARDWARE.sub("", name)


def _start(arguments: list[str], errors: int, source: str = "", *descriptors: int) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    if source:
        environment["PULSE_SOURCE"] = source  # libpulse records this source where ALSA's settings name none
    return subprocess.Popen(
        [sys.executable, "-m", "device.capture.process", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        pass_fds=descriptors,
        env=environment,
        cwd=Path(__file__).parents[2],  # where `device` is found
        start_new_session=True,  # Ctrl-C is the parent's
    )


def _nameless_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("respsam-capture")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end_in_words(code: int | None, complaint: bytes) -> str:
    """Why a capture process ended, with its last line on stderr."""
    if code == -signal.SIGKILL:
        return "the capture process was killed"
    if code is not None and code < 0:
        return (
            f"no microphone: PortAudio crashes here (signal {-code}), as it does without ALSA's settings "
            "(Debian: apt install libasound2-data); to see it work without one use --source demo"
        )
    last = complaint.decode(errors="replace").strip().splitlines()[-1:]
    return ": ".join([f"the capture process ended (exit code {code})", *last])


# What follows runs in the capture process alone.


def main() -> None:
    """Record until the stream or the parent ends, or the source is no longer the same."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a service's stop reaches every process; the parent ends this one
        signal.signal(number, signal.SIG_IGN)
    # libraries print to stdout too
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        if sys.argv[1] == "devices":
            signal.alarm(round(2 * ANSWER_SECONDS))  # ends it if it hangs and the parent has given up
            _send(output, {"devices": _input_devices(_portaudio())})
        else:
            threading.Thread(target=_end_with_parent, daemon=True).start()
            os.set_blocking(output, False)
            _record(InputRequest(**json.loads(sys.argv[2])), int(sys.argv[1]), output)
    except CaptureError as error:
        os.set_blocking(output, True)
        _send(output, {"error": str(error), "hopeless": error.hopeless, "absent": error.absent})
    os._exit(0)  # not through PortAudio's end, which may hang


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


def _send(output: int, message: dict[str, Any]) -> None:
    os.write(output, json.dumps(message).encode() + b"\n")


def _portaudio() -> Any:
    try:
        import sounddevice
    # OSError: the wheel is there but no PortAudio library
    except (ImportError, OSError):
        raise CaptureError(
            "no microphone: PortAudio is not installed (Debian: apt install libportaudio2); "
            "to see it work without one use --source demo",
            hopeless=True,
        ) from None
    return sounddevice


def _input_devices(sounddevice: Any) -> list[dict[str, Any]]:
    hosts, default = sounddevice.query_hostapis(), sounddevice.default.device[0]
    return [
        {
            "index": device["index"],
            "name": device["name"],
            "host_api": hosts[device["hostapi"]]["name"],
            "channels": device["max_input_channels"],
            "sample_rate": round(device["default_samplerate"]),
            "default": device["index"] == default,
        }
        for device in sounddevice.query_devices()
        if device["max_input_channels"]
    ]


class Listener:
    """Copies one channel of a stream into the ring and announces each block, while `may_capture`.

    It reads the stream instead of giving PortAudio a callback: a callback is code made at run time, which systemd's
    MemoryDenyWriteExecute forbids.
    """

    def __init__(self, ring: Ring, channel: int, output: int) -> None:
        self.ring, self.channel, self.output = ring, channel, output
        self.may_capture = False
        self._unannounced = 0

    def listen(self, stream: Any, block_frames: int, finished: threading.Event) -> None:
        """Read until the stream fails, as it does when its device is gone."""
        try:
            while True:
                self.put(*stream.read(block_frames))
        finally:
            finished.set()

    def put(self, data: FloatArray, overflowed: bool) -> None:
        """Copy samples (frames, channels); `overflowed` if PortAudio lost some before them."""
        if self.may_capture and self.ring.put(data[:, self.channel], clock(), overflowed):
            self._unannounced += 1
            with suppress(BlockingIOError):  # the pipe is full: announced with the next block
                self._unannounced -= os.write(self.output, b"\n" * self._unannounced)


def _record(request: InputRequest, memory: int, output: int) -> None:
    sounddevice = _portaudio()
    devices = _input_devices(sounddevice)
    device = find_device(devices, request.device, request.host_api, remembered=request.remembered)
    if request.channel >= device["channels"]:
        raise CaptureError(
            f"{device['name']} has {device['channels']} channels, audio.channel asks for number {request.channel}; "
            "set a lower one",
            hopeless=not request.remembered,
        )
    twins = [device for device in devices if stable_name(device["name"]) == stable_name(device["name"])]
    name = device["name"] if len(twins) > 1 else stable_name(device["name"])
    finished = threading.Event()
    stream, listener, opened = _open(sounddevice, request, device, memory, output)
    _send(output, {"opened": {"device": name, "host_api": device["host_api"], **opened}})
    expected = request.source
    listener.may_capture = not expected
    try:
        stream.start()
    except sounddevice.PortAudioError as error:
        raise CaptureError(f"{name} does not start ({_one_line(error)}); {_remedy(error)}") from error
    reading = (stream, opened["block_frames"], finished)
    threading.Thread(target=listener.listen, args=reading, daemon=True).start()
    pause, doubt = UNVERIFIED_SECONDS, ""
    while not finished.wait(pause):
        source, why = pulse_source(os.getpid())
        if why and why != doubt:
            doubt = why
            _send(output, {"unverified": doubt})
        if source and not expected:
            expected = source
            _send(output, {"source": source})
        listener.may_capture = listener.may_capture if not source else source == expected
        if source and source != expected:
            gone = f"{expected} has gone and the sound server took {source} instead; plug it in again"
            raise CaptureError(gone, absent=True)
        pause = IDENTITY_SECONDS if listener.may_capture else UNVERIFIED_SECONDS
    raise CaptureError(f"{name} has gone; plug it in again", absent=True)


def _open(
    sounddevice: Any, request: InputRequest, device: Device, memory: int, output: int
) -> tuple[Any, Listener, dict[str, Any]]:
    asked = request.sample_rate or device["sample_rate"]
    refused: list[str] = []
    for sample_rate in dict.fromkeys((asked, device["sample_rate"], *RATES_HZ)):
        frames = max(1, round(request.block_seconds * sample_rate))
        ring = Ring(memory, frames, max(2, round(request.queue_seconds / request.block_seconds)))
        listener = Listener(ring, request.channel, output)
        try:
            stream = sounddevice.InputStream(sample_rate, frames, device["index"], request.channel + 1, dtype="float32")
        except sounddevice.PortAudioError as error:
            if error.args[1:2] != (INVALID_SAMPLE_RATE,):
                reason = f"{device['name']} does not open ({_one_line(error)}); {_remedy(error)}"
                raise CaptureError(reason, absent=not _is_busy(error)) from error
            refused.append(_one_line(error))
        else:
            note = f"{device['name']} refuses {asked} Hz; recording at {sample_rate} Hz" if refused else ""
            return stream, listener, {"sample_rate": sample_rate, "block_frames": frames, "note": note}
    raise CaptureError(
        f"{device['name']} does not open at {asked} Hz ({refused[0]}); set audio.sample_rate to another rate"
    )


def _remedy(error: Exception) -> str:
    return "close what else uses it" if _is_busy(error) else "plug it in again, or close what else uses it"


def _is_busy(error: Exception) -> bool:
    """A device that is not available is in use."""
    return error.args[1:2] == (UNAVAILABLE,)


def pulse_source(process: int) -> tuple[str, str]:
    """The source that a process records from a PulseAudio or PipeWire server, and why it is unknown.

    Both are empty if no server is between us and the microphone.
    """
    try:
        libraries = Path(f"/proc/{process}/maps").read_text(errors="replace")
    except OSError:
        return "", ""
    if not any(name in libraries for name in SERVER_LIBRARIES):
        return "", ""
    try:
        return recorded_source(process, ENDING_SECONDS), ""
    except ServerError as error:
        return "", f"cannot verify which microphone this is: {error}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
