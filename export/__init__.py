"""From a trained run to a bundle that a device loads: ONNX, INT8 and FP16, measured and tested before it is packed.

`export.build` is what a notebook needs: docs/python.md.
"""

import lazy_loader

# the names of __init__.pyi, each imported when it is first used: torch and onnx take seconds
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
