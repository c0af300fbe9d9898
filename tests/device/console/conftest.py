"""What the tests of the console share: its process fed by the test, and requests by hand."""

import http.client
import json
import os
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from device.bundle import Manifest
from device.console.line import Line, Message
from device.signal import SAMPLE_RATE, FloatArray
from device.verdict.summary import Summary
from firmware_config.settings import ConsoleSettings, load_settings
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BLOCK = SAMPLE_RATE // 10
PATIENCE_MILLISECONDS = 90_000  # machines that run tests are slow
Changes = Callable[[dict[str, Any]], None]


@dataclass
class Answer:
    """Of one request."""

    status: int
    text: str
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Served:
    """A console's process that a test feeds in the place of a session."""

    line: Line
    orders: "queue.Queue[Message]"
    warnings: list[str] = field(default_factory=list)
    store: Path | None = None

    @property
    def port(self) -> int:
        return int(self.line.url.rstrip("/").rpartition(":")[2])

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        origin: str | None = "own",
        host: str | None = None,
        cookie: str = "",
        form: str = "",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        """A request as a page of the console makes it; `origin` and `host` of another one on demand."""
        if self.line.url.startswith("https"):
            trusting = ssl._create_unverified_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=30, context=trusting
            )
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = host or f"127.0.0.1:{self.port}"
        sent = {"Host": named, "Cookie": cookie, **headers}
        if origin is not None:
            sent["Origin"] = self.line.url.split(":")[0] + f"://{named}" if origin == "own" else origin
        content = form.encode() if form else b"" if body is None else json.dumps(body).encode()
        connection.request(method, path, content or None, sent)
        answer = connection.getresponse()
        found = Answer(answer.status, answer.read().decode(errors="replace"), {})
        found.headers = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return found

    def begin(
        self,
        order: int = 0,
        site: str | None = None,
        session: int | None = None,
        purpose: str = "listen",
        microphone: str | None = None,
        site_threshold: float = 0.4,
    ) -> None:
        self.line.send(
            "begin",
            order=order,
            purpose=purpose,
            session=session,
            source=microphone or "demo (a test)",
            demo=microphone is None,
            input=microphone,
            site_threshold=site_threshold,
            age=None,
            site=site,
            not_validated=[],
        )

    def sound(self, seconds: float) -> None:
        for at in range(round(10 * seconds)):
            self.line.sound(at * BLOCK, noise(at))

    def cycle(self, number: int, **changes: Any) -> None:
        """A flagged breath from `number` s on, with the summary after it."""
        cycle = {"number": number, "start": number, "end": number + 0.9, "phase": number + 0.4, "kind": "breath"}
        judged = {"reason": "", "probability": 0.9, "class": "crackle", "flag": True, "gradable": True, "demo": True}
        summary = changes.pop("summary", None) or summary_of(number)
        self.line.send("cycle", **{**cycle, **judged, **changes}, summary=asdict(summary))

    def end(self, order: int, summary: Summary) -> None:
        self.line.send("end", order=order, summary=asdict(summary))

    def state(self, until: Callable[[Any], object]) -> Any:
        """The state as soon as something is true of it: messages take a moment."""
        for _ in range(200):
            state = self.ask("GET", "/api/state").json
            if until(state):
                return state
        raise AssertionError(f"it never came: {state}")


def noise(seed: int) -> FloatArray:
    samples: FloatArray = (0.01 * np.random.default_rng(seed).standard_normal(BLOCK)).astype(np.float32)
    return samples


def summary_of(good: int, verdict: str = "", stretch: int = 6) -> Summary:
    """After so many good breaths, all flagged."""
    return Summary(
        source="demo (a test)",
        demo=True,
        bundle="ab" * 32,
        verdict=verdict or ("flagged" if good >= stretch else "not enough"),  # type: ignore[arg-type]
        probability=0.9,
        cycles=good,
        gradable=good,
        flagged=good,
        dropped=0,
        heard_samples=good * SAMPLE_RATE,
        missing_samples=0,
        dropped_samples=0,
        gradable_samples=good * SAMPLE_RATE,
        reasons=("crackle: it <b>crackles</b>",),
        breaths_per_minute=20.0,
        not_validated=(),
        stretches=good // stretch,
        stretches_flagged=good // stretch,
        breaths_wanted=stretch - good % stretch,
    )


