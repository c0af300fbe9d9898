"""A reading of accuracy against scikit-learn, and what it says of itself."""

import dataclasses
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score, roc_curve

from device.bundle import BundleError, Segmentation
from device.signal import FrontEnd
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.toy_fit import RECIPE
from trainer.corpora import Corpus, Recording, Source, load_corpora
from trainer.corpora.cycle import abnormal_shares
from trainer.corpora.splits import SplitError
from trainer.evaluation.evaluate import refuse_trained_patients, seen_annotations, seen_in_training
from trainer.evaluation.history import latest, log_reading, read_readings
from trainer.evaluation.outcome import Outcome, join, load_outcome, save_outcome
from trainer.evaluation.score import score
from trainer.evaluation.served import ServedModel, open_served
from trainer.metrics import NO_VERDICT
from trainer.reading import Reading
from trainer.run.folder import RUN_FILE, RunError
from trainer.run.recipe import with_changes
from trainer.run.request import Request
from trainer.training.experiment import prepare
from trainer.view import show_reading

SPRSOUND = frozenset(["sprsound"])


def outcome(n: int = 400, patients: int = 40, seed: int = 0) -> Outcome:
    """Random truth; predictions right in two of three."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 4, n)
    predicted = np.where(random.random(n) < 0.66, true, random.integers(0, 4, n))
    owners = random.integers(0, patients, n)
    classes = random.dirichlet(np.ones(4), n)
    return Outcome(
        true,
        predicted,
        np.round(0.3 * (true > 0) + 0.69 * random.random(n), 2) + 0.001,  # with ties, none on a bin's edge
        [f"p{owner}" for owner in owners],
        {"duration": random.random(n) * 2 - (true > 0), "age": np.full(n, np.nan)},
        [f"p{owner}_r" for owner in owners],
        np.arange(n, dtype=np.float64),
        np.arange(n, dtype=np.float64) + 2.5,
        ["rare" if owner == 0 else "usual" for owner in owners],
        ["back" if label else "front" for label in true],
        classes,
        ["kauh" if owner == 0 else "sprsound" for owner in owners],
    )


def test_both_conventions_against_scikit_learn() -> None:
    made = outcome()
    reading = score(made)
    abnormal, called = made.true > 0, made.predicted > 0
    assert reading["n"] == 400
    assert reading["binary"]["sensitivity"]["value"] == pytest.approx(recall_score(abnormal, called), abs=1e-4)
    assert reading["binary"]["specificity"]["value"] == pytest.approx(recall_score(~abnormal, ~called), abs=1e-4)
    right = (made.true == made.predicted)[abnormal]
    assert reading["exact"]["sensitivity"]["value"] == pytest.approx(right.mean(), abs=1e-4)
    assert reading["exact"]["sensitivity"]["value"] < reading["binary"]["sensitivity"]["value"]
    assert reading["auroc"]["value"] == pytest.approx(roc_auc_score(abnormal, made.probability), abs=1e-4)
    for value in (reading["binary"]["score"], reading["exact"]["score"], reading["auroc"]):
        assert value["low"] < value["value"] < value["high"]


def test_confounders_are_read_in_their_better_direction_and_absent_ones_are_null() -> None:
    reading = score(outcome())
    made = outcome()
    expected = 1 - roc_auc_score(made.true > 0, made.confounders["duration"])
    assert expected > 0.6
    assert reading["confounders"]["duration"]["value"] == pytest.approx(expected, abs=1e-4)
    assert reading["confounders"]["age"] == {"value": None, "low": None, "high": None}


def test_no_verdict_is_wrong_on_both_sides() -> None:
    true = np.array([0, 0, 1, 2])
    made = Outcome(true, np.full(4, NO_VERDICT), np.zeros(4), ["a", "b", "c", "d"], {})
    reading = score(made)
    assert reading["binary"]["sensitivity"]["value"] == reading["binary"]["specificity"]["value"] == 0.0
    assert [row[-1] for row in reading["confusion"]["counts"]] == [2, 1, 1, 0]


def test_reading_is_plain_json() -> None:
    assert json.loads(json.dumps(score(outcome())))["confusion"]["columns"][-1] == "no verdict"


def test_areas_sensitivities_and_calibration_against_scikit_learn() -> None:
    made = outcome()
    reading = score(made)
    abnormal = made.true > 0
    expected = average_precision_score(abnormal, made.probability)
    assert reading["auprc"]["value"] == pytest.approx(expected, abs=1e-4)
    assert reading["auprc"]["low"] < expected < reading["auprc"]["high"]
    false_alarms, found, _ = roc_curve(abnormal, made.probability, drop_intermediate=False)
    for name, at in reading["sensitivity_at"].items():
        assert at["value"] == pytest.approx(found[1 - false_alarms >= float(name) - 1e-12].max(), abs=1e-4)
    assert list(reading["sensitivity_at"]) == ["0.80", "0.90", "0.95"]
    shares, means = calibration_curve(abnormal, made.probability, n_bins=15)
    counts = np.histogram(made.probability, np.linspace(0, 1, 16))[0]
    expected = np.average(np.abs(shares - means), weights=counts[counts > 0])
    assert reading["ece"]["value"] == pytest.approx(expected, abs=1e-4)


def test_every_class_is_read_beside_normal() -> None:
    made = outcome()
    classes = score(made)["per_class"]
    assert set(classes) == {"crackle", "wheeze", "both"}
    for index, label in enumerate(("crackle", "wheeze", "both"), 1):
        of_class, beside = made.true == index, np.isin(made.true, (0, index))
        read = classes[label]
        assert read["n"] == read["abnormal"] == of_class.sum()
        assert read["any_abnormal"]["value"] == pytest.approx((made.predicted[of_class] > 0).mean(), abs=1e-4)
        assert read["exact"]["value"] == pytest.approx((made.predicted[of_class] == index).mean(), abs=1e-4)
        expected = roc_auc_score(of_class[beside], made.probability[beside])
        assert read["auroc"]["value"] == pytest.approx(expected, abs=1e-4)


def test_devices_and_sites_and_what_they_cannot_say() -> None:
    made = outcome()
    reading = score(made)
    rare, usual = reading["per_device"]["rare"], reading["per_device"]["usual"]
    assert rare["n"] + usual["n"] == reading["n"] and rare["patients"] == 1 and usual["patients"] == 39
    inside = np.array(made.devices) == "usual"
    expected = recall_score(made.true[inside] > 0, made.predicted[inside] > 0)
    assert usual["sensitivity"]["value"] == pytest.approx(expected, abs=1e-4)
    assert usual["score"]["low"] < usual["score"]["value"] < usual["score"]["high"]
    # one patient: an interval would be a point
    assert rare["score"]["value"] is not None and rare["score"]["low"] is None
    assert reading["per_corpus"]["kauh"]["n"] == rare["n"] and reading["per_corpus"]["sprsound"]["patients"] == 39
    assert reading["per_site"]["front"]["score"]["value"] is None and reading["per_site"]["front"]["abnormal"] == 0
    console = Console(width=80, record=True, file=StringIO())
    about = {"corpus": "c", "part": "inter", "protocol": "windows", "patients": 40, "patients_seen_in_training": False}
    show_reading(Reading.model_validate({**reading, **about, "bundle": "f"}), console)
    shown = console.export_text()
    assert "normal only" in shown and "abnormal only" in shown and "…" not in shown
    for word in ("AUPRC", "ECE", "Se at Sp 0.95", "called abnormal", "rare", "front"):
        assert word in shown


def test_ages_are_read_by_stage_of_life_in_their_order() -> None:
    made = outcome()
    years = np.resize([0.2, 1.9, 2.0, 11.9, 17.9, 18.0, 70.0, np.nan], len(made.true))
    stages = score(dataclasses.replace(made, confounders={"age": years}))["per_age"]
    counts = {name: read["n"] for name, read in stages.items()}
    expected = ["", "0-1 years", "2-5 years", "6-11 years", "12-17 years", "18-64 years", "65+ years"]
    assert list(counts.items()) == [(name, 100 if name == "0-1 years" else 50) for name in expected]


def test_an_outcome_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    made = outcome()
    save_outcome(tmp_path / "new" / "it.npz", made)
    back = load_outcome(tmp_path / "new" / "it.npz")
    for name, value in vars(made).items():
        if name != "confounders":
            np.testing.assert_array_equal(getattr(back, name), value)
    np.testing.assert_array_equal(back.confounders["duration"], made.confounders["duration"])
    assert type(back.patients) is list and back.patients == made.patients
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["it.npz"]
    twice = join([made, back])
    assert len(twice.true) == len(twice.sites) == len(twice.classes) == 800


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"no archive", lambda raw: b""])
def test_a_damaged_outcome_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "held_out-windows.npz"
    with pytest.raises(RunError, match=r"held_out-windows\.npz: not there"):
        load_outcome(file)
    save_outcome(file, outcome())
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RunError, match=r"held_out-windows\.npz: damaged"):
        load_outcome(file)


def test_every_reading_of_a_run_is_logged_and_a_second_look_shows(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("{}")
    about = {"corpus": "icbhi", "part": "test", "protocol": "events", "bundle": "f"}
    reading = Reading.model_validate({**score(outcome(40)), **about})
    assert log_reading(tmp_path, reading) == ()
    assert log_reading(tmp_path, reading.model_copy(update={"protocol": "windows"})) == ()
    (note,) = log_reading(tmp_path, reading)
    assert "icbhi test events" in note and "read for the 2nd time" in note and note.endswith("no longer a test")
    (note,) = log_reading(tmp_path, reading)
    assert "3rd time" in note
    lines = read_readings(tmp_path)
    assert [line.times_read for line in lines] == [1, 1, 2, 3]
    assert all(line.time for line in lines)
    assert [(one.protocol, one.times_read) for one in latest(lines)] == [("events", 3), ("windows", 1)]


def test_neither_run_nor_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="neither a run nor a bundle"):
        open_served(tmp_path / "absent", torch.device("cpu"))
    with pytest.raises(RunError, match=r"run\.json is missing"):
        open_served(tmp_path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("corpus_name", "parts", "patients", "expected"),
    [
        ("icbhi", ["train"], None, False),
        ("sprsound", ["intra"], None, True),
        ("sprsound", ["inter"], None, False),
        ("sprsound", [""], None, None),
        ("sprsound", ["inter"], frozenset({"sprsound/p0"}), True),
        ("sprsound", ["intra"], frozenset({"other"}), False),
    ],
)
def test_patients_seen_in_training(
    corpus_name: str, parts: list[str], patients: frozenset[str] | None, expected: bool | None
) -> None:
    recordings = tuple(
        Recording(f"r{n}", None, f"{corpus_name}/p{n}", "d", "s", None, part, "normal", (), corpus=corpus_name)
        for n, part in enumerate(parts)
    )
    subject = trained(SPRSOUND, patients, ("train", "intra"))
    assert seen_in_training(subject, Corpus(corpus_name, Path(), recordings)) is expected


@pytest.mark.parametrize(
    ("parts", "read", "expected"), [([""], "", None), ([""], "test", None), (["", "train"], "train", True)]
)
def test_a_corpus_without_parts_says_nothing_of_who_was_seen(
    parts: list[str], read: str, expected: bool | None
) -> None:
    """Two of an owner's tables may hold the same patients or others."""
    subject = trained(frozenset(["manifest"]), None, tuple(parts))
    assert seen_in_training(subject, people("manifest", (read, "p0"))) is expected


