"""SPRSound (Zhang et al., IEEE TBioCAS 2022): children's lung sounds, NAME.json and its wav or flac.

NAME is patient_age_gender_site_number; the sites are p1 left posterior, p2 left lateral, p3 right posterior and
p4 right lateral. Releases since 2024 have p5 to p8, too, no patient (the name begins with _) and no record label.
"""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

from device.labels import Label
from trainer.corpora.cycle import (
    POOR_QUALITY,
    Annotations,
    CorpusError,
    Cycle,
    Problem,
    Recording,
    check_span,
    parse_seconds,
    union,
)
from trainer.corpora.folder import audio_by_name, check_folder, copies_note, files_by_name, read_text, the_one

DEVICE: Final = "Yunting II"
TREE: Final = (
    "expected DIR/train_json/NAME.json, DIR/train_wav/NAME.wav, DIR/test_json/intra_test_json/NAME.json and "
    "DIR/test_wav/NAME.wav, or NAME.json beside NAME.wav; NAME is patient_age_gender_site_number"
)
NAME: Final = re.compile(
    r"(?P<patient>[^_]*)_(?P<age>\d+(?:\.\d+)?)_(?P<gender>[01])_(?P<site>p[1-8])_(?P<number>[^_]+)"
)
# a word of a folder's name ("train_json", "intra_test", "train2022_wav"), so that "latest" is no test
PART: Final = re.compile(r"(?<![a-z])(intra|inter|train|test)(?![a-z])")
PART_ORDER: Final = ("intra", "inter", "train", "test")
EVENT_LABELS: Final[dict[str, Label]] = {
    "Normal": "normal",
    "Fine Crackle": "crackle",
    "Coarse Crackle": "crackle",
    "Wheeze": "wheeze",
    "Rhonchi": "wheeze",
    "Stridor": "wheeze",
    "Wheeze+Crackle": "both",
}
RECORD_KEYS: Final = ("record_annotation", "recording_annotation")
RECORD_LABELS: Final = {
    "Normal": "normal",
    "CAS": "wheeze",
    "DAS": "crackle",
    "CAS & DAS": "both",
    "Poor Quality": POOR_QUALITY,
}


def read_sprsound(root: Path) -> Annotations:
    """Every NAME.json below `root` with the audio of its name, wherever that lies."""
    check_folder(root)
    annotations, audio = files_by_name(root, (".json",)), audio_by_name(root)
    if not annotations:
        raise CorpusError(f"{root}: no NAME.json below it; {TREE}")
    recordings: list[Recording] = []
    problems, unlabelled = [], []
    for name, paths in annotations.items():
        part = part_of(paths[0], root)
        try:
            if any(part_of(path, root) != part for path in paths):
                raise CorpusError(f"{paths[1]}: {name} is also in {paths[0]}, another part; keep one of the two")
            recording = _read_recording(name, the_one(paths), audio.get(name, []), part)
            if recording is None:
                unlabelled.append(paths[0])
            else:
                recordings.append(recording)
        except CorpusError as error:
            problems.append(Problem(str(error), part))
    unpaired = (
        Problem(f"{path}: has no annotation; add {name}.json or remove it", part_of(path, root))
        for name, paths in audio.items()
        if name not in annotations
        for path in paths
    )
    notes = (*copies_note(audio), *_notes(recordings, unlabelled))
    return Annotations(tuple(recordings), tuple(problems), notes, tuple(unpaired))


def _notes(recordings: list[Recording], unlabelled: list[Path]) -> Iterator[str]:
    """What a reader of the corpus should know."""
    if unlabelled:
        yield f"{len(unlabelled)} recordings have no event and no label: left out, the first {unlabelled[0]}"
    nameless = [recording.name for recording in recordings if recording.anonymous]
    if nameless:
        yield (
            f"{len(nameless)} recordings are of anonymous patients: each stands for a patient of its own, so that a "
            f"patient-wise split cannot be promised, the first {nameless[0]}"
        )
    overlapping = [name for recording in recordings for name in _overlaps(recording)]
    if overlapping:
        yield f"{len(overlapping)} events overlap the event before them: taken as they are, the first {overlapping[0]}"


