"""Audacity label tracks and Raven selection tables, written as a manifest."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Final

from firmware_config.files import write_atomically
from trainer.choices import LabelForm
from trainer.corpora.cycle import POOR_QUALITY, CorpusError, Problem, check_span, nfc, parse_seconds
from trainer.corpora.folder import audio_by_name, read_text, walk
from trainer.corpora.manifest import KNOWN_LABELS, label_of

COLUMNS: Final = ("path", "start", "end", "label", "patient", "device", "site")
TABLE_ENDINGS: Final = re.compile(r"(\.Table\.\d+)?(\.selections?)?\.txt$", re.IGNORECASE)
BEGIN: Final = "Begin Time (s)"
END: Final = "End Time (s)"
OFFSET: Final = "File Offset (s)"
FILE: Final = "Begin File"
LABEL_COLUMNS: Final = ("Annotation", "Label", "Type", "Class", "Tags", "Notes")
LEFT_OUT: Final = ""
"""What `--label WORD=` makes of a word."""


@dataclass(frozen=True)
class Rules:
    """What the files themselves do not say."""

    patient: re.Pattern[str]
    """Searched in a recording's path: its first group, or else the whole match, names the patient."""
    words: Mapping[str, str]
    """Class, poor quality or LEFT_OUT by an annotator's word in lower case; other words are the manifest's."""
    device: str = ""
    site: str = ""


@dataclass(frozen=True)
class Imported:
    """Rows of a manifest, the lines that are none, and how many stretches were left out as asked."""

    rows: tuple[dict[str, str], ...]
    problems: tuple[Problem, ...]
    left_out: int = 0


@dataclass(frozen=True)
class _Line:
    """One label of a recording as it is written; `where` is FILE:LINE."""

    where: str
    audio: str
    start: str
    end: str
    label: str
    offset: str = ""
    """Where the label begins in its recording, if `start` counts from elsewhere."""


def pattern_of(text: str) -> re.Pattern[str]:
    """A regular expression; CorpusError when it is none."""
    try:
        return re.compile(text)
    except re.error as error:
        raise CorpusError(f"--patient {text!r} is no regular expression ({error}); as in '^[^_]+'") from error


def words_of(given: Sequence[str]) -> dict[str, str]:
    """Class by word of each WORD=CLASS, LEFT_OUT for WORD=; CorpusError for anything else."""
    words: dict[str, str] = {}
    for one in given:
        word, sign, meaning = one.partition("=")
        label = label_of(meaning) if meaning.strip() else LEFT_OUT
        if not sign or not word.strip() or label is None:
            raise CorpusError(f"--label {one!r} is no WORD=CLASS; {KNOWN_LABELS}, and WORD= leaves the word out")
        words[word.strip().casefold()] = label
    return words


def read_tracks(data: Path, form: LabelForm, rules: Rules, below: Path) -> Imported:
    """The labels of one file, or of every .txt below a folder; rows name recordings by their path from `below`.

    A recording whose labels all say poor quality has one row without times; other poor stretches are left out.
    Raises CorpusError where no label file is found.
    """
    files = [path for path in walk(data) if path.suffix.lower() == ".txt"] if data.is_dir() else [data]
    if not files:
        raise CorpusError(f"{data}: no label file below it; expected NAME.txt beside NAME.wav")
    audio = audio_by_name(data if data.is_dir() else data.parent)
    rows: list[dict[str, str]] = []
    problems: list[Problem] = []
    dropped = 0
    for file in files:
        read, bad = _read_file(file, form, rules, audio, below)
        kept = _without_poor_stretches([row for row in read if row["label"] != LEFT_OUT])
        dropped += len(read) - len(kept)
        rows += kept
        problems += bad
    return Imported(tuple(rows), tuple(problems), dropped)


