from .building import Built as Built
from .building import Wanted as Wanted
from .building import build as build

__all__: list[str]
