"""The log of a command: one line an event, on stderr (a service's journal), without personal data.

One logger a package (`logging.getLogger("device")`). Nothing is written without `--log-level` or `--log-format`.
"""

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Final, Literal, get_args

Level = Literal["debug", "info", "warning", "error"]
Form = Literal["text", "json"]
LEVELS: Final[tuple[str, ...]] = get_args(Level)
FORMS: Final[tuple[str, ...]] = get_args(Form)
PACKAGES: Final = ("firmware_config", "device", "trainer", "export")


class Lines(logging.Formatter):
    """`2026-11-30T12:00:00.000Z info device: microphone lost`, or one JSON object with the same and its fields."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        """One line; the fields of `extra={"fields": {...}}` follow the message."""
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        known = {"time": at.replace("+00:00", "Z"), "level": record.levelname.lower(), "package": record.name}
        message, fields = " ".join(record.getMessage().split()), getattr(record, "fields", {})
        if self.form == "json":
            return json.dumps({**known, "message": message, **fields}, default=str)
        words = "".join(f" {name}={json.dumps(value, default=str)}" for name, value in fields.items())
        return f"{known['time']} {known['level']} {known['package']}: {message}{words}"


class Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the stderr of the moment: a session replaces it by an outlet."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line to the present stderr."""
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore errors: a missing reader must not end the session."""


def set_up(level: Level, form: Form = "text") -> None:
    """Write the log of the four packages from `level` on; a second call replaces the first."""
    handler = Stderr()
    handler.setFormatter(Lines(form))
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())


def is_set_up() -> bool:
    """Whether a log is written."""
    return any(not isinstance(handler, logging.NullHandler) for handler in logging.getLogger(PACKAGES[0]).handlers)


def silence() -> None:
    """Write nothing unless `set_up` is called; Python itself would print warnings."""
    for name in PACKAGES:
        if not logging.getLogger(name).handlers:
            logging.getLogger(name).addHandler(logging.NullHandler())
