"""What systemd learns of a session, read from a real notify socket."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import device.capture.microphone
import device.view.supervisor
from device.capture.blocks import BLOCK_SAMPLES, SILENCE, Block
from device.capture.microphone import MicrophoneSource
from device.capture.timeline import Entry
from device.listening.agreement import Agreement
from device.listening.cycle import CycleResult
from device.model.opening import open_classifier
from device.service import Service
from device.verdict.summary import Summary
from device.view.supervisor import SupervisorView
from device.view.view import View
from firmware_config.settings import Settings, load_settings
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle
from tests.device.virtual_microphone import NAME, VirtualMicrophone

PACE_SECONDS = 0.1  # of the watchdog's food
HANGS_SECONDS = 2.0


class Supervisor:
    """A notify socket: every message with the time at which it came."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self.messages: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(round(4e6 * PACE_SECONDS))}

    def _listen(self) -> None:
        while True:
            self.messages.append((time.monotonic(), self._socket.recv(65_536).decode()))

    def times(self, line: str, since: float = 0.0) -> list[float]:
        """When messages with a line that begins so came."""
        return [
            at for at, text in self.messages if at >= since and any(one.startswith(line) for one in text.splitlines())
        ]

    def wait_for(self, line: str, seconds: float = 30.0, since: float = 0.0) -> float:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.times(line, since):
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"no {line!r} in {self.messages[-5:]}")


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    return Supervisor(tmp_path)


