"""The simulator against the published definitions: measured from its waveforms, not from its own constants."""

from itertools import pairwise
from math import inf, nan
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
from scipy.stats import kurtosis

from device.breath.simulator import Simulated, SimulatorError, breath, crackle, simulate, wheeze
from device.labels import LABELS, Label
from device.signal import FloatArray
from firmware_config.errors import RespSAMError

SAMPLE_RATE = 16_000
SEEDS = range(12)


def dbfs(samples: npt.NDArray[Any]) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64))))


def power(samples: npt.NDArray[Any], low_hz: float, high_hz: float, sample_rate: int = SAMPLE_RATE) -> float:
    frequencies, density = scipy.signal.welch(samples, sample_rate, nperseg=2048)
    return float(density[(frequencies >= low_hz) & (frequencies < high_hz)].mean())


def tonality_db(samples: FloatArray) -> float:
    """Highest peak of the expiratory spectrum in 100-1000 Hz, above the median of the 200 Hz around it."""
    expiration = samples[round(0.4 * len(samples)) :]
    frequencies, density = scipy.signal.welch(expiration, SAMPLE_RATE, nperseg=2000, noverlap=1500)  # bins of 8 Hz
    prominence = 10 * np.log10(density / scipy.signal.medfilt(density, 25))
    return float(prominence[(frequencies >= 100) & (frequencies <= 1000)].max())


def spikiness(samples: FloatArray) -> float:
    band = scipy.signal.butter(2, (150, 2000), "bandpass", fs=SAMPLE_RATE, output="sos")
    return float(kurtosis(scipy.signal.sosfiltfilt(band, samples)))


def part(heard: Simulated, start_seconds: float, end_seconds: float) -> FloatArray:
    return heard.samples[round(start_seconds * heard.sample_rate) : round(end_seconds * heard.sample_rate)]


def test_same_seed_same_bits_other_seed_other_sound() -> None:
    first, again, other = (simulate(seed, 12, contacts_per_minute=10) for seed in (3, 3, 4))
    assert first.samples.tobytes() == again.samples.tobytes()
    assert (first.breaths, first.contacts) == (again.breaths, again.contacts)
    assert first.samples.tobytes() != other.samples.tobytes()
    assert breath(3, "both").tobytes() == breath(3, "both").tobytes() != breath(4, "both").tobytes()


@pytest.mark.parametrize(("seconds", "sample_rate"), [(60, 16_000), (0.5, 4_000), (7.3, 44_100), (11.77, 8_000)])
def test_breaths_are_contiguous_and_cover_everything(seconds: float, sample_rate: int) -> None:
    heard = simulate(1, seconds, sample_rate=sample_rate)
    assert heard.samples.shape == (round(seconds * sample_rate),)
    assert heard.samples.dtype == np.float32
    assert heard.sample_rate == sample_rate
    assert heard.breaths[0].onset_seconds == 0
    assert heard.breaths[-1].end_seconds == seconds
    assert all(one.end_seconds == following.onset_seconds for one, following in pairwise(heard.breaths))
    assert all(each.onset_seconds < each.expiration_seconds < each.end_seconds for each in heard.breaths)


def test_breathing_rate_and_its_variability() -> None:
    heard = simulate(2, 120, breaths_per_minute=30)
    periods = [each.end_seconds - each.onset_seconds for each in heard.breaths]
    assert len(periods) == 60
    assert 0.05 < np.std(periods) / np.mean(periods) < 0.2


@pytest.mark.parametrize(("share", "abnormal"), [(0.0, 0), (0.3, 12), (0.5, 20), (1.0, 40)])
def test_abnormal_share(share: float, abnormal: int) -> None:
    labels = [each.label for each in simulate(5, 120, abnormal_share=share).breaths]
    counts = [labels.count(label) for label in LABELS]
    assert counts[0] == 40 - abnormal
    assert max(counts[1:]) - min(counts[1:]) <= 1


@pytest.mark.parametrize("level_dbfs", [-60.0, -40.0, -35.0])
@pytest.mark.parametrize("heart_rate", [None, 120.0])
def test_level(level_dbfs: float, heart_rate: float | None) -> None:
    heard = simulate(6, 30, level_dbfs=level_dbfs, heart_rate=heart_rate)
    assert abs(dbfs(heard.samples) - level_dbfs) < 1
    assert abs(dbfs(breath(6, "crackle")) + 40) < 1


def test_one_minute_takes_less_than_a_second() -> None:
    simulate(0, 1)
    start = process_time()
    simulate(0, 60, contacts_per_minute=6)
    assert process_time() - start < 1


def test_vesicular_noise_falls_steeply_and_expiration_is_softer() -> None:
    heard = simulate(7, 60, abnormal_share=0, heart_rate=None)
    octave_drops = [
        10 * np.log10(power(heard.samples, low, 1.2 * low) / power(heard.samples, 2 * low, 2.4 * low))
        for low in (200, 400)
    ]
    assert min(octave_drops) > 6
    assert power(heard.samples, 100, 300) > 1e4 * power(heard.samples, 2000, 4000)
    inspiration = [dbfs(part(heard, each.onset_seconds, each.expiration_seconds)) for each in heard.breaths]
    expiration = [dbfs(part(heard, each.expiration_seconds, each.end_seconds)) for each in heard.breaths]
    pause = [dbfs(part(heard, each.end_seconds - 0.1, each.end_seconds)) for each in heard.breaths]
    assert np.median(inspiration) > np.median(expiration) + 5
    assert np.median(expiration) > np.median(pause) + 20


