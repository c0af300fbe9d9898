"""The trainer from Python: what `import trainer` offers, and the examples of docs/python.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import trainer
from tests.conftest import REPOSITORY
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.toy_recipe import ALONE


def examples() -> str:
    """The Python of the section on training."""
    section = (REPOSITORY / "docs" / "python.md").read_text().partition("## Training")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.S))


def test_import_trainer_imports_no_torch() -> None:
    code = "import sys, trainer; print(*{'torch', 'numpy', 'pydantic'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    assert not done.stdout.strip()


def test_every_name_is_there() -> None:
    for name in trainer.__all__:
        assert getattr(trainer, name).__name__ == name
    unknown = "frobnicate"
    with pytest.raises(AttributeError, match=unknown):
        getattr(trainer, unknown)


def test_the_examples_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sprsound(tmp_path / "SPRSound", patients=9, recordings_per_patient=2)
    make_sprsound(tmp_path / "SPRSound", patients=9, recordings_per_patient=1, seed=5, part="intra")
    (tmp_path / "small.toml").write_text(ALONE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESPSAM_TRAINING__CACHE", str(tmp_path / "cache"))
    exec(compile(examples(), "docs/python.md", "exec"), {})
    assert (tmp_path / "run" / "readings.jsonl").read_text().count("\n") == 3
    assert (tmp_path / "studies" / "study.md").is_file()
