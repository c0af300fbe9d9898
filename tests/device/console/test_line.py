"""The line to the console's process: who listens never waits for it, whatever it does."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from device.console.addresses import ConsoleError
from device.console.line import MOST_BLOCKS, MOST_EVENTS, SOUND, Waiting, packed_sound, unpacked_sound
from tests.device.conftest import Device, one_error
from tests.device.console.conftest import BLOCK, Served, console_settings, noise, serve


def pid(served: Served) -> int:
    process = served.line._process
    assert process is not None
    return process.pid


def test_a_block_of_sound_comes_back_as_it_was() -> None:
    start, samples = unpacked_sound(packed_sound(SOUND, 123_456_789_012, noise(1)))
    assert start == 123_456_789_012
    assert np.array_equal(samples, noise(1))


def test_old_sound_goes_before_any_event() -> None:
    waiting = Waiting()
    waiting.put(b"{first}")
    for number in range(MOST_BLOCKS + 5):
        waiting.put(SOUND + bytes([number]))
    waiting.close()
    got = list(iter(waiting.get, None))
    assert got == [b"{first}", *(SOUND + bytes([number]) for number in range(5, MOST_BLOCKS + 5))]


def test_events_are_bounded_too() -> None:
    waiting = Waiting()
    for number in range(MOST_EVENTS + 5):
        waiting.put(json.dumps(number).encode())
    waiting.close()
    assert waiting.get() == b"5"


def test_a_sandbox_that_forbids_a_lower_priority_does_not_stop_the_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = "import os\ndef nice(_by): raise PermissionError\nos.nice = nice\n"
    (tmp_path / "sitecustomize.py").write_text(refuse)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    served = serve(tmp_path, console_settings())
    with served.line:
        assert served.ask("GET", "/api/state").status == 200
    assert served.warnings == []


def test_a_console_that_stands_still_holds_nobody_up(tmp_path: Path) -> None:
    served = serve(tmp_path, console_settings())
    with served.line:
        served.begin()
        served.state(lambda state: state["running"])
        os.kill(pid(served), signal.SIGSTOP)
        try:
            began = time.monotonic()
            for number in range(3000):
                served.line.sound(number * BLOCK, noise(number % 7))
                served.line.send("timeline", seconds=number / 10, kind="gap", note="")
            assert time.monotonic() - began < 3.0
            began = time.monotonic()
        finally:
            served.line.close()
    assert time.monotonic() - began < 10.0


def test_a_console_that_was_killed_is_started_again_and_knows_what_runs(tmp_path: Path) -> None:
    served = serve(tmp_path, console_settings())
    with served.line:
        served.begin()
        served.state(lambda state: state["running"])
        first = pid(served)
        os.kill(first, signal.SIGKILL)
        # the socket stays open meanwhile: a browser waits instead of being refused
        assert served.state(lambda state: state["running"])["session"]["source"] == "demo (a test)"
        assert pid(served) != first
        assert served.warnings == [
            "the console's process ended (without an error); it is started again",
        ]


def test_a_console_ends_when_who_listens_was_killed(tmp_path: Path) -> None:
    served = serve(tmp_path, console_settings())
    with served.line:
        served.state(lambda state: True)
        ours = served.line._process
        assert ours is not None
        served.line.send("end", order=0, summary={})  # a broken message must not end it either
        os.kill(ours.pid, signal.SIGTERM)  # a stop of the service reaches it, too: the summary comes first
        served.state(lambda state: True)
    assert ours.poll() is not None


def test_a_port_in_use_is_one_line_and_nothing_begins(respsam_device: Device, bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConsoleError):
            serve(bundle, console_settings(port=port))
        os.environ["RESPSAM_CONSOLE__PORT"] = str(port)
        try:
            answer = respsam_device("listen", "--source", "demo", "--console", "--bundle", bundle, "--no-store")
        finally:
            del os.environ["RESPSAM_CONSOLE__PORT"]
    assert f"the console cannot use 127.0.0.1 port {port}: in use; end the other program" in one_error(answer)
