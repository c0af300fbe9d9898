"""The segmenter on simulated breathing, whose breaths are known, and on sound without a rhythm."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.signal

from device.breath.segmenter import LEAST_GAP_SECONDS, LEAST_RHYTHM, Segment, Segmenter, rhythm
from device.breath.simulator import Breath, simulate
from device.bundle import Segmentation
from device.signal import SAMPLE_RATE, FloatArray

SEEDS = range(5)
NOTHING = np.empty(0, np.float32)  # arrays do not compare


def cut(samples: FloatArray, settings: Segmentation | None = None, block: int = 1600) -> list[Segment]:
    segmenter = Segmenter(settings or Segmentation())
    found = []
    for start in range(0, samples.size, block):
        found += segmenter.feed(samples[start : start + block])
    return found + segmenter.flush()


def noise(seconds: float, seed: int = 0) -> FloatArray:
    return (0.01 * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def matched(breaths: tuple[Breath, ...], segments: list[Segment]) -> int:
    """Breaths that have a segment of their own with an intersection over union of at least a half."""
    free, count = list(segments), 0
    for breath in breaths:
        for segment in free:
            shared = min(breath.end_seconds, segment.end_seconds) - max(breath.onset_seconds, segment.start_seconds)
            union = max(breath.end_seconds, segment.end_seconds) - min(breath.onset_seconds, segment.start_seconds)
            if shared >= union / 2:
                free.remove(segment)
                count += 1
                break
    return count


# What the detector, which never heard the simulator, reaches on these is 0.98, 1.00, 0.98, 0.97.
@pytest.mark.parametrize("per_minute", [12, 20, 30, 60])
def test_breaths_of_the_simulator_are_found(per_minute: float) -> None:
    found, breaths = 0, 0
    for seed in SEEDS:
        heard = simulate(100 + seed, 60, breaths_per_minute=per_minute)
        segments = [segment for segment in cut(heard.samples) if segment.kind == "breath"]
        found, breaths = found + matched(heard.breaths, segments), breaths + len(heard.breaths)
    assert found / breaths >= 0.9


def test_the_rhythm_of_breathing_is_believed_and_that_of_noise_is_not() -> None:
    late = [segment for segment in cut(simulate(100, 40).samples) if segment.start_seconds > 15]
    assert np.median([segment.rhythm for segment in late]) > 0.4
    assert max(segment.rhythm for segment in cut(noise(40))) < LEAST_RHYTHM


def test_where_expiration_begins() -> None:
    heard = simulate(7, 120, breaths_per_minute=15, abnormal_share=0.0)
    turns = np.array([breath.expiration_seconds for breath in heard.breaths])
    phases = [segment.phase for segment in cut(heard.samples) if segment.phase is not None]
    errors = [np.abs(turns - phase / SAMPLE_RATE).min() for phase in phases]
    assert len(phases) >= len(heard.breaths) / 2
    assert np.median(errors) < 0.1


def test_a_short_cycle_is_judged_with_the_sound_around_it_and_nothing_that_came_later() -> None:
    samples, block = simulate(3, 40).samples, 800
    segmenter, told = Segmenter(Segmentation(context_seconds=3.5)), 0
    segmenter.reset(1000)  # sound before a gap is none of its business
    for begin in range(0, samples.size - block + 1, block):
        for segment in segmenter.feed(samples[begin : begin + block]):
            if segment.samples.size >= 3.5 * SAMPLE_RATE:
                assert segment.judged is segment.samples
                continue
            told += 1
            assert segment.judged.size == min(3.5 * SAMPLE_RATE, begin + block)
            (at,) = [
                first
                for first in range(max(0, segment.end - 1000 - segment.judged.size), segment.start - 1000 + 1)
                if np.array_equal(samples[first : first + 8], segment.judged[:8])
            ]
            assert np.array_equal(samples[at : at + segment.judged.size], segment.judged)
            assert at <= segment.start - 1000 and at + segment.judged.size >= segment.end - 1000
            assert at + segment.judged.size <= begin + block
            assert segment.span is not None
            assert np.array_equal(segment.judged[slice(*segment.span)], segment.samples)
            assert segment.context_start == at + 1000
    assert told > 5


def test_the_context_does_not_depend_on_how_the_stream_is_cut() -> None:
    samples, settings = simulate(3, 30).samples, Segmentation(context_seconds=3.5)
    one, other = (cut(samples, settings, block) for block in (1600, 7777))
    assert len(one) == len(other) > 5
    assert all(np.array_equal(a.judged, b.judged) for a, b in zip(one, other, strict=True))


def test_a_breath_is_told_within_a_second_of_its_end() -> None:
    for seed in SEEDS:
        samples = simulate(seed, 40).samples
        segmenter, breaths = Segmenter(Segmentation()), 0
        for heard in range(0, samples.size - 799, 800):
            for segment in segmenter.feed(samples[heard : heard + 800]):
                breaths += segment.kind == "breath"
                assert heard + 800 - segment.end <= SAMPLE_RATE
        assert breaths > 5


def test_clarity_and_snr_tell_breathing_from_noise() -> None:
    breathing, hiss = cut(simulate(3, 30).samples), cut(noise(30))
    assert min(one.clarity for one in breathing if one.clarity is not None) > 0.5
    assert max(one.clarity for one in hiss if one.clarity is not None) < 0.4
    assert min(one.snr_db for one in breathing if one.snr_db is not None) > 10
    assert max(one.snr_db for one in hiss if one.snr_db is not None) < 3
    # of two seconds nobody can say
    assert {one.clarity for one in cut(simulate(3, 2.0).samples)} == {None}
    # windows know it, too
    windows = cut(noise(30), Segmentation(method="windows"))
    assert max(one.clarity for one in windows if one.clarity is not None) < 0.4


def test_loudness_changes_nothing() -> None:
    samples = simulate(4, 30).samples
    loud, soft = cut(samples), cut(samples * np.float32(0.05))
    assert [(one.start, one.end, one.kind) for one in loud] == [(one.start, one.end, one.kind) for one in soft]


@pytest.mark.parametrize("method", ["breath", "windows"])
def test_segments_do_not_depend_on_how_the_stream_is_cut_into_blocks(method: str) -> None:
    settings = Segmentation.model_validate({"method": method})
    samples = simulate(3, 31.3).samples
    whole = cut(samples, settings, block=samples.size)
    rng = np.random.default_rng(0)
    segmenter, pieces, position = Segmenter(settings), [], 0
    while position < samples.size:
        size = int(rng.choice([1, 7, 160, 799, 801, 5000, 40_000]))
        pieces += segmenter.feed(samples[position : position + size])
        position += size
    pieces += segmenter.flush()
    assert [replace(one, samples=NOTHING) for one in pieces] == [replace(one, samples=NOTHING) for one in whole]
    for one, other in zip(pieces, whole, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)


def test_segments_are_the_stream_where_they_say_they_are() -> None:
    samples = simulate(1, 40).samples
    for segment in cut(samples):
        np.testing.assert_array_equal(segment.samples, samples[segment.start : segment.end])


def unjudged(samples: FloatArray, segments: list[Segment]) -> list[float]:
    """Lengths in seconds of what no segment has."""
    heard = np.zeros(samples.size, bool)
    for segment in segments:
        heard[segment.start : segment.end] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ~heard, [0]])))
    return [float(gap) for gap in (edges[1::2] - edges[::2]) / SAMPLE_RATE]


@pytest.mark.parametrize("seconds", [2.0, 3.9, 9.0, 13.7, 30.2])
@pytest.mark.parametrize("kind", ["breathing", "noise", "windows"])
def test_only_pauses_stay_unjudged(seconds: float, kind: str) -> None:
    samples = noise(seconds) if kind == "noise" else simulate(5, seconds).samples
    segments = cut(samples, Segmentation(method="windows" if kind == "windows" else "breath"))
    gaps = unjudged(samples, segments)
    periods = [one.period_seconds for one in segments if one.rhythm >= LEAST_RHYTHM]
    assert max(gaps, default=0.0) < max([LEAST_GAP_SECONDS, *periods])
    assert sum(gaps) < 0.25 * seconds


@pytest.mark.parametrize("method", ["breath", "windows"])
@pytest.mark.parametrize("context_seconds", [0.0, 8.0])
def test_no_two_segments_share_a_sample(method: str, context_seconds: float) -> None:
    settings = Segmentation.model_validate({"method": method, "context_seconds": context_seconds})
    for seed in SEEDS:
        quiet = np.zeros(SAMPLE_RATE * 3, np.float32)
        samples = np.concatenate([simulate(seed, 40).samples, quiet, noise(9), simulate(seed + 50, 20).samples])
        segments = cut(samples, settings)
        assert all(one.end <= other.start for one, other in pairwise(segments))


def test_a_breath_that_is_missed_in_a_rhythm_is_heard_in_windows() -> None:
    heard = simulate(2, 60, breaths_per_minute=15, abnormal_share=0.0)
    missed = heard.breaths[10]
    first, stop = (round(at * SAMPLE_RATE) for at in (missed.onset_seconds, missed.end_seconds))
    samples = heard.samples.copy()
    samples[first:stop] = noise(1 + stop / SAMPLE_RATE)[first:stop]
    kinds = [(one.kind, one.start < stop and one.end > first) for one in cut(samples) if one.start_seconds > 15]
    assert ("window", True) in kinds
    assert [one.kind for one in cut(heard.samples) if one.start_seconds > 15].count("window") == 0


def test_no_breath_is_longer_or_shorter_than_the_bundle_allows() -> None:
    settings = Segmentation(shortest_seconds=2.0, longest_seconds=3.0)
    lengths = [
        segment.samples.size / SAMPLE_RATE
        for per_minute in (12, 24, 50)
        for segment in cut(simulate(2, 60, breaths_per_minute=per_minute).samples, settings)
        if segment.kind == "breath"
    ]
    assert lengths
    assert min(lengths) >= 2.0
    assert max(lengths) <= 3.0


@pytest.mark.parametrize("colour", ["white", "low"])
def test_steady_noise_falls_back_to_windows(colour: str) -> None:
    samples = noise(40)
    if colour == "low":
        sections = scipy.signal.butter(2, (100, 300), "bandpass", fs=SAMPLE_RATE, output="sos")
        samples = scipy.signal.sosfilt(sections, samples).astype(np.float32)
    segments = cut(samples)
    assert {segment.kind for segment in segments} == {"window"}
    assert {segment.samples.size for segment in segments} == {40_000}
    starts = [segment.start for segment in segments]
    assert starts == [40_000 * number for number in range(len(starts))]
    assert segments[-1].end == samples.size


def test_silence_has_no_rhythm() -> None:
    assert {segment.kind for segment in cut(np.zeros(160_000, np.float32))} == {"window"}
    assert rhythm(np.zeros(200)) == (0.0, 0.0)


def test_the_period_of_a_known_envelope() -> None:
    steps = np.arange(240) / 20
    period, confidence = rhythm(np.cos(2 * np.pi * steps / 2.5))
    assert period == pytest.approx(2.5, abs=0.05)
    assert confidence > 0.9
    # two seconds of it are too little to believe
    assert rhythm(np.cos(2 * np.pi * steps[:40] / 1.0)) == (0.0, 0.0)


def test_the_method_windows_cuts_nothing_else() -> None:
    segments = cut(simulate(1, 30).samples, Segmentation(method="windows"))
    assert {segment.kind for segment in segments} == {"window"}


def test_less_than_the_shortest_breath_is_no_segment() -> None:
    assert cut(noise(0.5)) == []
    assert [segment.samples.size for segment in cut(noise(1.3))] == [20_800]


def test_after_a_reset_nothing_of_before_comes_back() -> None:
    segmenter = Segmenter(Segmentation())
    before, after = simulate(1, 20).samples, simulate(2, 20).samples
    segmenter.feed(before)
    segmenter.flush()
    segmenter.reset(1_000_000)
    again = segmenter.feed(after) + segmenter.flush()
    fresh = cut(after)
    assert [(one.start - 1_000_000, one.end - 1_000_000, one.kind) for one in again] == [
        (one.start, one.end, one.kind) for one in fresh
    ]
