"""What a fit is told before torch is imported: where it goes, whether it is done, what is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.trainer.corpus_maker import make_sprsound
from trainer.corpora import Source
from trainer.model.config import ModelConfig
from trainer.run.folder import RunError, differences
from trainer.run.initial import CheckpointError
from trainer.run.preflight import check_weights, needs, next_of, numbered
from trainer.run.recipe import load_recipe, with_changes
from trainer.run.request import Request

HEAVY = {"torch", "scipy", "onnx", "sklearn", "lightning_fabric", "numpy"}


def test_runs_are_numbered(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert numbered(False, runs) == runs / "fit-1"
    with pytest.raises(RunError, match="no run to resume here; name its folder with --out"):
        numbered(True, runs)
    for name in ("fit-2", "fit-10", "fit-old", "study"):
        (runs / name).mkdir(parents=True)
    assert numbered(False, runs) == runs / "fit-11"
    assert numbered(True, runs) == runs / "fit-10"


def test_what_differs_is_named_by_its_key() -> None:
    kept = {"recipe": {"optimizer": {"epochs": 2, "rho": 0.1}, "init": ""}, "held_out": ["a" * 40], "seed": 0}
    assert differences(kept, kept) == []
    now = {"recipe": {"optimizer": {"epochs": 4, "rho": 0.1}, "init": ""}, "held_out": ["b" * 40], "seed": 1}
    assert differences(kept, now) == ["optimizer.epochs (2 there, 4 here)", "held_out", "seed (0 there, 1 here)"]
    assert differences({"recipe": {"data": {}}}, {"recipe": {"data": {"new": 1}}}) == ["data.new (None there, 1 here)"]


def test_without_weights_everything_that_is_missing_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_sprsound(tmp_path / "corpus", patients=6, recordings_per_patient=2, seconds=4.0)
    next(corpus.rglob("*.wav")).unlink()
    monkeypatch.chdir(tmp_path)
    changes = {"init": "absent", "data.draws": 1000}
    request = Request(with_changes(load_recipe("paper"), changes), "paper", (Source("sprsound", corpus),))
    with pytest.raises(CheckpointError) as refused:
        check_weights(request, tmp_path / "run")
    weights, audio, training = str(refused.value).split("; ")[-3:]
    assert "--init takes hub:OWNER/NAME" in weights and str(refused.value).startswith("absent: no checkpoint here")
    assert audio == f"the audio of 1 of 12 recordings is not below {corpus}, either"
    assert training.startswith("training takes about 11 GB of memory and about ")
    assert training.endswith(f"on the {os.cpu_count()} cores here (a GPU is meant for it)")


def test_what_training_needs_follows_the_model() -> None:
    optimizer = load_recipe("paper").optimizer
    base, plain = needs(ModelConfig(), optimizer, 1000, 1), optimizer.model_copy(update={"rho": 0.0})
    assert base[0] == pytest.approx(2.4 + 8 * 1.1)
    assert base[1] * 3600 * (os.cpu_count() or 1) == pytest.approx(13.0 * 1000 * optimizer.epochs)
    assert needs(ModelConfig(), plain, 1000, 2)[1] == pytest.approx(base[1])
    assert needs(ModelConfig(depth=6), optimizer, 1000, 1) == pytest.approx((base[0] / 2, base[1] / 2))


def test_a_finished_run_without_its_report_is_offered_one(tmp_path: Path) -> None:
    assert next_of(tmp_path) == f"respsam-trainer report {tmp_path}"
    (tmp_path / "report.html").touch()
    assert next_of(tmp_path) == f"respsam-export build {tmp_path} --int8 --out BUNDLE"


PROGRAM = f"""
import json, sys
from trainer.cli import main
try:
    main()
except SystemExit as left:
    print(json.dumps([left.code, sorted({HEAVY!r} & set(sys.modules))]))
"""
TYPOS = {
    "fit --corpus icbi --data .": "'icbi' is not one of icbhi, sprsound, kauh, manifest",
    "fit --corpus icbhi --data . --recipe papr": "'papr' is neither a file nor one of mobilenet, paper",
    "fit --corpus icbhi --data . --device gpu": "'gpu' is not one of 'auto', 'cpu', 'cuda'",
    "fit --corpus icbhi --data . --part tain": "'tain' is not one of 'train', 'test'",
    "evaluate absent --corpus icbhi --data .": "absent: no run here; make one with 'respsam-trainer fit'",
    "evaluate . --corpus icbhi --data . --protocol breath": "'breath' is not one of 'events', 'windows'",
    "study rhoo --corpus icbhi --data . --out studies": "'rhoo' is neither a file nor one of ablation, rho",
    "study rho --corpus icbhi --data . --out studies --to-corpus icbi": "'icbi' is not one of 'icbhi', 'sprsound'",
}


@pytest.mark.parametrize("line", [*TYPOS, "--help", "fit --help", "evaluate --help", "study --help", "compare --help"])
def test_a_typo_and_a_help_import_nothing_heavy(line: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *line.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    code, heavy = json.loads(done.stdout.splitlines()[-1])
    assert (code, heavy) == (2 if line in TYPOS else 0, [])
    assert TYPOS.get(line, "") in done.stderr and len(done.stderr.splitlines()) == (line in TYPOS)
    assert not list(tmp_path.iterdir())


def test_a_recipe_is_read_without_torch() -> None:
    code = "import sys, trainer.run.preflight; print(sorted({'torch', 'lightning_fabric', 'sklearn'} & {*sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
