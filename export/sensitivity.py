"""Which layers cost accuracy when they are converted, and which of them stay float."""

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Final

import numpy as np

from device.model.classifier import open_session
from device.signal import FloatArray
from export.gates import relative_error
from export.onnx_graph import run
from export.quantize import Convert, QuantizeError

SHOWN: Final = 20

Ranked = list[tuple[str, float]]
"""Layers by the relative logit error that each alone causes, worst first."""


def sensitivity(
    convert: Convert, layers: Sequence[str], asked: Sequence[str], fp32: Any, windows: FloatArray
) -> Ranked:
    """Convert each asked one of the layers alone and measure on `windows` (n, frames, mels) against session `fp32`."""
    expected = run(fp32, windows)
    found = []
    for name in asked:
        # as the file defines it: which layer to blame is no matter of this CPU
        alone = open_session(convert([other for other in layers if other != name]), exact_integers=True)
        found.append((name, float(np.nan_to_num(relative_error(run(alone, windows), expected), nan=np.inf))))
    return sorted(found, key=lambda pair: -pair[1])


def table(ranked: Ranked) -> Iterator[str]:
    """Lines of text, the worst layers first."""
    width = max(len(name) for name, _ in ranked)
    yield f"{'layer':{width}}  relative error of the logits, converted alone"
    for name, error in ranked[:SHOWN]:
        yield f"{name:{width}}  {error:.2g}"
    if len(ranked) > SHOWN:
        yield f"and {len(ranked) - SHOWN} that matter less"


def named(asked: Collection[str], layers: Sequence[str]) -> list[str]:
    """The layers with these names and below them (`blocks.2` is four), in the order they run.

    QuantizeError for a name that the model does not have.
    """
    for name in asked:
        if not any(_below(layer, name) for layer in layers):
            nearest = get_close_matches(name, layers, 1, 0.0)[0]
            raise QuantizeError(f"--keep-float {name}: no layer of that name, the nearest is {nearest}")
    return [layer for layer in layers if any(_below(layer, name) for name in asked)]


def _below(layer: str, name: str) -> bool:
    return f"{layer}.".startswith(f"{name}.")
