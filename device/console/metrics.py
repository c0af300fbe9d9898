"""Figures for Prometheus, counted in the console's process from what the session's process sends."""

import json
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from device.breath.quality import SILENCE_DBFS, level_dbfs
from device.console.app import DocumentedRoute
from device.console.guard import METRICS
from device.console.line import RECORDED, SOUND, Message, unpacked_sound
from device.signal import SAMPLE_RATE
from firmware_config.board import ROOT, temperatures

LATENCIES: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds, the histogram's upper bounds
KINDS: Final = ("begin", "found", "cycle", "figures", "timeline", "end", "failed")


class Metrics:
    """Counters begin at 0 with the process and only grow, as Prometheus expects."""

    def __init__(self, model: Message, root: Path = ROOT) -> None:
        """`model` has the bundle's name and fingerprint."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._root, self._registry = root, CollectorRegistry()
        counter = partial(Counter, namespace="respsam", registry=self._registry)
        gauge = partial(Gauge, namespace="respsam", registry=self._registry)
        histogram = partial(Histogram, namespace="respsam", registry=self._registry)
        build = {"version": version("respsam"), "bundle": model["name"], "fingerprint": model["fingerprint"]}
        Info("build", "Program and bundle", namespace="respsam", registry=self._registry).info(build)
        self._sessions = counter("sessions", "Sessions that began")
        self._errors = counter("failed_sessions", "Sessions that ended with an error")
        self._cycles = counter("cycles", "Breath cycles found and looked at, by what is shown", ["verdict"])
        self._refused = counter("not_gradable_cycles", "Cycles too poor for the model, by reason", ["reason"])
        self._events = counter("timeline_events", "What happened to the sound: gap, overflow, lost ...", ["kind"])
        stretches = counter("stretches", "Complete stretches", ["verdict"])
        self._of_summary = {
            "received": counter("received_seconds", "Sound received; that of dropped cycles is part of it"),
            "dropped": counter("dropped_seconds", "Sound of cycles that the model had no time for"),
            "dropped_cycles": counter("dropped_cycles", "Cycles that the model had no time for"),
            "missing": counter("missing_seconds", "Sound that was never received"),
            "gradable": counter("gradable_seconds", "Sound of cycles that the model judged"),
            "flagged": stretches.labels("flagged"),
            "nothing flagged": stretches.labels("nothing flagged"),
        }
        self._latency = histogram("inference_seconds", "The model's time for one cycle", buckets=LATENCIES)
        self._waiting = gauge("waiting_cycles", "Cycles found and not judged yet")
        self._running = gauge("session_running", "1 while a session runs")
        self._demo = gauge("demo", "1 while the sound is simulated")
        self._present = gauge("microphone_present", "1 when sound came, 0 before that and after the microphone is lost")
        self._level = gauge("level_dbfs", "Level of the last 0.1 s, dB of full scale")
        self._celsius = gauge("temperature_celsius", "Of the board, by the kernel's thermal zone", ["zone"])
        self._sound_at = time.monotonic()
        since = gauge("seconds_since_sound", "Since the last sound that was not complete silence, or since the start")
        since.set_function(lambda: time.monotonic() - self._sound_at)
        self._before: dict[str, float] | None = None

    @property
    def route(self) -> DocumentedRoute:
        """Where they are."""
        return DocumentedRoute("GET", METRICS, self.answer)

    async def answer(self, _request: Request) -> Response:
        """All figures, in Prometheus' text format."""
        return Response(await run_in_threadpool(self.text), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def text(self) -> bytes:
        """The figures of this moment."""
        for zone, celsius in temperatures(self._root).items():
            self._celsius.labels(zone).set(celsius)
        return generate_latest(self._registry)

    def take(self, message: bytes) -> None:
        """Take one message of the session's process."""
        if message[:1] == SOUND:
            self._sound(level_dbfs(unpacked_sound(message)[1]))
            return
        if message[:1] == RECORDED:  # a step of the self-test has ended
            self._close()
            return
        event = json.loads(message)
        if event.get("type") in KINDS:
            getattr(self, f"_{event['type']}")(event)

    def _sound(self, level: float) -> None:
        self._level.set(level)
        self._present.set(1)
        if level > SILENCE_DBFS:
            self._sound_at = time.monotonic()

    def _begin(self, event: Message) -> None:
        if event.get("purpose") != "record":
            self._sessions.inc()
            self._running.set(1)
        self._demo.set(event["demo"])
        self._before = None

    def _found(self, _event: Message) -> None:
        self._waiting.inc()

    def _cycle(self, event: Message) -> None:
        self._cycles.labels(event["class"] or "not gradable").inc()
        if reason := event["reason"]:
            self._refused.labels(reason.partition(":")[0]).inc()
        self._count(event["summary"])

    def _figures(self, event: Message) -> None:
        self._waiting.set(event["waiting"])
        if event["inference_seconds"] is not None:
            self._latency.observe(event["inference_seconds"])

    def _timeline(self, event: Message) -> None:
        self._events.labels(event["kind"]).inc()
        if event["kind"] == "lost":
            self._present.set(0)

    def _end(self, event: Message) -> None:
        self._count(event["summary"])
        self._close()

    def _failed(self, _event: Message) -> None:
        self._errors.inc()
        self._close()

    def _close(self) -> None:
        for gauge in (self._running, self._demo, self._waiting):
            gauge.set(0)

    def _count(self, summary: Message) -> None:
        """Add what a session's summary has more than the one before."""
        now = _totals(summary)
        # a process that was started again during a session counts from there: the one before had counted the rest
        before = self._before or (now if summary["cycles"] > 1 else dict.fromkeys(now, 0.0))
        for name, counter in self._of_summary.items():
            counter.inc(max(0.0, now[name] - before[name]))
        self._before = now


def _totals(summary: Message) -> dict[str, float]:
    """What only grows in a session; heard sound does not, for a dropped cycle leaves it."""
    samples = {name: summary[f"{name}_samples"] / SAMPLE_RATE for name in ("heard", "missing", "dropped", "gradable")}
    flagged = summary["stretches_flagged"]
    return {
        **samples,
        "received": samples["heard"] + samples["dropped"],
        "dropped_cycles": summary["dropped"],
        "flagged": flagged,
        "nothing flagged": summary["stretches"] - flagged,
    }
