"""Safe mode of a service, and a stethoscope's passport in a session: shown, logged, stored, replayed."""

import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device.breath.simulator import simulate
from device.bundle import CalibrationBounds, read_bundle
from device.capture.blocks import Block
from device.capture.microphone import MicrophoneSource
from device.capture.stethoscope import measured
from device.configuration import configure
from device.healthy import Draft, SiteReading
from device.signal import SAMPLE_RATE, FloatArray
from firmware_config.passports import (
    Calibration,
    Match,
    Passport,
    PassportError,
    Words,
    own_folder,
    read_passport,
    write_passport,
)
from firmware_config.safe_mode import last_good_file
from firmware_config.settings import AudioSettings, SettingsError, load
from tests.device.bundle_maker import make_bundle
from tests.device.conftest import Device, one_error
from tests.device.storing import rows

STETH = "Testoscope"
NO_PROCESS = type("NoProcess", (), {"kill": lambda self: None})()


class Played(MicrophoneSource):
    """A microphone that gives simulated breath without waiting for it."""

    live = False
    sound: FloatArray = simulate(5, 30.0).samples

    def __init__(self, settings: AudioSettings, waits: bool = False) -> None:
        self.name, self.gain_db, self.plug_in_test, self.highest_hz = STETH, settings.gain_db, None, SAMPLE_RATE / 2
        self._process = NO_PROCESS

    @property
    def unverified(self) -> str:
        return ""

    @property
    def silent_seconds(self) -> float:
        return 0.0

    def _until_sound(self) -> Iterator[Block]:
        return iter(())

    def _while_sound(self) -> Iterator[Block]:
        gain = np.float32(10 ** (self.gain_db / 20))
        return (Block(self.sound[at : at + 1600] * gain) for at in range(0, self.sound.size, 1600))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr("device.service.MicrophoneSource", Played)
    monkeypatch.setattr("device.capture.microphone.MicrophoneSource", Played)
    monkeypatch.setattr("device.configuration.MicrophoneSource", Played)
    monkeypatch.setenv("RESPSAM_AUDIO__DEVICE", STETH)
    return tmp_path / "state"


@pytest.fixture
def config(tmp_path: Path, bundle: Path) -> Path:
    file = tmp_path / "respsam.toml"
    file.write_text(f"[bundle]\npath = '{bundle}'\n[demo]\nseed = 5\nseconds = 10.0\n")
    return file


def passport(**more: Any) -> Passport:
    words = Words(text="a wire", source="this test")
    return Passport(name="Testoscope", connection=words, match=Match(names=(STETH,)), **more)


def write(made: Passport) -> None:
    write_passport(own_folder() / "testoscope.toml", made)


def calibration(fingerprint: str, before: float, after: float) -> Calibration:
    return Calibration(
        name="testoscope-2026-12-01-abcdef", made_at="2026-12-01T10:00:00+01:00", bundle=fingerprint,
        bundle_threshold=before, threshold=after, people=5, sites=20, sites_flagged_before=4, sites_flagged_after=0,
    )  # fmt: skip


# safe mode


def spoil(config: Path) -> None:
    config.write_text(config.read_text() + "sed = 6\n")


def test_a_damaged_copy_of_the_last_good_file_stops_no_service(respsam_device: Device, config: Path) -> None:
    listen = ("listen", "--source", "demo", "--fast", "--service", "--config", config)
    kept = last_good_file(config)
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"\xff\xfe")
    assert respsam_device(*listen).code == 0
    assert kept.read_bytes() == config.read_bytes()


