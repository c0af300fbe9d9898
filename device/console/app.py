"""The pages and what they call; every answer is small, and every error one line of text."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from device.console.accounts import Accounts, Login, Logins, Role, at_least
from device.console.archive import Archive
from device.console.bodies import Assign, BeginExam, BeginSite, Body, Listen, Opinion
from device.console.fhir import fhir_bundle
from device.console.guard import COOKIE, token_of
from device.console.guide import OrderError
from device.console.hub import Client, Hub
from device.console.report import STATIC, PdfError, pdf, report
from device.runtime import yield_priority
from firmware_config.command_line import one_line
from firmware_config.errors import RespSAMError

Endpoint = Callable[[Request], Awaitable[Response]]
Given = TypeVar("Given", bound=Body)

PAGES: Final = {
    "/": "live",
    "/exam": "exam",
    "/history": "history",
    "/sessions/{number:int}": "session",
    "/settings": "settings",
}
KINDS: Final = ("exam", "session")
STALLED_SECONDS: Final = 20.0  # a browser that takes no message for so long is given up
MOST_CLIENTS: Final = 20
EVIDENCE_NICENESS: Final = 5  # more than the pages', of the thread that judges again; on Linux a thread has its own
MOST_NUMBER: Final = 2**63 - 1
MISSING, BUSY = ("there is no", "no sessions are stored", "has no"), 409
UNAVAILABLE: Final = 503


def page(name: str) -> Endpoint:
    """One of our files of HTML."""

    async def answer(request: Request) -> Response:
        return FileResponse(STATIC / f"{name}.html")

    return answer


def allowed(endpoint: Endpoint, needed: Role) -> Endpoint:
    """The endpoint for those whose role suffices."""

    async def answer(request: Request) -> Response:
        login: Login = request.scope["login"]
        if not at_least(login.role, needed):
            raise HTTPException(403, f"this needs the role {needed}; {login.name} is {login.role}")
        return await endpoint(request)

    return answer


async def _given(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body."""
    try:
        found = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the request is not JSON") from error
    if not isinstance(found, dict):
        raise HTTPException(400, "the request is no JSON object")
    return found


async def body_of(request: Request, kind: type[Given]) -> Given:
    """The body of a request as a model; BodyError or HTTPException when it is none."""
    return kind.checked(await _given(request))


def _number(request: Request, name: str = "number") -> int:
    number = int(request.path_params[name])
    if number > MOST_NUMBER:
        raise HTTPException(404, f"there is no {name} {number}")
    return number


def _bound(request: Request, name: str) -> int:
    """The number of a cycle in the query."""
    text = request.query_params.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise HTTPException(400, f"{name} is the number of a cycle, not {text[:20]!r}")
    return int(text)


