"""What the tests of the console share: its process fed by the test, and requests by hand."""

import http.client
import json
import queue
import ssl
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device.bundle import Manifest
from device.console.line import Line, Message
from device.signal import SAMPLE_RATE, FloatArray
from device.verdict.summary import Summary
from firmware_config.settings import ConsoleSettings, load_settings
from tests.device.bundle_maker import make_bundle

BLOCK = SAMPLE_RATE // 10


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
        headers = {"Host": named, "Cookie": cookie}
        if origin is not None:
            headers["Origin"] = self.line.url.split(":")[0] + f"://{named}" if origin == "own" else origin
        content = form.encode() if form else b"" if body is None else json.dumps(body).encode()
        connection.request(method, path, content or None, headers)
        answer = connection.getresponse()
        found = Answer(answer.status, answer.read().decode(errors="replace"), {})
        found.headers = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return found

    def begin(self, order: int = 0, site: str | None = None, session: int | None = None) -> None:
        self.line.send(
            "begin",
            order=order,
            session=session,
            source="demo (a test)",
            demo=True,
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


def setup_of(folder: Path, store: Path | None) -> Message:
    """What a session's process says first."""
    bundle = make_bundle(folder / "bundle", changes=for_children)
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_text())
    model = {"name": "<model>", "fingerprint": "ab" * 32, "cycle_threshold": 0.5, "site_threshold": 0.4}
    where = {"store.enabled": store is not None, "store.path": str(store or "")}
    return {
        "manifest": manifest.model_dump_json(),
        "model": {**model, "stretch_cycles": 6},
        "store": load_settings(flags=where).store.model_dump(),
        "most_waiting": 1000,
    }


def for_children(manifest: dict[str, Any]) -> None:
    """A bundle that knows children alone."""
    manifest["population"] |= {"youngest_years": 0.1, "oldest_years": 18.0}


def console_settings(**changes: object) -> ConsoleSettings:
    settings = load_settings(flags={"console.port": 0, **{f"console.{name}": value for name, value in changes.items()}})
    return settings.console


def serve(folder: Path, settings: ConsoleSettings, store: Path | None = None) -> Served:
    """Start a console; the caller closes its line."""
    orders: queue.Queue[Message] = queue.Queue()
    warnings: list[str] = []
    line = Line(settings, setup_of(folder, store), orders.put, warnings.append)
    return Served(line, orders, warnings, store)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One console for the tests of a module; it stores in a file."""
    folder = tmp_path_factory.mktemp("console")
    started = serve(folder, console_settings(), folder / "store.sqlite")
    with started.line:
        yield started
