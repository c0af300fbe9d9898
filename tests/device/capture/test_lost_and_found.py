"""Capture that never goes deaf: real faults of a real (virtual) microphone, real processes killed."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import soundfile
from scipy.signal import correlate

from device.breath.simulator import simulate
from device.capture.blocks import Block
from device.capture.microphone import MicrophoneSource
from device.capture.process import CaptureError, clock
from device.signal import SAMPLE_RATE, FloatArray
from firmware_config.settings import AudioSettings, load_settings
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle
from tests.device.virtual_microphone import DEFAULT, NAME, VirtualMicrophone

T = TypeVar("T")
FULL = os.environ.get("RESPSAM_SOAK") == "1"
SHOWN_SECONDS = 2.0  # a fault is shown within
BACK_SECONDS = 5.0  # of the device's return, sound is back within


def audio(device: str = NAME, **changes: object) -> AudioSettings:
    return load_settings(flags={"audio.device": device}, environment={}).audio.model_copy(update=changes)


class Listening:
    """Listens in a thread and keeps every block with the time at which it came."""

    def __init__(self, settings: AudioSettings) -> None:
        self.source = MicrophoneSource(settings)
        self.blocks: list[tuple[float, Block]] = []
        self._stop = False
        self.began = clock()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        stream = self.source.blocks()
        for block in stream:
            self.blocks.append((clock(), block))
            if self._stop:
                stream.close()

    def stop(self) -> None:
        self._stop = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def heard(self) -> FloatArray:
        return np.concatenate([block.samples for _, block in self.blocks])

    @property
    def kinds(self) -> list[str]:
        return [block.kind for _, block in self.blocks if block.note]

    def wait_for(self, kind: str, seconds: float, since: float = 0.0) -> tuple[float, Block]:
        """The first entry of a kind since then, with its time; it must come in time."""

        def found() -> "tuple[float, Block] | None":
            entries = (one for one in self.blocks[:] if one[1].note and one[1].kind == kind and one[0] >= since)
            return next(entries, None)

        return until(found, seconds, f"no {kind} in {[(b.kind, b.note) for _, b in self.blocks if b.note]}")

    def wait_for_sound(self, seconds: float) -> None:
        until(lambda: any(block.samples.size for _, block in self.blocks[:]) or None, seconds, "no sound")

    def assert_balanced(self) -> None:
        """Every sample since the first is used or missing: the account follows the clock, and blocks keep coming."""
        times = [at for at, _ in self.blocks]
        assert max(np.diff([self.began, *times])) < 1.0
        accounted = sum(block.samples.size + block.missing for _, block in self.blocks) / SAMPLE_RATE
        assert accounted == pytest.approx(times[-1] - self.began, abs=0.8)


def until(found: "Callable[[], T | None]", seconds: float, otherwise: str) -> T:
    end = clock() + seconds
    while clock() < end:
        answer = found()
        if answer is not None:
            return answer
        time.sleep(0.02)
    raise AssertionError(otherwise)


@contextmanager
def listening(settings: AudioSettings) -> Iterator[Listening]:
    one = Listening(settings)
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Two minutes that are nowhere silent and nowhere alike."""
    path = tmp_path / "noise.wav"
    samples = np.random.default_rng(0).normal(0.0, 0.05, 120 * SAMPLE_RATE)
    soundfile.write(path, samples, SAMPLE_RATE)
    return path


