"""What the settings page calls. A viewer sees; an examiner lets the box be checked; an admin changes.

Calibrations and passports are an admin's, because they change the verdicts of every later patient.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from device.console.app import DocumentedRoute, body_of
from device.console.bodies import Calibrate, Forget, SelfTest, Undo
from device.console.guide import Guide
from device.console.hub import Hub

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
        given = await body_of(request, Calibrate)
        await run_in_threadpool(_load_the_steps)
        self._guide.begin_calibration(given.people, given.sites, given.seconds, given.restart)
        return self._answer()

    async def self_test(self, request: Request) -> Response:
        """Begin the self-test of a stethoscope."""
        given = await body_of(request, SelfTest)
        await run_in_threadpool(_load_the_steps)
        self._guide.begin_self_test(given.name, given.seconds, given.replace)
        return self._answer()

    async def act(self, action: Callable[[Guide], None], request: Request) -> Response:
        """Record, propose, save, leave or discard."""
        action(self._guide)
        return self._answer()

    async def forget(self, request: Request) -> Response:
        """Record one colleague again."""
        self._guide.forget((await body_of(request, Forget)).person)
        return self._answer()

    async def undo(self, request: Request) -> Response:
        """Remove the last calibration."""
        name = (await body_of(request, Undo)).name
        await run_in_threadpool(_load_the_steps)
        self._guide.undo(name)
        return self._answer()

    def _answer(self) -> Response:
        self._hub.send_state()
        return Response(status_code=204)


def routes(hub: Hub) -> list[DocumentedRoute]:
    """Everything below `/api/settings`."""
    page, path = SettingsPage(hub), "/api/settings"
    changes = partial(DocumentedRoute, "POST", needed="admin")
    return [
        DocumentedRoute("GET", path, page.state),
        DocumentedRoute("POST", f"{path}/check", page.check),
        changes(f"{path}/calibration", page.calibrate, Calibrate),
        changes(f"{path}/self-test", page.self_test, SelfTest),
        changes(f"{path}/forget", page.forget, Forget),
        changes(f"{path}/undo", page.undo, Undo),
        *(changes(f"{path}/{name}", partial(page.act, action)) for name, action in ACTIONS.items()),
    ]
