"""Training crops: where they lie, what they are labelled, and that one key is one window."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from device.audio import read_header
from device.labels import LABELS, Label
from device.signal import FRAMES, WINDOW_SAMPLES, FloatArray, FrontEnd, SignalError, window
from tests.trainer.corpus_maker import make_sprsound
from tests.trainer.toy_fit import RECIPE
from trainer.audio_cache import AudioCache, with_audio
from trainer.corpora import Corpus, Cycle, Recording, load_corpus
from trainer.crops import UNKNOWN, TrainingCrops, augmented_window, noises, overlaid, overlapping, place, sped
from trainer.metrics import auroc
from trainer.recipe import AugmentationRecipe, DataRecipe, load_recipe
from trainer.sampler import draw, weights

NO_AUGMENTATION = AugmentationRecipe()


def cycle(start: float, end: float, label: Label = "normal", recording: str = "r") -> Cycle:
    return Cycle(recording, start, end, label, "p", "d", "s")


def one_recording(cycles: list[Cycle], seconds: float, label: str = "both") -> tuple[Corpus, AudioCache]:
    """No audio: only where crops lie is asked."""
    recording = Recording("r", None, "p", "d", "s", None, "train", label, tuple(cycles))
    return Corpus("sprsound", Path(), (recording,)), AudioCache(Path("absent"), {"r": (0, round(seconds * 16_000))})


def crops_of(corpus: Corpus, cache: AudioCache, data: DataRecipe, seed: int = 0) -> TrainingCrops:
    return TrainingCrops(corpus, cache, FrontEnd(), data, NO_AUGMENTATION, seed)


def drawn(crops: TrainingCrops, index: int, count: int = 300) -> list[tuple[float, float, Label]]:
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
    for start, end, _ in drawn(crops, index):
        assert 1.5 <= end - start <= 3.0
        assert start >= 0.0 and end <= 15.0
        assert max(start, events[index].start_seconds) < min(end, events[index].end_seconds)
        assert (start <= events[index].start_seconds and end >= events[index].end_seconds) or index == 1


def test_event_crops_are_the_annotation_itself() -> None:
    events = [cycle(2.0, 2.5), cycle(2.2, 9.5, "wheeze")]
    crops = crops_of(*one_recording(events, 15.0), DataRecipe(crops="events"))
    assert drawn(crops, 0, 1) == [(2.0, 2.5, "normal")]
    assert drawn(crops, 1, 1) == [(2.2, 9.5, "wheeze")]


def test_only_wholly_normal_recordings_are_cut_anywhere() -> None:
    events, data = [cycle(2.0, 2.5)], DataRecipe(crops="random", anywhere=1.0)
    calm = crops_of(*one_recording(events, 60.0, "normal"), data)
    ill = crops_of(*one_recording(events, 60.0, "crackle"), data)
    assert max(start for start, _, _ in drawn(calm, 0)) > 30
    assert max(start for start, _, _ in drawn(ill, 0)) < 2.0


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
    assert {label for _, _, label in drawn(crops, 0, 20)} == {expected}


def test_the_label_of_a_crop_is_what_overlaps_it() -> None:
    events = [cycle(1.0, 2.0), cycle(2.2, 3.0, "crackle"), cycle(3.3, 4.5, "wheeze"), cycle(6.0, 7.0)]
    crops = crops_of(*one_recording(events, 8.0), DataRecipe(crops="random"))
    seen = set()
    for index in range(4):
        for start, end, label in drawn(crops, index):
            heard = {e.label for e in events if min(e.end_seconds, end) - max(e.start_seconds, start) > 0.05}
            crackle, wheeze = "crackle" in heard, "wheeze" in heard
            assert label == (
                "both" if crackle and wheeze else "crackle" if crackle else "wheeze" if wheeze else "normal"
            )
            seen.add(label)
    assert seen == set(LABELS)


def test_an_abnormal_event_shorter_than_an_overlap_is_still_what_was_drawn() -> None:
    crops = crops_of(*one_recording([cycle(5.0, 5.04, "crackle")], 10.0), DataRecipe(crops="random"))
    assert {label for _, _, label in drawn(crops, 0)} == {"crackle"}


def test_a_normal_cycle_avoids_its_abnormal_neighbour_where_it_can() -> None:
    """Three of ten single draws do; four attempts make it seven."""
    events = [cycle(5.0, 6.0), cycle(6.2, 7.0, "crackle")]
    crops = crops_of(*one_recording(events, 12.0), DataRecipe(crops="random", crop_seconds=(1.5, 2.5)))
    normal = np.mean([label == "normal" for _, _, label in drawn(crops, 0)])
    assert normal > 0.6


def test_log_uniform_lengths_are_as_many_in_every_octave() -> None:
    data = DataRecipe(crops="random", crop_seconds=(0.5, 4.0), crop_lengths="log-uniform")
    crops = crops_of(*one_recording([cycle(5.0, 5.4)], 20.0), data)
    lengths = np.array([end - start for start, end, _ in drawn(crops, 0, 1500)])
    assert 0.5 <= lengths.min() < 0.52 and 3.9 < lengths.max() <= 4.0
    octaves = np.histogram(lengths, [0.5, 1.0, 2.0, 4.0])[0] / len(lengths)
    np.testing.assert_allclose(octaves, 1 / 3, atol=0.05)


def test_the_length_of_a_random_crop_tells_nothing_of_its_label(shared_data: Path) -> None:
    """Annotated lengths alone reach 0.83 here (AUROC); the drawn lengths must not."""
    corpus = load_corpus("sprsound", shared_data / "sprsound" / "train")
    seconds = {
        recording.name: read_header(recording.audio).seconds for recording in corpus.recordings if recording.audio
    }
    cache = AudioCache(Path("absent"), {name: (0, round(16_000 * length)) for name, length in seconds.items()})
    crops = crops_of(corpus, cache, load_recipe("compact").data)
    chosen = draw(weights([c.label for c in corpus.cycles], "binary"), 8000, seed=0, epoch=0)
    cut = [crops.crop(corpus.cycles[i], np.random.default_rng((0, 0, n))) for n, i in enumerate(chosen)]
    abnormal = np.array([label != "normal" for _, _, label in cut])
    length = np.array([end - start for start, end, _ in cut])
    assert auroc(abnormal, length) == pytest.approx(0.5, abs=0.02)
    annotated = np.array([c.duration_seconds for c in corpus.cycles])
    assert auroc(np.array([c.label != "normal" for c in corpus.cycles]), -annotated) > 0.8


# --- the window


def test_one_key_is_one_window_in_any_process_and_any_order(made: tuple[Corpus, AudioCache]) -> None:
    corpus, cache = made
    crops = TrainingCrops(corpus, cache, RECIPE.front_end, RECIPE.data, RECIPE.augmentation, seed=5)
    keys = [(epoch, position, position % len(crops)) for epoch in (0, 1) for position in range(6)]
    here = {key: crops[key] for key in reversed(keys)}
    loader = DataLoader(crops, batch_size=1, sampler=keys, num_workers=2)
    for key, (batch, label, _) in zip(keys, loader, strict=True):
        assert torch.equal(batch[0], here[key][0])
        assert int(label) == here[key][1]
    assert here[keys[0]][0].shape == (FRAMES, RECIPE.front_end.mels)
    for other_key in ((1, 0, 0), (0, 1, 0)):
        assert not torch.equal(here[(0, 0, 0)][0], crops[other_key][0]), "drawn again, cut again"
    other = TrainingCrops(corpus, cache, RECIPE.front_end, RECIPE.data, RECIPE.augmentation, seed=6)
    assert not torch.equal(other[keys[0]][0], here[keys[0]][0])


def test_without_augmentation_a_window_is_what_the_device_computes(made: tuple[Corpus, AudioCache]) -> None:
    corpus, cache = made
    crops = crops_of(corpus, cache, DataRecipe(crops="events"))
    first = corpus.cycles[0]
    samples = cache.cut(first.recording, first.start_seconds, first.end_seconds)
    windows, label, _ = crops[(0, 0, 0)]
    assert label == LABELS.index(first.label)
    np.testing.assert_array_equal(windows.numpy(), window(samples, FrontEnd()))


def test_a_silent_stretch_is_named(tmp_path: Path) -> None:
    corpus, cache = one_recording([cycle(1.0, 2.0)], 5.0)
    np.zeros(5 * 16_000, np.float32).tofile(tmp_path / "silence.f32")
    crops = crops_of(corpus, replace(cache, file=tmp_path / "silence.f32"), DataRecipe(crops="events"))
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
    for seed in range(30):
        plain, loud = (
            augmented_window(breath(), front_end, how, np.random.default_rng(seed))[0] for how in (calm, augmentation)
        )
        # natural logarithms of power; the lowest bands hold no FFT bin
        difference = (loud - plain)[:, 20:] * 10 / np.log(10)
        assert difference.std() < 0.01
        moved.append(float(difference.mean()))
    assert -6.0 <= min(moved) < -4.0
    assert 4.0 < max(moved) <= 6.0


def test_frames_of_zeros_are_added_before_normalisation_and_are_about_nothing(tmp_path: Path) -> None:
    front_end = FrontEnd(frames=1024, mean=-9.0, std=3.0)
    masks = AugmentationRecipe(equalise_db=4.0, time_masks=1, time_mask_frames=5)
    longer, places = augmented_window(breath(), front_end, masks, np.random.default_rng(1))
    assert (longer.shape, places.shape) == ((1024, 128), (1024,))
    assert (places[:FRAMES] >= 0).all() and (places[FRAMES:] == -1).all()
    added = longer[FRAMES:]
    np.testing.assert_allclose(added[added.any(axis=1)], 9.0 / 6.0, rtol=1e-6)
    plain, _ = augmented_window(breath(), front_end, NO_AUGMENTATION, np.random.default_rng(0))
    np.testing.assert_array_equal(plain, window(breath(), front_end))
    corpus, cache = one_recording([cycle(0.0, 1.5)], 1.5, "normal")
    breath().tofile(tmp_path / "audio.f32")
    cache = replace(cache, file=tmp_path / "audio.f32")
    crops = TrainingCrops(corpus, cache, front_end, DataRecipe(crops="events"), NO_AUGMENTATION, 0)
    _, _, heard = crops[(0, 0, 0)]
    assert (heard[:FRAMES] == 0).all() and (heard[FRAMES:] == UNKNOWN).all()


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
    sounds = [0.1 * np.sin(2 * np.pi * 300 * (number + 1) * time).astype(np.float32) for number in range(len(rows))]
    np.concatenate(sounds).tofile(tmp_path / "audio.f32")
    recordings = []
    for name, patient, label, cycles in rows:
        own = tuple(replace(one, patient=patient) for one in cycles)
        recordings.append(Recording(name, None, patient, "d", "s", None, "train", label, own))
    places = {name: (number * time.size, (number + 1) * time.size) for number, (name, *_) in enumerate(rows)}
    return Corpus("sprsound", Path(), tuple(recordings)), AudioCache(tmp_path / "audio.f32", places)


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
    bands = {name: loudest_band(window(cache[name], front_end)) for name in cache.spans}
    risen = set()
    for position in range(12):
        before, after = plain[(0, position, index)], mixed[(0, position, index)]
        assert after[1] == before[1]
        assert loudest_band(after[0].numpy()) == loudest_band(before[0].numpy())
        difference = (after[0] - before[0]).mean(dim=0).numpy()
        most = int(difference.argmax())
        risen |= {min(bands, key=lambda name: abs(bands[name] - most))} if difference[most] > 1.0 else set()
    own = plain.cycles[index].recording
    assert risen - {own} == {"calm_poor", "calm"} - {own}


def test_each_frame_knows_what_is_heard_in_it(tmp_path: Path) -> None:
    """A crop of 2 s is repeated over the window, and so are its annotations."""
    events = [cycle(1.0, 1.5), cycle(1.25, 1.4, "crackle"), cycle(2.0, 3.0)]
    corpus, cache = one_recording(events, 3.0, "crackle")
    breath(48_000).tofile(tmp_path / "audio.f32")
    crops = TrainingCrops(
        corpus,
        replace(cache, file=tmp_path / "audio.f32"),
        FrontEnd(seam="hard"),
        DataRecipe(crops="random", crop_seconds=(3.0, 3.0)),
        NO_AUGMENTATION,
        0,
    )
    _, _, heard = crops[(0, 0, 0)]
    second = (np.arange(FRAMES) * 0.01 + 0.0125) % 3.0
    for moment, label in (
        (0.5, None),
        (1.1, "normal"),
        (1.3, "crackle"),
        (1.45, "normal"),
        (1.7, None),
        (2.5, "normal"),
    ):
        near = heard.numpy()[np.abs(second - moment) < 0.02]
        assert set(near.tolist()) == {UNKNOWN if label is None else LABELS.index(label)}, moment
    calm = crops_of(*one_recording([cycle(1.0, 2.0)], 3.0, "normal"), DataRecipe(crops="random"))
    assert (calm.heard_at("r", np.array([0.1, 1.5, 2.9])) == LABELS.index("normal")).all()


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


def test_a_played_crop_takes_its_annotation_along(tmp_path: Path) -> None:
    """A loud event in quiet sound, at any speed: the frames that hold it are the loud ones."""
    audio = 0.01 * breath(48_000)
    audio[16_000:32_000] *= 100.0
    audio.tofile(tmp_path / "audio.f32")
    corpus, cache = one_recording([cycle(1.0, 2.0, "wheeze")], 3.0, "wheeze")
    data = DataRecipe(crops="random", crop_seconds=(3.0, 3.0))
    crops = TrainingCrops(
        corpus, replace(cache, file=tmp_path / "audio.f32"), FrontEnd(), data, AugmentationRecipe(speed=0.3), 0
    )
    held = []
    for position in range(8):
        log_mels, label, heard = crops[(0, position, 0)]
        loud = log_mels.mean(dim=1) > (log_mels.mean(dim=1).min() + log_mels.mean(dim=1).max()) / 2
        inside = heard == label
        # a frame of 25 ms is half in at each end of the event, four times in a window
        assert (loud != inside).sum() <= 20
        held.append(int(inside[:FRAMES].sum()))
    assert max(held) > min(held)


def test_a_shifted_repetition_takes_its_frames_along() -> None:
    """What a frame is about sounds like what the frame holds, and padding without sound is about nothing."""
    crop = np.concatenate([breath(8_000), 0.01 * breath(16_000)])
    for seed in range(5):
        shifted = AugmentationRecipe(cyclic_shift=True)
        log_mels, places = augmented_window(crop, FrontEnd(), shifted, np.random.default_rng(seed))
        loud = log_mels.mean(axis=1) > np.median(log_mels)
        inside = (places > 600) & (places < 7_400)
        quiet = (places > 8_600) & (places < 23_000)
        assert loud[inside].all() and not loud[quiet].any()
        assert inside.sum() > 150 and quiet.sum() > 300
    _, places = augmented_window(crop, FrontEnd(padding="zero"), NO_AUGMENTATION, np.random.default_rng(0))
    assert (places[: 24_000 // 160 - 2] >= 0).all() and (places[24_000 // 160 :] == -1).all()


def test_a_crop_longer_than_the_window_gives_one_of_its_parts() -> None:
    long = breath(3 * WINDOW_SAMPLES)
    windows = {
        augmented_window(long, FrontEnd(), NO_AUGMENTATION, np.random.default_rng(seed))[0].tobytes()
        for seed in range(12)
    }
    assert 2 <= len(windows) <= 5
