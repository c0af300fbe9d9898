"""What `screen --ray` adds and gains: one worker against two, in turns, on a folder of recordings.

Run from the repository: python -m tests.bench.cluster_screening FOLDER [--rounds 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

from device.runtime import disable_telemetry
from tests.conftest import REPOSITORY

TICKS = os.sysconf("SC_CLK_TCK")


class Screening(NamedTuple):
    """One pass over the folder, seconds."""

    whole: float
    """From the command to its end."""
    steady: float
    """From the first verdict to the last one."""
    start: float
    """Of the workers' cores, up to the first verdict."""
    cores: float
    """Of the workers' cores from there on: what matters where other programs take their part of the machine."""


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    """Machines with one core each."""
    from ray.cluster_utils import Cluster

    with TemporaryDirectory(dir="/tmp") as folder:
        os.environ["RAY_TMPDIR"] = folder
        machines: Any = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(workers - 1):
            machines.add_node(num_cpus=1)
        yield machines
        machines.shutdown()


def core_seconds(machines: Any) -> float:
    """That the workers of a cluster have used, start included; Ray ends them after each command."""
    used = 0
    for node in [machines.head_node, *machines.worker_nodes]:
        raylet = node.all_processes["raylet"][0].process.pid
        for worker in Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split():
            if Path(f"/proc/{worker}/cmdline").read_bytes().startswith(b"ray::_screen_there"):
                used += sum(map(int, Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return used / TICKS


def screened(folder: Path, machines: Any) -> Screening:
    """One command."""
    began, lines, cores = perf_counter(), [], []
    command = [sys.executable, "-m", "device", "screen", str(folder), "--json", "--ray", machines.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        for _ in running.stdout:
            lines.append(perf_counter())
            cores.append(core_seconds(machines))
    return Screening(perf_counter() - began, lines[-1] - lines[0], cores[0], cores[-1] - cores[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="recordings; at least a minute of work")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    disable_telemetry()
    os.environ.update({"PYTHONPATH": str(REPOSITORY), "RAY_worker_niceness": "0"})
    number = sum(1 for path in arguments.folder.iterdir() if path.suffix in (".wav", ".flac"))
    rounds = []
    with cluster(1) as single, cluster(2) as pair:
        for _ in range(arguments.rounds):
            rounds.append((screened(arguments.folder, single), screened(arguments.folder, pair)))
            print(" | ".join(" ".join(f"{seconds:6.1f}" for seconds in one) for one in rounds[-1]), flush=True)
    for place, workers in enumerate(("one worker", "two workers")):
        whole, steady, start, cores = map(statistics.median, zip(*(both[place] for both in rounds), strict=True))
        print(
            f"{workers}: {whole:.1f} s, {3600 * (number - 1) / steady:.0f} recordings an hour once it runs; a core's "
            f"seconds: {start:.1f} to start, {cores / (number - 1):.3f} a recording"
        )
    gains = sorted(first.steady / second.steady for first, second in rounds)
    print(f"two workers against one: {statistics.median(gains):.2f} ({gains[0]:.2f}-{gains[-1]:.2f})")


if __name__ == "__main__":
    main()
