"""What the console costs the process that listens: processor time per second of sound, alone and with two browsers.

Run from the repository: python -m tests.bench.console_load [--seconds 60]
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

GOAL = 0.02
WARM_SECONDS = 6.0  # imports and the model's first run do not count
TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def children(pid: int) -> list[int]:
    """Processes that a process has started, in whichever thread."""
    lists = [task.joinpath("children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [int(number) for listed in lists for number in listed.split()]


def measured(seconds: float, *options: str, meanwhile: Callable[[str], None] = lambda url: None) -> tuple[float, float]:
    """Processor time per second of sound: of the process that listens, and of the console's process."""
    command = [sys.executable, "-m", "device", "listen", "--source", "demo", "--no-store", "--json", *options]
    environment = {**os.environ, "RESPSAM_CONSOLE__PORT": "0", "RESPSAM_DEMO__SECONDS": str(seconds + 120)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:  # type: ignore[call-overload]
        if options:
            meanwhile(process.stderr.readline().split("console is at ")[1].strip())
        process.stdout.readline()
        threading.Thread(target=process.stdout.read, daemon=True).start()
        time.sleep(WARM_SECONDS)
        ours = [process.pid, *children(process.pid)]
        before, began = [processor_seconds(pid) for pid in ours], time.monotonic()
        time.sleep(seconds)
        after, passed = [processor_seconds(pid) for pid in ours], time.monotonic() - began
        process.terminate()
    spent = [(one - other) / passed for one, other in zip(after, before, strict=True)]
    return spent[0], sum(spent[1:])


def two_browsers(url: str) -> None:
    """Two readers of everything, as the live page is one."""
    from websockets.sync.client import connect
    from websockets.typing import Origin

    def read() -> None:
        with suppress(Exception), connect(f"ws{url[4:]}live", origin=Origin(url.rstrip("/"))) as socket:
            for _ in socket:
                pass

    for _ in range(2):
        threading.Thread(target=read, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement (default 60)")
    seconds = parser.parse_args().seconds
    alone, _ = measured(seconds)
    shown, console = measured(seconds, "--console", meanwhile=two_browsers)
    print(f"the process that listens: {alone:.4f} alone, {shown:.4f} with two browsers ({shown - alone:+.4f})")
    print(f"the console's process: {console:.4f}")
    print(f"goal: a rise of at most {GOAL}: {'reached' if shown - alone <= GOAL else 'MISSED'}")


if __name__ == "__main__":
    main()
