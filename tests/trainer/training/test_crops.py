"""Training crops: where they lie, what they are labelled, and that one key is one window."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from device.capture.recording import read_header
from device.labels import LABELS, Label
from device.model.judgement import moment_centres
from device.signal import (
    FRAMES,
    MEL_FLOOR,
    SAMPLE_RATE,
    WINDOW_SAMPLES,
    FloatArray,
    FrontEnd,
    SignalError,
    level,
    log_mel,
    mel_centres,
    window,
)
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.sounds import cache_of
from tests.trainer.toy_fit import AST, RECIPE
from trainer.corpora import Corpus, Cycle, Recording, load_corpus
from trainer.corpora.audio_cache import AudioCache, with_audio
from trainer.corpora.cycle import Grain
from trainer.corpora.stretches import overlapping, place
from trainer.metrics import BoolArray, auroc
from trainer.run.recipe import AugmentationRecipe, DataRecipe, load_recipe, with_changes
from trainer.training.crops import (
    SPANS,
    Crop,
    TrainingCrops,
    augmented_window,
    noises,
    overlaid,
    response,
    sped,
    through,
)
from trainer.training.crops import crops_of as recipes_crops
from trainer.training.sampler import draw, weights

NO_AUGMENTATION = AugmentationRecipe()
MOMENTS = 25


def cycle(start: float, end: float, label: Label = "normal", recording: str = "r") -> Cycle:
    return Cycle(recording, start, end, label, "p", "d", "s")


def one_recording(cycles: list[Cycle], seconds: float, label: str = "both") -> tuple[Corpus, AudioCache]:
    """No audio: only where crops lie is asked."""
    recording = Recording("r", None, "p", "d", "s", None, "train", label, tuple(cycles))
    return Corpus("sprsound", Path(), (recording,)), AudioCache({"r": round(seconds * 16_000)}, {})


def crops_of(corpus: Corpus, cache: AudioCache, data: DataRecipe, seed: int = 0) -> TrainingCrops:
    return TrainingCrops(corpus, cache, FrontEnd(), data, NO_AUGMENTATION, seed)


def drawn(crops: TrainingCrops, index: int, count: int = 300) -> list[Crop]:
    return [crops.crop(crops.cycles[index], np.random.default_rng((9, position))) for position in range(count)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, AudioCache]:
    root = tmp_path_factory.mktemp("crops")
    corpus = load_corpus("sprsound", make_sprsound(root / "corpus", patients=3))
    return with_audio(corpus, root / "cache")


# --- where


@pytest.mark.parametrize(
    ("event", "length", "limit", "share", "expected"),
    [
        ((4.0, 5.0), 3.0, 10.0, 0.5, (3.0, 6.0)),  # centred
        ((4.0, 5.0), 3.0, 10.0, 0.0, (4.0, 7.0)),  # the event at its start
        ((4.0, 5.0), 3.0, 10.0, 1.0, (2.0, 5.0)),  # the event at its end
        ((2.0, 8.0), 2.0, 10.0, 0.25, (3.0, 5.0)),  # inside a longer event
        ((0.2, 0.6), 2.0, 10.0, 0.5, (0.0, 2.0)),  # shifted away from the start
        ((9.5, 9.9), 2.0, 10.0, 0.5, (8.0, 10.0)),  # and from the end
        ((0.5, 0.9), 3.0, 1.2, 0.5, (0.0, 1.2)),  # a short recording whole
    ],
)
def test_a_crop_holds_its_event_and_stays_in_the_recording(
    event: tuple[float, float], length: float, limit: float, share: float, expected: tuple[float, float]
) -> None:
    assert place(*event, length, limit, share) == pytest.approx(expected)


def test_an_event_is_heard_when_more_than_50_ms_of_it_are_inside() -> None:
    events = [cycle(0.0, 1.0), cycle(0.96, 2.0), cycle(1.0, 1.06), cycle(3.0, 4.0)]
    assert overlapping(events, 1.0, 3.04) == events[1:3]
    assert overlapping(events, 1.0, 3.06) == events[1:]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_random_crops_are_of_the_asked_length_and_hold_or_lie_in_their_event(index: int) -> None:
    events = [cycle(2.0, 2.5), cycle(6.0, 9.5, "wheeze"), cycle(14.5, 15.0)]
    crops = crops_of(*one_recording(events, 15.0), DataRecipe(crops="random", crop_seconds=(1.5, 3.0)))
    for crop in drawn(crops, index):
        start, end = crop.start_seconds, crop.end_seconds
        assert 1.5 <= end - start <= 3.0
        assert start >= 0.0 and end <= 15.0
        assert max(start, events[index].start_seconds) < min(end, events[index].end_seconds)
        assert (start <= events[index].start_seconds and end >= events[index].end_seconds) or index == 1


def test_event_crops_are_the_annotation_itself() -> None:
    events = [cycle(2.0, 2.5), cycle(2.2, 9.5, "wheeze")]
    crops = crops_of(*one_recording(events, 15.0), DataRecipe(crops="events"))
    assert drawn(crops, 0, 1) == [Crop(2.0, 2.5, "normal")]
    assert drawn(crops, 1, 1) == [Crop(2.2, 9.5, "wheeze")]


def test_only_wholly_normal_recordings_are_cut_anywhere() -> None:
    events, data = [cycle(2.0, 2.5)], DataRecipe(crops="random", anywhere=1.0)
    calm = crops_of(*one_recording(events, 60.0, "normal"), data)
    ill = crops_of(*one_recording(events, 60.0, "crackle"), data)
    assert max(crop.start_seconds for crop in drawn(calm, 0)) > 30
    assert max(crop.start_seconds for crop in drawn(ill, 0)) < 2.0


# --- label


@pytest.mark.parametrize(
    ("neighbours", "expected"),
    [
        ([], "normal"),
        (["normal", "normal"], "normal"),
        (["crackle"], "crackle"),
        (["normal", "wheeze"], "wheeze"),
        (["crackle", "wheeze"], "both"),
        (["both", "normal"], "both"),
    ],
)
def test_a_crop_is_labelled_by_everything_in_it(neighbours: list[Label], expected: Label) -> None:
    """The recording is so short that every crop is the whole of it."""
    events = [cycle(0.0, 0.4), *(cycle(0.4 + i / 4, 0.6 + i / 4, label) for i, label in enumerate(neighbours))]
    crops = crops_of(*one_recording(events, 1.2), DataRecipe(crops="random"))
    assert {crop.label for crop in drawn(crops, 0, 20)} == {expected}


def test_the_label_of_a_crop_is_what_overlaps_it() -> None:
    events = [cycle(1.0, 2.0), cycle(2.2, 3.0, "crackle"), cycle(3.3, 4.5, "wheeze"), cycle(6.0, 7.0)]
    crops = crops_of(*one_recording(events, 8.0), DataRecipe(crops="random"))
    seen = set()
    for index in range(4):
        for crop in drawn(crops, index):
            start, end, label = crop.start_seconds, crop.end_seconds, crop.label
            heard = {e.label for e in events if min(e.end_seconds, end) - max(e.start_seconds, start) > 0.05}
            crackle, wheeze = "crackle" in heard, "wheeze" in heard
            assert label == (
                "both" if crackle and wheeze else "crackle" if crackle else "wheeze" if wheeze else "normal"
            )
            seen.add(label)
    assert seen == set(LABELS)


def test_an_abnormal_event_shorter_than_an_overlap_is_still_what_was_drawn() -> None:
    crops = crops_of(*one_recording([cycle(5.0, 5.04, "crackle")], 10.0), DataRecipe(crops="random"))
    assert {crop.label for crop in drawn(crops, 0)} == {"crackle"}


def test_a_normal_cycle_avoids_its_abnormal_neighbour_where_it_can() -> None:
    """Three of ten single draws do; four attempts make it seven."""
    events = [cycle(5.0, 6.0), cycle(6.2, 7.0, "crackle")]
    crops = crops_of(*one_recording(events, 12.0), DataRecipe(crops="random", crop_seconds=(1.5, 2.5)))
    normal = np.mean([crop.label == "normal" for crop in drawn(crops, 0)])
    assert normal > 0.6


def test_log_uniform_lengths_are_as_many_in_every_octave() -> None:
    data = DataRecipe(crops="random", crop_seconds=(0.5, 4.0))
    crops = crops_of(*one_recording([cycle(5.0, 5.4)], 20.0), data)
    lengths = np.array([crop.end_seconds - crop.start_seconds for crop in drawn(crops, 0, 1500)])
    assert 0.5 <= lengths.min() < 0.52 and 3.9 < lengths.max() <= 4.0
    octaves = np.histogram(lengths, [0.5, 1.0, 2.0, 4.0])[0] / len(lengths)
    np.testing.assert_allclose(octaves, 1 / 3, atol=0.05)


def test_the_length_of_a_random_crop_tells_nothing_of_its_label(shared_data: Path) -> None:
    """Annotated lengths alone reach 0.83 here (AUROC); the drawn lengths must not."""
    corpus = load_corpus("sprsound", shared_data / "sprsound" / "train")
    seconds = {
        recording.name: read_header(recording.audio).seconds for recording in corpus.recordings if recording.audio
    }
    cache = AudioCache({name: round(16_000 * length) for name, length in seconds.items()}, {})
    data = load_recipe("mobilenet").data
    # whole windows are all alike; that a normal one with a finding in it is drawn anew leaves 0.535 there
    crops = crops_of(corpus, cache, data.model_copy(update={"whole_windows": 0.0}))
    chosen = draw(weights([c.label for c in corpus.cycles], "binary"), 8000, seed=0, epoch=0)
    cut = [crops.crop(corpus.cycles[i], np.random.default_rng((0, 0, n))) for n, i in enumerate(chosen)]
    abnormal = np.array([crop.label != "normal" for crop in cut])
    length = np.array([crop.end_seconds - crop.start_seconds for crop in cut])
    assert auroc(abnormal, length) == pytest.approx(0.5, abs=0.02)
    annotated = np.array([c.duration_seconds for c in corpus.cycles])
    assert auroc(np.array([c.label != "normal" for c in corpus.cycles]), -annotated) > 0.8


# --- the window


def test_one_key_is_one_window_in_any_process_and_any_order(made: tuple[Corpus, AudioCache]) -> None:
    corpus, cache = made
    crops = recipes_crops(corpus, cache, RECIPE.front_end, RECIPE, 5)
    keys = [(epoch, position, position % len(crops)) for epoch in (0, 1) for position in range(6)]
    here = {key: crops[key] for key in reversed(keys)}
    loader = DataLoader(crops, batch_size=1, sampler=keys, num_workers=2)
    for key, batch in zip(keys, loader, strict=True):
        assert all(torch.equal(one[0], expected) for one, expected in zip(batch, here[key], strict=True))
    assert here[keys[0]][0].shape == (FRAMES, RECIPE.front_end.mels)
    for other_key in ((1, 0, 0), (0, 1, 0)):
        assert not torch.equal(here[(0, 0, 0)][0], crops[other_key][0]), "drawn again, cut again"
    other = recipes_crops(corpus, cache, RECIPE.front_end, RECIPE, 6)
    assert not torch.equal(other[keys[0]][0], here[keys[0]][0])


def test_without_augmentation_a_window_is_what_the_device_computes(made: tuple[Corpus, AudioCache]) -> None:
    corpus, cache = made
    crops = crops_of(corpus, cache, DataRecipe(crops="events"))
    first = corpus.cycles[0]
    samples = cache.cut(first.recording, first.start_seconds, first.end_seconds)
    windows, members, classes, weights = crops[(0, 0, 0)]
    assert (members[0] == 1).all() and classes[0] == LABELS.index(first.label)
    assert weights.tolist() == [1.0, *[0.0] * (SPANS - 1)]
    np.testing.assert_array_equal(windows.numpy(), window(samples, FrontEnd()))


def test_a_silent_stretch_is_named(tmp_path: Path) -> None:
    corpus, _ = one_recording([cycle(1.0, 2.0)], 5.0)
    crops = crops_of(corpus, cache_of(tmp_path, {"r": np.zeros(5 * 16_000)}), DataRecipe(crops="events"))
    with pytest.raises(SignalError, match=r"r 1\.00-2\.00 s: the cycle is constant"):
        crops[(0, 0, 0)]


def breath(samples: int = 24_000) -> FloatArray:
    return (0.1 * np.random.default_rng(2).standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize(
    "augmentation",
    [
        AugmentationRecipe(cyclic_shift=True),
        AugmentationRecipe(gain_db=6.0),
        AugmentationRecipe(equalise_db=4.0),
        AugmentationRecipe(noise_share=1.0),
        AugmentationRecipe(time_masks=2, time_mask_frames=60),
        AugmentationRecipe(mel_masks=2, mel_mask_bands=8),
    ],
)
def test_each_augmentation_varies_the_window_by_its_seed(augmentation: AugmentationRecipe) -> None:
    plain = window(breath(), FrontEnd(mean=-10.0, std=4.0))
    varied, again, other = (
        augmented_window(breath(), FrontEnd(mean=-10.0, std=4.0), augmentation, np.random.default_rng(seed))[0]
        for seed in (0, 0, 1)
    )
    assert varied.shape == plain.shape and varied.dtype == np.float32 and np.isfinite(varied).all()
    np.testing.assert_array_equal(varied, again)
    assert not np.array_equal(varied, plain)
    assert not np.array_equal(varied, other)


def test_masks_are_as_many_and_as_wide_as_the_recipe_says() -> None:
    masks = AugmentationRecipe(time_masks=2, time_mask_frames=60, mel_masks=1, mel_mask_bands=8)
    widths = []
    for seed in range(40):
        masked = augmented_window(breath(), FrontEnd(), masks, np.random.default_rng(seed))[0] == 0.0
        frames, bands = masked.all(axis=1).sum(), masked.all(axis=0).sum()
        assert frames <= 120 and bands <= 8
        widths.append((frames, bands))
    assert max(frames for frames, _ in widths) > 60
    assert max(bands for _, bands in widths) == 8


@pytest.mark.parametrize("level", [0.1, 0.0])
def test_gain_moves_every_band_alike_and_levelling_does_not_undo_it(level: float) -> None:
    front_end, augmentation = FrontEnd(level=level), AugmentationRecipe(gain_db=6.0, noise_share=1.0)
    calm = augmentation.model_copy(update={"gain_db": 0.0})
    moved = []
    for seed in range(20):
        plain, loud = (
            augmented_window(breath(), front_end, how, np.random.default_rng(seed))[0] for how in (calm, augmentation)
        )
        # natural logarithms of power; the lowest bands hold no FFT bin
        difference = (loud - plain)[:, 20:] * 10 / np.log(10)
        assert difference.std() < 0.01
        moved.append(float(difference.mean()))
    assert -6.0 <= min(moved) < -4.0
    assert 4.0 < max(moved) <= 6.0


def test_frames_of_zeros_are_added_before_normalisation() -> None:
    front_end = FrontEnd(frames=1024, mean=-9.0, std=3.0)
    masks = AugmentationRecipe(equalise_db=4.0, time_masks=1, time_mask_frames=5)
    longer, _ = augmented_window(breath(), front_end, masks, np.random.default_rng(1))
    assert longer.shape == (1024, 128)
    added = longer[FRAMES:]
    np.testing.assert_allclose(added[added.any(axis=1)], 9.0 / 6.0, rtol=1e-6)
    plain, _ = augmented_window(breath(), front_end, NO_AUGMENTATION, np.random.default_rng(0))
    np.testing.assert_array_equal(plain, window(breath(), front_end))


@pytest.mark.parametrize("floor", [MEL_FLOOR, 1e-5, 1e-2])
def test_where_nothing_is_asked_a_window_is_the_devices(floor: float) -> None:
    front_end = FrontEnd(mels=78, low_hz=0.0, high_hz=4002.547, floor=floor, mean=-4.5, std=2.5)
    samples = breath()
    samples[4_000:9_000] *= 1e-6
    plain, _ = augmented_window(samples, front_end, NO_AUGMENTATION, np.random.default_rng(0), MOMENTS)
    np.testing.assert_array_equal(plain, window(samples, front_end))


# --- another stethoscope


def filtered(samples: FloatArray, decibels: list[float], at_hertz: list[float]) -> FloatArray:
    """Samples (n,) through a frequency response, in one piece."""
    hertz = np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE)
    gain = 10 ** (np.interp(np.log(np.maximum(hertz, 1.0)), np.log(at_hertz), decibels) / 20)
    return np.fft.irfft(np.fft.rfft(samples) * gain, samples.size).astype(np.float32)


@pytest.mark.parametrize("decibels", [[0.0, 6.0, -6.0, 0.0], [-30.0, 0.0, 0.0, 0.0], [0.0, 0.0, -20.0, -60.0]])
def test_log_mels_through_a_response_are_those_of_the_filtered_and_levelled_sound(decibels: list[float]) -> None:
    front_end, at_hertz = FrontEnd(mels=64), [60.0, 500.0, 1500.0, 8000.0]
    samples = breath(WINDOW_SAMPLES)
    hertz = mel_centres(front_end.mels, front_end.low_hz, front_end.high_hz)
    found = through(
        log_mel(level(samples, 0.1), front_end), np.interp(np.log(hertz), np.log(at_hertz), decibels), front_end
    )
    expected = log_mel(level(filtered(samples, decibels, at_hertz), 0.1), front_end)
    # nepers; the lowest bands are narrower than a line of the spectrum
    assert np.abs(found - expected).mean(axis=0)[8:].max() < 0.2


def test_a_low_pass_takes_the_top_away_and_the_floor_comes_after() -> None:
    """A tone and noise: what lay at the floor before stays there, however the rest is levelled again."""
    front_end = FrontEnd(mels=64, floor=1e-3)
    time = np.arange(WINDOW_SAMPLES) / SAMPLE_RATE
    samples = (0.1 * np.sin(2 * np.pi * 300 * time) + 0.1 * breath(WINDOW_SAMPLES)).astype(np.float32)
    low = AugmentationRecipe(lowpass_share=1.0, lowpass_hz=(1000.0, 1000.0))
    hertz = mel_centres(front_end.mels, front_end.low_hz, front_end.high_hz)
    floor = np.log(front_end.floor)
    plain = window(samples, front_end)  # mean 0 and deviation 0.5 leave log-mels as they are
    assert (plain[:, hertz > 4500] > floor + 0.5).mean() > 0.9, "there is something to take away"
    for seed in range(4):
        cut, _ = augmented_window(samples, front_end, low, np.random.default_rng(seed))
        assert (cut.min(), cut[:, hertz > 6000].max()) == pytest.approx((floor, floor), abs=1e-5)
        assert np.abs(cut - plain)[:, hertz < 950].max() < 0.1


def test_a_high_pass_takes_the_bottom_away() -> None:
    front_end, high = FrontEnd(mels=64), AugmentationRecipe(highpass_share=1.0, highpass_hz=(200.0, 200.0))
    hertz = mel_centres(front_end.mels, front_end.low_hz, front_end.high_hz)
    for seed in range(4):
        decibels = response(front_end, high, np.random.default_rng(seed))
        assert (decibels[hertz >= 200] == 0.0).all()
        slope = decibels[hertz < 200] / np.log2(200.0 / hertz[hertz < 200])
        assert slope == pytest.approx(slope[0]) and -24.0 <= slope[0] <= -6.0


def test_a_response_that_is_not_asked_for_is_flat() -> None:
    log_mels = log_mel(breath(), FrontEnd())
    flat = response(FrontEnd(), NO_AUGMENTATION, np.random.default_rng(0))
    assert not flat.any() and through(log_mels, flat, FrontEnd()) is log_mels


def test_noise_comes_at_the_asked_level() -> None:
    """Over a tone, the noise's share of the power is what the ratio says."""
    tone = (0.1 * np.sqrt(2) * np.sin(2 * np.pi * 500 * np.arange(WINDOW_SAMPLES) / 16_000)).astype(np.float32)
    front_end = FrontEnd(mels=64)
    quiet, _ = augmented_window(tone, front_end, NO_AUGMENTATION, np.random.default_rng(0))
    for snr_db in (0.0, 20.0):
        noisy = AugmentationRecipe(noise_share=1.0, noise_snr_db=(snr_db, snr_db))
        heard, _ = augmented_window(tone, front_end, noisy, np.random.default_rng(0))
        band = int(quiet.mean(axis=0).argmax())
        # levelled again: the tone keeps 1 / (1 + noise / tone) of the power
        expected = np.log(1 / (1 + 10 ** (-snr_db / 10)))
        assert (heard - quiet)[:, band].mean() == pytest.approx(expected, abs=0.15)


