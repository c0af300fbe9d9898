"""A tiny valid bundle without torch: each moment's mean log-mel through one matrix, so it answers what it hears."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from device.breath.simulator import breath
from device.bundle import MANIFEST, Manifest, ModelFile, Population, Segmentation, SelfTest, SiteRule, ThresholdChoice
from device.labels import LABELS
from device.model.judgement import abnormal_probability, pool
from device.signal import FRAMES, FrontEnd, windows

MELS = 32
LOW_BAND = 2  # about 200 Hz: in a levelled cycle this breath noise shrinks when crackles or a wheeze take the energy
NORMAL_LOG_MEL = -3.3  # simulated normal breaths lie mostly above, abnormal ones mostly below
FRONT_END = FrontEnd(mels=MELS, high_hz=4000.0, mean=-7.0, std=3.5)
TEMPERATURE = 1.5
THRESHOLD = 0.5


def make_bundle(
    folder: Path,
    *,
    logits: Sequence[float] | None = None,
    moments: int = 1,
    site_rule: SiteRule | None = None,
    segmentation: Segmentation | None = None,
    changes: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """A bundle in `folder`, with an fp32 file and an int8 one that is the same.

    `logits` makes it answer always the same; `moments` divides 798; `changes` edits the manifest's JSON before it is
    written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, bias = np.zeros((MELS, len(LABELS)), np.float32), np.zeros(len(LABELS), np.float32)
    if logits is None:
        weights[LOW_BAND, 0] = 3.0 * 2 * FRONT_END.std
        bias[:] = 3.0 * (FRONT_END.mean - NORMAL_LOG_MEL), 0.5, 0.2, 0.0
    else:
        bias[:] = logits
    model = _model(weights, bias, moments)
    names = {"fp32": "model.onnx", "int8": "model.int8.cpu.onnx"}
    for name in names.values():
        (folder / name).write_bytes(model)
    files = [
        ModelFile(
            path=name,
            sha256=hashlib.sha256(model).hexdigest(),
            precision=precision,
            target="any" if precision == "fp32" else "cpu",
            opset=17,
            temperature=TEMPERATURE,
            threshold=THRESHOLD,
        ).model_dump()
        for precision, name in names.items()
    ]
    manifest = Manifest(
        name="tiny",
        architecture={"kind": "mean log-mel"},
        labels=LABELS,
        front_end=FRONT_END,
        files=tuple(ModelFile(**file) for file in files),
        threshold=ThresholdChoice(rule="made up", protocol="windows", curve=((0.5, 1.0, 1.0),)),
        site_rule=site_rule or SiteRule(threshold=THRESHOLD, stretch_cycles=6, least_cycles=2),
        segmentation=segmentation or Segmentation(),
        population=Population(youngest_years=None, oldest_years=None, sites=(), stethoscopes=(), patients=0),
        corpus="none",
        split="none",
        metrics={},
        recipe={},
        versions={},
        self_test=_self_test(weights, bias, moments),
    )
    content = json.loads(manifest.model_dump_json())
    if changes is not None:
        changes(content)
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


def _self_test(weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any], moments: int) -> SelfTest:
    expected = []
    for seed, label in enumerate(LABELS):
        (window,) = windows(breath(seed, label), FRONT_END)
        logits = window.reshape(1, moments, -1, MELS).mean(axis=2) @ weights + bias
        expected.append(float(abnormal_probability(pool(logits), TEMPERATURE).max()))
    seeds = tuple(range(len(LABELS)))
    return SelfTest(seeds=seeds, labels=LABELS, expected_probability=tuple(expected), tolerance=1e-3)


def _model(weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any], moments: int) -> bytes:
    shape = np.array([0, moments, FRAMES // moments, len(weights)])
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["windows", "shape"], ["parted"]),
            helper.make_node("ReduceMean", ["parted"], ["means"], axes=[2], keepdims=0),
            helper.make_node("MatMul", ["means", "weights"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["batch", FRAMES, weights.shape[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", moments, weights.shape[1]])],
        [
            numpy_helper.from_array(value, name)
            for name, value in (("shape", shape), ("weights", weights), ("bias", bias))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
