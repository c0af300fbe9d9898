"""What TensorRT accepts and really runs in int8, built by TensorRT-RTX without a GPU."""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from device.bundle import MANIFEST
from device.model.classifier import open_session
from device.signal import FRAMES
from export.cli import main
from export.onnx_graph import run, to_onnx
from export.projections import split_projections
from export.quantize import TENSORRT, half, layers, quantize
from export.tensorrt_check import GPUS, MODULE, Checked, Products, check_model, products, types
from tests.device.bundle_maker import make_bundle
from tests.export.run_maker import MELS, MOBILENET, make_model
from trainer.model.config import ModelConfig

DEPTH = 2
MODEL = ModelConfig(mels=MELS, dim=64, depth=DEPTH, heads=2, stride=16)
EIGHT_BITS = np.ones((4, 4), np.int8)


@pytest.fixture(scope="module")
def tensorrt() -> Any:
    return pytest.importorskip(MODULE, reason="no TensorRT-RTX here (extra tensorrt-check)")


@pytest.fixture(scope="module")
def fp32() -> bytes:
    return to_onnx(make_model(MODEL))


@pytest.fixture(scope="module")
def fused(fp32: bytes) -> bytes:
    """int8, with query, key and value in one product."""
    windows = np.random.default_rng(0).standard_normal((4, FRAMES, MELS)).astype(np.float32)
    return quantize(fp32, windows, TENSORRT)


@pytest.fixture(scope="module")
def int8(fused: bytes) -> bytes:
    return split_projections(fused)


def check_one(tensorrt: Any, model: bytes, precision: Any = "int8", capability: str = "SM86") -> Checked:
    return check_model(tensorrt, "model", model, precision, capability)


# what runs in int8


@pytest.mark.parametrize("capability", GPUS)
def test_every_linear_layer_of_an_int8_file_runs_in_int8(tensorrt: Any, int8: bytes, capability: str) -> None:
    checked = check_one(tensorrt, int8, capability=capability)
    assert checked.problem(()) == ""
    assert set(checked.products.quantized) == set(checked.products.linear)
    assert checked.count("int8") == len(checked.products.quantized)
    # attention multiplies activations, which nobody quantized
    assert checked.count("float") == 2 * DEPTH
    assert checked.megabytes > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_mobilenets_files_run_in_theirs(tensorrt: Any, precision: Any) -> None:
    """Its 1x1 convolutions and its head in int8; what stays float is stated."""
    fp32 = to_onnx(make_model(MOBILENET))
    windows = np.random.default_rng(0).standard_normal((4, FRAMES, MOBILENET.mels)).astype(np.float32)
    model: dict[str, Callable[[bytes], bytes]] = {
        "fp32": bytes,
        "fp16": half,
        "int8": lambda data: split_projections(quantize(data, windows, TENSORRT)),
    }
    checked = check_one(tensorrt, model[precision](fp32), precision)
    stated = [name for name in layers(fp32) if not TENSORRT.takes(name)]
    assert checked.problem(stated) == ""
    integers = [name for name in layers(fp32) if TENSORRT.takes(name)] if precision == "int8" else []
    assert sorted(checked.products.quantized) == sorted(integers)
    assert checked.count("int8") == len(integers)


def test_fp32_and_fp16_files_run_in_theirs(tensorrt: Any, fp32: bytes) -> None:
    single, halved = check_one(tensorrt, fp32, "fp32"), check_one(tensorrt, half(fp32), "fp16")
    assert single.problem(()) == halved.problem(()) == ""
    everything = len(single.products.all)
    assert (single.count("int8"), single.count("fp16"), single.count("float")) == (0, 0, everything)
    assert (halved.count("int8"), halved.count("fp16"), halved.count("float")) == (0, everything, 0)


