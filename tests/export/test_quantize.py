"""INT8: which layers, which range, whose windows."""

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from device.model.classifier import open_session
from export.building import simulated_breaths
from export.onnx_graph import run
from export.quantize import (
    CPU,
    HALF_OPSET,
    TENSORRT,
    QuantizeError,
    Scheme,
    draw_hash,
    half,
    layers,
    left_float,
    patient_balanced,
    quantize,
)
from export.sensitivity import named
from tests.export.conftest import Made
from tests.export.test_onnx_graph import windows_of
from trainer.corpora.protocols import Example
from trainer.model.config import ModelConfig
from trainer.model.mobilenet import Trunk


def example(patient: str, number: int) -> Example:
    return Example(f"{patient}_{number}", 0.0, 2.5, "normal", patient, 1.0, None)


EXAMPLES = [example("a", n) for n in range(50)] + [example("b", n) for n in range(3)] + [example("c", 0)]


def test_every_patient_is_drawn_before_anybody_is_drawn_twice() -> None:
    drawn = patient_balanced(EXAMPLES, 9, seed=0)
    assert sorted(one.patient for one in drawn[:3]) == ["a", "b", "c"]
    assert [sum(one.patient == name for one in drawn) for name in "abc"] == [5, 3, 1]
    assert len({one.recording for one in drawn}) == 9


