"""ICBHI 2017 (Rocha et al., Physiol. Meas. 2019): NAME.txt with one breath cycle a line beside NAME.wav.

NAME is patient_recording_site_mode_equipment; the sites are Tc trachea and A anterior, P posterior, L lateral, each
with l left or r right.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from device.labels import Label
from trainer.corpora.cycle import Annotations, CorpusError, Cycle, Problem, Recording, check_span, parse_seconds, union
from trainer.corpora.folder import audio_by_name, check_folder, copies_note, files_by_name, read_text, the_one, walk

SPLIT_FILE: Final = "ICBHI_challenge_train_test.txt"
DEMOGRAPHICS_FILE: Final = "demographic_info.txt"
TREE: Final = (
    f"expected DIR/ICBHI_final_database/NAME.txt beside NAME.wav, and DIR/{SPLIT_FILE}; NAME is "
    "patient_recording_site_mode_equipment, as in 101_1b1_Al_sc_Meditron"
)
NAME: Final = re.compile(r"(\d{3})_([^_]+)_(Tc|Al|Ar|Pl|Pr|Ll|Lr)_(sc|mc)_([^_]+)")
ANNOTATION: Final = re.compile(r"\d{3}_")  # the published folder also holds filename_format.txt and the like
# the split file and the database as published disagree on this recording's equipment
MISNAMED: Final = {"226_1b1_Pl_sc_Meditron": "226_1b1_Pl_sc_LittC2SE"}
LABELS: Final[dict[tuple[str, str], Label]] = {
    ("0", "0"): "normal",
    ("1", "0"): "crackle",
    ("0", "1"): "wheeze",
    ("1", "1"): "both",
}


def read_icbhi(root: Path, drop_leaking: bool = True) -> Annotations:
    """Every annotation below `root` with the audio of its name and the part of the official split.

    `drop_leaking` leaves out the training recordings of patients that are also in test, and says so. The split file and
    the demographics are looked for below `root` and beside it; without a split file no recording has a part.
    """
    check_folder(root)
    annotations = {name: paths for name, paths in files_by_name(root, (".txt",)).items() if ANNOTATION.match(name)}
    audio = audio_by_name(root)
    if not annotations:
        raise CorpusError(f"{root}: no ICBHI annotation (NAME.txt) below it; {TREE}")
    split_file, ages = _find(root, SPLIT_FILE), _read_ages(_find(root, DEMOGRAPHICS_FILE))
    notes, problems = [*copies_note(audio)], []
    split = _read_split(split_file) if split_file else {}
    if split_file is None:
        notes.append(f"{root}: no {SPLIT_FILE} in or beside it; the recordings have no official part")
    for published, there in MISNAMED.items():
        if published in split and published not in annotations and there in annotations and there not in split:
            split[there] = split.pop(published)
            notes.append(f"{split_file}: names {published}, the database holds {there}; taken as the same recording")
    for name in sorted(split.keys() - annotations.keys()):
        problems.append(Problem(f"{split_file}: names {name}, which has no {name}.txt; copy it again", split[name]))
    recordings = []
    for name, paths in annotations.items():
        part = split.get(name, "")
        try:
            if split_file and not part:
                raise CorpusError(f"{paths[0]}: {split_file} does not name it; add its line or remove it")
            recordings.append(_read_recording(name, the_one(paths), audio.get(name, []), part, ages))
        except CorpusError as error:
            problems.append(Problem(str(error), part))
    leaking = _patients(recordings, "train") & _patients(recordings, "test")
    if leaking:
        kept = [item for item in recordings if not (drop_leaking and item.part == "train" and item.patient in leaking)]
        notes.append(_leak_note(sorted(leaking), len(recordings) - len(kept)))
        recordings = kept
    unpaired = (
        Problem(f"{path}: has no annotation; add {name}.txt or remove it", split.get(name, ""))
        for name, paths in audio.items()
        if name not in annotations
        for path in paths
    )
    return Annotations(tuple(recordings), tuple(problems), tuple(notes), tuple(unpaired))


def _leak_note(patients: list[str], dropped: int) -> str:
    named = f"patients {', '.join(patients)} are in both train and test of the official split"
    if dropped:
        return f"{named}; their {dropped} training recordings are left out (--split as-published keeps them)"
    return f"{named}; all their recordings are kept (--split official leaves the training ones out)"


def _patients(recordings: list[Recording], part: str) -> set[str]:
    return {recording.patient for recording in recordings if recording.part == part}


def _find(root: Path, name: str) -> Path | None:
    """The file below `root`, or beside it when `root` is the inner folder of the database."""
    beside = root.resolve().parent / name
    return next((path for path in walk(root) if path.name == name), beside if beside.is_file() else None)


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Where and what of every line that is not blank."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield f"{path}: line {number}", line.split()


def _read_split(path: Path) -> dict[str, str]:
    split: dict[str, str] = {}
    for where, fields in _lines(path):
        if len(fields) != 2 or fields[1] not in ("train", "test"):
            raise CorpusError(f"{where}: needs a recording's name and train or test; copy the file again")
        if split.setdefault(fields[0], fields[1]) != fields[1]:
            raise CorpusError(f"{where}: {fields[0]} is in train and test; keep one of its lines")
    return split


def _read_ages(path: Path | None) -> dict[str, float | None]:
    """Years by patient; None for NA. Columns are patient, age, sex, adult's BMI, child's weight and height."""
    ages: dict[str, float | None] = {}
    for where, fields in _lines(path) if path else ():
        try:
            ages[fields[0]] = None if fields[1] == "NA" else float(fields[1])
        except (IndexError, ValueError):
            raise CorpusError(
                f"{where}: the second column is no age in years and not NA; copy the file again"
            ) from None
    return ages


def _read_recording(name: str, path: Path, audio: list[Path], part: str, ages: Mapping[str, float | None]) -> Recording:
    fields = NAME.fullmatch(name)
    if fields is None:
        raise CorpusError(f"{path}: not an ICBHI name (patient_recording_site_mode_equipment); rename or remove it")
    patient, _, site, _, device = fields.groups()
    cycles = tuple(_read_cycle(row, where, name, patient, device, site) for where, row in _lines(path))
    return Recording(
        name=name,
        audio=the_one(audio) if audio else None,
        patient=patient,
        device=device,
        site=site,
        age_years=ages.get(patient),
        part=part,
        label=union([cycle.label for cycle in cycles]),
        cycles=cycles,
        grain="cycle",
        corpus="icbhi",
    )


def _read_cycle(row: list[str], where: str, name: str, patient: str, device: str, site: str) -> Cycle:
    if len(row) != 4:
        raise CorpusError(f"{where}: has {len(row)} columns, not onset, end, crackle and wheeze; copy it again")
    start, end = (parse_seconds(value, 1.0, where) for value in row[:2])
    check_span(start, end, where)
    label = LABELS.get((row[2], row[3]))
    if label is None:
        raise CorpusError(f"{where}: unknown label {row[2]} {row[3]}; crackle and wheeze are 0 or 1 each")
    return Cycle(name, start, end, label, patient, device, site)
