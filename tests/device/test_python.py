"""The device from Python: what `import device` offers, and the examples of docs/python.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

import device
from device.breath.simulator import simulate
from device.signal import SAMPLE_RATE
from tests.conftest import REPOSITORY


def test_import_device_imports_nothing_heavy() -> None:
    code = "import sys, device; print(*{'numpy', 'onnxruntime', 'pydantic', 'torch'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    assert not done.stdout.strip()


def test_every_name_is_there() -> None:
    for name in device.__all__:
        assert getattr(device, name).__name__ == name
    unknown = "frobnicate"
    with pytest.raises(AttributeError, match=unknown):
        getattr(device, unknown)


def test_the_examples_of_the_docs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (REPOSITORY / "docs" / "python.md").read_text().partition("## Listening")[2].partition("\n## ")[0]
    (tmp_path / "recordings").mkdir()
    soundfile.write(tmp_path / "recordings" / "chest.wav", simulate(3, 20.0).samples, SAMPLE_RATE)
    (tmp_path / "recordings" / "broken.wav").write_bytes(b"no sound")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.S)), "docs/python.md", "exec"), {})
    out = capsys.readouterr().out
    assert "chest.wav" in out and "broken.wav" in out
    assert not (tmp_path / "state").exists(), "nothing is stored"
