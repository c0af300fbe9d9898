"""docs/first-hour.md and docs/notebook.ipynb, run as they are on a small corpus."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import soundfile
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from tests.conftest import REPOSITORY
from tests.trainer.corpus_maker import SAMPLE_RATE, make_recordings, make_sprsound

PAGE = REPOSITORY / "docs" / "first-hour.md"
NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"
PACKAGES = {"trainer": "trainer", "respsam-export": "export", "respsam-device": "device"}
SHORTER = {"--init mn04_as_mAP_432.pt --members 1 --minutes 20": "--recipe first.toml --members 1 --minutes 0.1"}
"""What is not as on the page: weights that would have to be downloaded, and minutes."""


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), flags=re.S | re.M))


def write_labelled(folder: Path, prefix: str, patients: int, seed: int) -> None:
    """Recordings and the label tracks that Audacity would export."""
    folder.mkdir()
    for made in make_recordings(patients, 2, 9.0, seed):
        name = f"{prefix}{made.patient:02d}_{('left', 'right')[made.number]}"
        soundfile.write(folder / f"{name}.wav", made.samples, SAMPLE_RATE, subtype="PCM_16")
        track = "".join(f"{start:.6f}\t{end:.6f}\t{label}\n" for start, end, label in made.events)
        (folder / f"{name}.txt").write_text(track)


@pytest.mark.timeout(1200)
def test_every_command_of_the_first_hour_runs(tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, package in PACKAGES.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {package} "$@"\n')
        (commands / name).chmod(0o755)
    write_labelled(tmp_path / "recordings", "p", 9, seed=0)
    write_labelled(tmp_path / "later", "q", 4, seed=7)
    (tmp_path / "first.toml").write_text(blocks("toml"))
    script = blocks("sh")
    for written, shorter in SHORTER.items():
        assert written in script
        script = script.replace(written, shorter)
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RESPSAM_TRAINING__CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1100
    )
    assert done.returncode == 0, done.stderr
    assert "9 patients, 18 recordings" in done.stdout
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert (tmp_path / "verdicts.csv").read_text().count("\n") == 9
    assert "screening aid" in done.stdout


def test_what_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    for name in re.findall(r"\]\(([\w.-]+)\)", text):
        assert (PAGE.parent / name).is_file(), name
    assert "pip install -e '.[train,export]'" in text


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], nbformat.NotebookNode]:
    """The notebook with parameters of a small corpus behind its own."""
    make_sprsound(tmp_path / "SPRSound", patients=9)
    (tmp_path / "small.toml").write_text(blocks("toml"))
    monkeypatch.setenv("RESPSAM_TRAINING__CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    def opened() -> nbformat.NotebookNode:
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        (place,) = [at for at, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
        notebook.cells.insert(place + 1, new_code_cell('RECIPE, INIT, MINUTES = "small.toml", "", 0.1'))
        return notebook

    return opened


@pytest.mark.timeout(900)
def test_the_notebook_runs(small: Callable[[], nbformat.NotebookNode], tmp_path: Path) -> None:
    notebook = small()
    NotebookClient(notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "image/png" in outputs and "judged" in outputs and "AUROC" in outputs
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert str(Path.home()) not in NOTEBOOK.read_text()
