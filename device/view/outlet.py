"""Output that never blocks the session: text waits in a bounded queue for a reader that may have stalled."""

import errno
import io
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

MOST_WAITING: Final = 256  # pieces of text: lines, or pages of a terminal
PARTING_SECONDS: Final = 0.3  # for the reader to take the rest, once the session is stopped
STALLED_SECONDS: Final = 5.0  # without progress, then the reader is given up
WAKE_SECONDS: Final = 0.05
GONE: Final = (errno.EIO, errno.ENXIO)  # the terminal was closed

Notice = Callable[[int], str]


class Outlet(io.TextIOBase):
    """A text stream in front of another one; a thread writes what is in the queue.

    With `wait` a full queue blocks until `stopping`; without it the oldest pieces are dropped and counted, and
    `notice` makes the text that replaces them. A stream that is no file (as in a notebook) is written directly.
    """

    def __init__(
        self, stream: TextIO, notice: Notice, *, wait: bool = False, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._stream, self._notice, self._wait, self._stopping = stream, notice, wait, stopping
        self.dropped = 0
        """Pieces of text that were dropped."""
        self._unreported = 0
        self._error: OSError | None = None
        self._progress_at, self._stopped_at, self._ended = time.monotonic(), 0.0, False
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        try:
            self._descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):
            self._descriptor = -1
            return
        stream.flush()
        threading.Thread(target=self._write_queue, daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream behind it."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Of the stream behind it."""
        return self._stream.fileno()

    @property
    def errors(self) -> str:  # type: ignore[override]
        """How characters outside of its encoding are written."""
        return "backslashreplace"

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Queue a piece of text; OSError when an earlier one could not be written."""
        if not isinstance(text, str):
            raise TypeError("text only")
        if self._descriptor < 0:
            return self._stream.write(text)
        with self._changed:
            if self._wait:
                while len(self._waiting) >= MOST_WAITING and not (self._error or self._stopping()):
                    self._changed.wait(0.1)
            self._raise()
            if len(self._waiting) >= MOST_WAITING:
                del self._waiting[1]  # the first may be half written
                self.dropped += 1
                self._unreported += 1
            if text:
                self._queue(text)
        return len(text)

    def flush(self) -> None:
        """Nothing to do: the thread writes as soon as the reader takes it."""
        if self._descriptor < 0:
            self._stream.flush()

    def finish(self) -> int:
        """Wait for the reader, only briefly once stopping; returns the number of pieces that were not shown."""
        if self._descriptor < 0:
            return 0
        with self._changed:
            while self._waiting and not self._error and self._is_waited_for():
                self._changed.wait(WAKE_SECONDS)
            self._ended = True
            self._changed.notify_all()
            self._raise()
            return self.dropped + len(self._waiting)

    def _is_waited_for(self) -> bool:
        now = time.monotonic()
        if self._stopping():
            self._stopped_at = self._stopped_at or now
            return now - self._stopped_at < PARTING_SECONDS
        return self._wait or now - self._progress_at < STALLED_SECONDS

    def _queue(self, text: str) -> None:
        if not self._waiting:
            self._progress_at = time.monotonic()
        self._waiting.append(text.encode(self.encoding, self.errors))
        self._changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None and self._error.errno not in GONE:
            raise self._error

    def _write_queue(self) -> None:
        while (piece := self._next()) is not None:
            try:
                self._put(piece)
            except OSError as error:
                self._error = error
            with self._changed:
                self._progress_at = time.monotonic()
                if self._error:
                    self._waiting.clear()
                else:
                    self._waiting.popleft()
                self._changed.notify_all()

    def _next(self) -> bytes | None:
        with self._changed:
            while not self._waiting and not self._ended:
                self._changed.wait()
            if self._unreported:
                self._waiting.appendleft(self._notice(self._unreported).encode(self.encoding, self.errors))
                self._unreported = 0
            return self._waiting[0] if self._waiting else None

    def _put(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[os.write(self._descriptor, piece) :]
            except BlockingIOError:  # the parent made it non-blocking
                select.select([], [self._descriptor], [])