def people(corpus_name: str, *parts_and_patients: tuple[str, str]) -> Corpus:
    recordings = (
        Recording(p, None, f"{corpus_name}/{p}", "d", "s", None, part, "normal", (), corpus=corpus_name)
        for part, p in parts_and_patients
    )
    return Corpus(corpus_name, Path("data"), tuple(recordings))


def trained(corpora: frozenset[str], patients: frozenset[str] | None, seen_parts: tuple[str, ...] = ()) -> ServedModel:
    """A model that nobody asks anything."""
    return ServedModel(
        "m",
        lambda inputs: inputs,
        FrontEnd(),
        Segmentation(),
        trained_corpora=corpora,
        trained_patients=patients,
        seen_parts=seen_parts,
    )


def trained_on(corpus_name: str, *patients: str) -> ServedModel:
    known = frozenset(patient if "/" in patient else f"{corpus_name}/{patient}" for patient in patients)
    return trained(frozenset([corpus_name]), known)


def test_a_run_is_not_read_on_its_own_patients_unless_labelled() -> None:
    run, leaky = trained_on("icbhi", "101", "156"), people("icbhi", ("test", "156"), ("test", "200"))
    with pytest.raises(SplitError, match=r"m on data: 1 patients are in training .* is read \(icbhi/156\); read"):
        refuse_trained_patients(run, leaky, "official")
    refuse_trained_patients(run, leaky, "as-published")
    assert seen_in_training(run, leaky) is True
    refuse_trained_patients(run, people("icbhi", ("test", "200")), "official")
    refuse_trained_patients(run, people("sprsound", ("inter", "156")), "official")  # another corpus's 156
    bundle = dataclasses.replace(run, trained_patients=None)
    refuse_trained_patients(bundle, leaky, "official")