def test_what_is_laid_under_a_crop_has_the_asked_ratio_and_is_repeated_to_its_length() -> None:
    crop, below = breath(30_000), 3.0 * breath(20_000)[::-1]
    for snr_db in (0.0, 12.0):
        added = overlaid(crop, below, snr_db) - crop
        assert 20 * np.log10(np.std(crop) / np.std(added)) == pytest.approx(snr_db, abs=1e-3)
        np.testing.assert_allclose(added[20_000:], added[:10_000], atol=1e-6)
    np.testing.assert_array_equal(overlaid(crop, np.zeros(100, np.float32), 0.0), crop)


def ward(tmp_path: Path) -> tuple[Corpus, AudioCache]:
    """A calm patient with a clean and a poor recording, an ill one with an abnormal and a poor one; each constant-free
    and told apart by its frequency."""
    rows: list[tuple[str, str, str, tuple[Cycle, ...]]] = [
        ("calm", "calm", "normal", (cycle(1.0, 2.0, recording="calm"),)),
        ("calm_poor", "calm", "poor quality", ()),
        ("ill", "ill", "crackle", (cycle(1.0, 2.0, "crackle", "ill"),)),
        ("ill_poor", "ill", "poor quality", ()),
    ]
    time = np.arange(5 * 16_000) / 16_000
    sounds = {name: 0.1 * np.sin(2 * np.pi * 300 * number * time) for number, (name, *_) in enumerate(rows, 1)}
    recordings = []
    for name, patient, label, cycles in rows:
        own = tuple(replace(one, patient=patient) for one in cycles)
        recordings.append(Recording(name, None, patient, "d", "s", None, "train", label, own))
    return Corpus("sprsound", Path(), tuple(recordings)), cache_of(tmp_path, sounds)


