"""Corpora in their real formats, made tiny; the published numbers on the real ones where they are at hand."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import soundfile

from tests.trainer.corpus_maker import make_icbhi, make_manifest, make_recordings, make_sprsound
from trainer.corpora import CorpusError, load_corpus, parts_of
from trainer.corpora.cycle import Corpus, union
from trainer.corpora.manifest import label_of
from trainer.corpora.sprsound import part_of

HEADER = "path,start,end,label,patient\n"


def labels(corpus: Corpus) -> Counter[str]:
    return Counter(cycle.label for cycle in corpus.cycles)


def truth(patients: int = 6, seed: int = 0) -> Counter[str]:
    return Counter(label for made in make_recordings(patients, 2, 9.0, seed) for _, _, label in made.events)


def first_file(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


@pytest.fixture
def sprsound(tmp_path: Path) -> Path:
    return make_sprsound(tmp_path / "sprsound", patients=3)


@pytest.fixture
def icbhi(tmp_path: Path) -> Path:
    return make_icbhi(tmp_path / "icbhi", patients=3)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return make_manifest(tmp_path / "manifest", patients=3)


# --- the real corpora


def test_sprsound_has_its_published_counts(shared_data: Path) -> None:
    train = load_corpus("sprsound", shared_data / "sprsound" / "train")
    assert (len(train.recordings), len(train.cycles), len(train.patients)) == (1949, 6656, 251)
    assert labels(train) == {"normal": 5159, "crackle": 961, "wheeze": 506, "both": 30}
    intra = load_corpus("sprsound", shared_data / "sprsound" / "intra_test")
    assert (len(intra.recordings), len(intra.cycles)) == (379, 1004)
    assert set(intra.patients) <= set(train.patients)
    assert parts_of(train) == ("train",) and parts_of(intra) == ("intra",)


def test_sprsound_takes_a_name_with_a_dotted_age_apart(shared_data: Path) -> None:
    corpus = load_corpus("sprsound", shared_data / "sprsound", audio=False)
    recording = next(item for item in corpus.recordings if item.name == "41283662_3.4_0_p4_2357")
    assert (recording.patient, recording.age_years, recording.site) == ("41283662", 3.4, "p4")
    assert recording.audio is not None and recording.audio.name == "41283662_3.4_0_p4_2357.flac"


def test_sprsound_root_is_split_by_purpose(shared_data: Path) -> None:
    root = shared_data / "sprsound"
    assert len(load_corpus("sprsound", root, purpose="fit").recordings) == 1949
    assert len(load_corpus("sprsound", root, purpose="evaluate").recordings) == 379


def test_icbhi_has_its_published_counts(shared_data: Path) -> None:
    corpus = load_corpus("icbhi", shared_data / "icbhi", audio=False, split="as-published")
    assert len(corpus.cycles) == 6898
    assert labels(corpus) == {"normal": 3642, "crackle": 1864, "wheeze": 886, "both": 506}
    train, test = (
        load_corpus("icbhi", shared_data / "icbhi", audio=False, split="as-published", part=part)
        for part in ("train", "test")
    )
    assert (len(train.recordings), len(test.recordings)) == (539, 381)
    assert (len(train.cycles), len(test.cycles)) == (4142, 2756)
    assert set(train.patients) & set(test.patients) == {"156", "218"}
    assert any("226_1b1_Pl_sc_Meditron" in note and "226_1b1_Pl_sc_LittC2SE" in note for note in corpus.notes)
    renamed = next(item for item in corpus.recordings if item.name == "226_1b1_Pl_sc_LittC2SE")
    assert (renamed.part, renamed.device, renamed.age_years) == ("train", "LittC2SE", 4)


def test_icbhi_official_keeps_patients_apart(shared_data: Path) -> None:
    corpus = load_corpus("icbhi", shared_data / "icbhi", audio=False)
    train, test = (load_corpus("icbhi", shared_data / "icbhi", audio=False, part=part) for part in ("train", "test"))
    assert not set(train.patients) & set(test.patients)
    assert (len(train.recordings), len(test.recordings)) == (526, 381)
    assert any("156, 218" in note and "13 training recordings" in note for note in corpus.notes)


def test_icbhi_recordings_at_hand_are_90_normal_and_15_abnormal_cycles(shared_data: Path) -> None:
    with pytest.raises(CorpusError, match=r"has no wav or flac.*--lenient.*more"):
        load_corpus("icbhi", shared_data / "icbhi")
    corpus = load_corpus("icbhi", shared_data / "icbhi" / "ICBHI_final_database", lenient=True)
    assert len(corpus.recordings) == 11
    assert labels(corpus)["normal"] == 90 and len(corpus.cycles) == 105
    assert sum(note.startswith("left out (") for note in corpus.notes) == 920 - 13 - 11


# --- SPRSound


def test_sprsound_reads_what_was_written(sprsound: Path) -> None:
    corpus = load_corpus("sprsound", sprsound)
    assert labels(corpus) == truth(3, seed=100)
    assert len(corpus.patients) == 3 and len(corpus.recordings) == 6 and corpus.notes == ()
    made = next(iter(make_recordings(3, 2, 9.0, 100)))
    recording = corpus.recordings[0]
    assert recording.label == made.label and recording.age_years == 3.0 and recording.device == "Yunting II"
    assert [cycle.start_seconds for cycle in recording.cycles] == pytest.approx([event[0] for event in made.events])
    assert recording.cycles[0].duration_seconds == pytest.approx(made.events[0][1] - made.events[0][0])


def test_sprsound_published_layout_reads_as_the_flat_one(tmp_path: Path) -> None:
    corpora = []
    layouts: tuple[Literal["flat", "published"], ...] = ("flat", "published")
    for layout in layouts:
        root = tmp_path / layout
        for part in ("train", "intra", "inter"):
            make_sprsound(root, patients=2, seconds=5.0, part=part, layout=layout)
        corpora.append(load_corpus("sprsound", root))
    flat, published = corpora
    assert parts_of(published) == ("inter", "intra", "train")
    assert {(r.name, r.part, r.cycles) for r in flat.recordings} == {
        (r.name, r.part, r.cycles) for r in published.recordings
    }
    assert all(recording.audio is not None for recording in published.recordings)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("SPRSound/train_json/a.json", "train"),
        ("train2022_json/a.json", "train"),
        ("my train set/test_json/inter_test_json/a.json", "inter"),
        ("test_json/a.json", "test"),
        ("latest/pretrained/a.json", ""),
        ("a.json", ""),
    ],
)
def test_part_comes_from_words_of_the_innermost_folder(tmp_path: Path, path: str, part: str) -> None:
    assert part_of(tmp_path / "corpus" / path, tmp_path / "corpus") == part
    assert part_of(tmp_path / "intra_test" / "a.json", tmp_path / "intra_test") == "intra"


def test_flac_wav_and_numbers_as_times_are_read_too(sprsound: Path) -> None:
    wav = first_file(sprsound, "*.wav")
    samples, rate = soundfile.read(wav)
    soundfile.write(wav.with_suffix(".flac"), samples, rate)  # the same sound twice is no contradiction
    annotation = first_file(sprsound, "*.json")
    content = json.loads(annotation.read_text())
    for event in content["event_annotation"]:
        event["start"], event["end"] = int(event["start"]), float(event["end"])
    before = load_corpus("sprsound", sprsound, audio=False).cycles
    annotation.write_text(json.dumps(content), encoding="utf-8-sig")
    assert load_corpus("sprsound", sprsound).cycles == before
    wav.unlink()
    audio = load_corpus("sprsound", sprsound).recordings[0].audio
    assert audio is not None and audio.suffix == ".flac"


def test_poor_quality_has_no_cycles_and_its_own_label(sprsound: Path) -> None:
    annotation = first_file(sprsound, "*.json")
    annotation.write_text('{"record_annotation": "Poor Quality", "event_annotation": []}')
    recording = load_corpus("sprsound", sprsound).recordings[0]
    assert recording.label == "poor quality" and recording.cycles == ()


def rewrite(**changes: object) -> Callable[[Path, Path], None]:
    def damage(annotation: Path, _audio: Path) -> None:
        annotation.write_text(json.dumps(json.loads(annotation.read_text()) | changes))

    return damage


def event(start: object, end: object, kind: object = "Normal", record: str = "Normal") -> Callable[[Path, Path], None]:
    return rewrite(record_annotation=record, event_annotation=[{"start": start, "end": end, "type": kind}])


def text(content: str) -> Callable[[Path, Path], None]:
    def damage(annotation: Path, _audio: Path) -> None:
        annotation.write_text(content)

    return damage


def binary(annotation: Path, _audio: Path) -> None:
    annotation.write_bytes(b"\x89PNG\x00\x9f")


def empty_audio(_annotation: Path, audio: Path) -> None:
    audio.write_bytes(b"")


def cut_audio(_annotation: Path, audio: Path) -> None:
    audio.write_bytes(audio.read_bytes()[:2000])


def short_audio(_annotation: Path, audio: Path) -> None:
    soundfile.write(audio, np.zeros(8000), 8000)


def second_copy(name: str) -> Callable[[Path, Path], None]:
    def damage(annotation: Path, audio: Path) -> None:
        source = {"annotation": annotation, "audio": audio}[name]
        copy = source.parent / "again" / source.name
        copy.parent.mkdir()
        copy.write_bytes(source.read_bytes() + b" ")

    return damage


SPRSOUND_DAMAGE = {
    "end before start": (event("900", "400"), r"event 1: ends at 0.4 s, before its start"),
    "zero length": (event("400", "400"), r"event 1: zero length"),
    "negative start": (event("-5", "400"), r"event 1: starts before the recording"),
    "NaN": (event("NaN", "400"), r"event 1: start or end is not a finite number"),
    "not a time": (event("soon", "400"), r"event 1: 'soon' is not a time"),
    "no time": (event(None, "400"), r"event 1: None is not a time"),
    "unknown type": (event("0", "400", "Purr"), r"event 1: unknown type 'Purr'; known are Normal"),
    "unknown record": (rewrite(record_annotation="Fine"), r"unknown record_annotation 'Fine'"),
    "normal with wheeze": (event("0", "400", "Wheeze"), r"record is Normal but its events are wheeze"),
    "wheeze with crackle": (event("0", "400", "Fine Crackle", "CAS"), r"record is CAS but its events are crackle"),
    "poor quality with event": (event("0", "400", record="Poor Quality"), r"Poor Quality with 1 events"),
    "no events": (rewrite(record_annotation="DAS", event_annotation=[]), r"DAS without any event"),
    "event without end": (rewrite(event_annotation=[{"start": "0"}]), r"event 1: needs start, end and type"),
    "empty annotation": (text(" \n"), r"the annotation is empty"),
    "broken JSON": (text('{"record_annotation": "Nor'), r"not JSON"),
    "other JSON": (text("[1, 2]"), r"lacks event_annotation"),
    "not text": (binary, r"not UTF-8"),
    "audio missing": (lambda _, audio: audio.unlink(), r"has no wav or flac"),
    "annotation missing": (lambda annotation, _: annotation.unlink(), r"\.wav: has no annotation"),
    "audio empty": (empty_audio, r"\.wav: the file is empty"),
    "audio truncated": (cut_audio, r"\.wav: truncated"),
    "audio shorter than its events": (short_audio, r"\.wav: lasts 1\.00 s, its annotation reaches"),
    "two annotations": (second_copy("annotation"), r"\.json: differs from"),
    "two recordings": (second_copy("audio"), r"\.wav: differs from"),
}


@pytest.mark.parametrize("case", SPRSOUND_DAMAGE)
def test_sprsound_damage_is_named_or_counted(sprsound: Path, case: str) -> None:
    damage, message = SPRSOUND_DAMAGE[case]
    annotation = first_file(sprsound, "*.json")
    damage(annotation, annotation.with_suffix(".wav"))
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus("sprsound", sprsound)
    assert annotation.stem in str(caught.value) and "\n" not in str(caught.value)
    corpus = load_corpus("sprsound", sprsound, lenient=True)
    assert annotation.stem not in {recording.name for recording in corpus.recordings} and len(corpus.recordings) == 5
    assert len([note for note in corpus.notes if re.match(r"left out \(1 of \d\): ", note)]) == 1
    assert annotation.stem in "".join(corpus.notes)


def test_a_foreign_name_is_an_error(sprsound: Path) -> None:
    first_file(sprsound, "*.json").rename(sprsound / "train" / "notes_3.4.json")
    with pytest.raises(CorpusError, match=r"notes_3\.4\.json: not an SPRSound name"):
        load_corpus("sprsound", sprsound, audio=False)


def test_one_recording_in_two_parts_is_an_error(sprsound: Path) -> None:
    annotation = first_file(sprsound, "*.json")
    (sprsound / "intra_test").mkdir()
    shutil.copy(annotation, sprsound / "intra_test")
    with pytest.raises(CorpusError, match="another part"):
        load_corpus("sprsound", sprsound)


def test_a_mac_leaves_no_trace(sprsound: Path) -> None:
    (sprsound / "train" / "._40000000_3.0_0_p1_100.json").write_bytes(b"\x00\x05\x16\x07")
    assert len(load_corpus("sprsound", sprsound).recordings) == 6


def test_damage_in_another_part_does_not_stop_a_fit(sprsound: Path) -> None:
    make_sprsound(sprsound, patients=2, part="intra")
    first_file(sprsound / "intra_test", "*.json").write_text("")
    first_file(sprsound / "intra_test", "*.wav").unlink()
    assert len(load_corpus("sprsound", sprsound, purpose="fit").recordings) == 6
    with pytest.raises(CorpusError, match="intra_test"):
        load_corpus("sprsound", sprsound, purpose="evaluate")


# --- parts


def test_parts_follow_the_purpose(tmp_path: Path) -> None:
    for part in ("train", "intra", "inter"):
        make_sprsound(tmp_path, patients=2, seconds=5.0, part=part)

    def taken(part: str | None, purpose: Literal["fit", "evaluate"]) -> tuple[str, ...]:
        return parts_of(load_corpus("sprsound", tmp_path, part=part, purpose=purpose))

    assert len(load_corpus("sprsound", tmp_path).recordings) == 12
    assert taken(None, "fit") == ("train",)
    assert taken(None, "evaluate") == taken("test", "evaluate") == ("inter", "intra")
    assert taken("inter", "evaluate") == ("inter",) and taken("intra", "fit") == ("intra",)
    assert taken("all", "fit") == ("inter", "intra", "train")
    with pytest.raises(CorpusError, match="unknown part 'validation'"):
        taken("validation", "fit")


def test_fit_never_takes_a_test_part_by_itself(tmp_path: Path) -> None:
    root = make_sprsound(tmp_path, patients=2, part="intra") / "intra_test"
    with pytest.raises(CorpusError, match="fit takes the train part, but this holds intra"):
        load_corpus("sprsound", root, purpose="fit")
    with pytest.raises(CorpusError, match=r"nothing of part 'train' \(this holds intra\)"):
        load_corpus("sprsound", root, part="train", purpose="fit")


def test_a_corpus_without_parts_is_taken_whole(manifest: Path) -> None:
    corpus = load_corpus("manifest", manifest)
    assert parts_of(corpus) == ("",)
    assert load_corpus("manifest", manifest, purpose="fit") == load_corpus("manifest", manifest, purpose="evaluate")


# --- ICBHI


@pytest.mark.parametrize("inner", [False, True])
def test_icbhi_reads_what_was_written_from_either_folder(icbhi: Path, inner: bool) -> None:
    corpus = load_corpus("icbhi", icbhi / "ICBHI_final_database" if inner else icbhi)
    assert labels(corpus) == truth(3)
    assert Counter(recording.part for recording in corpus.recordings) == {"train": 4, "test": 2}
    assert [recording.age_years for recording in corpus.recordings] == [None, None, 20, 20, 21, 21]
    first = corpus.recordings[0]
    assert (first.name, first.device, first.site) == ("101_1b1_Al_sc_Meditron", "Meditron", "Al")


def test_icbhi_names_and_drops_patients_on_both_sides(icbhi: Path) -> None:
    split = icbhi / "ICBHI_challenge_train_test.txt"
    split.write_text(split.read_text().replace("102_2b1_Pr_sc_LittC2SE\ttrain", "102_2b1_Pr_sc_LittC2SE\ttest"))
    official, published = (load_corpus("icbhi", icbhi, split=name) for name in ("official", "as-published"))
    assert len(official.recordings) == 5 and len(published.recordings) == 6
    assert "patients 102" in official.notes[0] and "1 training recordings are left out" in official.notes[0]
    assert "patients 102" in published.notes[0] and "kept" in published.notes[0]


def test_icbhi_known_misnaming_is_told_and_no_other_is_taken(icbhi: Path) -> None:
    database, split = icbhi / "ICBHI_final_database", icbhi / "ICBHI_challenge_train_test.txt"
    for suffix in (".txt", ".wav"):
        (database / f"101_1b1_Al_sc_Meditron{suffix}").rename(database / f"226_1b1_Pl_sc_LittC2SE{suffix}")
    listed = split.read_text()
    split.write_text(listed.replace("101_1b1_Al_sc_Meditron", "226_1b1_Pl_sc_Meditron"))
    corpus = load_corpus("icbhi", icbhi)
    assert "226_1b1_Pl_sc_Meditron" in corpus.notes[0] and corpus.recordings[-1].part == "train"
    split.write_text(listed.replace("101_1b1_Al_sc_Meditron", "226_1b1_Pl_sc_Litt3200"))
    with pytest.raises(CorpusError, match="names 226_1b1_Pl_sc_Litt3200, which has no"):
        load_corpus("icbhi", icbhi)
    split.write_text(listed.replace("101_1b1_Al_sc_Meditron\ttrain\n", ""))
    with pytest.raises(CorpusError, match=r"226_1b1_Pl_sc_LittC2SE\.txt: .* does not name it"):
        load_corpus("icbhi", icbhi)


def test_icbhi_without_its_split_has_no_parts_and_is_not_fitted_by_accident(tmp_path: Path) -> None:
    root = make_icbhi(tmp_path, patients=3, with_split=False)
    corpus = load_corpus("icbhi", root)
    assert parts_of(corpus) == ("",) and "no ICBHI_challenge_train_test.txt" in corpus.notes[0]
    with pytest.raises(CorpusError, match="no official split file"):
        load_corpus("icbhi", root, purpose="fit")
    assert len(load_corpus("icbhi", root, purpose="fit", part="all").recordings) == 6


ICBHI_DAMAGE = {
    "end before start": ("0.5\t0.2\t0\t0", r"line 1: ends at 0.2 s, before its start"),
    "zero length": ("0.5\t0.5\t0\t0", r"line 1: zero length"),
    "unknown label": ("0.5\t0.9\t0\t2", r"line 1: unknown label 0 2"),
    "missing column": ("0.5\t0.9\t0", r"line 1: has 3 columns"),
    "not a time": ("0.5\tlate\t0\t0", r"line 1: 'late' is not a time"),
    "empty": ("", r"the annotation is empty"),
    "past the end": ("0.5\t9.2\t0\t0", r"\.wav: lasts 9\.00 s, its annotation reaches 9\.20 s"),
}


@pytest.mark.parametrize("case", ICBHI_DAMAGE)
def test_icbhi_damage_is_named_or_counted(icbhi: Path, case: str) -> None:
    content, message = ICBHI_DAMAGE[case]
    (icbhi / "ICBHI_final_database" / "102_1b1_Al_sc_LittC2SE.txt").write_text(content)
    with pytest.raises(CorpusError, match=r"102_1b1_Al_sc_LittC2SE.*" + message.replace(r"\.wav: ", "")):
        load_corpus("icbhi", icbhi)
    corpus = load_corpus("icbhi", icbhi, lenient=True)
    assert len(corpus.recordings) == 5 and any("102_1b1_Al_sc_LittC2SE" in note for note in corpus.notes)


def test_an_annotation_may_reach_a_rounding_past_the_audio(icbhi: Path) -> None:
    (icbhi / "ICBHI_final_database" / "102_1b1_Al_sc_LittC2SE.txt").write_text("0.5\t9.05\t0\t0")
    assert len(load_corpus("icbhi", icbhi).recordings) == 6


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("ICBHI_challenge_train_test.txt", "101_1b1_Al_sc_Meditron\tvalidation\n", "line 1: needs"),
        ("ICBHI_challenge_train_test.txt", "x\ttrain\nx\ttest\n", "line 2: x is in train and test"),
        ("demographic_info.txt", "101 old F NA NA NA\n", "line 1: the second column"),
    ],
)
def test_icbhi_broken_tables_are_named(icbhi: Path, file: str, content: str, message: str) -> None:
    (icbhi / file).write_text(content)
    with pytest.raises(CorpusError, match=f"{file}: {message}"):
        load_corpus("icbhi", icbhi, lenient=True)


# --- manifest


def test_manifest_reads_what_was_written(manifest: Path) -> None:
    for data in (manifest, manifest.parent):
        corpus = load_corpus("manifest", data)
        assert labels(corpus) == truth(3)
        assert corpus.patients == ("P0", "P1", "P2") and len(corpus.recordings) == 6
    first = corpus.recordings[0]
    assert (first.name, first.device, first.site) == ("audio/visit 0/patient.0", "Littmann 3200", "back")
    assert first.age_years == 4.5 and first.label == "normal"


def test_manifest_needs_the_five_columns_only(manifest: Path) -> None:
    manifest.write_text(f"\ufeff{HEADER}audio/visit 0/patient.0.wav, 0.5, 1.5,both,P\n\n", encoding="utf-8")
    corpus = load_corpus("manifest", manifest)
    assert labels(corpus) == {"both": 1}
    assert (corpus.recordings[0].age_years, corpus.recordings[0].part) == (None, "")


def test_manifest_parts_are_taken(manifest: Path) -> None:
    rows = "audio/visit 0/patient.0.wav,0.5,1.5,both,P,train\naudio/visit 0/patient.1.wav,0.5,1.5,normal,Q,test\n"
    manifest.write_text("path,start,end,label,patient,part\n" + rows)
    assert load_corpus("manifest", manifest, purpose="fit").patients == ("P",)
    assert load_corpus("manifest", manifest, purpose="evaluate").patients == ("Q",)


def test_manifest_rows_without_times_label_whole_recordings_and_may_say_poor_quality(manifest: Path) -> None:
    rows = "audio/visit 0/patient.0.wav,Crackles,P\naudio/visit 0/patient.1.wav,Poor_Quality,Q\n"
    manifest.write_text("path,label,patient\n" + rows)
    labelled, poor = load_corpus("manifest", manifest).recordings
    assert (labelled.label, labelled.grain, len(labelled.cycles)) == ("crackle", "recording", 1)
    assert (poor.label, poor.cycles) == ("poor quality", ())
    manifest.write_text(HEADER + GOOD_ROW + "audio/visit 0/patient.1.wav,,,poor,P1\n")
    grains = {one.grain for one in load_corpus("manifest", manifest).recordings}
    assert grains == {"cycle"}, "a poor recording has no label that could be weak"


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("Normal", "normal"),
        ("N", "normal"),
        ("fine crackles", "crackle"),
        ("coarse-crackle", "crackle"),
        ("Rhonchi", "wheeze"),
        ("STRIDOR", "wheeze"),
        ("Wheeze+Crackle", "both"),
        ("crackles and wheezes", "both"),
        ("CAS & DAS", "both"),
        ("rales / fine crackles", "crackle"),
        ("Poor Quality", "poor quality"),
        ("noise", "poor quality"),
        ("normal + wheeze", None),
        ("normal, normal", "normal"),
        ("purr", None),
        ("wheeze +", None),
        ("", None),
    ],
)
def test_labels_are_known_by_their_usual_names(words: str, label: str | None) -> None:
    assert label_of(words) == label


GOOD_ROW = "audio/visit 0/patient.0.wav,0.5,1.5,normal,P0\n"
MANIFEST_DAMAGE = {
    "end before start": ("audio/visit 0/patient.1.wav,2,1,normal,P1", "line 3: ends at 1 s, before its start"),
    "zero length": ("audio/visit 0/patient.1.wav,2,2,normal,P1", "line 3: zero length"),
    "unknown label": ("audio/visit 0/patient.1.wav,1,2,purr,P1", "line 3: unknown label 'purr'; known are normal"),
    "poor with times": ("audio/visit 0/patient.1.wav,1,2,poor,P1", "line 3: poor quality is of a whole recording"),
    "not a time": ("audio/visit 0/patient.1.wav,1,,normal,P1", "line 3: end: '' is not a time"),
    "no patient": ("audio/visit 0/patient.1.wav,1,2,normal,", "line 3: no patient"),
    "no recording": ("audio/visit 0/patient.9.wav,1,2,normal,P1", "patient.9 is annotated but has no wav or flac"),
    "not audio": ("audio/visit 0/patient.1.mp3,1,2,normal,P1", "line 3: path .*patient.1.mp3' is no wav or flac"),
    "past the end": ("audio/visit 0/patient.1.wav,1,20,normal,P1", "lasts 9.00 s, its annotation reaches 20.00 s"),
}


@pytest.mark.parametrize("case", MANIFEST_DAMAGE)
def test_manifest_damage_is_named_or_counted(manifest: Path, case: str) -> None:
    row, message = MANIFEST_DAMAGE[case]
    manifest.write_text(HEADER + GOOD_ROW + row + "\n")
    with pytest.raises(CorpusError, match=message):
        load_corpus("manifest", manifest)
    corpus = load_corpus("manifest", manifest, lenient=True)
    assert len(corpus.recordings) == 1 and corpus.notes[0].startswith("left out (1 of 1): ")


def test_manifest_contradictions_leave_the_whole_recording_out(manifest: Path) -> None:
    other = "audio/visit 0/patient.1.wav,0.5,1.5,normal,P1\n"
    manifest.write_text(HEADER + GOOD_ROW + other + GOOD_ROW.replace("P0", "P7"))
    with pytest.raises(CorpusError, match=r"manifest\.csv: line 4: patient P7 of .*, but P0 in a row before"):
        load_corpus("manifest", manifest)
    assert load_corpus("manifest", manifest, lenient=True).patients == ("P1",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,start,end,label,pateint\n", "line 1: unknown column 'pateint'; did you mean 'patient'"),
        ("path,start,end,label\n", "line 1: lacks the column 'patient'"),
        ("path,start,start,end,label,patient\n", "line 1: names a column twice"),
        (HEADER, "has no rows"),
        ("", "is empty"),
        (HEADER + "a.wav,1,2,normal\n", "line 2: has 4 cells under 5 columns"),
        ("path,start,end,label,patient,age\na.wav,1,2,normal,P,old\n", "line 2: age 'old' is no number of years"),
        ("path,start,end,label,patient,part\na.wav,1,2,normal,P,dev\n", "line 2: unknown part 'dev'"),
    ],
)
def test_manifest_of_the_wrong_shape_is_an_error(manifest: Path, content: str, message: str) -> None:
    manifest.write_text(content)
    with pytest.raises(CorpusError, match=message):
        load_corpus("manifest", manifest)


# --- all


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("icbhi", "expected DIR/ICBHI_final_database/NAME.txt beside NAME.wav"),
        ("sprsound", "expected DIR/train_json/NAME.json, DIR/train_wav/NAME.wav"),
        ("kauh", r"expected the published names, DIR/BP1_Asthma,I E W,P L L,70,M\.wav"),
        ("manifest", r"expected DIR/manifest\.csv with the columns path,label,patient"),
    ],
)
def test_a_corpus_of_another_layout_shows_the_expected_one(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "notes.pdf").write_bytes(b"x")
    with pytest.raises(CorpusError, match=expected):
        load_corpus(name, tmp_path)


@pytest.mark.parametrize("name", ["icbhi", "sprsound", "manifest"])
def test_a_folder_that_is_missing_or_empty_is_named(name: str, tmp_path: Path) -> None:
    for data in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CorpusError, match=re.escape(str(data))):
            load_corpus(name, data)


def test_nothing_left_is_an_error_even_when_lenient(sprsound: Path) -> None:
    for audio in sprsound.rglob("*.wav"):
        audio.unlink()
    assert len(load_corpus("sprsound", sprsound, audio=False).recordings) == 6
    with pytest.raises(CorpusError, match="no recording is left of 6"):
        load_corpus("sprsound", sprsound, lenient=True)


def test_unknown_corpus_and_split_name_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="unknown corpus 'icbh'; known are icbhi, sprsound, kauh, manifest"):
        load_corpus("icbh", tmp_path)
    with pytest.raises(CorpusError, match="unknown split 'own'; known are official, as-published"):
        load_corpus("icbhi", tmp_path, split="own")


def test_reading_and_describing_need_no_torch(repository: Path) -> None:
    names = ", ".join(f"trainer.corpora.{name}" for name in ("describe", "icbhi", "sprsound", "manifest"))
    code = f"import sys, {names}\n"
    subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], cwd=repository, check=True)


def test_union_of_labels() -> None:
    assert union([]) == union(["normal"]) == "normal"
    assert union(["crackle", "normal"]) == "crackle" and union(["wheeze"]) == "wheeze"
    assert union(["crackle", "wheeze"]) == union(["both", "normal"]) == "both"