@contextmanager
def device_process(*arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "device", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def quiet() -> Settings:
    return load_settings(flags={"store.enabled": False, "audio.device": NAME}, environment={})


class Breathless:
    """A source of noise in real time, as long as the test wants it, that is overloaded in the middle."""

    name, demo, live, highest_hz = "noise", False, True, 8_000.0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def blocks(self) -> Iterator[Block]:
        for number in range(round(self.seconds * 10)):
            time.sleep(0.1)
            if number == 10:
                yield Block(SILENCE, 0, "clip", "overloaded")
            yield Block(np.random.default_rng(0).normal(0, 0.01, BLOCK_SAMPLES).astype(np.float32))


class Stuck(View):
    """A view that hangs for a while, once."""

    def show(self, item: CycleResult | Entry) -> None:
        if isinstance(item, Entry) and item.kind == "clip":
            time.sleep(HANGS_SECONDS)

    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """Nothing."""


def run(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, bundle: Path, *views: View) -> None:
    for name, value in supervisor.environment.items():
        monkeypatch.setenv(name, value)
    settings = quiet()
    classifier = open_classifier(settings.bundle.model_copy(update={"path": str(bundle)}))
    Service(Breathless(3.0), classifier, settings).run(views)


def test_a_session_says_ready_alive_and_stopping(
    monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, tmp_path: Path
) -> None:
    run(monkeypatch, supervisor, make_bundle(tmp_path / "bundle"))
    supervisor.wait_for("STOPPING=1")
    first, last = supervisor.messages[0][1], supervisor.messages[-1][1]
    assert first.splitlines() == ["READY=1", "STATUS=listening to noise, 0 breaths"]
    assert last.splitlines() == ["STOPPING=1", "STATUS=the source ended"]
    fed = supervisor.times("WATCHDOG=1")
    assert len(fed) > 10 and max(np.diff(fed)) < HANGS_SECONDS


def test_a_stuck_program_is_not_fed(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, tmp_path: Path) -> None:
    run(monkeypatch, supervisor, make_bundle(tmp_path / "bundle"), Stuck())
    assert max(np.diff(supervisor.times("WATCHDOG=1"))) >= HANGS_SECONDS


def test_without_a_supervisor_nothing_is_sent_and_nothing_called() -> None:
    session = Service(Breathless(0.0), open_classifier(quiet().bundle), quiet()).session
    before = session.after_block
    SupervisorView(session, {}).__enter__()
    assert session.after_block is before


def test_another_process_s_watchdog_is_not_ours() -> None:
    session = Service(Breathless(0.0), open_classifier(quiet().bundle), quiet()).session
    environment = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    view = SupervisorView(session, environment)
    view.__enter__()  # nobody listens there: no error
    assert view._pause == device.view.supervisor.STATUS_SECONDS


@pytest.mark.sound
def test_a_service_waits_for_a_microphone_that_is_absent(
    plugged: VirtualMicrophone, supervisor: Supervisor, tmp_path: Path
) -> None:
    plugged.unplug()
    arguments = ("listen", "--no-store", "--bundle", str(make_bundle(tmp_path / "bundle")))
    with device_process(*arguments, **supervisor.environment) as service:
        supervisor.wait_for("READY=1")
        lost = supervisor.wait_for("STATUS=", since=supervisor.wait_for("WATCHDOG=1"))
        assert any("listening goes on by itself" in text for _, text in supervisor.messages), supervisor.messages
        time.sleep(4.0)  # without sound a block comes twice a second
        assert len(supervisor.times("WATCHDOG=1", lost)) > 5  # an unplugged box is alive
        plugged.replug()
        supervisor.wait_for("STATUS=listening to ", since=time.monotonic())
        service.send_signal(signal.SIGTERM)
        assert service.wait(20) == 0
    assert supervisor.messages[-1][1].splitlines() == ["STOPPING=1", "STATUS=stopped by SIGTERM"]


@pytest.mark.sound
def test_a_command_by_hand_ends_at_once_without_a_microphone(plugged: VirtualMicrophone, tmp_path: Path) -> None:
    plugged.unplug()
    with device_process("listen", "--no-store", "--bundle", str(make_bundle(tmp_path / "bundle"))) as command:
        _, error = command.communicate(timeout=30)
    assert command.returncode == 2 and len(error.splitlines()) == 1


@contextmanager
def supervised(view: SupervisorView, source: MicrophoneSource) -> Iterator[None]:
    """Feed the view as a session does."""
    ending = threading.Event()

    def feed() -> None:
        for block in source.blocks():
            if block.note:
                view.show(Entry(0, block.kind, 0, block.note))
            view.feed()
            if ending.is_set():
                return

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(20)


def freeze_and_refuse(plugged: VirtualMicrophone) -> None:
    """A frozen sound server keeps the first callers waiting and refuses the rest, as if there were no microphone."""
    plugged.freeze()
    time.sleep(device.capture.microphone.OPENING_SECONDS + 2.0)  # one try that waits
    plugged.fill()


@pytest.mark.sound
@pytest.mark.parametrize(
    ("fault", "repair", "starves"),
    [
        (VirtualMicrophone.freeze, VirtualMicrophone.thaw, True),
        (freeze_and_refuse, VirtualMicrophone.thaw, True),
        (lambda plugged: plugged.suspend(True), lambda plugged: plugged.suspend(False), True),
        (VirtualMicrophone.unplug, VirtualMicrophone.replug, False),
    ],
    ids=["frozen", "frozen-and-refusing", "suspended", "unplugged"],
)
def test_only_a_present_microphone_that_stays_silent_starves_the_watchdog(
    monkeypatch: pytest.MonkeyPatch,
    plugged: VirtualMicrophone,
    supervisor: Supervisor,
    fault: Callable[[VirtualMicrophone], None],
    repair: Callable[[VirtualMicrophone], None],
    starves: bool,
) -> None:
    monkeypatch.setattr(device.view.supervisor, "RECOVERY_SECONDS", 3.0)
    settings = quiet()
    source = MicrophoneSource(settings.audio)
    view = SupervisorView(Service(source, open_classifier(settings.bundle), settings).session, supervisor.environment)
    with supervised(view, source):
        supervisor.wait_for("WATCHDOG=1")
        fault(plugged)
        began = time.monotonic()
        time.sleep(9.0)
        late = [at - began for at in supervisor.times("WATCHDOG=1", began)]
        repair(plugged)
        repaired = time.monotonic()
        supervisor.wait_for("STATUS=listening to ", since=repaired)
        supervisor.wait_for("WATCHDOG=1", since=repaired)
    assert (max(late, default=0.0) < 4.5) == starves, late
    assert bool(supervisor.times("STATUS=the microphone has given no sound for", began)) == starves
