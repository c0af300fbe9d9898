"""The figures for Prometheus: what they count, that they only grow, and who may read them."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from device.configuration import configured
from device.console.accounts import Accounts
from device.console.addresses import ConsoleError, bound_socket
from device.console.line import RECORDED, SOUND, packed_sound
from device.console.metrics import Metrics
from device.console.view import ConsoleView
from device.service import Service, open_source
from device.signal import SAMPLE_RATE
from device.verdict.population import Subject
from device.verdict.summary import Summary
from firmware_config.settings import load_settings
from tests.device.bundle_maker import make_bundle
from tests.device.console.conftest import BLOCK, Answer, Served, console_settings, noise, serve, summary_of

TOKEN = "f" * 64
MODEL = {"name": "a <model>", "fingerprint": "ab" * 32}


def figures(text: str) -> dict[str, float]:
    """The value of every sample, by `name{label}` with the labels' values."""
    return {
        sample.name.removeprefix("respsam_") + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(served: Served, name: str, value: float) -> dict[str, float]:
    """The figures as soon as one of them has a value: messages take a moment."""
    for _ in range(300):
        answer = served.ask("GET", "/metrics", origin=None)
        assert answer.status == 200
        if (found := figures(answer.text)).get(name) == value:
            return found
    raise AssertionError(f"{name} never was {value}: {found}")


def counted(metrics: Metrics) -> dict[str, float]:
    return figures(metrics.text().decode())


def cycle_event(summary: Summary) -> bytes:
    return json.dumps({"type": "cycle", "class": "crackle", "reason": "", "summary": asdict(summary)}).encode()


BEGIN = json.dumps({"type": "begin", "demo": False}).encode()


def test_a_demo_has_the_figures_of_its_summary(served: Served, tmp_path: Path) -> None:
    flags = {"store.enabled": False, "bundle.path": str(make_bundle(tmp_path / "bundle"))}
    settings = load_settings(flags=flags)
    source = open_source("demo", settings, fast=True, seconds=40.0)
    service = Service(source, configured(settings).classifier, settings, Subject(), 40.0)
    summary = service.run([ConsoleView(service, served.line, 0, "listen")])
    found = scraped(served, "received_seconds_total", 40.0)
    assert summary.gradable > 0
    assert (found["sessions_total"], found["failed_sessions_total"], found["session_running"]) == (1, 0, 0)
    by_verdict = {name: value for name, value in found.items() if name.startswith("cycles_total")}
    assert sum(by_verdict.values()) == summary.cycles
    assert by_verdict.get("cycles_total{not gradable}", 0) == summary.cycles - summary.gradable
    assert by_verdict.get("cycles_total{normal}", 0) == summary.gradable - summary.flagged
    assert found["gradable_seconds_total"] == pytest.approx(summary.seconds["gradable"])
    assert found["stretches_total{flagged}"] == summary.stretches_flagged
    assert found["stretches_total{nothing flagged}"] == summary.stretches - summary.stretches_flagged
    assert found["inference_seconds_count"] == found["inference_seconds_bucket{+Inf}"] == summary.gradable
    assert found["inference_seconds_sum"] > 0 and found["waiting_cycles"] == 0
    assert found["timeline_events_total{start}"] == found["timeline_events_total{end}"] == 1


def test_the_format_is_prometheus_and_has_the_bundle(served: Served) -> None:
    answer = served.ask("GET", "/metrics", origin=None)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert re.search(r'respsam_build_info{bundle="<model>",fingerprint="(ab){32}",version="\d', answer.text)
    assert "_created" not in answer.text


def test_counters_grow_over_sessions_and_over_a_dropped_cycle() -> None:
    metrics = Metrics(MODEL)
    for begun in (1, 2):
        metrics.take(BEGIN)
        metrics.take(cycle_event(summary_of(1)))
        # a dropped cycle leaves the heard sound
        dropping = replace(summary_of(4), heard_samples=0, dropped_samples=4 * SAMPLE_RATE, dropped=2)
        metrics.take(cycle_event(dropping))
        found = counted(metrics)
        assert (found["received_seconds_total"], found["dropped_seconds_total"]) == (4.0 * begun, 4.0 * begun)
        assert (found["dropped_cycles_total"], found["sessions_total"]) == (2 * begun, begun)


def test_a_step_of_the_self_test_is_no_session() -> None:
    metrics = Metrics(MODEL)
    metrics.take(json.dumps({**json.loads(BEGIN), "purpose": "record"}).encode())
    metrics.take(packed_sound(RECORDED, 7, noise(1)))
    found = counted(metrics)
    assert (found.get("sessions_total", 0), found["session_running"]) == (0, 0)


def test_a_process_that_was_started_again_counts_from_there() -> None:
    metrics = Metrics(MODEL)
    metrics.take(BEGIN)
    metrics.take(cycle_event(summary_of(500)))
    assert counted(metrics)["received_seconds_total"] == 0
    metrics.take(cycle_event(summary_of(502)))
    assert counted(metrics)["received_seconds_total"] == 2


def test_a_deaf_box_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    metrics = Metrics(MODEL)
    metrics.take(BEGIN)
    now += 50.0
    found = counted(metrics)
    assert (found["microphone_present"], found["seconds_since_sound"], found["session_running"]) == (0, 50.0, 1)
    metrics.take(packed_sound(SOUND, 0, noise(1)))
    now += 3.0
    # a muted microphone is there, and gives complete silence
    metrics.take(packed_sound(SOUND, BLOCK, 0.0 * noise(1)))
    found = counted(metrics)
    assert (found["microphone_present"], found["seconds_since_sound"], found["level_dbfs"]) == (1, 3.0, -160.0)
    metrics.take(json.dumps({"type": "timeline", "kind": "lost", "seconds": 1.0, "note": ""}).encode())
    metrics.take(json.dumps({"type": "failed", "order": 0, "error": "no microphone"}).encode())
    found = counted(metrics)
    assert (found["microphone_present"], found["timeline_events_total{lost}"]) == (0, 1)
    assert (found["failed_sessions_total"], found["session_running"]) == (1, 0)


def test_cycles_wait_until_they_are_judged() -> None:
    metrics = Metrics(MODEL)
    metrics.take(BEGIN)
    for _ in range(3):
        metrics.take(json.dumps({"type": "found"}).encode())
    assert counted(metrics)["waiting_cycles"] == 3
    metrics.take(json.dumps({"type": "figures", "inference_seconds": None, "waiting": 2}).encode())
    found = counted(metrics)
    assert (found["waiting_cycles"], found["inference_seconds_count"]) == (2, 0)
    poor = {"type": "cycle", "class": None, "reason": "mains hum: move away", "summary": asdict(summary_of(0))}
    metrics.take(json.dumps(poor).encode())
    assert counted(metrics)["not_gradable_cycles_total{mains hum}"] == 1


def test_the_boards_temperatures(tmp_path: Path) -> None:
    zones = {"thermal_zone0": ("cpu-thermal", "48312"), "thermal_zone1": ("cpu-thermal", "-500")}
    for zone, (kind, celsius) in {**zones, "thermal_zone2": ("off", "")}.items():
        folder = tmp_path / "sys/class/thermal" / zone
        folder.mkdir(parents=True)
        (folder / "type").write_text(f"{kind}\n")
        (folder / "temp").write_text(f"{celsius}\n")
    found = counted(Metrics(MODEL, tmp_path))
    temperatures = {name: value for name, value in found.items() if "celsius" in name}
    assert temperatures == {
        "temperature_celsius{cpu-thermal 0}": 48.312,
        "temperature_celsius{cpu-thermal 1}": -0.5,
    }


def test_the_documents_name_figures_that_are_there() -> None:
    there = {family.name for family in text_string_to_metric_families(Metrics(MODEL).text().decode())}
    named = set(re.findall(r"respsam_(\w+)(?![.\w])", Path("docs/fleet.md").read_text()))
    table = Path("docs/console.md").read_text().partition("after `respsam_`")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    listed = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    shown = {f"respsam_{name.removesuffix('_total')}" for name in named | listed}
    assert shown == there


# who may read them


@pytest.fixture(scope="module")
def reachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("scraped")
    accounts = Accounts(folder / "accounts.json")
    accounts.set("vera", "viewer", "viewer-password")
    (folder / "token").write_text(f"{TOKEN}\n")
    where = {"accounts": str(accounts.file), "metrics_token": str(folder / "token")}
    started = serve(folder, console_settings(host="0.0.0.0", names="127.0.0.1", **where))
    with started.line:
        yield started


def bearing(served: Served, token: str, path: str = "/metrics", **more: str) -> Answer:
    return served.ask("GET", path, origin=None, headers={"Authorization": f"Bearer {token}"}, **more)


def test_prometheus_reads_the_figures_by_its_token(reachable: Served) -> None:
    answer = bearing(reachable, TOKEN)
    assert answer.status == 200 and figures(answer.text)["sessions_total"] == 0


def test_the_token_opens_nothing_else(reachable: Served) -> None:
    assert bearing(reachable, TOKEN, "/api/history").status == 401
    assert bearing(reachable, TOKEN, "/").status == 303
    assert bearing(reachable, TOKEN, host=f"evil.example:{reachable.port}").status == 421


@pytest.mark.parametrize("token", ["", TOKEN[1:], f"{TOKEN}f", "\xff" * 64])
def test_another_token_opens_nothing(reachable: Served, token: str) -> None:
    answer = bearing(reachable, token)
    assert (answer.status, answer.text) == (401, "log in first\n")


def test_without_a_token_only_accounts_read_the_figures(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "accounts.json")
    accounts.set("vera", "viewer", "viewer-password")
    served = serve(tmp_path, console_settings(host="0.0.0.0", names="127.0.0.1", accounts=str(accounts.file)))
    with served.line:
        assert bearing(served, "").status == 401
        entered = served.ask("POST", "/login", form="name=vera&password=viewer-password")
        cookie = entered.headers["set-cookie"].split(";")[0]
        assert served.ask("GET", "/metrics", origin=None, cookie=cookie).status == 200


@pytest.mark.parametrize(("content", "words"), [(None, "cannot be read"), ("short", "'openssl rand -hex 32'")])
def test_a_token_that_is_none_stops_the_start(tmp_path: Path, content: str | None, words: str) -> None:
    accounts = Accounts(tmp_path / "accounts.json")
    accounts.set("vera", "viewer", "viewer-password")
    if content is not None:
        (tmp_path / "token").write_text(content)
    where = {"accounts": str(accounts.file), "metrics_token": str(tmp_path / "token")}
    with pytest.raises(ConsoleError, match=rf"console\.metrics_token: .*{words}"):
        bound_socket(console_settings(host="0.0.0.0", **where))
