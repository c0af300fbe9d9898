"""The corpus that a device writes of clinicians' opinions, as the trainer reads it."""

import json
from pathlib import Path

from device.store.exams import Exams
from device.store.opinions import export_opinions
from device.store.recorder import Store
from tests.conftest import RunCli
from tests.device.storing import Certain, beginning, judged, keep
from trainer.corpora.manifest import read_manifest


def test_opinions_are_read_patient_by_patient(tmp_path: Path, run_cli: RunCli) -> None:
    file, out = tmp_path / "store.sqlite", tmp_path / "corpus"
    demo = judged(Certain(), 12.0)
    exams = Exams(file)
    for session in (1, 2):
        store = Store(beginning(file, demo=False, site="p1", audio=True))
        keep(demo, store)
        store.close()
        exams.give_opinion(session, session, "agree", "anna")
    exams.assign("session", 1, "kid-17")
    export_opinions(file, out)
    read = read_manifest(out)
    assert read.problems == () and {one.patient for one in read.recordings} == {"kid-17", "session 2"}
    assert {one.grain for one in read.recordings} == {"cycle"} and {one.device for one in read.recordings} == {"a test"}
    spans = [cycle.end_seconds - cycle.start_seconds for one in read.recordings for cycle in one.cycles]
    lengths = [(one.end_sample - one.start_sample) / 16_000 for one in demo[0][:2]]
    assert [round(span, 3) for span in spans] == [round(length, 3) for length in lengths]
    described = run_cli("trainer", "data", "describe", "--corpus", "manifest", "--data", out, "--json")
    assert described.returncode == 0, described.stderr
    assert json.loads(described.stdout)
