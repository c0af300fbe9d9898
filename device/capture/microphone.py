"""The microphone as a source: it is lost and found again, and every sample is accounted for."""

import math
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import chain
from typing import Final

import numpy as np

from device.breath.quality import FULL_SCALE
from device.capture.blocks import SILENCE, Block, StreamResampler
from device.capture.process import NO_ANSWER, Captured, CaptureError, CaptureProcess, InputRequest, OpenedInput, clock
from device.capture.stethoscope import PlugInTest
from device.capture.timeline import Kind
from device.signal import SAMPLE_RATE, FloatArray
from firmware_config.settings import AudioSettings

# How a microphone is found again: a fault is shown within 2 s, and sound is back within 5 s of the device.
NAMELESS: Final = "microphone"  # the name of an input that the settings do not name, until it opens
SILENT_SECONDS: Final = 1.2  # without a block the microphone is lost; a busy machine was once late by 0.3 s
POLL_SECONDS: Final = 0.1
YIELD_SECONDS: Final = 0.4  # a consumer can stop at least twice a second
OPENING_SECONDS: Final = 4.0  # from a capture process' start to its first block; a frozen sound server never answers
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.5  # between two tries, doubling
STABLE_SECONDS: Final = 5.0  # so much sound ends the doubling; a loose plug is not tried ten times a second
EXPLAINING_SECONDS: Final = 2.0  # the reason why a microphone does not open changes while it is plugged in
# The pace of a stream
STEADY_SECONDS: Final = 1.0  # a delay that lasts so long is lost sound
SETTLING_SECONDS: Final = 1.0
GAP_SECONDS: Final = 0.25
MOST_DRIFT: Final = 0.005  # share of time; no sound card's clock drifts more
REPORTED_DRIFT: Final = 0.001
MOST_AHEAD_SECONDS: Final = 2.0  # ahead of the clock: no microphone records the future
# Faults in the sound itself
MUTE_SECONDS: Final = 1.6  # plus the delay of the sound: shown within 2 s
CLIPPED_SAMPLES: Final = 3  # in one block
CLIP_PAUSE_SECONDS: Final = 1.0  # without clipping, before clipping is reported again


class Pace:
    """A stream's samples against the clock: finds sound that vanished unreported, and a device clock that drifts.

    A short delay is a busy machine, a long and lasting one is vanished sound, a slowly growing one is clock drift.
    """

    def __init__(self, began: float) -> None:
        self.began = self._minute_began = began
        self._late = self._late_when_settled = self._late_a_minute_ago = 0.0
        self._latest: deque[tuple[float, float]] = deque()

    @property
    def drift_seconds(self) -> float:
        """How far the stream lags behind the clock since it settled."""
        return self._late - self._late_when_settled

    def vanished(self, now: float, seconds: float) -> float:
        """Seconds of sound that vanished, if by `now` the stream has given `seconds`, missing ones included."""
        late = now - self.began - seconds
        since = self._latest[-1][0] if self._latest else now
        self._latest.append((now, late))
        while self._latest[0][0] < now - STEADY_SECONDS:
            self._latest.popleft()
        excess = min(late for _, late in self._latest) - self._late
        if now - self.began < SETTLING_SECONDS:
            self._late = self._late_when_settled = self._late_a_minute_ago = self._late + excess
        elif excess < GAP_SECONDS:
            most = MOST_DRIFT * (now - since)
            self._late += min(max(excess, -most), most)
        elif now - self._latest[0][0] > STEADY_SECONDS / 2:
            self._latest.clear()
            return excess
        return 0.0

    def drift_share(self, now: float) -> float:
        """Share by which the device's clock was slow in the last minute, once a minute; else 0."""
        seconds = now - self._minute_began
        if seconds < 60.0:
            return 0.0
        share = (self._late - self._late_a_minute_ago) / seconds
        self._minute_began, self._late_a_minute_ago = now, self._late
        return share


class Watch:
    """Finds faults in the sound: complete silence, which no microphone makes, and clipping."""

    def __init__(self) -> None:
        self._constant_since: float | None = None
        self._muted = False
        self._clipped_at = -CLIP_PAUSE_SECONDS

    def look(self, samples: FloatArray, begin_seconds: float, end_seconds: float) -> Iterator[tuple[Kind, str]]:
        """Faults that begin or end in these samples (n,), which are from `begin_seconds` to `end_seconds`."""
        if samples.min() == samples.max():
            self._constant_since = begin_seconds if self._constant_since is None else self._constant_since
            if not self._muted and end_seconds - self._constant_since > MUTE_SECONDS:
                self._muted = True
                yield "mute", "complete silence: the microphone is muted; unmute it, or look for a switch on it"
        else:
            if self._muted and self._constant_since is not None:
                yield "mute", f"sound again after {begin_seconds - self._constant_since:.1f} s of complete silence"
            self._constant_since, self._muted = None, False
        if np.count_nonzero(np.abs(samples) >= FULL_SCALE) >= CLIPPED_SAMPLES:
            if begin_seconds - self._clipped_at >= CLIP_PAUSE_SECONDS:
                yield "clip", "overloaded: turn the gain down or hold the stethoscope still"
            self._clipped_at = end_seconds


