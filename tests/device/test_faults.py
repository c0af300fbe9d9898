"""What happens around a device that listens: real processes, real signals."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from device.breath.simulator import simulate
from device.bundle import read_bundle
from device.signal import SAMPLE_RATE
from tests.device.bundle_maker import make_bundle


@pytest.fixture
def listening(tmp_path: Path) -> "subprocess.Popen[str]":
    """A device that listens to a recording of 12 s at its own pace, with a bundle of its own in `bundle`."""
    make_bundle(tmp_path / "bundle")
    soundfile.write(tmp_path / "chest.wav", simulate(4, 12.0).samples, SAMPLE_RATE, subtype="PCM_24")
    options = ["--source", "chest.wav", "--bundle", "bundle", "--json", "--no-store"]
    command = [sys.executable, "-m", "device", "listen", *options]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_cycle(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["type"] == "cycle":
            return
    raise AssertionError("no cycle came")


def test_a_bundle_replaced_while_it_runs_changes_nothing_until_the_next_start(
    listening: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    fingerprint = read_bundle(tmp_path / "bundle").fingerprint
    until_cycle(listening)
    shutil.rmtree(tmp_path / "bundle")
    make_bundle(tmp_path / "bundle", logits=(0.0, 9.0, 0.0, 0.0))
    out, error = listening.communicate(timeout=60)
    summary = json.loads(out.splitlines()[-1])
    assert (listening.returncode, error) == (0, "")
    assert summary["bundle"] == fingerprint != read_bundle(tmp_path / "bundle").fingerprint
    assert summary["seconds"]["heard"] == 12.0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_leaves_the_account_within_two_seconds(
    listening: "subprocess.Popen[str]", number: signal.Signals, code: int
) -> None:
    until_cycle(listening)
    listening.send_signal(number)
    out, _ = listening.communicate(timeout=2)
    summary = json.loads(out.splitlines()[-1])
    assert (listening.returncode, summary["type"]) == (code, "summary")
    assert 0 < summary["seconds"]["heard"] < 12
