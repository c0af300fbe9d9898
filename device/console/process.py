"""The process that serves the pages: `python -m device.console.process LINE SOCKET`, started by `device.console.line`.

LINE is the file descriptor of the line to the session's process, SOCKET that of the listening socket. When the line
closes, this process ends.
"""

import asyncio
import json
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
from device.console import settings_page
from device.console.accounts import Accounts, Logins
from device.console.addresses import allowed_hosts, metrics_token
from device.console.app import Door, application
from device.console.archive import Archive
from device.console.guard import Guard
from device.console.guide import Guide
from device.console.hub import Hub
from device.console.line import GOODBYE
from device.console.metrics import Metrics
from device.runtime import yield_priority
from device.store.exams import Exams
from firmware_config.settings import Settings

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
    yield_priority(NICENESS)
    line, listening = Connection(int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    with suppress(EOFError, KeyboardInterrupt):
        asyncio.run(serve(json.loads(line.recv_bytes()), line, listening))


async def serve(setup: dict[str, Any], line: Connection, listening: socket.socket) -> None:
    """Serve the pages; `setup` has the settings, the bundle's manifest and the model."""
    device = Settings.model_validate(setup["settings"])
    settings, store = device.console, device.store
    manifest = Manifest.model_validate_json(setup["manifest"])
    outputs = device.outputs
    exams = Exams(store.file if store.enabled else None, outputs.mqtt_waiting if outputs.mqtt_host else 0)
    rule = manifest.site_rule.model_copy(update={"threshold": setup["model"]["site_threshold"]})
    hub = Hub(manifest, setup["model"], exams, lambda order: line.send_bytes(json.dumps(order).encode()))
    hub.guide = Guide(hub, device, rule)
    metrics = Metrics(setup["model"])
    local = settings.is_local
    logins = Logins()
    door = Door(None if local else Accounts(settings.accounts_file), logins, secure=not local)
    certificate, key = settings.tls_files
    hosts = allowed_hosts(settings, listening.getsockname()[1])
    more = [metrics.route, *settings_page.routes(hub)]
    app = application(hub, Archive(store, exams, manifest.front_end, rule), door, more)
    server = Server(
        uvicorn.Config(
            Guard(app, hosts, "http", None) if local else Guard(app, hosts, "https", logins, metrics_token(settings)),
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

    def take(message: bytes) -> None:
        hub.take(message)
        metrics.take(message)

    def receive() -> None:
        with suppress(EOFError, OSError, RuntimeError):
            while (message := line.recv_bytes()) != GOODBYE:
                loop.call_soon_threadsafe(take, message)
        server.should_exit = True

    threading.Thread(target=receive, daemon=True).start()
    await server.serve(sockets=[listening])


if __name__ == "__main__":
    main()
