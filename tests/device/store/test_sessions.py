"""`respsam-device sessions`: what was stored can be listed, shown, exported and deleted; nothing else is touched."""

import csv
import io
import json
import os
import pty
import select
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device.bundle import read_bundle
from device.model.classifier import Classifier
from device.signal import SAMPLE_RATE
from device.store.audio import AudioStore
from device.store.recorder import Store
from tests.conftest import REPOSITORY
from tests.device.bundle_maker import make_bundle
from tests.device.conftest import Answer, Device
from tests.device.storing import beginning, judged
from tests.full_disk import mounted

SITE = "left-armpit"


@pytest.fixture(autouse=True)
def _no_terminal_and_this_store(monkeypatch: pytest.MonkeyPatch, stored: Path) -> None:
    monkeypatch.setenv("RESPSAM_STORE__PATH", str(stored))
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """1: a demo with audio at a site; 2: the same, as if of a patient, without audio; 3: killed before its end."""
    file = tmp_path / "state" / "store.sqlite"
    cycles, entries, summary = judged(Classifier(read_bundle(make_bundle(tmp_path / "bundle"))))
    for number in (1, 2, 3):
        store = Store(beginning(file, demo=number == 1, site=SITE if number == 1 else "", audio=number == 1))
        for cycle in cycles:
            store.add(cycle)
        for entry in entries:
            store.add(entry)
        if number != 3:
            store.end(summary)
        store.close()
    return file


def refused(answer: Answer) -> str:
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.error.splitlines()
    assert line.startswith("respsam-device: error: ")
    return line


def test_list_has_an_aligned_line_a_session_and_says_demo(respsam_device: Device) -> None:
    answer = respsam_device("sessions", "list")
    assert (answer.code, answer.error) == (0, "")
    head, *lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines] == ["DEMO", "2", "3"]
    for name, wanted in (("verdict", ["flagged", "flagged", "-"]), ("site", [SITE, "", ""])):
        at = head.index(name)
        assert [line[at : at + 12].split("  ")[0].strip() for line in lines] == wanted
    assert "DEMO" not in lines[1] + lines[2]


def test_list_in_json_has_an_object_a_session(respsam_device: Device) -> None:
    objects = [json.loads(line) for line in respsam_device("sessions", "list", "--json").out.splitlines()]
    assert [(one["id"], one["demo"], one["site"], one["with_audio"]) for one in objects] == [
        (1, True, SITE, objects[0]["cycles"]),
        (2, False, "", 0),
        (3, False, "", 0),
    ]
    assert objects[0]["heard_samples"] == 12 * SAMPLE_RATE
    assert (objects[2]["verdict"], objects[2]["ended_at"], objects[2]["heard_samples"]) == (None, None, None)
    assert objects[2]["cycles"] == objects[0]["cycles"] > 3, "a session that was killed still has its cycles"


def test_nothing_stored_is_no_error_and_makes_no_file(respsam_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Path.cwd() / "nowhere" / "store.sqlite"
    monkeypatch.setenv("RESPSAM_STORE__PATH", str(absent))
    assert respsam_device("sessions", "list") == (0, "", "no sessions are stored\n")
    assert respsam_device("sessions", "list", "--json") == (0, "", "")
    assert str(absent) in refused(respsam_device("sessions", "show", 1))
    assert not absent.parent.exists()


def test_show(respsam_device: Device) -> None:
    answer = respsam_device("sessions", "show", 1)
    assert (answer.code, answer.error) == (0, "")
    about, cycles, timeline = answer.out.split("\n\n")
    assert all(line.startswith("DEMO ") for line in about.splitlines())
    assert all(line.startswith("DEMO ") for line in [*cycles.splitlines()[1:], *timeline.splitlines()[1:]])
    assert "12.0 s heard, 0.0 s missing, 0.0 s dropped" in about
    assert "verdict: flagged" in about
    assert [line.split()[2] for line in timeline.splitlines()[1:]] == ["start", "end"]
    assert "DEMO" not in respsam_device("sessions", "show", 2).out.replace("(simulated", "")


def test_show_in_json_has_everything(respsam_device: Device) -> None:
    shown = json.loads(respsam_device("sessions", "show", 1, "--json").out)
    assert shown["settings"]["store"]["audio"] is True
    assert [one["number"] for one in shown["cycles"]] == list(range(1, len(shown["cycles"]) + 1))
    assert all(one["demo"] for one in [shown, *shown["cycles"], *shown["timeline"]])
    assert shown["cycles"][0]["quality"]["level_dbfs"] == shown["cycles"][0]["level_dbfs"]


@pytest.mark.parametrize("command", [("show",), ("export",), ("delete", "--yes")])
def test_a_session_that_does_not_exist_is_an_error(respsam_device: Device, command: tuple[str, ...]) -> None:
    assert "no session 7" in refused(respsam_device("sessions", *command, 7))


def test_export_csv_is_a_row_a_cycle_with_all_digits(respsam_device: Device, stored: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(respsam_device("sessions", "export", 1).out)))
    with sqlite3.connect(stored) as database:
        kept = database.execute("SELECT start_sample, probability, class FROM cycles WHERE session = 1").fetchall()
    assert [(int(row["start_sample"]), float(row["probability"]), row["class"]) for row in rows] == kept
    assert {(row["demo"], row["site"], row["bundle"]) for row in rows} == {("DEMO", SITE, "bundle-hash")}
    assert {row["demo"] for row in csv.DictReader(io.StringIO(respsam_device("sessions", "export", 2).out))} == {""}


