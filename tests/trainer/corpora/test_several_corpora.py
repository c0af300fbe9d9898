"""Several corpora as one: who is who, what counts once, and what a folder of recordings may hold beside them."""

import csv
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.trainer.corpus_maker import make_icbhi, make_manifest, make_sprsound
from trainer.corpora import CorpusError, Source, load_corpora, load_corpus
from trainer.corpora.audio_cache import open_corpora
from trainer.corpora.cycle import stage_of_life

ROWS = [
    ("a.wav", "0.5", "1.5", "normal", "P1"),
    ("a.wav", "2", "3", "crackle", "P1"),
    ("b.wav", "0.5", "1.5", "wheeze", "P2"),
]
HEADER = ("path", "start", "end", "label", "patient")


def sound(path: Path, seed: int = 0, seconds: float = 4.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 4000))
    soundfile.write(path, samples, 4000, subtype="PCM_16")
    return path


def table(folder: Path, text: str) -> Path:
    """A manifest with its two recordings."""
    for seed, name in enumerate("ab"):
        sound(folder / f"{name}.wav", seed)
    (folder / "manifest.csv").write_text(text)
    return folder


def lines(rows: list[tuple[str, ...]], separator: str = ",") -> str:
    return "".join(f"{separator.join(row)}\n" for row in rows)


# --- who is who


def test_patients_of_different_corpora_never_collide_and_of_one_corpus_are_the_same(tmp_path: Path) -> None:
    one, two = tmp_path / "2022", tmp_path / "2023"
    make_sprsound(one, patients=2)
    make_sprsound(two, patients=3, seed=50, part="intra")
    manifest = make_manifest(tmp_path / "manifest", patients=2)
    text = manifest.read_text().replace(",P0,", ",40000000,").replace(",P1,", ",40000001,")
    manifest.write_text(text)
    sources = [Source("sprsound", one), Source("manifest", manifest), Source("sprsound", two)]
    corpus = load_corpora(sources)
    assert corpus.patients == (
        *(f"manifest/4000000{n}" for n in range(2)),
        *(f"sprsound/4000000{n}" for n in range(3)),
    )
    assert corpus.name == "sprsound+manifest" and corpus.where == f"{one} + {manifest} + {two}"
    for recording in corpus.recordings:
        assert recording.name.startswith(f"{recording.corpus}/") and recording.patient.startswith(recording.corpus)
        assert {(cycle.recording, cycle.patient) for cycle in recording.cycles} == {(recording.name, recording.patient)}
    assert {(one.corpus, one.grain) for one in corpus.recordings} == {("sprsound", "event"), ("manifest", "cycle")}
    assert load_corpora([Source("sprsound", one)]).patients == ("sprsound/40000000", "sprsound/40000001")


def test_a_folder_twice_is_refused_however_it_is_written(tmp_path: Path) -> None:
    root = make_sprsound(tmp_path / "a", patients=1)
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(CorpusError, match=r"--corpus sprsound --data .*link is given twice"):
        load_corpora([Source("sprsound", root), Source("sprsound", tmp_path / "link")])


def test_a_recording_in_two_folders_counts_once_or_contradicts_itself(tmp_path: Path) -> None:
    first = make_sprsound(tmp_path / "first", patients=2)
    second = tmp_path / "second"
    shutil.copytree(first, second)
    sources = [Source("sprsound", first), Source("sprsound", second)]
    corpus = load_corpora(sources)
    assert len(corpus.recordings) == 4
    assert any(note.startswith("4 of the recordings are there twice and count once") for note in corpus.notes)
    changed = sorted(second.rglob("*.json"))[0]
    content = json.loads(changed.read_text())
    content["event_annotation"][0]["start"] = "1"
    changed.write_text(json.dumps(content))
    with pytest.raises(CorpusError, match=rf"sprsound/{changed.stem}: annotated .* in .*first than in .*second"):
        load_corpora(sources)
    assert len(load_corpora(sources, lenient=True).recordings) == 3


