"""Writes the console's HTTP API as OpenAPI 3.1 into docs/console-api.json: python docs/console_api.py"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from device.console import settings_page  # noqa: E402
from device.console.accounts import Logins  # noqa: E402
from device.console.app import UNAVAILABLE, DocumentedRoute, Door, application  # noqa: E402
from device.console.guard import COOKIE, METRICS  # noqa: E402
from device.console.metrics import Metrics  # noqa: E402
from device.labels import Label  # noqa: E402
from device.verdict.site import Verdict  # noqa: E402
from device.verdict.summary import SummaryObject  # noqa: E402

PAGE: Final = ROOT / "docs" / "console-api.json"
DOCUMENTED: Final = ("/api/", "/exams/", METRICS)
REFUSED: Final = "#/components/responses/Refused"
REFERENCE: Final = "#/components/schemas/{model}"
FILES: Final = {
    "report": "text/html",
    ".pdf": "application/pdf",
    ".fhir.json": "application/fhir+json",
    ".wav": "audio/wav",
    ".png": "image/png",
    METRICS: "text/plain",
}
NUMBER: Final = {"type": "integer", "minimum": 0}
BOUND: Final = {**NUMBER, "maximum": 10**18 - 1}
QUERIES: Final[dict[str, dict[str, Any]]] = {
    "/api/doubts": {"age": {"type": "number", "minimum": 0, "maximum": 120}},
    "/api/sessions/{number}/cycles": {"first": BOUND, "last": BOUND, "flagged": {"enum": ["0", "1"]}},
}
REQUIRED: Final = ("first", "last")


class ExamRow(TypedDict):
    """An exam in the history."""

    id: int
    started_at: float
    subject: str
    age_years: float | None
    demo: bool
    verdict: Verdict


class SessionRow(TypedDict):
    """A session in the history."""

    id: int
    started_at: float
    ended_at: float | None
    site: str
    demo: bool
    source: str
    verdict: Verdict | None
    heard_samples: int | None
    cycles: int
    graded: int
    flagged: int
    with_audio: int
    stretches: int | None
    stretches_flagged: int | None
    subject: str


class History(TypedDict):
    """All sessions and exams, the newest first."""

    sessions: list[SessionRow]
    exams: list[ExamRow]
    stored: bool


StoredCycle = TypedDict(
    "StoredCycle",
    {
        "number": int,
        "kind": str,
        "reason": str,
        "probability": float | None,
        "class": Label | None,
        "flag": bool,
        "start": float,
        "end": float,
        "audio": bool,
        "opinion": str,
    },
)


class StoredCycles(TypedDict):
    """Cycles of a session, and how many there are in that part."""

    cycles: list[StoredCycle]
    count: int


class Evidence(TypedDict):
    """Where the model looks in a cycle: by how much its log-odds fall when a place is hidden, lowest band first."""

    seconds: list[float]
    heights: list[float]
    falls: list[list[float]]
    ticks: list[tuple[int, float]]
    scale: float
    probability: float
    flat: bool
    words: str


class Stretch(TypedDict):
    """A stretch of a session, with its breaths a minute and the numbers of its first and last cycle."""

    start: float
    end: float
    verdict: Verdict
    rate: float | None
    first: int
    last: int


class StoredEntry(TypedDict):
    """Something that happened to the sound."""

    seconds: float
    kind: str
    missing: float
    note: str


class StoredSession(TypedDict):
    """One session; times in seconds from its start."""

    id: int
    started_at: float
    ended_at: float | None
    site: str
    demo: bool
    source: str
    verdict: Verdict | None
    reasons: str | None
    not_validated: str
    bundle_name: str
    bundle: str
    subject: str
    heard: float
    cycles: int
    graded: int
    flagged: int
    with_audio: int
    stretches: list[Stretch]
    timeline: list[StoredEntry]


class State(TypedDict):
    """What runs; `cycles` and `timeline` are as in the JSON lines of `listen --json`, the latest ones."""

    type: str
    session: dict[str, Any] | None
    running: bool
    error: str
    summary: SummaryObject | None
    cycles: list[dict[str, Any]]
    timeline: list[dict[str, Any]]
    exam: dict[str, Any] | None
    lost: float | None
    advance_seconds: float | None
    plans: dict[str, Any]
    model: dict[str, Any]
    picture: dict[str, Any]
    role: str


ANSWERS: Final[dict[str, Any]] = {
    "/api/settings": dict[str, Any],
    "/api/state": State,
    "/api/doubts": list[str],
    "/api/history": History,
    "/api/sessions/{number}": StoredSession,
    "/api/sessions/{number}/cycles": StoredCycles,
    "/api/sessions/{number}/cycles/{cycle}/evidence": Evidence,
}


def document() -> dict[str, Any]:
    """The API of today."""
    nothing = cast(Any, None)
    more = [
        Metrics({"name": "", "fingerprint": ""}).route,
        *settings_page.routes(cast(Any, SimpleNamespace(guide=None))),
    ]
    found = application(nothing, nothing, Door(None, Logins(), secure=False), more).routes
    routes = [route for route in found if isinstance(route, DocumentedRoute) and route.path.startswith(DOCUMENTED)]
    schemas, paths = dict[str, Any](), dict[str, Any]()
    for route in routes:
        (method,) = cast("set[str]", route.methods) - {"HEAD"}
        path = route.path.replace(":int", "")
        paths.setdefault(path, {})[method.lower()] = operation(route, method, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "RespSAM console",
            "version": version("respsam"),
            "description": "On this machine nobody logs in; elsewhere a login's cookie, or a token for /metrics alone. "
            "A request that changes something needs the Origin of the console itself. A WebSocket at /live sends what "
            "happens, as the pages use it.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {"Refused": answer("One line that says why.", "text/plain", {"type": "string"})},
            "securitySchemes": {
                "login": {"type": "apiKey", "in": "cookie", "name": COOKIE},
                "token": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{"login": []}],
    }


def operation(route: DocumentedRoute, method: str, path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """One method of one path; its models go to `schemas`."""
    numbers: Any = {name: NUMBER for name in route.param_convertors}
    given = [
        {"name": name, "in": "path", "required": True, "schema": what, "example": 1} for name, what in numbers.items()
    ]
    asked = [
        {"name": name, "in": "query", "schema": what, "required": name in REQUIRED}
        for name, what in QUERIES.get(path, {}).items()
    ]
    described: dict[str, Any] = {
        "summary": route.line,
        "description": f"Needs the role {route.needed} where one logs in.",
        "responses": {**success(method, path, schemas), "4XX": {"$ref": REFUSED}},
    }
    if given or asked:
        described["parameters"] = [*given, *asked]
    if route.body is not None:
        shape = schema(route.body, schemas)
        needed = {"required": True} if "required" in shape else {}
        described["requestBody"] = {"content": {"application/json": {"schema": shape}}, **needed}
    if path == METRICS:
        described["security"] = [{"login": []}, {"token": []}]
    return described


def success(method: str, path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """The answers that are no refusal."""
    if method != "GET":
        return {"204": {"description": "Done."}}
    page = {"303": {"description": "Log in first."}} if path.startswith("/exams/") else {}
    if path in ANSWERS:
        return {"200": answer("What was asked for.", "application/json", schema(ANSWERS[path], schemas))}
    kind = next(kind for ending, kind in FILES.items() if path.endswith(ending))
    cannot = {str(UNAVAILABLE): {"$ref": REFUSED}} if path.endswith(".pdf") else {}
    return {"200": answer("What was asked for.", kind, {}), **page, **cannot}


def answer(what: str, kind: str, shape: dict[str, Any]) -> dict[str, Any]:
    """A response with a content of one kind."""
    return {"description": what, "content": {kind: {"schema": shape}}}


def schema(model: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a model; those inside it go to `schemas`."""
    made = TypeAdapter(model).json_schema(ref_template=REFERENCE)
    schemas.update(made.pop("$defs", {}))
    return made


if __name__ == "__main__":
    PAGE.write_text(json.dumps(document(), indent=1) + "\n")
