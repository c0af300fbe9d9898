"""From a trained run to a bundle that a device loads: ONNX, INT8 and FP16, measured and tested before it is packed.

`export.build` is what a notebook needs: docs/python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from export.building import Built as Built
    from export.building import Wanted as Wanted
    from export.building import build as build

NAMES: Final = ("build", "Built", "Wanted")  # imported when first used: torch and onnx take seconds


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    return getattr(import_module("export.building"), name)
