"""The stretches that accuracy is read on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device.capture.recording import read_header
from device.labels import Label
from device.signal import FRAMES, SAMPLE_RATE, FrontEnd, SignalError, windows
from tests.trainer.sounds import cache_of
from trainer.corpora import Corpus, CorpusError, Cycle, Recording, load_corpus
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.cycle import Grain
from trainer.corpora.protocols import (
    check_protocol,
    default_protocol,
    examples,
    inputs_of,
    labels_of,
    stretch_protocol,
    worst_window,
)

GRAINS: tuple[Grain, ...] = ("event", "cycle", "recording")


def corpus_of(seconds: float, *events: tuple[float, float, Label]) -> tuple[Corpus, AudioCache]:
    cycles = tuple(Cycle("r", start, end, label, "p", "d", "s") for start, end, label in events)
    recording = Recording("r", None, "p", "d", "s", 4.5, "train", "both", cycles)
    return Corpus("sprsound", Path(), (recording,)), AudioCache({"r": round(seconds * SAMPLE_RATE)}, {})


def test_windows_of_the_intra_test_are_as_many_as_published_here(shared_data: Path) -> None:
    """981 = 665 normal + 316 abnormal, and the 1004 events that they come from; lengths from the headers alone."""
    corpus = load_corpus("sprsound", shared_data / "sprsound" / "intra_test")
    seconds = {one.name: read_header(one.audio).seconds for one in corpus.recordings if one.audio}
    cache = AudioCache({name: round(length * SAMPLE_RATE) for name, length in seconds.items()}, {})
    found = examples(corpus, "windows", cache)
    assert (len(found), int((labels_of(found) > 0).sum())) == (981, 316)
    assert len(examples(corpus, "events", cache)) == 1004
    for example in found:
        expected = min(2.5, cache.seconds(example.recording))
        assert example.end_seconds - example.start_seconds == pytest.approx(expected)
        assert example.start_seconds >= 0.0
        assert example.end_seconds <= cache.seconds(example.recording) + 1e-9


def test_events_are_the_annotation_as_it_is() -> None:
    corpus, cache = corpus_of(10.0, (1.0, 1.5, "normal"), (1.4, 3.0, "both"))
    found = examples(corpus, "events", cache)
    assert [(e.start_seconds, e.end_seconds, e.label) for e in found] == [(1.0, 1.5, "normal"), (1.4, 3.0, "both")]


def windows_of(seconds: float, *events: tuple[float, float, Label]) -> list[tuple[float, float, Label]]:
    corpus, cache = corpus_of(seconds, *events)
    return [(e.start_seconds, e.end_seconds, e.label) for e in examples(corpus, "windows", cache)]


def test_a_window_is_centred_and_shifted_inside_the_recording() -> None:
    got = windows_of(10.0, (4.0, 5.0, "normal"), (0.1, 0.5, "normal"), (9.5, 10.0, "normal"), (2.0, 6.0, "normal"))
    spans = [(start, end) for start, end, _ in got]
    np.testing.assert_allclose(spans, [(3.25, 5.75), (0.0, 2.5), (7.5, 10.0), (2.75, 5.25)])


def test_a_recording_shorter_than_a_window_is_taken_whole() -> None:
    assert windows_of(1.8, (0.2, 0.6, "wheeze")) == [(0.0, 1.8, "wheeze")]


@pytest.mark.parametrize(("reach", "kept"), [(0.04, True), (0.049, True), (0.06, False), (0.5, False)])
def test_a_normal_window_is_dropped_where_an_abnormal_event_reaches_in_by_more_than_50_ms(
    reach: float, kept: bool
) -> None:
    """The normal window is 3.25-5.75 s; the abnormal one stays whatever overlaps it."""
    got = windows_of(12.0, (4.0, 5.0, "normal"), (5.75 - reach, 7.0, "crackle"))
    assert [label for _, _, label in got] == (["normal", "crackle"] if kept else ["crackle"])


def test_what_an_example_says_beside_its_stretch() -> None:
    corpus, cache = corpus_of(10.0, (4.0, 4.7, "wheeze"))
    (example,) = examples(corpus, "windows", cache)
    assert (example.patient, example.age_years, example.recording) == ("p", 4.5, "r")
    assert example.event_seconds == pytest.approx(0.7)
    np.testing.assert_array_equal(labels_of([example]), [2])


def test_inputs_are_the_devices_windows_and_name_their_example(tmp_path: Path) -> None:
    corpus, _ = corpus_of(14.0, (0.0, 1.0, "normal"), (1.0, 12.0, "wheeze"), (12.0, 13.0, "normal"))
    samples = (0.1 * np.random.default_rng(0).standard_normal(14 * SAMPLE_RATE)).astype(np.float32)
    cache = cache_of(tmp_path, {"r": samples})
    chosen = examples(corpus, "events", cache)
    inputs, owner = inputs_of(chosen, cache, FrontEnd())
    assert inputs.shape == (4, FRAMES, 128)
    np.testing.assert_array_equal(owner, [0, 1, 1, 2])
    np.testing.assert_array_equal(inputs[1:3], windows(samples[SAMPLE_RATE : 12 * SAMPLE_RATE], FrontEnd()))


def test_a_silent_stretch_is_named(tmp_path: Path) -> None:
    corpus, cache = corpus_of(5.0, (1.0, 2.0, "normal"))
    silence = cache_of(tmp_path, {"r": np.zeros(5 * SAMPLE_RATE)})
    with pytest.raises(SignalError, match=r"r 1\.00-2\.00 s"):
        inputs_of(examples(corpus, "events", cache), silence, FrontEnd())


def test_the_worst_window_speaks_for_its_example() -> None:
    logits = np.arange(20, dtype=np.float64).reshape(5, 4)
    probability = np.array([0.2, 0.9, 0.3, 0.1, 0.4])
    kept, heard = worst_window(logits, probability, np.array([0, 0, 1, 2, 2]))
    np.testing.assert_array_equal(heard, [0.9, 0.3, 0.4])
    np.testing.assert_array_equal(kept, logits[[1, 2, 4]])


def test_the_default_protocol_is_the_one_that_length_cannot_fool() -> None:
    events, cycles, recordings = (graded(grain) for grain in GRAINS)
    assert [default_protocol(one) for one in (events, cycles, recordings)] == ["windows", "events", "recordings"]
    assert default_protocol(mixed := replace(events, recordings=events.recordings + cycles.recordings)) == "stretches"
    assert [stretch_protocol(one) for one in (events, recordings, mixed)] == ["windows", "stretches", "stretches"]


def graded(grain: Grain) -> Corpus:
    """One recording of ten seconds with labels of a grain."""
    corpus, _ = corpus_of(10.0, (1.0, 2.0, "normal"), (4.0, 4.5, "both"))
    one = replace(corpus.recordings[0], grain=grain, corpus=f"by {grain}")
    return replace(corpus, recordings=(one,))


def test_in_stretches_each_recordings_grain_decides() -> None:
    _, cache = corpus_of(10.0, (1.0, 2.0, "normal"))
    spans = {
        grain: [(e.start_seconds, e.end_seconds) for e in examples(graded(grain), "stretches", cache)]
        for grain in GRAINS
    }
    assert spans["cycle"] == spans["recording"] == [(1.0, 2.0), (4.0, 4.5)]
    assert spans["event"] == [(0.25, 2.75), (3.0, 5.5)]


@pytest.mark.parametrize(
    ("grain", "protocol", "said"),
    [
        ("recording", "events", "by recording is labelled by recording: use --protocol recordings, not events"),
        ("recording", "windows", "use --protocol recordings, not windows"),
        ("recording", "live", "use --protocol recordings, not live"),
        ("cycle", "windows", "by cycle is labelled by whole breath cycles, .* use --protocol events"),
    ],
)
def test_labels_of_another_grain_than_the_protocol_are_refused(grain: Grain, protocol: str, said: str) -> None:
    with pytest.raises(CorpusError, match=said):
        check_protocol(graded(grain), protocol)
    for fine in ("stretches", "recordings"):
        check_protocol(graded(grain), fine)
