"""The form of every corpus: patients, their recordings, and cycles with one of four labels."""

import math
import unicodedata
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from device.labels import Label
from firmware_config.errors import RespSAMError

POOR_QUALITY: Final = "poor quality"
TEST_PARTS: Final = ("test", "intra", "inter")
PARTS: Final = ("train", *TEST_PARTS)
Grain = Literal["event", "cycle", "recording"]
"""What carries a label: an event inside a breath cycle, a whole breath cycle, or the whole recording."""
AGES: Final = {
    "0-1 years": 0.0,
    "2-5 years": 2.0,
    "6-11 years": 6.0,
    "12-17 years": 12.0,
    "18-64 years": 18.0,
    "65+ years": 65.0,
}
"""Stages of life (NICHD 2012, Pediatric Terminology; the adults in two), and the age at which each begins."""


WHOLE_RECORDING_SECONDS: Final = 4.0  # at least so much of a recording that has one label for all of it is a crop
WEAK: Final = (
    "one label for a whole recording need not hold at every moment of it. Training gives it to crops of "
    f"{WHOLE_RECORDING_SECONDS:g} to 8 s from anywhere in the recording; accuracy is read on whole recordings"
)
"""What labels of recordings are worth, and how training treats them."""


class CorpusError(RespSAMError):
    """A corpus that cannot be read as it stands: missing, unreadable, empty or contradictory; names the file."""


@dataclass(frozen=True)
class Source:
    """One `--corpus NAME --data DIR`."""

    name: str
    data: Path


@dataclass(frozen=True)
class Cycle:
    """One labelled stretch of the recording named `recording`: an event, a breath cycle, or all of it (`Grain`)."""

    recording: str
    start_seconds: float
    end_seconds: float
    label: Label
    patient: str
    device: str
    site: str

    @property
    def duration_seconds(self) -> float:
        """Annotated length in seconds."""
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True)
class Recording:
    """One recording; `audio` is None where only its annotation was found.

    `part` is train, test, intra, inter or "" (a corpus without parts). `label` is one of the four classes or
    "poor quality": the annotators' verdict on the recording where the corpus has one, else derived from its cycles.
    """

    name: str
    audio: Path | None
    patient: str
    device: str
    site: str
    age_years: float | None
    part: str
    label: str
    cycles: tuple[Cycle, ...]
    grain: Grain = "event"
    corpus: str = ""
    """Name of the corpus that it is from."""

    @property
    def anonymous(self) -> bool:
        """Whether the patient is unknown; then this is the only recording of its patient."""
        return self.patient == self.name


@dataclass(frozen=True)
class Corpus:
    """Recordings read from `root`; `notes` are the lines that a command prints on stderr before anything else.

    Of several sources: `name` joins their names by +, `root` is the first one's folder and `sources` holds them all.
    """

    name: str
    root: Path
    recordings: tuple[Recording, ...]
    notes: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()

    @property
    def where(self) -> str:
        """Every folder that it was read from, for messages."""
        return " + ".join(str(source.data) for source in self.sources) or str(self.root)

    @property
    def cycles(self) -> tuple[Cycle, ...]:
        """Every cycle, recording by recording."""
        return tuple(cycle for recording in self.recordings for cycle in recording.cycles)

    @property
    def patients(self) -> tuple[str, ...]:
        """Every patient once, sorted."""
        return tuple(sorted({recording.patient for recording in self.recordings}))


def abnormal_shares(training: Sequence[Recording], patients: Sequence[str]) -> list[float]:
    """How often each of these patients (n,) was abnormal in `training`: what a model may know without the sound.

    One cycle with the mean of all patients is added to each, so that many cycles weigh more than one. NaN for an
    unknown patient.
    """
    own: dict[str, list[bool]] = defaultdict(list)
    for recording in training:
        own[recording.patient] += [cycle.label != "normal" for cycle in recording.cycles]
    everybody = [abnormal for cycles in own.values() for abnormal in cycles]
    mean = sum(everybody) / max(len(everybody), 1)
    shares = {patient: (sum(cycles) + mean) / (len(cycles) + 1) for patient, cycles in own.items()}
    return [shares.get(patient, math.nan) for patient in patients]


@dataclass(frozen=True)
class Problem:
    """Why one recording cannot be taken; `message` names the file, `part` the part it would have been in."""

    message: str
    part: str = ""


@dataclass(frozen=True)
class Annotations:
    """What a reader found, before a part is chosen and the audio is checked.

    `unpaired_audio` are recordings without annotation: a problem only where the audio is wanted.
    """

    recordings: tuple[Recording, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    unpaired_audio: tuple[Problem, ...] = ()


def nfc(text: str) -> str:
    """Text in composed form (NFC), for comparison: macOS writes an accent apart from its letter."""
    return unicodedata.normalize("NFC", text)


def joined_names(sources: Sequence[Source]) -> str:
    """`sprsound+icbhi`: each name once, in the order given."""
    return "+".join(dict.fromkeys(source.name for source in sources))


def stage_of_life(age_years: float | None) -> str:
    """The key of AGES for this age; "" if it is unknown."""
    if age_years is None or math.isnan(age_years):
        return ""
    return ["", *AGES][bisect_right(list(AGES.values()), age_years)]


def union(labels: Sequence[Label]) -> Label:
    """The label of a stretch with cycles of these labels; 'normal' without any."""
    crackle = any(label in ("crackle", "both") for label in labels)
    wheeze = any(label in ("wheeze", "both") for label in labels)
    return "both" if crackle and wheeze else "crackle" if crackle else "wheeze" if wheeze else "normal"


def number_of_grain(recordings: Sequence[Recording]) -> dict[Grain, int]:
    """How many annotated recordings have their labels by event, by breath cycle and for all of it; none without any."""
    grains = [recording.grain for recording in recordings if recording.cycles]
    return {grain: grains.count(grain) for grain in get_args(Grain) if grain in grains}


def check_span(start_seconds: float, end_seconds: float, where: str) -> None:
    """Raise CorpusError unless 0 <= start < end, both finite; `where` names the file and the event."""
    if not (math.isfinite(start_seconds) and math.isfinite(end_seconds)):
        raise CorpusError(f"{where}: start or end is not a finite number; correct the annotation")
    if start_seconds < 0:
        raise CorpusError(f"{where}: starts before the recording ({start_seconds:g} s); correct the annotation")
    if end_seconds == start_seconds:
        raise CorpusError(f"{where}: zero length at {start_seconds:g} s; correct the annotation")
    if end_seconds < start_seconds:
        raise CorpusError(f"{where}: ends at {end_seconds:g} s, before its start at {start_seconds:g} s; correct it")


def parse_seconds(value: object, scale: float, where: str) -> float:
    """A time written as a number or as text, times `scale`; CorpusError names `where`."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        return float(value) * scale
    except (ValueError, OverflowError):
        raise CorpusError(f"{where}: {value!r} is not a time; correct the annotation") from None
