"""The researcher's commands on a small corpus in the real format: describe, fit, evaluate, and their bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import REPOSITORY, RunCli
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.toy_recipe import ALONE, TOML
from trainer.evaluation.outcome import load_outcome
from trainer.run.folder import CHECKPOINT_FILE, WEIGHTS_FILE, load_tensors, outcome_file


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_sprsound(tmp_path_factory.mktemp("sprsound"), patients=9, recordings_per_patient=2)
    return make_sprsound(root, patients=9, recordings_per_patient=1, seed=5, part="intra")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A finished run, stopped after its first step and resumed."""
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "toy.toml").write_text(TOML)
    options = ["--corpus", "sprsound", "--data", str(corpus), "--recipe", "toy.toml", "--out", "run", "--device", "cpu"]
    for more in (["--minutes", "0.0001"], ["--resume"]):
        command = [sys.executable, "-m", "trainer", "fit", *options, *more]
        own = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        result = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=300)
        assert result.returncode == 0, result.stderr
        kept = "stopped within the first epoch, " if "--minutes" in more else "last epoch 2 / 2 of 2, "
        assert result.stdout.startswith(kept)
        assert result.stdout.splitlines()[-1] == "next: respsam-export build run --int8 --out BUNDLE"
        assert ("note: --minutes" in result.stderr) == ("--minutes" in more)
        facts = json.loads((folder / "run" / "run.json").read_text())
        done = 0 if "--minutes" in more else 2
        assert (facts["epochs_done"], facts["refit_epochs"]) == ([done, done], [done])
        assert re.search(r"model 2 of 3: \d patients train .*, \d are held out", result.stderr)
        assert re.search(r"model 3 of 3: 9 patients train .*, none is held out", result.stderr)
    return folder / "run"


def rows_of(member: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (member / "metrics.jsonl").read_text().splitlines()]


def test_describe_counts_and_names_the_confounder(run_cli: RunCli, corpus: Path) -> None:
    result = run_cli("trainer", "data", "describe", "--corpus", "sprsound", "--data", corpus)
    assert result.returncode == 0, result.stderr
    assert "duration alone: AUROC" in result.stdout
    assert "9 patients" in result.stdout


def test_the_audio_cache_is_said_listed_kept_within_its_limit_and_cleared(run_cli: RunCli, tmp_path: Path) -> None:
    folder = tmp_path / "audio"
    first, second = (
        make_sprsound(tmp_path / name, patients=2, recordings_per_patient=count, seconds=4.0, seed=count)
        for name, count in (("first", 2), ("second", 1))
    )

    def said(*words: str | Path, limit: str = "20.0") -> tuple[str, str]:
        (tmp_path / "own.toml").write_text(f'[training]\ncache = "{folder}"\ncache_gigabytes = {limit}\n')
        result = run_cli("trainer", *words, "--config", "own.toml")
        assert result.returncode == 0, result.stderr
        return result.stdout, result.stderr

    def listed() -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(said("data", "cache", "list", "--json", limit="2.5")[0])
        return answer

    empty = {"folder": str(folder), "recordings": 0, "bytes": 0, "earlier_bytes": 0, "limit_bytes": 2_500_000_000}
    assert listed() == empty
    score = ("segmentation", "--corpus", "sprsound", "--folds", "0", "--data")
    assert f"note: audio cache: 4 recordings, 1 MB in {folder}" in said(*score, first)[1]
    about, following = said("data", "cache", "list")[0].splitlines()
    assert about == f"{folder}: 4 recordings, 1 MB of at most 20 GB"
    assert following.startswith("next: 'respsam-trainer data cache clear' removes it")
    said(*score, second)
    assert listed()["recordings"] == 6
    said(*score, second, limit="1e-6")
    assert (listed()["recordings"], listed()["bytes"]) == (2, 2 * (4 * 64_000 + 128)), "what is in use stays"
    assert said("data", "cache", "clear")[0].splitlines()[0] == f"{folder}: 2 recordings, 1 MB removed"
    earlier = folder / f"{12 * '5f'}.f32"
    earlier.write_bytes(bytes(3_000_000))
    assert listed() == empty | {"earlier_bytes": 3_000_000}
    about = said("data", "cache", "list")[0].splitlines()[0]
    assert about == f"{folder}: 0 recordings, 0 MB of at most 20 GB and 3 MB of earlier versions"
    about = said("data", "cache", "clear")[0].splitlines()[0]
    assert about == f"{folder}: 0 recordings, 0 MB and 3 MB of earlier versions removed"
    assert listed() == empty and not earlier.exists()


