"""The graph: equal to torch at sizes it was not traced at, in opset 17, without a trace of the machine."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from device.model.classifier import open_session
from device.signal import FloatArray
from export.onnx_graph import parity, run
from tests.conftest import REPOSITORY
from tests.export.conftest import Made
from trainer.model.config import MobileNetConfig
from trainer.model.network import AST, predict
from trainer.run.folder import load_model


@pytest.fixture(params=["patch_made", "mobilenet_made"])
def made(request: pytest.FixtureRequest) -> Made:
    """A bundle of each network."""
    result: Made = request.getfixturevalue(request.param)
    return result


def windows_of(made: Made, count: int) -> FloatArray:
    shape = (count, made.facts.recipe.model.frames, made.facts.front_end.mels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_the_graph_computes_what_torch_does_at_any_batch(made: Made) -> None:
    model, session = load_model(made.run, made.facts), open_session(made.built.bundle.read("model.onnx"))
    windows = windows_of(made, 7)
    expected = predict(model, windows, torch.device("cpu"))
    # a random MobileNet answers noise with logits of two hundred, where float32 holds no 1e-4
    noisy = isinstance(made.facts.recipe.model, MobileNetConfig)
    allowed = 1e-4 * float(np.abs(expected).max()) / 4.0 if noisy else 1e-4
    for batch in (1, 2, 5, 7):
        np.testing.assert_allclose(run(session, windows, batch), expected, atol=allowed)
    assert parity(model, session, windows) < allowed


def test_parity_sees_a_changed_weight_and_a_nan(patch_made: Made) -> None:
    model, session = (
        load_model(patch_made.run, patch_made.facts),
        open_session(patch_made.built.bundle.read("model.onnx")),
    )
    assert isinstance(model, AST)
    windows = windows_of(patch_made, 2)
    with torch.no_grad():
        model.head.bias[2] += 0.01
    assert parity(model, session, windows) == pytest.approx(0.01, abs=1e-4)
    windows[0, 5, 5] = np.nan
    assert np.isnan(parity(model, session, windows))


def test_the_graph_says_nothing_but_what_it_computes(made: Made, workshop_root: Path) -> None:
    for file in made.built.bundle.manifest.files:
        data = made.built.bundle.read(file.path)
        model = onnx.load_model_from_string(data)
        (opset,) = model.opset_import
        assert (opset.domain, opset.version) == ("", file.opset)
        assert file.opset == (20 if file.precision == "fp16" else 17)
        (inputs,), (outputs,) = model.graph.input, model.graph.output
        assert (inputs.name, outputs.name) == ("windows", "logits")
        assert [d.dim_param or d.dim_value for d in inputs.type.tensor_type.shape.dim] == [
            "batch",
            798,
            made.facts.front_end.mels,
        ]
        assert [d.dim_param or d.dim_value for d in outputs.type.tensor_type.shape.dim] == [
            "batch",
            made.facts.recipe.model.moments,
            4,
        ]
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        for private in (str(REPOSITORY), str(workshop_root), "site-packages", ".py"):
            assert private.encode() not in data


@pytest.fixture
def workshop_root(patch_run: Path) -> Path:
    return patch_run.parent
