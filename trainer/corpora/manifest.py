"""A plain table of cycles: CSV with path, start, end, label, patient and, if known device, site, age, part."""

import csv
import difflib
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from device.audio import SUFFIXES as AUDIO_SUFFIXES
from device.labels import LABELS
from trainer.corpora.cycle import (
    PARTS,
    CorpusError,
    Cycle,
    Problem,
    Reading,
    Recording,
    check_span,
    parse_seconds,
    union,
)
from trainer.corpora.folder import read_text

FILE = "manifest.csv"
REQUIRED = ("path", "start", "end", "label", "patient")
COLUMNS = (*REQUIRED, "device", "site", "age", "part")


def read_manifest(data: Path) -> Reading:
    """Every row of the CSV `data`, or of manifest.csv in the folder `data`; paths are relative to the CSV.

    A recording's name is its path without the suffix, since files of two folders may share a name.
    """
    file = data / FILE if data.is_dir() else data
    if not file.is_file():
        raise CorpusError(f"{file}: no such manifest; --data takes a CSV file or a folder that holds {FILE}")
    recordings: dict[str, Recording] = {}
    problems: dict[str, Problem] = {}
    for where, row in _rows(file):
        name = row["path"].strip() or where
        try:
            recording = _read_row(row, where, file.parent)
            name = recording.name
            recordings[name] = _joined(recordings[name], recording, where) if name in recordings else recording
        except CorpusError as error:
            # the row's path may be what is wrong, then it stands for a recording of its own
            name = _without_suffix(name)
            problems.setdefault(name, Problem(str(error), row["part"].strip()))
    good = tuple(recording for name, recording in recordings.items() if name not in problems)
    if not good and not problems:
        raise CorpusError(f"{file}: has no rows below its header; add the cycles")
    return Reading(good, tuple(problems.values()))


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where and cells of every row, all columns present; CorpusError on a header or row of the wrong shape."""
    reader = csv.reader(io.StringIO(read_text(file), newline=""), skipinitialspace=True)
    header = [column.strip() for column in next(reader)]
    for column in header:
        if column not in COLUMNS:
            near = difflib.get_close_matches(column, COLUMNS, 1, 0.0)[0]
            raise CorpusError(f"{file}: line 1: unknown column {column!r}; did you mean {near!r}?")
    missing = [column for column in REQUIRED if column not in header]
    if missing or len(set(header)) < len(header):
        fault = f"lacks the column {missing[0]!r}" if missing else "names a column twice"
        raise CorpusError(f"{file}: line 1: {fault}; the columns are {', '.join(COLUMNS)}")
    for cells in _readable(reader, file):
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{file}: line {reader.line_num}"
        if len(cells) != len(header):
            raise CorpusError(f"{where}: has {len(cells)} cells under {len(header)} columns; correct the row")
        yield where, dict.fromkeys(COLUMNS, "") | dict(zip(header, cells, strict=True))


def _readable(reader: Iterator[list[str]], file: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise CorpusError(f"{file}: not a CSV table ({error}); save it again") from error


def _read_row(row: Mapping[str, str], where: str, folder: Path) -> Recording:
    """A recording with this row's one cycle."""
    cell = {column: text.strip() for column, text in row.items()}
    if not cell["path"].lower().endswith(AUDIO_SUFFIXES):
        raise CorpusError(f"{where}: path {cell['path']!r} is no wav or flac; convert the recording")
    if not cell["patient"]:
        raise CorpusError(f"{where}: no patient; without one the split could not keep patients apart")
    label = next((known for known in LABELS if known == cell["label"]), None)
    if label is None:
        raise CorpusError(f"{where}: unknown label {cell['label']!r}; known are {', '.join(LABELS)}")
    if cell["part"] not in ("", *PARTS):
        raise CorpusError(f"{where}: unknown part {cell['part']!r}; known are {', '.join(PARTS)} or nothing")
    start, end = (parse_seconds(cell[column], 1.0, f"{where}: {column}") for column in ("start", "end"))
    check_span(start, end, where)
    age = _years(cell["age"], where) if cell["age"] else None
    name, audio = _without_suffix(cell["path"]), folder / cell["path"]
    cycle = Cycle(name, start, end, label, cell["patient"], cell["device"], cell["site"])
    return Recording(
        name=name,
        audio=audio if audio.is_file() else None,
        patient=cell["patient"],
        device=cell["device"],
        site=cell["site"],
        age_years=age,
        part=cell["part"],
        label=label,
        cycles=(cycle,),
    )


def _years(text: str, where: str) -> float:
    try:
        years = float(text)
    except ValueError:
        years = math.nan
    if not 0 <= years < math.inf:
        raise CorpusError(f"{where}: age {text!r} is no number of years; correct it or leave it empty")
    return years


def _joined(known: Recording, row: Recording, where: str) -> Recording:
    """The recording with the row's cycle added; CorpusError when the row says something else of the recording."""
    for field in ("audio", "patient", "device", "site", "age_years", "part"):
        if getattr(known, field) != getattr(row, field):
            said, before = getattr(row, field), getattr(known, field)
            raise CorpusError(f"{where}: {field} {said!s} of {row.name}, but {before!s} in a row before; correct one")
    cycles = (*known.cycles, *row.cycles)
    return replace(known, cycles=cycles, label=union([cycle.label for cycle in cycles]))


def _without_suffix(path: str) -> str:
    suffix = Path(path).suffix
    return path[: -len(suffix)] if suffix.lower() in AUDIO_SUFFIXES else path
