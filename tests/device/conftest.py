"""What several tests of the device share: its command run in this process, and a microphone without hardware."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import soundfile

import device.cli
from device.breath.simulator import simulate
from device.signal import SAMPLE_RATE
from tests.device.bundle_maker import make_bundle
from tests.device.virtual_microphone import VirtualMicrophone, virtual_microphone

if TYPE_CHECKING:
    from tests.device.broker import Broker, Reader


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


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("cli") / "bundle")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "child.wav"
    soundfile.write(path, simulate(4, 12.3).samples, SAMPLE_RATE, subtype="PCM_24")
    return path


@pytest.fixture
def broker(tmp_path: Path) -> "Iterator[Broker]":
    """A broker that runs."""
    from tests.device.broker import Broker, has_mosquitto

    if not has_mosquitto():
        pytest.skip("no broker to send to: install mosquitto ('make test' installs it)")
    (tmp_path / "broker").mkdir()
    made = Broker(tmp_path / "broker")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def reader(broker: "Broker") -> "Iterator[Reader]":
    """Reads everything that the broker gets."""
    from tests.device.broker import Reader

    made = Reader(broker)
    yield made
    made.close()


def one_error(answer: Answer) -> str:
    """The only line there is: on stderr, with exit code 2."""
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.error.splitlines()
    assert line.startswith("respsam-device: error: ")
    return line