class Live:
    """The endpoints of what is running."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    async def state(self, request: Request) -> Response:
        """Everything but the sound."""
        return JSONResponse({**self.hub.state(), "role": request.scope["login"].role})

    async def listen(self, request: Request) -> Response:
        """Begin a session."""
        self.hub.listen((await body_of(request, Listen)).age)
        return Response(status_code=204)

    async def stop(self, request: Request) -> Response:
        """End the running session."""
        self.hub.stop()
        return Response(status_code=204)

    async def begin_exam(self, request: Request) -> Response:
        """Begin an exam with a subject, an age, and sites in order."""
        given = await body_of(request, BeginExam)
        self.hub.begin_exam(given.subject, given.age, tuple(given.sites), given.advance)
        return Response(status_code=204)

    async def begin_site(self, request: Request) -> Response:
        """Listen at a site."""
        self.hub.begin_site((await body_of(request, BeginSite)).site)
        return Response(status_code=204)

    async def finish_exam(self, request: Request) -> Response:
        """End the exam."""
        self.hub.finish_exam()
        return Response(status_code=204)

    async def doubts(self, request: Request) -> Response:
        """Why the model is not validated for this patient."""
        try:
            age = json.loads(request.query_params.get("age", "null"))
        except (ValueError, RecursionError):
            age = ""
        return JSONResponse(self.hub.doubts(Listen.checked({"age": age}).age))

    async def socket(self, socket: WebSocket) -> None:
        """Everything as it happens, until the browser goes or stops to read."""
        if self.hub.clients >= MOST_CLIENTS:
            await socket.close(1013, f"{MOST_CLIENTS} pages are open already")
            return
        await socket.accept()
        client = Client(socket.scope["login"].role, sound=socket.query_params.get("sound") != "0")
        self.hub.connect(client)
        reading = asyncio.create_task(_read_until_closed(socket))
        sending = asyncio.create_task(self._send(socket, client))
        try:
            await asyncio.wait((reading, sending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.hub.disconnect(client)
            for task in (reading, sending):
                task.cancel()
            with suppress(Exception):  # it may be closed already, or may not answer
                await asyncio.wait_for(socket.close(), 1.0)

    async def _send(self, socket: WebSocket, client: Client) -> None:
        with suppress(WebSocketDisconnect, asyncio.TimeoutError, OSError, RuntimeError):
            while True:
                message = await client.waiting.get()
                send = socket.send_text(message) if isinstance(message, str) else socket.send_bytes(message)
                await asyncio.wait_for(send, STALLED_SECONDS)
                self.hub.caught_up(client)


async def _read_until_closed(socket: WebSocket) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):
        while True:
            await socket.receive_text()


class Stored:
    """The endpoints of what is stored."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._one_pdf = asyncio.Lock()  # a browser is heavy
        self._slow = ThreadPoolExecutor(1, initializer=yield_priority, initargs=(EVIDENCE_NICENESS,))

    async def history(self, request: Request) -> Response:
        """All sessions and exams."""
        return JSONResponse(await run_in_threadpool(self.archive.history))

    async def session(self, request: Request) -> Response:
        """One session with its stretches and timeline."""
        return JSONResponse(await run_in_threadpool(self.archive.session, _number(request)))

    async def cycles(self, request: Request) -> Response:
        """Some of a session's cycles."""
        first, last = (_bound(request, name) for name in ("first", "last"))
        flagged = request.query_params.get("flagged") == "1"
        found = partial(self.archive.cycles, _number(request), first, last, flagged=flagged)
        return JSONResponse(await run_in_threadpool(found))

    async def sound(self, request: Request) -> Response:
        """A cycle's sound."""
        sound = await run_in_threadpool(self.archive.sound, _number(request), _number(request, "cycle"))
        return Response(sound, media_type="audio/wav")

    async def picture(self, request: Request) -> Response:
        """A cycle's spectrogram."""
        made = await run_in_threadpool(self.archive.picture, _number(request), _number(request, "cycle"))
        return Response(made, media_type="image/png")

    async def evidence(self, request: Request) -> Response:
        """Where the model looks in a cycle; one at a time, at a low priority."""
        numbers = (_number(request), _number(request, "cycle"))
        loop = asyncio.get_running_loop()
        return JSONResponse(await loop.run_in_executor(self._slow, self.archive.evidence, *numbers))

    async def opinion(self, request: Request) -> Response:
        """Agree or disagree with a cycle's class."""
        opinion = (await body_of(request, Opinion)).opinion
        numbers = (_number(request), _number(request, "cycle"))
        await run_in_threadpool(self.archive.exams.give_opinion, *numbers, opinion, request.scope["login"].name)
        return Response(status_code=204)

    async def assign(self, kind: str, request: Request) -> Response:
        """Give an exam or a session another subject."""
        subject = (await body_of(request, Assign)).subject
        await run_in_threadpool(self.archive.exams.assign, kind, _number(request), subject)
        return Response(status_code=204)

    async def delete(self, kind: str, request: Request) -> Response:
        """Remove an exam or a session for good."""
        await run_in_threadpool(self.archive.delete, kind, _number(request))
        return Response(status_code=204)

    async def report(self, request: Request) -> Response:
        """The report of an exam."""
        return HTMLResponse(report(await run_in_threadpool(self.archive.exams.document, _number(request))))

    async def pdf(self, request: Request) -> Response:
        """The same as PDF."""
        document = await run_in_threadpool(self.archive.exams.document, _number(request))
        disposition = {"content-disposition": f'inline; filename="exam-{document["id"]}.pdf"'}
        async with self._one_pdf:
            made = await pdf(document)
        return Response(made, media_type="application/pdf", headers=disposition)

    async def fhir(self, request: Request) -> Response:
        """The same as a Bundle of FHIR R4."""
        document = await run_in_threadpool(self.archive.exams.document, _number(request))
        disposition = {"content-disposition": f'attachment; filename="exam-{document["id"]}.fhir.json"'}
        bundle = await run_in_threadpool(fhir_bundle, document)
        return Response(json.dumps(bundle, indent=1), media_type="application/fhir+json", headers=disposition)


