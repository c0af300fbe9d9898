import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from device.bundle import MANIFEST, BundleError, read_bundle
from export.cli import main
from export.verify import open_whole, require, verify
from firmware_config.errors import GateRefused
from firmware_config.settings import load_settings
from tests.export.conftest import Made, Workshop
from trainer.choices import Protocol
from trainer.corpora import Source
from trainer.corpora.audio_cache import open_corpora
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.served import open_served
from trainer.metrics import Interval

QUALITY = load_settings(environment={}).quality


@pytest.fixture
def edited(patch_made: Made, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """The patch model's bundle with a manifest changed by hand."""

    def edit(change: Callable[[dict[str, Any]], None]) -> Path:
        copy = tmp_path / "edited"
        shutil.copytree(patch_made.built.bundle.path, copy)
        manifest = json.loads((copy / MANIFEST).read_text())
        change(manifest)
        (copy / MANIFEST).write_text(json.dumps(manifest))
        return copy

    return edit


def never_flags(manifest: dict[str, Any]) -> None:
    """The int8 file for a CPU calls everything normal."""
    for file in manifest["files"]:
        if file["path"] == "model.int8.cpu.onnx":
            file["threshold"] = 1.0


def expects_something_else(manifest: dict[str, Any]) -> None:
    probabilities = manifest["self_test"]["expected_probability"]
    probabilities[2] = 1.0 - round(probabilities[2])


@pytest.mark.parametrize("protocol", ["windows", "recordings"])
def test_every_file_is_read_as_trainer_evaluate_reads_it(patch_made: Made, workshop: Workshop, protocol: Any) -> None:
    bundle = open_whole(patch_made.built.bundle.path)
    corpus, cache = open_corpora([Source("sprsound", workshop.data)], workshop.cache, part="intra")
    said: list[str] = []
    verified = verify(bundle, corpus, cache, protocol, QUALITY, said.append)
    assert [one.file.precision for one in verified] == ["fp32", "int8", "int8", "fp16"]
    default = evaluate(open_served(bundle.path, torch.device("cpu")), corpus, cache, protocol, QUALITY)
    (same,) = [one for one in verified if one.file == bundle.file()]
    # evaluate also listens longer
    assert same.reading.as_json() == {name: value for name, value in default.as_json().items() if name != "listening"}
    first = verified[0]
    assert (first.agreement, first.relative_error, first.score_shift) == (1.0, 0.0, Interval(0.0, 0.0, 0.0))
    for one in verified[1:]:
        assert one.agreement > 0.9
        assert 0 < one.relative_error < 0.2
        moved = one.reading.binary.score.value - first.reading.binary.score.value
        assert one.score_shift.value == pytest.approx(moved, abs=1.1e-4)
        assert one.self_test <= bundle.manifest.self_test.tolerance
        assert any(one.file.path in line for line in said)
    require(verified, bundle)


def test_a_changed_byte_is_refused_and_no_bundle_is_bad_input(patch_made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(patch_made.built.bundle.path, copy)
    data = bytearray((copy / "model.int8.cpu.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.int8.cpu.onnx").write_bytes(data)
    with pytest.raises(GateRefused, match=r"model\.int8\.cpu\.onnx has sha256"):
        open_whole(copy)
    (copy / MANIFEST).unlink()
    for nothing in (copy, tmp_path / "nowhere"):
        with pytest.raises(BundleError) as refused:
            open_whole(nothing)
        assert refused.value.exit_code == 2


def test_a_bundle_that_answers_something_else_fails_its_self_test(
    edited: Callable[[Callable[[dict[str, Any]], None]], Path], workshop: Workshop
) -> None:
    corpus, cache = open_corpora([Source("sprsound", workshop.data)], workshop.cache, part="intra")
    with pytest.raises(GateRefused, match=r"model\.onnx: .*self-test off by"):
        verify(read_bundle(edited(expects_something_else)), corpus, cache, "windows", QUALITY)


def command(monkeypatch: pytest.MonkeyPatch, workshop: Workshop, *arguments: str | Path) -> int | str | None:
    """The exit code of `export verify` on the intra part."""
    monkeypatch.setenv("RESPSAM_TRAINING__CACHE", str(workshop.cache))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    read = ("--corpus", "sprsound", "--data", workshop.data, "--part", "intra")
    monkeypatch.setattr(sys, "argv", ["export", "verify", *map(str, (*arguments, *read))])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_a_file_that_loses_score_is_refused_after_the_table(
    edited: Callable[[Callable[[dict[str, Any]], None]], Path],
    workshop: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, workshop, edited(never_flags), "--json") == 3
    output, errors = capsys.readouterr()
    found = json.loads(output)
    assert not found["holds"]
    assert [one["path"] for one in found["files"] if one["problem"]] == ["model.int8.cpu.onnx"]
    assert "model.int8.cpu.onnx loses" in errors and "of Score against fp32" in errors
    assert "(too few patients for any claim: 6, 50 are the least)" in errors


def test_the_table_and_bad_input(
    patch_made: Made, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = patch_made.built.bundle
    assert command(monkeypatch, workshop, bundle.path) == 0
    output = capsys.readouterr().out
    assert bundle.fingerprint[:12] in output
    assert all(file.path in output for file in bundle.manifest.files)
    assert output.count("yes") == len(bundle.manifest.files)
    assert "NOTE too few patients for any claim: 6, 50 are the least" in output
    assert command(monkeypatch, workshop, bundle.path, "--protocol", "breaths") == 2
    assert f"'breaths' is not one of {', '.join(map(repr, get_args(Protocol)))}" in capsys.readouterr().err
