"""`bundle` and `trust` on a command line, updates from a file, URL and shared folder, and three boxes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import device.cli
import device.updates
from device.bundle import pack, read_bundle
from device.listening.cycle import CycleResult
from device.model.opening import open_classifier
from device.slots import Slots
from device.store.sessions import list_sessions, read_session
from device.view.view import View
from export.signing import offer, sign_bundle
from firmware_config.passports import PassportFile
from firmware_config.settings import load_settings
from firmware_config.trust import Trust
from tests.conftest import REPOSITORY, RunCli
from tests.device.broker import Broker, Reader, has_mosquitto, wait_for
from tests.device.bundle_maker import make_bundle
from tests.device.conftest import Device, one_error
from tests.device.test_configuration import calibration, passport
from tests.device.test_slots import named
from tests.device.view.test_supervisor import Supervisor
from tests.firmware_config.keys import key_pair


def wrong_self_test(manifest: dict[str, Any]) -> None:
    manifest["self_test"]["expected_probability"][0] += 0.1


@pytest.fixture(autouse=True)
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A box of its own for each test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "one", changes=named("one"))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    folder = make_bundle(tmp_path / "two", changes=named("two"))
    pack(folder, tmp_path / "two.respsam")
    return tmp_path / "two.respsam"


@contextmanager
def served(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """Nothing on stderr."""


class EndsEarly(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(b"PK" * 100)

    def log_message(self, *_arguments: object) -> None:
        """Nothing on stderr."""


def test_a_bundle_is_installed_listed_rolled_back_and_activated(respsam_device: Device, one: Path, two: Path) -> None:
    assert "slot a, one" in respsam_device("bundle", "install", one).out
    listened = respsam_device("listen", "--source", "demo", "--fast", "--seconds", "12", "--json")
    assert listened.objects[-1]["bundle"] == read_bundle(one).fingerprint
    assert "slot b, two" in respsam_device("bundle", "install", two).out
    listed = json.loads(respsam_device("bundle", "list", "--json").out)
    assert listed["active"] == "b"
    assert {row["slot"]: row["state"] for row in listed["slots"]} == {"a": "kept", "b": "active on trial"}
    assert "slot a, one" in respsam_device("bundle", "rollback").out
    assert "slot b, two" in respsam_device("bundle", "activate", "b").out
    assert "the shipped bundle is active" in respsam_device("bundle", "activate", "shipped").out
    plain = respsam_device("bundle", "list").out
    assert "the shipped bundle is in use" in plain and "slot b, two" in plain


def test_sessions_from_before_an_update_stay_and_are_replayed(
    respsam_device: Device, one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESPSAM_STORE__AUDIO", "true")
    respsam_device("bundle", "install", one)
    respsam_device("listen", "--source", "demo", "--fast", "--seconds", "12")
    respsam_device("bundle", "install", two)
    respsam_device("listen", "--source", "demo", "--fast", "--seconds", "12")
    sessions = list_sessions(load_settings().store.file)
    assert [row["bundle_name"] for row in sessions] == ["one", "two"]
    for row in sessions:
        assert respsam_device("replay", row["id"]).code == 0


def test_a_failed_health_check_is_a_gate_and_changes_nothing(respsam_device: Device, one: Path, tmp_path: Path) -> None:
    respsam_device("bundle", "install", one)
    before = (tmp_path / "state/respsam/bundles/state.json").read_bytes()
    broken = make_bundle(tmp_path / "broken", changes=wrong_self_test)
    answer = respsam_device("bundle", "install", broken)
    assert answer.code == 3
    (line,) = answer.error.splitlines()
    assert "the health check failed, nothing was changed: self-test off by 0.1" in line
    assert (tmp_path / "state/respsam/bundles/state.json").read_bytes() == before


def test_what_cannot_be_installed_is_one_line(respsam_device: Device, one: Path, two: Path, tmp_path: Path) -> None:
    assert "no bundle here" in one_error(respsam_device("bundle", "install", tmp_path / "nowhere"))
    two.write_bytes(two.read_bytes()[:-200])
    assert "cannot be read" in one_error(respsam_device("bundle", "install", two))
    assert "slot b is empty" in one_error(respsam_device("bundle", "activate", "b"))
    assert "nothing to roll back to" in one_error(respsam_device("bundle", "rollback"))
    assert not (tmp_path / "state/respsam/bundles/state.json").exists()
    respsam_device("bundle", "install", one)
    (tmp_path / "state/respsam/bundles/a/model.onnx").write_bytes(b"damaged")
    assert "model.onnx has sha256" in one_error(respsam_device("bundle", "activate", "a"))


def test_a_bundle_comes_from_a_url_whole_or_not_at_all(
    respsam_device: Device, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(partial(Quiet, directory=str(two.parent))) as url:
        assert "404" in one_error(respsam_device("bundle", "install", f"{url}/nowhere.respsam"))
        assert "slot a, two" in respsam_device("bundle", "install", f"{url}/two.respsam").out
    assert "does not answer" in one_error(respsam_device("bundle", "install", f"{url}/two.respsam"))
    with served(EndsEarly) as url:
        assert "ended after 200 of 100000 bytes" in one_error(respsam_device("bundle", "install", f"{url}/x.respsam"))
    monkeypatch.setattr(device.updates, "SILENT_SECONDS", 0.2)

    class Silent(EndsEarly):
        def do_GET(self) -> None:
            self.rfile.read(1)

    with served(Silent) as url:
        assert "stopped answering" in one_error(respsam_device("bundle", "install", f"{url}/x.respsam"))


def test_with_a_trusted_key_unsigned_bundles_are_refused_wherever_they_are_named(
    respsam_device: Device, one: Path, tmp_path: Path
) -> None:
    private, public = key_pair(tmp_path, "key")
    respsam_device("bundle", "install", one)
    added = respsam_device("trust", "add", public)
    assert added.code == 0 and "slot a will not be used" in added.error
    assert "not signed" in one_error(respsam_device("bundle", "install", one))
    demo = ("listen", "--source", "demo", "--fast", "--seconds", "3")
    assert "not signed" in one_error(respsam_device(*demo, "--bundle", one))
    listened = respsam_device(*demo)  # the shipped bundle is a part of the program
    assert listened.code == 0 and "the shipped bundle is used" in listened.error
    sign_bundle(read_bundle(one), private)
    assert respsam_device(*demo, "--bundle", one).code == 0
    assert respsam_device("bundle", "install", one).code == 0
    (key,) = (json.loads(line)["key"] for line in respsam_device("trust", "list", "--json").out.splitlines())
    assert "slot" in respsam_device("trust", "remove", key).error
    assert f"{key}  revoked" in respsam_device("trust", "list").out
    assert "revoked" in one_error(respsam_device("bundle", "install", one))
    assert "a private key" in one_error(respsam_device("trust", "add", private))


def test_an_update_that_fails_while_it_listens_is_rolled_back(
    respsam_device: Device, one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from device.bundle import BundleError
    from device.model.classifier import Classifier

    for bundle in (one, two):
        respsam_device("bundle", "install", bundle)
        respsam_device("listen", "--source", "demo", "--fast", "--seconds", "3")

    def fail(*_arguments: object) -> None:
        raise BundleError("the model answers NaN")

    monkeypatch.setattr(Classifier, "judge", fail)
    answer = respsam_device("listen", "--source", "demo", "--fast", "--seconds", "12")
    assert answer.code == 2 and "back to slot a, one" in answer.error
    monkeypatch.undo()


class Operator(View):
    """Installs the update in the middle of a stretch."""

    def __init__(self, update: Path) -> None:
        self.update, self.cycles = update, 0

    def show(self, item: object) -> None:
        self.cycles += isinstance(item, CycleResult)
        if self.cycles == 3 and isinstance(item, CycleResult):
            device.updates.install(self.update, load_settings().bundle, print)

    def end(self, *_arguments: object) -> None:
        """Nothing to show."""


def test_listen_goes_on_with_the_next_session_after_an_update(
    respsam_device: Device, one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.updates.install(one, load_settings().bundle, print)
    show, operator = device.cli._show_service, Operator(two)
    monkeypatch.setattr(device.cli, "_show_service", partial(show, views=[operator]))
    answer = respsam_device("listen", "--source", "demo", "--fast", "--seconds", 60, "--json")
    assert answer.code == 0, answer.error
    summaries = [line for line in answer.objects if line["type"] == "summary"]
    assert [line["bundle"] for line in summaries] == [read_bundle(path).fingerprint for path in (one, two)]
    assert sum(line["seconds"]["heard"] for line in summaries) == 60.0
    assert list(dict.fromkeys(line["session"] for line in answer.objects)) == [line["session"] for line in summaries]


def test_a_session_changes_to_a_bundle_between_two_stretches_without_losing_sound(
    one: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passport's calibration for the new bundle, the next JSON session and systemd's watchdog go with it."""
    from device.capture.sources import DemoSource
    from device.configuration import configured
    from device.service import Service
    from device.view.terminal import JsonView

    supervisor = Supervisor(tmp_path)
    for name, value in supervisor.environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    warnings: list[str] = []
    device.updates.install(one, settings.bundle, warnings.append)
    plain, calibrated = configured(settings), calibration(read_bundle(two).fingerprint, 0.5, 0.9)
    threshold = plain.classifier.site_rule.threshold
    known = passport(calibrations=(calibrated.model_copy(update={"bundle_threshold": threshold}),))
    ready = replace(plain, passport=PassportFile(tmp_path / "testoscope.toml", known))
    ready = ready.with_classifier(plain.classifier, warnings.append)
    assert "calibrated for another bundle" in warnings.pop()
    service = Service(
        DemoSource(7, 60.0, fast=True),
        ready.classifier,
        settings,
        warn=warnings.append,
        circumstances=ready.circumstances,
        follow=ready,
    )

    operator, lines = Operator(two), StringIO()
    service.run([operator, JsonView(service.session, lines)])
    assert service.session.decision.stretches == 1 and service.session.between_stretches is False
    assert not supervisor.times("STOPPING=1")
    between = time.monotonic()
    assert service.advance()
    service.run([operator, JsonView(service.session, lines)])
    assert not service.advance()
    first, second = (read_session(settings.store.file, number) for number in (1, 2))
    assert (first["bundle_name"], second["bundle_name"]) == ("one", "two")
    assert first["verdict"] in ("flagged", "nothing flagged")
    assert first["heard_samples"] + second["heard_samples"] == 60 * 16_000
    assert first["missing_samples"] == second["missing_samples"] == 0
    assert (first["calibration"], second["calibration"]) == ("", calibrated.name)
    assert (first["site_threshold"], second["site_threshold"]) == (threshold, 0.9)
    summaries = [line for line in map(json.loads, lines.getvalue().splitlines()) if line["type"] == "summary"]
    assert [line["calibration"] for line in summaries] == ["", calibrated.name]
    ids = list(dict.fromkeys(json.loads(line)["session"] for line in lines.getvalue().splitlines()))
    assert ids == [line["session"] for line in summaries] and len(ids) == 2
    supervisor.wait_for("STOPPING=1", since=between)
    assert supervisor.times("WATCHDOG=1", since=between)
    assert not warnings