def test_a_service_with_a_broken_file_listens_with_the_last_good_one_and_says_so_everywhere(
    respsam_device: Device, config: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listen = ("listen", "--source", "demo", "--fast", "--service", "--config", config)
    good = respsam_device(*listen, "--json").objects
    assert good[-1]["safe_mode"] == ""
    assert last_good_file(config).read_text() == config.read_text()
    spoil(config)
    why = f"{config}, line 6: unknown setting 'demo.sed'; nearest: 'demo.seed'; listening with the last good settings"
    with caplog.at_level(logging.WARNING, "device"):
        broken = respsam_device(*listen, "--json")
    assert broken.code == 0
    assert f"warning: SAFE MODE: {why}" in broken.error
    summary, entries = broken.objects[-1], [one for one in broken.objects if one["type"] == "timeline"]
    assert summary["safe_mode"].startswith(why)
    assert (summary["verdict"], summary["probability"]) == (good[-1]["verdict"], good[-1]["probability"])
    assert [(one["kind"], one["note"]) for one in entries[:2]][1] == ("safe mode", summary["safe_mode"])
    assert any("sound: safe mode" in record.message for record in caplog.records)
    shown = respsam_device(*listen).out
    assert f"SAFE MODE {why}" in shown and f"DEMO SAFE MODE: {why}" in shown
    stored = rows(state / "respsam.sqlite", "SELECT safe_mode FROM sessions ORDER BY id")
    assert [bool(text) for (text,) in stored] == [False, True, True]
    assert f"SAFE MODE: {why}" in respsam_device("sessions", "show", 2).out


def test_a_command_typed_by_hand_with_a_broken_file_ends_with_the_error(respsam_device: Device, config: Path) -> None:
    respsam_device("listen", "--source", "demo", "--fast", "--no-store", "--service", "--config", config)
    spoil(config)
    error = one_error(respsam_device("listen", "--source", "demo", "--fast", "--config", config))
    assert "line 6: unknown setting 'demo.sed'" in error


def test_systemd_makes_it_a_service(respsam_device: Device, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    listen = ("listen", "--source", "demo", "--fast", "--no-store", "--json", "--config", config)
    respsam_device(*listen)
    spoil(config)
    assert respsam_device(*listen).objects[-1]["safe_mode"]


def configured(config: Path, warnings: list[str]) -> Any:
    return configure(lambda file, layers: load(file, {}, {}, layers), config, warnings.append, service=True)


def test_a_file_that_names_a_missing_bundle_is_broken_too(config: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    first = configured(config, warnings)
    config.write_text(f"[bundle]\npath = '{tmp_path / 'gone'}'\n")
    now = configured(config, warnings)
    assert now.classifier.fingerprint == first.classifier.fingerprint
    assert "no bundle here" in now.circumstances.safe_mode
    assert len(warnings) == 1


def test_a_file_that_never_worked_is_refused_and_so_is_one_whose_last_good_one_is_another_files(
    config: Path, tmp_path: Path
) -> None:
    configured(config, [])
    other = tmp_path / "other.toml"
    other.write_text("[demo]\nsed = 1\n")
    with pytest.raises(SettingsError, match="line 2"):
        configured(other, [])


def test_settings_that_cannot_be_kept_are_a_warning(config: Path, state: Path) -> None:
    state.write_text("in the way of the folder")
    warnings: list[str] = []
    assert configured(config, warnings).circumstances.safe_mode == ""
    assert warnings[0].startswith("the settings cannot be kept for safe mode: ")


# passports


def listen(respsam_device: Device, bundle: Path, *more: object) -> list[dict[str, Any]]:
    answer = respsam_device("listen", "--seconds", 25, "--json", "--bundle", bundle, *more)
    assert answer.code == 0, answer.error
    return answer.objects


def test_a_recognised_stethoscopes_passport_is_applied_shown_and_stored(
    respsam_device: Device, bundle: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(passport(gain_db=6.0))
    objects = listen(respsam_device, bundle)
    assert objects[-1]["passport"] == "testoscope"
    assert [one["note"] for one in objects if one.get("kind") == "passport"] == ["testoscope, not calibrated"]
    ((stored, settings),) = rows(state / "respsam.sqlite", "SELECT passport, settings FROM sessions")
    assert (stored, json.loads(settings)["audio"]["gain_db"]) == ("testoscope", 6.0)
    shown = {row["key"]: row for row in respsam_device("config", "show", "--json").objects}
    assert shown["audio.gain_db"] == {"key": "audio.gain_db", "value": 6.0, "from": "passport testoscope"}
    # the user's own setting is stronger
    monkeypatch.setenv("RESPSAM_AUDIO__GAIN_DB", "0")
    listen(respsam_device, bundle)
    (settings,) = rows(state / "respsam.sqlite", "SELECT settings FROM sessions WHERE id = 2")[0]
    assert json.loads(settings)["audio"]["gain_db"] == 0.0
    monkeypatch.setenv("RESPSAM_AUDIO__PASSPORT", "none")
    assert listen(respsam_device, bundle, "--no-store")[-1]["passport"] == ""


def test_a_stethoscope_that_drifted_is_named_in_the_session_and_in_the_store(
    respsam_device: Device, bundle: Path, state: Path
) -> None:
    loud = np.random.default_rng(0).normal(0.0, 0.3, 5 * SAMPLE_RATE).astype(np.float32)
    write(passport(measured=measured(loud * np.float32(0.1), loud, loud, STETH, "2026-12-01T10:00:00+01:00")))
    objects = listen(respsam_device, bundle)
    (entry,) = [one for one in objects if one.get("kind") == "drift"]
    assert entry["note"].startswith("another gain, or a dead channel: ")
    assert rows(state / "respsam.sqlite", "SELECT note FROM timeline WHERE kind = 'drift'") == [(entry["note"],)]


def test_two_passports_that_match_end_a_command_and_not_a_service(respsam_device: Device, bundle: Path) -> None:
    write(passport())
    write_passport(own_folder() / "twin.toml", passport())
    answer = respsam_device("listen", "--seconds", 5, "--bundle", bundle, "--no-store")
    assert "two passports match" in one_error(answer)
    service = respsam_device("listen", "--seconds", 5, "--bundle", bundle, "--no-store", "--service", "--json")
    assert (service.code, service.objects[-1]["passport"]) == (0, "")
    assert "two passports match" in service.error and "listening without a passport" in service.error


def test_a_verdict_names_its_calibration_the_store_keeps_it_and_replay_uses_it(
    respsam_device: Device, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESPSAM_STORE__AUDIO", "true")
    bundle = make_bundle(tmp_path / "calibrated")
    plain = listen(respsam_device, bundle)[-1]
    threshold = rows(state / "respsam.sqlite", "SELECT site_threshold FROM sessions")[0][0]
    write(passport(calibrations=(calibration(plain["bundle"], threshold, 1.0),)))
    calibrated = listen(respsam_device, bundle)[-1]
    assert calibrated["calibration"] == "testoscope-2026-12-01-abcdef"
    assert (plain["verdict"], calibrated["verdict"]) == ("flagged", "nothing flagged")
    known = rows(state / "respsam.sqlite", "SELECT calibration, site_threshold FROM sessions WHERE id = 2")
    assert known == [("testoscope-2026-12-01-abcdef", 1.0)]
    assert "calibration: testoscope-2026-12-01-abcdef" in respsam_device("sessions", "show", 2).out
    write(passport())  # the calibration was undone meanwhile
    for session in (1, 2):
        again = respsam_device("replay", session)
        assert (again.code, again.error) == (0, ""), again.out
    with sqlite3.connect(state / "respsam.sqlite") as database:
        database.execute("UPDATE sessions SET site_threshold = ? WHERE id = 2", (threshold,))
    database.close()
    assert respsam_device("replay", 2).code == 3


def test_a_calibration_of_another_bundle_or_threshold_is_not_applied(respsam_device: Device, bundle: Path) -> None:
    write(passport(calibrations=(calibration("0" * 64, 0.5, 1.0),)))
    answer = respsam_device("listen", "--seconds", 5, "--json", "--bundle", bundle, "--no-store")
    assert answer.objects[-1]["calibration"] == "" and "calibrated for another bundle" in answer.error
    write(passport(calibrations=(calibration(answer.objects[-1]["bundle"], 0.123, 1.0),)))
    answer = respsam_device("listen", "--seconds", 5, "--json", "--bundle", bundle, "--no-store")
    assert answer.objects[-1]["calibration"] == ""
    assert "was made at the site threshold 0.123" in answer.error and "it is not applied" in answer.error


def test_passport_new_writes_what_it_measured(respsam_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = np.random.default_rng(0).normal(0.0, 1e-4, 10 * SAMPLE_RATE).astype(np.float32)
    sounds = iter([quiet, Played.sound, Played.sound])

    def opened(settings: AudioSettings) -> Played:
        made = Played(settings)
        made.sound = next(sounds)
        return made

    monkeypatch.setattr("device.capture.microphone.MicrophoneSource", opened)
    monkeypatch.setenv("RESPSAM_AUDIO__GAIN_DB", "20")  # a passport is measured without gain
    answer = respsam_device("passport", "new", "Ward 3", "--seconds", 20)
    assert answer.code == 0, answer.error
    assert [line[:6] for line in answer.error.splitlines()] == ["1 of 3", "2 of 3", "3 of 3"]
    assert f"{own_folder() / 'ward-3.toml'}: noise -80" in answer.out
    assert "Ward 3" in respsam_device("passport", "list").out
    assert "noise_dbfs = -80" in respsam_device("passport", "show", "ward-3").out
    assert "already" in one_error(respsam_device("passport", "new", "Ward 3"))


def test_a_passport_of_a_stethoscope_that_gives_nothing_is_not_written(
    respsam_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Played, "sound", np.zeros(4 * SAMPLE_RATE, np.float32))
    answer = respsam_device("passport", "new", "Ward 3", "--seconds", 5)
    assert answer.code == 2 and "complete silence" in answer.error.splitlines()[-1]
    assert not own_folder().exists()


def test_a_damaged_passport_is_named_and_stops_no_service(respsam_device: Device, bundle: Path) -> None:
    write(passport())
    file = own_folder() / "testoscope.toml"
    file.write_text(file.read_text() + "[band]\nlow_hz = 9\nhigh_hz = 1\nsource = 'x'\n")
    assert "an impossible band" in one_error(respsam_device("passport", "list"))
    service = respsam_device("listen", "--seconds", 5, "--bundle", bundle, "--no-store", "--service", "--json")
    assert service.code == 0 and "an impossible band" in service.error
    with pytest.raises(PassportError, match="an impossible band"):
        read_passport(file)


def test_calibrate_listens_to_each_colleague_at_each_site(
    respsam_device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = CalibrationBounds(largest_shift=50.0, sensitivity_floor=0.5)
    bundle = make_bundle(tmp_path / "far", changes=lambda manifest: manifest.update(calibration=far.model_dump()))
    write(passport(gain_db=3.0))
    draft = Draft("testoscope", read_bundle(bundle).fingerprint)  # of a calibration that was interrupted
    draft.add("colleague 1", "left", SiteReading(0.5, 6, 0))
    sites = ("--site", "left", "--site", "right")
    answer = respsam_device("calibrate", *sites, "--seconds", 12, "--yes", "--bundle", bundle)
    assert answer.code == 0, answer.error
    asked = [line.split(":")[0] for line in answer.error.splitlines()]
    both = [f"colleague {number}, {site}" for number in range(1, 6) for site in ("left", "right")]
    assert asked == ["1 of 10 sites are there already", *both[1:]]
    assert answer.out.startswith("5 healthy people, 10 sites with a verdict\n")
    assert not list(own_folder().glob(".*"))
    (made,) = read_passport(own_folder() / "testoscope.toml").passport.calibrations
    calibrated = respsam_device("listen", "--seconds", 12, "--json", "--bundle", bundle, "--no-store").objects[-1]
    assert (calibrated["calibration"], calibrated["verdict"]) == (made.name, "nothing flagged")
