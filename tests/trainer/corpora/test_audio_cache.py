"""The cache against reading and resampling each recording itself; when it is reused, and when it is not."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from device.capture.recording import AudioError, read_audio
from device.signal import resample
from tests.trainer.corpus_maker import make_sprsound
from trainer.corpora import Corpus, CorpusError, load_corpus
from trainer.corpora.audio_cache import open_cache, with_audio


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
    assert not cache.samples.flags.writeable


def test_the_second_time_nothing_is_decoded(corpus: Corpus, tmp_path: Path) -> None:
    first = open_cache(corpus.recordings, tmp_path / "cache")
    before = first.file.stat()
    again = open_cache(corpus.recordings, tmp_path / "cache", progress=lambda *_: pytest.fail("decoded again"))
    after = again.file.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert again.spans == first.spans
    assert not list((tmp_path / "cache").glob("*.part"))


def damaged_length(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def damaged_index(file: Path) -> None:
    file.with_suffix(".json").write_text("{")


def lost_index(file: Path) -> None:
    file.with_suffix(".json").unlink()


@pytest.mark.parametrize("damage", [damaged_length, damaged_index, lost_index])
def test_a_damaged_cache_is_made_again(corpus: Corpus, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    cache = open_cache(corpus.recordings, tmp_path / "cache")
    expected, name = cache.file.read_bytes(), corpus.recordings[0].name
    damage(cache.file)
    again = open_cache(corpus.recordings, tmp_path / "cache")
    assert again.file.read_bytes() == expected
    np.testing.assert_array_equal(again[name], resample(*read_audio(audio_of(corpus, 0))))


@pytest.mark.parametrize("change", ["content", "time"])
def test_a_changed_recording_is_another_cache(corpus: Corpus, tmp_path: Path, change: str) -> None:
    before = open_cache(corpus.recordings, tmp_path / "cache")
    path = audio_of(corpus, 0)
    if change == "content":
        soundfile.write(path, 0.5 * read_audio(path)[0][:-800], 8000)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    after = open_cache(corpus.recordings, tmp_path / "cache")
    assert after.file != before.file
    np.testing.assert_array_equal(after[corpus.recordings[0].name], resample(*read_audio(path)))


def test_fewer_recordings_are_another_cache(corpus: Corpus, tmp_path: Path) -> None:
    whole = open_cache(corpus.recordings, tmp_path / "cache")
    part = open_cache(corpus.recordings[:2], tmp_path / "cache")
    assert part.file != whole.file
    assert set(part.spans) == {recording.name for recording in corpus.recordings[:2]}


def test_a_recording_that_went_missing_is_named(corpus: Corpus, tmp_path: Path) -> None:
    audio_of(corpus, 1).unlink()
    with pytest.raises(AudioError, match=audio_of(corpus, 1).name) as raised:
        open_cache(corpus.recordings, tmp_path / "cache")
    assert "no such recording" in str(raised.value)


def test_a_recording_that_cannot_be_decoded_is_named_and_leaves_nothing_behind(corpus: Corpus, tmp_path: Path) -> None:
    soundfile.write(audio_of(corpus, 2), np.full(32_000, np.nan, np.float32), 8000, subtype="FLOAT")
    with pytest.raises(AudioError, match=audio_of(corpus, 2).name):
        open_cache(corpus.recordings, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


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
        assert set(cache.spans) == {recording.name for recording in heard.recordings}
        notes = heard.notes[len(corpus.notes) :]
        assert len(notes) == 2
        assert "1 of 2" in notes[0] and audio_of(corpus, 0).name in notes[0]
        assert "2 of 2" in notes[1] and audio_of(corpus, 2).name in notes[1]
    with pytest.raises(AudioError, match=audio_of(corpus, 0).name):
        open_cache(corpus.recordings, tmp_path / "cache")


def test_the_index_says_where_each_recording_lies(corpus: Corpus, tmp_path: Path) -> None:
    cache = open_cache(corpus.recordings, tmp_path / "cache")
    held = json.loads(cache.file.with_suffix(".json").read_text())
    assert [name for name, _, _ in held["spans"]] == [recording.name for recording in corpus.recordings]
    assert cache.file.stat().st_size == 4 * held["spans"][-1][2]


def test_what_is_odd_about_sound_is_one_line_a_corpus_in_each_run(
    corpus: Corpus, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for index in (0, 2):
        samples, rate = soundfile.read(audio_of(corpus, index))
        soundfile.write(audio_of(corpus, index), np.stack([samples, np.zeros_like(samples)], 1), rate)
    samples, rate = soundfile.read(audio_of(corpus, 1))
    soundfile.write(audio_of(corpus, 1), 32768 * samples, rate, subtype="FLOAT")
    first, again = (with_audio(corpus, tmp_path / "cache")[0].notes for _ in range(2))
    assert first == again
    channels, scaled = first[-2:]
    assert channels == "sprsound: 2 recordings have more than one channel; only the first is used"
    assert str(audio_of(corpus, 1)) in scaled and "divided by 32768" in scaled
    assert not recwarn.list
