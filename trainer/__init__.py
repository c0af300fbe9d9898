"""From annotated lung sounds to a trained, evaluated model; torch lives here, and comes with the first use of a name.

`import trainer` offers the names below; docs/python.md shows them by examples. Each of the rooms `studies`, `report`,
`training`, `evaluation`, `breaths`, `run`, `model` and `corpora` imports only those after it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api import Fitted as Fitted
    from trainer.api import Selection as Selection
    from trainer.api import Studied as Studied
    from trainer.api import Where as Where
    from trainer.api import compare as compare
    from trainer.api import evaluate as evaluate
    from trainer.api import fit as fit
    from trainer.api import study as study
    from trainer.corpora import Source as Source
    from trainer.run.recipe import load_recipe as load_recipe
    from trainer.run.recipe import with_changes as with_changes
    from trainer.studies.cells import Plan as Plan
    from trainer.studies.study import load_study as load_study
    from trainer.training.experiment import Request as Request

HOMES = {
    "api": ("Fitted", "Selection", "Studied", "Where", "compare", "evaluate", "fit", "study"),
    "corpora": ("Source",),
    "run.recipe": ("load_recipe", "with_changes"),
    "studies.cells": ("Plan",),
    "studies.study": ("load_study",),
    "training.experiment": ("Request",),
}
"""The names that `import trainer` offers, by the module that has them."""


def __getattr__(name: str) -> Any:
    """A name of HOMES, imported when it is first asked for."""
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(f"trainer.{module}"), name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
