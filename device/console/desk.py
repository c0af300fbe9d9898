"""One session after another, as the browser orders; the first begins at once."""

import queue
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from device.capture.blocks import Block
from device.capture.microphone import MicrophoneSource
from device.capture.stethoscope import record
from device.configuration import Configuration
from device.console.addresses import ConsoleError
from device.console.line import Line, Message, Warn
from device.console.view import ConsoleView, input_name
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
    do: str = "listen"
    """Or `calibrate`: a session at a site of a healthy colleague; or `record`: a step of the self-test."""
    age_years: float | None = None
    site: str | None = None
    place: int = 0
    """Of the site within an exam; the demo sounds different at each."""
    seconds: float = 0.0
    """Of sound for a calibration or the self-test."""
    passport: str = ""
    """Of the stethoscope that is calibrated."""


class Desk:
    """Runs sessions until `stop`; the console's process orders them."""

    def __init__(
        self,
        open_service: Callable[[Order], Service],
        run: Callable[[Service, View], None],
        open_microphone: Callable[[], MicrophoneSource],
        *,
        gives_up: bool = False,
    ) -> None:
        """`gives_up`: `run` ends with the error of a session, for a supervisor that starts the program again."""
        self._open, self._run, self._open_microphone = open_service, run, open_microphone
        self._gives_up = gives_up
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._service: Service | None = None
        self._latest = 0
        self.ending = ""
        """Why it ends; empty before."""

    def take(self, message: Message) -> None:
        """Take an order of the console; a running session ends first."""
        self._latest = message["number"]
        if message["do"] != "stop":
            self._orders.put(Order(age_years=message.pop("age"), **message))
        if self._service is not None:
            self._service.session.stop(STOPPED)

    def stop(self, note: str) -> None:
        """End the running session and begin no other; safe in a signal handler."""
        self.ending = note
        if self._service is not None:
            self._service.session.stop(note)

    def run(self, line: Line, warn: Warn, idle: Callable[[str], None] = lambda doing: None) -> None:
        """Run the first session and then what is ordered, until `stop`; an error ends only its session.

        `idle` is called again and again while no session runs, with what is done instead.
        """
        self._orders.put(Order())
        while not self.ending:
            try:
                order = self._orders.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                idle("not listening: it waits for the console")
                continue
            try:
                self._run_one(order, line, idle)
            except RespSAMError as error:
                line.send("failed", order=order.number, error=str(error))
                if self._gives_up and order.do == "listen":
                    raise
                warn(str(error))
            finally:
                self._service = None

    def _run_one(self, order: Order, line: Line, idle: Callable[[str], None]) -> None:
        if order.do == "record":
            self._record(order, line, idle)
            return
        service = self._open(order)
        self._service = service
        service.last = False
        if self._outdated(order):  # a later order came while this one was opened
            service.session.stop(self.ending or STOPPED)
        self._run(service, ConsoleView(service, line, order.number, order.do))

    def _outdated(self, order: Order) -> bool:
        return bool(self.ending) or order.number < self._latest

    def _record(self, order: Order, line: Line, idle: Callable[[str], None]) -> None:
        """Record a step of the self-test, until a later order."""
        source = self._open_microphone()
        begun = {"order": order.number, "purpose": order.do, "source": source.name, "input": input_name(source)}
        line.send("begin", **begun, demo=False, session=None, age=None, site=None, not_validated=[])
        position = 0

        def go_on(block: Block) -> bool:
            nonlocal position
            if block.samples.size:
                line.sound(position, block.samples)
                idle("the self-test of the stethoscope")
            position += block.samples.size
            return not self._outdated(order)

        line.recorded(order.number, record(source, order.seconds, go_on))


def console_line(ready: Configuration, take: Callable[[Message], None], warn: Warn) -> Line:
    """Start the console's process for this bundle and these settings. ConsoleError when its address is refused."""
    settings, classifier = ready.settings, ready.classifier
    missing = [name for name in ("prometheus_client", "starlette", "uvicorn", "websockets") if find_spec(name) is None]
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
        "settings": settings.model_dump(mode="json"),
    }
    try:
        return Line(settings.console, setup, take, warn)
    except (RespSAMError, OSError, ImportError) as error:  # as of accounts and certificates
        raise error if isinstance(error, ConsoleError) else ConsoleError(str(error)) from error
