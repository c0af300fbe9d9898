"""A reader that stalls, goes or is slow: it never holds up who writes, and what it missed is counted and said."""

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from device.view.outlet import MOST_WAITING, Outlet
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle

LINE = "x" * 999 + "\n"
Pipe = tuple[int, TextIO]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """The end that is read, and a stream to write into."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    with open(write, "w", encoding="utf-8") as stream:
        yield read, stream


def read_all(descriptor: int, into: list[bytes]) -> threading.Thread:
    def read() -> None:
        while piece := os.read(descriptor, 65_536):
            into.append(piece)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def notice(lines: int) -> str:
    return f"{lines} missing\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stalls_holds_nobody_up_and_is_told_what_it_missed(pipe: Pipe, blocking: bool) -> None:
    read, stream = pipe
    os.set_blocking(stream.fileno(), blocking)
    stopped = False
    out = Outlet(stream, notice, stopping=lambda: stopped)
    began = time.monotonic()
    for _ in range(MOST_WAITING + 100):
        out.write(LINE)
    assert time.monotonic() - began < 1.0
    assert out.dropped in range(90, 101)
    got: list[bytes] = []
    read_all(read, got)
    lost = out.dropped
    until = time.monotonic() + 20
    while b"".join(got).count(b"\n") < MOST_WAITING + 100 - lost and time.monotonic() < until:
        time.sleep(0.01)
    out.write("last\n")
    stopped = True
    assert out.finish() == lost
    time.sleep(0.1)
    lines = b"".join(got).decode().splitlines()
    assert len(lines) == MOST_WAITING + 100 - lost + 2
    assert lines.count(f"{lost} missing") == 1, "in the place of those that are missing"
    assert lines.index(f"{lost} missing") < 30 and lines[-1] == "last", "what is new is not dropped"


def test_where_the_sound_waits_a_slow_reader_is_waited_for_until_somebody_stops(pipe: Pipe) -> None:
    read, stream = pipe
    stopped: list[bool] = []
    out = Outlet(stream, notice, wait=True, stopping=lambda: bool(stopped))
    threading.Timer(0.5, stopped.append, [True]).start()
    began = time.monotonic()
    for _ in range(MOST_WAITING + 100):
        out.write(LINE)
    assert time.monotonic() - began >= 0.3
    assert out.finish() > MOST_WAITING
    assert time.monotonic() - began < 2.0
    got: list[bytes] = []
    read_all(read, got)
    whole = Outlet(stream, notice, wait=True)
    for _ in range(3 * MOST_WAITING):
        whole.write("y\n")
    assert whole.finish() == 0


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_reader_that_goes_is_an_error_as_ever(pipe: Pipe, at_the_end: bool) -> None:
    read, stream = pipe
    os.close(read)
    out = Outlet(stream, notice)
    out.write(LINE)
    with pytest.raises(BrokenPipeError):
        if at_the_end:
            out.finish()
        else:
            for _ in range(1000):
                out.write(LINE)
                time.sleep(0.001)


def test_a_terminal_that_is_closed_is_silence() -> None:
    terminal, end = os.openpty()
    with open(end, "w", encoding="utf-8") as stream:
        out = Outlet(stream, notice)
        os.close(terminal)
        for _ in range(10):
            out.write("x\n")
            time.sleep(0.01)
        out.finish()


def listen(tmp_path: Path, stdout: int, stderr: int | None = None) -> "subprocess.Popen[bytes]":
    bundle = make_bundle(tmp_path / "bundle")
    # a live source whose second line fills the pipe
    script = (
        "import device.cli, device.listening.live\n"
        "run = device.listening.live.Session.run\n"
        "def noisy(self):\n"
        "    for happened in run(self):\n"
        "        yield happened\n"
        "        if hasattr(happened, 'samples'): yield self.timeline.entry('rate', 'y' * 200_000)\n"
        "device.listening.live.Session.run = noisy\n"
        "device.cli.main()\n"
    )
    options = ["listen", "--source", "demo", "--json", "--seconds", "60", "--bundle", str(bundle)]
    return subprocess.Popen(
        [sys.executable, "-c", script, *options],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RESPSAM_STORE__PATH": str(tmp_path / "store.sqlite")},
        stdout=stdout,
        stderr=stderr,
    )


def stored(tmp_path: Path, query: str) -> list[tuple[object, ...]]:
    try:
        with sqlite3.connect(tmp_path / "store.sqlite", timeout=5) as database:
            return database.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []


def until_cycles(tmp_path: Path, cycles: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if (found := stored(tmp_path, "SELECT count(*) FROM cycles")) and int(str(found[0][0])) >= cycles:
            return
        time.sleep(0.1)
    raise AssertionError("the device stores no cycles while nobody reads")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stalled_reader_of_a_live_session_stops_neither_store_nor_shutdown(
    tmp_path: Path, number: signal.Signals
) -> None:
    listening = listen(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until_cycles(tmp_path, 3)
    listening.send_signal(number)
    assert listening.wait(timeout=60) == (130 if number == signal.SIGINT else 0)
    assert listening.stderr is not None and listening.stdout is not None
    assert b"lines were not shown" in listening.stderr.read()
    listening.stderr.close()
    listening.stdout.close()
    ((verdict, heard, missing),) = stored(tmp_path, "SELECT verdict, heard_samples, missing_samples FROM sessions")
    assert verdict is not None and heard and missing == 0
    assert stored(tmp_path, "SELECT note FROM timeline WHERE kind = 'end'") == [(f"stopped by {number.name}",)]


def test_below_nohup_a_hangup_stops_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        listening = listen(tmp_path, stdout=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGHUP, before)
    until_cycles(tmp_path, 1)
    listening.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert listening.poll() is None
    listening.send_signal(signal.SIGTERM)
    assert listening.wait(timeout=60) == 0
    assert stored(tmp_path, "SELECT note FROM timeline WHERE kind = 'end'") == [("stopped by SIGTERM",)]


def test_an_object_of_json_says_what_is_missing_in_between() -> None:
    from device.cli import _outlets

    read, write = os.pipe()
    with open(write, "w", encoding="utf-8") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        stops: list[signal.Signals] = []
        with _outlets("session", True, stops) as out:
            for _ in range(MOST_WAITING + 200):
                out.write(LINE)
            got: list[bytes] = []
            read_all(read, got)
            time.sleep(1.0)
            out.write("{}\n")
        time.sleep(0.2)
    lines = b"".join(got).decode().splitlines()
    (said,) = [json.loads(line) for line in lines if line.startswith('{"type"')]
    assert said["type"] == "unshown" and said["lines"] > 50
    assert lines[-1] == "{}"