def loudest_band(log_mels: FloatArray) -> int:
    return int(log_mels.mean(axis=0).argmax())


def test_noise_is_what_is_of_poor_quality_in_patients_without_findings(tmp_path: Path) -> None:
    corpus, _ = ward(tmp_path)
    assert noises(corpus) == ["calm_poor"]


@pytest.mark.parametrize("index", [0, 1])
def test_normal_and_abnormal_crops_get_the_same_backgrounds(tmp_path: Path, index: int) -> None:
    """Noise or the calm recording, never what comes from an ill patient."""
    corpus, cache = ward(tmp_path)
    data, front_end = DataRecipe(crops="random", crop_seconds=(1.5, 3.0)), FrontEnd(mels=64)
    under = AugmentationRecipe(background_share=1.0, background_snr_db=(12.0, 12.0))
    plain = TrainingCrops(corpus, cache, front_end, data, NO_AUGMENTATION, 0)
    mixed = TrainingCrops(corpus, cache, front_end, data, under, 0)
    bands = {name: loudest_band(window(cache[name], front_end)) for name in cache.lengths}
    risen = set()
    for position in range(12):
        before, after = plain[(0, position, index)], mixed[(0, position, index)]
        assert torch.equal(after[2], before[2])
        assert loudest_band(after[0].numpy()) == loudest_band(before[0].numpy())
        difference = (after[0] - before[0]).mean(dim=0).numpy()
        most = int(difference.argmax())
        risen |= {min(bands, key=lambda name: abs(bands[name] - most))} if difference[most] > 1.0 else set()
    own = plain.cycles[index].recording
    assert risen - {own} == {"calm_poor", "calm"} - {own}


