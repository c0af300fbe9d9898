"""`export inspect`: what is inside a bundle, counted in its graphs, and where it comes from."""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Console

from device.bundle import Bundle, BundleError, ModelFile
from export.tensorrt_check import kept_float
from trainer.tables import table

SCALED: Final = ("QuantizeLinear", "DequantizeLinear")
OPS_SHOWN: Final = 8
WRAP: Final = 12


@dataclass(frozen=True)
class Inspected:
    """One model file, counted."""

    path: str
    precision: str
    target: str
    opset: int
    bytes: int
    parameters: int
    """Numbers in its weights: batch norms are in their convolutions, equal tensors are one, scales do not count."""
    multiplications: dict[str, int]
    """Multiply-accumulates of one window: with `weights`, and of `activations` with each other (attention).

    Only ONNX's own operators are counted."""
    ops: dict[str, int]
    """Nodes by operator, the most frequent first; an operator of another domain than ONNX's has it in front."""
    kept_float: list[str]
    """Layers with weights that conversion left as they were."""


def inspect(bundle: Bundle) -> list[Inspected]:
    """Count every model file of a bundle; BundleError when one is no ONNX graph."""
    return [
        count(file, bundle.read(file.path), kept_float(bundle.manifest, file.path)) for file in bundle.manifest.files
    ]


def count(file: ModelFile, model: bytes, kept: list[str]) -> Inspected:
    """Count one model; BundleError when it is no ONNX graph or its shapes do not follow from its input."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load_model_from_string(model)
        for axis in (proto.graph.input[0].type.tensor_type.shape.dim or [])[:1]:
            axis.dim_value = 1  # one window
        shaped = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
        multiplications = _multiplications(shaped)
    except (DecodeError, IndexError, KeyError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BundleError(f"{file.path}: not an ONNX graph that can be counted ({reason}); build it again") from error
    ops = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in shaped.node)
    return Inspected(
        file.path,
        file.precision,
        file.target,
        file.opset,
        len(model),
        _parameters(shaped),
        multiplications,
        dict(ops.most_common()),
        kept,
    )


def _parameters(graph: Any) -> int:
    from onnx import TensorProto

    scales = {name for node in graph.node if node.op_type in SCALED for name in node.input[1:]}
    return sum(
        math.prod(one.dims)
        for one in graph.initializer
        # shapes and axes are int64, constants of formulas have no axis
        if one.dims and one.name not in scales and one.data_type != TensorProto.INT64
    )


def _multiplications(graph: Any) -> dict[str, int]:
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for one in (*graph.input, *graph.value_info, *graph.output):
        shapes[one.name] = tuple(axis.dim_value for axis in one.type.tensor_type.shape.dim)
    constant = {one.name for one in graph.initializer}
    for node in graph.node:
        if node.op_type in (*SCALED, "Cast") and node.input[0] in constant:
            constant.update(node.output)
    found = {"weights": 0, "activations": 0}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            summed = shapes[node.input[1]][1:] if node.op_type == "Conv" else shapes[node.input[0]][-1:]
            products = math.prod(shapes[node.output[0]]) * math.prod(summed)
            found["weights" if constant & set(node.input[:2]) else "activations"] += products
    return found


def as_json(found: list[Inspected], bundle: Bundle) -> dict[str, Any]:
    """What `export inspect --json` prints: the counts, and the manifest's front end and provenance as they are."""
    manifest = bundle.manifest.model_dump(mode="json")
    provenance = ("corpus", "split", "population", "recipe", "versions", "metrics", "self_test")
    return {
        "bundle": bundle.fingerprint,
        **{name: manifest[name] for name in ("name", "schema_version", "architecture", "labels", "front_end")},
        "files": [asdict(one) for one in found],
        "provenance": {name: manifest[name] for name in provenance},
    }


def show(found: list[Inspected], bundle: Bundle, console: Console) -> None:
    """The same in words; --json has all of it."""
    manifest = bundle.manifest
    rows = (
        (
            one.path,
            one.target,
            str(one.opset),
            f"{one.bytes / 1e6:.1f}",
            f"{one.parameters:,}",
            f"{sum(one.multiplications.values()) / 1e6:,.0f}",
            f"{one.multiplications['activations'] / sum(one.multiplications.values()):.0%}",
            str(sum(one.ops.values())),
        )
        for one in found
    )
    console.print(
        f"{manifest.name} {bundle.fingerprint[:12]}: {manifest.population.patients} patients of {manifest.corpus}"
    )
    headings = ("file", "for", "opset", "MB", "parameters", "MMAC", "attention", "nodes")
    console.print(table(*headings, rows=rows))
    for one in found:
        ops = ", ".join(f"{number} {name}" for name, number in list(one.ops.items())[:OPS_SHOWN])
        more = f" and {len(one.ops) - OPS_SHOWN} kinds more" if len(one.ops) > OPS_SHOWN else ""
        _line(console, one.path, f"{ops}{more}")
        if one.kept_float:
            _line(console, "", f"left float: {', '.join(one.kept_float)}")
    recipe = manifest.recipe
    for title, values in (
        ("model", manifest.architecture),
        ("front end", manifest.front_end.model_dump(mode="json")),
        ("recipe", {name: recipe[name] for name in ("name", "seed", "kept_epochs", "run") if name in recipe}),
        ("versions", manifest.versions),
    ):
        _line(console, title, ", ".join(f"{name} {value}" for name, value in values.items()))
    _line(console, "split", manifest.split)


def _line(console: Console, title: str, text: str) -> None:
    console.print(f"{title + ':' if title else '':{WRAP}} {text}", soft_wrap=True, markup=False)