def test_a_signal_while_a_bundle_is_loaded_ends_the_session(one: Path, two: Path) -> None:
    from device.capture.sources import DemoSource
    from device.configuration import Configuration, configured
    from device.service import Service
    from device.store.sessions import Warn

    settings = load_settings()
    device.updates.install(one, settings.bundle, print)

    class Slow(Configuration):
        def with_active_bundle(self, warn: Warn) -> Configuration:
            service.stop("stopped by SIGTERM")
            return configured(settings)

    ready = configured(settings)
    follow = Slow(ready.settings, ready.classifier, ready.load)
    service = Service(DemoSource(7, 60.0, fast=True), ready.classifier, settings, follow=follow)
    device.updates.install(two, settings.bundle, print)
    service.run()
    assert not service.session.hands_over and not service.advance()
    assert read_session(settings.store.file, 1)["timeline"][-1]["note"] == "stopped by SIGTERM"


def test_doctor_says_which_update_failed(one: Path) -> None:
    from device.doctor import _bundle
    from device.model.opening import open_slots

    settings = load_settings().bundle
    device.updates.install(one, settings, print)
    assert all(finding.state == "ok" for finding in _bundle(settings, 1.0))
    open_slots(settings).mark_failed("0" * 64, "it answers nonsense")
    assert [finding.found for finding in _bundle(settings, 1.0) if finding.state == "warning"] == [
        "bundle 000000000000 failed here: it answers nonsense"
    ]


