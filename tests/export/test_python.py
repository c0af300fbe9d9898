"""Export from Python: what `import export` offers, and the example of docs/python.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import export
from tests.conftest import REPOSITORY
from tests.export.run_maker import PATCH, make_run
from tests.trainer.corpus_maker import make_sprsound


def test_import_export_imports_nothing_heavy() -> None:
    code = "import sys, export; print(*{'numpy', 'onnx', 'onnxruntime', 'torch'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    assert not done.stdout.strip()


def test_every_name_is_there() -> None:
    for name in export.__all__:
        assert getattr(export, name).__name__ == name
    unknown = "frobnicate"
    with pytest.raises(AttributeError, match=unknown):
        getattr(export, unknown)


def test_the_example_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = (REPOSITORY / "docs" / "python.md").read_text().partition("## Exporting")[2].partition("\n## ")[0]
    make_run(tmp_path / "run", make_sprsound(tmp_path / "corpus"), tmp_path / "cache", PATCH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESPSAM_TRAINING__CACHE", str(tmp_path / "cache"))
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.S)), "docs/python.md", "exec"), {})
    assert capsys.readouterr().out.split()[:2] == ["model.onnx", "fp32"]
    assert (tmp_path / "mine.respsam").is_file()
