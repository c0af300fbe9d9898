"""A plain table of cycles: CSV with path, label, patient and, if known start, end, device, site, age, part.

A row without start and end labels its whole recording. Read, too, as German Excel or pandas write it: `;` or tabs,
decimal commas, a `sep=` line, an upper-case header, a nameless index column; labels in the words that annotators use.
"""

import csv
import difflib
import io
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from device.capture.recording import SUFFIXES as AUDIO_SUFFIXES
from device.capture.recording import AudioError, read_header
from device.labels import LABELS, Label
from trainer.corpora.cycle import (
    PARTS,
    POOR_QUALITY,
    Annotations,
    CorpusError,
    Cycle,
    Problem,
    Recording,
    check_span,
    nfc,
    parse_seconds,
    union,
)
from trainer.corpora.folder import read_text

FILE: Final = "manifest.csv"
TREE: Final = f"expected DIR/{FILE} with the columns path,label,patient (and start,end,device,site,age,part if known)"
REQUIRED: Final = ("path", "label", "patient")
COLUMNS: Final = ("path", "start", "end", "label", "patient", "device", "site", "age", "part")
NUMBERS: Final = ("start", "end", "age")
OTHER_WORDS: Final = {
    "path": ("file", "filename", "filepath", "file_name", "wav", "audio", "recording", "name"),
    "start": ("begin", "onset", "from"),
    "end": ("stop", "offset", "to"),
    "label": ("class", "type", "annotation", "event"),
    "patient": ("subject", "id", "patient_id", "person"),
    "device": ("stethoscope", "equipment"),
    "site": ("location", "place", "position"),
    "part": ("split", "set", "subset"),
}
"""What people call a column."""
LABEL_WORDS: Final[dict[Label, tuple[str, ...]]] = {
    "normal": ("n", "normal breathing", "normal breath", "vesicular"),
    "crackle": (
        *("c", "crackles", "fine crackle", "fine crackles", "coarse crackle", "coarse crackles"),
        *("crep", "creps", "crepitation", "crepitations", "rale", "rales", "das"),
    ),
    "wheeze": ("w", "wheezes", "wheezing", "rhonchus", "rhonchi", "stridor", "cas"),
    "both": (),
}
"""What people call a class."""
POOR_WORDS: Final = (POOR_QUALITY, "poor", "bad quality", "bad", "noise", "noisy", "unreadable")
JOINT: Final = re.compile(r"\s*(?:[+&/,;]|\band\b)\s*")
KNOWN_LABELS: Final = f"known are {', '.join((*LABELS, POOR_QUALITY))} and their usual names"


def read_manifest(data: Path, corpus: str = "manifest") -> Annotations:
    """Every row of the CSV `data`, or of manifest.csv in the folder `data`; paths are relative to the CSV.

    A recording's name is its path without the suffix, since files of two folders may share a name.
    """
    file = data / FILE if data.is_dir() else data
    if not file.is_file():
        raise CorpusError(f"{file}: no such manifest; --data takes a CSV file, or a folder with {FILE}: {TREE}")
    recordings: dict[str, Recording] = {}
    problems: dict[str, Problem] = {}
    repeated: list[str] = []
    for where, row in _rows(file):
        name = row["path"].strip() or where
        try:
            recording = replace(_read_row(row, where, file.parent), corpus=corpus)
            name = recording.name
            if name in recordings and recording.cycles and recording.cycles[0] in recordings[name].cycles:
                repeated.append(where)
            recordings[name] = _joined(recordings[name], recording, where) if name in recordings else recording
        except CorpusError as error:
            # if the path itself is wrong, the row counts as a recording of its own
            name = _without_suffix(name)
            problems.setdefault(name, Problem(str(error), row["part"].strip()))
    good = _poor_as_others([recording for name, recording in recordings.items() if name not in problems])
    if not good and not problems:
        raise CorpusError(f"{file}: has no rows below its header; add the cycles")
    notes = [f"{len(repeated)} rows repeat another and are not counted again, the first {one}" for one in repeated[:1]]
    return Annotations(good, tuple(problems.values()), tuple(notes))


def _poor_as_others(recordings: Sequence[Recording]) -> tuple[Recording, ...]:
    """Recordings of poor quality have no label that could be weak: they are of the grain of the others."""
    by_cycle = any(one.grain == "cycle" for one in recordings)
    return tuple(replace(one, grain="cycle") if by_cycle and one.label == POOR_QUALITY else one for one in recordings)


def label_of(text: str) -> Label | Literal["poor quality"] | None:
    """The class that an annotator's words name, alone or joint ("crackles + wheeze"); None where they name none."""
    words = re.sub(r"[\s_-]+", " ", text).strip().casefold()
    if words in POOR_WORDS:
        return POOR_QUALITY
    found = [_class(part) for part in JOINT.split(words)]
    abnormal = [label for label in found if label not in (None, "normal")]
    if None in found or len(abnormal) not in (0, len(found)):  # normal and a finding contradict each other
        return None
    return union([label for label in found if label is not None])


