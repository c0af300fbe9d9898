"""Work on a real cluster of two machines, here by processes of their own: the same results, whatever dies."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import soundfile

from device.breath.simulator import simulate
from device.cluster import RESTARTS, ClusterError, on_ray
from device.listening import screening
from device.listening.results import Screened
from device.runtime import disable_telemetry
from device.signal import SAMPLE_RATE
from firmware_config.settings import Settings, load_settings
from tests.conftest import REPOSITORY
from tests.device.conftest import Device, one_error


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head with one core; its files are its own."""
    disable_telemetry()
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    # short: Unix sockets are below it
    with TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PYTHONPATH", str(REPOSITORY))  # of the workers
        # Ray reads at its import what `on_ray` sets before it; this process has imported it
        ray_logging = import_module("ray._private.ray_logging")
        patch.setattr(ray_logging.stdout_deduplicator, "skip_re", re.compile(".*"))
        started = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        yield started
        started.shutdown()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of different lengths, one that is none, and one that is cut off."""
    folder = tmp_path_factory.mktemp("archive")
    for number in range(16):
        soundfile.write(folder / f"{number:02}.wav", simulate(number, 20.0 - number / 3).samples, SAMPLE_RATE)
    (folder / "07.wav").write_bytes(b"no sound")
    whole = (folder / "09.wav").read_bytes()
    (folder / "09.wav").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def settings(bundle: Path) -> Settings:
    return load_settings(flags={"bundle.path": str(bundle)}, environment={})


def test_verdicts_are_those_of_a_screening_without_a_cluster(
    cluster: Any, settings: Settings, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, in the order of the files; a worker has another working folder."""
    monkeypatch.chdir(archive.parent)
    given = [Path(archive.name)]
    found = list(screening.screen(given, settings, cluster=cluster.address))
    assert found == list(screening.screen(given, settings))
    assert [bool(one.error) for one in found] == [number in (7, 9) for number in range(16)]


def test_a_stopped_screening_and_a_killed_machine_lose_and_repeat_nothing(
    cluster: Any, respsam_device: Device, bundle: Path, archive: Path, tmp_path: Path
) -> None:
    out, expected = tmp_path / "results.csv", tmp_path / "expected.csv"
    assert respsam_device("screen", archive, "--out", expected, "--bundle", bundle).code == 2
    screen = ("screen", str(archive), "--out", str(out), "--bundle", str(bundle), "--ray", cluster.address)
    stopped = started(*screen)
    wait_until(lambda: out.is_file() and out.read_bytes().count(b"\n") > 2, stopped)
    stopped.kill()
    stopped.communicate()
    kept = out.read_bytes()
    (raylet,) = cluster.add_node(num_cpus=1).all_processes["raylet"]
    running = started(*screen)
    wait_until(lambda: at_work(raylet.process.pid), running)
    os.kill(raylet.process.pid, signal.SIGKILL)  # its workers end with it
    said, error = running.communicate(timeout=200)
    assert (running.returncode, said) == (2, "")
    assert out.read_bytes() == expected.read_bytes() and len(kept) > 200 and out.read_bytes().startswith(kept)
    *refused, total = error.splitlines()
    assert [line.startswith(f"respsam-device: error: {archive}/0") for line in refused] == [True, True]
    assert total.startswith("16 recordings: ") and f"in {out} already" in total


def started(*arguments: str) -> "subprocess.Popen[str]":
    """A `respsam-device` of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "device", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(true: Callable[[], bool], running: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 100
    while not true() and time.monotonic() < until:
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)


def at_work(raylet: int) -> bool:
    """Whether a worker of this machine is in the middle of a recording; Ray writes it into the title."""
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    return any(Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::_screen_there") for child in children)


def deadly(job: screening._Job) -> tuple[str, Screened]:
    """A recording that no worker survives."""
    if job.recording.name == "bad.wav":
        os._exit(1)
    return "host", Screened(job.recording, None, "worked")


def test_a_recording_of_which_every_worker_dies_is_a_row_and_the_others_go_on(
    cluster: Any, settings: Settings, tmp_path: Path
) -> None:
    jobs = [
        screening._Job(tmp_path / name, settings.bundle, settings.quality, screening.NO_OPTIONS)
        for name in ("bad.wav", "good.wav")
    ]
    bad, good = sorted(on_ray(deadly, jobs, (), screening._lost, address=cluster.address))
    assert good[1][1].error == "worked"
    assert bad[1][1].error.startswith(f"{tmp_path}/bad.wav: {RESTARTS + 1} workers died of it (")


# bad input


def test_what_only_this_machine_has_ends_in_one_line(
    cluster: Any, respsam_device: Device, bundle: Path, archive: Path
) -> None:
    """By numbers of open files, which are each process's own."""
    recording, folder = 900, 901
    os.dup2(os.open(archive / "00.wav", os.O_RDONLY), recording)
    os.dup2(os.open(bundle, os.O_RDONLY), folder)
    there = ("--ray", cluster.address)
    own = f"/proc/self/fd/{recording}"
    said = one_error(respsam_device("screen", own, "--bundle", bundle, *there))
    assert f"{own}: {os.uname().nodename} cannot read it; the machines of a cluster must share" in said
    said = one_error(respsam_device("screen", archive, "--bundle", f"/proc/self/fd/{folder}", *there))
    assert f"error: {os.uname().nodename}: /proc/self/fd/{folder}: no bundle here" in said


def test_a_machine_without_the_program_ends_in_one_line(
    cluster: Any, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def work(job): return 0")
    monkeypatch.syspath_prepend(tmp_path)
    job = screening._Job(tmp_path / "a.wav", settings.bundle, settings.quality, screening.NO_OPTIONS)
    work = import_module("only_here").work
    with pytest.raises(ClusterError, match=r"a\.wav: a machine cannot judge it \(\w+Error: .*\); .* the same program"):
        list(on_ray(work, [job], (), screening._lost, address=cluster.address))


def test_a_machine_with_another_program_or_bundle_is_refused(settings: Settings, archive: Path) -> None:
    job = screening._Job(archive / "00.wav", settings.bundle, settings.quality, screening.NO_OPTIONS)
    judge = screening._judge(job)
    assert screening._screen_there(job, Path("/nowhere"), judge)[1].summary is not None
    for name in judge:
        with pytest.raises(ClusterError, match=f"{name.replace('_', ' ')} is .*, here it is other; .* same program"):
            screening._screen_there(job, Path("/nowhere"), {**judge, name: "other"})


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: nothing answers there (Connection refused); start one with 'ray start"),
        ("ray://127.0.0.1:1", "nothing answers there"),
        ("nowhere", "--ray nowhere: no cluster answers there"),
    ],
)
def test_an_address_without_a_cluster(
    respsam_device: Device, bundle: Path, archive: Path, address: str, said: str
) -> None:
    pytest.importorskip("ray")
    assert said in one_error(respsam_device("screen", archive, "--bundle", bundle, "--ray", address))


def test_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder whose path is too long for its sockets."""
    disable_telemetry()
    pytest.importorskip("ray")
    with TemporaryDirectory(dir="/tmp", prefix="x" * 60) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        with pytest.raises(ClusterError, match=r"Ray does not start here .*107 bytes.*; leave --jobs out"):
            list(on_ray(abs, [-1], (), lambda *_: 0))


def test_without_ray_the_extra_is_named(
    respsam_device: Device, bundle: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = one_error(respsam_device("screen", archive, "--bundle", bundle, "--ray", "127.0.0.1:6379"))
    assert said.endswith("no ray here; it needs pip install 'respsam[cluster]'")
