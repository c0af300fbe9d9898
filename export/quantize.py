"""INT8 and FP16: which layers convert for which target, and the training windows that set the ranges of integers.

Measured on three ASTs with a convolutional stem (an earlier default, SPRSound's validation windows), against fp32:

| what | relative logit error | time of one thread with VNNI |
|---|---|---|
| CPU: static U8S8 reduced range, the blocks' linear layers | 0.001 | 0.73 |
| the same and the head | 0.002 | 0.72 |
| the same and the convolutional stem | 0.015 | 0.93 |
| dynamic, the blocks' linear layers | 0.001 | 0.73 |
| TensorRT: static S8S8, the blocks' linear layers | 0.001 | |
| the same and the head | 0.002 | |
| the same and the convolutional stem | 0.023 | |
| FP16 | 0.0005 | |

So for CPUs stem and head stay float. The default model (two MobileNets), the same error on 60 to 300 held-out windows:

| int8 alone in | CPU | TensorRT |
|---|---|---|
| every 1x1 convolution after the first block | 0.042 | 0.061 |
| the same, but of `features.11` and later | 0.019 | 0.036 |
| first layer, depthwise convolutions | 0.071, 0.054 | |
| every projection to fewer channels | 0.033 | 0.043 |
| every expansion, the squeeze-excitations | 0.025, 0.003 | 0.025 |

An error of an early block goes through all later ones, and 89 % of the weights of 1x1 convolutions are in the last five
blocks and behind: those are int8. Without a range on a convolution's output ONNX Runtime's CPU multiplies in float, and
with one it saved too little without VNNI (0.91 of fp32's time, on a busy machine): there the file is smaller, no more.

Ranges are static: a dynamic one is taken over the whole batch, and a window's answer would depend on its neighbours.
Attention products, additions and softmax stay float; on the additions ViT-B is known to fall from 85 % to 5 %.
"""

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from device.runtime import disable_telemetry
from device.signal import FloatArray
from export.onnx_graph import INPUT, OPSET, PRODUCTS, quiet, serialized
from export.projections import split_projections
from firmware_config.errors import RespSAMError
from trainer.corpora.protocols import Example

CALIBRATION_CYCLES: Final = 128
HALF_OPSET: Final = 20  # at 17 onnxruntime refuses scales in FP16, which a quantized model would have

Precision = Literal["fp32", "fp16", "int8"]
Target = Literal["cpu", "tensorrt", "any"]


class QuantizeError(RespSAMError):
    """A model that could not be converted, or layers that it does not have."""


@dataclass(frozen=True)
class Scheme:
    """How one target multiplies integers."""

    method: str
    """In words."""
    symmetric: bool
    """int8 activations around 0; else uint8 with a zero point."""
    reduced_range: bool
    """7-bit weights: without VNNI a product of full ranges saturates int16 in silence."""
    float_parts: tuple[str, ...]
    """Parts of the model that stay float."""
    splits_projections: bool
    """Attention's fused projection as three."""

    def takes(self, layer: str) -> bool:
        """Whether a layer of this name becomes integer."""
        return not any(f".{part}." in f".{layer}." for part in self.float_parts)


# MobileNet's early blocks; in the later ones depthwise convolutions and squeeze-excitations
DELICATE: Final = (*(f"trunk.features.{block}" for block in range(11)), "block.1", "conc_se_layers")
CPU: Final = Scheme(
    "static QDQ, uint8 activations by min-max, 7-bit int8 weights per channel, an AST's linear layers "
    "in its blocks or the 1x1 convolutions of a MobileNet's last five blocks and behind",
    symmetric=False,
    reduced_range=True,
    float_parts=("stem", *DELICATE, "head"),
    splits_projections=False,
)
TENSORRT: Final = Scheme(
    "static QDQ, int8 activations by min-max, int8 weights per channel, all symmetric, an AST's every layer with "
    "weights or the head and the 1x1 convolutions of a MobileNet's last five blocks and behind",
    symmetric=True,
    reduced_range=False,
    float_parts=DELICATE,
    splits_projections=True,
)


Convert = Callable[[Collection[str]], bytes]
"""From the layers that stay float to the model."""


@dataclass(frozen=True)
class Form:
    """One serving form that a bundle may hold."""

    path: str
    """Its file's name."""
    precision: Precision
    target: Target
    opset: int
    scheme: Scheme | None = None
    """How its integers are made, where it has any."""

    @property
    def method(self) -> str:
        """How it is made, in words."""
        return self.scheme.method if self.scheme else "everything cast to half precision, input and output float32"

    def converts(self, layer: str) -> bool:
        """Whether a layer of this name is converted."""
        return self.scheme is None or self.scheme.takes(layer)

    def converter(self, model: bytes, windows: FloatArray) -> Convert:
        """Convert the fp32 ONNX model again and again, calibrated once, on windows (n, frames, mels)."""
        if self.scheme is None:
            return lambda kept: half(model, kept)
        quantized = quantize(model, windows, self.scheme)
        finish = split_projections if self.scheme.splits_projections else bytes
        return lambda kept: finish(left_float(quantized, model, kept))