def test_export_writes_a_new_file_and_never_over_another(respsam_device: Device, tmp_path: Path, stored: Path) -> None:
    out = tmp_path / "out.json"
    assert respsam_device("sessions", "export", 1, "--format", "json", "--out", out) == (0, "", "")
    shown = json.loads(respsam_device("sessions", "show", 1, "--json").out)
    assert json.loads(out.read_text()) == shown
    before = stored.read_bytes()
    assert "cannot be written" in refused(respsam_device("sessions", "export", 1, "--out", stored))
    assert stored.read_bytes() == before


def test_delete_removes_rows_and_audio_and_nothing_else(respsam_device: Device, stored: Path) -> None:
    foreign = AudioStore(stored).folder / "1" / "notes.txt"
    foreign.write_text("not ours")
    others = [respsam_device("sessions", "show", number, "--json").out for number in (2, 3)]
    assert AudioStore(stored).files(1)
    assert SITE.encode() in stored.read_bytes()
    assert respsam_device("sessions", "delete", 1, "--yes").code == 0
    assert [respsam_device("sessions", "show", number, "--json").out for number in (2, 3)] == others
    assert not AudioStore(stored).files()
    assert foreign.read_text() == "not ours"
    with sqlite3.connect(stored) as database:
        for table, key in (("sessions", "id"), ("cycles", "session"), ("timeline", "session")):
            assert database.execute(f"SELECT DISTINCT {key} FROM {table}").fetchall() == [(2,), (3,)]
    # what was deleted is in no file any more, not even in a free page
    assert not any(SITE.encode() in one.read_bytes() for one in stored.parent.iterdir() if one.is_file())


def test_a_deleted_number_is_not_given_again(respsam_device: Device, stored: Path) -> None:
    respsam_device("sessions", "delete", 3, "--yes")
    store = Store(beginning(stored))
    store.close()
    assert store.session == 4


def test_delete_without_a_terminal_is_refused(respsam_device: Device) -> None:
    assert "--yes" in refused(respsam_device("sessions", "delete", 1))
    assert len(respsam_device("sessions", "list").out.splitlines()) == 4


@pytest.mark.parametrize(("said", "code", "left"), [("n\n", 130, 3), ("y\n", 0, 2)])
def test_delete_asks_on_a_terminal(stored: Path, said: str, code: int, left: int) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "device", "sessions", "delete", "2"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RESPSAM_STORE__PATH": str(stored)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    asked = b""
    while b"[y/N]" not in asked and select.select([ours], [], [], 30)[0]:
        asked += os.read(ours, 4096)
    assert b"session 2" in asked
    os.write(ours, said.encode())
    assert process.wait(30) == code
    os.close(ours)
    with sqlite3.connect(stored) as database:
        assert database.execute("SELECT count(*) FROM sessions").fetchall() == [(left,)]


def test_a_damaged_store_is_said_in_one_line_and_left_for_listen_to_set_aside(
    respsam_device: Device, stored: Path
) -> None:
    stored.write_bytes(b"not a database " * 1000)
    assert "damaged" in refused(respsam_device("sessions", "list"))
    assert stored.exists()


