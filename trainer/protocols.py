"""Which stretches of audio a reading of accuracy is taken on, and what is true of each: `events` and `windows`.

The third protocol, `recordings`, runs the device's own live path and lives in `trainer/recordings.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from device.labels import LABELS, Label
from device.signal import FloatArray, FrontEnd, windows
from trainer.audio_cache import AudioCache
from trainer.corpora.cycle import Corpus
from trainer.crops import located, overlapping, place
from trainer.metrics import Float64Array, IntArray

Protocol = Literal["events", "windows", "recordings"]
PROTOCOLS: tuple[Protocol, ...] = ("events", "windows", "recordings")
WINDOW_SECONDS = 2.5


@dataclass(frozen=True)
class Example:
    """One stretch that is classified and scored."""

    recording: str
    start_seconds: float
    end_seconds: float
    label: Label
    patient: str
    event_seconds: float
    """Length of the annotated event, for the AUROC that duration alone reaches."""
    age_years: float | None


def default_protocol(corpus_name: str) -> Protocol:
    """`windows` where the length of an annotated event betrays its label (SPRSound), else `events`."""
    return "windows" if corpus_name == "sprsound" else "events"


def examples(corpus: Corpus, protocol: Protocol, cache: AudioCache) -> list[Example]:
    """The stretches of `events` (each annotation as it is) or `windows`.

    windows: 2.5 s centred on each event and shifted inside the recording; abnormal if the event is; a normal event's
    window is dropped when an adventitious event overlaps it by more than 0.05 s.
    """
    found = []
    for recording in corpus.recordings:
        adventitious = [cycle for cycle in recording.cycles if cycle.label != "normal"]
        for cycle in recording.cycles:
            start, end = cycle.start_seconds, cycle.end_seconds
            if protocol == "windows":
                start, end = place(start, end, WINDOW_SECONDS, cache.seconds(recording.name), 0.5)
                if cycle.label == "normal" and overlapping(adventitious, start, end):
                    continue
            found.append(
                Example(
                    recording.name, start, end, cycle.label, cycle.patient, cycle.duration_seconds, recording.age_years
                )
            )
    return found


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


def worst_window(logits: FloatArray, probability: Float64Array, owner: IntArray) -> tuple[FloatArray, Float64Array]:
    """One row an example: its window with the highest probability of being abnormal."""
    order = np.lexsort((-probability, owner))
    first = order[np.unique(owner[order], return_index=True)[1]]
    return logits[first], probability[first]
