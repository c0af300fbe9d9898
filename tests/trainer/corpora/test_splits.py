"""Who trains and who is held out."""

from pathlib import Path
from typing import Literal

import pytest

from tests.trainer.corpus_maker import make_sprsound
from trainer.corpora import Corpus, load_corpus
from trainer.corpora.cycle import Cycle, Recording
from trainer.corpora.splits import (
    SplitError,
    device_folds,
    family,
    folds_of,
    maker,
    patient_folds,
    refuse_shared_patients,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus("sprsound", make_sprsound(tmp_path_factory.mktemp("split") / "sprsound"))


@pytest.mark.parametrize("count", [2, 3])
def test_every_patient_is_held_out_once_and_never_trained_on_then(corpus: Corpus, count: int) -> None:
    for seed in range(5):
        folds = patient_folds(corpus, count, seed)
        held = [patient for _, held_out in folds for patient in held_out.patients]
        assert sorted(held) == sorted(corpus.patients)
        for training, held_out in folds:
            assert not set(training.patients) & set(held_out.patients)
            assert set(training.patients) | set(held_out.patients) == set(corpus.patients)
            assert len(training.cycles) + len(held_out.cycles) == len(corpus.cycles)
            for side in (training, held_out):
                assert {cycle.label == "normal" for cycle in side.cycles} == {True, False}


def test_each_class_is_in_each_fold_by_its_share() -> None:
    """Twelve patients, two with wheezes and four with crackles: a fold by chance alone would often have no wheeze."""
    kinds = ["wheeze"] * 2 + ["crackle"] * 4 + ["normal"] * 6
    recordings = tuple(
        Recording(
            name=f"r{number}",
            audio=Path(f"r{number}.wav"),
            patient=f"p{number:02d}",
            device="d",
            site="s",
            age_years=None,
            part="train",
            label=kind,
            cycles=tuple(
                Cycle(f"r{number}", float(i), i + 1.0, label, f"p{number:02d}", "d", "s")  # type: ignore[arg-type]
                for i, label in enumerate(["normal", kind, kind])
            ),
        )
        for number, kind in enumerate(kinds)
    )
    corpus = Corpus("manifest", Path("made"), recordings)
    for seed in range(10):
        for _, held_out in patient_folds(corpus, 2, seed):
            labels = [cycle.label for cycle in held_out.cycles]
            assert (labels.count("wheeze"), labels.count("crackle")) == (2, 4)


def test_the_folds_are_the_seeds(corpus: Corpus) -> None:
    held = [patient_folds(corpus, 3, seed)[0][1].patients for seed in range(6)]
    assert patient_folds(corpus, 3, 0)[0][1].patients == held[0]
    assert len(set(held)) > 1


@pytest.mark.parametrize("patients", [1, 2])
def test_too_few_patients_are_named(tmp_path: Path, patients: int) -> None:
    """One patient cannot be split; of two, each with one kind of cycle, a side always lacks a kind."""
    root = make_sprsound(tmp_path / "few", patients=patients, recordings_per_patient=1, seconds=4.0)
    with pytest.raises(SplitError, match=rf"few: too few patients \({patients}\)"):
        patient_folds(load_corpus("sprsound", root), 2, 0)


# --- devices


def recorded(name: str, patient: str, device: str, labels: tuple[str, ...] = ("normal", "crackle")) -> Recording:
    cycles = tuple(
        Cycle(name, float(i), i + 1.0, label, patient, device, "s")  # type: ignore[arg-type]
        for i, label in enumerate(labels)
    )
    return Recording(name, Path(f"{name}.wav"), patient, device, "s", None, "train", labels[-1], cycles)


def test_each_device_is_held_out_and_its_patients_train_nowhere() -> None:
    """`both` was recorded with two devices: where one is held out, nothing of this patient may train."""
    recordings = (
        recorded("a", "anna", "Littmann"),
        recorded("b", "both", "Littmann"),
        recorded("c", "both", "Meditron"),
        recorded("d", "dora", "Meditron"),
    )
    folds = device_folds(Corpus("manifest", Path("made"), recordings))
    names = [[[one.name for one in side.recordings] for side in fold] for fold in folds]
    assert names == [[["d"], ["a", "b"]], [["a"], ["c", "d"]]]


def test_one_device_cannot_be_held_out() -> None:
    corpus = Corpus("manifest", Path("made"), (recorded("a", "anna", "Littmann"), recorded("b", "ben", "Littmann")))
    with pytest.raises(SplitError, match=r"made: one device only \(Littmann\); hold patients out"):
        device_folds(corpus)


def test_a_device_that_takes_all_abnormal_cycles_with_it_is_named() -> None:
    recordings = (recorded("a", "anna", "Littmann"), recorded("b", "ben", "Meditron", ("normal", "normal")))
    with pytest.raises(SplitError, match="without Littmann one side would lack"):
        device_folds(Corpus("manifest", Path("made"), recordings))


def test_patients_on_both_sides_are_named_and_counted() -> None:
    refuse_shared_patients(["a", "b"], ["c"], "icbhi")
    with pytest.raises(SplitError, match=r"icbhi: 4 patients are in training .*\(a, b, c and 1 more\)"):
        refuse_shared_patients(list("abcdx"), list("dcbay"), "icbhi")


@pytest.mark.parametrize(
    ("device", "of_family", "of_maker"),
    [
        ("Littmann 3200 bell", "Littmann 3200", "Littmann"),
        ("Litt3200", "Littmann 3200", "Littmann"),
        ("LittC2SE", "Littmann Classic II SE", "Littmann"),
        ("Meditron", "Meditron", "Meditron"),
        ("AKGC417L", "AKG C417L", "AKG C417L"),
        ("Yunting II", "Yunting II", "Yunting II"),
        ("Eko CORE", "Eko CORE", "Eko CORE"),
    ],
)
def test_a_stethoscope_has_one_family_whatever_a_corpus_calls_it(device: str, of_family: str, of_maker: str) -> None:
    assert (family(device), maker(device)) == (of_family, of_maker)


def test_a_family_is_held_out_whole_and_one_that_leaves_a_class_behind_is_passed_over() -> None:
    recordings = (
        recorded("a", "anna", "Litt3200"),
        recorded("b", "ben", "Littmann 3200 bell"),
        recorded("c", "ceci", "LittC2SE"),
        recorded("d", "dora", "Meditron"),
        recorded("e", "emil", "AKGC417L", ("normal", "normal")),
    )
    corpus = Corpus("icbhi", Path("made"), recordings)

    def held(hold_out: Literal["device", "maker"]) -> list[list[str]]:
        return [[one.name for one in held_out.recordings] for _, held_out in folds_of(corpus, hold_out, 2, 0)]

    assert held("device") == [["a", "b"], ["c"], ["d"]]
    assert held("maker") == [["a", "b", "c"], ["d"]]
