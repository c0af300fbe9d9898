"""Clinicians' opinions with the sound that they judged, as a corpus: manifest.csv and FLAC, as `trainer` reads them."""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device.capture.recording import AudioError, looks_like_sound
from device.labels import LABELS, NORMAL
from device.signal import SAMPLE_RATE
from device.store.audio import AudioStore
from device.store.database import KEPT, StoreError
from device.store.exams import Exams, Row
from device.store.sessions import cycle_span, sound_is_its_own
from firmware_config.command_line import counted

COLUMNS: Final = ("path", "start", "end", "label", "patient", "device", "site", "age")
UNCERTAIN: Final = "no class follows from the disagreement"
DEMO: Final = "a demo, no patient"
NO_SOUND: Final = "no sound is kept"
DAMAGED: Final = "the sound is damaged"


@dataclass(frozen=True)
class Exported:
    """What a corpus of opinions has, and what was left out."""

    cycles: int
    patients: int
    left_out: dict[str, list[str]]
    """By reason, each session or cycle."""

    def lines(self) -> list[str]:
        """For people."""
        out = [f"left out, {reason}: {', '.join(places)}" for reason, places in self.left_out.items()]
        return [*out, f"{counted(self.cycles, 'cycle')} of {counted(self.patients, 'patient')}"]


def label_of(opinion: str, label: str) -> str:
    """The class that an opinion gives to a cycle that was shown as `label`; empty where it leaves the class open.

    To disagree with a flag says that nothing abnormal is there. To disagree with `both` may mean that one of the two
    is, and to disagree with `normal` does not say which.
    """
    if opinion == "agree":
        return label
    return LABELS[NORMAL] if label in ("crackle", "wheeze") else ""


def export_opinions(file: Path, out: Path, session: int | None = None, key: bytes | None = None) -> Exported:
    """Write the opinions of a session, or of all, into the new folder `out`; whole or not at all.

    Raises StoreError when there is nothing to write, when `key` does not open the sound, and when the disk refuses.
    """
    if not file.is_file():
        raise StoreError(f"{file}: no sessions are stored here; set store.path, or listen first")
    if out.exists():
        raise StoreError(f"{out}: there already; name a new folder")
    opinions = [row for row in Exams(file).with_opinion() if session in (None, row["session"])]
    if not opinions:
        where = "there are no opinions" if session is None else f"session {session} has no opinions"
        raise StoreError(f"{file}: {where}; agree or disagree with breaths in the console first")
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True, mode=0o700)
        exported = _write(file, partial, opinions, key)
        partial.rename(out)
    except OSError as error:
        raise StoreError(f"{out}: cannot be written ({error.strerror or error}); choose another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return exported


def _write(file: Path, folder: Path, opinions: Sequence[Row], key: bytes | None) -> Exported:
    audio, people = AudioStore(file, key=key), Exams(file).people()
    own = {session: sound_is_its_own(file, session) for session in {row["session"] for row in opinions}}
    rows, left_out = list[Row](), dict[str, list[str]]()
    for row in opinions:
        session, label = row["session"], label_of(row["opinion"], row["class"])
        path = Path(str(session), f"{row['number']:06d}.flac")
        why = _obstacle(row, label, own[session])
        size = 0 if why else _copy_sound(audio, row, folder / path)
        if size:
            rows.append(_manifest_row(row, path, label, size, *people.get(session, ("", None))))
        else:
            whole = why in (DEMO, NO_SOUND)
            place = f"session {session}" if whole else f"cycle {row['number']} of session {session}"
            left_out.setdefault(why or DAMAGED, []).append(place)
    if not rows:
        raise StoreError(f"{file}: no opinion can be written: {'; '.join(_counted(left_out))}")
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as manifest:
        writer = csv.DictWriter(manifest, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    shown = {reason: list(dict.fromkeys(places)) for reason, places in left_out.items()}
    return Exported(len(rows), len({row["patient"] for row in rows}), shown)


def _obstacle(row: Row, label: str, own: bool) -> str:
    """Why a cycle cannot be learnt from; empty if it can."""
    if row["demo"]:
        return DEMO
    if row["audio"] != KEPT or not own:
        return NO_SOUND
    return "" if label else UNCERTAIN


def _copy_sound(audio: AudioStore, row: Row, path: Path) -> int:
    """Write a cycle's sound, sealed or not, as plain FLAC; the number of samples, 0 of a damaged one."""
    import soundfile

    try:
        samples = audio.read(row["session"], row["number"])
    except AudioError:
        return 0
    path.parent.mkdir(exist_ok=True)
    try:
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_24")
    except soundfile.SoundFileError as error:
        raise OSError(str(error)) from error
    return int(samples.size)


def _counted(left_out: dict[str, list[str]]) -> list[str]:
    return [
        f"{place}: {reason} ({counted(count, 'opinion')})"
        for reason, places in left_out.items()
        for place, count in Counter(places).items()
    ]


def _manifest_row(row: Row, path: Path, label: str, size: int, subject: str, age_years: float | None) -> Row:
    start, end = cycle_span(row) or (0, size)
    stethoscope = row["passport"] or ("" if looks_like_sound(Path(row["source"])) else row["source"])
    return {
        "path": path.as_posix(),
        "start": f"{start / SAMPLE_RATE:.4f}",
        "end": f"{end / SAMPLE_RATE:.4f}",
        "label": label,
        # a subject's id has no spaces, so no session takes its place
        "patient": subject or f"session {row['session']}",
        "device": stethoscope,
        "site": row["site"],
        "age": "" if age_years is None else f"{age_years:g}",
    }
