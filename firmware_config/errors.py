"""The base class of all errors that a user can cause, with the exit code of the command."""


class RespSAMError(Exception):
    """One line: what is wrong, where, and what to do. The command prints it and exits with `exit_code`."""

    exit_code = 2


class GateRefused(RespSAMError):
    """A measurement missed its limit: parity, accuracy or hashes of a build."""

    exit_code = 3
