"""The signal path against Hugging Face's extractor, scipy, numpy, and its own definition."""

from pathlib import Path

import numpy as np
import pytest
import scipy.signal
from pydantic import ValidationError

from device.capture.recording import read_audio
from device.signal import (
    FRAMES,
    SAMPLE_RATE,
    SEAM_SAMPLES,
    WINDOW_SAMPLES,
    FloatArray,
    FrontEnd,
    SignalError,
    cyclic_pad,
    exact_div,
    level,
    log_mel,
    pad,
    raw_window,
    resample,
    split,
    window,
    windows,
)


def noise(samples: int, rms: float = 0.1, seed: int = 0) -> FloatArray:
    return (rms * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def tone(hertz: float, samples: int, amplitude: float = 0.5) -> FloatArray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(samples) / SAMPLE_RATE)).astype(np.float32)


def reference_log_mel(samples: FloatArray) -> FloatArray:
    from transformers import ASTFeatureExtractor

    extractor = ASTFeatureExtractor(do_normalize=False, max_length=FRAMES)  # type: ignore[no-untyped-call]
    result: FloatArray = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_values"][0]
    return result


# --- constants


def test_the_window_is_eight_seconds_and_798_frames() -> None:
    assert (WINDOW_SAMPLES, FRAMES, SEAM_SAMPLES) == (128_000, 798, 160)
    assert window(noise(20_000), FrontEnd()).shape == (798, 128)
    assert window(noise(20_000), FrontEnd(mels=64, high_hz=4000)).shape == (798, 64)
    assert window(noise(20_000), FrontEnd()).dtype == np.float32


def test_exact_div_refuses_a_remainder() -> None:
    assert exact_div(16_000 * 25, 1000) == 400
    with pytest.raises(ValueError, match="not a multiple"):
        exact_div(11_025 * 25, 1000)


# --- log-mel
# At 128 bands the lowest are narrower than an FFT bin, and transformers says so; AST was trained that way.


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize(
    "samples",
    [
        pytest.param(noise(WINDOW_SAMPLES), id="noise"),
        pytest.param(noise(WINDOW_SAMPLES, rms=1e-4), id="quiet noise"),
        pytest.param(tone(50, WINDOW_SAMPLES, 0.99), id="loud 50 Hz"),
        pytest.param(tone(440, WINDOW_SAMPLES, 0.99), id="loud 440 Hz"),
        pytest.param(tone(7900, WINDOW_SAMPLES, 0.99), id="loud 7.9 kHz"),
        pytest.param(noise(WINDOW_SAMPLES) + np.float32(0.3), id="noise on an offset"),
    ],
)
def test_log_mel_equals_the_reference_extractor(samples: FloatArray) -> None:
    np.testing.assert_allclose(log_mel(samples, FrontEnd()), reference_log_mel(samples), rtol=0, atol=1e-3)


