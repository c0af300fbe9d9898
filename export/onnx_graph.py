"""The model as an ONNX graph: exported from torch, free of where it was made, run and compared."""

import ast
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from device.signal import FloatArray

if TYPE_CHECKING:
    from trainer.model.network import Ensemble, Network

OPSET: Final = 17  # the one that TensorRT 8.6 to 11 all read
PRODUCTS: Final = ("MatMul", "Gemm", "Conv")
INPUT: Final = "windows"
OUTPUT: Final = "logits"
TRACED_BATCH: Final = 2  # torch makes a dimension of 1 constant
PARITY_BATCHES: Final = (1, 3)  # neither is the size that was traced
RUN_BATCH: Final = 8  # AST base holds 90 MB of attention a window


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings of exporters and quantizers, which speak to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def to_onnx(model: "Network | Ensemble") -> bytes:
    """The model in eval mode as ONNX: `windows` (batch, frames, mels) to `logits` (batch, moments, classes), any batch.

    The bytes depend on the weights and the libraries' versions alone. Raises onnx.checker.ValidationError on a bug.
    """
    import onnx
    import torch

    config = model.config
    with quiet():
        program: Any = torch.onnx.export(
            model.eval(),
            (torch.zeros(TRACED_BATCH, config.frames, config.mels),),
            dynamo=True,
            # Not 17 here: torch 2.13 writes 18, and its own way down stops at an axis that is an initializer.
            opset_version=18,
            external_data=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
        named = program.model_proto
        _name_layers(named.graph)
        graph = _lowered(named)
    onnx.checker.check_model(graph, full_check=True)
    return serialized(graph)


def _name_layers(graph: Any) -> None:
    """Call every product with constant weights as torch does: `blocks.0.mlp_in`, in an ensemble `member-1.head`."""
    constants = {initializer.name for initializer in graph.initializer}
    for node in graph.node:
        if node.op_type in PRODUCTS and node.input[1] in constants:
            (scopes,) = [one.value for one in node.metadata_props if one.key == "pkg.torch.onnx.name_scopes"]
            # a batch norm folded into its convolution has left its own scope, a transposed matrix its own name
            name = node.input[1].removesuffix(".weight") if "." in node.input[1] else ast.literal_eval(scopes)[-2]
            node.name = re.sub(r"^members\.(\d+)", lambda found: f"member-{int(found[1]) + 1}", name)


def _lowered(model: Any) -> Any:
    """From opset 18 to OPSET."""
    from onnx import version_converter

    for node in model.graph.node:
        if node.op_type == "ReduceMean":
            # new in 18 and left behind by the converter; with axes given it says nothing
            kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return version_converter.convert_version(model, OPSET)


def serialized(model: Any) -> bytes:
    """Bytes of a graph without what tells where and how it was made: stack traces, docs, inferred shapes, producer."""
    from onnx.helper import find_min_ir_version_for

    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    model.producer_name, model.producer_version = "respsam", ""
    # the opset's own; a newer one would shut out older runtimes for nothing
    model.ir_version = find_min_ir_version_for(model.opset_import)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def run(session: Any, inputs: FloatArray, batch: int = RUN_BATCH) -> FloatArray:
    """Logits (n, moments, classes) of model inputs (n, frames, mels)."""
    pieces = [session.run([OUTPUT], {INPUT: inputs[i : i + batch]})[0] for i in range(0, len(inputs), batch)]
    return np.concatenate(pieces).astype(np.float32)


def parity(model: "Network | Ensemble", session: Any, inputs: FloatArray) -> float:
    """Largest |torch - ONNX| of any logit over inputs (n, frames, mels), one at a time and in threes; NaN if any is."""
    import torch

    worst = 0.0
    with torch.inference_mode():
        for batch in PARITY_BATCHES:
            for start in range(0, len(inputs), batch):
                piece = inputs[start : start + batch]
                expected = model.eval()(torch.from_numpy(piece)).numpy()
                # np.maximum keeps a NaN, max() would lose it
                worst = float(np.maximum(worst, np.abs(run(session, piece, batch) - expected).max()))
    return worst
