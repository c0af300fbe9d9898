"""What is refused, and the measured level against a tone whose level is known."""

import numpy as np
import pytest

from device.quality import SILENCE_DBFS, judge, level_dbfs
from device.signal import FloatArray, FrontEnd, window


def tone(amplitude: float, seconds: float = 1.0) -> FloatArray:
    time = np.arange(round(16_000 * seconds)) / 16_000
    return (amplitude * np.sin(2 * np.pi * 200 * time)).astype(np.float32)


@pytest.mark.parametrize("amplitude", [1.0, 0.1, 1e-4])
def test_level_of_a_tone_is_its_amplitude_less_3_db(amplitude: float) -> None:
    expected = 20 * np.log10(amplitude) - 10 * np.log10(2)
    assert level_dbfs(tone(amplitude)) == pytest.approx(expected, abs=0.01)
    # a microphone's offset is no sound
    assert level_dbfs(tone(amplitude) * np.float32(0.5) + np.float32(0.4)) == pytest.approx(expected - 6.02, abs=0.02)


def test_silence_and_nothing_at_all_have_the_lowest_level() -> None:
    assert level_dbfs(np.zeros(100, np.float32)) == SILENCE_DBFS
    assert level_dbfs(np.zeros(0, np.float32)) == SILENCE_DBFS


def test_reasons_say_what_to_do() -> None:
    assert judge(tone(0.1), -80, 0.01).gradable
    assert judge(tone(1e-5), -80, 0.01).reason.startswith("too quiet: press")
    overloaded = judge(np.clip(tone(2.0), -1, 1), -80, 0.01)
    assert overloaded.reason.startswith("overloaded: turn the gain down")
    # a sine at twice full scale is beyond it for two thirds of the time
    assert overloaded.clipped_share == pytest.approx(2 / 3, abs=0.01)
    assert judge(np.clip(tone(2.0), -1, 1), -80, 0.7).gradable


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_what_cannot_become_a_window_is_never_gradable_whatever_the_settings_say(constant: float) -> None:
    assert not judge(np.full(16_000, constant, np.float32), -160.0, 1.0).gradable
    faint = tone(1e-7)
    assert judge(faint, -160.0, 1.0).gradable
    window(faint, FrontEnd())
