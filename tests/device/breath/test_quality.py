"""Every reason on a sound that deserves it, none on clean simulated chests, and measures against known signals."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from scipy.signal import butter, sosfilt

from device.breath.quality import SILENCE_DBFS, Quality, assess, hum_share, level_dbfs, measure
from device.breath.segmenter import Segmenter
from device.breath.simulator import simulate
from device.bundle import Segmentation
from device.signal import SAMPLE_RATE, FloatArray, FrontEnd, window
from firmware_config.settings import load_settings

SETTINGS = load_settings(environment={}).quality
ANYTHING = SETTINGS.model_copy(update={"minimum_level_dbfs": -160.0, "maximum_clipped_share": 1.0})
Float64Array = npt.NDArray[np.float64]


def tone(amplitude: float, seconds: float = 1.0, hertz: float = 200.0) -> FloatArray:
    time = np.arange(round(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def noise(seconds: float, rms: float, seed: int = 0) -> FloatArray:
    return (rms * np.random.default_rng(seed).standard_normal(round(SAMPLE_RATE * seconds))).astype(np.float32)


def voice(seconds: float, rms: float, seed: int = 0) -> FloatArray:
    """Syllables, four a second: a pitch of about 140 Hz through three formants that change with each."""
    random = np.random.default_rng(seed)
    time = np.arange(round(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    pitch = 140 + 40 * np.sin(2 * np.pi * 0.4 * time) + 10 * np.sin(2 * np.pi * 3 * time)
    pulses = np.diff(np.floor(np.cumsum(pitch) / SAMPLE_RATE), prepend=0) + 0.02 * random.standard_normal(time.size)
    spoken = np.zeros(time.size)
    for start in range(0, time.size, SAMPLE_RATE // 4):
        part = slice(start, start + SAMPLE_RATE // 4)
        for hertz, gain in zip(random.uniform([300, 900, 2200], [800, 2000, 3000]), (1.0, 0.6, 0.3), strict=True):
            formant = butter(1, (0.9 * hertz, 1.1 * hertz), "bandpass", fs=SAMPLE_RATE, output="sos")
            spoken[part] += gain * sosfilt(formant, pulses[part])
        spoken[part] *= np.hanning(spoken[part].size) ** 0.3
    return np.asarray(rms * spoken / spoken.std(), np.float32)


def judged(samples: FloatArray) -> list[Quality]:
    """Every segment of a recording, as the live path judges it."""
    segmenter = Segmenter(Segmentation())
    return [
        assess(segment.samples, SETTINGS, segment.clarity, segment.snr_db)
        for segment in segmenter.feed(samples) + segmenter.flush()
    ]


def most_common_reason(samples: FloatArray) -> str:
    ((reason, _),) = Counter(one.reason for one in judged(samples)).most_common(1)
    return reason


@pytest.mark.parametrize("amplitude", [1.0, 0.1, 1e-4])
def test_level_of_a_tone_is_its_amplitude_less_3_db(amplitude: float) -> None:
    expected = 20 * np.log10(amplitude) - 10 * np.log10(2)
    assert level_dbfs(tone(amplitude)) == pytest.approx(expected, abs=0.01)
    # a microphone's offset is no sound
    assert level_dbfs(tone(amplitude) * np.float32(0.5) + np.float32(0.4)) == pytest.approx(expected - 6.02, abs=0.02)


def test_silence_and_nothing_at_all_have_the_lowest_level() -> None:
    assert level_dbfs(np.zeros(100, np.float32)) == SILENCE_DBFS
    assert level_dbfs(np.zeros(0, np.float32)) == SILENCE_DBFS
    assert not assess(np.zeros(0, np.float32), ANYTHING).gradable


def test_too_quiet_and_overloaded() -> None:
    assert assess(tone(0.1), SETTINGS).gradable
    assert assess(tone(1e-5), SETTINGS).reason.startswith("too quiet: press")
    overloaded = assess(np.clip(tone(2.0), -1, 1), SETTINGS)
    assert overloaded.reason.startswith("overloaded: turn the gain down")
    # a sine at twice full scale is beyond it for two thirds of the time
    assert overloaded.clipped_share == pytest.approx(2 / 3, abs=0.01)
    assert assess(np.clip(tone(2.0), -1, 1), ANYTHING).gradable


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_what_cannot_become_a_window_is_never_gradable_whatever_the_settings_say(constant: float) -> None:
    assert not assess(np.full(16_000, constant, np.float32), ANYTHING).gradable
    faint = tone(1e-7)
    assert assess(faint, ANYTHING).gradable
    window(faint, FrontEnd())


@pytest.mark.parametrize("abnormal_share", [0.0, 1.0])
@pytest.mark.parametrize("per_minute", [12, 20, 40])
@pytest.mark.parametrize("heart_rate", [None, 110])
def test_clean_chests_sick_or_not_are_gradable(
    abnormal_share: float, per_minute: float, heart_rate: float | None
) -> None:
    heard = simulate(5, 60, breaths_per_minute=per_minute, abnormal_share=abnormal_share, heart_rate=heart_rate)
    assert {one.reason for one in judged(heard.samples)} == {""}


def test_rubbing_is_refused_where_it_is_and_nowhere_else() -> None:
    heard = simulate(3, 60, contacts_per_minute=6)
    segmenter = Segmenter(Segmentation())
    for segment in segmenter.feed(heard.samples) + segmenter.flush():
        reason = assess(segment.samples, SETTINGS, segment.clarity, segment.snr_db).reason
        shares = [
            max(0.0, min(segment.end_seconds, end) - max(segment.start_seconds, start)) / (end - start)
            for start, end in heard.contacts
        ]
        # a rub that fills most of its segment has no quiet median to stand out from
        if max(shares) >= 0.9 and segment.samples.size > 2 * 0.8 * SAMPLE_RATE:
            assert reason.startswith("rubbing or knocking: hold"), segment.start_seconds
        elif max(shares) == 0.0:
            assert reason == "", segment.start_seconds


def test_talking_is_refused_alone_and_over_a_breath() -> None:
    breathing = simulate(4, 30).samples
    assert most_common_reason(voice(30, 0.05)).startswith("too much talking: ask")
    assert most_common_reason(breathing + voice(30, 0.05)).startswith("too much talking: ask")


@pytest.mark.parametrize("hertz", [50.0, 60.04])
def test_mains_hum(hertz: float) -> None:
    hum = tone(0.05, 30, hertz) + tone(0.02, 30, 3 * hertz)
    assert most_common_reason(simulate(4, 30).samples + hum).startswith("mains hum: move")


def test_the_heart_alone_and_noise_alone_have_no_breath() -> None:
    # four sounds a second, as of a child's heart, and nothing else
    beats = (tone(0.05, 0.08, 45) * np.hanning(1280)).astype(np.float32)
    heart = np.zeros(30 * SAMPLE_RATE, np.float32)
    for start in range(0, heart.size - beats.size, SAMPLE_RATE // 4):
        heart[start : start + beats.size] += beats
    assert most_common_reason(heart + noise(30, 1e-5)).startswith("the heart drowns the breath: move")
    assert most_common_reason(noise(30, 0.01)).startswith("no breathing heard clearly: press")


def test_breath_in_noise() -> None:
    assert assess(noise(2, 0.01), SETTINGS, clarity=0.9, snr_db=1.0).reason.startswith("breath hardly louder than")
    assert assess(noise(2, 0.01), SETTINGS, clarity=0.9, snr_db=10.0).gradable
    assert assess(noise(2, 0.01), SETTINGS).gradable  # without a detector nothing is said of it


@pytest.mark.parametrize(("hertz", "share"), [(50, 1.0), (60, 1.0), (75, 0.0), (200, 0.0)])
def test_share_of_hum_against_a_tone(hertz: float, share: float) -> None:
    # a wheeze may lie on a harmonic: without the fundamental it is no hum
    mixed = np.sqrt(0.5) * tone(np.sqrt(2), 4, hertz) + noise(4, np.sqrt(0.5))
    assert hum_share(mixed.astype(np.float64)) == pytest.approx(share / 2, abs=0.05)


def test_power_ratio_of_heart_and_breath_against_two_tones() -> None:
    # ten times the amplitude: 20 dB
    measured = measure(tone(0.1, 2, 62.5) + tone(0.01, 2, 500))
    assert measured.heart_db == pytest.approx(20.0, abs=0.2)
    # gain changes nothing but the level
    softer = measure(np.float32(0.01) * (tone(0.1, 2, 62.5) + tone(0.01, 2, 500)))
    assert softer.heart_db == pytest.approx(measured.heart_db, abs=0.01)
    assert softer.level_dbfs == pytest.approx(measured.level_dbfs - 40.0, abs=0.01)


def test_a_knock_against_its_own_loudness() -> None:
    hiss = noise(2, 0.001)
    knocked = hiss.copy()
    knocked[16_000:17_024] *= 100  # 40 dB for 64 ms
    assert measure(hiss).knock_db < 3
    assert measure(knocked).knock_db == pytest.approx(40.0, abs=3.0)
