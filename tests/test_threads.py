"""A window is computed on one BLAS thread wherever it is: on the device, in the trainer's loader, in export."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
from threadpoolctl import threadpool_info, threadpool_limits
from torch.utils.data import DataLoader

from device.bundle import DEFAULT_BUNDLE, read_bundle
from device.model.classifier import Classifier, self_test
from device.signal import WINDOW_SAMPLES, FrontEnd, log_mel, windows
from export.bench import ours
from tests.trainer.corpus_maker import make_sprsound
from trainer.corpora import load_corpus
from trainer.corpora.audio_cache import with_audio
from trainer.run.recipe import AugmentationRecipe, DataRecipe
from trainer.training.crops import TrainingCrops

NOISE = (0.1 * np.random.default_rng(0).standard_normal(WINDOW_SAMPLES)).astype(np.float32)


def numpy_threads() -> int:
    """Of numpy's BLAS."""
    return max(int(pool["num_threads"]) for pool in threadpool_info() if "numpy" in pool["filepath"])


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every spectrum of a window fails where numpy may start threads; also in a forked worker. Yields the counts."""
    counts: list[int] = []
    real = scipy.fft.rfft

    def spied(*arguments: Any, **options: Any) -> Any:
        counts.append(numpy_threads())
        assert counts[-1] == 1
        return real(*arguments, **options)

    monkeypatch.setattr(scipy.fft, "rfft", spied)
    with threadpool_limits(2):
        if numpy_threads() < 2:
            pytest.skip("numpy's BLAS has one thread on this machine")
        yield counts
        assert numpy_threads() == 2  # the caller has its own back


def test_on_the_device(watched: list[int]) -> None:
    self_test(Classifier(read_bundle(DEFAULT_BUNDLE)))
    assert watched


def test_in_the_trainers_loader(tmp_path: Path) -> None:
    corpus, cache = with_audio(load_corpus("sprsound", make_sprsound(tmp_path / "corpus")), tmp_path / "cache")
    crops = TrainingCrops(corpus, cache, FrontEnd(), DataRecipe(crops="random"), AugmentationRecipe(), 0)
    for workers in (0, 1):
        batch = next(iter(DataLoader(crops, batch_size=2, sampler=[(0, n, n) for n in range(2)], num_workers=workers)))
        assert len(batch[0]) == 2


def test_in_export(watched: list[int]) -> None:
    bundle = read_bundle(DEFAULT_BUNDLE)
    judge, _ = ours(bundle, bundle.file().path, 1)
    judge(NOISE)
    assert watched


def test_the_number_of_threads_changes_no_bit() -> None:
    first = windows(NOISE, FrontEnd())
    with threadpool_limits(1):
        np.testing.assert_array_equal(windows(NOISE, FrontEnd()), first)
    assert np.isfinite(log_mel(NOISE, FrontEnd())).all() and "torch" in sys.modules