# --- what is learnt of a crop


def annotated(
    folder: Path,
    cycles: list[Cycle],
    seconds: float,
    grain: Grain = "event",
    front_end: FrontEnd = FrontEnd(),  # noqa: B008 - frozen
    augmentation: AugmentationRecipe = NO_AUGMENTATION,
    cycle_loss: float = 1.0,
    audio: FloatArray | None = None,
) -> TrainingCrops:
    """Crops that are the whole of one recording, for a model of 25 moments."""
    corpus, _ = one_recording(cycles, seconds, "crackle")
    corpus = replace(corpus, recordings=(replace(corpus.recordings[0], grain=grain),))
    cache = cache_of(folder, {"r": breath(round(seconds * SAMPLE_RATE)) if audio is None else audio})
    data = DataRecipe(crops="random", crop_seconds=(seconds, seconds))
    return TrainingCrops(corpus, cache, front_end, data, augmentation, 0, MOMENTS, cycle_loss)


def spans_of(crops: TrainingCrops, position: int = 0, index: int = 0) -> dict[tuple[str, tuple[int, ...]], float]:
    """The weight of every label and the moments that it is said of, weight 0 left out."""
    _, members, classes, weights = crops[(0, position, index)]
    assert (members.shape, classes.shape, weights.shape) == ((SPANS, MOMENTS), (SPANS,), (SPANS,))
    return {
        (LABELS[int(kind)], tuple(np.flatnonzero(inside).tolist())): float(weight)
        for inside, kind, weight in zip(members.numpy(), classes, weights, strict=True)
        if weight
    }


