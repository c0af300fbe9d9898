"""The process that serves the pages: `python -m device.console.process LINE SOCKET`, started by `device.console.line`.

LINE is the file descriptor of the line to the session's process, SOCKET that of the listening socket. When the line
closes, this process ends.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Final

import uvicorn

from device.bundle import Manifest
from device.console.accounts import Accounts, Logins
from device.console.addresses import allowed_hosts
from device.console.app import Door, application
from device.console.archive import Archive
from device.console.guard import Guard
from device.console.hub import Hub
from device.console.line import GOODBYE
from device.store.exams import Exams
from firmware_config.settings import ConsoleSettings, StoreSettings, is_loopback

NICENESS: Final = 5  # listening comes first
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LARGEST_MESSAGE: Final = 4096  # bytes that a browser may send by WebSocket; it sends none
MOST_CONNECTIONS: Final = 100


class Server(uvicorn.Server):
    """Ends with the line, not by a signal: a service's stop reaches every process, and the summary comes first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals as they are."""
        yield


def main() -> None:
    """Serve until the line closes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    line, listening = Connection(int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    with suppress(EOFError, KeyboardInterrupt):
        asyncio.run(serve(json.loads(line.recv_bytes()), line, listening))


async def serve(setup: dict[str, Any], line: Connection, listening: socket.socket) -> None:
    """Serve the pages; `setup` has the settings of console and store, the bundle's manifest and the model."""
    settings = ConsoleSettings.model_validate(setup["console"])
    manifest = Manifest.model_validate_json(setup["manifest"])
    store = StoreSettings.model_validate(setup["store"])
    exams = Exams(store.file if store.enabled else None, setup["most_waiting"])
    hub = Hub(manifest, setup["model"], exams, lambda order: line.send_bytes(json.dumps(order).encode()))
    rule = manifest.site_rule.model_copy(update={"threshold": setup["model"]["site_threshold"]})
    local = is_loopback(settings.host)
    logins = Logins()
    door = Door(None if local else Accounts(settings.accounts_file), logins, secure=not local)
    certificate, key = settings.tls_files
    hosts = allowed_hosts(settings, listening.getsockname()[1])
    app = application(hub, Archive(store, exams, manifest.front_end, rule), door)
    server = Server(
        uvicorn.Config(
            Guard(app, hosts, "http" if local else "https", None if local else logins),
            log_config=None,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            ws="websockets-sansio",
            ws_max_size=LARGEST_MESSAGE,
            ws_per_message_deflate=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
            ssl_certfile=None if local else certificate,
            ssl_keyfile=None if local else str(key),
        )
    )
    loop = asyncio.get_running_loop()

    def receive() -> None:
        with suppress(EOFError, OSError, RuntimeError):
            while (message := line.recv_bytes()) != GOODBYE:
                loop.call_soon_threadsafe(hub.take, message)
        server.should_exit = True

    threading.Thread(target=receive, daemon=True).start()
    await server.serve(sockets=[listening])


if __name__ == "__main__":
    main()
