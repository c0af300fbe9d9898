"""What all tests share: the repository, real recordings where there are any, and the commands in their own process."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


class RunCli(Protocol):
    def __call__(
        self, package: str, *arguments: str | Path, timeout_seconds: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(autouse=True, scope="session")
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads the user's settings or writes into the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _settings_in(os.environ):
            patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the project."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with `sprsound/` and `icbhi/`: RESPSAM_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("RESPSAM_DATA") or REPOSITORY.parent / "shared" / "data")
    missing = [name for name in ("sprsound", "icbhi") if not (folder / name).is_dir()]
    if missing:
        pytest.skip(f"no real recordings: {' and '.join(missing)} not in {folder}; set RESPSAM_DATA")
    return folder


@pytest.fixture
def run_cli(tmp_path: Path) -> RunCli:
    """Run `python -m PACKAGE ARGUMENTS` in an empty folder; keywords are added to the environment."""

    def run(
        package: str, *arguments: str | Path, timeout_seconds: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", package, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    return run


def _settings_in(environment: Mapping[str, str]) -> list[str]:
    return [name for name in environment if name.startswith("RESPSAM_") and name != "RESPSAM_DATA"]
