"""One session after another, as the browser orders; the first begins at once."""

import queue
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from device.console.addresses import ConsoleError
from device.console.line import Line, Message, Warn
from device.console.view import ConsoleView
from device.service import Service
from device.view.view import View
from firmware_config.errors import RespSAMError

STOPPED: Final = "stopped in the console"
LOOK_SECONDS: Final = 0.1  # how often a stop is looked for while nothing runs


@dataclass(frozen=True)
class Order:
    """A session that is wanted."""

    number: int = 0
    """Later orders have higher numbers; 0 is the one that the command began with."""
    age_years: float | None = None
    site: str | None = None
    place: int = 0
    """Of the site within an exam; the demo sounds different at each."""


class Desk:
    """Runs sessions until `stop`; the console's process orders them."""

    def __init__(self, open_service: Callable[[Order], Service], run: Callable[[Service, View], None]) -> None:
        self._open, self._run = open_service, run
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._service: Service | None = None
        self._latest = 0
        self._ending = ""

    def take(self, message: Message) -> None:
        """Take an order of the console; a running session ends first."""
        self._latest = message["number"]
        if message["do"] == "listen":
            self._orders.put(Order(message["number"], message["age"], message["site"], message["place"]))
        if self._service is not None:
            self._service.session.stop(STOPPED)

    def stop(self, note: str) -> None:
        """End the running session and begin no other; safe in a signal handler."""
        self._ending = note
        if self._service is not None:
            self._service.session.stop(note)

    def run(self, line: Line, warn: Warn) -> None:
        """Run the first session and then what is ordered, until `stop`; an error ends only its session."""
        self._orders.put(Order())
        while not self._ending:
            try:
                order = self._orders.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            try:
                self._run_one(order, line)
            except RespSAMError as error:
                warn(str(error))
                line.send("failed", order=order.number, error=str(error))
            finally:
                self._service = None

    def _run_one(self, order: Order, line: Line) -> None:
        service = self._open(order)
        self._service = service
        if self._ending or order.number < self._latest:  # a later order came while this one was opened
            service.session.stop(self._ending or STOPPED)
        self._run(service, ConsoleView(service, line, order.number))


def console_line(service: Service, take: Callable[[Message], None], warn: Warn) -> Line:
    """Start the console's process for sessions like this one. ConsoleError when its address is refused."""
    settings, classifier = service.settings, service.classifier
    missing = [name for name in ("starlette", "uvicorn", "websockets") if find_spec(name) is None]
    if missing:
        raise ConsoleError(f"the console needs {' and '.join(missing)}: pip install 'respsam[console]'")
    model = {
        "name": classifier.bundle.manifest.name,
        "fingerprint": classifier.fingerprint,
        "cycle_threshold": classifier.threshold,
        "site_threshold": classifier.site_rule.threshold,
        "stretch_cycles": classifier.site_rule.stretch_cycles,
    }
    setup = {
        "manifest": classifier.bundle.manifest.model_dump_json(),
        "model": model,
        "store": settings.store.model_dump(),
        "most_waiting": settings.outputs.mqtt_waiting if settings.outputs.mqtt_host else 0,
    }
    return Line(settings.console, setup, take, warn)