def test_only_sprsounds_intra_part_is_excused() -> None:
    run = trained_on("sprsound", "1", "2")
    refuse_trained_patients(run, people("sprsound", ("intra", "1"), ("inter", "3")), "official")
    with pytest.raises(SplitError):
        refuse_trained_patients(run, people("sprsound", ("intra", "1"), ("inter", "2")), "official")
    with pytest.raises(SplitError):
        refuse_trained_patients(run, people("sprsound", ("train", "1")), "official")


def test_icbhis_official_split_shares_nobody_and_the_published_one_two(shared_data: Path) -> None:
    def side(split: str, purpose: Literal["fit", "evaluate"]) -> Corpus:
        source = Source("icbhi", shared_data / "icbhi")
        return load_corpora([source], split=split, audio=False, purpose=purpose)

    training, test = side("official", "fit"), side("official", "evaluate")
    refuse_trained_patients(trained_on("icbhi", *training.patients), test, "official")
    assert not set(training.patients) & set(test.patients)
    leaking = trained_on("icbhi", *side("as-published", "fit").patients)
    with pytest.raises(SplitError, match=r"2 patients .*\(icbhi/156, icbhi/218\)"):
        refuse_trained_patients(leaking, side("as-published", "evaluate"), "official")
    refuse_trained_patients(leaking, side("as-published", "evaluate"), "as-published")


