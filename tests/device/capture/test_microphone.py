"""The microphone as a source: its pace, its queue, and what it reports."""

import json
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from device.breath.simulator import simulate
from device.capture.blocks import Block
from device.capture.microphone import CaptureStream, MicrophoneSource, Pace
from device.capture.process import Captured, CaptureError, OpenedInput
from device.signal import SAMPLE_RATE, FloatArray, resample
from firmware_config.settings import load_settings
from tests.conftest import RunCli
from tests.device.bundle_maker import make_bundle
from tests.device.virtual_microphone import NAME, VirtualMicrophone


def microphone(device: str = "") -> MicrophoneSource:
    return MicrophoneSource(load_settings(flags={"audio.device": device}, environment={}).audio)


class NeverOpens:
    """A capture process of a microphone that is gone, with what each of them says in turn."""

    says = (
        "it has gone; plug it in again",
        "no input is called so; plug it in",
        "it does not open: close what uses it",
        "no input is called so; plug it in",
        "another program holds it: close that",
    )
    started_so_far = 0

    def __init__(self, request: object) -> None:
        self.error = self.says[min(NeverOpens.started_so_far, len(self.says) - 1)]
        NeverOpens.started_so_far += 1
        self.started, self.opened, self.ended, self.waiting, self.hopeless = time.monotonic(), None, True, 0, False
        self.absent = True

    def pump(self, seconds: float) -> None: ...

    def kill(self) -> None: ...


def test_a_lost_microphone_that_needs_something_else_now_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device.capture.microphone.CaptureProcess", NeverOpens)
    notes = []
    for block in microphone("steth").blocks():
        notes += [block.note] * bool(block.note)
        if len(notes) == 2 or NeverOpens.started_so_far > 12:
            break
    assert [note.split(";")[0] for note in notes] == ["it has gone", "another program holds it: close that"]


@pytest.mark.parametrize("device", ["", "named"])
def test_without_portaudio_the_error_names_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    # what `import sounddevice` does where the library is missing
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CaptureError, match=r"PortAudio is not installed.*--source demo"):
        microphone(device)


