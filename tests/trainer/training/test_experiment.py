"""What a run is made of: who is held out, and what cannot be."""

from pathlib import Path

import pytest

from tests.trainer.corpora.test_kauh import make_kauh
from tests.trainer.corpus_maker import ICBHI_EQUIPMENT, make_icbhi, make_sprsound
from tests.trainer.toy_fit import RECIPE
from trainer.corpora import Source
from trainer.corpora.protocols import examples, stretch_protocol
from trainer.corpora.splits import SplitError, family
from trainer.run.recipe import with_changes
from trainer.run.request import Request
from trainer.training.experiment import Prepared, prepare


def prepared(root: Path, members: int) -> Prepared:
    recipe = with_changes(RECIPE, {"data.hold_out": "device", "data.members": members})
    return prepare(Request(recipe, "toy", (Source("icbhi", root),), part="all"), root / "cache")


def notes(root: Path, members: int, refit: int = 0) -> tuple[str, ...]:
    data = with_changes(RECIPE, {"data.hold_out": "device", "data.members": members, "data.refit": refit}).data
    return prepared(root, members).stethoscopes(data)


def test_a_stethoscope_that_nobody_holds_out_is_named(tmp_path: Path) -> None:
    root = make_icbhi(tmp_path)
    first, *others = sorted(map(family, ICBHI_EQUIPMENT))
    (note,) = notes(root, 1)
    assert f"{first}: held out;" in note and all(f"{other}: not held out" in note for other in others)
    assert note.endswith("--members 3 holds out each in turn")
    assert notes(root, 3) == ()
    assert notes(root, 3, refit=1) == (
        "what serves learns from every stethoscope; --refit 0 serves the models that leave one out",
    )


def test_more_members_than_stethoscopes_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"4 members cannot each hold out another of 3 folds .*; give --members 3"):
        prepared(make_icbhi(tmp_path), 4)


def test_several_corpora_are_divided_together(tmp_path: Path) -> None:
    """Labels of events, of cycles and of whole recordings; every corpus is on both sides of every fold."""
    kauh = {number: f"N,{'N' if number % 2 else 'W'},P L L,40,M" for number in range(1, 7)}
    sources = (
        Source("sprsound", make_sprsound(tmp_path / "a")),
        Source("icbhi", make_icbhi(tmp_path / "b", patients=9)),
        Source("kauh", make_kauh(tmp_path / "c", kauh)),
    )
    recipe = with_changes(RECIPE, {"data.folds": 2})
    made = prepare(Request(recipe, "toy", sources), tmp_path / "cache")
    assert made.corpus.name == "sprsound+icbhi+kauh"
    for training, held_out in made.folds:
        assert not set(training.patients) & set(held_out.patients)
        for side in (training, held_out):
            assert {one.corpus for one in side.recordings} == {"sprsound", "icbhi", "kauh"}
            assert {e.recording.split("/")[0] for e in examples(side, stretch_protocol(side), made.cache)} == {
                "sprsound",
                "icbhi",
                "kauh",
            }