def test_describe_prints_json_also_of_one_class_alone(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,start,end,label,patient\na.wav,0,1,normal,P\n")
    result = run_cli("trainer", "data", "describe", "--corpus", "manifest", "--data", tmp_path, "--json")
    assert json.loads(result.stdout, parse_constant=pytest.fail)["duration_auroc"] is None


def test_fit_then_evaluate_in_every_protocol(run_cli: RunCli, fitted: Path, corpus: Path) -> None:
    assert {"run.json", "model.safetensors", "report.html"} <= {item.name for item in fitted.iterdir()}
    for member in (fitted / "member-1", fitted / "member-2"):
        assert (member / "checkpoint.safetensors").is_file()
        assert len((member / "metrics.jsonl").read_text().splitlines()) == 2
        events = EventAccumulator(str(member / "tensorboard")).Reload()
        assert [scalar.step for scalar in events.Scalars("auroc")] == [1, 2]
    # members are kept at the end of what they trained, as the model of all patients is
    facts = json.loads((fitted / "run.json").read_text())
    assert facts["choice"]["epochs"] == facts["epochs_done"] == [2, 2]
    # what is served is the one model of all patients, at the end of its schedule
    served, kept = (load_tensors(path)[0] for path in (fitted / WEIGHTS_FILE, fitted / "all-1" / CHECKPOINT_FILE))
    assert all(torch.equal(tensor, kept[f"average.module.{name}"]) for name, tensor in served.items())
    assert all(set(row) == {"epoch", "loss", "seconds", "step_seconds"} for row in rows_of(fitted / "all-1"))
    for protocol in ("events", "windows", "live", "recordings"):
        result = run_cli(
            "trainer", "evaluate", fitted, "--corpus", "sprsound", "--data", corpus, "--protocol", protocol, "--json"
        )
        assert result.returncode == 0, result.stderr
        _check_reading(json.loads(result.stdout), protocol)
    logged = [json.loads(line) for line in (fitted / "readings.jsonl").read_text().splitlines()]
    assert [line["protocol"] for line in logged] == ["events", "windows", "live", "recordings"]
    shown = run_cli("trainer", "evaluate", fitted, "--corpus", "sprsound", "--data", corpus)
    assert "patients seen in training" in shown.stdout
    assert "duration alone would reach" in shown.stdout and "patient alone would reach" in shown.stdout
    assert "read for the 2nd time" in shown.stderr
    for protocol in ("windows", "live", "recordings"):
        assert len(load_outcome(outcome_file(fitted, protocol)).true) > 0


def _check_reading(reading: dict[str, Any], protocol: str) -> None:
    assert reading["protocol"] == protocol
    assert reading["corpus"] == "sprsound"
    assert reading["part"] == "intra"
    assert len(reading["bundle"]) == 64
    for convention in ("binary", "exact"):
        for name in ("sensitivity", "specificity", "score"):
            assert set(reading[convention][name]) == {"value", "low", "high"}
    assert set(reading["auroc"]) == {"value", "low", "high"}
    assert set(reading["confounders"]) == {"duration", "age", "level", "patient"}
    assert reading["confounders"]["patient"]["value"] is not None
    assert sum(map(sum, reading["confusion"]["counts"])) == reading["n"]
    assert ("not_met" in reading) == (protocol == "live")
    if protocol == "live":
        # what was not met is missed where it is abnormal, and left out where it is normal
        missed = sum(row[-1] for row in reading["confusion"]["counts"])
        assert reading["confusion"]["counts"][0][-1] == 0
        assert reading["n"] - missed == round((1 - reading["not_met"]) * 36)


def test_a_finished_run_is_not_trained_again(run_cli: RunCli, fitted: Path, corpus: Path) -> None:
    """And says so before torch is imported; what differs from it is named."""
    recipe = fitted.parent / "toy.toml"
    options = ["fit", "--corpus", "sprsound", "--data", str(corpus), "--recipe", str(recipe), "--resume"]
    before = {path: path.stat().st_mtime_ns for path in fitted.rglob("*")}
    result = run_cli("trainer", *options, "--out", fitted)
    assert (result.returncode, result.stderr) == (0, "")
    first, last = result.stdout.splitlines()
    assert first == f"{fitted}: the run is finished, 2 epochs of 2; nothing is left to do"
    assert last == f"next: respsam-export build {fitted} --int8 --out BUNDLE"
    other = run_cli("trainer", *options, "--out", fitted, "--epochs", "4")
    assert other.returncode == 2
    assert "of a run that differs in optimizer.epochs (2 there, 4 here); go on with the same" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in fitted.rglob("*")} == before