def _class(words: str) -> Label | None:
    return next((label for label in LABELS if words == label or words in LABEL_WORDS[label]), None)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where and cells of every row, all columns present; CorpusError on a header or row of the wrong shape."""
    lines = io.StringIO(read_text(file), newline="")
    first, skipped = lines.readline(), 0
    if first.casefold().startswith("sep="):
        first, skipped = lines.readline(), 1
    delimiter = max(",;\t", key=first.count)
    lines.seek(lines.tell() - len(first))
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t")
    header = _header(next(reader), f"{file}: line {1 + skipped}")
    for cells in _readable(reader, file):
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{file}: line {reader.line_num + skipped}"
        if len(cells) != len(header):
            raise CorpusError(f"{where}: has {len(cells)} cells under {len(header)} columns; correct the row")
        row = dict.fromkeys(COLUMNS, "") | {name: nfc(cell) for name, cell in zip(header, cells, strict=True) if name}
        if delimiter != ",":
            row |= {name: row[name].replace(",", ".") for name in NUMBERS}
        yield where, row


def _header(cells: Sequence[str], where: str) -> list[str]:
    """The names of the columns; "" for one that is skipped: an index before the others, or an empty one behind them."""
    header = [cell.strip().casefold() for cell in cells]
    known = [number for number, column in enumerate(header) if column in COLUMNS]
    if not known:
        raise CorpusError(
            f"{where} reads {','.join(cells)[:60]!r}, which is no header of a manifest; it names the columns, at least "
            f"{', '.join(REQUIRED)}"
        )
    for number, column in enumerate(header):
        if column not in COLUMNS and (column or known[0] < number < known[-1]):
            if number == 0 and column.startswith("unnamed:"):
                header[0] = ""
                continue
            raise CorpusError(f"{where}: unknown column {cells[number].strip()!r}; {_meant(column, header)}")
    named = [column for column in header if column]
    missing = [column for column in REQUIRED if column not in named]
    if missing or len(set(named)) < len(named):
        fault = f"lacks the column {missing[0]!r}" if missing else "names a column twice"
        raise CorpusError(f"{where}: {fault}; the columns are {', '.join(COLUMNS)}")
    return header


def _meant(column: str, header: Sequence[str]) -> str:
    """`did you mean 'path'?`, of the missing columns, or the list of all columns."""
    absent = [known for known in COLUMNS if known not in header]
    near = [known for known in absent if column in OTHER_WORDS.get(known, ())]
    near = near or difflib.get_close_matches(column, absent, 1)
    return f"did you mean {near[0]!r}?" if near else f"the columns are {', '.join(COLUMNS)}; remove it"


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
    label = label_of(cell["label"])
    if label is None:
        raise CorpusError(f"{where}: unknown label {cell['label']!r}; {KNOWN_LABELS}")
    if cell["part"] not in ("", *PARTS):
        raise CorpusError(f"{where}: unknown part {cell['part']!r}; known are {', '.join(PARTS)} or nothing")
    age = _years(cell["age"], where) if cell["age"] else None
    name, audio = _without_suffix(cell["path"]), _find(folder, cell["path"])
    unspanned = not cell["start"] and not cell["end"]
    if label == POOR_QUALITY and not unspanned:
        raise CorpusError(f"{where}: {POOR_QUALITY} is of a whole recording; leave start and end empty or the row out")
    span = whole(audio) if unspanned else _span(cell, where)
    cycles: tuple[Cycle, ...] = ()
    if span is not None and label != POOR_QUALITY:
        cycles = (Cycle(name, *span, label, cell["patient"], cell["device"], cell["site"]),)
    return Recording(
        name=name,
        audio=audio,
        patient=cell["patient"],
        device=cell["device"],
        site=cell["site"],
        age_years=age,
        part=cell["part"],
        label=label,
        cycles=cycles,
        grain="recording" if unspanned else "cycle",
    )


def _span(cell: Mapping[str, str], where: str) -> tuple[float, float]:
    start, end = (parse_seconds(cell[column], 1.0, f"{where}: {column}") for column in ("start", "end"))
    check_span(start, end, where)
    return start, end


def whole(audio: Path | None) -> tuple[float, float] | None:
    """The span of a whole recording; None if it cannot be read, which the check of the audio reports."""
    try:
        return (0.0, read_header(audio).seconds) if audio else None
    except AudioError:
        return None


def _find(folder: Path, path: str) -> Path | None:
    """The file of this path, whose name on disk may have its accents apart; the row may have backslashes."""
    for written in (path, path.replace("\\", "/")):
        for form in ("NFC", "NFD"):
            if (found := folder / unicodedata.normalize(form, written)).is_file():
                return found
    return None


def _years(text: str, where: str) -> float:
    try:
        years = float(text)
    except ValueError:
        years = math.nan
    if not 0 <= years < math.inf:
        raise CorpusError(f"{where}: age {text!r} is no number of years; correct it or leave it empty")
    return years


def _joined(known: Recording, row: Recording, where: str) -> Recording:
    """The recording with the row's cycle added; CorpusError when the row contradicts it."""
    for field in ("audio", "patient", "device", "site", "age_years", "part"):
        if getattr(known, field) != getattr(row, field):
            value, before = getattr(row, field), getattr(known, field)
            raise CorpusError(f"{where}: {field} {value!s} of {row.name}, but {before!s} in a row before; correct one")
    if row.cycles and row.cycles[0] in known.cycles:
        return known
    if "recording" in (known.grain, row.grain):
        raise CorpusError(f"{where}: {row.name} has a label as a whole and another row; correct one")
    same = [cycle for cycle in known.cycles if _span_of(cycle) == _span_of(row.cycles[0])]
    if same:
        raise CorpusError(
            f"{where}: {row.cycles[0].label} of the span that is {same[0].label} in a row before; correct one"
        )
    cycles = (*known.cycles, *row.cycles)
    return replace(known, cycles=cycles, label=union([cycle.label for cycle in cycles]))


def _span_of(cycle: Cycle) -> tuple[float, float]:
    return cycle.start_seconds, cycle.end_seconds


def _without_suffix(path: str) -> str:
    suffix = Path(path).suffix
    return path[: -len(suffix)] if suffix.lower() in AUDIO_SUFFIXES else path
