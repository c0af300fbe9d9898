"""What TensorRT makes of a bundle's models, without a GPU: TensorRT-RTX builds their engines and names every layer.

TensorRT decides by itself which products run in INT8; its engines can be inspected on their GPU only, its log anywhere.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from device.bundle import Bundle, Manifest
from device.model.tensorrt import TensorRTError, build_serialized, load_tensorrt
from export.onnx_graph import PRODUCTS
from export.quantize import TENSORRT
from firmware_config.errors import GateRefused, RespSAMError

MODULE: Final = "tensorrt_rtx"
# Compute capabilities that TensorRT-RTX has built in; an Orin's own is 8.7.
GPUS: Final = {"SM86": "8.6 (Orin)", "SM89": "8.9"}
# One layer of an engine in the log: what it is, the types of what it reads, and the model's nodes it comes from.
LAYER: Final = re.compile(
    r"Name: .*?, LayerType: (?P<kind>\w+), (?P<reads>Inputs: .*?), Outputs: .*, Metadata: (?P<origin>.*)"
)
# Code made for this engine: a whole attention, or only what prepares a product's weights, which names the product too.
GENERATED: Final = "kgen"

Type = Literal["int8", "fp16", "float"]


class CheckError(RespSAMError):
    """TensorRT-RTX is not installed, or says nothing about its layers."""


@dataclass(frozen=True)
class Products:
    """Names of an ONNX model's matrix products and convolutions."""

    all: tuple[str, ...]
    linear: tuple[str, ...]
    """Those with constant weights."""
    quantized: tuple[str, ...]
    """Those whose weights are int8."""


@dataclass(frozen=True)
class Checked:
    """One model file, built for one GPU."""

    file: str
    precision: Type
    gpu: str
    products: Products
    ran: dict[str, Type]
    """How each product runs, as far as TensorRT's log names it."""
    megabytes: float = 0.0
    """Of the engine."""
    seconds: float = 0.0
    """That its build took."""
    refusal: str = ""
    """Why there is no engine."""

    def count(self, kind: Type) -> int:
        """Products that run in it; one that the log does not name runs in float for all we know."""
        return sum(self.ran.get(name, "float") == kind for name in self.products.all)

    def problem(self, kept_float: Sequence[str]) -> str:
        """What does not hold, in words; `kept_float` names what an int8 file's maker left in float beside the usual."""
        if self.refusal:
            return self.refusal
        if lost := [name for name in self.products.quantized if self.ran.get(name) != "int8"]:
            return f"{len(lost)} of {len(self.products.quantized)} int8 layers run in float: {_some(lost)}"
        said = (*self.products.quantized, *kept_float)
        unsaid = [name for name in self.products.linear if name not in said and TENSORRT.takes(name)]
        if self.precision == "int8" and unsaid:
            return f"{len(unsaid)} layers are float in the file, and its manifest does not say so: {_some(unsaid)}"
        return ""


def check(bundle: Bundle) -> Iterator[Checked]:
    """Every model file that TensorRT may get, for every GPU of GPUS; CheckError without TensorRT-RTX."""
    try:
        tensorrt = load_tensorrt(MODULE)
    except TensorRTError as error:
        raise CheckError("no TensorRT-RTX here; pip install 'respsam[tensorrt-check]' (Linux on x86-64)") from error
    for file in bundle.manifest.files:
        if file.target in ("tensorrt", "any"):
            for capability in GPUS:
                yield check_model(tensorrt, file.path, bundle.read(file.path), file.precision, capability)


def check_model(
    tensorrt: Any, file: str, model: bytes, precision: Literal["fp32", "fp16", "int8"], capability: str
) -> Checked:
    """Parse, build and read the log; a refusal is a result, too. CheckError when the log names no layers."""
    gpu, found = GPUS[capability], products(model)
    kind: Type = "float" if precision == "fp32" else precision
    began = time.monotonic()
    try:
        plan = build_serialized(tensorrt, model, precision, capability=capability, verbose=True)
    except TensorRTError as error:
        return Checked(file, kind, gpu, found, {}, refusal=str(error))
    ran = types(plan.log)
    if not ran:
        raise CheckError(f"TensorRT-RTX {tensorrt.__version__} does not name its layers; install another version of it")
    return Checked(file, kind, gpu, found, ran, len(plan.data) / 1e6, time.monotonic() - began)


def require(checked: Sequence[Checked], manifest: Manifest) -> None:
    """Raise GateRefused with what is wrong."""
    problems = [(one, problem) for one in checked if (problem := one.problem(kept_float(manifest, one.file)))]
    if problems:
        one, problem = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise GateRefused(f"{one.file} on {one.gpu}: {problem}{more}; do not ship this bundle for TensorRT")


def kept_float(manifest: Manifest, file: str) -> list[str]:
    """The layers that the file's maker left in float, as the manifest states them."""
    quantization: Any = manifest.recipe.get("quantization", {})
    return [str(name) for name in quantization.get("files", {}).get(file, {}).get("kept_float", ())]


def products(model: bytes) -> Products:
    """What there is to multiply, from the graph."""
    import onnx

    graph = onnx.load_model_from_string(model).graph
    constants = {one.name for one in graph.initializer}
    integers = {
        node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    found = [(node.name, node.input[1]) for node in graph.node if node.op_type in PRODUCTS]
    return Products(
        tuple(name for name, _ in found),
        tuple(name for name, weight in found if weight in constants | integers),
        tuple(name for name, weight in found if weight in integers),
    )


def types(log: Sequence[str]) -> dict[str, Type]:
    """How the model's nodes run, from the engine's layers in a verbose log: integer needs two integer factors."""
    matched = [layer for line in "\n".join(log).splitlines() if (layer := LAYER.match(line))]
    found: dict[str, Type] = {}
    for layer in sorted(matched, key=lambda layer: layer["kind"] != GENERATED):
        read = re.findall(r"Datatype: (\w+)", layer["reads"])
        kind: Type = "int8" if read.count("Int8") > 1 else "fp16" if read.count("Half") > 1 else "float"
        found |= dict.fromkeys(re.findall(r"\[ONNX Layer: (.*?)\]", layer["origin"]), kind)
    return found


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