@pytest.mark.parametrize("device", ["", "named"])
def test_a_crash_of_portaudio_is_an_error_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    (tmp_path / "sounddevice.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CaptureError, match=r"PortAudio crashes here \(signal 6\).*--source demo"):
        microphone(device)


# a stream against the clock


def late_by(pace: Pace, lags: Iterable[float], block_seconds: float = 0.1) -> float:
    """What vanished, when blocks come so late."""
    vanished = 0.0
    for number, lag in enumerate(lags, 1):
        given = number * block_seconds + vanished
        vanished += pace.vanished(pace.began + number * block_seconds + lag, given)
    return vanished


def test_a_busy_machine_loses_nothing() -> None:
    rng = np.random.default_rng(1)
    lags = rng.exponential(0.01, 3_000)
    lags[1_000:1_020] = np.linspace(2.0, 0.1, 20)  # late, and then they come all at once
    pace = Pace(1e6)
    assert late_by(pace, lags) == 0.0
    assert abs(pace.drift_seconds) < 0.02
    assert abs(pace.drift_share(1e6 + 300.0)) < 0.0005


def test_sound_that_vanished_is_found_by_the_clock_and_once() -> None:
    lags = np.random.default_rng(2).exponential(0.01, 3_000)
    lags[1_000:] += 0.7
    pace = Pace(50.0)
    assert late_by(pace, lags) == pytest.approx(0.7, abs=0.03)
    assert abs(pace.drift_seconds) < 0.05


def test_sound_that_vanished_just_after_the_start_is_found_too() -> None:
    lags = np.random.default_rng(4).exponential(0.01, 300)
    lags[5:] += 0.6
    assert late_by(Pace(0.0), lags) == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("share", [0.002, -0.002])
def test_a_clock_that_drifts_is_no_gap_and_is_told(share: float) -> None:
    lags = share * 0.1 * np.arange(6_000) + np.random.default_rng(3).exponential(0.01, 6_000)
    pace = Pace(0.0)
    assert late_by(pace, lags) == 0.0
    assert pace.drift_seconds == pytest.approx(600 * share, abs=0.1)
    assert pace.drift_share(600.0) == pytest.approx(share, rel=0.1)
    assert pace.drift_share(610.0) == 0.0  # not yet a minute


# one capture process' sound


OPENED = OpenedInput("mic", "ALSA", 48_000, 4_800, "")


def stretch_of(blocks: Sequence[Captured], gain_db: float = 0.0, opened: OpenedInput = OPENED) -> list[Block]:
    stretch = CaptureStream(opened, 0.0, gain_db, set())
    given = [block for one in blocks for block in stretch.add(one, 0.0)]
    return [*given, stretch.end()]


def captured(samples: FloatArray, lost: Sequence[int] = (), overflows: Sequence[int] = ()) -> list[Captured]:
    """Blocks at their pace; the loss before each, which takes its time too, and the driver's flags."""
    pieces = samples.reshape(-1, OPENED.block_frames)
    lost_frames = np.cumsum([*lost, *[0] * (len(pieces) - len(lost))])
    flags = np.cumsum([*overflows, *[0] * (len(pieces) - len(overflows))])
    return [
        Captured(piece, 0.1 * (number + 1) + lost_frames[number] / 48_000, int(lost_frames[number]), int(flags[number]))
        for number, piece in enumerate(pieces)
    ]


def notes(blocks: Sequence[Block]) -> list[str]:
    return [block.kind for block in blocks if block.note]


def test_what_the_queue_dropped_is_missing_where_it_was_dropped_and_balances_to_the_sample() -> None:
    samples = np.random.default_rng(4).normal(0, 0.1, 20 * 4_800).astype(np.float32)
    blocks = stretch_of(captured(samples, lost=[0] * 7 + [7_201]))
    assert notes(blocks) == ["overflow"]
    at = next(number for number, block in enumerate(blocks) if block.note)
    assert blocks[at].missing == round(7_201 / 3)
    before = np.concatenate([block.samples for block in blocks[:at]])
    after = np.concatenate([block.samples for block in blocks[at:]])
    # each side is the one-shot result of itself: neither smears into the other
    np.testing.assert_allclose(before, resample(samples[: 7 * 4_800], 48_000), atol=1e-4)
    np.testing.assert_allclose(after, resample(samples[7 * 4_800 :], 48_000), atol=1e-4)


def test_an_overflow_of_the_driver_is_a_break() -> None:
    samples = np.random.default_rng(5).normal(0, 0.1, 20 * 4_800).astype(np.float32)
    blocks = stretch_of(captured(samples, overflows=[0, 0, 1]))
    assert notes(blocks) == ["overflow"]
    assert sum(block.samples.size for block in blocks) == 20 * 1_600


def test_clipping_is_told_once_a_run_and_after_the_gain() -> None:
    samples = np.random.default_rng(6).uniform(-0.3, 0.3, 60 * 4_800).astype(np.float32)
    samples[5 * 4_800 : 15 * 4_800] *= 3.0
    samples[40 * 4_800 : 41 * 4_800] *= 3.0
    assert notes(stretch_of(captured(samples), gain_db=6.0)) == ["clip", "clip"]
    assert notes(stretch_of(captured(samples), gain_db=0.0)) == []
    assert notes(stretch_of(captured(samples), gain_db=20.0)) == ["clip"]


@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_complete_silence_is_told_once_and_its_end(constant: float) -> None:
    samples = np.random.default_rng(7).normal(0, 0.001, 80 * 4_800).astype(np.float32)
    samples[10 * 4_800 : 25 * 4_800] = constant  # 1.5 s: a pause
    samples[30 * 4_800 : 60 * 4_800] = constant
    blocks = stretch_of(captured(samples))
    assert notes(blocks) == ["mute", "mute"]
    first, second = [number for number, block in enumerate(blocks) if block.note]
    assert sum(block.samples.size for block in blocks[:first]) / SAMPLE_RATE == pytest.approx(4.6, abs=0.2)
    assert "after 3.0 s" in blocks[second].note


def test_a_damaged_sample_damages_no_other() -> None:
    samples = np.random.default_rng(9).normal(0, 0.1, 5 * 4_800).astype(np.float32)
    damaged = samples.copy()
    samples[7_000:7_002], damaged[7_000:7_002] = 0.0, (np.nan, np.inf)
    whole, other = (np.concatenate([b.samples for b in stretch_of(captured(one))]) for one in (samples, damaged))
    np.testing.assert_array_equal(whole, other)


def test_what_is_not_as_asked_for_is_told_once_a_session() -> None:
    opened = OpenedInput("mic", "ALSA", 48_000, 4_800, "mic refuses 8000 Hz; recording at 48000 Hz")
    told: set[str] = set()
    samples = np.random.default_rng(8).normal(0, 0.1, 5 * 4_800).astype(np.float32)
    for expected in (["rate"], []):
        stretch = CaptureStream(opened, 0.0, 0.0, told)
        assert notes([block for one in captured(samples) for block in stretch.add(one, 0.0)]) == expected


def test_what_gives_sound_faster_than_time_goes_by_is_no_microphone() -> None:
    samples = np.zeros(60 * 4_800, np.float32)
    for pace in (2.0, 10.0, 1000.0):
        stretch = CaptureStream(OPENED, 0.0, 0.0, set())
        with pytest.raises(CaptureError, match="faster than time goes by") as caught:
            for one in captured(samples):
                list(stretch.add(replace(one, clock=one.clock / pace), 0.0))
        assert caught.value.hopeless
    stretch_of(captured(samples))


# one microphone whose stream opens as ERROR says
STUB = """
class PortAudioError(Exception): pass
class default: device = (0, 0)
def query_hostapis(): return [{"name": "ALSA"}]
def query_devices():
    one = {"index": 0, "name": "steth", "hostapi": 0, "max_input_channels": 1, "default_samplerate": 44100.0}
    return [one]
class InputStream:
    def __init__(self, *arguments, **options):
        import sys
        print("ALSA lib: noise", file=sys.stderr)
        raise %s
"""


def opened_with(error: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> CaptureError:
    (folder / "sounddevice.py").write_text(STUB % error)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr("device.capture.microphone.OPENING_SECONDS", 60.0)  # a busy machine takes its time
    with pytest.raises(CaptureError) as caught:
        microphone("")
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("PortAudioError('Unanticipated host error', -9999)", "does not open .*; plug it in again"),
        ("PortAudioError('Invalid device', -9996)", "; plug it in again"),
        ("PortAudioError('Illegal combination', -9993)", "; plug it in again"),
        ("PortAudioError('Device unavailable', -9985)", r"-9985\)\); close what else uses it"),
        ("PortAudioError('Invalid sample rate', -9997)", "at 44100 Hz .*; set audio.sample_rate"),
        ("RuntimeError('a driver broke')", r"exit code 1\): RuntimeError: a driver broke"),
        ("SystemExit('gone')", "gone"),
    ],
)
def test_why_a_microphone_does_not_open_is_said_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, said: str
) -> None:
    assert re.search(said, str(opened_with(error, tmp_path, monkeypatch)))


