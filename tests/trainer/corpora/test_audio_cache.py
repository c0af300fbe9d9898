"""The cache against reading and resampling each recording itself; when it is reused, and when it is not."""

import dataclasses
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from device.capture import recording as recording_module
from device.capture.recording import AudioError, read_audio
from device.signal import resample
from tests.trainer.corpus_maker import make_sprsound
from trainer.corpora import Corpus, CorpusError, load_corpus
from trainer.corpora.audio_cache import AudioCache, open_cache, with_audio
from trainer.corpora.decoded import OPEN_MAPS, Usage, clear, mapped, usage


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return load_corpus("sprsound", make_sprsound(tmp_path / "corpus", patients=2, seconds=4.0))


def audio_of(corpus: Corpus, index: int) -> Path:
    path = corpus.recordings[index].audio
    assert path is not None
    return path


def test_it_holds_every_recording_read_and_resampled(corpus: Corpus, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    cache = open_cache(corpus.recordings, tmp_path / "cache", progress=lambda done, total: calls.append((done, total)))
    for recording in corpus.recordings:
        assert recording.audio is not None
        np.testing.assert_array_equal(cache[recording.name], resample(*read_audio(recording.audio)))
        assert cache.seconds(recording.name) == 4.0
    assert calls == [(done, 4) for done in (1, 2, 3, 4)]


def test_a_cut_is_clipped_to_its_own_recording(corpus: Corpus, tmp_path: Path) -> None:
    cache = open_cache(corpus.recordings, tmp_path / "cache")
    name = corpus.recordings[1].name
    whole = cache[name]
    np.testing.assert_array_equal(cache.cut(name, 1.0, 2.5), whole[16_000:40_000])
    np.testing.assert_array_equal(cache.cut(name, -1.0, 0.5), whole[:8000])
    np.testing.assert_array_equal(cache.cut(name, 3.5, 9.0), whole[-8000:])
    assert cache.cut(name, 5.0, 6.0).size == 0
    assert cache.cut(name, -2.0, -1.0).size == 0
    assert not whole.flags.writeable


def never(*_: int) -> None:
    pytest.fail("decoded again")


def files_below(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file with its inode and its content."""
    return {file: (file.stat().st_ino, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}


def test_the_second_time_nothing_is_decoded(corpus: Corpus, tmp_path: Path) -> None:
    first = open_cache(corpus.recordings, tmp_path / "cache")
    before = files_below(tmp_path / "cache")
    again = open_cache(corpus.recordings, tmp_path / "cache", progress=never)
    assert files_below(tmp_path / "cache") == before and {*before} == {*first.files.values()}
    assert (again.lengths, again.files) == (first.lengths, first.files)


def test_a_part_or_another_set_of_recordings_decodes_nothing_twice(corpus: Corpus, tmp_path: Path) -> None:
    part = open_cache(corpus.recordings[:2], tmp_path / "cache")
    assert [*part.lengths] == [recording.name for recording in corpus.recordings[:2]]
    calls: list[tuple[int, int]] = []
    open_cache(corpus.recordings[1:], tmp_path / "cache", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    renamed = [dataclasses.replace(recording, name=f"other/{recording.name}") for recording in corpus.recordings]
    whole = open_cache([*corpus.recordings, *renamed], tmp_path / "cache", progress=never)
    assert len(whole.lengths) == 8 and len(files_below(tmp_path / "cache")) == 4


def test_a_recording_in_two_corpora_is_decoded_once(corpus: Corpus, tmp_path: Path) -> None:
    twins = [dataclasses.replace(corpus.recordings[0], name=name) for name in ("a", "b")]
    calls: list[tuple[int, int]] = []
    cache = open_cache(twins, tmp_path / "cache", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 1)] and cache.files["a"] == cache.files["b"]
    np.testing.assert_array_equal(cache["a"], cache["b"])


def test_a_file_is_numpys_own(corpus: Corpus, tmp_path: Path) -> None:
    cache = open_cache(corpus.recordings, tmp_path / "cache")
    for name, file in cache.files.items():
        held = np.load(file, mmap_mode="r")
        assert (held.dtype, held.shape, held.size) == (np.float32, (64_000,), cache.lengths[name])
        np.testing.assert_array_equal(held, cache[name])
        assert file.parent.name == file.name[:2] and file.parent.parent == tmp_path / "cache"


@pytest.mark.parametrize(
    ("rate", "subtype", "bytes_each"), [(16_000, "PCM_16", 2), (8000, "PCM_16", 4), (16_000, "PCM_24", 4)]
)
def test_samples_of_16_bits_at_16_khz_take_two_bytes_and_are_the_same(
    corpus: Corpus, tmp_path: Path, rate: int, subtype: str, bytes_each: int
) -> None:
    sound = np.random.default_rng(3).uniform(-1.0, 1.0, rate)
    sound[:2] = -1.0, 1.0 - 2.0**-15
    soundfile.write(audio_of(corpus, 0), sound, rate, subtype=subtype)
    name, folder = corpus.recordings[0].name, tmp_path / "cache"
    cache = open_cache(corpus.recordings[:1], folder)
    expected = resample(*read_audio(audio_of(corpus, 0)))
    np.testing.assert_array_equal(cache[name], expected)
    np.testing.assert_array_equal(cache.cut(name, 0.25, 0.75), expected[4000:12_000])
    assert cache[name].dtype == cache.cut(name, 0.0, 1.0).dtype == np.float32
    assert usage(folder).bytes == bytes_each * 16_000 + 128
    assert open_cache(corpus.recordings[:1], folder, progress=never).lengths == {name: 16_000}


def test_a_recording_is_decoded_once_and_nothing_waits_for_the_disk(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flushing took half of the time of the first start; what a power cut damages is made again."""
    opened: list[object] = []
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("waits for the disk"))
    whole = recording_module._blocks

    def counted(*of: Any) -> Any:
        opened.append(of)
        return whole(*of)

    monkeypatch.setattr(recording_module, "_blocks", counted)
    open_cache(corpus.recordings, tmp_path / "cache")
    assert len(opened) == len(corpus.recordings)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def another_header(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"<f4", b"<i4"))


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def damaged_remarks(file: Path) -> None:
    file.with_suffix(".json").write_text("{")


