"""What every request passes before any page sees it: Host, Origin, login and role; and the headers of every answer."""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final

from device.console.accounts import Login, Logins

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE: Final = "respsam"
OPEN_PATHS: Final = ("/login", "/static/")  # without a login
METRICS: Final = "/metrics"  # the one path that a scraper's token opens
SAFE_METHODS: Final = ("GET", "HEAD")
LOCAL: Final = Login("this machine", "admin", 0.0)
SCRAPER: Final = Login("scraper", "viewer", 0.0)
MOST_PATH: Final = 1000  # characters; a number of more than 4300 digits is an error of Python's own
MOST_BYTES: Final = 65_536  # of a request's body
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """Wraps the application; on this machine alone nobody logs in."""

    def __init__(
        self, application: Application, hosts: frozenset[str], scheme: str, logins: Logins | None, token: str = ""
    ) -> None:
        """`hosts` are the Host headers that are answered; `logins` is None where no login is needed.

        `token` opens the figures without a login; empty opens nothing.
        """
        self._application, self._hosts, self._scheme, self._logins = application, hosts, scheme, logins
        self._bearer = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request or WebSocket."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "").lower()
        if len(scope["path"]) > MOST_PATH:
            await refuse(scope, send, 414, f"an address may have {MOST_PATH} characters at most")
        elif host not in self._hosts:
            await refuse(scope, send, 421, "this console does not answer to that name; see console.names")
        elif not self._same_origin(scope, headers, host):
            await refuse(scope, send, 403, "a page of another site asked for this; open the console itself")
        elif int(headers.get("content-length", "0") or 0) > MOST_BYTES or "transfer-encoding" in headers:
            await refuse(scope, send, 413, f"a request may have {MOST_BYTES} bytes at most")
        else:
            await self._with_login(scope, receive, send, self._login(scope["path"], headers))

    def _same_origin(self, scope: Scope, headers: dict[str, str], host: str) -> bool:
        origin = headers.get("origin")
        if origin is None:
            # a browser sends it with every WebSocket and with every request that changes something
            return scope["type"] == "http" and scope["method"] in SAFE_METHODS
        return origin.lower() == f"{self._scheme}://{host}"

    def _login(self, path: str, headers: dict[str, str]) -> Login | None:
        if self._logins is None:
            return LOCAL
        given = headers.get("authorization", "").encode("latin-1")
        if path == METRICS and self._bearer and secrets.compare_digest(given, self._bearer):
            return SCRAPER
        return self._logins.find(token_of(headers.get("cookie", "")))

    async def _with_login(self, scope: Scope, receive: Receive, send: Send, login: Login | None) -> None:
        if login is None and not scope["path"].startswith(OPEN_PATHS):
            page = (
                scope["type"] == "http"
                and scope["method"] == "GET"
                and not scope["path"].startswith(("/api/", METRICS))
            )
            await refuse(scope, send, 303 if page else 401, "log in first", b"/login" if page else b"")
            return
        scope["login"] = login

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self._application(scope, receive, with_headers)


def token_of(cookies: str) -> str:
    """The login's token in a Cookie header; empty without one."""
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


async def refuse(scope: Scope, send: Send, status: int, reason: str, location: bytes = b"") -> None:
    """Answer with one line; close a WebSocket before it opens."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    if location:
        headers.append((b"location", location))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
