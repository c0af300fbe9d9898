import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from device.bundle import MANIFEST, BundleError, ModelFile, read_bundle
from export.cli import main
from export.inspection import Inspected, count, inspect
from export.onnx_graph import to_onnx
from export.quantize import quantize
from tests.export.conftest import Made
from tests.export.run_maker import MOBILENET, PATCH
from trainer.model.config import MobileNetConfig, ModelConfig
from trainer.model.network import network


def by_path(made: Made) -> dict[str, Inspected]:
    return {one.path: one for one in inspect(made.built.bundle)}


def test_multiplications_of_a_patch_model_are_those_of_the_formulas(patch_made: Made) -> None:
    rows, columns = PATCH.grid
    grid, tokens, dim = rows * columns, 2 + rows * columns, PATCH.dim
    linear = 3 * dim * dim + dim * dim + 2 * dim * round(dim * PATCH.mlp_ratio)
    weights = PATCH.depth * tokens * linear + grid * PATCH.patch**2 * dim + dim * PATCH.classes
    activations = PATCH.depth * 2 * tokens * tokens * dim
    for one in by_path(patch_made).values():
        assert one.multiplications == {"weights": weights, "activations": activations}, one.path


@pytest.mark.parametrize("config", [PATCH, MOBILENET], ids=lambda config: config.architecture)
def test_parameters_are_torchs_but_for_what_batch_norms_fold_away(config: ModelConfig | MobileNetConfig) -> None:
    torch.manual_seed(0)
    model = network(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # equal tensors are stored once
    file = ModelFile(
        path="model.onnx", sha256=64 * "0", precision="fp32", target="any", opset=17, temperature=1.0, threshold=0.5
    )
    # a batch norm's gain is in its convolution, its offset is that one's bias
    gains = sum(layer.num_features for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    expected = sum(parameter.numel() for parameter in model.parameters()) - gains
    data = to_onnx(model)
    assert count(file, data, []).parameters == expected
    integers = quantize(data, np.random.default_rng(0).normal(size=(2, config.frames, config.mels)).astype(np.float32))
    assert count(file, integers, []).parameters == expected


def test_operators_are_counted_and_layers_left_float_named(patch_made: Made) -> None:
    found = by_path(patch_made)
    fp32, int8 = found["model.onnx"], found["model.int8.cpu.onnx"]
    assert fp32.ops["MatMul"] == int8.ops["MatMul"] == PATCH.depth * 6
    assert fp32.ops["Conv"] == 1
    assert list(fp32.ops.values()) == sorted(fp32.ops.values(), reverse=True)
    assert "QuantizeLinear" not in fp32.ops
    assert int8.ops["DequantizeLinear"] >= PATCH.depth * 4
    assert fp32.kept_float == []
    assert "head" in int8.kept_float
    assert fp32.bytes == (patch_made.built.bundle.path / "model.onnx").stat().st_size


def test_the_command(patch_made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = patch_made.built.bundle
    for arguments in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["export", "inspect", str(bundle.path), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    shown, _, printed = capsys.readouterr().out.rpartition("\n{")
    found = json.loads("{" + printed)
    assert found["bundle"] == bundle.fingerprint
    assert found["front_end"] == bundle.manifest.front_end.model_dump(mode="json")
    assert found["provenance"]["corpus"] == "sprsound"
    assert {"recipe", "versions", "split", "metrics"} <= set(found["provenance"])
    assert [one["path"] for one in found["files"]] == [file.path for file in bundle.manifest.files]
    assert all(file.path in shown for file in bundle.manifest.files)
    assert f"torch {torch.__version__}" in shown and "sample_rate 16000" in shown


@pytest.mark.parametrize("data", [b"no model", b""])
def test_what_is_no_graph_is_one_line(patch_made: Made, tmp_path: Path, data: bytes) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(patch_made.built.bundle.path, copy)
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / "model.onnx").write_bytes(data)
    for file in manifest["files"]:
        if file["path"] == "model.onnx":
            file["sha256"] = hashlib.sha256(data).hexdigest()
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"model\.onnx: not an ONNX graph"):
        inspect(read_bundle(copy))
