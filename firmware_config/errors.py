"""The root of every error that a user can cause, with the exit code that a command answers it with."""


class RespSAMError(Exception):
    """A message of one line: what was wrong, where, and what to do. A command prints it and exits with `exit_code`."""

    exit_code = 2


class GateRefused(RespSAMError):
    """A gate refused after a measurement: parity, accuracy, hashes of a build."""

    exit_code = 3
