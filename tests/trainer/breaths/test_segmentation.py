"""Scores against brute force, the trained network against the device's, and the detector on real recordings."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch

from device.breath.segmenter import BANDS, DELAY_STEPS, STEP_SAMPLES, Detector, shipped_weights
from device.breath.simulator import simulate
from device.bundle import Segmentation
from device.labels import Label
from device.signal import SAMPLE_RATE, FloatArray
from tests.conftest import RunCli
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.sounds import cache_of
from trainer.breaths.segmentation import (
    Counts,
    DetectorNet,
    compare,
    count,
    features,
    fit_detector,
    intersections,
    latencies,
    save_detector,
    score,
    stretches,
    targets,
)
from trainer.corpora import load_corpus
from trainer.corpora.audio_cache import AudioCache, with_audio
from trainer.corpora.cycle import Cycle, Recording

Span = tuple[float, float]


def cycle(start: float, end: float, label: Label = "normal", recording: str = "one") -> Cycle:
    return Cycle(recording, start, end, label, "patient", "stethoscope", "p1")


def random_spans(random: np.random.Generator, number: int) -> list[Span]:
    """On a grid of 0.1 s, so that brute force on the grid is exact."""
    starts = random.integers(0, 80, number)
    lengths = random.integers(1, 30, number)
    return [(start / 10, (start + length) / 10) for start, length in zip(starts, lengths, strict=True)]


def on_grid(span: Span) -> npt.NDArray[np.bool_]:
    tenths = np.arange(120)
    return (tenths >= round(10 * span[0])) & (tenths < round(10 * span[1]))


def overlap(one: Span, other: Span) -> float:
    return float((on_grid(one) & on_grid(other)).sum() / (on_grid(one) | on_grid(other)).sum())


def most_matches(found: list[Span], events: list[Span]) -> int:
    """As many pairs as any assignment of segments to events has."""
    close = intersections(found, events)[1] >= 0.5
    return max(
        sum(bool(close[one, place]) for place, one in enumerate(chosen) if one < len(found))
        for chosen in permutations(range(len(found) + len(events)), len(events))
    )


def test_intersections_against_a_grid() -> None:
    random = np.random.default_rng(0)
    spans, others = random_spans(random, 8), random_spans(random, 6)
    shared, ratio = intersections(spans, others)
    for i, one in enumerate(spans):
        for j, other in enumerate(others):
            assert shared[i, j] == pytest.approx((on_grid(one) & on_grid(other)).sum() / 10)
            assert ratio[i, j] == pytest.approx(overlap(one, other))


@pytest.mark.parametrize("seed", range(30))
def test_counts_against_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    found, events = random_spans(random, 4), random_spans(random, 3)
    counted = count(found, [cycle(*event) for event in events])
    assert counted.matched == most_matches(found, events)
    assert counted.matched + counted.missed == len(events)
    # of the others those count that have their middle in a stretch
    in_stretch = sum(any(a <= sum(one) / 2 <= b for a, b in stretches(events)) for one in found)
    assert in_stretch - counted.matched <= counted.false <= in_stretch


def test_what_counts_and_what_does_not() -> None:
    events = [cycle(1, 2), cycle(2.5, 3.5, "wheeze"), cycle(4, 5), cycle(8, 9)]
    found = [(1.0, 2.1), (2.4, 3.0), (3.0, 3.4), (4.3, 4.4), (6.0, 7.0), (8.05, 9.0)]
    counted = count(found, events)
    # 4-5 is missed by the short one in it, which is false; so are both pieces of the wheeze; 6-7 nobody annotated
    assert (counted.matched, counted.missed, counted.false) == (2, 1, 3)
    assert counted.covered == pytest.approx((0.5,))
    assert counted.onset_errors == pytest.approx((0.0, 0.05))
    assert counted.end_errors == pytest.approx((0.1, 0.0))
    assert counted.f1 == pytest.approx(4 / 8)
    # where cycles of every class are whole, a wheeze's is a match like any other
    whole = count([(1.0, 2.1), (2.4, 3.4)], events, every_class=True)
    assert (whole.matched, whole.missed, whole.false) == (2, 2, 0)
    normal_only = count([(1.0, 2.1), (2.4, 3.4)], events)
    assert (normal_only.matched, normal_only.missed, normal_only.false) == (1, 2, 0)
    assert normal_only.covered == pytest.approx((0.9,))


def test_nothing_found_and_nothing_annotated() -> None:
    assert count([], [cycle(1, 2), cycle(3, 4, "wheeze")]) == Counts(missed=1, covered=(0.0,))
    assert count([(1.0, 2.0)], []) == Counts()
    assert Counts().as_json()["precision"] is None


def test_stretches_end_where_the_next_event_is_far() -> None:
    assert stretches([(5.0, 6.0), (0.0, 1.0), (2.0, 3.0), (2.5, 2.7), (4.01, 5.0)]) == [(0.0, 3.0), (4.01, 6.0)]


def test_targets_know_only_what_was_annotated() -> None:
    wanted, known = targets([cycle(1, 2), cycle(2.5, 3), cycle(6, 6.5, "crackle")], 200)
    assert known[0].nonzero()[0][[0, -1]].tolist() == [16, 129]
    assert (wanted[0, 20:40] == 1).all() and (wanted[0, 40:50] == 0).all()
    assert wanted[1].argmax() in (20, 50)
    # inside a crackle a breath sounds; how long before and after it, and where it began, is unknown
    assert (known[0, 120:130] == 1).all() and not known[1, 100:150].any() and not known[0, 131:150].any()


def test_the_device_computes_what_was_trained() -> None:
    torch.manual_seed(0)
    net = DetectorNet().eval()
    samples = simulate(2, 12.3).samples
    with torch.inference_mode():
        trained = torch.sigmoid(net(torch.from_numpy(features(samples).T[None]).float()))[0].numpy()
    detector = Detector(net.weights())
    blocks = samples[: samples.size // STEP_SAMPLES * STEP_SAMPLES].reshape(-1, STEP_SAMPLES)
    heard = np.array([detector.step(block)[:2] for block in blocks]).T
    assert trained.shape == (2, 246)
    np.testing.assert_allclose(heard, trained, atol=2e-5)


def corpus_of(folder: Path, seeds: range) -> tuple[list[Recording], AudioCache]:
    """Simulated recordings, every breath annotated."""
    sounds: dict[str, FloatArray] = {}
    recordings = []
    for seed in seeds:
        name = f"simulated {seed}"
        heard = simulate(seed, 15.0, breaths_per_minute=15.0 + 2 * seed, abnormal_share=0.0)
        # expiration fades into a pause: the sound's end, not the cycle's
        cycles = tuple(
            cycle(one.onset_seconds, one.expiration_seconds + 0.6 * (one.end_seconds - one.expiration_seconds))
            for one in heard.breaths
        )
        sounds[name] = heard.samples
        recordings.append(Recording(name, None, name, "simulator", "", None, "", "normal", cycles))
    return recordings, cache_of(folder, sounds)


def test_a_detector_learns_and_the_same_seed_gives_the_same(tmp_path: Path) -> None:
    recordings, cache = corpus_of(tmp_path, range(10))
    fitted, again = fit_detector(recordings[:8], cache, 3), fit_detector(recordings[:8], cache, 3)
    assert all(np.array_equal(fitted[name], again[name]) for name in fitted)
    untrained = DetectorNet().weights()
    assert {name: matrix.shape for name, matrix in fitted.items()} == {
        name: matrix.shape for name, matrix in shipped_weights().items()
    }
    # ten steps are a beginning: it comes nearer to what is wanted on recordings that it never heard
    assert loss(fitted, recordings[8:], cache) < 0.95 * loss(untrained, recordings[8:], cache)
    save_detector(fitted, tmp_path / "detector.npz")
    with np.load(tmp_path / "detector.npz") as held:
        np.testing.assert_allclose(held["in"], fitted["in"], rtol=1e-6)


def loss(weights: dict[str, npt.NDArray[np.float64]], recordings: list[Recording], cache: AudioCache) -> float:
    """Mean cross-entropy of the activity by the device's own detector."""
    losses = []
    for recording in recordings:
        detector = Detector(weights)
        samples = cache[recording.name]
        blocks = samples[: samples.size // STEP_SAMPLES * STEP_SAMPLES].reshape(-1, STEP_SAMPLES)
        activity = np.array([detector.step(block)[0] for block in blocks])[DELAY_STEPS:]
        wanted = targets(recording.cycles, len(blocks))[0][0, :-DELAY_STEPS]
        losses.append(-np.mean(wanted * np.log(activity) + (1 - wanted) * np.log(1 - activity)))
    return float(np.mean(losses))


def test_segments_come_soon_after_their_breath() -> None:
    late = latencies(simulate(1, 40).samples)
    assert late.size > 5
    assert 0 < late.max() <= 1.0


def test_the_shipped_detector_on_real_recordings_of_other_stethoscopes(shared_data: Path, tmp_path: Path) -> None:
    corpus, cache = with_audio(load_corpus("icbhi", shared_data / "icbhi", lenient=True), tmp_path)
    breath = score(corpus.recordings, cache, Segmentation(), every_class=True)
    windows = score(corpus.recordings, cache, Segmentation(method="windows"), every_class=True)
    assert breath.f1 is not None and breath.f1 >= 0.6  # 0.72
    assert np.median(np.abs(breath.onset_errors)) < np.median(np.abs(windows.onset_errors)) / 2


def test_features_do_not_depend_on_gain() -> None:
    samples = simulate(2, 8).samples
    heard = features(samples)
    assert heard.shape == (8 * SAMPLE_RATE // STEP_SAMPLES, BANDS)
    np.testing.assert_allclose(features(samples * np.float32(0.25)), heard, atol=0.05)


def test_a_corpus_in_which_no_breath_is_found_is_scored(tmp_path: Path) -> None:
    root = make_sprsound(tmp_path / "corpus", patients=1, seconds=4.0)
    for seed, path in enumerate(root.rglob("*.wav")):
        soundfile.write(path, np.random.default_rng(seed).standard_normal(4 * SAMPLE_RATE) / 1000, SAMPLE_RATE)
    corpus, cache = with_audio(load_corpus("sprsound", root), tmp_path / "cache")
    assert compare(corpus, cache, [(corpus, None)])["latency_seconds"] == {"mean": None, "largest": None}


def test_the_commands_on_a_small_corpus(run_cli: RunCli, tmp_path: Path) -> None:
    root = make_sprsound(tmp_path / "corpus", patients=6, recordings_per_patient=2)
    where = ("--corpus", "sprsound", "--data", root, "--part", "train")
    scored = json.loads(run_cli("trainer", "segmentation", *where, "--folds", "0").stdout)
    assert set(scored) == {"breath", "windows 1.5 s", "windows 2.5 s", "latency_seconds"}
    assert 0 <= scored["breath"]["f1"] <= 1
    graded = json.loads(run_cli("trainer", "grading", *where, "--folds", "0").stdout)
    assert set(graded) == {"as set", "simulator"}
    assert run_cli("trainer", "segmentation", *where, "--out", tmp_path / "detector.npz").returncode == 0
    with np.load(tmp_path / "detector.npz") as held:
        assert set(held.files) == set(shipped_weights())
    nowhere = run_cli("trainer", "segmentation", *where, "--out", tmp_path / "none" / "detector.npz")
    assert nowhere.returncode == 2
    assert "none/detector.npz: cannot be written" in nowhere.stderr.replace("\n", "")
    assert "Traceback" not in nowhere.stderr