def setup_of(folder: Path, store: Path | None, console: ConsoleSettings, changes: Changes) -> Message:
    """What a session's process says first."""
    bundle = make_bundle(folder / "bundle", changes=changes)
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_text())
    model = {"name": "<model>", "fingerprint": "ab" * 32, "cycle_threshold": 0.5, "site_threshold": 0.4}
    where = {"store.enabled": store is not None, "store.path": str(store or ""), "outputs.mqtt_host": "localhost"}
    return {
        "manifest": manifest.model_dump_json(),
        "model": {**model, "stretch_cycles": 6},
        "settings": load_settings(flags=where).model_copy(update={"console": console}).model_dump(mode="json"),
    }


def for_children(manifest: dict[str, Any]) -> None:
    """A bundle that knows children alone."""
    manifest["population"] |= {"youngest_years": 0.1, "oldest_years": 18.0}


def console_settings(**changes: object) -> ConsoleSettings:
    settings = load_settings(flags={"console.port": 0, **{f"console.{name}": value for name, value in changes.items()}})
    return settings.console


def serve(
    folder: Path, settings: ConsoleSettings, store: Path | None = None, changes: Changes = for_children
) -> Served:
    """Start a console; the caller closes its line."""
    orders: queue.Queue[Message] = queue.Queue()
    warnings: list[str] = []
    line = Line(settings, setup_of(folder, store, settings, changes), orders.put, warnings.append)
    return Served(line, orders, warnings, store)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One console for the tests of a module; it stores in a file."""
    folder = tmp_path_factory.mktemp("console")
    started = serve(folder, console_settings(), folder / "store.sqlite")
    with started.line:
        yield started


# in a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine; the console was not looked at in a browser")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """A page that may not complain: an error in a script, or a rule of the CSP broken, fails the test."""
    errors: list[str] = []
    context = browser.new_context(viewport={"width": 400, "height": 860})
    made = context.new_page()
    made.set_default_timeout(PATIENCE_MILLISECONDS)
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    yield made
    context.close()
    assert not errors


class Daemon:
    """`respsam-device listen --console` on a port of its own."""

    def __init__(self, folder: Path, bundle: Path, *options: str, source: str = "demo", **settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        own = {"RESPSAM_CONSOLE__PORT": str(self.port), "RESPSAM_STORE__PATH": str(folder / "store.sqlite"), **settings}
        self._environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **own}
        arguments = ["listen", "--source", source, "--console", "--bundle", str(bundle), *options]
        self._command = [sys.executable, "-m", "device", *arguments]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == f"respsam-device: the console is at {self.url}\n"

    def state(self) -> Any:
        with urllib.request.urlopen(f"{self.url}api/state", timeout=60) as answer:
            return json.load(answer)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    started: list[Daemon] = []

    def start(
        *options: str, logits: tuple[float, ...] | None = None, changes: Changes = for_children, **settings: str
    ) -> Daemon:
        bundle = make_bundle(tmp_path / "bundle", logits=logits, changes=changes)
        started.append(Daemon(tmp_path, bundle, *options, **settings))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


def text(page: "Page", selector: str) -> str:
    return page.inner_text(selector)


def until(page: "Page", expression: str) -> None:
    """Wait until this is true; Playwright's own waiting needs an eval, which the pages forbid."""
    waited_until = time.monotonic() + PATIENCE_MILLISECONDS / 1000
    while not page.evaluate(expression):
        assert time.monotonic() < waited_until, expression
        page.wait_for_timeout(100)
