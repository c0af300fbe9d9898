"""The base class of all errors that a user can cause, with the exit code of the command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class RespSAMError(Exception):
    """One line: what is wrong, where, and what to do. The command prints it and exits with `exit_code`."""

    exit_code = 2


class GateRefused(RespSAMError):
    """A measurement missed its limit: parity, accuracy or hashes of a build."""

    exit_code = 3


def first_problem(error: "ValidationError") -> tuple[str, str, Any]:
    """Of the first value that a model refuses: its key (empty for the whole), what is wrong with it, and the value."""
    first = error.errors()[0]
    reason = first["msg"].removeprefix("Value error, ").replace("Extra inputs are not permitted", "unknown key")
    return ".".join(map(str, first["loc"])), reason, first["input"]