def children(process: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == process and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def capture_processes(parent: int) -> list[int]:
    return [one for one in children(parent) if b"device.capture.process" in Path(f"/proc/{one}/cmdline").read_bytes()]


# the real thing


@pytest.mark.sound
def test_what_is_played_is_what_is_heard(tmp_path: Path, plugged: VirtualMicrophone) -> None:
    said = 8 * simulate(3, 6.0).samples
    soundfile.write(tmp_path / "breath.wav", said, SAMPLE_RATE, subtype="PCM_24")
    with listening(audio(sample_rate=48_000, gain_db=6.0)) as one:
        one.wait_for_sound(BACK_SECONDS)
        plugged.play(tmp_path / "breath.wav").wait(30)
        time.sleep(1.0)
    one.assert_balanced()
    assert sum(block.missing for _, block in one.blocks) == 0
    assert one.source.highest_hz == 24_000
    heard = one.heard
    start = int(np.argmax(correlate(heard, said, mode="valid")))
    aligned = heard[start : start + said.size]
    assert float(np.corrcoef(aligned, said)[0, 1]) > 0.999
    assert float(np.std(aligned) / np.std(said)) == pytest.approx(10 ** (6 / 20), rel=0.02)


@pytest.mark.sound
@pytest.mark.timeout(1500)
def test_unplugged_and_plugged_in_again_and_again(noise: Path, plugged: VirtualMicrophone) -> None:
    rng = np.random.default_rng(1)
    with listening(audio()) as one:
        one.wait_for_sound(BACK_SECONDS)
        for number in range(100 if FULL else 5):
            gone = clock()
            plugged.unplug()
            shown, _ = one.wait_for("lost", SHOWN_SECONDS, gone)
            time.sleep(float(rng.uniform(0.0, 2.0)))
            again = clock()
            plugged.replug()
            player = plugged.play(noise)
            back, block = one.wait_for("back", BACK_SECONDS, again)
            assert shown < again < back
            assert "sound again after" in block.note
            time.sleep(float(rng.uniform(0.3, 1.0)))
            player.kill()
            player.wait()
            assert one.kinds.count("lost") == one.kinds.count("back") == number + 1
    one.assert_balanced()
    missing = sum(block.missing for _, block in one.blocks) / SAMPLE_RATE
    told = sum(float(block.note.split()[-2]) for _, block in one.blocks if block.kind == "back" and block.note)
    assert missing == pytest.approx(told, abs=0.1 * len(one.kinds))
    # what comes after the last return is sound, not silence
    assert np.std(one.heard[-SAMPLE_RATE // 4 :]) > 0.01


@pytest.mark.sound
def test_a_killed_sound_server_is_waited_for(plugged: VirtualMicrophone) -> None:
    with listening(audio()) as one:
        one.wait_for_sound(BACK_SECONDS)
        plugged.kill()
        one.wait_for("lost", SHOWN_SECONDS)
        time.sleep(3.0)
        plugged.start()
        plugged.wait()
        one.wait_for("back", BACK_SECONDS)
        time.sleep(0.5)
    one.assert_balanced()


@pytest.mark.sound
def test_a_frozen_sound_server_is_left_alone_until_it_thaws(plugged: VirtualMicrophone) -> None:
    with listening(audio()) as one:
        one.wait_for_sound(BACK_SECONDS)
        plugged.freeze()
        _, block = one.wait_for("lost", SHOWN_SECONDS)
        assert f"{NAME} gives no sound" in block.note
        time.sleep(30.0 if FULL else 5.0)
        assert len(capture_processes(os.getpid())) <= 1
        plugged.thaw()
        one.wait_for("back", BACK_SECONDS)
        time.sleep(0.5)
    one.assert_balanced()


@pytest.mark.sound
def test_a_device_that_sleeps_is_lost_until_it_wakes(plugged: VirtualMicrophone) -> None:
    with listening(audio()) as one:
        one.wait_for_sound(BACK_SECONDS)
        plugged.suspend(True)
        one.wait_for("lost", SHOWN_SECONDS)
        time.sleep(3.0)
        plugged.suspend(False)
        one.wait_for("back", BACK_SECONDS)
        time.sleep(0.5)
    one.assert_balanced()


@pytest.mark.sound
def test_a_device_that_is_not_there_yet_is_waited_for_when_it_has_a_name(plugged: VirtualMicrophone) -> None:
    plugged.unplug()
    with listening(audio()) as one:
        _, block = one.wait_for("lost", SHOWN_SECONDS)
        assert "no microphone called 'virtmic'" in block.note or "virtmic" in block.note
        time.sleep(1.0)
        plugged.replug()
        one.wait_for("back", BACK_SECONDS)
        time.sleep(0.5)
    one.assert_balanced()
    assert one.kinds[:2] == ["lost", "back"]


@pytest.mark.sound
@pytest.mark.parametrize("device", ["", "99"])
def test_without_a_name_nothing_is_waited_for(plugged: VirtualMicrophone, device: str) -> None:
    plugged.kill()
    with pytest.raises(CaptureError, match=r"--source demo|does not open"):
        MicrophoneSource(audio(device))


@pytest.mark.sound
def test_mute_is_told_and_nothing_is_restarted(noise: Path, plugged: VirtualMicrophone) -> None:
    player = plugged.play(noise)
    with listening(audio()) as one:
        one.wait_for_sound(BACK_SECONDS)
        (child,) = capture_processes(os.getpid())
        time.sleep(0.5)
        plugged.mute(True)
        muted, _ = one.wait_for("mute", 4.0, clock())
        time.sleep(1.0)
        plugged.mute(False)
        _, block = one.wait_for("mute", 2.0, muted + 0.5)
        assert "sound again after" in block.note
        assert capture_processes(os.getpid()) == [child]
    player.kill()
    player.wait()
    one.assert_balanced()
    assert sum(block.missing for _, block in one.blocks) == 0
    assert set(one.kinds) == {"mute"}


@pytest.mark.sound
def test_a_refused_rate_falls_back_and_says_so(plugged: VirtualMicrophone) -> None:
    # more than the settings allow: this device takes all that they do
    with listening(audio(sample_rate=500_000)) as one:
        _, block = one.wait_for("rate", BACK_SECONDS)
        assert "refuses 500000 Hz; recording at 44100 Hz" in block.note
        time.sleep(1.0)
    assert one.heard.size > SAMPLE_RATE / 2


@pytest.mark.sound
def test_a_killed_capture_process_is_replaced(plugged: VirtualMicrophone) -> None:
    with listening(audio()) as one:
        one.wait_for_sound(BACK_SECONDS)
        for _ in range(3):
            (child,) = capture_processes(os.getpid())
            killed = clock()
            os.kill(child, signal.SIGKILL)
            one.wait_for("lost", SHOWN_SECONDS, killed)
            one.wait_for("back", BACK_SECONDS, killed)
            time.sleep(0.3)
    one.assert_balanced()
    assert not capture_processes(os.getpid())


@pytest.mark.sound
@pytest.mark.parametrize("name", [NAME, DEFAULT])
def test_another_source_is_never_taken_in_its_place(
    noise: Path, plugged: VirtualMicrophone, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is played into the microphone, so whatever sounds is the other one."""
    monkeypatch.setenv("PATH", "/nowhere")  # no program, as pactl, need be there to know it
    plugged.make_default("feed")
    plugged.replug("other")
    player = plugged.play(noise, "other")
    with listening(audio(name)) as one:
        one.wait_for_sound(BACK_SECONDS)
        time.sleep(1.0)
        # the sound server moves the stream there, without a word, and we go back
        plugged.make_default("other")
        _, block = one.wait_for("lost", SHOWN_SECONDS)
        assert "feed.monitor has gone and the sound server took other.monitor instead" in block.note
        back, _ = one.wait_for("back", BACK_SECONDS)
        time.sleep(0.5)
        # now there is nothing to go back to
        unplugged = clock()
        plugged.unplug()
        gone, _ = one.wait_for("lost", SHOWN_SECONDS, unplugged)
        time.sleep(4.0)
        assert one.kinds.count("back") == 1
        plugged.replug()
        again, _ = one.wait_for("back", BACK_SECONDS, clock())
        time.sleep(0.5)
    player.kill()
    player.wait()
    one.assert_balanced()
    assert np.any(one.heard)  # of what the server let in until we looked
    assert not any(block.samples.size for at, block in one.blocks if gone < at < again)
    for begin, end in ((back, unplugged), (again, math.inf)):
        assert not np.any(np.concatenate([block.samples for at, block in one.blocks if begin < at < end]))


@pytest.mark.sound
def test_where_nobody_can_be_asked_which_microphone_it_is_that_is_said(
    tmp_path: Path, plugged: VirtualMicrophone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "import device.capture.sound_server; device.capture.sound_server.LIBRARY = 'libnothing.so.0'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with listening(audio()) as one:
        one.wait_for_sound(BACK_SECONDS)
        until(lambda: one.source.unverified or None, BACK_SECONDS, "no doubt")
    assert "cannot verify which microphone this is" in one.source.unverified
    monkeypatch.delenv("PYTHONPATH")
    with listening(audio()) as one:
        one.wait_for_sound(BACK_SECONDS)
        time.sleep(1.0)
    assert one.source.unverified == ""


# other processes


PARENT = f"""
import sys
from device.capture.microphone import MicrophoneSource
from firmware_config.settings import load_settings
source = MicrophoneSource(load_settings(flags={{"audio.device": "{NAME}"}}, environment={{}}).audio)
for block in source.blocks():
    print(block.samples.size, block.kind if block.note else "", flush=True)
"""


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RESPSAM_AUDIO__DEVICE": NAME},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.sound
@pytest.mark.parametrize("frozen", [False, True])
def test_a_killed_parent_leaves_no_process_and_no_memory_behind(plugged: VirtualMicrophone, frozen: bool) -> None:
    before = set(Path("/dev/shm").iterdir())
    parent = start("-c", PARENT)
    assert parent.stdout is not None
    parent.stdout.readline()
    if frozen:
        plugged.freeze()
        while "lost" not in parent.stdout.readline():
            pass
        time.sleep(0.5)  # the next one hangs in its opening by now
    started = capture_processes(parent.pid)
    assert len(started) == 1
    parent.kill()
    parent.communicate()
    until(lambda: None if any(map(runs, started)) else True, 5.0, "the capture process stays")
    assert set(Path("/dev/shm").iterdir()) == before


@pytest.mark.sound
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize("gone", [False, True])
def test_a_signal_ends_listening_with_the_account(
    tmp_path: Path, plugged: VirtualMicrophone, number: signal.Signals, code: int, gone: bool
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    one = start("-m", "device", "listen", "--json", "--no-store", "--bundle", str(bundle))
    assert one.stdout is not None
    first = json.loads(one.stdout.readline())
    assert (first["kind"], first["note"]) == ("start", NAME)
    time.sleep(1.5)
    if gone:
        plugged.unplug()
        time.sleep(2.5)
    child = capture_processes(one.pid)
    one.send_signal(number)
    sent = clock()
    out, error = one.communicate(timeout=30)
    assert clock() - sent < 2.0
    assert (one.returncode, error) == (code, "")
    *happened, end, summary = map(json.loads, out.splitlines())
    assert end["note"] == f"stopped by {number.name}"
    assert ("lost" in [entry.get("kind") for entry in happened]) == gone
    seconds = summary["seconds"]
    assert seconds["heard"] > 0.5
    assert (seconds["missing"] > 1.0) == gone
    assert seconds["heard"] + seconds["missing"] == pytest.approx(4.0 if gone else 1.5, abs=1.2)
    assert not any(map(runs, child))


# as below systemd's MemoryDenyWriteExecute=yes: nothing may make code at run time
DENY = """
import ctypes, os, sys
PR_SET_MDWE = 65
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_MDWE, 1, 0, 0, 0):
    sys.exit("no MDWE")
os.execv(sys.executable, [sys.executable, "-m", "device", *sys.argv[1:]])
"""


@pytest.mark.sound
def test_a_microphone_is_heard_where_no_memory_may_become_executable(
    tmp_path: Path, plugged: VirtualMicrophone
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    one = start("-c", DENY, "listen", "--json", "--no-store", "--bundle", str(bundle), "--seconds", "1")
    out, error = one.communicate(timeout=60)
    if error == "no MDWE\n":
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert (one.returncode, error) == (0, "")
    assert json.loads(out.splitlines()[-1])["seconds"]["heard"] == 1.0
