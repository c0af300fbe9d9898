"""How the libraries below us behave: none reports to its maker, none keeps files of its own, no BLAS thread idles.

And that what can wait leaves the processor to what listens.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Final

from firmware_config.settings import cache_folder

NO_TELEMETRY: Final = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def disable_telemetry() -> None:
    """Switch off usage reports in this process and its children; call it before a library is imported.

    ONNX Runtime (1.29 and later), the Hugging Face hub and Ray read these variables when they are imported.
    """
    os.environ.update(NO_TELEMETRY)


def yield_priority(by: int) -> None:
    """Make this thread so much nicer to all others; nothing changes where a sandbox, as the service's, forbids it."""
    with suppress(OSError):
        os.nice(by)


def own_font_list() -> None:
    """matplotlib keeps its list of fonts in our cache, not in a folder of its own; call it before the import."""
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder("matplotlib")))


def load_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off, also if it was imported before."""
    disable_telemetry()
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


@lru_cache(maxsize=1)
def _blas() -> Any:
    """The BLAS libraries of this process; found once, because the search takes 10 ms."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run the matrix products inside on the calling thread.

    OpenBLAS would divide a product of 100 frames among all cores, and its threads spin while they wait: an 8 s log-mel
    took three times as long, seven times beside torch's threads. The results are identical bit for bit.
    """
    with _blas().limit(limits=1):
        yield
