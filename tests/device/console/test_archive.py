"""What a browser sees of stored sessions and exams."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from device.bundle import DEFAULT_BUNDLE, read_bundle
from device.console.archive import Archive
from device.store.exams import Exams
from device.store.recorder import Store
from tests.device.storing import Certain, beginning, judged, keep, settings_for


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
