"""The MQTT door against a real mosquitto: what arrives, and what happens while the broker is away or refuses."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import device.mqtt
from device.console.certificate import make_certificate
from device.doctor import broker as broker_findings
from device.mqtt import VANISHED, BrokerError, Sender, check_broker
from device.store.database import StoreError, open_database
from device.store.exams import Exams
from device.store.outbox import Outbox
from device.store.recorder import Store
from device.store.sessions import delete_session
from device.verdict.exam import Exam
from firmware_config.files import alone
from firmware_config.settings import Settings, SettingsError, load_settings
from tests.conftest import REPOSITORY
from tests.device.broker import Broker, Reader, free_port, wait_for
from tests.device.conftest import Device
from tests.device.storing import Certain, Judged, endless, judged, rows
from tests.device.view.test_json_lines import PUBLISHED, closed

RUN = "ab" * 16  # identifies a session in messages


@pytest.fixture(scope="module")
def demo() -> Judged:
    return judged(Certain(), 8.0)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device.mqtt, "PAUSE_SECONDS", (0.1, 0.5))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def box(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a box that sends to the broker."""
    for name, value in broker.environment.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def box_with(settings: Settings, **outputs: object) -> Settings:
    changed = settings.outputs.model_copy(update={f"mqtt_{name}": value for name, value in outputs.items()})
    return settings.model_copy(update={"outputs": changed})


def stored(settings: Settings, run: str = RUN) -> Store:
    """A session that is being stored, with messages."""
    from device.store.recorder import Beginning

    return Store(Beginning("a test", True, "bundle-hash", "tiny", settings, run=run))


def add(store: Store, demo: Judged, first: int, last: int) -> None:
    """Store the cycles of these numbers."""
    for cycle in endless(demo[0]):
        if cycle.number >= first:
            store.add(cycle)
            time.sleep(0.002)  # a lock is given to whoever asks in the right moment, and breaths come one by one
        if cycle.number >= last:
            return


def numbers(reader: Reader) -> list[int]:
    return [value["number"] for value in reader.of("cycle")]


def has_more(reader: Reader, cycles: int) -> bool:
    return len(reader.of("cycle")) > cycles


def has_run(reader: Reader, run: str) -> bool:
    return run in {value["session"] for value in reader.of("cycle")}


def without_repetitions(found: list[int]) -> list[int]:
    """In order; a number that was there before is left out, as QoS 1 permits it."""
    return list(dict.fromkeys(found))


def check(reader: Reader) -> None:
    """Every message is valid by the published schema, and is where its type says."""
    validator = jsonschema.Draft202012Validator(closed(json.loads(PUBLISHED.read_text())))
    for topic, value, _ in reader.messages:
        validator.validate(value)
        assert topic == f"respsam/box-1/{value['type']}"


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def listen(respsam_device: Device, bundle: Path, *options: object) -> Any:
    return respsam_device("listen", "--source", "demo", "--fast", "--seconds", 20, "--bundle", bundle, *options)


def test_a_store_that_is_replaced_is_sent_from_its_beginning(box: Settings, reader: Reader, demo: Judged) -> None:
    with Sender(box, lambda line: None) as sender:
        for run in ("first", "second"):
            store = stored(box, run)
            add(store, demo, 1, 5)
            sender.look()
            wait_for(partial(has_run, reader, run))
            wait_for(lambda: Outbox(box.store.file).count()[0] == 0)
            store.close()
            for file in list(box.store.file.parent.glob(f"{box.store.file.name}*")):
                if "lock" not in file.name:
                    file.rename(file.with_name(f"{run}-{file.name}"))
    assert [value["number"] for value in reader.of("cycle")] == [1, 2, 3, 4, 5] * 2


def test_a_store_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    """Two that make it at once would fail, and the recorder would lose breaths."""
    file = tmp_path / "store.sqlite"
    file.touch()
    with alone(tmp_path, 1.0), pytest.raises(StoreError):
        Outbox(file).next(0, 1)
    assert file.stat().st_size == 0
    assert Outbox(file).next(0, 1) == []