def moments_in(start: float, end: float, period: float) -> tuple[int, ...]:
    """Whose centres lie in a stretch of a crop that is repeated every `period` s."""
    centres = moment_centres(MOMENTS) / SAMPLE_RATE % period
    return tuple(np.flatnonzero((centres >= start) & (centres < end)).tolist())


@pytest.mark.parametrize(("seam", "period"), [("hard", 3.0), ("crossfade", 2.99)])
def test_an_events_moments_are_those_whose_centres_lie_in_it_in_every_repeat(
    tmp_path: Path, seam: str, period: float
) -> None:
    events = [cycle(0.2, 0.9), cycle(1.0, 1.7, "crackle"), cycle(2.0, 2.9, "wheeze")]
    crops = annotated(tmp_path, events, 3.0, front_end=FrontEnd.model_validate({"seam": seam}))
    expected = {("both", tuple(range(MOMENTS))): 1.0}
    expected |= {(one.label, moments_in(one.start_seconds, one.end_seconds, period)): 1 / 3 for one in events}
    assert spans_of(crops) == pytest.approx(expected)
    assert all(len(moments) >= 4 for _, moments in expected), "they are met in every repeat"


def test_an_event_between_two_moments_has_the_nearest_one(tmp_path: Path) -> None:
    """Moments 10 and 11 are at 3.21 and 3.53 s."""
    for start, end, nearest in ((3.3, 3.38, 10), (3.4, 3.48, 11)):
        crops = annotated(tmp_path, [cycle(start, end, "crackle")], 8.0)
        assert spans_of(crops)["crackle", (nearest,)] == 1.0


