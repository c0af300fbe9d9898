"""What a device does: it listens, cuts the sound into breaths, classifies them and flags the abnormal ones.

`device.auscultate`, `device.screen` and `device.open_bundle` are what a notebook needs: docs/python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device.listening.screening import screen as screen
    from device.model.opening import open_bundle as open_bundle
    from device.service import auscultate as auscultate

# imported when first used, so that `import device` costs nothing
FUNCTIONS: Final = {
    "auscultate": "device.service",
    "open_bundle": "device.model.opening",
    "screen": "device.listening.screening",
}


def __getattr__(name: str) -> Any:
    if name not in FUNCTIONS:
        raise AttributeError(f"module 'device' has no attribute {name!r}")
    return getattr(import_module(FUNCTIONS[name]), name)
