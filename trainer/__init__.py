"""From annotated lung sounds to a trained, evaluated model; torch lives here, and comes with the first use of a name.

`import trainer` offers the names below; docs/python.md shows them by examples. Each of the rooms `studies`, `report`,
`training`, `evaluation`, `breaths`, `run`, `model` and `corpora` imports only those after it.
"""

import lazy_loader

# the names of __init__.pyi, each imported when it is first used: torch takes seconds
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
