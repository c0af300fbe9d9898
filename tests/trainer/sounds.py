"""Audio caches of samples that a test makes, without recordings."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.corpora.audio_cache import AudioCache


def cache_of(folder: Path, sounds: Mapping[str, npt.NDArray[Any]]) -> AudioCache:
    """As `open_cache` would make it of recordings with these samples; each call has files of its own below `folder`."""
    place = Path(tempfile.mkdtemp(dir=folder))
    files = {name: place / f"{number}.npy" for number, name in enumerate(sounds)}
    for name, samples in sounds.items():
        np.save(files[name], samples.astype(np.float32))
    return AudioCache({name: samples.size for name, samples in sounds.items()}, files)