class CaptureStream:
    """The sound of one capture process as blocks at 16 kHz, with gaps, faults and remarks."""

    def __init__(self, opened: OpenedInput, began: float, gain_db: float, reported: set[str]) -> None:
        """`reported` holds what is reported once a session."""
        self.opened, self._reported = opened, reported
        self._gain = np.float32(10.0 ** (gain_db / 20.0))
        self._resampler, self._pace, self._watch = StreamResampler(opened.sample_rate), Pace(began), Watch()
        self._before = Captured(SILENCE, began, 0, 0)
        self._frames = 0  # of the device, missing ones included
        self._given = 0  # the same at 16 kHz, without what the resampler holds back

    @property
    def position_clock(self) -> float:
        """When the next sample is recorded, by the clock."""
        return self._pace.began + self._given / SAMPLE_RATE + self._pace.drift_seconds

    def add(self, block: Captured, waiting_seconds: float) -> Iterator[Block]:
        """The blocks at 16 kHz that come of a captured block; CaptureError if sound comes faster than time passes."""
        rate, before, self._before = self.opened.sample_rate, self._before, block
        begin = self._frames / rate
        lost = block.lost_frames - before.lost_frames
        self._frames += lost + block.samples.size
        if self._frames / rate - (block.clock - self._pace.began) > MOST_AHEAD_SECONDS:
            raise CaptureError(
                f"{self.opened.device} is no microphone: it gives sound faster than time goes by, as ALSA's null "
                "device does; set audio.device to another input",
                hopeless=True,
            )
        vanished = round(self._pace.vanished(block.clock, self._frames / rate) * rate)
        self._frames += vanished
        broken = ["our queue was full"] * bool(lost)
        broken += ["the driver overflowed"] * (block.overflows > before.overflows)
        broken += ["sound was lost on its way here"] * bool(vanished)
        if broken:
            yield self.end()
            # a new one: the old one would mix the sound before and after
            self._resampler = StreamResampler(rate)
            missing = round((lost + vanished) * SAMPLE_RATE / rate)
            self._given += missing
            yield Block(SILENCE, missing, "gap" if vanished else "overflow", ", ".join(broken))
        # a driver once gave NaN, and every later sample became NaN in the resampler
        samples = np.where(np.isfinite(block.samples), block.samples, np.float32(0.0)) * self._gain
        for kind, note in [*self._watch.look(samples, begin, self._frames / rate), *self._rate_notes()]:
            yield Block(SILENCE, 0, kind, note)
        yield self._block(self._resampler.push(samples), waiting_seconds)

    def end(self) -> Block:
        """The last samples of the resampler."""
        return self._block(self._resampler.flush(), 0.0)

    def _block(self, samples: FloatArray, waiting_seconds: float) -> Block:
        self._given += samples.size
        return Block(samples, waiting_seconds=waiting_seconds)

    def _rate_notes(self) -> Iterator[tuple[Kind, str]]:
        if self.opened.note and self.opened.note not in self._reported:
            self._reported.add(self.opened.note)
            yield "rate", self.opened.note
        drift = self._pace.drift_share(self._before.clock)
        if abs(drift) > REPORTED_DRIFT and "drift" not in self._reported:
            self._reported.add("drift")
            yield "rate", f"{self.opened.device}: its clock is {abs(drift):.2%} {'slow' if drift > 0 else 'fast'}"


