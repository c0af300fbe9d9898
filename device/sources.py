"""Where sound comes from: a recording, the built-in demo, a microphone. All give mono float32 at 16 kHz."""

import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from device.signal import SAMPLE_RATE, FloatArray, exact_div
from device.timeline import Kind
from firmware_config.errors import RespSAMError

SILENT_SECONDS = 2.0  # a microphone that gives nothing for so long has gone
BLOCK_SAMPLES = exact_div(SAMPLE_RATE, 10)  # 100 ms


class CaptureError(RespSAMError):
    """No microphone, or one that will not open."""


@dataclass(frozen=True)
class Block:
    """Sound as it comes, perhaps none; `missing` samples at 16 kHz were lost right before it."""

    samples: FloatArray
    missing: int = 0
    kind: Kind = "gap"
    """What happened right before it, when `note` says that something did."""
    note: str = ""
    waiting_seconds: float = 0.0
    """Sound that has come in after this block and was not taken yet; only where sound does not wait for us."""


class Source(Protocol):
    """A stream of blocks with a name; `demo` sound is no patient's, `live` sound does not wait for its listener."""

    name: str
    demo: bool
    live: bool

    @property
    def highest_hz(self) -> float | None:
        """Half its own sample rate: nothing above it is heard; None while unknown."""
        ...

    def blocks(self) -> Iterator[Block]:
        """The sound, in order, until it ends."""
        ...


def paced(samples: FloatArray, fast: bool) -> Iterator[Block]:
    """Cut samples (n,) into 100 ms blocks, at the pace of a clock or as fast as they are taken."""
    began = time.monotonic()
    for start in range(0, samples.size, BLOCK_SAMPLES):
        block = samples[start : start + BLOCK_SAMPLES]
        late = 0.0
        if not fast:
            # a block can be heard only once it has been said
            late = time.monotonic() - began - (start + block.size) / SAMPLE_RATE
            time.sleep(max(0.0, -late))
        yield Block(block, waiting_seconds=max(0.0, late))


class FileSource:
    """A recording, streamed at its own pace or as fast as possible; AudioError when it cannot be read whole."""

    demo = False

    def __init__(self, path: Path, *, fast: bool = False) -> None:
        from device.audio import read_audio
        from device.signal import resample

        self.name = str(path)
        samples, sample_rate = read_audio(path)
        self.samples, self.highest_hz = resample(samples, sample_rate), sample_rate / 2
        self.fast, self.live = fast, not fast

    def blocks(self) -> Iterator[Block]:
        """The whole recording."""
        return paced(self.samples, self.fast)


class DemoSource:
    """A simulated auscultation; `truth` is for the report at the end alone, no verdict sees it."""

    demo, highest_hz = True, SAMPLE_RATE / 2

    def __init__(self, seed: int, seconds: float, *, fast: bool = False) -> None:
        from device.simulator import auscultate

        self.name = f"demo (simulated auscultation, seed {seed})"
        self.truth = auscultate(seed, seconds)
        self.fast, self.live = fast, not fast

    def blocks(self) -> Iterator[Block]:
        """The whole auscultation."""
        return paced(self.truth.samples, self.fast)


def _portaudio() -> Any:
    # PortAudio aborts the whole process where ALSA is set up by half, so another process goes first
    tried = subprocess.run([sys.executable, "-c", "import sounddevice"], capture_output=True, check=False)
    if tried.returncode < 0:
        raise CaptureError(
            f"no microphone: PortAudio crashes here (signal {-tried.returncode}), as it does without ALSA's settings "
            "(Debian: apt install libasound2-data); to see it work without one use --source demo"
        )
    try:
        import sounddevice
    # OSError: the wheel is there but no PortAudio library
    except (ImportError, OSError) as error:
        raise CaptureError(
            "no microphone: PortAudio is not installed (Debian: apt install libportaudio2); "
            "to see it work without one use --source demo"
        ) from error
    return sounddevice


