"""What a device does: it listens, cuts the sound into breaths, classifies them and flags the abnormal ones.

`device.auscultate`, `device.screen` and `device.open_bundle` are what a notebook needs: docs/python.md.
"""

import lazy_loader

# the names of __init__.pyi, each imported when it is first used: `import device` costs nothing
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