def _overlaps(recording: Recording) -> Iterator[str]:
    spans = sorted((cycle.start_seconds, cycle.end_seconds) for cycle in recording.cycles)
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            yield f"in {recording.name} at {start:g} s"


def part_of(path: Path, root: Path) -> str:
    """The part that the folders of `path` name, the innermost first, up to `root`'s own name; "" when none does."""
    folders = (root.resolve().name, *path.relative_to(root).parts[:-1])
    for folder in reversed(folders):
        words: list[str] = PART.findall(folder.lower())
        if words:
            return min(words, key=PART_ORDER.index)
    return ""


def _read_recording(name: str, path: Path, audio: list[Path], part: str) -> Recording | None:
    """None if it has neither an event nor a label."""
    fields = NAME.fullmatch(name)
    if fields is None:
        raise CorpusError(f"{path}: not an SPRSound name (patient_age_gender_site_number); rename or remove it")
    record, events = _read_json(path)
    patient = fields["patient"] or name
    cycles = tuple(
        _read_event(event, f"{path}: event {number}", name, patient, fields["site"])
        for number, event in enumerate(events, 1)
    )
    if record is None and not cycles:
        return None
    if record is not None:
        _check_record(record, cycles, path)
    return Recording(
        name=name,
        audio=the_one(audio) if audio else None,
        patient=patient,
        device=DEVICE,
        site=fields["site"],
        age_years=float(fields["age"]),
        part=part,
        label=union([cycle.label for cycle in cycles]) if record is None else RECORD_LABELS[record],
        cycles=cycles,
        grain="event",
        corpus="sprsound",
    )


def _read_json(path: Path) -> tuple[str | None, list[object]]:
    """Record annotation, None where the release has none, and raw events."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: not JSON ({error}); copy it again") from error
    found = content if isinstance(content, dict) else {}
    events = found.get("event_annotation")
    record = next((found[key] for key in RECORD_KEYS if key in found), None)
    if not isinstance(events, list):
        raise CorpusError(f"{path}: lacks event_annotation; not an SPRSound annotation")
    if record is not None and record not in RECORD_LABELS:
        raise CorpusError(f"{path}: unknown record_annotation {record!r}; known are {', '.join(RECORD_LABELS)}")
    return record, events


def _read_event(event: object, where: str, name: str, patient: str, site: str) -> Cycle:
    if not isinstance(event, dict) or not {"start", "end", "type"} <= event.keys():
        raise CorpusError(f"{where}: needs start, end and type; correct the annotation")
    kind = event["type"]
    if not isinstance(kind, str) or kind not in EVENT_LABELS:
        raise CorpusError(f"{where}: unknown type {kind!r}; known are {', '.join(EVENT_LABELS)}")
    start, end = (parse_seconds(event[key], 1e-3, where) for key in ("start", "end"))
    check_span(start, end, where)
    return Cycle(name, start, end, EVENT_LABELS[kind], patient, DEVICE, site)


def _check_record(record: str, cycles: tuple[Cycle, ...], path: Path) -> None:
    """The record's label must follow from its events, as in all of the published train and intra parts."""
    if not cycles and record != "Poor Quality":
        raise CorpusError(f"{path}: {record} without any event; annotate its events or remove the recording")
    if cycles and record == "Poor Quality":
        raise CorpusError(f"{path}: Poor Quality with {len(cycles)} events contradicts itself; correct one of them")
    joint = union([cycle.label for cycle in cycles])
    if cycles and joint != RECORD_LABELS[record]:
        raise CorpusError(f"{path}: record is {record} but its events are {joint}; correct one of them")