def test_copies_count_once_and_contradict_only_by_annotation(tmp_path: Path) -> None:
    """A copy may have been renamed by a file manager or by hand."""
    root = make_sprsound(tmp_path, patients=1)
    name = sorted(root.rglob("*.wav"))[0]
    for suffix in (".wav", ".json"):
        path = name.with_suffix("").with_name(name.stem + suffix)
        shutil.copy(path, path.with_name(f"{name.stem} (1){suffix}"))
    corpus = load_corpus("sprsound", root)
    assert len(corpus.recordings) == 2 and corpus.notes[0].startswith("1 copies of a recording")
    assert all(" (1)" not in str(recording.audio) for recording in corpus.recordings)
    for rows, wanted in ((ROWS[:1], 1), ([("a.wav", "0.5", "1.5", "wheeze", "P1")], 0)):
        folder = table(tmp_path / str(wanted), lines([HEADER, *rows, ("c.wav", *ROWS[0][1:])]))
        shutil.copy(folder / "a.wav", folder / "c.wav")
        if wanted:
            assert len(load_corpus("manifest", folder).recordings) == wanted
        else:
            with pytest.raises(CorpusError, match=r"a\.wav: the same sound as .*c\.wav, annotated otherwise"):
                load_corpus("manifest", folder)


def test_rows_twice_count_once_and_contradict_by_label(tmp_path: Path) -> None:
    corpus = load_corpus("manifest", table(tmp_path, lines([HEADER, *ROWS, *ROWS])))
    assert len(corpus.cycles) == 3 and corpus.notes[0].startswith("3 rows repeat another")
    table(tmp_path, lines([HEADER, *ROWS, ("a.wav", "0.5", "1.5", "both", "P1")]))
    with pytest.raises(CorpusError, match="line 5: both of the span that is normal in a row before"):
        load_corpus("manifest", tmp_path)


# --- folders


