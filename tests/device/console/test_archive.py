"""What a browser sees of stored sessions and exams."""

import json
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import device.console.archive
import device.store.sessions
from device.bundle import DEFAULT_BUNDLE, read_bundle
from device.console.archive import MOST_CYCLES, Archive
from device.model.classifier import Classifier
from device.store.database import StoreError
from device.store.exams import Exams
from device.store.recorder import Beginning, Store
from device.store.sessions import delete_session
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle
from tests.device.storing import NIGHT_CYCLES, Certain, beginning, judged, keep, night, rows, settings_for


def archive_of(file: Path, **store: object) -> Archive:
    settings, front_end = settings_for(file, **store).store, read_bundle(DEFAULT_BUNDLE).manifest.front_end
    exams = Exams(settings.file if settings.enabled else None)
    return Archive(settings, exams, front_end, Certain.site_rule.model_copy(update={"threshold": 0.99}))


def test_without_a_store_the_exams_since_the_start_are_shown_to_every_thread(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "store.sqlite", enabled=False)
    document = {
        "id": None,
        "started_at": 1.0,
        "subject": "kid-17",
        "age_years": 4.0,
        "demo": True,
        "verdict": "flagged",
    }
    number = archive.exams.save(document)
    with ThreadPoolExecutor(2) as pool:
        for history in pool.map(lambda _: archive.history(), range(4)):
            assert [exam["id"] for exam in history["exams"]] == [number] and not history["stored"]


def test_stretches_of_an_old_session_keep_its_threshold(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    store = Store(beginning(file))
    keep(judged(Certain(), 25.0), store)
    store.close()
    archive = archive_of(file)
    assert archive.session(1)["stretches"][0]["verdict"] == "nothing flagged"
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE sessions SET site_threshold = 0.1")
        database.commit()
    assert archive.session(1)["stretches"][0]["verdict"] == "flagged"


@pytest.fixture
def listened(tmp_path: Path) -> tuple[Archive, Path]:
    """Session 1 with its sound and a model of its own, 2 without sound; an exam of both. And the model's folder."""
    file, bundle = tmp_path / "store.sqlite", make_bundle(tmp_path / "bundle")
    classifier = Classifier(read_bundle(bundle))
    demo = judged(classifier, 25.0)
    for audio in (True, False):
        settings = settings_for(file, audio=audio)
        own = settings.model_copy(update={"bundle": settings.bundle.model_copy(update={"path": str(bundle)})})
        store = Store(Beginning("a test", True, classifier.fingerprint, "tiny", own, "p1"))
        keep(demo, store)
        store.close()
    archive = archive_of(file)
    document: dict[str, Any] = {"id": None, "started_at": 1.0, "subject": "kid-17", "age_years": 4.0, "demo": True}
    document |= {"verdict": "flagged", "sites": {"p1": {"session": 1}, "p3": {"session": 2}, "p2": {"session": None}}}
    archive.exams.save(document)
    return archive, bundle


def test_where_the_model_looks_is_of_the_session_s_own_model(listened: tuple[Archive, Path]) -> None:
    archive, bundle = listened
    cycle = next(one for one in archive.cycles(1, 0, 99, flagged=False)["cycles"] if one["probability"] is not None)
    found = archive.evidence(1, cycle["number"])
    assert found["probability"] == pytest.approx(cycle["probability"], abs=0.001)
    assert found["seconds"][-1] == pytest.approx(cycle["end"] - cycle["start"])
    assert found["heights"] == sorted(found["heights"]) and 0.0 <= found["heights"][0] < found["heights"][-1] <= 1.0
    assert (len(found["falls"]), len(found["falls"][0])) == (len(found["heights"]) - 1, len(found["seconds"]) - 1)
    with pytest.raises(StoreError, match=r"session 2 has no sound of cycle 1; it is kept if store\.audio is set"):
        archive.evidence(2, 1)
    make_bundle(bundle, logits=(0.0, 0.0, 9.0, 0.0))
    archive = Archive(archive._store, archive.exams, archive._front_end, archive._rule)
    with pytest.raises(StoreError, match="this box has no tiny"):
        archive.evidence(1, cycle["number"])


def test_a_sound_and_a_picture_read_their_own_cycle_alone(
    listened: tuple[Archive, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    query = device.store.sessions._query

    def noted(database: sqlite3.Connection, text: str, *values: int, **rest: str) -> list[Any]:
        asked.append(text)
        return query(database, text, *values, **rest)

    monkeypatch.setattr(device.store.sessions, "_query", noted)
    archive, _ = listened
    assert archive.sound(1, 2).startswith(b"RIFF") and archive.picture(1, 2).startswith(b"\x89PNG")
    assert len(asked) == 2 and all("number=?" in one for one in asked)
    with pytest.raises(StoreError, match="has no sound of cycle 99"):
        archive.sound(1, 99)


def test_an_exam_whose_removal_was_interrupted_is_still_there_and_goes_at_the_second_try(
    listened: tuple[Archive, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, _ = listened
    file = archive._path

    def dies(where: Path, number: int) -> None:
        if number == 2:
            raise StoreError("the disk is gone")
        delete_session(where, number)

    with monkeypatch.context() as patch:
        patch.setattr(device.console.archive, "delete_session", dies)
        with pytest.raises(StoreError, match="the disk is gone"):
            archive.delete("exam", 1)
    assert [exam["id"] for exam in archive.exams.listed()] == [1]
    archive.delete("exam", 1)
    assert archive.exams.listed() == [] and rows(file, "SELECT id FROM sessions") == []
    assert not list(file.parent.rglob("*.flac"))


def test_a_night_is_stretches_with_their_rate_and_some_cycles_at_a_time(tmp_path: Path) -> None:
    archive = archive_of(night(tmp_path / "store.sqlite"))
    found = archive.session(1)
    assert (found["cycles"], len(found["stretches"])) == (NIGHT_CYCLES, NIGHT_CYCLES // 6)
    assert {stretch["rate"] for stretch in found["stretches"]} == {20.0}
    # small enough for a phone on a ward's network
    assert len(json.dumps(found)) < 250_000
    part = archive.cycles(1, 1201, 1300, flagged=False)
    assert (part["count"], part["cycles"][0]["number"], len(part["cycles"])) == (100, 1201, MOST_CYCLES)
    assert archive.cycles(1, 1, NIGHT_CYCLES, flagged=True)["count"] == NIGHT_CYCLES


def test_the_console_s_process_starts_without_what_only_a_look_at_evidence_needs() -> None:
    script = (
        "import sys, device.console.process; heavy = {'scipy.signal', 'onnxruntime', 'device.store.replay'}; "
        "print(*heavy & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
