from .listening.screening import screen as screen
from .model.opening import open_bundle as open_bundle
from .service import auscultate as auscultate

__all__: list[str]