FP32: Final = Form("model.onnx", "fp32", "any", OPSET)
CONVERTED: Final = (
    Form("model.int8.cpu.onnx", "int8", "cpu", OPSET, CPU),
    Form("model.int8.trt.onnx", "int8", "tensorrt", OPSET, TENSORRT),
    Form("model.fp16.trt.onnx", "fp16", "tensorrt", HALF_OPSET),
)


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


def layers(model: bytes) -> list[str]:
    """Names of the products with constant weights in an ONNX model, in the order they run.

    `export.onnx_graph` names them as torch does (`member-1.blocks.0.mlp_in`); attention multiplies two activations.
    """
    import onnx

    graph = onnx.load_model_from_string(model).graph
    weights = {initializer.name for initializer in graph.initializer}
    return [node.name for node in graph.node if node.op_type in PRODUCTS and node.input[1] in weights]


def quantize(model: bytes, windows: FloatArray, scheme: Scheme = CPU) -> bytes:
    """The ONNX model with INT8 layers, ranges from calibration windows (n, frames, mels).

    Raises QuantizeError when the disk does not take the temporary files.
    """
    import onnx

    disable_telemetry()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    try:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            # by way of a file: given a model in memory, quantize_static holds it twice more while it calibrates
            plain, file = Path(folder) / "plain.onnx", Path(folder) / "model.onnx"
            plain.write_bytes(model)
            quantize_static(
                plain,
                file,
                _Windows(windows),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=[name for name in layers(model) if scheme.takes(name)],
                op_types_to_quantize=list(PRODUCTS),
                per_channel=True,
                reduce_range=scheme.reduced_range,
                activation_type=QuantType.QInt8 if scheme.symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": scheme.symmetric,
                    "WeightSymmetric": True,
                    # TensorRT refuses int32 biases, and a range on an output costs accuracy for nothing
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
                },
            )
            quantized = onnx.load_model(file)
    except OSError as error:
        raise QuantizeError(
            f"{tempfile.gettempdir()}: a temporary file cannot be written ({error.strerror}); free the disk or set "
            "TMPDIR to another"
        ) from error
    return left_float(serialized(quantized), model, [name for name in layers(model) if not scheme.takes(name)])


def left_float(quantized: bytes, model: bytes, kept: Collection[str]) -> bytes:
    """The quantized model with the layers named in `kept`, and all that is no layer, as they are in the fp32 model.

    onnxruntime redirects every reader of what a layer reads: a residual addition would add the layer's integers.
    """
    import onnx

    disable_telemetry()
    from onnxruntime.quantization.onnx_model import ONNXModel

    result, original = onnx.load_model_from_string(quantized), onnx.load_model_from_string(model)
    integer = set(layers(model)).difference(kept)
    inputs = {node.name: list(node.input) for node in original.graph.node if node.name not in integer}
    for node in result.graph.node:
        if node.name in inputs:
            node.input[:] = inputs[node.name]
    held = {initializer.name for initializer in result.graph.initializer}
    result.graph.initializer.extend(one for one in original.graph.initializer if one.name not in held)
    needed = {output.name for output in result.graph.output}
    for node in reversed(list(result.graph.node)):
        if needed.isdisjoint(node.output):
            result.graph.node.remove(node)
            continue
        needed.update(node.input)
    ONNXModel(result).clean_initializers()
    onnx.checker.check_model(result, full_check=True)
    return serialized(result)


def half(model: bytes, kept: Collection[str] = ()) -> bytes:
    """The ONNX model in FP16 at HALF_OPSET, input and output and the layers in `kept` float32.

    It takes a quantized model too.
    """
    import onnx
    from onnx import version_converter

    disable_telemetry()
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        graph = version_converter.convert_version(onnx.load_model_from_string(model), HALF_OPSET)
        graph = convert_float_to_float16(graph, keep_io_types=True, node_block_list=list(kept))
        ONNXModel(graph).topological_sort()  # the casts of the input come last
    onnx.checker.check_model(graph, full_check=True)
    return serialized(graph)


class _Windows:
    """Calibration windows one by one, as onnxruntime asks for them."""

    def __init__(self, windows: FloatArray) -> None:
        self.left = iter(windows)

    def get_next(self) -> dict[str, FloatArray] | None:
        window = next(self.left, None)
        return None if window is None else {INPUT: window[None]}