class Door:
    """Logging in and out."""

    def __init__(self, accounts: Accounts | None, logins: Logins, secure: bool) -> None:
        self._accounts, self._logins, self._secure = accounts, logins, secure
        self._one_at_a_time = asyncio.Lock()  # argon2 takes 64 MB and a core

    async def page(self, request: Request) -> Response:
        """Where one logs in."""
        return FileResponse(STATIC / "login.html") if self._accounts else RedirectResponse("/", 303)

    async def enter(self, request: Request) -> Response:
        """Check name and password."""
        if self._accounts is None:
            return RedirectResponse("/", 303)
        form = parse_qs((await request.body()).decode(errors="replace"))
        name, password = (form.get(field, [""])[0] for field in ("name", "password"))
        keys = (f"name {name}", f"address {request.client.host if request.client else ''}")
        async with self._one_at_a_time:
            if wait := self._logins.wait_seconds(*keys):
                return RedirectResponse(f"/login?wait={wait:.0f}", 303, {"retry-after": f"{wait:.0f}"})
            role = await run_in_threadpool(self._accounts.role, name, password)
            if role is None:
                self._logins.failed(*keys)
                return RedirectResponse("/login?wrong=1", 303)
        answer = RedirectResponse("/", 303)
        token = self._logins.begin(name, role)
        answer.set_cookie(COOKIE, token, path="/", secure=self._secure, httponly=True, samesite="strict")
        return answer

    async def leave(self, request: Request) -> Response:
        """Log out."""
        self._logins.end(token_of(request.headers.get("cookie", "")))
        return RedirectResponse("/login", 303)


async def _one_line(request: Request, error: Exception) -> Response:
    """Every refusal as one line."""
    if isinstance(error, HTTPException):
        return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)
    text = one_line(str(error)).encode(errors="backslashreplace").decode()
    status = 404 if any(words in text for words in MISSING) else 400
    if isinstance(error, OrderError | PdfError):
        status = BUSY if isinstance(error, OrderError) else UNAVAILABLE
    return PlainTextResponse(f"{text}\n", status)


def application(hub: Hub, archive: Archive, door: Door, more: Sequence[Route] = ()) -> Starlette:
    """The pages and their endpoints, and `more` of them, without the guard."""
    live, stored = Live(hub), Stored(archive)
    get, post, delete = (partial(DocumentedRoute, method) for method in NEEDED)
    cycle = "/api/sessions/{number:int}/cycles/{cycle:int}"
    return Starlette(
        routes=[
            *(get(path, page(name)) for path, name in PAGES.items()),
            Route("/login", door.page, methods=["GET"]),
            Route("/login", door.enter, methods=["POST"]),
            Route("/logout", door.leave, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
            WebSocketRoute("/live", live.socket),
            get("/api/state", live.state),
            get("/api/doubts", live.doubts),
            post("/api/listen", live.listen, Listen),
            post("/api/stop", live.stop),
            post("/api/exam", live.begin_exam, BeginExam),
            post("/api/exam/site", live.begin_site, BeginSite),
            post("/api/exam/finish", live.finish_exam),
            get("/api/history", stored.history),
            get("/api/sessions/{number:int}", stored.session),
            get("/api/sessions/{number:int}/cycles", stored.cycles),
            get(f"{cycle}/sound.wav", stored.sound),
            get(f"{cycle}/picture.png", stored.picture),
            get(f"{cycle}/evidence", stored.evidence),
            post(f"{cycle}/opinion", stored.opinion, Opinion),
            get("/exams/{number:int}/report", stored.report),
            get("/exams/{number:int}/report.pdf", stored.pdf),
            get("/exams/{number:int}/report.fhir.json", stored.fhir),
            *(post(f"/api/{kind}s/{{number:int}}/subject", partial(stored.assign, kind), Assign) for kind in KINDS),
            *(delete(f"/api/{kind}s/{{number:int}}", partial(stored.delete, kind)) for kind in KINDS),
            *more,
        ],
        exception_handlers={HTTPException: _one_line, RespSAMError: _one_line},
    )


NEEDED: Final[dict[str, Role]] = {"GET": "viewer", "POST": "examiner", "DELETE": "admin"}


class DocumentedRoute(Route):
    """A route that docs/console_api.py documents: the role it needs, its body's model, and a line about it."""

    def __init__(
        self, method: str, path: str, endpoint: Endpoint, body: type[Body] | None = None, needed: Role | None = None
    ) -> None:
        self.needed = needed or NEEDED[method]
        super().__init__(path, allowed(endpoint, self.needed), methods=[method])
        self.body = body
        self.line = (getattr(endpoint, "func", endpoint).__doc__ or "").partition("\n")[0]