class MicrophoneSource:
    """A PortAudio input; when it is lost, the source waits until it is back.

    CaptureError when there is no microphone and nothing to wait for, or when waiting does not help. The settings may
    name what to wait for; a service `waits` for any.
    Every sample between the first and the last block is either in a block or `missing`.
    """

    demo, live = False, True

    def __init__(self, settings: AudioSettings, waits: bool = False) -> None:
        self._settings = settings
        self._request = InputRequest(
            settings.device, settings.sample_rate, settings.channel, settings.block_seconds, settings.queue_seconds
        )
        self.name = settings.device or NAMELESS
        self.gain_db = settings.gain_db
        self.plug_in_test: PlugInTest | None = None
        """Compares the stethoscope with its passport whenever it is plugged in."""
        self.highest_hz: float | None = None
        self._doubt = ""
        self._reported: set[str] = set()
        self._pause = SHORTEST_PAUSE_SECONDS
        self._lost_at: float | None = None
        self._remedy = ""  # what was reported last about a lost microphone
        self._other = ("", 0.0)  # another remedy that is needed by now, and since when
        self._silent_since: float | None = None
        self._hung = False  # since the last sound it has kept us waiting; whoever hangs refuses later, as if absent
        self._position_clock = 0.0  # the time of the next sample
        self._process = CaptureProcess(self._request)
        began = self._process.started
        while not (self._process.opened or self._process.ended) and clock() < began + OPENING_SECONDS:
            self._process.pump(POLL_SECONDS)
        if self._process.opened:
            self._remember()
        # an input that the settings name may come later
        elif self._process.hopeless or not (waits or (settings.device and not settings.device.isdigit())):
            self._process.kill()
            raise CaptureError(self._process.error or NO_ANSWER)

    @property
    def unverified(self) -> str:
        """Why it cannot be verified that the microphone is always the same; empty if it can."""
        self._doubt = self._process.unverified or self._doubt
        return self._doubt

    @property
    def silent_seconds(self) -> float:
        """How long a device that is present has given no sound; 0 while it does, and while no device is there."""
        return 0.0 if self._silent_since is None else clock() - self._silent_since

    def blocks(self) -> Generator[Block, None, None]:
        """Blocks until the consumer stops: about ten a second with sound, at least two a second without."""
        self._position_clock = clock()
        try:
            while True:
                for block in chain(self._until_sound(), self._while_sound()):
                    yield block
                    if self.plug_in_test is not None:
                        yield from self.plug_in_test.look(block)
        finally:
            self._process.kill()

    def close(self) -> None:
        """End the capture process of a source that nobody listens to."""
        self._process.kill()

    def _until_sound(self) -> Iterator[Block]:
        """Start capture processes until one gives sound."""
        yielded, next_try = clock(), math.inf
        while True:
            process = self._process
            process.pump(POLL_SECONDS)
            if process.waiting:
                return
            now = clock()
            if now >= next_try:
                self._process, next_try = CaptureProcess(self._request), math.inf
            elif next_try < math.inf:
                time.sleep(min(POLL_SECONDS, next_try - now))
            elif process.ended or now - process.started > OPENING_SECONDS:
                self._hung = self._hung or not process.ended
                self._note_silence(process.started)
                if self._lost_at is None or self._needs_something_else(process.error, now):
                    yield self._lost(process.error)
                process.kill()
                next_try, self._pause = now + self._pause, min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            if self._lost_at is None and now - self._position_clock > SILENT_SECONDS:
                yield self._lost()
            if now - yielded > YIELD_SECONDS:
                yielded = now
                # the next sound may have begun a little earlier
                yield Block(SILENCE, 0 if self._lost_at is None else self._missed(now - 2 * YIELD_SECONDS))

    def _while_sound(self) -> Iterator[Block]:
        """The sound of one capture process until it stops."""
        process, opened = self._process, self._remember()
        captured = process.take()
        assert captured is not None
        self._silent_since, self._hung = None, False
        began = captured.clock - opened.block_seconds
        if self._lost_at is None:
            self._position_clock = began
        else:
            yield Block(SILENCE, self._missed(began), "back", f"sound again after {began - self._lost_at:.1f} s")
            self._lost_at = None
        stream = CaptureStream(opened, self._position_clock, self.gain_db, self._reported)
        last = yielded = clock()
        while captured is not None or (not process.ended and clock() - last < SILENT_SECONDS):
            if captured is not None:
                last = yielded = clock()
                yield from stream.add(captured, process.waiting * opened.block_seconds)
            elif clock() - yielded > YIELD_SECONDS:
                yielded = clock()
                yield Block(SILENCE)
            process.pump(0.0 if process.waiting else POLL_SECONDS)
            captured = process.take()
        self._note_silence(last)
        yield stream.end()
        self._position_clock = stream.position_clock
        if self._position_clock - began > STABLE_SECONDS:
            self._pause = SHORTEST_PAUSE_SECONDS
        self._remember()
        yield self._lost(process.error)

    def _note_silence(self, since: float) -> None:
        if self._process.absent and not self._hung:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = since

    def _needs_something_else(self, reason: str, now: float) -> bool:
        """Whether another remedy than the reported one has been needed for a while."""
        if not reason or _remedy_in(reason) == self._remedy:
            self._other = ("", now)
        elif _remedy_in(reason) != self._other[0]:
            self._other = (_remedy_in(reason), now)
        return bool(self._other[0]) and now - self._other[1] > EXPLAINING_SECONDS

    def _lost(self, reason: str = "") -> Block:
        self._lost_at = self._position_clock if self._lost_at is None else self._lost_at
        reason = reason or f"{self.name} gives no sound: plug it in again"
        self._remedy = _remedy_in(reason)
        return Block(SILENCE, 0, "lost", f"{reason}; listening goes on by itself when it is back")

    def _missed(self, until: float) -> int:
        samples = max(0, round((until - self._position_clock) * SAMPLE_RATE))
        self._position_clock += samples / SAMPLE_RATE
        return samples

    def _remember(self) -> OpenedInput:
        """From now on only this input is opened."""
        _ = self.unverified  # keeps the doubt of a process that has ended
        opened = self._process.opened
        assert opened is not None
        self.name, self.highest_hz = opened.device, opened.sample_rate / 2
        self._request = replace(
            self._request,
            device=opened.device,
            host_api=opened.host_api,
            source=self._process.source or self._request.source,
            remembered=True,
        )
        return opened


def _remedy_in(reason: str) -> str:
    """What to do about it: all reasons for a missing microphone have the same remedy."""
    return "plug it in" if "plug it in" in reason else reason
