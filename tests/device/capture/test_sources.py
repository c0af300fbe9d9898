"""Where sound comes from: recordings, the demo, and a real PortAudio stream from a virtual microphone."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from device.breath.simulator import simulate
from device.capture.recording import AudioError
from device.capture.sources import DemoSource, FileSource
from device.cli import MOST_SECONDS
from device.signal import SAMPLE_RATE, FloatArray


def all_of(source: FileSource | DemoSource) -> FloatArray:
    return np.concatenate([block.samples for block in source.blocks()])


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 44_100])
def test_a_recording_is_heard_at_16_khz(tmp_path: Path, sample_rate: int) -> None:
    time_axis = np.arange(2 * sample_rate) / sample_rate
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(2 * np.pi * 440 * time_axis), sample_rate)
    heard = all_of(FileSource(tmp_path / "tone.wav", fast=True))
    assert heard.size == 2 * SAMPLE_RATE
    assert int(np.argmax(np.abs(np.fft.rfft(heard)))) == 2 * 440


def test_a_recording_that_cannot_be_read_is_refused_before_it_is_heard(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match="empty"):
        FileSource(tmp_path / "empty.wav")


def test_the_demo_is_the_simulator() -> None:
    source = DemoSource(7, 5.0, fast=True)
    np.testing.assert_array_equal(all_of(source), simulate(7, 5.0).samples)
    assert source.demo
    assert "seed 7" in source.name


def test_a_long_demo_goes_on_with_another_auscultation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device.capture.sources.PIECE_SECONDS", 6.0)
    source = DemoSource(7, 15.0, fast=True)
    sound = all_of(source)
    first, second, _third = np.split(sound, 3)
    np.testing.assert_array_equal(first, simulate(7, 5.0).samples)
    assert sound.size == 15 * SAMPLE_RATE and not np.array_equal(first, second)
    ends = [0.0, *(breath.end_seconds for breath in source.breaths)]
    assert [breath.onset_seconds for breath in source.breaths] == pytest.approx(ends[:-1]) and ends[-1] == 15.0


def test_a_demo_may_be_as_long_as_a_session() -> None:
    blocks = DemoSource(7, MOST_SECONDS, fast=True).blocks()
    assert next(blocks).samples.size == 1600
