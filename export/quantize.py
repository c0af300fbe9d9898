"""INT8 for CPUs: which products become integer, and the training windows that set their ranges.

Measured on a compact model trained on SPRSound (validation windows, one thread, AVX-512 VNNI), against fp32:

| what | relative logit error | time |
|---|---|---|
| static U8S8 reduced range, the blocks' linear layers | 0.001 | 0.73 |
| the same and the head | 0.002 | 0.72 |
| the same and the convolutional stem | 0.015 | 0.93 |
| dynamic, the blocks' linear layers | 0.001 | 0.73 |

On AST's patches: 0.53 without and with the patch convolution, 0.51 dynamic. So stem and head stay float, and the ranges
are static: a dynamic range is taken over the whole batch, so that a window's answer would depend on its neighbours.
Attention products, additions and softmax stay float; on the additions ViT-B is known to fall from 85 % to 5 %.
"""

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from device.signal import FloatArray
from export.onnx_graph import INPUT, quiet, serialized
from trainer.protocols import Example

CALIBRATION_WINDOWS: Final = 128
METHOD: Final = "static QDQ, uint8 activations by min-max, 7-bit int8 weights per channel, the blocks' linear layers"


def patient_balanced(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Up to `count` examples, one of every patient in turn, so that nobody's chest sets the ranges alone."""
    random = np.random.default_rng((seed, 4))
    by_patient: dict[str, list[Example]] = defaultdict(list)
    for index in random.permutation(len(examples)):
        by_patient[examples[index].patient].append(examples[index])
    patients = [str(name) for name in random.permutation(sorted(by_patient))]
    turns = max((len(own) for own in by_patient.values()), default=0)
    drawn = [by_patient[name][turn] for turn in range(turns) for name in patients if turn < len(by_patient[name])]
    return drawn[:count]


def draw_hash(drawn: Sequence[Example]) -> str:
    """sha256 that names exactly these stretches."""
    lines = (f"{one.recording} {one.start_seconds:.3f} {one.end_seconds:.3f}\n" for one in drawn)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def linear_layers(model: Any) -> list[str]:
    """Names of the products with a constant matrix in an onnx.ModelProto: every linear layer of the blocks.

    The head reads one pooled vector and so is a Gemm; attention multiplies two activations.
    """
    weights = {initializer.name for initializer in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def quantize(model: bytes, windows: FloatArray) -> bytes:
    """The ONNX model with INT8 linear layers, ranges from calibration windows (n, FRAMES, mels)."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(model))
    with quiet(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        quantize_static(
            graph,
            file,
            _Windows(windows),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=linear_layers(graph),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # without VNNI a product of full ranges saturates int16 in silence
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        quantized = onnx.load_model(file)
    onnx.checker.check_model(quantized, full_check=True)
    return serialized(quantized)


class _Windows:
    """Calibration windows one by one, as onnxruntime asks for them."""

    def __init__(self, windows: FloatArray) -> None:
        self.left = iter(windows)

    def get_next(self) -> dict[str, FloatArray] | None:
        window = next(self.left, None)
        return None if window is None else {INPUT: window[None]}
