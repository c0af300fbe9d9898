"""A tiny valid bundle without torch: the mean log-mel through one matrix, so its answer depends on what it hears."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from device.bundle import MANIFEST, Manifest, ModelFile, Population, Segmentation, SelfTest, SiteRule, ThresholdChoice
from device.decision import abnormal_probability
from device.labels import LABELS
from device.signal import FRAMES, FrontEnd, windows
from device.simulator import breath

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
    site_rule: SiteRule | None = None,
    segmentation: Segmentation | None = None,
    changes: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """A bundle in `folder`, with an fp32 file and an int8 one that is the same.

    `logits` makes it answer always the same; `changes` edits the manifest's JSON before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, bias = np.zeros((MELS, len(LABELS)), np.float32), np.zeros(len(LABELS), np.float32)
    if logits is None:
        weights[LOW_BAND, 0] = 3.0 * 2 * FRONT_END.std
        bias[:] = 3.0 * (FRONT_END.mean - NORMAL_LOG_MEL), 0.5, 0.2, 0.0
    else:
        bias[:] = logits
    model = _model(weights, bias)
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
        site_rule=site_rule or SiteRule(k=2, n=8, threshold=THRESHOLD, least_cycles=2),
        segmentation=segmentation or Segmentation(),
        population=Population(youngest_years=None, oldest_years=None, sites=(), stethoscopes=(), patients=0),
        corpus="none",
        split="none",
        metrics={},
        recipe={},
        versions={},
        self_test=_self_test(weights, bias),
    )
    content = json.loads(manifest.model_dump_json())
    if changes is not None:
        changes(content)
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


def _self_test(weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> SelfTest:
    expected = []
    for seed, label in enumerate(LABELS):
        logits = windows(breath(seed, label), FRONT_END).mean(axis=1) @ weights + bias
        expected.append(float(abnormal_probability(logits, TEMPERATURE).max()))
    seeds = tuple(range(len(LABELS)))
    return SelfTest(seeds=seeds, labels=LABELS, expected_probability=tuple(expected), tolerance=1e-3)


def _model(weights: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> bytes:
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["windows"], ["pooled"], axes=[1], keepdims=0),
            helper.make_node("Gemm", ["pooled", "weights", "bias"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["batch", FRAMES, weights.shape[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
