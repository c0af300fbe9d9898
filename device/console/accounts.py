"""Who may use a console that others can reach: names, roles, and argon2 hashes of passwords in one private file."""

import json
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from firmware_config.errors import RespSAMError
from firmware_config.files import PRIVATE, write_atomically

Role = Literal["viewer", "examiner", "admin"]

ROLES: Final[tuple[Role, ...]] = ("viewer", "examiner", "admin")
"""Each may do what those before it may: look; listen, examine and judge; delete, calibrate and measure."""
LEAST_CHARACTERS: Final = 10
SESSION_SECONDS: Final = 12 * 3600.0
FAILURES: Final = 5  # of one name or one address, then it waits
PAUSE_SECONDS: Final = 60.0
MOST_REMEMBERED: Final = 1000  # names and addresses with failures, and logins


class AccountError(RespSAMError):
    """A file of accounts that cannot be read, or an account that cannot be made."""


def at_least(role: Role, wanted: Role) -> bool:
    """Whether a role may do what another one may."""
    return ROLES.index(role) >= ROLES.index(wanted)


@lru_cache(maxsize=1)
def _hash_of_nobody() -> str:
    from argon2 import PasswordHasher

    return PasswordHasher().hash(secrets.token_hex())


class Accounts:
    """The file of accounts: `{name: {"role": ..., "hash": ...}}`."""

    def __init__(self, file: Path) -> None:
        """AccountError when the file is there and cannot be read."""
        self.file = file
        try:
            self._known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        except (OSError, ValueError) as error:
            raise AccountError(f"{file}: the accounts cannot be read ({error}); repair or remove the file") from error

    @property
    def names(self) -> list[str]:
        """Of all accounts."""
        return sorted(self._known)

    def set(self, name: str, role: Role, password: str) -> None:
        """Make an account, or change it. AccountError for a short password or a name with spaces."""
        from argon2 import PasswordHasher

        if not name or not name.isprintable() or " " in name or len(name) > 40:
            raise AccountError(f"{name!r} is no name of an account; use up to 40 letters without spaces")
        if len(password) < LEAST_CHARACTERS:
            raise AccountError(f"the password has {len(password)} characters; use at least {LEAST_CHARACTERS}")
        self._known[name] = {"role": role, "hash": PasswordHasher().hash(password)}
        write_atomically(self.file, json.dumps(self._known, indent=1) + "\n", PRIVATE)

    def role(self, name: str, password: str) -> Role | None:
        """The role that a name with this password has; None for a wrong one, after the same time."""
        from argon2 import PasswordHasher
        from argon2.exceptions import Argon2Error, InvalidHash

        account, nobodys = self._known.get(name), _hash_of_nobody()
        try:
            # an unknown name takes as long as a wrong password
            PasswordHasher().verify(account["hash"] if account else nobodys, password)
        except (Argon2Error, InvalidHash):
            return None
        return account["role"] if account else None


@dataclass(frozen=True)
class Login:
    """Somebody who is logged in."""

    name: str
    role: Role
    until: float


class Logins:
    """Sessions by the token in the browser's cookie, and the failures that make a name or an address wait."""

    def __init__(self) -> None:
        self._logins: dict[str, Login] = {}
        self._failures: dict[str, list[float]] = {}

    def begin(self, name: str, role: Role) -> str:
        """Log in; returns the token."""
        now = time.monotonic()
        self._logins = {token: login for token, login in self._logins.items() if login.until > now}
        while len(self._logins) >= MOST_REMEMBERED:
            del self._logins[next(iter(self._logins))]
        token = secrets.token_urlsafe(32)
        self._logins[token] = Login(name, role, now + SESSION_SECONDS)
        return token

    def find(self, token: str) -> Login | None:
        """Who has this token."""
        login = self._logins.get(token)
        return login if login is not None and login.until > time.monotonic() else None

    def end(self, token: str) -> None:
        """Log out."""
        self._logins.pop(token, None)

    def wait_seconds(self, *keys: str) -> float:
        """How long these names and addresses must wait before the next try; 0 if they need not."""
        now = time.monotonic()
        recent = [[at for at in self._failures.get(key, []) if now - at < PAUSE_SECONDS] for key in keys]
        return max(
            (PAUSE_SECONDS - (now - times[-FAILURES]) for times in recent if len(times) >= FAILURES), default=0.0
        )

    def failed(self, *keys: str) -> None:
        """Count a wrong password."""
        for key in keys:
            if key not in self._failures and len(self._failures) >= MOST_REMEMBERED:
                del self._failures[next(iter(self._failures))]
            self._failures[key] = [*self._failures.get(key, [])[-FAILURES:], time.monotonic()]
