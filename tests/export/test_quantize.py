"""INT8: which layers, which range, whose windows."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from device.classifier import open_session
from export.build import simulated_breaths
from export.onnx_graph import run
from export.quantize import draw_hash, linear_layers, patient_balanced, quantize
from tests.export.conftest import Made
from tests.export.test_onnx_graph import windows_of
from trainer.protocols import Example


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


@pytest.fixture(params=["patch_made", "convolutional_made"])
def made(request: pytest.FixtureRequest) -> Made:
    """A bundle of either stem."""
    result: Made = request.getfixturevalue(request.param)
    return result


def test_the_blocks_linear_layers_are_integer_and_nothing_else(made: Made) -> None:
    fp32 = onnx.load_model_from_string(made.built.bundle.read("model.onnx"))
    int8 = onnx.load_model_from_string(made.built.bundle.read("model.int8.cpu.onnx"))
    recipe = made.facts.recipe
    # qkv, out, mlp in, mlp out
    assert len(linear_layers(fp32)) == 4 * recipe.model.depth * recipe.data.members
    matrices = [numpy_helper.to_array(one) for one in int8.graph.initializer if one.data_type == onnx.TensorProto.INT8]
    matrices = [matrix for matrix in matrices if matrix.ndim == 2]
    assert len(matrices) == len(linear_layers(fp32))
    assert max(np.abs(matrix.astype(int)).max() for matrix in matrices) <= 64  # 7 bits
    producer = {output: node for node in int8.graph.node for output in node.output}
    for node in int8.graph.node:
        from_integers = [
            name in producer and producer[name].op_type == "DequantizeLinear" for name in node.input if name
        ]
        if node.name in linear_layers(fp32):
            assert node.op_type == "MatMul" and from_integers == [True, True]
        elif node.op_type in ("Conv", "Gemm", "MatMul", "Softmax", "LayerNormalization"):
            assert not any(from_integers)


def test_weights_are_rounded_to_the_nearest_step_of_their_column(made: Made) -> None:
    fp32 = onnx.load_model_from_string(made.built.bundle.read("model.onnx"))
    int8 = onnx.load_model_from_string(made.built.bundle.read("model.int8.cpu.onnx"))
    exact, stored = (
        {one.name: numpy_helper.to_array(one) for one in model.graph.initializer} for model in (fp32, int8)
    )
    for node in fp32.graph.node:
        if node.name in linear_layers(fp32):
            weight = exact[node.input[1]]
            scale = stored[f"{node.input[1]}_scale"]
            assert scale.shape == (weight.shape[1],)
            np.testing.assert_allclose(scale, np.abs(weight).max(axis=0) / 64, rtol=0.02)
            rounded = stored[f"{node.input[1]}_quantized"] * scale
            assert (np.abs(rounded - weight) <= scale / 2 * 1.001).all()


def test_int8_is_near_fp32_and_no_window_hears_its_neighbours(made: Made) -> None:
    fp32, int8 = (open_session(made.built.bundle.read(name)) for name in ("model.onnx", "model.int8.cpu.onnx"))
    windows = np.concatenate(simulated_breaths(made.facts.front_end))
    expected, found = run(fp32, windows), run(int8, windows)
    # 0.001 on a trained model; these heads are fitted to a dozen windows and magnify every rounding
    assert np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(expected)
    windows[1:] *= 3.0
    np.testing.assert_allclose(run(int8, windows)[:1], found[:1], atol=1e-5)


def test_the_same_windows_give_the_same_bytes_and_others_do_not(patch_made: Made) -> None:
    model, windows = patch_made.built.bundle.read("model.onnx"), windows_of(patch_made, 4)
    first = quantize(model, windows)
    assert first == quantize(model, windows)
    assert first != quantize(model, 2 * windows)