def _without_poor_stretches(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Poor quality is of a whole recording: one row without times where nothing else is labelled."""
    labelled = {row["path"] for row in rows if row["label"] != POOR_QUALITY}
    poor = {row["path"]: row | {"start": "", "end": ""} for row in rows if row["path"] not in labelled}
    return [*(row for row in rows if row["label"] != POOR_QUALITY), *poor.values()]


def write_manifest(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows as a CSV that `--corpus manifest` reads; CorpusError when the file exists."""
    if file.exists():
        raise CorpusError(f"{file}: exists already; name a new file")
    text = StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(file, text.getvalue())


def _read_file(
    file: Path, form: LabelForm, rules: Rules, audio: Mapping[str, list[Path]], below: Path
) -> tuple[list[dict[str, str]], list[Problem]]:
    rows: list[dict[str, str]] = []
    problems: list[Problem] = []
    try:
        for line in (_audacity if form == "audacity" else _raven)(file):
            try:
                row = _row(line, rules, _recording(line, file, audio), below)
                if row not in rows:  # Raven has a row for each of its views
                    rows.append(row)
            except CorpusError as error:
                problems.append(Problem(str(error)))
    except CorpusError as error:  # the file as a whole
        problems.append(Problem(str(error)))
    return rows, problems


def _audacity(file: Path) -> Iterator[_Line]:
    """Start, end and label by tabs; a line that begins with a backslash has the frequencies of the line before."""
    for where, line in _lines(file):
        if line.startswith("\\"):
            continue
        cells = line.split("\t", 2)
        # a line of another shape is refused by its times, with its place
        start, end, label = cells if len(cells) == 3 else (line, "", "")
        yield _Line(where, "", start, end, label)


def _raven(file: Path) -> Iterator[_Line]:
    """A table by tabs; times are of its first file unless a column gives the offset in each."""
    lines = _lines(file)
    where, first = next(lines)
    header = first.split("\t")
    column = next((name for name in LABEL_COLUMNS if name in header), None)
    if BEGIN not in header or END not in header or column is None:
        raise CorpusError(f"{where}: no selection table: needs the columns {BEGIN!r}, {END!r} and {LABEL_COLUMNS[0]!r}")
    for where, line in lines:
        cells = dict.fromkeys(header, "") | dict(zip(header, line.split("\t"), strict=False))
        yield _Line(where, cells.get(FILE, ""), cells[BEGIN], cells[END], cells[column], cells.get(OFFSET, ""))


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """FILE:LINE and text of every line that is not blank."""
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            yield f"{file}:{number}", line


def _recording(line: _Line, file: Path, audio: Mapping[str, list[Path]]) -> Path:
    """The recording that a label is of: the one it names, else the one of the label file's name beside it."""
    name = nfc(Path(line.audio).stem if line.audio else TABLE_ENDINGS.sub("", file.name))
    found = audio.get(name, [])
    beside = [path for path in found if path.parent == file.parent]
    if len(beside or found) != 1:
        what = f"{len(found)} recordings named" if found else "no recording"
        raise CorpusError(f"{line.where}: {what} {name}.wav or .flac for it; put one beside the label file")
    return (beside or found)[0]


def _row(line: _Line, rules: Rules, recording: Path, below: Path) -> dict[str, str]:
    start, end = _seconds(line.start, line.where), _seconds(line.end, line.where)
    if line.offset:
        offset = _seconds(line.offset, line.where)
        start, end = offset, offset + end - start
    check_span(start, end, line.where)
    written = line.label.strip()
    label = rules.words[written.casefold()] if written.casefold() in rules.words else label_of(written)
    if label is None:
        raise CorpusError(
            f"{line.where}: unknown label {written!r}; {KNOWN_LABELS}; name its class with --label '{written}=CLASS', "
            f"or leave it out with --label '{written}='"
        )
    path = _from(recording, below)
    found = rules.patient.search(path)
    patient = (found[1] if found.re.groups else found[0]) if found else ""
    if not patient:
        raise CorpusError(f"{line.where}: --patient {rules.patient.pattern!r} finds no patient in {path}; correct it")
    values = (path, str(round(start, 6)), str(round(end, 6)), label, patient, rules.device, rules.site)
    return dict(zip(COLUMNS, values, strict=True))


def _from(recording: Path, below: Path) -> str:
    """The path from the manifest's folder, absolute where it lies elsewhere."""
    resolved, folder = recording.resolve(), below.resolve()
    return resolved.relative_to(folder).as_posix() if resolved.is_relative_to(folder) else str(resolved)


def _seconds(text: str, where: str) -> float:
    return parse_seconds(text.strip().replace(",", "."), 1.0, where)
