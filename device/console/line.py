"""The line between the process that listens and the process that serves the pages; listening never waits for it."""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import IO, Any, Final

import numpy as np

from device.console.addresses import bound_socket, url
from device.signal import FloatArray
from firmware_config.settings import ConsoleSettings

Message = dict[str, Any]
Warn = Callable[[str], None]

MOST_EVENTS: Final = 4096  # that wait for a console that does not read; the oldest go
MOST_BLOCKS: Final = 100  # of sound, 10 s; the oldest go first
NOTHING, GOODBYE = b"{}", b'{"type": "goodbye"}'
SOUND, RECORDED = b"S", b"R"  # first byte of a block of sound, and of a recording of the self-test; JSON begins with {
ENDING_SECONDS: Final = 2.0
RESTART_SECONDS: Final = 5.0  # between two starts of a console that ended by itself


def packed_sound(mark: bytes, number: int, samples: FloatArray) -> bytes:
    """Sound as bytes: mark, number of the first sample or of the order, float32 samples (n,)."""
    return mark + np.int64(number).tobytes() + samples.astype(np.float32).tobytes()


def unpacked_sound(message: bytes) -> tuple[int, FloatArray]:
    """The number and the samples (n,) of `packed_sound`."""
    return int(np.frombuffer(message, np.int64, 1, 1)[0]), np.frombuffer(message, np.float32, offset=9)


class Waiting:
    """Messages for a reader that may have stalled: of too much sound, or of too many events, the oldest are dropped."""

    def __init__(self) -> None:
        self._events: deque[tuple[int, bytes]] = deque(maxlen=MOST_EVENTS)
        self._sound: deque[tuple[int, bytes]] = deque(maxlen=MOST_BLOCKS)
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, message: bytes) -> None:
        """Queue a message and return at once."""
        with self._changed:
            self._count += 1
            (self._sound if message[:1] == SOUND else self._events).append((self._count, message))
            self._changed.notify()

    def get(self) -> bytes | None:
        """The next message in order, waited for; None once closed and empty."""
        with self._changed:
            while not (self._events or self._sound or self._closed):
                self._changed.wait()
            waiting = [queue for queue in (self._events, self._sound) if queue]
            return min(waiting, key=lambda queue: queue[0]).popleft()[1] if waiting else None

    def close(self) -> None:
        """No more messages come."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class Line:
    """Starts the console's process, sends it what happens, and receives what its user orders.

    A console that ends by itself is started again; the messages of that moment are lost to it, and listening goes on.
    """

    def __init__(self, settings: ConsoleSettings, setup: Message, take: Callable[[Message], None], warn: Warn) -> None:
        """Bind the address; ConsoleError when that is refused. `take` gets each order, in a thread of its own."""
        self._take, self._warn = take, warn
        self._setup = setup
        self._socket = bound_socket(settings)
        self.url = url(settings, self._socket)
        self._waiting, self._ending = Waiting(), False
        self._begin = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def send(self, kind: str, /, **fields: Any) -> None:
        """Send an event; returns at once."""
        message = json.dumps({"type": kind, **fields}).encode()
        if kind in ("begin", "end", "failed"):
            self._begin = message if kind == "begin" else b""
        self._waiting.put(message)

    def sound(self, start_sample: int, samples: FloatArray) -> None:
        """Send a block of sound; returns at once."""
        self._waiting.put(packed_sound(SOUND, start_sample, samples))

    def recorded(self, order: int, samples: FloatArray) -> None:
        """Send a whole recording of the self-test; returns at once."""
        self._begin = b""
        self._waiting.put(packed_sound(RECORDED, order, samples))

    def close(self) -> None:
        """End the console's process, in bounded time."""
        self._ending = True
        self._waiting.close()
        self._thread.join(ENDING_SECONDS)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._socket.close()

    def _serve(self) -> None:
        while not self._ending:
            began = time.monotonic()
            with tempfile.TemporaryFile("w+") as errors:
                self._serve_once(errors)
                if not self._ending:
                    self._warn(f"the console's process ended ({_last_line(errors)}); it is started again")
            while not self._ending and time.monotonic() - began < RESTART_SECONDS:
                time.sleep(0.1)

    def _serve_once(self, errors: IO[str]) -> None:
        """Start the process and send it messages until one of the two ends."""
        process, connection = self._start(errors)
        self._process = process
        threading.Thread(target=self._receive, args=(connection,), daemon=True).start()
        with suppress(OSError):
            connection.send_bytes(json.dumps(self._setup).encode())
            if self._begin:  # a console that was started again must know what runs
                connection.send_bytes(self._begin)
            while (message := self._waiting.get()) is not None:
                connection.send_bytes(message)
            connection.send_bytes(GOODBYE)
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_SECONDS)
        process.kill()
        process.wait()
        connection.close()

    def _start(self, errors: IO[str]) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), self._socket.fileno())
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "device.console.process", *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=descriptors,
            )
        return process, Connection(ours.detach())

    def _receive(self, connection: Connection) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._take(json.loads(connection.recv_bytes()))
        self._waiting.put(NOTHING)  # so that the sender finds out, too


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    return (errors.read()[-10_000:].strip().splitlines() or ["without an error"])[-1]