@dataclass(frozen=True)
class Captured:
    """One block as captured, with the counts at that moment: what was dropped was dropped before this block."""

    samples: FloatArray
    lost_frames: int
    overflows: int


class BoundedQueue:
    """What a PortAudio callback does: copy one channel and enqueue. What does not fit is dropped and counted."""

    def __init__(self, channel: int, blocks: int) -> None:
        self.channel = channel
        self._queue: queue.Queue[Captured] = queue.Queue(blocks)
        self._lost_frames = 0
        self._overflows = 0

    def put(self, data: FloatArray, frames: int, _time: Any, status: Any) -> None:
        """Samples (frames, channels), as PortAudio gives them."""
        if status.input_overflow:
            self._overflows += 1
        try:
            self._queue.put_nowait(Captured(data[:, self.channel].copy(), self._lost_frames, self._overflows))
        except queue.Full:
            self._lost_frames += frames

    def get(self, timeout_seconds: float) -> "Captured":
        """The oldest block; queue.Empty when none comes in time."""
        return self._queue.get(timeout=timeout_seconds)


class MicrophoneSource:
    """A PortAudio input, for as long as it gives sound."""

    demo, live = False, True
    highest_hz: float | None = None

    def __init__(self, device: str, sample_rate: int, channel: int, block_seconds: float, queue_seconds: float) -> None:
        self._sounddevice = sounddevice = _portaudio()
        try:
            chosen: int | str | None = int(device) if device.isdigit() else device or None
            found = sounddevice.query_devices(chosen, "input")
        except (ValueError, sounddevice.PortAudioError) as error:
            missing = f"no microphone called {device!r}" if device else "no microphone: there is no default input"
            raise CaptureError(
                f"{missing} ({_one_line(error)}); plug it in, set audio.device, or use --source demo"
            ) from error
        if channel >= found["max_input_channels"]:
            raise CaptureError(
                f"{found['name']} has {found['max_input_channels']} channels, audio.channel asks for number {channel}; "
                "set a lower one"
            )
        self.name = str(found["name"])
        self.device = found["index"]
        self.sample_rate = sample_rate or int(found["default_samplerate"])
        self.block_frames = max(1, round(block_seconds * self.sample_rate))
        self._queue = BoundedQueue(channel, max(1, round(queue_seconds / block_seconds)))

    def blocks(self) -> Iterator[Block]:
        """Until the consumer stops, or CaptureError when no block comes any more: the device has gone."""
        import soxr

        sounddevice = self._sounddevice
        resampler = None
        before = Captured(np.empty(0, np.float32), 0, 0)
        try:
            stream = sounddevice.InputStream(
                self.sample_rate,
                self.block_frames,
                self.device,
                self._queue.channel + 1,
                dtype="float32",
                callback=self._queue.put,
            )
            stream.start()
        except sounddevice.PortAudioError as error:
            raise CaptureError(
                f"{self.name} does not open at {self.sample_rate} Hz ({_one_line(error)}); close what else uses it, or "
                "set audio.sample_rate"
            ) from error
        with closing(stream):
            while True:
                try:
                    heard = self._queue.get(SILENT_SECONDS)
                except queue.Empty:
                    raise CaptureError(
                        f"{self.name}: no sound arrives any more; plug the stethoscope in again and restart"
                    ) from None
                lost = heard.lost_frames - before.lost_frames
                notes = ["our queue was full"] * bool(lost)
                notes += ["the driver overflowed"] * (heard.overflows > before.overflows)
                if resampler is None or notes:
                    # a new one after a gap: the old one would smear one side into the other
                    resampler = soxr.ResampleStream(self.sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
                samples = np.asarray(resampler.resample_chunk(heard.samples), dtype=np.float32)
                yield Block(samples, round(lost * SAMPLE_RATE / self.sample_rate), "overflow", ", ".join(notes))
                before = heard


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
