"""What the session's process does with the orders of the settings page."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from device.capture.blocks import SILENCE, Block
from device.capture.process import CaptureError
from device.console.desk import Desk, Order
from device.console.line import Line, Message
from device.service import Service
from device.signal import SAMPLE_RATE, FloatArray
from firmware_config.settings import load_settings
from tests.device.test_configuration import STETH, Played


class Sent(Line):
    """A line that keeps what is sent; a recording ends the desk."""

    def __init__(self) -> None:
        self.events: list[Message] = []
        self.recordings: list[tuple[int, FloatArray]] = []
        self.blocks = 0
        self.desk: Desk

    def send(self, kind: str, /, **fields: Any) -> None:
        self.events.append({"type": kind, **fields})

    def sound(self, start_sample: int, samples: FloatArray) -> None:
        assert start_sample == self.blocks * 1600
        self.blocks += 1
        if self.blocks == 15:
            self.interrupt()

    def interrupt(self) -> None:
        """Nothing comes in between."""

    def recorded(self, order: int, samples: FloatArray) -> None:
        self.recordings.append((order, samples))
        self.desk.stop("done")


def run(line: Sent) -> list[str]:
    """Order a step of two seconds as soon as a session begins; returns the warnings."""
    settings, warnings = load_settings(flags={"audio.gain_db": 20.0}), list[str]()
    step = {"number": 7, "do": "record", "age": None, "site": None, "place": 0, "seconds": 2.0, "passport": ""}

    def no_session(order: Order) -> Service:
        line.desk.take(step)
        raise CaptureError("no microphone; plug it in")

    line.desk = Desk(no_session, lambda service, view: None, lambda: Played(settings.audio))
    line.desk.run(line, warnings.append)
    return warnings


def test_a_step_of_the_self_test_is_recorded_without_gain_after_the_session() -> None:
    line = Sent()
    # the session that the command began with has failed: that is said, and ends nothing
    assert run(line) == ["no microphone; plug it in"]
    failed, begun = line.events
    assert (failed["type"], failed["order"]) == ("failed", 0)
    assert (begun["type"], begun["order"], begun["purpose"], begun["input"]) == ("begin", 7, "record", STETH)
    ((order, samples),) = line.recordings
    assert order == 7 and np.array_equal(samples, Played.sound[: 2 * SAMPLE_RATE])


def test_a_later_order_ends_a_recording() -> None:
    class Stopped(Sent):
        def interrupt(self) -> None:
            self.desk.take({"number": 8, "do": "stop", "age": None, "site": None, "place": 0})

    line = Stopped()
    run(line)
    assert [(order, samples.size) for order, samples in line.recordings] == [(7, 0)]


def test_a_microphone_without_sound_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: Played) -> Iterator[Block]:
        yield Block(SILENCE)

    class Failing(Sent):
        def send(self, kind: str, /, **fields: Any) -> None:
            super().send(kind, **fields)
            if kind == "failed" and fields["order"] == 7:
                self.desk.stop("done")

    monkeypatch.setattr(Played, "blocks", silent)
    line = Failing()
    assert run(line)[-1] == f"{STETH} gives no sound: plug it in again, and record it again"
    assert line.events[-1]["type"] == "failed" and not line.recordings