def test_a_test_part_that_shares_a_patient_chooses_no_epoch(tmp_path: Path) -> None:
    make_sprsound(tmp_path / "corpus")
    root = make_sprsound(tmp_path / "corpus", part="inter", patients=2)
    for path in root.rglob("50000000_*"):
        path.rename(path.with_name(path.name.replace("50000000", "40000000")))
    recipe = with_changes(RECIPE, {"data.choose_on": "test"})
    with pytest.raises(SplitError, match=r"1 patients are in training and in what is read \(sprsound/40000000\)"):
        prepare(Request(recipe, "toy", (Source("sprsound", root),)), tmp_path / "cache")


def test_patients_met_in_training_are_a_confounder_read_beside_the_model(tmp_path: Path) -> None:
    for part in ("train", "intra"):
        make_sprsound(tmp_path, part=part, layout="published")
    intra = load_corpora([Source("sprsound", tmp_path)], part="intra")
    run = trained_on("sprsound", *intra.patients)
    training = seen_annotations(run, intra)
    assert {recording.part for recording in training} == {"train"}
    shares = abnormal_shares(training, intra.patients)
    for patient, share in zip(intra.patients, shares, strict=True):
        own = [cycle.label != "normal" for one in training if one.patient == patient for cycle in one.cycles]
        every = [cycle.label != "normal" for one in training for cycle in one.cycles]
        assert share == pytest.approx((sum(own) + np.mean(every)) / (len(own) + 1))
    assert np.isnan(abnormal_shares(training, ["nobody"])[0])
    assert seen_annotations(trained_on("sprsound", "stranger"), intra) == ()
    # the train part is among what is read
    assert seen_annotations(run, load_corpora([Source("sprsound", tmp_path)])) == ()
    alone = make_sprsound(tmp_path / "alone", part="intra")
    assert seen_annotations(run, load_corpora([Source("sprsound", alone)], part="intra")) == ()