def test_the_floor_of_the_front_end_bounds_the_log_mels_from_below() -> None:
    quiet = tone(440.0, WINDOW_SAMPLES)
    kaldi = log_mel(quiet, FrontEnd())
    floored = log_mel(quiet, FrontEnd(floor=1e-3))
    np.testing.assert_array_equal(floored, np.maximum(kaldi, np.log(np.float32(1e-3))))
    assert kaldi.min() < floored.min()
    for floor in (1e-8, 1.1):
        with pytest.raises(ValidationError):
            FrontEnd(floor=floor)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_log_mel_of_a_real_recording_equals_the_reference_extractor(shared_data: Path) -> None:
    path = sorted((shared_data / "sprsound" / "intra_test").glob("*.flac"))[0]
    samples = resample(*read_audio(path))[:WINDOW_SAMPLES]
    for prepared in (samples, level(samples, 0.1), pad(level(samples[:30_000], 0.1), FrontEnd())):
        expected = reference_log_mel(prepared)[: 1 + (prepared.size - 400) // 160]
        np.testing.assert_allclose(log_mel(prepared, FrontEnd()), expected, rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("length", [20_000, WINDOW_SAMPLES])
def test_a_window_of_1024_frames_is_that_of_the_common_extractor(length: int) -> None:
    """Zeros before normalisation, so that they land at +0.467 with AudioSet's statistics."""
    from transformers import ASTFeatureExtractor

    extractor = ASTFeatureExtractor(max_length=1024)  # type: ignore[no-untyped-call]
    front_end = FrontEnd(frames=1024, seam="hard", level=0.0, mean=extractor.mean, std=extractor.std)
    cycle = noise(length)
    padded = np.resize(cycle - cycle.mean(dtype=np.float64).astype(np.float32), WINDOW_SAMPLES)
    expected = extractor(padded, sampling_rate=SAMPLE_RATE, return_tensors="np")["input_values"][0]
    got = window(cycle, front_end)
    assert got.shape == (1024, 128)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(got[FRAMES:], 0.467, rtol=0, atol=1e-3)


def test_more_frames_change_nothing_of_the_others() -> None:
    cycle = noise(20_000)
    longer = windows(cycle, FrontEnd(frames=1024, mean=-9.0, std=3.0))
    assert longer.shape == (1, 1024, 128)
    np.testing.assert_array_equal(longer[:, :FRAMES], windows(cycle, FrontEnd(mean=-9.0, std=3.0)))
    assert raw_window(cycle, FrontEnd(frames=1024)).shape == (FRAMES, 128), "statistics are of sound alone"


def test_a_front_end_written_before_there_were_frames_has_798() -> None:
    before = FrontEnd(mels=64).model_dump(exclude={"frames"})
    assert FrontEnd.model_validate(before) == FrontEnd(mels=64)
    assert FrontEnd(mels=64).frames == FRAMES


def test_fewer_bands_put_a_tone_where_the_mel_scale_says() -> None:
    front_end = FrontEnd(mels=64, low_hz=20, high_hz=4000)
    edges = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(4000 / 700), 66)
    for hertz in (200.0, 1000.0, 3000.0):
        energies = log_mel(tone(hertz, WINDOW_SAMPLES), front_end).mean(axis=0)
        centre = edges[1 + int(energies.argmax())]
        assert abs(centre - 1127 * np.log1p(hertz / 700)) <= edges[1] - edges[0]


# --- level


def test_the_window_does_not_depend_on_the_gain_of_the_stethoscope() -> None:
    cycle = noise(30_000, rms=0.2) + tone(300, 30_000)
    loud = window(cycle, FrontEnd(mean=-10.0, std=4.0))
    quiet = window(cycle * np.float32(1e-3), FrontEnd(mean=-10.0, std=4.0))
    np.testing.assert_allclose(quiet, loud, rtol=0, atol=1e-3)


def test_levelling_removes_the_mean_and_sets_the_rms() -> None:
    levelled = level(noise(50_000) + np.float32(0.4), 0.1)
    assert abs(float(levelled.mean())) < 1e-6
    assert float(np.sqrt(np.mean(levelled**2))) == pytest.approx(0.1, rel=1e-4)
    unlevelled = level(noise(50_000, rms=0.03) + np.float32(0.4), 0.0)
    assert float(np.sqrt(np.mean(unlevelled**2))) == pytest.approx(0.03, rel=1e-2)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(8000, np.float32), "constant"),
        (np.full(8000, 0.7, np.float32), "constant"),
        (np.full(1, 0.7, np.float32), "constant"),
        (np.where(np.arange(8000) == 4000, np.nan, noise(8000)).astype(np.float32), "NaN or infinite"),
        (np.where(np.arange(8000) == 4000, np.inf, noise(8000)).astype(np.float32), "NaN or infinite"),
        (noise(8000).reshape(4000, 2), "mono"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_heard_is_an_error_not_a_division_by_zero(samples: FloatArray, words: str) -> None:
    for front_end in (FrontEnd(), FrontEnd(level=0.0)):
        with pytest.raises(SignalError, match=words) as raised:
            window(samples, front_end)
        assert "\n" not in str(raised.value)


# --- cyclic padding


@pytest.mark.parametrize("length", [2, 3, 100, 319, 320, 321, 16_000, WINDOW_SAMPLES - 1])
def test_cyclic_padding_repeats_with_its_period_and_leaves_the_first_repeat_alone(length: int) -> None:
    cycle = noise(length)
    padded = cyclic_pad(cycle, WINDOW_SAMPLES)
    period = length - min(SEAM_SAMPLES, length // 2)
    assert padded.shape == (WINDOW_SAMPLES,)
    assert padded.dtype == np.float32
    np.testing.assert_array_equal(padded[:period], cycle[:period])
    second = padded[period:]
    np.testing.assert_array_equal(second[period:], second[:-period])


@pytest.mark.parametrize("length", [WINDOW_SAMPLES, WINDOW_SAMPLES + 5000])
def test_cyclic_padding_of_a_full_window_changes_nothing(length: int) -> None:
    cycle = noise(length)
    np.testing.assert_array_equal(cyclic_pad(cycle, WINDOW_SAMPLES), cycle[:WINDOW_SAMPLES])


def test_a_seam_keeps_the_power_of_breath_noise() -> None:
    """Over many unrelated seams; an amplitude cross-fade would lose up to half of the power in the middle."""
    power = np.zeros(SEAM_SAMPLES)
    for seed in range(400):
        cycle = noise(1000, seed=seed)
        power += cyclic_pad(cycle, 2000)[840:1000].astype(np.float64) ** 2 / 400
    thirds = power.reshape(5, -1).mean(axis=1)
    np.testing.assert_allclose(thirds, 0.01, rtol=0.1)


def test_a_seam_does_not_click_where_a_hard_one_does() -> None:
    """A slow tone cut at its peak and at its trough: the hard seam jumps by the whole swing."""
    cycle = tone(100, round(SAMPLE_RATE * 1.205))[40:]
    own = np.abs(np.diff(cycle)).max()
    faded, hard = (np.abs(np.diff(cyclic_pad(cycle, WINDOW_SAMPLES, seam))).max() for seam in (SEAM_SAMPLES, 0))
    assert hard > 20 * own
    assert faded < 2 * own


def test_the_hard_seam_is_plain_repetition() -> None:
    cycle = noise(7001)
    np.testing.assert_array_equal(cyclic_pad(cycle, WINDOW_SAMPLES, 0), np.resize(cycle, WINDOW_SAMPLES))
    np.testing.assert_array_equal(pad(cycle, FrontEnd(seam="hard")), np.resize(cycle, WINDOW_SAMPLES))


def test_a_cycle_of_one_or_two_samples_fills_the_window() -> None:
    np.testing.assert_array_equal(cyclic_pad(np.array([0.5], np.float32), 9), np.full(9, 0.5, np.float32))
    two = cyclic_pad(np.array([0.5, -0.5], np.float32), 9)
    assert two[0] == 0.5
    assert np.isfinite(two).all()
    with pytest.raises(SignalError, match="empty"):
        cyclic_pad(np.zeros(0, np.float32), 9)


# --- long cycles


@pytest.mark.parametrize("seconds", [8.0, 8.0001, 10.0, 12.0, 12.001, 16.2, 60.0])
def test_a_long_cycle_is_cut_into_windows_that_overlap_by_half_and_miss_nothing(seconds: float) -> None:
    cycle = np.arange(round(seconds * SAMPLE_RATE), dtype=np.float32)  # exact below 2**24: values are positions
    parts = split(cycle)
    starts = [int(part[0]) for part in parts]
    assert starts[0] == 0
    assert parts[-1][-1] == cycle[-1]
    assert {part.size for part in parts} == {WINDOW_SAMPLES}
    assert max(np.diff(starts), default=0) <= WINDOW_SAMPLES // 2
    assert len(parts) == (1 if seconds == 8.0 else 1 + int(np.ceil((cycle.size - WINDOW_SAMPLES) / 64_000)))


def test_windows_of_a_long_cycle_are_those_of_its_parts() -> None:
    cycle = noise(11 * SAMPLE_RATE)
    stack = windows(cycle, FrontEnd())
    assert stack.shape == (2, FRAMES, 128)
    np.testing.assert_array_equal(stack[1], window(cycle[-WINDOW_SAMPLES:], FrontEnd()))
    assert windows(cycle[:9000], FrontEnd()).shape == (1, FRAMES, 128)
    with pytest.raises(SignalError, match="split"):
        raw_window(cycle, FrontEnd())


# --- resampling, normalisation, description


@pytest.mark.parametrize("sample_rate", [4000, 8000, 44_100, 48_000])
def test_resampling_agrees_with_a_polyphase_filter_on_a_tone(sample_rate: int) -> None:
    time = np.arange(sample_rate) / sample_rate
    samples = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    ours = resample(samples, sample_rate)
    factor = np.gcd(SAMPLE_RATE, sample_rate)
    theirs = scipy.signal.resample_poly(samples.astype(np.float64), SAMPLE_RATE // factor, sample_rate // factor)
    assert ours.dtype == np.float32
    assert abs(ours.size - SAMPLE_RATE) <= 1
    middle = slice(1600, -1600)  # the two filters ring differently at the edges
    np.testing.assert_allclose(ours[: theirs.size][middle], theirs[: ours.size][middle], rtol=0, atol=2e-3)
    exact = 0.5 * np.sin(2 * np.pi * 440 * np.arange(ours.size) / SAMPLE_RATE)
    np.testing.assert_allclose(ours[middle], exact[middle], rtol=0, atol=1e-4)


def test_resampling_to_the_same_rate_is_the_identity() -> None:
    np.testing.assert_array_equal(resample(noise(100), SAMPLE_RATE), noise(100))


def test_normalisation_is_half_a_standard_score() -> None:
    cycle = noise(9000)
    raw = raw_window(cycle, FrontEnd())
    np.testing.assert_allclose(window(cycle, FrontEnd(mean=-9.5, std=4.0)), (raw + 9.5) / 8, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"low_hz": 4000, "high_hz": 4000},
        {"high_hz": 8001},
        {"std": 0.0},
        {"mean": float("nan")},
        {"std": float("inf")},
        {"mels": 0},
        {"sample_rate": 8000},
        {"hop": 128},
        {"frames": 1023},
        {"padding": "repeat"},
        {"hop_samples": 160},
    ],
)
def test_a_front_end_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        FrontEnd.model_validate(wrong)
