"""From annotated lung sounds to a trained, evaluated model; torch lives here, and comes with the first use of a name.

`import trainer` offers the names below; docs/python.md shows them by examples. Each of the rooms `studies`, `report`,
`training`, `evaluation`, `breaths`, `run`, `model` and `corpora` imports only those after it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api import Fitted, Selection, Studied, Where, compare, evaluate, fit, study
    from trainer.corpora import Source
    from trainer.evaluation.compare import Compared
    from trainer.reading import Reading
    from trainer.run.folder import RunFacts
    from trainer.run.recipe import Recipe, load_recipe, with_changes
    from trainer.studies.cells import Plan
    from trainer.studies.study import Study, load_study
    from trainer.training.experiment import Request

__all__ = [
    "Compared",
    "Fitted",
    "Plan",
    "Reading",
    "Recipe",
    "Request",
    "RunFacts",
    "Selection",
    "Source",
    "Studied",
    "Study",
    "Where",
    "compare",
    "evaluate",
    "fit",
    "load_recipe",
    "load_study",
    "study",
    "with_changes",
]

HOMES = {
    "corpora": ("Source",),
    "reading": ("Reading",),
    "evaluation.compare": ("Compared",),
    "run.folder": ("RunFacts",),
    "run.recipe": ("Recipe", "load_recipe", "with_changes"),
    "training.experiment": ("Request",),
    "studies.cells": ("Plan",),
    "studies.study": ("Study", "load_study"),
}
"""Where a name is that is not in `api`."""


def __getattr__(name: str) -> Any:
    """A name of `__all__`, imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    home = next((module for module, names in HOMES.items() if name in names), "api")
    return getattr(import_module(f"trainer.{home}"), name)
