"""`devices` and `doctor`: what they find on a real (virtual) microphone, and what they say where something is wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from device.doctor import Finding, board, examine, profile
from device.signal import SAMPLE_RATE
from firmware_config.settings import Settings, load_settings
from tests.conftest import REPOSITORY, RunCli
from tests.device.bundle_maker import make_bundle
from tests.device.virtual_microphone import DEFAULT, NAME, VirtualMicrophone

SOUND = ("audio stack", "microphone", "passport", "sound")
MACHINE = ("permissions", "bundle", "speed", "engine", "store", "disk", "clock", "heat", "power")


@pytest.fixture
def without_portaudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The search path of a Python whose `import sounddevice` does what it does where the library is missing."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'stub'}{os.pathsep}{REPOSITORY}")
    return os.environ["PYTHONPATH"]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def settings_of(bundle: Path, **flags: object) -> Settings:
    given = {"bundle.path": str(bundle), **{name.replace("__", "."): value for name, value in flags.items()}}
    return load_settings(flags=given, environment={})


def found(settings: Settings) -> dict[str, Finding]:
    return {one.check: one for one in examine(settings)}


@pytest.mark.sound
def test_inputs_are_listed_with_what_one_needs_to_choose(run_cli: RunCli, plugged: VirtualMicrophone) -> None:
    done = run_cli("device", "devices")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{NAME}  32 channels, 44100 Hz, ALSA\n" in done.stdout
    (default,) = [line for line in done.stdout.splitlines() if line.endswith("(default)")]
    assert default.startswith("default ")
    listed = [json.loads(line) for line in run_cli("device", "devices", "--json").stdout.splitlines()]
    assert {one["name"] for one in listed} == {NAME, DEFAULT, "default"}
    assert {(one["channels"], one["sample_rate"], one["host_api"]) for one in listed} == {(32, 44_100, "ALSA")}


@pytest.mark.sound
def test_without_an_input_that_is_said_in_words(run_cli: RunCli, plugged: VirtualMicrophone) -> None:
    (plugged.folder / "asound.conf").write_text("pcm.!default { type hw card 31 }")
    done = run_cli("device", "devices")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no microphone: plug one in" in done.stdout
    assert run_cli("device", "devices", "--json").stdout == ""


@pytest.mark.sound
def test_a_device_that_is_well(bundle: Path, tmp_path: Path, plugged: VirtualMicrophone) -> None:
    noise = np.random.default_rng(0).normal(0.0, 0.05, 30 * SAMPLE_RATE)
    soundfile.write(tmp_path / "noise.wav", noise, SAMPLE_RATE)
    player = plugged.play(tmp_path / "noise.wav")
    report = found(settings_of(bundle, audio__device=NAME))
    player.kill()
    player.wait()
    assert tuple(report) == (*SOUND, *MACHINE)
    assert not [one for one in report.values() if one.state == "FAIL"]
    assert report["sound"].state == "ok"
    assert float(report["sound"].found.split()[0]) == pytest.approx(-26.0, abs=2.0)
    assert "tiny" in report["bundle"].found
    assert "self-test of " in report["bundle"].found
    assert "onnxruntime" in report["engine"].found


@pytest.mark.sound
def test_complete_silence_is_a_warning(bundle: Path, plugged: VirtualMicrophone) -> None:
    report = found(settings_of(bundle, audio__device=NAME))
    assert (report["sound"].state, report["microphone"].state) == ("warning", "ok")
    assert "complete silence" in report["sound"].found


@pytest.mark.sound
def test_a_microphone_without_sound_fails(bundle: Path, plugged: VirtualMicrophone) -> None:
    plugged.suspend(True)
    report = found(settings_of(bundle, audio__device=NAME))
    assert report["sound"].state == "FAIL"
    assert f"{NAME} gives no sound" in report["sound"].found


@pytest.mark.sound
def test_a_microphone_of_another_name_fails(bundle: Path, plugged: VirtualMicrophone) -> None:
    report = found(settings_of(bundle, audio__device="Littmann"))
    assert report["microphone"].state == "FAIL"
    assert "no microphone called 'Littmann'" in report["microphone"].found
    assert "sound" not in report


def test_it_runs_without_portaudio_and_exits_3(run_cli: RunCli, bundle: Path, without_portaudio: str) -> None:
    done = run_cli("device", "doctor", "--bundle", bundle, PYTHONPATH=without_portaudio)
    assert (done.returncode, done.stderr) == (3, "")
    first, *others = done.stdout.splitlines()
    assert first.startswith("FAIL     audio stack")
    assert "apt install libportaudio2" in first
    assert len(others) == len(MACHINE)
    again = run_cli("device", "doctor", "--json", "--bundle", bundle, PYTHONPATH=without_portaudio)
    objects = [json.loads(line) for line in again.stdout.splitlines()]
    assert [one["check"] for one in objects] == ["audio stack", *MACHINE]
    assert {tuple(one) for one in objects} == {("check", "state", "found")}
    listed = run_cli("device", "devices", PYTHONPATH=without_portaudio)
    assert listed.returncode == 2
    assert "PortAudio is not installed" in listed.stderr


@pytest.mark.usefixtures("without_portaudio")
def test_a_bundle_that_does_not_hold_or_answers_something_else_fails(bundle: Path, tmp_path: Path) -> None:
    wrong = make_bundle(
        tmp_path / "wrong",
        changes=lambda manifest: manifest["self_test"].update(
            expected_probability=[1 - one for one in manifest["self_test"]["expected_probability"]]
        ),
    )
    assert found(settings_of(wrong))["bundle"].state == "FAIL"
    (bundle / "model.onnx").write_bytes(b"changed")
    report = found(settings_of(bundle))
    assert report["bundle"].state == "FAIL"
    assert "model.onnx has sha256" in report["bundle"].found
    assert report["engine"].state == "ok"


@pytest.mark.usefixtures("without_portaudio")
def test_an_engine_that_was_asked_for_and_is_not_there_is_told(bundle: Path) -> None:
    engine = found(settings_of(bundle, bundle__engine="tensorrt"))["engine"]
    assert engine.state == "warning"
    assert engine.found.startswith("fallback engine, ONNX Runtime on the CPU: ")


@pytest.mark.usefixtures("without_portaudio")
def test_a_store_that_cannot_be_written_fails(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = found(settings_of(bundle, store__path=str(tmp_path / "file" / "store.sqlite")))
    assert report["store"].state == "FAIL"
    assert str(tmp_path / "file") in report["store"].found
    report = found(settings_of(bundle, store__path=str(tmp_path)))
    assert report["store"] == Finding("store", "FAIL", f"{tmp_path} is a folder; set store.path to a file")
    kept = found(settings_of(bundle, store__path=str(tmp_path / "new" / "store.sqlite")))
    assert kept["store"].state == "ok"
    assert not (tmp_path / "new").exists()
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        closed = found(settings_of(bundle, store__path=str(tmp_path / "closed" / "store.sqlite")))
        assert closed["store"].state == "FAIL"


def kernel(root: Path, **files: str) -> Path:
    for number, (name, text) in enumerate(files.items()):
        path = {
            "mode": root / "var/lib/nvpmodel/status",
            "battery": root / "sys/class/power_supply/BAT0/capacity",
        }.get(name, root / f"sys/class/thermal/thermal_zone{number}/temp")
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return root


def test_heat_and_power_as_a_jetson_shows_them(tmp_path: Path) -> None:
    def lines(root: Path) -> list[tuple[str, str]]:
        return [(one.state, one.found) for one in board(root)]

    jetson = kernel(tmp_path / "jetson", cpu="48500\n", gpu="51250\n", off="", mode="pmode:0002\n")
    assert lines(jetson) == [("ok", "51 °C"), ("ok", "Jetson power mode 0002")]
    (hot, low) = lines(kernel(tmp_path / "hot", cpu="91000\n", battery="7\n"))
    assert hot == ("warning", "91 °C: it will slow down; let air to it")
    assert low == ("warning", "battery 7 %; plug it in")
    assert [state for state, _ in lines(tmp_path / "nothing")] == ["ok", "ok"]


def test_the_board_against_its_profile(tmp_path: Path) -> None:
    def board_finding(**flags: object) -> list[tuple[str, str]]:
        return [(one.state, one.found) for one in profile(settings_of(tmp_path, **flags).board, tmp_path)]

    assert board_finding() == []
    name = tmp_path / "proc/device-tree/model"
    name.parent.mkdir(parents=True)
    name.write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    fits = ("ok", "Raspberry Pi 5 Model B Rev 1.0 is what raspberry-pi-5 expects")
    assert board_finding(board__profile="raspberry-pi-5", board__cores=1) == [fits]
    ((state, lacking),) = board_finding(board__profile="raspberry-pi-5", board__cores=1024)
    assert state == "warning" and lacking.endswith("cores, 1024 expected")
    ((state, other),) = board_finding(board__profile="jetson-orin-nano")
    assert state == "FAIL" and "it is for a board with 'Orin Nano' in its name" in other


@pytest.mark.usefixtures("without_portaudio")
def test_a_machine_that_is_too_slow_for_the_model_is_a_warning(bundle: Path) -> None:
    report = found(settings_of(bundle, board__real_time_factor=1.0))
    assert report["speed"].state == "ok"
    assert "for a second of breath, at most 1 s expected" in report["speed"].found
    slow = found(settings_of(bundle, board__real_time_factor=1e-9))["speed"]
    assert slow.state == "warning" and "close other programs" in slow.found


def test_a_user_without_a_home_is_a_finding_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    (store,) = [one for one in examine(load_settings(environment={})) if one.check == "store"]
    assert store.state == "FAIL"
    assert "this user has no home folder; set store.path" in str(store)