def test_half_an_abnormal_breath_says_nothing_of_the_crop(tmp_path: Path) -> None:
    """Its finding may be in the other half; half a normal breath is normal, and half an event still sounds."""
    breaths = [cycle(0.0, 2.0), cycle(2.0, 5.0, "crackle"), cycle(5.0, 7.0)]
    crops = annotated(tmp_path, breaths, 8.0, "cycle")
    for start, end, expected in ((0.0, 2.0, "normal"), (0.0, 3.5, None), (2.0, 6.0, "crackle"), (4.0, 7.0, None)):
        assert crops.label(breaths[0] if start < 2.0 else breaths[2], start, end) == expected
    events = annotated(tmp_path, breaths, 8.0, "event")
    assert events.label(breaths[0], 0.0, 3.5) == "crackle"
    # 3.5 s of it: the cut breath is not taught, and neither is the crop
    crops.data = crops.data.model_copy(update={"crop_seconds": (3.5, 3.5)})
    unknown = 0
    for position in range(30):
        crop = crops.crop(breaths[0], np.random.default_rng((0, 0, position)))
        taught = spans_of(crops, position)
        whole = [weight for (_, moments), weight in taught.items() if len(moments) == MOMENTS]
        unknown += crop.label is None
        assert whole == ([] if crop.label is None else [1.0])
        assert ("crackle" in {label for label, _ in taught}) == (crop.end_seconds >= 4.7)
    assert unknown > 0