def test_a_linked_folder_is_entered_once_and_clutter_is_nothing(tmp_path: Path) -> None:
    root = make_sprsound(tmp_path / "corpus", patients=1, layout="published")
    disk = tmp_path / "disk"
    shutil.move(root / "train_wav", disk)
    (root / "train_wav").symlink_to(disk)
    (root / "again").symlink_to(disk)
    (root / "loop").symlink_to(root)
    for name in ("._x.wav", ".DS_Store", "Thumbs.db", "__MACOSX/y.wav"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no sound")
    corpus = load_corpus("sprsound", root)
    assert len(corpus.recordings) == 2 and {one.part for one in corpus.recordings} == {"train"}


def test_a_name_is_one_however_its_accents_are_written(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD")]
    rows = [("a.wav", "0.5", "1.5", "normal", forms[0]), ("a.wav", "2", "3", "wheeze", forms[1])]
    path = sound(tmp_path / f"{forms[1]}.wav", 5)
    table(tmp_path, lines([HEADER, *rows, (f"{forms[0]}.wav", "1", "2", "normal", forms[1])]))
    corpus = load_corpus("manifest", tmp_path)
    assert corpus.patients == (forms[0],) and corpus.recordings[1].audio == path


# --- manifests as people write them


ODD: dict[str, str] = {
    "German Excel": lines([HEADER, *[tuple(cell.replace("0.5", "0,5") for cell in row) for row in ROWS]], ";"),
    "tabs": lines([HEADER, *ROWS], "\t"),
    "upper case": lines([tuple(name.upper() for name in HEADER), *ROWS]),
    "sep line": "sep=;\n" + lines([HEADER, *ROWS], ";"),
    "pandas": lines([("", *HEADER), *[(str(n), *row) for n, row in enumerate(ROWS)]]),
    "pandas again": lines([("Unnamed: 0", *HEADER), *[(str(n), *row) for n, row in enumerate(ROWS)]]),
    "empty columns": lines([(*HEADER, "", ""), *[(*row, "", "") for row in ROWS]]),
    "capital labels": lines([HEADER, *[(*row[:3], row[3].capitalize(), row[4]) for row in ROWS]]),
    "Windows paths": lines([HEADER, *[(f".\\{row[0]}", *row[1:]) for row in ROWS]]),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_table_that_is_unambiguous_is_read(kind: str, tmp_path: Path) -> None:
    plain = load_corpus("manifest", table(tmp_path / "plain", lines([HEADER, *ROWS])))
    read = load_corpus("manifest", table(tmp_path / "odd", ODD[kind]))
    spans = [[(c.start_seconds, c.end_seconds, c.label, c.patient) for c in one.cycles] for one in (plain, read)]
    assert spans[0] == spans[1]


UNICODE_TEXT = lines([HEADER, *ROWS], "\t").replace("\n", "\r\n")  # as Excel calls it


@pytest.mark.parametrize("content", [UNICODE_TEXT.encode("utf-16"), b"\xfe\xff" + UNICODE_TEXT.encode("utf-16-be")])
def test_a_table_in_utf_16_is_read(content: bytes, tmp_path: Path) -> None:
    plain = load_corpus("manifest", table(tmp_path, lines([HEADER, *ROWS])))
    (tmp_path / "manifest.csv").write_bytes(content)
    assert load_corpus("manifest", tmp_path) == plain


@pytest.mark.parametrize(
    "content",
    [
        UNICODE_TEXT.encode("utf-16-le"),  # without its mark
        UNICODE_TEXT.encode("utf-16")[:-1],
        UNICODE_TEXT.encode("utf-32"),
        "Müller".encode("latin-1"),
    ],
)
def test_a_table_in_another_coding_is_one_line(content: bytes, tmp_path: Path) -> None:
    (table(tmp_path, "") / "manifest.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=r"manifest\.csv: cannot be read \(.*; save it as UTF-8") as caught:
        load_corpus("manifest", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("# made by hand\n" + lines([HEADER, *ROWS]), "line 1 reads '# made by hand', which is no header"),
        (lines([("filename", *HEADER[1:])]), "unknown column 'filename'; did you mean 'path'"),
        (lines([(*HEADER, "comment")]), "unknown column 'comment'; the columns are path, .*; remove it"),
        (lines([("path", "", *HEADER[1:])]), "unknown column ''"),
    ],
)
def test_a_table_that_is_not_says_what_it_is(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=said):
        load_corpus("manifest", table(tmp_path, content))


@pytest.mark.parametrize("columns", [("path", "label", "patient"), HEADER])
def test_a_row_without_times_is_one_whole_recording(columns: tuple[str, ...], tmp_path: Path) -> None:
    rows = [dict(zip(HEADER, (f"{name}.wav", "", "", "wheeze", name), strict=True)) for name in "ab"]
    table(tmp_path, "")
    with (tmp_path / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    corpus = load_corpus("manifest", tmp_path)
    assert [(one.grain, one.label) for one in corpus.recordings] == [("recording", "wheeze")] * 2
    assert [(cycle.start_seconds, cycle.end_seconds) for cycle in corpus.cycles] == [(0.0, 4.0)] * 2


def test_a_recording_cannot_have_a_label_as_a_whole_and_cycles(tmp_path: Path) -> None:
    table(tmp_path, lines([HEADER, ROWS[0], ("a.wav", "", "", "normal", "P1")]))
    with pytest.raises(CorpusError, match="line 3: a has a label as a whole and another row"):
        load_corpus("manifest", tmp_path)


# --- SPRSound since 2024


Change = Callable[[Path], None]


def changed(root: Path, rename: Callable[[str], str] = str, key: str | None = "record_annotation") -> None:
    """Other names for all files, and another word for the record's label; None takes it out."""
    for path in sorted(root.rglob("*.*")):
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            record = content.pop("record_annotation")
            path.write_text(json.dumps(content | ({key: record} if key else {})))
        path.rename(path.with_name(rename(path.name)))


@pytest.mark.parametrize("key", [None, "recording_annotation"])
def test_sprsound_without_the_label_of_a_record_has_it_from_its_events(key: str | None, tmp_path: Path) -> None:
    root = make_sprsound(tmp_path, patients=3)
    before = [recording.label for recording in load_corpus("sprsound", root).recordings]
    changed(root, key=key)
    assert [recording.label for recording in load_corpus("sprsound", root).recordings] == before


def test_sprsound_has_sites_to_p8_and_anonymous_patients_each_a_group(tmp_path: Path) -> None:
    root = make_sprsound(tmp_path, patients=3)
    changed(root, lambda name: "_" + name.split("_", 1)[1].replace("_p2_", "_p8_"), key=None)
    corpus = load_corpora([Source("sprsound", root)])
    assert len(corpus.patients) == len(corpus.recordings) == 6
    assert all(recording.anonymous for recording in corpus.recordings)
    assert {recording.site for recording in corpus.recordings} == {"p1", "p8"}
    (note,) = corpus.notes
    assert note.startswith("6 recordings are of anonymous patients") and "cannot be promised" in note


def test_sprsound_says_what_overlaps_and_what_nobody_labelled(tmp_path: Path) -> None:
    root = make_sprsound(tmp_path, patients=1)
    first, second = sorted(root.rglob("*.json"))
    events = json.loads(first.read_text())["event_annotation"]
    events[1]["start"] = str(int(events[0]["end"]) - 10)
    first.write_text(json.dumps({"event_annotation": events}))
    second.write_text(json.dumps({"event_annotation": []}))
    corpus = load_corpus("sprsound", root)
    assert len(corpus.recordings) == 1
    assert any(note.startswith("1 events overlap the event before them") for note in corpus.notes)
    assert any(note.startswith("1 recordings have no event and no label: left out") for note in corpus.notes)


# --- events without sound


def test_a_muted_event_is_named_or_left_out(tmp_path: Path) -> None:
    root = make_icbhi(tmp_path / "corpus", patients=3)
    path = sorted(root.rglob("*.wav"))[0]
    samples, rate = soundfile.read(path)
    start, end = (float(cell) for cell in path.with_suffix(".txt").read_text().split()[:2])
    samples[round(start * rate) : round(end * rate)] = 0.25
    soundfile.write(path, samples, rate)
    sources = [Source("icbhi", root)]
    with pytest.raises(CorpusError, match=rf"{path.name}: \w+ event {start:.2f}-{end:.2f} s has no sound.*--lenient"):
        open_corpora(sources, tmp_path / "cache", part="all")
    whole = load_corpora(sources, part="all")
    corpus, _ = open_corpora(sources, tmp_path / "cache", part="all", lenient=True)
    assert len(corpus.cycles) == len(whole.cycles) - 1 and len(corpus.recordings) == len(whole.recordings)
    assert any(note.startswith("1 events without sound are left out") for note in corpus.notes)


def test_an_age_is_a_stage_of_life() -> None:
    ages = (None, 0.0, 1.9, 2.0, 17.0, 18.0, 83.0)
    stages = ["", "0-1 years", "0-1 years", "2-5 years", "12-17 years", "18-64 years", "65+ years"]
    assert [stage_of_life(age) for age in ages] == stages


def test_a_folder_that_cannot_be_entered_is_named(tmp_path: Path) -> None:
    root = make_sprsound(tmp_path, patients=1)
    closed = root / "closed"
    closed.mkdir()
    closed.chmod(0)
    if os.access(closed, os.R_OK):
        pytest.skip("root enters everything")
    with pytest.raises(CorpusError, match="closed: cannot be entered"):
        load_corpus("sprsound", root)