def test_a_fused_projection_would_run_in_float_and_is_split_without_changing_an_answer(
    tensorrt: Any, fused: bytes, int8: bytes
) -> None:
    checked = check_one(tensorrt, fused)
    names = [f"blocks.{block}.attention.qkv" for block in range(DEPTH)]
    assert checked.problem(()) == f"{DEPTH} of {4 * DEPTH + 2} int8 layers run in float: {', '.join(names)}"
    windows = np.random.default_rng(1).standard_normal((3, FRAMES, MELS)).astype(np.float32)
    expected, found = (run(open_session(model, exact_integers=True), windows) for model in (fused, int8))
    np.testing.assert_array_equal(found, expected)
    split = {f"{name}.{part}" for name in names for part in ("query", "key", "value")}
    assert set(products(int8).quantized) == {*products(fused).quantized} - {*names} | split


def test_a_model_without_fused_projections_is_left_as_it_is(int8: bytes, fp32: bytes) -> None:
    assert split_projections(int8) == int8
    assert products(split_projections(fp32)) == products(fp32)


def test_a_float_layer_of_an_int8_file_must_be_stated() -> None:
    found = Products(all=("a", "b", "attention"), linear=("a", "b"), quantized=("a",))
    checked = Checked("model", "int8", "8.6", found, {"a": "int8", "b": "float"})
    assert checked.problem(()) == "1 layers are float in the file, and its manifest does not say so: b"
    assert checked.problem(("b",)) == ""


def test_a_layer_is_int8_only_when_it_reads_two_integers() -> None:
    def line(kind: str, inputs: Sequence[str], constants: Sequence[str], origin: str) -> str:
        reads, held = (
            ", ".join(f"{{ Name: x, Dimensions: [1], Datatype: {name}, Format: y }}" for name in names)
            for names in (inputs, constants)
        )
        return (
            f"Name: n, LayerType: {kind}, Inputs: [{reads}], Constants: [{held}], Outputs: [ {{ Datatype: Int8 }}], "
            f"TacticName: t, StreamId: 0, Metadata: [ONNX Layer: {origin}][ONNX Layer: {origin}_scale]"
        )

    log = [
        "Engine Layer Information:\n" + line("gemm", ["Int8"], ["Int8", "Float"], "integer"),
        line("gemm", ["Int8", "Float"], [], "dequantized"),
        line("kgen", ["Float"], ["Int8", "Int8"], "dequantized"),
        line("kgen", ["Half", "Half"], [], "attention"),
        "Name: no layer",
    ]
    found = types(log)
    assert (found["integer"], found["dequantized"], found["attention"]) == ("int8", "float", "fp16")


# what is refused