@pytest.mark.sound
def test_a_microphone_is_heard_at_its_pace(tmp_path: Path, run_cli: RunCli, plugged: VirtualMicrophone) -> None:
    soundfile.write(tmp_path / "breath.wav", 8 * simulate(3, 60.0).samples, SAMPLE_RATE)
    bundle = make_bundle(tmp_path / "bundle")
    player = plugged.play(tmp_path / "breath.wav")
    began = time.monotonic()
    done = run_cli(
        *("device", "listen", "--json", "--no-store", "--seconds", "6", "--bundle", bundle),
        RESPSAM_AUDIO__DEVICE=NAME,
    )
    taken = time.monotonic() - began
    player.terminate()
    player.wait()
    assert done.returncode == 0, done.stderr
    *cycles, summary = map(json.loads, done.stdout.splitlines())
    assert summary["seconds"]["heard"] + summary["seconds"]["missing"] == 6.0
    assert taken >= 6.0
    assert not summary["demo"]
    assert summary["demo_agreement"] is None
    levels = [cycle["level_dbfs"] for cycle in cycles if cycle["type"] == "cycle"]
    # -40 dBFS were simulated, and played 18 dB louder; breath by breath that is -28 to -14
    assert max(levels) == pytest.approx(-20, abs=6)


@pytest.mark.sound
def test_what_the_full_queue_drops_is_counted_against_the_clock(plugged: VirtualMicrophone) -> None:
    settings = load_settings(flags={"audio.device": NAME, "audio.queue_seconds": 1.0}, environment={}).audio
    with closing(MicrophoneSource(settings).blocks()) as blocks:
        next(blocks)
        began = time.monotonic()
        time.sleep(4)
        heard = missing = late = 0
        while time.monotonic() - began < 6:
            block = next(blocks)
            late += bool(block.missing and heard < 8_000)
            heard += block.samples.size
            missing += block.missing
    assert (heard + missing) / SAMPLE_RATE == pytest.approx(6.0, abs=0.8)
    # the queue holds 1 s of the 4
    assert missing / SAMPLE_RATE == pytest.approx(3.0, abs=0.3)
    # and that second came before the gap
    assert not late


@pytest.mark.sound
def test_a_channel_that_the_microphone_has_not_is_refused(run_cli: RunCli, plugged: VirtualMicrophone) -> None:
    done = run_cli("device", "listen", RESPSAM_AUDIO__DEVICE=NAME, RESPSAM_AUDIO__CHANNEL="63")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "virtmic has 32 channels, audio.channel asks for number 63" in line


@pytest.mark.sound
def test_without_any_microphone_the_error_names_the_demo(
    tmp_path: Path, run_cli: RunCli, plugged: VirtualMicrophone
) -> None:
    (plugged.folder / "asound.conf").write_text("pcm.!default { type hw card 31 }")
    done = run_cli("device", "listen", "--bundle", make_bundle(tmp_path / "bundle"))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no microphone" in line
    assert "--source demo" in line


@pytest.mark.sound
def test_the_opened_microphone_is_recognised_by_its_name(
    run_cli: RunCli, tmp_path: Path, plugged: VirtualMicrophone
) -> None:
    own = tmp_path / "state" / "passports" / "virtual.toml"
    own.parent.mkdir(parents=True)
    own.write_text('name = "Virtual"\n[connection]\ntext = "none"\nsource = "this test"\n[match]\nnames = ["virt*"]\n')
    bundle, state = make_bundle(tmp_path / "bundle"), str(tmp_path / "state")
    done = run_cli(
        *("device", "listen", "--seconds", "1", "--json", "--bundle", bundle, "--no-store"),
        RESPSAM_AUDIO__DEVICE=NAME,
        STATE_DIRECTORY=state,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["passport"] == "virtual"
    found = run_cli("device", "passport", "show", RESPSAM_AUDIO__DEVICE=NAME, STATE_DIRECTORY=state)
    assert f"# virtual: {own}" in found.stdout