@pytest.mark.parametrize("damage", [cut_short, another_header, emptied, damaged_remarks])
def test_what_is_damaged_is_made_again_and_nothing_else(
    corpus: Corpus, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    samples, rate = soundfile.read(audio_of(corpus, 0))
    soundfile.write(audio_of(corpus, 0), np.stack([samples, np.zeros_like(samples)], 1), rate)
    name = corpus.recordings[0].name
    cache = open_cache(corpus.recordings, tmp_path / "cache")
    before, samples = files_below(tmp_path / "cache"), cache[name].copy()
    damage(cache.files[name])
    calls: list[tuple[int, int]] = []
    again = open_cache(corpus.recordings, tmp_path / "cache", progress=lambda done, total: calls.append((done, total)))
    after = files_below(tmp_path / "cache")
    assert calls == [(1, 1)]
    assert {file: content for file, (_, content) in after.items()} == {file: one for file, (_, one) in before.items()}
    np.testing.assert_array_equal(again[name], samples)
    assert again.notes[-1] == f"{cache.files[name]}: the audio cache was damaged and this file has been made again"


def test_what_is_removed_while_it_is_used_is_decoded_again(corpus: Corpus, tmp_path: Path) -> None:
    cache = open_cache(corpus.recordings, tmp_path / "cache")
    clear(tmp_path / "cache")
    name = corpus.recordings[0].name
    np.testing.assert_array_equal(cache[name], resample(*read_audio(audio_of(corpus, 0))))
    audio_of(corpus, 1).unlink()
    with pytest.raises(AudioError, match=audio_of(corpus, 1).name):
        cache[corpus.recordings[1].name]


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_changed_recording_is_another_file(corpus: Corpus, tmp_path: Path, change: str) -> None:
    before = open_cache(corpus.recordings, tmp_path / "cache")
    path, name = audio_of(corpus, 0), corpus.recordings[0].name
    if change == "content":
        soundfile.write(path, 0.5 * read_audio(path)[0][:-800], 8000)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    after = open_cache(corpus.recordings, tmp_path / "cache")
    assert [one for one in after.files if after.files[one] != before.files[one]] == [name]
    np.testing.assert_array_equal(after[name], resample(*read_audio(path)))


def test_it_may_be_sent_to_another_process(corpus: Corpus, tmp_path: Path) -> None:
    cache = open_cache(corpus.recordings, tmp_path / "cache")
    before = [cache[recording.name] for recording in corpus.recordings]
    sent = pickle.dumps(cache)
    assert len(sent) < 10_000, "places, not samples"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for recording, samples in zip(corpus.recordings, before, strict=True):
            np.testing.assert_array_equal(pool.submit(cache.cut, recording.name, 0.0, 4.0).result(), samples)


def test_more_recordings_than_may_be_mapped_at_once(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.corpora.audio_cache.mapped", lru_cache(2)(mapped.__wrapped__))
    cache = open_cache(corpus.recordings, tmp_path / "cache")
    for recording in (*corpus.recordings, *corpus.recordings):
        assert recording.audio is not None
        np.testing.assert_array_equal(cache[recording.name], resample(*read_audio(recording.audio)))
    assert mapped.cache_info().maxsize == OPEN_MAPS < 256


def used_hours_ago(cache: AudioCache, hours: float) -> None:
    for file in cache.files.values():
        os.utime(file, (time.time() - 3600 * hours,) * 2)


def test_beyond_the_limit_what_was_used_longest_ago_goes(corpus: Corpus, tmp_path: Path) -> None:
    folder, each = tmp_path / "cache", 4 * 64_000 + 128
    one, two, three = (open_cache([recording], folder) for recording in corpus.recordings[:3])
    used_hours_ago(one, 1.0)
    used_hours_ago(two, 3.0)
    used_hours_ago(three, 2.0)
    three = open_cache([corpus.recordings[2]], folder)  # used again
    three.trim(folder, 3 * each / 1e9)
    assert usage(folder) == Usage(3, 3 * each)
    three.trim(folder, 2 * each / 1e9)
    assert {*files_below(folder)} == {*one.files.values(), *three.files.values()}
    used_hours_ago(three, 9.0)
    three.trim(folder, 0.5 * each / 1e9)
    assert {*files_below(folder)} == {*three.files.values()}, "what is in use stays"


def test_files_of_an_earlier_layout_go_and_nothing_that_is_not_ours(corpus: Corpus, tmp_path: Path) -> None:
    folder, key = tmp_path / "cache", 12 * "5f"
    cache = open_cache(corpus.recordings, folder)
    ours = {*files_below(folder)}
    earlier = [folder / name for name in (f"{key}.f32", f"{key}.json", f".{key}.f32.123.part")]
    others = [folder / name for name in ("notes.json", "mine.f32", "aa.npy")]
    for file in (*earlier, *others):
        file.write_bytes(bytes(100))
    assert usage(folder) == Usage(4, sum(file.stat().st_size for file in ours), 300)
    cache.trim(folder, 20.0)
    assert {*files_below(folder)} == {*ours, *others}
    for file in earlier:
        file.write_bytes(bytes(100))
    freed = clear(folder)
    assert freed == Usage(4, 4 * (4 * 64_000 + 128), 300)
    assert freed.in_words + freed.and_earlier == "4 recordings, 1 MB and 0 MB of earlier versions"
    assert {*files_below(folder)} == {*others}
    assert usage(folder) == clear(folder) == usage(tmp_path / "absent") == Usage(0, 0)


def test_place_and_size_are_said_when_something_was_made(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert open_cache(corpus.recordings, folder).notes == (f"audio cache: 4 recordings, 1 MB in {folder}",)
    assert open_cache(corpus.recordings, folder).notes == ()
    assert Usage(1210, 2_400_000_000).in_words == "1210 recordings, 2.4 GB"


def test_a_recording_that_went_missing_is_named(corpus: Corpus, tmp_path: Path) -> None:
    audio_of(corpus, 1).unlink()
    with pytest.raises(AudioError, match=audio_of(corpus, 1).name) as raised:
        open_cache(corpus.recordings, tmp_path / "cache")
    assert "no such recording" in str(raised.value)


def test_a_recording_that_cannot_be_decoded_is_named_and_leaves_nothing_behind(corpus: Corpus, tmp_path: Path) -> None:
    soundfile.write(audio_of(corpus, 2), np.full(32_000, np.nan, np.float32), 8000, subtype="FLOAT")
    with pytest.raises(AudioError, match=audio_of(corpus, 2).name):
        open_cache(corpus.recordings, tmp_path / "cache")
    left = open_cache([one for one in corpus.recordings if one != corpus.recordings[2]], tmp_path / "cache")
    assert {*files_below(tmp_path / "cache")} == {*left.files.values()}


def test_an_annotation_without_a_recording_is_named(tmp_path: Path) -> None:
    root = make_sprsound(tmp_path / "corpus", patients=1, seconds=4.0)
    next(root.rglob("*.wav")).unlink()
    read = load_corpus("sprsound", root, audio=False)
    with pytest.raises(CorpusError, match="without a recording"):
        open_cache(read.recordings, tmp_path / "cache")


def test_lenient_leaves_it_out_and_says_so_every_time(corpus: Corpus, tmp_path: Path) -> None:
    soundfile.write(audio_of(corpus, 2), np.full(32_000, np.nan, np.float32), 8000, subtype="FLOAT")
    audio_of(corpus, 0).unlink()
    for _ in range(2):
        heard, cache = with_audio(corpus, tmp_path / "cache", lenient=True)
        assert [recording.name for recording in heard.recordings] == [corpus.recordings[i].name for i in (1, 3)]
        assert set(cache.lengths) == {recording.name for recording in heard.recordings}
        notes = [note for note in heard.notes[len(corpus.notes) :] if "audio cache" not in note]
        assert len(notes) == 2
        assert "1 of 2" in notes[0] and audio_of(corpus, 0).name in notes[0]
        assert "2 of 2" in notes[1] and audio_of(corpus, 2).name in notes[1]
    with pytest.raises(AudioError, match=audio_of(corpus, 0).name):
        open_cache(corpus.recordings, tmp_path / "cache")


def test_what_is_odd_about_sound_is_one_line_a_corpus_in_each_run(
    corpus: Corpus, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for index in (0, 2):
        samples, rate = soundfile.read(audio_of(corpus, index))
        soundfile.write(audio_of(corpus, index), np.stack([samples, np.zeros_like(samples)], 1), rate)
    samples, rate = soundfile.read(audio_of(corpus, 1))
    soundfile.write(audio_of(corpus, 1), 32768 * samples, rate, subtype="FLOAT")
    first, again = (with_audio(corpus, tmp_path / "cache")[0].notes for _ in range(2))
    assert first == (*again, f"audio cache: 4 recordings, 1 MB in {tmp_path / 'cache'}")
    channels, scaled = again[-2:]
    assert channels == "sprsound: 2 recordings have more than one channel; only the first is used"
    assert str(audio_of(corpus, 1)) in scaled and "divided by 32768" in scaled
    assert not recwarn.list