def test_doctor_says_why_another_bundle_is_in_use(respsam_device: Device, one: Path, tmp_path: Path) -> None:
    from device.doctor import _bundle

    respsam_device("bundle", "install", one)
    respsam_device("trust", "add", key_pair(tmp_path, "key")[1])
    (warning,) = [finding for finding in _bundle(load_settings().bundle, 1.0) if finding.state == "warning"]
    assert warning.check == "update" and "not signed" in warning.found and "the shipped bundle is used" in warning.found


def test_poll_installs_what_is_offered_once(respsam_device: Device, one: Path, two: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    assert "rollout.json: cannot be read" in one_error(respsam_device("bundle", "poll", shared))
    offer(read_bundle(one), shared, [])
    assert "is installed" in respsam_device("bundle", "poll", shared, "--box", "box-1").out
    respsam_device("listen", "--source", "demo", "--fast", "--seconds", "3")
    assert "one" in respsam_device("bundle", "poll", shared, "--box", "box-1").out
    assert json.loads((shared / "reports/box-1.json").read_text())["state"] == "ready"
    with served(partial(Quiet, directory=str(shared))) as url:
        assert "is in use" in respsam_device("bundle", "poll", url, "--box", "box-1").out
        offer(read_bundle(two), shared, [])
        assert "slot b, two" in respsam_device("bundle", "poll", url, "--box", "box-1").out
    respsam_device("bundle", "rollback")
    refused = respsam_device("bundle", "poll", shared, "--box", "box-1")
    assert refused.code == 3 and "rolled back by hand" in refused.out
    broken = make_bundle(tmp_path / "broken", changes=wrong_self_test)
    offer(read_bundle(broken), shared, [])
    for _ in range(2):  # the second one does not try again
        assert respsam_device("bundle", "poll", shared, "--box", "box-1").code == 3
    assert "no name" in one_error(respsam_device("bundle", "poll", shared, "--box", "../box"))
    (shared / "rollout.json").write_text('{"bundle": "../x"}')
    assert "rollout.json: bundle" in one_error(respsam_device("bundle", "poll", shared))


# a start of the service that the kernel kills, as for want of memory
KILLED_START = """
import os, signal, sys
from device.model import opening
opening.self_test = lambda classifier: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["respsam-device", "listen", "--source", "demo", "--fast", "--seconds", "3"]
from device.cli import main
main()
"""


@pytest.mark.timeout(900)  # a dozen processes, on a machine that may be busy
def test_an_update_of_three_boxes_stops_at_the_box_where_it_fails(
    run_cli: RunCli,
    one: Path,
    two: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Three boxes in processes of their own: the second one fails and reports it, the third one waits.

    One broker gets the messages of all three, and shows which bundle each of them uses.
    """
    broker: Broker | None = request.getfixturevalue("broker") if has_mosquitto() else None
    shared, boxes = tmp_path / "shared", ("box-1", "box-2", "box-3")
    homes = {name: str(tmp_path / name) for name in boxes}

    def poll(name: str) -> subprocess.CompletedProcess[str]:
        return run_cli("device", "bundle", "poll", shared, "--box", name, XDG_STATE_HOME=homes[name])

    def listen(name: str) -> None:
        sends = {**broker.environment, "RESPSAM_OUTPUTS__MQTT_BOX": name} if broker else {}
        command = ("listen", "--source", "demo", "--fast", "--seconds", "8")
        done = run_cli("device", *command, timeout_seconds=120, XDG_STATE_HOME=homes[name], **sends)
        assert done.returncode == 0, done.stderr

    def active(name: str) -> str:
        state = Slots(tmp_path / name / "respsam/bundles", Trust(tmp_path / "nobody")).state()
        return state.current.name if state.current else "shipped"

    for name in boxes:
        monkeypatch.setenv("XDG_STATE_HOME", homes[name])
        device.updates.install(one, load_settings().bundle, print)
        open_classifier(load_settings().bundle)
    offer(read_bundle(two), shared, [[name] for name in boxes])
    assert "waits for box-1" in poll("box-2").stdout
    assert "is installed" in poll("box-1").stdout
    assert "waits for box-1" in poll("box-2").stdout
    listen("box-1")
    assert "is in use" in poll("box-1").stdout
    assert "is installed" in poll("box-2").stdout
    for _ in range(3):
        environment = {**os.environ, "XDG_STATE_HOME": homes["box-2"], "PYTHONPATH": str(REPOSITORY)}
        killed = subprocess.run([sys.executable, "-c", KILLED_START], env=environment, cwd=tmp_path, timeout=120)
        assert killed.returncode == -signal.SIGKILL
    listen("box-2")
    assert active("box-2") == "one"
    failed = poll("box-2")
    assert failed.returncode == 3 and "3 starts in a row" in failed.stdout
    assert "waits for box-2, where it failed: 3 starts" in poll("box-3").stdout
    assert [active(name) for name in boxes] == ["two", "one", "one"]
    if broker is None:
        pytest.skip("the messages of the three boxes are not checked: install mosquitto ('make test' installs it)")
    with closing(Reader(broker, "operator")) as operator:
        wait_for(lambda: len(operator.of("status")) == 2)
        listen("box-3")
        wait_for(lambda: operator.status.get("words") == "8 s are over")
        assert {one["box"]: one["bundle_name"] for one in operator.of("status")} == dict(
            zip(boxes, ("two", "one", "one"), strict=True)
        )
        assert {message.topic for message in operator.messages} == {
            *(f"respsam/{name}/status" for name in boxes),
            "respsam/box-3/cycle",
            "respsam/box-3/summary",
        }
