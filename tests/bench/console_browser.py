"""The live page in a real Chromium: first paint, verdict to screen, frames a second, memory, processor time.

The demo plays at its own pace, with the default bundle. Run from the repository:
python -m tests.bench.console_browser [--minutes 20]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests.bench.console_load import WARM_SECONDS, children, processor_seconds

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page

GOALS = {"first paint": 1000.0, "verdict to screen, p95": 150.0, "frames a second": 30.0}
VISITS = 10
PATIENCE_MILLISECONDS = 120_000  # where much else runs
FIRST_MINUTES = 2.0  # of the memory's first measurement: by then every list is full
# before the page's own scripts: counts drawings, and notes when a cycle's row is on the page
WATCH = """
window.drawn = 0;
const clear = CanvasRenderingContext2D.prototype.clearRect;
CanvasRenderingContext2D.prototype.clearRect = function (...area) {
  window.drawn += 1;
  return clear.apply(this, area);
};
window.shown = {};
addEventListener("DOMContentLoaded", () => new MutationObserver(() => {
  const number = document.querySelector("#cycles td")?.textContent;
  if (number && !(number in window.shown)) window.shown[number] = Date.now();
}).observe(document.getElementById("cycles"), { childList: true }));
"""


class Daemon:
    """`listen --console --json` on the demo; the time of each cycle's verdict, in ms since 1970."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        self.process, self.verdicts = process, dict[str, float]()
        self.url = process.stderr.readline().split("console is at ")[1].strip()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with suppress(ValueError):  # the process has ended
            for line in self.process.stdout or ():
                event = json.loads(line)
                if event["type"] == "cycle":
                    self.verdicts[str(event["number"])] = datetime.fromisoformat(event["time"]).timestamp() * 1000

    def spent(self) -> list[float]:
        """Processor seconds so far of the process that listens, and of the console's."""
        return [processor_seconds(pid) for pid in (self.process.pid, *children(self.process.pid))]


@contextmanager
def listening(seconds: float) -> Iterator[Daemon]:
    command = [sys.executable, "-m", "device", "listen", "--source", "demo", "--no-store", "--json", "--console"]
    environment = {**os.environ, "RESPSAM_CONSOLE__PORT": "0", "RESPSAM_DEMO__SECONDS": str(seconds)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:  # type: ignore[call-overload]
        yield Daemon(process)
        process.terminate()


def opened(browser: "Browser", url: str) -> "tuple[Page, CDPSession]":
    """A page with the live view, in a window of its own."""
    page = browser.new_context(viewport={"width": 1366, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    page.add_init_script(WATCH)
    page.goto(url)
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")
    return page, devtools


def first_paints(browser: "Browser", url: str) -> list[float]:
    """Milliseconds from a visit's start to its first content, without a cache."""
    found = []
    for _ in range(VISITS):
        page, _devtools = opened(browser, url)
        page.wait_for_selector("#demo:visible")
        script = "performance.getEntriesByType('paint').find(({ name }) => name === 'first-contentful-paint').startTime"
        found.append(float(page.evaluate(script)))
        page.context.close()
    return found


def memory(devtools: "CDPSession") -> tuple[float, int]:
    """Megabytes of the page's heap after a collection, and its nodes."""
    devtools.send("HeapProfiler.collectGarbage")
    metrics = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
    return metrics["JSHeapUsedSize"] / 1e6, int(metrics["Nodes"])


def measured(browser: "Browser", daemon: Daemon, minutes: float) -> dict[str, Any]:
    """Everything over so many minutes with two pages open; prints the memory as it goes."""
    paints = first_paints(browser, daemon.url)
    (page, devtools), (other, _) = opened(browser, daemon.url), opened(browser, daemon.url)
    page.wait_for_timeout(WARM_SECONDS * 1000)
    drawn, spent, began = int(page.evaluate("window.drawn")), daemon.spent(), time.monotonic()
    memories = []
    for minute in range(1, round(minutes) + 1):
        page.wait_for_timeout(max(0.0, began + 60 * minute - time.monotonic()) * 1000)
        if minute >= FIRST_MINUTES:
            memories.append(memory(devtools))
            print(f"minute {minute}: {memories[-1][0]:.2f} MB, {memories[-1][1]} nodes", flush=True)
    passed = time.monotonic() - began
    rates = [(after - before) / passed for after, before in zip(daemon.spent(), spent, strict=True)]
    shown = page.evaluate("window.shown")
    late = sorted(shown[number] - at for number, at in daemon.verdicts.items() if number in shown and int(number) > 3)
    frames = (int(page.evaluate("window.drawn")) - drawn) / passed
    other.context.close()
    return {
        "first paint": statistics.median(paints),
        "verdict to screen, median": statistics.median(late),
        "verdict to screen, p95": late[int(0.95 * len(late))],
        "breaths": len(late),
        "frames a second": frames,
        "memory": memories,
        "processor": rates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long two pages stay open (default 20)")
    minutes = parser.parse_args().minutes
    from playwright.sync_api import sync_playwright

    with listening(60 * minutes + 300) as daemon, sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        found = measured(browser, daemon, minutes)
        browser.close()
    for name in ("first paint", "verdict to screen, median", "verdict to screen, p95"):
        print(f"{name}: {found[name]:.0f} ms" + (f" (goal {GOALS[name]:.0f})" if name in GOALS else ""))
    print(f"breaths: {found['breaths']}")
    print(f"frames a second: {found['frames a second']:.1f} (goal {GOALS['frames a second']:.0f})")
    (first, nodes), (last, more) = found["memory"][0], found["memory"][-1]
    print(f"the page's heap: {first:.2f} MB after {FIRST_MINUTES:.0f} minutes, {last:.2f} MB at the end")
    print(f"nodes: {nodes}, {more}")
    ours, console = found["processor"][0], sum(found["processor"][1:])
    print(f"processor seconds a second: {ours:.3f} listening, {console:.3f} console")


if __name__ == "__main__":
    main()
