"""Opinions as a corpus: what they mean, whose they are, and what is left out; the trainer reads what was written."""

import csv
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from device.store.audio import AudioStore
from device.store.exams import Exams
from device.store.opinions import label_of
from device.store.recorder import Store
from tests.device.conftest import Device, one_error
from tests.device.storing import Certain, beginning, judged, keep
from tests.full_disk import mounted


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """1 and 2 of the exam of kid-17, 3 without a subject, 4 without sound, 5 a demo: each with opinions of 1 and 2."""
    file = tmp_path / "state" / "store.sqlite"
    monkeypatch.setenv("RESPSAM_STORE__PATH", str(file))
    demo = judged(Certain(), 12.0)
    for number in range(1, 6):
        store = Store(beginning(file, demo=number == 5, site="p1", audio=number != 4))
        keep(demo, store)
        store.close()
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE cycles SET class='crackle', probability=0.9 WHERE number = 1")
        database.execute("UPDATE cycles SET class='both', probability=0.9 WHERE number = 2")
        database.execute("UPDATE sessions SET passport='littmann-core' WHERE id = 2")
        database.commit()
    exams = Exams(file)
    for session in range(1, 6):
        exams.give_opinion(session, 1, "agree" if session == 1 else "disagree", "anna")
        exams.give_opinion(session, 2, "agree" if session == 2 else "disagree", "anna")
    document: dict[str, Any] = {"id": None, "started_at": 1.0, "subject": "kid-16", "age_years": 4.5, "demo": False}
    sites = {"p1": {"session": 1}, "p3": {"session": 2}}
    number = exams.save({**document, "verdict": "flagged", "sites": sites})
    exams.assign("exam", number, "kid-17")
    return file


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("opinion", "label", "meant"),
    [
        ("agree", "crackle", "crackle"),
        ("agree", "both", "both"),
        ("agree", "normal", "normal"),
        ("disagree", "wheeze", "normal"),
        ("disagree", "both", ""),
        ("disagree", "normal", ""),
    ],
)
def test_what_an_opinion_means(opinion: str, label: str, meant: str) -> None:
    assert label_of(opinion, label) == meant


def test_opinions_become_a_corpus_that_keeps_patients_apart(
    respsam_device: Device, stored: Path, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    answer = respsam_device("sessions", "export", "--format", "manifest", "--out", out)
    assert (answer.code, answer.out) == (0, "")
    assert answer.error.splitlines() == [
        "left out, no class follows from the disagreement: cycle 2 of session 1, cycle 2 of session 3",
        "left out, no sound is kept: session 4",
        "left out, a demo, no patient: session 5",
        "4 cycles of 2 patients",
        f"next: trainer data describe --corpus manifest --data {out}",
    ]
    rows = manifest(out)
    assert [(row["path"], row["label"], row["patient"], row["device"], row["age"]) for row in rows] == [
        ("1/000001.flac", "crackle", "kid-17", "a test", "4.5"),
        ("2/000001.flac", "normal", "kid-17", "littmann-core", "4.5"),
        ("2/000002.flac", "both", "kid-17", "littmann-core", "4.5"),
        ("3/000001.flac", "normal", "session 3", "a test", ""),
    ]
    assert {row["site"] for row in rows} == {"p1"}
    written, rate = soundfile.read(out / "1/000001.flac", dtype="float32")
    assert rate == 16_000 and np.array_equal(written, AudioStore(stored).read(1, 1))
    assert out.stat().st_mode & 0o077 == 0


def test_one_session_alone(respsam_device: Device, stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    assert respsam_device("sessions", "export", 2, "--format", "manifest", "--out", out).code == 0
    assert {row["path"] for row in manifest(out)} == {"2/000001.flac", "2/000002.flac"}


def test_what_cannot_be_written_is_one_line(
    respsam_device: Device, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = ("sessions", "export", "--format", "manifest", "--out")
    assert "there already; name a new folder" in one_error(respsam_device(*export, stored.parent))
    assert "name a new one" in one_error(respsam_device("sessions", "export", "--format", "manifest"))
    assert "name one; see" in one_error(respsam_device("sessions", "export"))
    assert "session 4: no sound is kept (2 opinions)" in one_error(
        respsam_device("sessions", "export", 4, *export[2:], tmp_path / "a")
    )
    assert "session 9 has no opinions; agree or disagree" in one_error(
        respsam_device("sessions", "export", 9, *export[2:], tmp_path / "a")
    )
    with mounted(tmp_path / "full", 20_000):
        assert "cannot be written" in one_error(respsam_device(*export, tmp_path / "full/a"))
        assert not list((tmp_path / "full").iterdir())
    monkeypatch.setenv("RESPSAM_STORE__PATH", str(tmp_path / "nowhere.sqlite"))
    assert "no sessions are stored here" in one_error(respsam_device(*export, tmp_path / "a"))


def test_a_sound_that_is_damaged_is_left_out(respsam_device: Device, stored: Path, tmp_path: Path) -> None:
    AudioStore(stored).path(2, 2).write_bytes(b"fLaC")
    answer = respsam_device("sessions", "export", "--format", "manifest", "--out", tmp_path / "corpus")
    assert "left out, the sound is damaged: cycle 2 of session 2" in answer.error.splitlines()
