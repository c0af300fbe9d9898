"""Audacity label tracks and Raven selection tables: to a manifest that reads as they were written."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import RunCli
from trainer.corpora import CorpusError, load_corpus
from trainer.corpora.label_tracks import Imported, Rules, pattern_of, read_tracks, words_of, write_manifest

AUDACITY = "0.500000\t1.750000\tnormal\n\\\t100.0\t900.0\n2,0\t3,5\tFine crackles\n4.0\t5.0\tcough\n5.0\t6.0\tpoor\n"
RAVEN = """Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation
1\tWaveform 1\t1\t0.5\t1.75\t0\t2000\tnormal
1\tSpectrogram 1\t1\t0.5\t1.75\t0\t2000\tnormal
2\tSpectrogram 1\t1\t2.0\t3.5\t0\t2000\tFine crackles
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recordings of 8 s, without labels."""
    (tmp_path / "day 1").mkdir()
    for name in ("7_left", "8_left"):
        noise = np.random.default_rng(1).normal(0, 0.1, 32_000)
        soundfile.write(tmp_path / "day 1" / f"{name}.wav", noise, 4000)
    return tmp_path


def imported(data: Path, form: str = "audacity", patient: str = r"(\d+)_", *words: str) -> Imported:
    assert form in ("audacity", "raven")
    return read_tracks(
        data, "raven" if form == "raven" else "audacity", Rules(pattern_of(patient), words_of(words)), data
    )


def spans(read: Imported) -> list[tuple[str, str, str]]:
    return [(row["start"], row["end"], row["label"]) for row in read.rows]


def test_a_label_track_becomes_a_manifest(folder: Path) -> None:
    (folder / "day 1" / "7_left.txt").write_text(AUDACITY)
    read = imported(folder, "audacity", r"(\d+)_", "cough=")
    assert spans(read) == [("0.5", "1.75", "normal"), ("2.0", "3.5", "crackle")]
    assert not read.problems and read.left_out == 2, "the cough, and the stretch of poor quality"
    write_manifest(folder / "manifest.csv", read.rows)
    corpus = load_corpus("manifest", folder)
    assert corpus.patients == ("7",) and [cycle.label for cycle in corpus.cycles] == ["normal", "crackle"]
    assert corpus.recordings[0].audio == folder / "day 1" / "7_left.wav"
    with pytest.raises(CorpusError, match="exists already"):
        write_manifest(folder / "manifest.csv", read.rows)


def test_a_recording_of_poor_quality_alone_has_one_row_without_times(folder: Path) -> None:
    (folder / "day 1" / "7_left.txt").write_text("0\t4\tpoor\n4\t8\tnoise\n")
    assert spans(imported(folder)) == [("", "", "poor quality")]


@pytest.mark.parametrize("name", ["7_left.Table.1.selections.txt", "7_left.selections.txt", "7_left.txt"])
def test_a_selection_table_has_each_selection_once(folder: Path, name: str) -> None:
    (folder / "day 1" / name).write_text(RAVEN)
    assert spans(imported(folder, "raven")) == [("0.5", "1.75", "normal"), ("2.0", "3.5", "crackle")]


def test_a_table_of_several_files_names_each_and_where_it_begins_there(folder: Path) -> None:
    table = "Begin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tLabel\n"
    rows = "1.0\t2.0\t7_left.wav\t1.0\tnormal\n9.5\t11.0\t8_left.wav\t1.5\twheeze\n"
    (folder / "all.txt").write_text(table + rows)
    read = imported(folder, "raven")
    assert [(row["path"], row["patient"]) for row in read.rows] == [
        ("day 1/7_left.wav", "7"),
        ("day 1/8_left.wav", "8"),
    ]
    assert spans(read) == [("1.0", "2.0", "normal"), ("1.5", "3.0", "wheeze")]


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        (
            "audacity",
            "0\t1\tnormal\n1\t2\tpurr\n",
            "7_left.txt:2: unknown label 'purr'; known are .* --label 'purr=CLASS'",
        ),
        ("audacity", "0\t1\tnormal\n\n2\t1\tnormal\n", "7_left.txt:3: ends at 1 s, before its start"),
        ("audacity", "0\t1\tnormal\n2\t2\tnormal\n", "7_left.txt:2: zero length"),
        ("audacity", "0\t1\tnormal\nnot a track\n", "7_left.txt:2: 'not a track' is not a time"),
        ("raven", RAVEN.replace("2.0\t3.5", "two\t3.5"), "7_left.txt:4: 'two' is not a time"),
        ("raven", AUDACITY, "7_left.txt:1: no selection table: needs the columns 'Begin Time"),
        ("raven", RAVEN + "3\n", "7_left.txt:5: '' is not a time"),
    ],
)
def test_a_bad_line_is_named_and_the_others_stay(folder: Path, form: str, text: str, message: str) -> None:
    (folder / "day 1" / "7_left.txt").write_text(text)
    (folder / "day 1" / "8_left.txt").write_text(RAVEN if form == "raven" else "0\t1\tnormal\n")
    read = imported(folder, form)
    assert len(read.problems) == 1 and read.rows[-1]["patient"] == "8"
    with pytest.raises(CorpusError, match=message):
        raise CorpusError(read.problems[0].message)


def test_what_belongs_to_no_recording_or_patient_is_named(folder: Path) -> None:
    (folder / "day 1" / "9_left.txt").write_text("0\t1\tnormal\n")
    (folder / "day 1" / "7_left.txt").write_text("0\t1\tnormal\n")
    (problem,) = imported(folder).problems
    assert problem.message.endswith(
        "9_left.txt:1: no recording 9_left.wav or .flac for it; put one beside the label file"
    )
    first = imported(folder, "audacity", "(child.)").problems[0]
    assert first.message.endswith(": --patient '(child.)' finds no patient in day 1/7_left.wav; correct it")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pattern_of("("), "no regular expression"),
        (lambda: words_of(["purr"]), "'purr' is no WORD=CLASS"),
        (lambda: words_of(["purr=cat"]), "'purr=cat' is no WORD=CLASS"),
    ],
)
def test_options_that_mean_nothing_are_refused(call: "object", message: str) -> None:
    assert callable(call)
    with pytest.raises(CorpusError, match=message):
        call()


def test_the_command_writes_the_manifest_and_says_what_is_next(folder: Path, run_cli: RunCli) -> None:
    (folder / "day 1" / "7_left.txt").write_text("0\t1\tgrunt\n1\t2\tsquawk\n3\tx\tnormal\n")
    order = ("data", "import", ".", "--format", "audacity", "--patient", r"\d+", "--out", "mine.csv", "--label")
    refused = run_cli("trainer", *order, "grunt=wheeze")
    assert refused.returncode == 2 and not (folder / "mine.csv").exists()
    assert "7_left.txt:2: unknown label 'squawk'" in refused.stderr and "(1 more like it)" in refused.stderr
    done = run_cli("trainer", *order, "grunt=wheeze", "--label", "squawk=both", "--lenient")
    assert done.returncode == 0, done.stderr
    assert "left out (1 of 1): day 1/7_left.txt:3: 'x' is not a time" in done.stderr
    assert done.stdout == "mine.csv: 2 rows\nnext: respsam-trainer data describe --corpus manifest --data mine.csv\n"
    assert [cycle.label for cycle in load_corpus("manifest", folder / "mine.csv").cycles] == ["wheeze", "both"]