def test_no_port_is_opened_and_an_error_of_the_library_ends_nothing(
    box: Settings, reader: Reader, demo: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service may open none: docs/security.md."""

    def refused(*_arguments: object) -> None:
        raise PermissionError("this opens a port")

    monkeypatch.setattr("paho.mqtt.client._socketpair_compat", refused)
    failures = iter([RuntimeError("broken")])
    exchange = Sender._exchange

    def fails_once(sender: Sender, connection: device.mqtt.Connection) -> bool:
        for failure in failures:
            raise failure
        return exchange(sender, connection)

    monkeypatch.setattr(Sender, "_exchange", fails_once)
    warnings: list[str] = []
    store = stored(box)
    with Sender(box, warnings.append) as sender:
        add(store, demo, 1, 3)
        sender.look()
        wait_for(lambda: numbers(reader) == [1, 2, 3])
    store.close()
    assert "RuntimeError: broken" in warnings[0]


def test_the_messages_of_a_session_are_its_json_lines(
    box: Settings, reader: Reader, respsam_device: Device, bundle: Path
) -> None:
    answer = listen(respsam_device, bundle, "--json")
    assert (answer.code, answer.error) == (0, "")
    lines = [line for line in answer.objects if line["type"] in ("cycle", "summary")]
    wait_for(lambda: reader.status and not reader.status["online"])
    assert untimed(reader.of("cycle", "summary")) == untimed(lines) and len(lines) > 3
    assert reader.status["words"] == "20 s are over" and reader.status["bundle"] == lines[-1]["bundle"]
    assert [status["online"] for status in reader.of("status")][:1] == [True]
    check(reader)
    assert Outbox(box.store.file).count() == (0, 0)


def test_the_status_is_retained(box: Settings, broker: Broker, respsam_device: Device, bundle: Path) -> None:
    listen(respsam_device, bundle)
    with closing(Reader(broker)) as late:
        wait_for(lambda: late.messages)
        (only,) = late.messages
        assert only.retained and only.value["type"] == "status" and only.value["online"] is False


def test_the_messages_of_an_exam(box: Settings, reader: Reader, respsam_device: Device, bundle: Path) -> None:
    options = ("--source", "demo", "--fast", "--json", "--seconds", 5, "--site", "p1", "--site", "p2")
    answer = respsam_device("exam", *options, "--bundle", bundle)
    assert (answer.code, answer.error) == (0, "")
    wait_for(lambda: reader.status and not reader.status["online"])
    lines = [line for line in answer.objects if line["type"] in ("cycle", "summary", "exam")]
    assert untimed(reader.of("cycle", "summary", "exam")) == untimed(lines) and lines[-1]["type"] == "exam"
    check(reader)


def test_an_exam_of_the_console_is_sent(box: Settings, reader: Reader, demo: Judged) -> None:
    stored(box).close()
    exam = Exam(("Al",), {"Al": demo[2]}).as_json()
    Exams(box.store.file, 1000).send(exam)
    Exams(box.store.file).send(exam)  # without a broker
    Exams(None, 1000).send(exam)  # without a store
    with Sender(box, print):
        wait_for(lambda: reader.of("exam"))
    assert untimed(reader.of("exam")) == [{**exam, "schema_version": 1, "session": reader.of("exam")[0]["session"]}]
    check(reader)


def test_a_broker_that_is_away_gets_everything_later_once_and_in_order(
    box: Settings, broker: Broker, reader: Reader, respsam_device: Device, bundle: Path, demo: Judged
) -> None:
    broker.stop()
    answer = listen(respsam_device, bundle)
    (line,) = answer.error.splitlines()
    assert answer.code == 0 and "Connection refused; check outputs.mqtt_host" in line and "listening goes on" in line
    waiting, _ = Outbox(box.store.file).count()
    assert waiting > 3
    store = stored(box)
    add(store, demo, 1, 500)
    store.end(demo[2])
    store.close()
    broker.start()
    warnings: list[str] = []
    with Sender(box, warnings.append):
        wait_for(lambda: Outbox(box.store.file).count() == (0, 0))
    wait_for(lambda: len(reader.of("cycle", "summary")) == waiting + 501)
    assert [value["number"] for value in reader.of("cycle") if value["session"] == RUN] == list(range(1, 501))
    assert [value["session"] == RUN for value in reader.of("summary")] == [False, True]
    assert not warnings
    check(reader)


def test_a_broker_that_is_started_again_in_the_middle(
    box: Settings, broker: Broker, reader: Reader, demo: Judged
) -> None:
    warnings: list[str] = []
    store = stored(box)
    with Sender(box, warnings.append) as sender:
        for part in range(4):
            add(store, demo, 300 * part + 1, 300 * part + 200)
            sender.look()
            if part < 3:
                wait_for(partial(has_more, reader, 300 * part + 20))
                broker.stop()  # in the middle of what waits
            add(store, demo, 300 * part + 201, 300 * part + 300)
            if part < 3:
                wait_for(lambda: sender.trouble)
                broker.start()
                wait_for(lambda: not sender.trouble)
        sender.look()
        wait_for(lambda: Outbox(box.store.file).count() == (0, 0))
    store.close()
    wait_for(lambda: len(set(numbers(reader))) == 1200)
    assert without_repetitions(numbers(reader)) == list(range(1, 1201))
    assert len(numbers(reader)) <= 1200 + 3 * device.mqtt.WINDOW
    # a pair for each cut; none for one that is over before the next try
    assert len(warnings) in (2, 4, 6) and all("so far wait" in one for one in warnings[::2])
    assert all("everything is sent" in one for one in warnings[1::2])


# stores and sends for ever; says what is committed
BOX = """
import sys
from device.mqtt import Sender
from device.store.recorder import Beginning, Store
from firmware_config.settings import load_settings
from tests.device.storing import Certain, endless, judged
settings = load_settings()
store = Store(Beginning("a test", True, "bundle-hash", "tiny", settings, run=sys.argv[1]))
with Sender(settings, print) as sender:
    sender.tell("listening to a test")
    for cycle in endless(judged(Certain(), 8.0)[0]):
        store.add(cycle)
        sender.look()
        print(cycle.number, flush=True)
"""


def test_kill_9_at_any_moment_loses_nothing_that_was_stored(box: Settings, broker: Broker, reader: Reader) -> None:
    """And the broker says that the box is gone."""
    runs = [f"{number:032x}" for number in range(3)]
    for run in runs:
        process = subprocess.Popen(
            [sys.executable, "-c", BOX, run],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        while int(process.stdout.readline()) < 60:
            pass
        wait_for(partial(has_run, reader, run))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_for(lambda: reader.status["online"] is False)
        assert reader.status["words"] == VANISHED
    with Sender(box, pytest.fail):
        wait_for(lambda: Outbox(box.store.file).count() == (0, 0))
    committed = rows(box.store.file, "SELECT session, number FROM cycles ORDER BY session, number")
    wait_for(lambda: len({(one["session"], one["number"]) for one in reader.of("cycle")}) == len(committed))
    sent = list(dict.fromkeys((runs.index(one["session"]) + 1, one["number"]) for one in reader.of("cycle")))
    assert sent == committed


@contextmanager
def silent(answer: bytes = b"") -> Iterator[int]:
    """The port of a server that accepts, perhaps sends something, and never reads."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(listening.accept()[0])
                    kept[-1].sendall(answer)
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


ACCEPTED = bytes([0x20, 3, 0, 0, 0])  # CONNACK of MQTT 5: success, no properties


def refusals(box: Settings, folder: Path) -> dict[str, tuple[Settings, str]]:
    """Settings under which nothing can be sent, and what is said."""
    (folder / "wrong").write_text("guessed\n")
    make_certificate(folder / "other.pem", folder / "other.key", ["127.0.0.1"])
    return {
        "password": (box_with(box, password_file=str(folder / "wrong")), "it refuses this box (Not authorized); check"),
        "password file": (box_with(box, password_file="/nowhere"), "/nowhere: cannot be read (No such file"),
        "authority": (box_with(box, ca=str(folder / "other.pem")), "its certificate is not trusted (self-signed"),
        "authority file": (box_with(box, ca=str(folder / "wrong")), "/wrong: no certificate"),
        "port": (box_with(box, port=free_port()), "Connection refused; check outputs.mqtt_host, mqtt_port"),
        "no TLS": (box_with(box, tls=False), "it closed the connection before an answer; check user"),
        "in the clear": (
            box_with(box, tls=False, host="192.0.2.1"),
            "mqtt_tls = false is for a broker on this machine",
        ),
        "unknown": (box_with(box, host="nobody.invalid"), "check outputs.mqtt_host"),
    }


@pytest.mark.parametrize(
    "what", ["password", "password file", "authority", "authority file", "port", "no TLS", "in the clear", "unknown"]
)
def test_a_broker_that_refuses_is_named_in_one_line_and_listening_goes_on(
    what: str, box: Settings, tmp_path: Path, demo: Judged
) -> None:
    settings, words = refusals(box, tmp_path)[what]
    warnings: list[str] = []
    store = stored(settings)
    with Sender(settings, warnings.append) as sender:
        add(store, demo, 1, 5)
        sender.look()
        wait_for(lambda: sender.trouble)
        time.sleep(1.0)  # it tries again
        assert words in sender.trouble
    store.close()
    assert len(warnings) == 1 and words in warnings[0] and len(warnings[0].splitlines()) == 1
    assert Outbox(settings.store.file).count() == (5, 0)
    with pytest.raises(BrokerError) as refused:
        check_broker(settings.outputs)
    assert words in str(refused.value)


@pytest.mark.parametrize("answer", [b"", ACCEPTED], ids=["never answers", "never reads"])
def test_a_broker_that_accepts_and_is_silent(
    answer: bytes, box: Settings, demo: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.mqtt, "ANSWER_SECONDS", 0.5)
    warnings: list[str] = []
    with silent(answer) as port:
        settings = box_with(box, port=port, tls=False)
        store = stored(settings)
        with Sender(settings, warnings.append) as sender:
            add(store, demo, 1, 5)
            wait_for(lambda: sender.trouble)
            began = time.monotonic()
        assert time.monotonic() - began < 1.0  # nobody waits for it at the end
        store.close()
    assert len(warnings) == 1 and "no answer for 0 s" in warnings[0]


def test_a_broker_that_lets_this_box_write_nothing(box: Settings, broker: Broker, demo: Judged) -> None:
    broker.stop()
    rules = broker.folder / "rules"
    rules.write_text("topic read #\ntopic write other/#\n")
    broker.configuration.write_text(f"{broker.configuration.read_text()}acl_file {rules}\n")
    broker.start()
    warnings: list[str] = []
    store = stored(box)
    add(store, demo, 1, 5)
    store.close()
    with Sender(box, warnings.append) as sender:
        wait_for(lambda: sender.trouble)
        time.sleep(1.0)
    assert len(warnings) == 1 and "it refuses messages (Not authorized)" in warnings[0]
    assert Outbox(box.store.file).count() == (5, 0)


def test_the_program_without_its_library(box: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    warnings: list[str] = []
    with Sender(box, warnings.append) as sender:
        wait_for(lambda: sender.trouble)
    assert len(warnings) == 1 and "pip install 'respsam[mqtt]'" in warnings[0]


def test_without_a_broker_in_the_settings_the_library_is_not_even_loaded() -> None:
    code = (
        "import sys\nfrom device.cli import main\nsys.argv = ['respsam-device', 'listen', '--source', 'demo', '--fast',"
        " '--seconds', '3']\ntry: main()\nfinally: print('paho' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert not list(Path(os.environ["XDG_STATE_HOME"]).rglob("*outbox*"))


def test_what_is_not_stored_is_not_sent(box: Settings, respsam_device: Device, bundle: Path) -> None:
    answer = listen(respsam_device, bundle, "--no-store")
    assert answer.code == 0 and "nothing is stored, so nothing is sent by MQTT" in answer.error
    assert not box.store.file.exists()


def test_what_reports_of_a_deleted_session_is_never_sent(box: Settings, reader: Reader, demo: Judged) -> None:
    for run in (RUN, "cd" * 16):
        store = stored(box, run)
        add(store, demo, 1, 5)
        store.close()
    outbox = Outbox(box.store.file)
    outbox.put({"type": "exam", "sites": {"p1": {"session": RUN}}}, "ef" * 16, 1000)
    delete_session(box.store.file, 1)
    assert outbox.count() == (5, 0)
    with Sender(box, pytest.fail):
        wait_for(lambda: outbox.count() == (0, 0))
    wait_for(lambda: len(reader.of("cycle", "exam")) == 5)
    assert {value["session"] for value in reader.of("cycle")} == {"cd" * 16}


def test_too_many_messages_are_removed_from_the_oldest_on_and_counted(
    box: Settings, broker: Broker, reader: Reader, demo: Judged
) -> None:
    settings = box_with(box, waiting=1000)
    store = stored(settings)
    warnings: list[str] = []
    with Sender(settings, warnings.append) as sender:
        wait_for(lambda: reader.status)
        broker.stop()
        wait_for(lambda: sender.trouble)
        add(store, demo, 1, 1025)
        assert Outbox(settings.store.file).count() == (1000, 25)
        broker.start()
        wait_for(lambda: not sender.trouble)
    store.close()
    assert "25 messages removed unsent, because too many waited" in warnings[1]
    wait_for(lambda: len(reader.of("cycle")) == 1000)
    assert numbers(reader)[0] == 26 and reader.status["unsent"] == 25


def test_of_two_processes_with_one_store_only_the_first_sends(box: Settings, reader: Reader, demo: Judged) -> None:
    store = stored(box)
    with Sender(box, pytest.fail) as first, Sender(box, pytest.fail) as second:
        first.tell("the first")
        wait_for(lambda: reader.status.get("words") == "the first")
        second.tell("the second")
        add(store, demo, 1, 100)
        second.look()
        wait_for(lambda: len(reader.of("cycle")) == 100)
        time.sleep(0.5)
    store.close()
    assert numbers(reader) == list(range(1, 101))
    assert "the second" not in {status["words"] for status in reader.of("status")}


def test_sessions_keep_their_numbers_whatever_waits(box: Settings, demo: Judged) -> None:
    for number in (1, 2):
        store = stored(box)
        assert store.session == number
        add(store, demo, 1, 20)
        store.close()


def test_an_older_store_gets_its_outbox(box: Settings, demo: Judged) -> None:
    from tests.device.storing import beginning

    Store(beginning(box.store.file)).close()
    with closing(open_database(box.store.file)) as database:
        assert not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'outbox'").fetchone()
    store = stored(box)
    add(store, demo, 1, 2)
    store.close()
    assert Outbox(box.store.file).count() == (2, 0)


def test_doctor_names_the_broker(box: Settings, tmp_path: Path, demo: Judged) -> None:
    assert list(broker_findings(load_settings(environment={}))) == []
    (fine,) = broker_findings(box)
    assert fine.state == "ok" and f"127.0.0.1:{box.outputs.mqtt_port} takes what this box sends" in fine.found
    store = stored(box)
    add(store, demo, 1, 3)
    store.close()
    settings, words = refusals(box, tmp_path)["password"]
    (refused,) = broker_findings(settings)
    assert refused.state == "FAIL" and words in refused.found and "3 messages wait" in refused.found


def test_systemd_s_status_names_the_trouble(box: Settings) -> None:
    from device.capture.sources import DemoSource
    from device.listening.live import Session
    from device.view.supervisor import SupervisorView

    settings = box_with(box, port=free_port())
    with Sender(settings, lambda _: None) as sender:
        session = Session(DemoSource(7, 8.0, fast=True), Certain(), settings.quality)
        view = SupervisorView(session, {}, sender)
        wait_for(lambda: sender.trouble)
        assert "0 breaths; MQTT: 127.0.0.1:" in view.status() and "Connection refused" in view.status()


@pytest.mark.parametrize("setting", ["mqtt_box = 'ward/7'", "mqtt_prefix = 'a/#'", "mqtt_prefix = ''"])
def test_names_that_no_topic_may_have(setting: str, tmp_path: Path) -> None:
    (tmp_path / "respsam.toml").write_text(f"[outputs]\n{setting}\n")
    with pytest.raises(SettingsError, match=r"respsam.toml, line 2: outputs\.mqtt_"):
        load_settings(tmp_path / "respsam.toml")