@pytest.mark.parametrize("command", ["list", "show 1"])
def test_a_table_on_a_terminal_fits_it(stored: Path, command: str) -> None:
    done = subprocess.run(
        ["script", "-qec", f"{sys.executable} -m device sessions {command}", "/dev/null"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "RESPSAM_STORE__PATH": str(stored), "COLUMNS": "80"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert "…" not in done.stdout
    assert "DEMO" in done.stdout and "flag" in done.stdout


READ = [("list",), ("show", 1), ("export", 1), ("export", 1, "--format", "json")]


@pytest.fixture
def read_only(stored: Path, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """The store on a card that cannot be written; with its log where a device was switched off, without its index."""

    def put(*, log: bool, index: bool = False) -> Path:
        writer = Store(beginning(stored))
        copies = tmp_path / "copies"
        shutil.copytree(stored.parent, copies)
        writer.close()
        for path in [*copies.glob("*-wal")] * (not log) + [*copies.glob("*-shm")] * (not index):
            path.unlink()
        shutil.copytree(copies, card, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", card], check=True)
        return card / stored.name

    card = tmp_path / "card"
    with mounted(card, 20 << 20):
        yield put


@pytest.mark.parametrize("command", READ)
@pytest.mark.parametrize(("log", "index"), [(False, False), (True, False), (True, True)])
def test_a_read_only_card_can_be_read(
    respsam_device: Device,
    read_only: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    log: bool,
    index: bool,
) -> None:
    whole = respsam_device("sessions", *command).out
    file = read_only(log=log, index=index)
    monkeypatch.setenv("RESPSAM_STORE__PATH", str(file))
    answer = respsam_device("sessions", *command)
    assert answer.code == 0
    assert answer.out.startswith(whole[:400])
    if log and not index:
        (line,) = answer.error.splitlines()
        assert line == f"respsam-device: warning: {file}-wal cannot be read here; what was stored last may be missing"
    elif log:
        assert answer.error == ""
        assert command != ("list",) or len(answer.out.splitlines()) == 5


def test_a_read_only_card_is_replayed_and_nothing_on_it_deleted(
    respsam_device: Device, read_only: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESPSAM_STORE__PATH", str(read_only(log=False)))
    assert respsam_device("replay", 1, "--bundle", tmp_path / "bundle", "--anyway").code in (0, 3)
    assert "cannot be" in refused(respsam_device("sessions", "delete", 1, "--yes"))


def test_an_older_version_that_cannot_be_brought_up_to_date_is_one_line(
    respsam_device: Device, monkeypatch: pytest.MonkeyPatch, stored: Path, tmp_path: Path
) -> None:
    with sqlite3.connect(stored) as database:
        database.execute("PRAGMA user_version = 1")
    database.close()
    card = tmp_path / "card"
    with mounted(card, 4 << 20):
        shutil.copy(stored, card)
        subprocess.run(["mount", "-o", "remount,ro", card], check=True)
        monkeypatch.setenv("RESPSAM_STORE__PATH", str(card / stored.name))
        assert "of an older version" in refused(respsam_device("sessions", "list"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads as somebody else")
@pytest.mark.parametrize("readable", [True, False])
def test_another_user_s_file_is_read_or_refused_in_one_line(stored: Path, readable: bool) -> None:
    stored.chmod(0o644 if readable else 0o600)
    stored.parent.chmod(0o755)
    for above in stored.parents:
        if not above.stat().st_mode & 0o005 and above.is_relative_to("/tmp/"):
            above.chmod(0o755)
    before = sorted(one.name for one in stored.parent.iterdir())
    read = "from pathlib import Path; from device.store.sessions import list_sessions; import sys; "
    read += "sys.stdout.write(str(len(list_sessions(Path(sys.argv[1])))))"
    as_nobody = f"import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); {read}"
    preload = "import device.store.sessions, encodings.idna, urllib.parse, sqlite3;"
    done = subprocess.run(
        [sys.executable, "-c", preload + as_nobody, str(stored)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if readable:
        assert (done.returncode, done.stdout) == (0, "3"), done.stderr
    else:
        assert "StoreError" in done.stderr
    assert sorted(one.name for one in stored.parent.iterdir()) == before
