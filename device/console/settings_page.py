"""What the settings page calls. A viewer sees; an examiner lets the box be checked; an admin changes.

Calibrations and passports are an admin's, because they change the verdicts of every later patient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from device.console.accounts import Role
from device.console.app import Endpoint, _given, _text, allowed
from device.console.guide import Guide
from device.console.hub import Hub

PEOPLE: Final = (5, 100)  # as the options of `calibrate` and `passport new`
SECONDS: Final = (5, 600)
MOST_SITES: Final = 20
ACTIONS: Final[dict[str, Callable[[Guide], None]]] = {
    "record": Guide.record,
    "propose": Guide.propose,
    "save": Guide.save,
    "leave": Guide.leave,
    "discard": Guide.discard,
}


def _load_the_steps() -> None:
    """They import scipy: seconds on a small box, and not in the thread of the pages."""
    import device.capture.stethoscope
    import device.healthy  # noqa: F401


def _between(fields: dict[str, Any], name: str, limits: tuple[int, int]) -> float:
    value = fields.get(name)
    # bool is a number for Python, and NaN is not in any range
    if isinstance(value, bool) or not isinstance(value, int | float) or not limits[0] <= value <= limits[1]:
        raise HTTPException(400, f"{name} is a number from {limits[0]} to {limits[1]}")
    return float(value)


class SettingsPage:
    """The endpoints of the guided work."""

    def __init__(self, hub: Hub) -> None:
        self._hub, self._guide = hub, hub.guide

    async def state(self, request: Request) -> Response:
        """The stethoscope, the last check, and what is being made."""
        self._guide.look()  # a terminal may have changed the passport
        self._hub.send_state()
        return JSONResponse(self._guide.state())

    async def check(self, request: Request) -> Response:
        """Check the box."""
        self._guide.begin_check()
        return self._answer()

    async def calibrate(self, request: Request) -> Response:
        """Begin a calibration on healthy colleagues, or go on with an interrupted one."""
        fields = await _given(request)
        sites = fields.get("sites")
        if not isinstance(sites, list) or not all(isinstance(site, str) and site.strip() for site in sites):
            raise HTTPException(400, "sites is a list of texts")
        if not 0 < len(sites) <= MOST_SITES or len(set(sites)) < len(sites):
            raise HTTPException(400, f"a calibration has 1 to {MOST_SITES} sites, each once")
        people, seconds = round(_between(fields, "people", PEOPLE)), _between(fields, "seconds", SECONDS)
        await run_in_threadpool(_load_the_steps)
        self._guide.begin_calibration(people, sites, seconds, bool(fields.get("restart")))
        return self._answer()

    async def self_test(self, request: Request) -> Response:
        """Begin the self-test of a stethoscope."""
        fields = await _given(request)
        name, seconds = _text(fields.get("name"), "name"), _between(fields, "seconds", SECONDS)
        await run_in_threadpool(_load_the_steps)
        self._guide.begin_self_test(name, seconds, bool(fields.get("replace")))
        return self._answer()

    async def act(self, action: Callable[[Guide], None], request: Request) -> Response:
        """Record, propose, save, leave or discard."""
        action(self._guide)
        return self._answer()

    async def forget(self, request: Request) -> Response:
        """Record one colleague again."""
        self._guide.forget(_text((await _given(request)).get("person"), "person"))
        return self._answer()

    async def undo(self, request: Request) -> Response:
        """Remove the last calibration."""
        name = _text((await _given(request)).get("name"), "name")
        await run_in_threadpool(_load_the_steps)
        self._guide.undo(name)
        return self._answer()

    def _answer(self) -> Response:
        self._hub.send_state()
        return Response(status_code=204)


def routes(hub: Hub) -> list[Route]:
    """Everything below `/api/settings`."""
    page = SettingsPage(hub)

    def post(path: str, endpoint: Endpoint, needed: Role = "admin") -> Route:
        return Route(f"/api/settings/{path}", allowed(endpoint, needed), methods=["POST"])

    return [
        Route("/api/settings", allowed(page.state, "viewer"), methods=["GET"]),
        post("check", page.check, "examiner"),
        post("calibration", page.calibrate),
        post("self-test", page.self_test),
        post("forget", page.forget),
        post("undo", page.undo),
        *(post(name, partial(page.act, action)) for name, action in ACTIONS.items()),
    ]
