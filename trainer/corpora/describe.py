"""What a corpus holds, read from its annotations alone: counts, ages, durations, and how much duration gives away."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from device.labels import LABELS
from firmware_config.command_line import counted
from trainer.corpora.cycle import (
    AGES,
    POOR_QUALITY,
    TEST_PARTS,
    WEAK,
    Corpus,
    Recording,
    Source,
    abnormal_shares,
    number_of_grain,
    stage_of_life,
)
from trainer.metrics import auroc

PERCENTILES: Final = (5, 50, 95)
NAMED_PATIENTS: Final = 6  # a line names at most so many


@dataclass(frozen=True)
class Group:
    """Counts of the recordings that share a corpus, a part, a device, a site, an age or a grain."""

    name: str
    patients: int
    recordings: int
    cycles: int
    abnormal: int


@dataclass(frozen=True)
class ClassCount:
    """One class: its cycles, the recordings of that label, and durations in seconds (5 %, 50 %, 95 %, longest)."""

    label: str
    cycles: int
    patients: int
    recordings: int
    duration_seconds: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class Description:
    """Everything that `trainer data describe` prints."""

    corpus: str
    sources: tuple[Source, ...]
    patients: int
    recordings: int
    cycles: int
    without_audio: int
    cycles_per_patient: tuple[int, float, int]
    """Fewest, median, most."""
    age_years: tuple[float, float, float] | None
    """Youngest, median over patients, oldest; None when no age is known."""
    patients_without_age: int
    classes: tuple[ClassCount, ...]
    poor_quality: int
    """Recordings that nobody could annotate."""
    anonymous: int
    """Recordings of unnamed patients."""
    weak: int
    """Recordings with one label for all of it."""
    corpora: tuple[Group, ...]
    parts: tuple[Group, ...]
    devices: tuple[Group, ...]
    sites: tuple[Group, ...]
    ages: tuple[Group, ...]
    """By stage of life."""
    grains: tuple[Group, ...]
    """By what carries a label."""
    duration_auroc: float
    """How well duration alone tells abnormal from normal, whichever way round (0.5-1); NaN with one class only."""
    abnormal_is_shorter: bool
    patients_in_train_and_test: tuple[str, ...]
    patient_auroc: float | None
    """How well those patients' share of abnormal cycles in training tells the test parts' apart; None with none."""


def describe(corpus: Corpus) -> Description:
    """Count a corpus; needs no audio."""
    cycles = corpus.cycles
    abnormal = np.array([cycle.label != "normal" for cycle in cycles], dtype=np.bool_)
    area = auroc(abnormal, np.array([cycle.duration_seconds for cycle in cycles]))
    per_patient = Counter({patient: 0 for patient in corpus.patients})
    per_patient.update(cycle.patient for cycle in cycles)
    ages = _ages(corpus.recordings)
    return Description(
        corpus=corpus.name,
        sources=corpus.sources or (Source(corpus.name, corpus.root),),
        patients=len(corpus.patients),
        recordings=len(corpus.recordings),
        cycles=len(cycles),
        without_audio=sum(recording.audio is None for recording in corpus.recordings),
        cycles_per_patient=(min(per_patient.values()), median(per_patient.values()), max(per_patient.values())),
        age_years=_age_range(ages),
        patients_without_age=len(corpus.patients) - len(ages),
        classes=tuple(_count(corpus, label) for label in LABELS),
        poor_quality=sum(recording.label == POOR_QUALITY for recording in corpus.recordings),
        anonymous=sum(recording.anonymous for recording in corpus.recordings),
        weak=number_of_grain(corpus.recordings).get("recording", 0),
        corpora=_groups(corpus.recordings, lambda recording: recording.corpus),
        parts=_groups(corpus.recordings, lambda recording: recording.part),
        devices=_groups(corpus.recordings, lambda recording: recording.device),
        sites=_groups(corpus.recordings, lambda recording: recording.site),
        ages=_groups(corpus.recordings, lambda recording: stage_of_life(recording.age_years)),
        grains=_groups(corpus.recordings, lambda recording: recording.grain),
        duration_auroc=max(area, 1 - area),
        abnormal_is_shorter=area < 0.5,
        patients_in_train_and_test=patients_in_train_and_test(corpus),
        patient_auroc=_patient_auroc(corpus.recordings),
    )


def patients_in_train_and_test(corpus: Corpus) -> tuple[str, ...]:
    """Patients of the train part that a test part holds too, sorted."""
    train = {recording.patient for recording in corpus.recordings if recording.part == "train"}
    return tuple(sorted(train & {recording.patient for recording in corpus.recordings if recording.part in TEST_PARTS}))


def _patient_auroc(recordings: Sequence[Recording]) -> float | None:
    test = [cycle for recording in recordings if recording.part in TEST_PARTS for cycle in recording.cycles]
    training = [recording for recording in recordings if recording.part == "train"]
    abnormal = np.array([cycle.label != "normal" for cycle in test], dtype=np.bool_)
    area = auroc(abnormal, np.array(abnormal_shares(training, [cycle.patient for cycle in test])))
    return None if np.isnan(area) else area


def _ages(recordings: Iterable[Recording]) -> dict[str, list[float]]:
    """Known ages by patient; a child that came twice has two."""
    ages: dict[str, list[float]] = {}
    for recording in recordings:
        if recording.age_years is not None:
            ages.setdefault(recording.patient, []).append(recording.age_years)
    return ages


def _age_range(ages: dict[str, list[float]]) -> tuple[float, float, float] | None:
    if not ages:
        return None
    return min(map(min, ages.values())), median(map(median, ages.values())), max(map(max, ages.values()))


def _count(corpus: Corpus, label: str) -> ClassCount:
    members = [cycle for cycle in corpus.cycles if cycle.label == label]
    seconds = [cycle.duration_seconds for cycle in members]
    low, middle, high = np.percentile(seconds, PERCENTILES).tolist() if seconds else (0.0, 0.0, 0.0)
    return ClassCount(
        label=label,
        cycles=len(members),
        patients=len({cycle.patient for cycle in members}),
        recordings=sum(recording.label == label for recording in corpus.recordings),
        duration_seconds=(low, middle, high, max(seconds)) if seconds else None,
    )


def _groups(recordings: Iterable[Recording], key: Callable[[Recording], str]) -> tuple[Group, ...]:
    """Counts by `key`; nothing when the corpus does not say."""
    members: dict[str, list[Recording]] = {}
    for recording in recordings:
        members.setdefault(key(recording), []).append(recording)
    if set(members) == {""}:
        return ()
    return tuple(_group(name, members[name]) for name in sorted(members, key=lambda name: (AGES.get(name, -1.0), name)))


def _group(name: str, recordings: list[Recording]) -> Group:
    labels = [cycle.label for recording in recordings for cycle in recording.cycles]
    return Group(
        name=name or "unknown",
        patients=len({recording.patient for recording in recordings}),
        recordings=len(recordings),
        cycles=len(labels),
        abnormal=sum(label != "normal" for label in labels),
    )


def render(description: Description, console: Console) -> None:
    """Print a description as tables that fit 80 columns."""
    say = _sayer(console)
    for source in description.sources:
        say(f"{source.name}: {source.data}", "bold")
    say(
        f"{counted(description.patients, 'patient')}, {counted(description.recordings, 'recording')}, "
        f"{counted(description.cycles, 'annotated cycle')}"
    )
    say(_people(description))
    if description.anonymous:
        say(f"{counted(description.anonymous, 'recording')} of anonymous patients, each counted as a patient")
    if description.without_audio:
        say(f"{counted(description.without_audio, 'recording')} without audio here: counted, no use to fit or evaluate")
    if description.weak:
        say(f"weak labels of {counted(description.weak, 'recording')}: {WEAK}")
    console.print(_class_table(description))
    console.print(_group_table(description))
    say(_duration_line(description), "bold")
    if description.patients_in_train_and_test:
        say(_overlap_line(description.patients_in_train_and_test), "yellow")
    if description.patient_auroc is not None:
        say(f"patient alone: AUROC {description.patient_auroc:.3f} (how often abnormal in train; test parts)")


def _sayer(console: Console) -> Callable[..., None]:
    """Plain lines: paths and names of a corpus may hold what rich takes for markup."""
    return lambda text, style="": console.print(Text(text, style=style))


def _people(description: Description) -> str:
    fewest, middle, most = description.cycles_per_patient
    cycles = f"{fewest}-{most} cycles a patient, median {middle:g}"
    if description.age_years is None:
        return f"{cycles}\nages unknown"
    youngest, median_age, oldest = description.age_years
    unknown = f", unknown for {description.patients_without_age}" if description.patients_without_age else ""
    return f"{cycles}\nages {youngest:g}-{oldest:g} years, median {median_age:g}{unknown}"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        # a wrapped head would leave a hole in the table; names may wrap, numbers may not
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def _class_table(description: Description) -> Table:
    table = _table("class", "cycles", "share", "patients", "recordings", "5 % s", "50 % s", "95 % s", "max s")
    for count in description.classes:
        share = f"{count.cycles / description.cycles:.1%}" if description.cycles else "-"
        seconds = [f"{value:.2f}" for value in count.duration_seconds or ()] or ["-"] * 4
        table.add_row(count.label, str(count.cycles), share, str(count.patients), str(count.recordings), *seconds)
    if description.poor_quality:
        table.add_row(POOR_QUALITY, "-", "-", "-", str(description.poor_quality), *["-"] * 4)
    return table


def _group_table(description: Description) -> Table:
    table = _table("by", "", "patients", "recordings", "cycles", "abnormal", "share")
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    kinds = {
        "corpus": description.corpora,
        "part": description.parts,
        "device": description.devices,
        "age": description.ages,
        "labels": description.grains,
        "site": description.sites,
    }
    for kind, groups in kinds.items():
        for number, group in enumerate(groups, 1):
            share = f"{group.abnormal / group.cycles:.1%}" if group.cycles else "-"
            numbers = (group.patients, group.recordings, group.cycles, group.abnormal)
            table.add_row(
                kind if number == 1 else "",
                Text(group.name),
                *map(str, numbers),
                share,
                end_section=number == len(groups),
            )
    return table


def _duration_line(description: Description) -> str:
    if np.isnan(description.duration_auroc):
        return "duration alone: no AUROC, one of normal and abnormal is absent"
    direction = "shorter" if description.abnormal_is_shorter else "longer"
    return f"duration alone: AUROC {description.duration_auroc:.3f} (abnormal cycles are {direction})"


def _overlap_line(patients: tuple[str, ...]) -> str:
    named = f": {', '.join(patients)}" if len(patients) <= NAMED_PATIENTS else ""
    verb = "is" if len(patients) == 1 else "are"
    return f"{counted(len(patients), 'patient')} of a test part {verb} in train too (seen in training){named}"