def scale_and_points() -> list[Any]:
    arrays = {
        "weight": EIGHT_BITS,
        "unsigned": EIGHT_BITS.astype(np.uint8),
        "bias": np.ones(4, np.int32),
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "three": np.int8(3),
        "middle": np.uint8(128),
        "zero32": np.int32(0),
    }
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def graph(*nodes: Any) -> bytes:
    window = helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["batch", FRAMES, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    made = helper.make_graph(list(nodes), "refused", [window], [logits], scale_and_points())
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def activation(zero_point: str) -> list[Any]:
    return [
        helper.make_node("QuantizeLinear", ["windows", "scale", zero_point], ["q"], name="activation_q"),
        helper.make_node("DequantizeLinear", ["q", "scale", zero_point], ["dq"], name="activation_dq"),
    ]


def weights(name: str, zero_point: str) -> Any:
    return helper.make_node("DequantizeLinear", [name, "scale", zero_point], ["w"], name="weight_dq")


def product(output: str = "logits") -> Any:
    return helper.make_node("MatMul", ["dq", "w"], [output], name="head")


REFUSED = {
    "zero point": (
        graph(*activation("three"), weights("weight", "zero"), product()),
        r"node activation_q \(QuantizeLinear\): a zero point other than 0; quantize symmetrically to int8 \[",
    ),
    "uint8 weights": (
        graph(*activation("zero"), weights("unsigned", "middle"), product()),
        r"node weight_dq \(DequantizeLinear\): uint8 values; quantize symmetrically to int8 \[",
    ),
    "int32 bias": (
        graph(
            *activation("zero"),
            weights("weight", "zero"),
            helper.make_node("DequantizeLinear", ["bias", "scale", "zero32"], ["b"], name="bias_dq"),
            product("product"),
            helper.make_node("Add", ["product", "b"], ["logits"], name="sum"),
        ),
        r"node bias_dq \(DequantizeLinear\): an int32 bias; leave biases in float \[",
    ),
    "dynamic": (
        graph(
            helper.make_node("DynamicQuantizeLinear", ["windows"], ["q", "s", "z"], name="ranges"),
            helper.make_node("MatMulInteger", ["q", "weight", "z"], ["sums"], name="head"),
            helper.make_node("Cast", ["sums"], ["logits"], to=TensorProto.FLOAT),
        ),
        r"node ranges \(DynamicQuantizeLinear\): TensorRT has no such operator; quantize statically \[",
    ),
    "unknown operator": (
        graph(helper.make_node("Listen", ["windows"], ["logits"], name="ear")),
        r"node ear \(Listen\): TensorRT has no such operator \[",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_says_which_node_and_why(tensorrt: Any, case: str) -> None:
    model, words = REFUSED[case]
    checked = check_one(tensorrt, model)
    assert re.search(f"TensorRT refuses .*{words}", checked.refusal), checked.refusal
    assert "\n" not in checked.refusal and "checkMacros" not in checked.refusal
    assert checked.problem(()) == checked.refusal


def test_a_model_without_an_input_is_refused_too(tensorrt: Any) -> None:
    model = helper.make_model(helper.make_graph([], "empty", [], []), ir_version=8).SerializeToString()
    assert "one input and gives one output, not 0 and 0" in check_one(tensorrt, model).refusal


# the command


def add_file(folder: Path, name: str, model: bytes, precision: str) -> None:
    """One more file for TensorRT."""
    (folder / name).write_bytes(model)
    manifest = json.loads((folder / MANIFEST).read_text())
    entry = {**manifest["files"][0], "path": name, "precision": precision, "target": "tensorrt"}
    manifest["files"].append({**entry, "sha256": hashlib.sha256(model).hexdigest()})
    (folder / MANIFEST).write_text(json.dumps(manifest))


Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["respsam-export", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


def test_the_command_shows_every_file_meant_for_tensorrt(
    tensorrt: Any, tmp_path: Path, check: Check, int8: bytes
) -> None:
    folder = make_bundle(tmp_path / "bundle")
    add_file(folder, "model.int8.trt.onnx", int8, "int8")
    code, out, _ = check(folder, "--tensorrt")
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.startswith("model.")]
    assert [row[0] for row in rows] == 2 * ["model.onnx"] + 2 * ["model.int8.trt.onnx"]
    quantized = len(products(int8).quantized)
    assert all(str(quantized) in row for row in rows[2:])


def test_the_command_refuses_with_exit_3_and_the_reason(tensorrt: Any, tmp_path: Path, check: Check) -> None:
    folder = make_bundle(tmp_path / "bundle")
    add_file(folder, "model.int8.trt.onnx", REFUSED["int32 bias"][0], "int8")
    code, out, error = check(folder, "--tensorrt")
    assert code == 3
    assert "refused" in out
    assert error.count("\n") == 1
    assert "model.int8.trt.onnx on 8.6 (Orin): TensorRT refuses node bias_dq" in error and "(and 1 more)" in error


def test_without_tensorrt_rtx_one_line_names_the_extra(
    tmp_path: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    code, _, error = check(make_bundle(tmp_path / "bundle"), "--tensorrt")
    assert (code, error.count("\n")) == (2, 1)
    assert "pip install 'respsam[tensorrt-check]'" in error


def test_a_check_of_nothing_and_a_bundle_that_is_none_are_refused(tmp_path: Path, check: Check) -> None:
    code, _, error = check(make_bundle(tmp_path / "bundle"))
    assert (code, error.count("\n")) == (2, 1) and "--tensorrt" in error
    code, _, error = check(tmp_path / "nowhere", "--tensorrt")
    assert (code, error.count("\n")) == (2, 1) and "no bundle here" in error