def test_a_recordings_label_is_taught_of_the_whole_crop_alone(tmp_path: Path) -> None:
    crops = annotated(tmp_path, [cycle(0.0, 8.0, "wheeze")], 8.0, "recording")
    assert spans_of(crops) == {("wheeze", tuple(range(MOMENTS))): 1.0}


def test_the_cycles_of_a_crop_weigh_as_much_as_the_recipe_says(tmp_path: Path) -> None:
    """However many there are, and at most so many as fit are taken, others another time."""
    events = [cycle(0.1 + 0.6 * number, 0.5 + 0.6 * number) for number in range(12)]
    taken = set()
    for position in range(6):
        weights = spans_of(annotated(tmp_path, events, 8.0, cycle_loss=0.7), position)
        assert weights.pop(("normal", tuple(range(MOMENTS)))) == 1.0
        assert len(weights) == SPANS - 1 and sum(weights.values()) == pytest.approx(0.7)
        taken |= {moments for _, moments in weights}
    assert len(taken) == 12
    one = spans_of(annotated(tmp_path, events[:1], 8.0, cycle_loss=0.7))
    assert sorted(one.values()) == pytest.approx([0.7, 1.0])
    assert list(spans_of(annotated(tmp_path, events, 8.0, cycle_loss=0.0)).values()) == [1.0]


