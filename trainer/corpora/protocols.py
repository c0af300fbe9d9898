"""The stretches of audio on which accuracy is read: `events`, `windows` and `stretches`.

`live` and `recordings` run the device's own live path and live in `trainer/evaluation/recordings.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from device.labels import LABELS, Label
from device.signal import FloatArray, FrontEnd, windows
from trainer.choices import Protocol
from trainer.corpora.audio_cache import AudioCache
from trainer.corpora.cycle import Corpus, CorpusError, Grain, Recording
from trainer.corpora.stretches import located, overlapping, place
from trainer.metrics import Float64Array, IntArray

GRAIN_PROTOCOLS: Final[dict[Grain, Protocol]] = {"event": "windows", "cycle": "events", "recording": "recordings"}
"""The default protocol of each grain: stretches whose length does not tell their label."""
WINDOW_SECONDS: Final = 2.5
LIES: Final = {
    "events": "annotated events as they are: their length alone tells much, see 'duration'",
    "windows": f"{WINDOW_SECONDS} s around each event: length tells nothing",
    "stretches": f"{WINDOW_SECONDS} s around each event, each annotated breath cycle, each recording with one label",
    "live": "each annotated event or cycle against the cycle that the screen showed there",
    "recordings": "whole recordings through the device's own segmenter: the product",
}

FLATTERED: Final = (
    "the test part chooses epoch, temperature and thresholds (choose_on = 'test', as published): every reading of it "
    "flatters; elsewhere this made a Score of 59.6 into 61.5"
)


@dataclass(frozen=True)
class Example:
    """One stretch that is classified and scored."""

    recording: str
    start_seconds: float
    end_seconds: float
    label: Label
    patient: str
    event_seconds: float
    """Length of the annotated event, for the AUROC of duration alone."""
    age_years: float | None
    device: str = ""
    site: str = ""
    corpus: str = ""


def example_of(recording: Recording, span: tuple[float, float], label: Label, event_seconds: float) -> Example:
    """A stretch (start, end) of a recording."""
    return Example(
        recording.name,
        *span,
        label,
        recording.patient,
        event_seconds,
        recording.age_years,
        recording.device,
        recording.site,
        recording.corpus,
    )


def default_protocol(corpus: Corpus) -> Protocol:
    """The protocol of the corpus's grain; `stretches`, where each recording's own decides, for several grains."""
    grains = {recording.grain for recording in corpus.recordings}
    return GRAIN_PROTOCOLS[grains.pop()] if len(grains) == 1 else "stretches"


def stretch_protocol(corpus: Corpus) -> Protocol:
    """The same for a model that is read without the live path: whole recordings are stretches, too."""
    protocol = default_protocol(corpus)
    return "stretches" if protocol == "recordings" else protocol


def protocol_for(asked: Protocol | None, corpus: Corpus) -> Protocol:
    """The asked protocol, else the corpus's own; CorpusError where its labels do not allow it."""
    chosen = asked or default_protocol(corpus)
    check_protocol(corpus, chosen)
    return chosen


def check_protocol(corpus: Corpus, protocol: str) -> None:
    """CorpusError if the labels of the corpus have another grain than the protocol needs."""
    for recording in corpus.recordings:
        if recording.grain == "recording" and protocol not in ("stretches", "recordings"):
            raise CorpusError(
                f"{recording.corpus or corpus.name} is labelled by recording: use --protocol recordings, not {protocol}"
            )
        if recording.grain == "cycle" and protocol == "windows":
            raise CorpusError(
                f"{recording.corpus or corpus.name} is labelled by whole breath cycles, and a window around one holds "
                "its neighbours: use --protocol events"
            )


def examples(corpus: Corpus, protocol: Protocol, cache: AudioCache) -> list[Example]:
    """The stretches of `events` (each annotation as it is), `windows` or `stretches`.

    windows: 2.5 s centred on each event and shifted inside the recording; abnormal if the event is; a normal event's
    window is dropped when an adventitious event overlaps it by more than 0.05 s. stretches: windows of events, breath
    cycles and recordings as they are. CorpusError where the labels are not of this grain.
    """
    check_protocol(corpus, protocol)
    return [
        example
        for recording in corpus.recordings
        for example in _examples(recording, protocol in ("windows", "stretches"), cache)
    ]


def _examples(recording: Recording, as_windows: bool, cache: AudioCache) -> Iterator[Example]:
    adventitious = [cycle for cycle in recording.cycles if cycle.label != "normal"]
    for cycle in recording.cycles:
        start, end = cycle.start_seconds, cycle.end_seconds
        if as_windows and recording.grain == "event":
            start, end = place(start, end, WINDOW_SECONDS, cache.seconds(recording.name), 0.5)
            if cycle.label == "normal" and overlapping(adventitious, start, end):
                continue
        yield example_of(recording, (start, end), cycle.label, cycle.duration_seconds)


def labels_of(chosen: Sequence[Example]) -> IntArray:
    """Class indices (n,)."""
    return np.array([LABELS.index(example.label) for example in chosen], dtype=np.int64)


def inputs_of(chosen: Sequence[Example], cache: AudioCache, front_end: FrontEnd) -> tuple[FloatArray, IntArray]:
    """Model inputs (m >= n, frames, mels) and, for each, the example it belongs to (a cycle over 8 s has several)."""
    stacks = []
    for example in chosen:
        with located(example.recording, example.start_seconds, example.end_seconds):
            stacks.append(windows(cache.cut(example.recording, example.start_seconds, example.end_seconds), front_end))
    owner = np.repeat(np.arange(len(stacks)), [len(stack) for stack in stacks])
    return np.concatenate(stacks), owner


def worst_window(logits: Float64Array, probability: Float64Array, owner: IntArray) -> tuple[Float64Array, Float64Array]:
    """One row an example: its window with the highest probability of being abnormal."""
    order = np.lexsort((-probability, owner))
    first = order[np.unique(owner[order], return_index=True)[1]]
    return logits[first], probability[first]
