"""What several tests of the device share: its command run in this process, and a microphone without hardware."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import device.cli
from tests.device.virtual_microphone import VirtualMicrophone, virtual_microphone


class Answer(NamedTuple):
    """What a command said and how it ended."""

    code: int
    out: str
    error: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Its JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Device = Callable[..., Answer]


@pytest.fixture
def respsam_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Device:
    """Run the command in this process: a process of its own costs a second."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["respsam-device", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            device.cli.main()
        out, error = capsys.readouterr()
        return Answer(int(ended.value.code or 0), out, error)

    return run


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualMicrophone]:
    """A microphone for the processes that the test starts."""
    with virtual_microphone(tmp_path / "mic") as plugged:
        for name, value in plugged.environment.items():
            monkeypatch.setenv(name, value)
        yield plugged