def test_a_model_of_one_moment_learns_from_whole_crops_alone(made: tuple[Corpus, AudioCache]) -> None:
    """Its one moment is the crop: what is true of a cycle in it would contradict it."""
    recipe = with_changes(RECIPE, {"model": AST, "optimizer.cycle_loss": 1.0})
    _, members, _, weights = recipes_crops(*made, RECIPE.front_end, recipe, 0)[(0, 0, 0)]
    assert members.shape == (SPANS, 1) and weights.tolist() == [1.0, *[0.0] * (SPANS - 1)]


def test_another_speed_is_another_pitch_and_length() -> None:
    tone = np.sin(2 * np.pi * 400 * np.arange(32_000) / 16_000).astype(np.float32)
    random, speeds = np.random.default_rng(3), []
    for _ in range(200):
        played, speed = sped(tone, 0.25, random)
        assert played.size == pytest.approx(tone.size / speed, abs=2)
        hertz = np.abs(np.fft.rfft(played)).argmax() * 16_000 / played.size
        assert hertz == pytest.approx(400 * speed, abs=1.0)
        speeds.append(speed)
    assert 0.8 <= min(speeds) < 0.81 and 1.23 < max(speeds) <= 1.25
    assert np.median(speeds) == pytest.approx(1.0, abs=0.05)
    # no change asked for, or too little sound to resample
    for samples, largest in ((tone, 0.0), (tone[:10], 0.25)):
        played, speed = sped(samples, largest, random)
        assert speed == 1.0
        np.testing.assert_array_equal(played, samples)


def loud_moments(window: FloatArray) -> BoolArray:
    """Whether the frame (moments,) at each moment's centre is one of the loud ones."""
    power = window.mean(axis=1)
    return np.asarray(power[:: round(WINDOW_SAMPLES / MOMENTS / 160)] > (power.min() + power.max()) / 2)


@pytest.mark.parametrize("augmentation", [{"speed": 0.3}, {"cyclic_shift": True}, {"speed": 0.3, "cyclic_shift": True}])
def test_a_varied_crop_takes_its_annotation_along(tmp_path: Path, augmentation: dict[str, object]) -> None:
    """A loud event in quiet sound, played at any speed from any point of the repetition: its moments are the loud."""
    audio = 0.01 * breath(48_000)
    audio[16_000:32_000] *= 100.0
    crops = annotated(
        tmp_path,
        [cycle(1.0, 2.0, "wheeze")],
        3.0,
        augmentation=AugmentationRecipe.model_validate(augmentation),
        audio=audio,
    )
    seen, wrong = set(), 0
    for position in range(12):
        windows, members, classes, _ = crops[(0, position, 0)]
        assert classes[1] == LABELS.index("wheeze")
        inside = members[1].numpy() > 0
        # a frame is half in at each end of the event
        wrong += int((inside != loud_moments(windows.numpy())).sum())
        seen.add(tuple(np.flatnonzero(inside).tolist()))
    assert wrong <= 6 and len(seen) > 6


def test_a_crop_longer_than_the_window_gives_one_of_its_parts() -> None:
    long = breath(3 * WINDOW_SAMPLES)
    windows = {
        augmented_window(long, FrontEnd(), NO_AUGMENTATION, np.random.default_rng(seed))[0].tobytes()
        for seed in range(12)
    }
    assert 2 <= len(windows) <= 5
