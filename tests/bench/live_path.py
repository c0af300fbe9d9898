"""What the whole live path costs on one core with the shipped bundle: time, memory, and what an hour leaves behind.

Run from the repository: python -m tests.bench.live_path [--hours 1]
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device.capture.blocks import Block

GOALS = {"real-time factor": 0.05, "RSS MB": 250.0, "start to first sound s": 2.0, "growth in an hour MB": 5.0}


def resident_megabytes() -> float:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Hours:
    """A simulated minute, over and over: as long as wanted, without holding it."""

    name, demo, live, highest_hz = "bench", True, False, None

    def __init__(self, seconds: float) -> None:
        from device.breath.simulator import simulate

        self.seconds, self.minute = seconds, simulate(7, 60.0).samples

    def blocks(self) -> "Iterator[Block]":
        """The minutes."""
        from device.capture.blocks import paced

        for _ in range(max(1, round(self.seconds / 60))):
            yield from paced(self.minute, fast=True)


def first_sound_seconds() -> float:
    """From typing the command to the first line about sound, a process of its own."""
    command = [sys.executable, "-m", "device", "listen", "--source", "demo", "--json", "--no-store"]
    began = perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = perf_counter() - began
        process.terminate()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0, help="sound to hear (default 1)")
    arguments = parser.parse_args()
    starts = sorted(first_sound_seconds() for _ in range(3))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    from device.listening.cycle import CycleResult
    from device.listening.live import Session
    from device.model.opening import open_classifier
    from firmware_config.settings import load_settings

    settings = load_settings()
    session = Session(Hours(3600 * arguments.hours), open_classifier(settings.bundle), settings.quality)
    inference, settled, wall, began = 0.0, 0.0, perf_counter(), process_time()
    for happened in session.run():
        if isinstance(happened, CycleResult):
            inference += happened.inference_seconds
            # allocators and caches have settled by then
            if not settled and happened.end_seconds > 300:
                settled = resident_megabytes()
    cpu, heard = process_time() - began, session.summary.seconds["heard"]
    measured = {
        "real-time factor": cpu / heard,
        "RSS MB": resident_megabytes(),
        "start to first sound s": starts[1],
        "growth in an hour MB": (resident_megabytes() - settled) / arguments.hours if settled else float("nan"),
    }
    print(f"{heard / 3600:.2f} h of sound, {session.cycles} cycles, in {perf_counter() - wall:.0f} s")
    print(f"of {1000 * cpu / session.cycles:.1f} ms a cycle {1000 * inference / session.cycles:.1f} are the model's")
    for name, value in measured.items():
        print(f"{name:24s} {value:8.3f}   goal {GOALS[name]:g}")


if __name__ == "__main__":
    main()