def test_a_run_without_a_name_gets_a_number(run_cli: RunCli, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(ALONE)
    (tmp_path / "runs" / "fit-2").mkdir(parents=True)
    options = ["fit", "--corpus", "sprsound", "--data", str(corpus), "--recipe", "toy.toml", "--minutes", "0"]
    result = run_cli("trainer", *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "next: respsam-export build runs/fit-3 --int8 --out BUNDLE"
    several = run_cli("trainer", *options, "--processes", "2")
    assert several.returncode == 2 and "--out" in several.stderr
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == ["fit-2", "fit-3"]


def test_fit_does_not_overwrite_a_run(run_cli: RunCli, fitted: Path, corpus: Path) -> None:
    again = run_cli("trainer", "fit", "--corpus", "sprsound", "--data", corpus, "--out", fitted)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr
    assert len(again.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "absent"], "neither a file nor one of mobilenet"),
        (["--crops", "square"], "'square' is not one of 'random', 'events'"),
        (["--device", "abacus"], "'abacus' is not one of 'auto', 'cpu', 'cuda'"),
        (["--part", "intra", "--data", "empty"], "no NAME.json below it"),
        (["--data", "absent"], "absent: no such folder"),
        (["--corpus", "birds"], "birds"),
        (["--config", "absent.toml"], "absent.toml"),
    ],
)
def test_bad_options_are_one_line(
    run_cli: RunCli, corpus: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "toy.toml").write_text(TOML)
    (tmp_path / "empty").mkdir()
    given = {"--corpus": "sprsound", "--data": str(corpus), "--recipe": "toy.toml", "--out": "run"}
    given.update(zip(arguments[::2], arguments[1::2], strict=True))
    result = run_cli("trainer", "fit", *(text for pair in given.items() for text in pair))
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_damaged_recording_stops_fit_by_name_and_is_counted_with_lenient(
    run_cli: RunCli, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = make_sprsound(tmp_path_factory.mktemp("damaged"), patients=9, recordings_per_patient=2)
    victim = sorted([*root.rglob("*.wav"), *root.rglob("*.flac")])[3]
    content = bytearray(victim.read_bytes())
    victim.write_bytes(bytes(content[: len(content) // 2]))
    (tmp_path / "toy.toml").write_text(TOML)
    options = ["--corpus", "sprsound", "--data", str(root), "--recipe", "toy.toml", "--out", "run", "--epochs", "1"]
    options += ["--members", "1", "--refit", "0"]
    strict = run_cli("trainer", "fit", *options)
    assert strict.returncode == 2
    assert victim.stem in strict.stderr
    assert not (tmp_path / "run").exists()
    lenient = run_cli("trainer", "fit", *options, "--lenient")
    assert lenient.returncode == 0, lenient.stderr
    assert victim.stem in (tmp_path / "run" / "log.txt").read_text()
