"""What `describe` counts, against the published numbers and a corpus whose counts are known by construction."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from device.labels import Label
from tests.trainer.corpus_maker import make_manifest, make_sprsound
from trainer.corpora import load_corpus
from trainer.corpora.cycle import Corpus, Cycle, Recording
from trainer.corpora.describe import describe, render


def recording(
    patient: str, cycles: tuple[tuple[float, Label], ...], part: str = "", label: str = "normal"
) -> Recording:
    name = f"{patient}.{part}"
    made = tuple(Cycle(name, 1.0, 1.0 + seconds, kind, patient, "D", "back") for seconds, kind in cycles)
    return Recording(name, None, patient, "D", "back", 5.0 if patient == "a" else None, part, label, made)


@pytest.fixture
def corpus() -> Corpus:
    recordings = (
        recording("a", ((1.0, "crackle"), (2.0, "normal"), (3.0, "normal")), "train", "crackle"),
        recording("a", ((1.5, "wheeze"),), "intra", "wheeze"),
        recording("b", (), "train", "poor quality"),
    )
    return Corpus("sprsound", Path("[bold]odd[/x] folder"), recordings)


def printed(corpus: Corpus, width: int = 80) -> str:
    output = io.StringIO()
    render(describe(corpus), Console(file=output, width=width))
    return output.getvalue()


def test_counts(corpus: Corpus) -> None:
    described = describe(corpus)
    assert (described.patients, described.recordings, described.cycles, described.without_audio) == (2, 3, 4, 3)
    assert described.cycles_per_patient == (0, 2, 4)
    assert described.age_years == (5.0, 5.0, 5.0) and described.patients_without_age == 1
    assert [(count.label, count.cycles, count.recordings) for count in described.classes] == [
        ("normal", 2, 0),
        ("crackle", 1, 1),
        ("wheeze", 1, 1),
        ("both", 0, 0),
    ]
    assert described.classes[0].duration_seconds == pytest.approx((2.05, 2.5, 2.95, 3.0))
    assert described.classes[3].duration_seconds is None and described.poor_quality == 1
    assert [(group.name, group.patients, group.cycles, group.abnormal) for group in described.parts] == [
        ("intra", 1, 1, 1),
        ("train", 2, 3, 1),
    ]
    assert described.patients_in_train_and_test == ("a",)


def test_duration_tells_its_direction(corpus: Corpus) -> None:
    assert describe(corpus).duration_auroc == 1.0 and describe(corpus).abnormal_is_shorter
    longer = Corpus("manifest", Path("x"), (recording("a", ((3.0, "both"), (1.0, "normal"), (3.0, "normal"))),))
    assert describe(longer).duration_auroc == 0.75 and not describe(longer).abnormal_is_shorter
    only = replace(longer, recordings=(recording("a", ((1.0, "normal"),)),))
    assert np.isnan(describe(only).duration_auroc) and "one of normal and abnormal is absent" in printed(only)


def test_print_fits_80_columns_and_keeps_odd_names(corpus: Corpus) -> None:
    text = printed(corpus)
    assert max(map(len, text.splitlines())) <= 80
    assert "sprsound: [bold]odd[/x] folder" in text
    assert "duration alone: AUROC 1.000 (abnormal cycles are shorter)" in text
    assert "1 patient of a test part is in train too (seen in training): a" in text
    assert "\x1b" not in text


def test_how_often_a_patient_was_abnormal_in_training_is_read_on_the_test_part() -> None:
    cycles: tuple[tuple[str, str, tuple[Label, ...]], ...] = (
        ("often", "train", ("crackle", "wheeze", "normal")),
        ("seldom", "train", ("normal", "normal", "crackle")),
        ("once", "train", ("normal",)),
        ("often", "intra", ("crackle", "normal")),
        ("seldom", "intra", ("wheeze", "normal")),
        ("once", "intra", ("normal",)),
        ("stranger", "intra", ("both",)),
    )
    made = [recording(name, tuple((1.0, kind) for kind in kinds), part) for name, part, kinds in cycles]
    corpus = Corpus("sprsound", Path("x"), tuple(made))
    own = {"often": (2 + 3 / 7) / 4, "seldom": (1 + 3 / 7) / 4, "once": (3 / 7) / 2}
    expected = roc_auc_score([1, 0, 1, 0, 0], [own[name] for name in ("often", "often", "seldom", "seldom", "once")])
    assert describe(corpus).patient_auroc == pytest.approx(expected)
    assert f"patient alone: AUROC {expected:.3f}" in printed(corpus)
    assert describe(replace(corpus, recordings=tuple(made[:3]))).patient_auroc is None
    assert "patient alone" not in printed(replace(corpus, recordings=tuple(made[:3])))


def test_a_corpus_without_cycles_ages_or_parts_is_described(corpus: Corpus) -> None:
    bare = replace(corpus, recordings=(recording("b", (), label="poor quality"),))
    text = printed(bare)
    assert "0 annotated cycles" in text and "ages unknown" in text and "part" not in text.replace("apart", "")


def test_made_corpus_needs_no_audio(tmp_path: Path) -> None:
    root = make_sprsound(tmp_path, patients=3, part="train")
    with_audio = describe(load_corpus("sprsound", root))
    for audio in root.rglob("*.wav"):
        audio.unlink()
    without = describe(load_corpus("sprsound", root, audio=False))
    assert without == replace(with_audio, without_audio=6)


@pytest.mark.parametrize(("part", "expected", "shorter"), [("train", 0.83, True), ("intra", 0.88, True)])
def test_sprsound_duration_gives_the_label_away(shared_data: Path, part: str, expected: float, shorter: bool) -> None:
    corpus = load_corpus("sprsound", shared_data / "sprsound", part=part, audio=False)
    described = describe(corpus)
    reference = roc_auc_score(
        [cycle.label != "normal" for cycle in corpus.cycles], [-cycle.duration_seconds for cycle in corpus.cycles]
    )
    assert described.duration_auroc == pytest.approx(reference, abs=1e-9)
    assert described.duration_auroc == pytest.approx(expected, abs=0.02)
    assert described.abnormal_is_shorter is shorter


def test_icbhi_is_described_whole(shared_data: Path) -> None:
    corpus = load_corpus("icbhi", shared_data / "icbhi", audio=False, split="as-published")
    described, text = describe(corpus), printed(corpus)
    assert [count.cycles for count in described.classes] == [3642, 1864, 886, 506]
    assert [(group.name, group.recordings, group.cycles) for group in described.parts] == [
        ("test", 381, 2756),
        ("train", 539, 4142),
    ]
    assert described.without_audio == 909
    assert described.duration_auroc == pytest.approx(0.57, abs=0.005) and not described.abnormal_is_shorter
    assert described.patients_in_train_and_test == ("156", "218") and "156, 218" in text
    assert max(map(len, text.splitlines())) <= 80


def test_labels_of_whole_recordings_are_called_weak_with_what_training_makes_of_them(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "corpus", patients=2)
    assert "weak" not in printed(load_corpus("manifest", manifest, audio=False))
    paths = sorted(path.relative_to(manifest.parent) for path in manifest.parent.rglob("*.wav"))
    manifest.write_text("path,label,patient\n" + "".join(f"{path},wheeze,P\n" for path in paths))
    read = load_corpus("manifest", manifest, audio=False)
    assert describe(read).weak == len(paths) == 4
    said = " ".join(printed(read).split())
    assert "weak labels of 4 recordings: one label for a whole recording need not hold at every moment of it" in said
    assert "Training gives it to crops of 4 to 8 s from anywhere in the recording" in said
