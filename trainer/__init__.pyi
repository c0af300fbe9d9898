from .api import Fitted as Fitted
from .api import Selection as Selection
from .api import Studied as Studied
from .api import compare as compare
from .api import evaluate as evaluate
from .api import fit as fit
from .api import study as study
from .corpora import Source as Source
from .run.recipe import load_recipe as load_recipe
from .run.recipe import with_changes as with_changes
from .run.request import Request as Request
from .run.request import Where as Where
from .studies.cells import Plan as Plan
from .studies.study import load_study as load_study

__all__: list[str]
