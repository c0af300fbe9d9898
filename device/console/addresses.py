"""Where the console listens for browsers, and what it needs before others than this machine may reach it."""

import errno
import re
import socket
import ssl
from contextlib import ExitStack
from typing import Final

from device.console.accounts import Accounts
from device.console.certificate import make_certificate
from firmware_config.errors import RespSAMError
from firmware_config.settings import ConsoleSettings

GOOD_TOKEN: Final = re.compile(r"[!-~]{20,}")


class ConsoleError(RespSAMError):
    """The console cannot start: its address is taken, or it would be reachable without TLS and accounts."""


def check_reachable(settings: ConsoleSettings) -> None:
    """ConsoleError when others could reach the console without TLS, or when nobody could log in."""
    if settings.is_local:
        return
    reachable = f"console.host = {settings.host} is reachable by others"
    metrics_token(settings)
    if not Accounts(settings.accounts_file).names:
        raise ConsoleError(
            f"{reachable} and has no accounts: add one with 'respsam-device account NAME', or keep 127.0.0.1"
        )
    files = settings.tls_files
    if not settings.certificate and not settings.key and not all(file.is_file() for file in files):
        make_certificate(*files, [settings.host, *settings.names.split(), "localhost"])
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files)
    except (OSError, ssl.SSLError) as error:
        shown = " and ".join(map(str, files))
        raise ConsoleError(
            f"{reachable} and needs TLS, but {shown} are no certificate and key ({error.strerror or error}); "
            "set console.certificate and console.key, or empty both"
        ) from error


def metrics_token(settings: ConsoleSettings) -> str:
    """The token by which Prometheus reads the figures; empty without one. ConsoleError when it is no good token."""
    if (file := settings.metrics_token_file) is None:
        return ""
    try:
        token = file.read_text().strip()
    except (OSError, ValueError) as error:
        raise ConsoleError(f"console.metrics_token: {file} cannot be read ({error})") from error
    if not GOOD_TOKEN.fullmatch(token):
        raise ConsoleError(
            f"console.metrics_token: {file} has no token of 20 or more ASCII characters without spaces; make one with "
            "'openssl rand -hex 32'"
        )
    return token


def bound_socket(settings: ConsoleSettings) -> socket.socket:
    """A listening socket on the settings' address; ConsoleError when it is refused."""
    check_reachable(settings)
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with ExitStack() as failed:
            bound = failed.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, port))
            bound.listen(64)
            failed.pop_all()
    except OSError as error:
        remedy = "end the other program, or set console.port" if error.errno == errno.EADDRINUSE else "set console.host"
        reason = "in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConsoleError(f"the console cannot use {host} port {port}: {reason}; {remedy}") from error
    return bound


def url(settings: ConsoleSettings, bound: socket.socket) -> str:
    """The address for the browser of this machine, or of others by the first of the settings' names."""
    scheme = "http" if settings.is_local else "https"
    host = settings.names.split()[0] if settings.names and not settings.is_local else settings.host
    port = bound.getsockname()[1]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def allowed_hosts(settings: ConsoleSettings, port: int) -> frozenset[str]:
    """The Host headers that are answered; a page of another name could be another site's (DNS rebinding)."""
    names = ["127.0.0.1", "localhost", "[::1]", settings.host]
    if not settings.is_local:
        names += settings.names.split()
    ported = [f"{name}:{port}" for name in names]
    return frozenset(name.lower() for name in ([*names, *ported] if port in (80, 443) else ported))