def test_the_draw_is_the_seed_s() -> None:
    first, again, other = (patient_balanced(EXAMPLES, 20, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert draw_hash(first) == draw_hash(again) != draw_hash(other)


def test_fewer_examples_than_wanted_are_all_drawn_once() -> None:
    assert len(set(patient_balanced(EXAMPLES, 1000, seed=0))) == len(EXAMPLES)
    assert patient_balanced([], 10, seed=0) == []


@pytest.fixture(params=["patch_made", "mobilenet_made"])
def made(request: pytest.FixtureRequest) -> Made:
    """A bundle of each network."""
    result: Made = request.getfixturevalue(request.param)
    return result


def graph_of(data: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(data)


def factors(model: onnx.ModelProto) -> dict[str, list[bool]]:
    """Of every product: which of its factors come from integers, the float bias left out."""
    producer = {output: node.op_type for node in model.graph.node for output in node.output}
    return {
        node.name: [producer.get(name) == "DequantizeLinear" for name in node.input[:2]]
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
    }


def test_layers_are_called_as_in_torch(made: Made) -> None:
    members, config = made.facts.recipe.data.members, made.facts.recipe.model
    prefixes = [""] if members == 1 else [f"member-{number + 1}." for number in range(members)]
    if isinstance(config, ModelConfig):
        block = ["attention.qkv", "attention.out", "mlp_in", "mlp_out"]
        inner = ["stem.projection", *(f"blocks.{n}.{name}" for n in range(config.depth) for name in block)]
    else:
        torch_names = (name for name, one in Trunk().named_modules() if isinstance(one, nn.Conv2d | nn.Linear))
        inner = [f"trunk.{name}" for name in torch_names]
    expected = [prefix + name for prefix in prefixes for name in (*inner, "head")]
    assert layers(made.built.bundle.read("model.onnx")) == expected


def delicate(made: Made) -> set[str]:
    """MobileNet's layers that int8 harms most or helps least: of early blocks, depthwise, of the squeeze."""
    model = graph_of(made.built.bundle.read("model.onnx"))
    grouped = {
        node.name
        for node in model.graph.node
        if any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    }
    other = re.compile(r"(member-\d\.)?trunk\.features\.(([0-9]|10)\.|.*\.conc_se_layers\.)")
    return grouped | {name for name in layers(made.built.bundle.read("model.onnx")) if other.match(name)}


@pytest.mark.parametrize(("scheme", "most"), [(CPU, 64), (TENSORRT, 127)], ids=["cpu", "tensorrt"])
def test_what_becomes_integer_and_nothing_else(made: Made, scheme: Scheme, most: int) -> None:
    data = made.built.bundle.read("model.onnx")
    int8 = graph_of(quantize(data, windows_of(made, 2), scheme))
    taken = [name for name in layers(data) if scheme.takes(name)]
    assert set(layers(data)) - set(taken) == {
        name
        for name in layers(data)
        if name in delicate(made) or (scheme is CPU and ("stem" in name or name.endswith("head")))
    }
    for name, integer in factors(int8).items():
        assert integer == [name in taken] * 2
    stored = [one for one in int8.graph.initializer if one.name.endswith("_quantized")]
    assert len(stored) == len(taken) and {one.data_type for one in stored} == {onnx.TensorProto.INT8}
    assert max(np.abs(numpy_helper.to_array(one).astype(int)).max() for one in stored) <= most
    dequantized = {node.output[0] for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    assert len(dequantized) <= 2 * len(taken)  # no bias, no output
    # no residual addition
    assert {node.name for node in int8.graph.node if not dequantized.isdisjoint(node.input)} == set(taken)


def test_tensorrt_gets_nothing_that_its_parser_refuses(made: Made) -> None:
    model = graph_of(quantize(made.built.bundle.read("model.onnx"), windows_of(made, 2), TENSORRT))
    stored = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for node in model.graph.node:
        assert node.domain == "" and node.op_type != "DynamicQuantizeLinear"
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = stored[node.input[2]]
            assert zero_point.dtype == np.int8 and not zero_point.any()
            assert (stored[node.input[1]] > 0).all()


def test_weights_are_rounded_to_the_nearest_step_of_their_column(made: Made) -> None:
    data = made.built.bundle.read("model.onnx")
    fp32, int8 = graph_of(data), graph_of(quantize(data, windows_of(made, 2)))
    exact, stored = (
        {one.name: numpy_helper.to_array(one) for one in model.graph.initializer} for model in (fp32, int8)
    )
    names = layers(data)
    taken = [node for node in fp32.graph.node if node.name in names and CPU.takes(node.name)]
    assert taken
    for node in taken:
        weight = exact[node.input[1]]
        scale = stored[f"{node.input[1]}_scale"]
        # a convolution's channels come first, a product's columns last
        columns = (slice(None), *[None] * (weight.ndim - 1)) if node.op_type == "Conv" else slice(None)
        others = tuple(range(1, weight.ndim)) if node.op_type == "Conv" else 0
        assert scale.shape == (weight.shape[0 if node.op_type == "Conv" else 1],)
        np.testing.assert_allclose(scale, np.abs(weight).max(axis=others) / 64, rtol=0.02)
        steps = stored[f"{node.input[1]}_quantized"] * scale[columns]
        assert (np.abs(steps - weight) <= scale[columns] / 2 * 1.001).all()


@pytest.mark.parametrize("scheme", [CPU, TENSORRT], ids=["cpu", "tensorrt"])
def test_a_layer_left_float_is_as_it_was(made: Made, scheme: Scheme) -> None:
    data, windows = made.built.bundle.read("model.onnx"), windows_of(made, 3)
    quantized = quantize(data, windows, scheme)
    names = [name for name in layers(data) if scheme.takes(name)]
    one = left_float(quantized, data, names[1:2])
    assert {name for name, integer in factors(graph_of(one)).items() if all(integer)} == set(names) - {names[1]}
    nothing = left_float(quantized, data, names)
    assert not any(map(any, factors(graph_of(nothing)).values()))
    assert "QuantizeLinear" not in {node.op_type for node in graph_of(nothing).graph.node}
    np.testing.assert_array_equal(run(open_session(nothing), windows), run(open_session(data), windows))
    assert len(one) < len(nothing) and left_float(quantized, data, []) == quantized


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.cpu.onnx"])
def test_half_precision(made: Made, name: str) -> None:
    data, windows = made.built.bundle.read(name), np.concatenate(simulated_breaths(made.facts.front_end))
    halved = half(data)
    model = graph_of(halved)
    assert model.opset_import[0].version == HALF_OPSET
    ends = (*model.graph.input, *model.graph.output)
    assert {one.type.tensor_type.elem_type for one in ends} == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT not in {one.data_type for one in model.graph.initializer}
    expected, found = run(open_session(data), windows), run(open_session(halved), windows)
    assert 0 < np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_half_precision_leaves_layers_in_float(patch_made: Made) -> None:
    model = graph_of(half(patch_made.built.bundle.read("model.onnx"), ["blocks.1.mlp_in"]))
    assert onnx.TensorProto.FLOAT in {one.data_type for one in model.graph.initializer}


def test_int8_is_near_fp32_and_no_window_hears_its_neighbours(made: Made) -> None:
    data, windows = made.built.bundle.read("model.onnx"), np.concatenate(simulated_breaths(made.facts.front_end))
    fp32, int8 = open_session(data), open_session(quantize(data, windows))
    expected, found = run(fp32, windows), run(int8, windows)
    # 0.001 on a trained AST; these heads are fitted to a dozen windows and magnify every rounding
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
    windows[1:] *= 3.0
    np.testing.assert_allclose(run(int8, windows)[:1], found[:1], atol=1e-5)


def test_the_same_windows_give_the_same_bytes_and_others_do_not(patch_made: Made) -> None:
    model, windows = patch_made.built.bundle.read("model.onnx"), windows_of(patch_made, 4)
    first = quantize(model, windows)
    assert first == quantize(model, windows)
    assert first != quantize(model, 2 * windows)


def test_layers_are_named_one_by_one_or_by_what_holds_them() -> None:
    known = ["member-1.blocks.1.mlp_in", "member-1.blocks.1.mlp_out", "member-1.blocks.10.mlp_in", "member-1.head"]
    assert named(["member-1.head", "member-1.blocks.1"], known) == [*known[:2], known[3]]
    assert named([], known) == []
    with pytest.raises(
        QuantizeError, match=r"--keep-float blocks\.10: no layer .* nearest is member-1\.blocks\.10\.mlp_in"
    ):
        named(["blocks.10"], known)
