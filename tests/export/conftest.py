"""One small corpus, two finished runs on it, and the bundle of each: built once, because an export takes seconds."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from export.building import NOTHING_MORE, Built, Reporter, Wanted, build
from firmware_config.settings import load_settings
from tests.export.run_maker import MOBILENET, PATCH, make_run
from tests.trainer.corpus_maker import make_sprsound
from trainer.corpora import Source
from trainer.corpora.audio_cache import open_corpora
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.history import log_reading
from trainer.evaluation.served import open_served
from trainer.run.folder import READINGS_FILE, RunFacts

# random weights magnify simulated breaths beyond the ranges of a few made recordings: those of the last blocks most
LATE = tuple(f"member-{member}.trunk.features.{block}" for member in (1, 2) for block in range(13, 17))
ALL_FORMS = Wanted(int8=True, fp16=True, target="both", prefer="fp32")


@dataclass
class Workshop:
    """Where the tests build."""

    root: Path
    lines: list[str] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.root / "corpus"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def build(self, run: Path, out: Path, wanted: Wanted = NOTHING_MORE) -> Built:
        return build(run, out, cache_folder=self.cache, wanted=wanted, reporter=Reporter(self.lines.append))


@dataclass(frozen=True)
class Made:
    """A run, its facts, its bundle, and what the build said."""

    run: Path
    facts: RunFacts
    built: Built
    lines: tuple[str, ...]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    shop = Workshop(tmp_path_factory.mktemp("workshop"))
    make_sprsound(shop.data)
    make_sprsound(shop.data, part="intra")
    return shop


@pytest.fixture(scope="session")
def patch_run(workshop: Workshop) -> Path:
    """With a reading of the intra test, taken twice, whose notes name a file, and one of earlier weights."""
    run = workshop.root / "patch"
    make_run(run, workshop.data, workshop.cache, PATCH)
    corpus, cache = open_corpora([Source("sprsound", workshop.data)], workshop.cache, part="intra")
    reading = evaluate(
        open_served(run, torch.device("cpu")), corpus, cache, "windows", load_settings(environment={}).quality
    )
    reading = reading.model_copy(update={"notes": ["a note", f"left out: {workshop.data}/gone.wav is empty"]})
    for _ in range(2):
        log_reading(run, reading)
    with (run / READINGS_FILE).open("a") as file:
        file.write(
            json.dumps({**reading.as_json(), "protocol": "events", "bundle": "of weights that were here before"}) + "\n"
        )
    return run


@pytest.fixture(scope="session")
def patch_made(workshop: Workshop, patch_run: Path) -> Made:
    """Every form of the patch model."""
    built = workshop.build(patch_run, workshop.root / "patch bundle", ALL_FORMS)
    facts = RunFacts.model_validate_json((patch_run / "run.json").read_text())
    return Made(patch_run, facts, built, tuple(workshop.lines))


@pytest.fixture(scope="session")
def mobilenet_made(workshop: Workshop) -> Made:
    """fp32 and int8 of two MobileNets; int8 is the default, the corpus has moved, the model has a name.

    Eight windows of random weights lose more Score than a gate allows; what the gate refuses has tests of its own.
    """
    run, data = workshop.root / "mobilenet", workshop.root / "moved"
    facts = make_run(run, workshop.data, workshop.cache, MOBILENET, members=2)
    data.symlink_to(workshop.data)
    built = build(
        run,
        workshop.root / "made" / "bundle.respsam",
        cache_folder=workshop.cache,
        wanted=Wanted(int8=True, prefer="int8", largest_loss=1.0, keep_float=LATE),
        data=[data],
        name="Ward 7",
    )
    return Made(run, facts, built, ())
