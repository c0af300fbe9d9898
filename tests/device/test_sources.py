"""Where sound comes from: recordings, the demo, and a real PortAudio stream from a virtual microphone."""

import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from device.audio import AudioError
from device.signal import SAMPLE_RATE, FloatArray
from device.simulator import auscultate
from device.sources import BoundedQueue, CaptureError, DemoSource, FileSource, MicrophoneSource, paced
from tests.conftest import REPOSITORY, RunCli
from tests.device.bundle_maker import make_bundle
from tests.device.virtual_microphone import NAME, VirtualMicrophone, virtual_microphone


def all_of(source: FileSource | DemoSource) -> FloatArray:
    return np.concatenate([block.samples for block in source.blocks()])


def test_blocks_are_the_whole_sound_in_order() -> None:
    samples = auscultate(1, 2.05).samples
    blocks = list(paced(samples, fast=True))
    np.testing.assert_array_equal(np.concatenate([block.samples for block in blocks]), samples)
    assert {block.samples.size for block in blocks[:-1]} == {1600}
    assert not any(block.missing or block.note for block in blocks)


def test_a_paced_block_comes_when_it_has_been_said_and_not_before() -> None:
    began = time.monotonic()
    arrived = [time.monotonic() - began for _ in paced(np.zeros(8_000, np.float32), fast=False)]
    assert all(at >= 0.1 * number for number, at in enumerate(arrived, 1))
    assert all(later > earlier for earlier, later in pairwise(arrived))


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 44_100])
def test_a_recording_is_heard_at_16_khz(tmp_path: Path, sample_rate: int) -> None:
    time_axis = np.arange(2 * sample_rate) / sample_rate
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(2 * np.pi * 440 * time_axis), sample_rate)
    heard = all_of(FileSource(tmp_path / "tone.wav", fast=True))
    assert heard.size == 2 * SAMPLE_RATE
    assert int(np.argmax(np.abs(np.fft.rfft(heard)))) == 2 * 440


def test_a_recording_that_cannot_be_read_is_refused_before_it_is_heard(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match="empty"):
        FileSource(tmp_path / "empty.wav")


def test_the_demo_is_the_simulator() -> None:
    source = DemoSource(7, 5.0, fast=True)
    np.testing.assert_array_equal(all_of(source), auscultate(7, 5.0).samples)
    assert source.demo
    assert "seed 7" in source.name


def microphone(device: str = "") -> MicrophoneSource:
    return MicrophoneSource(device, 0, 0, 0.1, 30.0)


def test_without_portaudio_the_error_names_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # what `import sounddevice` does where the library is missing, in this process and in the one that goes first
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(CaptureError, match=r"PortAudio is not installed.*--source demo"):
        microphone()


def test_a_crash_of_portaudio_is_an_error_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sounddevice.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CaptureError, match=r"PortAudio crashes here \(signal 6\).*--source demo"):
        microphone()


def test_a_dropped_block_is_missing_where_it_was_dropped() -> None:
    waiting = BoundedQueue(channel=1, blocks=2)

    def captured(value: float) -> None:
        waiting.put(np.array([[9.0, value]] * 100, np.float32), 100, None, SimpleNamespace(input_overflow=False))

    for value in (1.0, 2.0, 3.0, 4.0):
        captured(value)
    taken = [waiting.get(1.0), waiting.get(1.0)]
    captured(5.0)
    taken.append(waiting.get(1.0))
    assert [(float(one.samples[0]), one.lost_frames) for one in taken] == [(1.0, 0), (2.0, 0), (5.0, 200)]
    with pytest.raises(queue.Empty):
        waiting.get(0.01)


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualMicrophone]:
    """A microphone for the processes that the test starts."""
    with virtual_microphone(tmp_path / "mic") as plugged:
        for name, value in plugged.environment.items():
            monkeypatch.setenv(name, value)
        yield plugged


@pytest.mark.sound
def test_a_microphone_is_heard_at_its_pace(tmp_path: Path, run_cli: RunCli, plugged: VirtualMicrophone) -> None:
    soundfile.write(tmp_path / "breath.wav", 8 * auscultate(3, 60.0).samples, SAMPLE_RATE)
    bundle = make_bundle(tmp_path / "bundle")
    player = plugged.play(tmp_path / "breath.wav")
    began = time.monotonic()
    done = run_cli(
        *("device", "listen", "--json", "--no-store", "--seconds", "6", "--bundle", bundle),
        RESPSAM_AUDIO__DEVICE=NAME,
    )
    taken = time.monotonic() - began
    player.terminate()
    player.wait()
    assert done.returncode == 0, done.stderr
    *cycles, summary = map(json.loads, done.stdout.splitlines())
    assert summary["seconds"]["heard"] + summary["seconds"]["missing"] == 6.0
    assert taken >= 6.0
    assert not summary["demo"]
    assert summary["demo_agreement"] is None
    levels = [cycle["level_dbfs"] for cycle in cycles if cycle["type"] == "cycle"]
    # -40 dBFS were simulated, and played 18 dB louder
    assert max(levels) == pytest.approx(-22, abs=4)


@pytest.mark.sound
def test_what_the_full_queue_drops_is_counted_against_the_clock(plugged: VirtualMicrophone) -> None:
    code = (
        "import time\n"
        "from device.sources import MicrophoneSource\n"
        f"blocks = MicrophoneSource('{NAME}', 16_000, 0, 0.1, 1.0).blocks()\n"
        "next(blocks); began = time.monotonic(); time.sleep(4)\n"
        "heard = missing = late = 0\n"
        "while time.monotonic() - began < 6:\n"
        "    block = next(blocks); heard += block.samples.size; missing += block.missing\n"
        "    late += bool(block.missing and heard - block.samples.size < 8_000)\n"
        "print(heard / 16_000, missing / 16_000, time.monotonic() - began, late)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    heard, missing, elapsed, late = map(float, done.stdout.split())
    assert heard + missing == pytest.approx(elapsed, abs=0.8)
    # the queue holds 1 s of the 4
    assert missing == pytest.approx(3.0, abs=1.0)
    # and that second came before the gap
    assert late == 0


@pytest.mark.sound
def test_a_microphone_that_goes_ends_the_session_with_its_account(tmp_path: Path, plugged: VirtualMicrophone) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    listening = subprocess.Popen(
        [sys.executable, "-m", "device", "listen", "--json", "--no-store", "--bundle", str(bundle)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RESPSAM_AUDIO__DEVICE": NAME},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert listening.stdout is not None
    first = json.loads(listening.stdout.readline())
    assert first["kind"] == "start"
    time.sleep(1.5)
    plugged.unplug()
    out, error = listening.communicate(timeout=60)
    assert listening.returncode == 2
    assert "no sound arrives any more" in error
    *_, end, summary = map(json.loads, out.splitlines())
    assert "no sound arrives any more" in end["note"]
    assert summary["seconds"]["heard"] > 0.5
    assert summary["verdict"] == "poor quality" or summary["verdict"] == "not enough"


@pytest.mark.sound
def test_without_the_wished_for_microphone_the_error_names_the_demo(
    tmp_path: Path, run_cli: RunCli, plugged: VirtualMicrophone
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    done = run_cli("device", "listen", "--bundle", bundle, RESPSAM_AUDIO__DEVICE="nosuch")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no microphone called 'nosuch'" in line
    assert "--source demo" in line