@pytest.mark.parametrize("two_cycle_seconds", [0.005, 0.010, 0.015])
@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 44_100])
def test_two_cycle_duration_of_a_crackle(two_cycle_seconds: float, sample_rate: int) -> None:
    wave = np.concatenate([crackle(two_cycle_seconds, sample_rate), np.zeros(sample_rate // 100)])
    heard = np.flatnonzero(np.abs(wave) > 1e-3)
    onset, end = heard[0], heard[-1]
    crossings = onset + np.flatnonzero(np.diff(np.signbit(wave[onset : end + 1])))
    assert len(crossings) == 3  # and the end: two cycles
    assert abs((end - onset) / sample_rate / two_cycle_seconds - 1) < 0.2
    half_cycles = np.diff([onset, *crossings, end])
    assert list(half_cycles) == sorted(half_cycles)
    peaks = [np.abs(half).max() for half in np.split(wave[onset : end + 1], crossings - onset + 1)]
    assert peaks[1] > peaks[2] > peaks[3]  # decaying


def test_fine_crackle_is_at_its_published_pitch() -> None:
    wave = crackle(0.005, SAMPLE_RATE)
    spectrum = np.abs(np.fft.rfft(wave, 16_384))
    centroid = np.average(np.fft.rfftfreq(16_384, 1 / SAMPLE_RATE), weights=spectrum**2)
    assert 400 < centroid < 800


def test_crackles_stand_out_of_the_breath() -> None:
    measured = {label: np.array([spikiness(breath(seed, label)) for seed in SEEDS]) for label in LABELS}
    assert measured["normal"].max() < 10 < measured["crackle"].min()
    assert (measured["both"] > measured["wheeze"]).all()


@pytest.mark.parametrize("label", ["wheeze", "both"])
def test_wheezes_are_a_tone_that_normal_breath_lacks(label: Label) -> None:
    assert min(tonality_db(breath(seed, label)) for seed in SEEDS) > 12
    assert max(tonality_db(breath(seed, "normal")) for seed in SEEDS) < 8


def test_wheeze_has_a_low_gliding_fundamental_and_harmonics() -> None:
    wave = wheeze(np.random.default_rng(0), 0.8, SAMPLE_RATE)
    frequencies, density = scipy.signal.welch(wave, SAMPLE_RATE, nperseg=4096)
    fundamental = frequencies[density.argmax()]
    assert 180 < fundamental < 650
    for harmonic in (2, 3):
        assert power(wave, 0.9 * harmonic * fundamental, 1.1 * harmonic * fundamental) > 100 * power(
            wave, (harmonic + 0.3) * fundamental, (harmonic + 0.7) * fundamental
        )


def test_heart_is_low_and_optional_and_moves_nothing_else() -> None:
    silent, beating = (simulate(8, 30, abnormal_share=0, heart_rate=rate) for rate in (None, 90.0))
    assert silent.breaths == beating.breaths
    ratio = [power(heard.samples, 30, 80) / power(heard.samples, 200, 400) for heard in (silent, beating)]
    assert ratio[1] > 5 * ratio[0]
    scale = np.sqrt(power(beating.samples, 300, 500) / power(silent.samples, 300, 500))
    heart = beating.samples - scale * silent.samples
    envelope = scipy.signal.resample_poly(np.abs(heart), 1, 160)  # 100 a second
    correlation = scipy.signal.correlate(envelope - envelope.mean(), envelope - envelope.mean())[len(envelope) - 1 :]
    beat = 50 + correlation[50:100].argmax()
    assert 60 < beat < 73  # 90 beats a minute: every 0.67 s


def test_contact_noise_is_loud_where_the_truth_says_and_nowhere_else() -> None:
    clean, rubbed = (simulate(9, 60, contacts_per_minute=rate) for rate in (0.0, 6.0))
    assert clean.contacts == ()
    assert len(rubbed.contacts) == 6
    assert all(one[1] < following[0] for one, following in pairwise(rubbed.contacts))
    inside = np.zeros(len(clean.samples), dtype=bool)
    for start, end in rubbed.contacts:
        inside[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = True
        assert dbfs(part(rubbed, start, end)) > dbfs(clean.samples) + 12
    assert np.array_equal(clean.samples[~inside], rubbed.samples[~inside])
    assert rubbed.breaths == clean.breaths


def test_clipping_at_full_scale() -> None:
    loud = simulate(10, 10, level_dbfs=-3, contacts_per_minute=12)
    assert np.abs(loud.samples).max() == 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seed", -1),
        ("seconds", 0),
        ("seconds", -3),
        ("seconds", nan),
        ("seconds", inf),
        ("sample_rate", -16_000),
        ("sample_rate", 0),
        ("breaths_per_minute", -20),
        ("breaths_per_minute", 0),
        ("abnormal_share", -0.1),
        ("abnormal_share", 1.1),
        ("abnormal_share", nan),
        ("heart_rate", -90),
        ("contacts_per_minute", -1),
        ("level_dbfs", 6),
    ],
)
def test_a_bad_argument_is_named(argument: str, value: float) -> None:
    arguments: dict[str, Any] = {"seed": 0, "seconds": 10, argument: value}
    with pytest.raises(SimulatorError, match=rf"^{argument} is {value} .*: take a value from [^\n]+$") as caught:
        simulate(**arguments)
    assert isinstance(caught.value, RespSAMError)
    if argument in ("seed", "seconds", "sample_rate"):
        with pytest.raises(SimulatorError, match=f"^{argument} is "):
            breath(label="normal", **{name: arguments[name] for name in ("seed", argument)})


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(SimulatorError, match=r"'rhonchus'.*normal, crackle, wheeze, both"):
        breath(0, "rhonchus")  # type: ignore[arg-type]
