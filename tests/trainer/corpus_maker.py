"""Tiny corpora on disk in the real formats: seeded breath noise, bursts in its crackles, a tone in its wheezes."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import soundfile

from device.labels import Label

SAMPLE_RATE = 8000
ABNORMAL: tuple[Label, ...] = ("crackle", "wheeze", "both")
EVENT_TYPES: dict[Label, tuple[str, ...]] = {
    "normal": ("Normal",),
    "crackle": ("Fine Crackle", "Coarse Crackle"),
    "wheeze": ("Wheeze", "Rhonchi", "Stridor"),
    "both": ("Wheeze+Crackle",),
}
RECORD_ANNOTATIONS: dict[Label, str] = {"normal": "Normal", "crackle": "DAS", "wheeze": "CAS", "both": "CAS & DAS"}
SPRSOUND_FOLDERS = {
    ("train", "flat"): ("train", "train"),
    ("intra", "flat"): ("intra_test", "intra_test"),
    ("inter", "flat"): ("inter_test", "inter_test"),
    ("train", "published"): ("train_wav", "train_json"),
    ("intra", "published"): ("test_wav", "test_json/intra_test_json"),
    ("inter", "published"): ("test_wav", "test_json/inter_test_json"),
}
ICBHI_EQUIPMENT = ("Meditron", "LittC2SE", "AKGC417L")
ICBHI_SITES = ("Al", "Pr", "Tc")


@dataclass(frozen=True)
class MadeRecording:
    """One recording with its true events (start, end in seconds, label)."""

    patient: int
    number: int
    label: Label
    samples: npt.NDArray[np.float32]
    events: tuple[tuple[float, float, Label], ...]


def make_recordings(patients: int, recordings_per_patient: int, seconds: float, seed: int) -> Iterator[MadeRecording]:
    """About half of the recordings hold abnormal events beside normal ones; event lengths tell nothing of the label."""
    for patient in range(patients):
        for number in range(recordings_per_patient):
            random = np.random.default_rng((seed, patient, number))
            label: Label = ABNORMAL[patient % 3] if (patient + number) % 2 else "normal"
            starts = np.arange(0.2, seconds - 2.0, 2.0) + random.uniform(0.0, 0.3)
            events: list[tuple[float, float, Label]] = []
            for turn, start in enumerate(starts):
                end = start + random.uniform(0.8, 1.6)
                events.append((round(start, 3), round(end, 3), label if turn % 2 == 0 else "normal"))
            yield MadeRecording(patient, number, label, _sound(events, seconds, random), tuple(events))


def _sound(
    events: list[tuple[float, float, Label]], seconds: float, random: np.random.Generator
) -> npt.NDArray[np.float32]:
    samples = 0.02 * random.standard_normal(round(seconds * SAMPLE_RATE))
    for start, end, label in events:
        first, last = round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)
        time = np.arange(last - first) / SAMPLE_RATE
        samples[first:last] *= 1 + 2 * np.sin(np.pi * time / time[-1])
        if label in ("wheeze", "both"):
            samples[first:last] += 0.1 * np.sin(2 * np.pi * random.uniform(350, 450) * time)
        if label in ("crackle", "both"):
            for click in random.uniform(0, time[-1], 12):
                after = np.maximum(time - click, 0)
                samples[first:last] += 0.4 * np.exp(-after / 0.003) * np.sin(2 * np.pi * 700 * after)
    return np.clip(samples, -0.99, 0.99).astype(np.float32)


def _write_audio(path: Path, samples: npt.NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")


def make_sprsound(
    root: Path,
    *,
    patients: int = 6,
    recordings_per_patient: int = 2,
    seconds: float = 9.0,
    seed: int = 0,
    part: str = "train",
    layout: Literal["flat", "published"] = "flat",
) -> Path:
    """Add one part to `root` and return `root`; intra has the patients of train, inter its own. Ages contain dots."""
    audio_folder, json_folder = (root / folder for folder in SPRSOUND_FOLDERS[part, layout])
    json_folder.mkdir(parents=True, exist_ok=True)
    first_patient = 50000000 if part == "inter" else 40000000
    first_number = {"train": 100, "intra": 500, "inter": 700}[part]
    for made in make_recordings(patients, recordings_per_patient, seconds, seed + first_number):
        number = first_number + made.patient * recordings_per_patient + made.number
        age = f"{3 + made.patient}.{made.patient % 10}"
        name = f"{first_patient + made.patient}_{age}_{made.patient % 2}_p{made.number % 4 + 1}_{number}"
        types = [EVENT_TYPES[label] for _, _, label in made.events]
        annotation = {
            "record_annotation": RECORD_ANNOTATIONS[made.label],
            "event_annotation": [
                {"start": str(round(1000 * start)), "end": str(round(1000 * end)), "type": kinds[turn % len(kinds)]}
                for turn, ((start, end, _), kinds) in enumerate(zip(made.events, types, strict=True))
            ],
        }
        (json_folder / f"{name}.json").write_text(json.dumps(annotation))
        _write_audio(audio_folder / f"{name}.wav", made.samples)
    return root


def make_icbhi(
    root: Path,
    *,
    patients: int = 6,
    recordings_per_patient: int = 2,
    seconds: float = 9.0,
    seed: int = 0,
    with_split: bool = True,
) -> Path:
    """Write the database folder, the demographics and the split beside it; the last third of the patients is test."""
    database = root / "ICBHI_final_database"
    database.mkdir(parents=True, exist_ok=True)
    # the published folder holds such files too
    (database / "filename_format.txt").write_text("Patient number, recording index, chest location, ...\n")
    split = []
    for made in make_recordings(patients, recordings_per_patient, seconds, seed):
        equipment, site = ICBHI_EQUIPMENT[made.patient % 3], ICBHI_SITES[made.number % 3]
        name = f"{101 + made.patient}_{made.number + 1}b1_{site}_sc_{equipment}"
        rows = (
            f"{start:g}\t{end:g}\t{int(label in ('crackle', 'both'))}\t{int(label in ('wheeze', 'both'))}"
            for start, end, label in made.events
        )
        (database / f"{name}.txt").write_text("\n".join(rows) + "\n")
        _write_audio(database / f"{name}.wav", made.samples)
        split.append(f"{name}\t{'test' if made.patient >= patients * 2 // 3 else 'train'}\n")
    ages = ["NA", *map(str, range(20, 19 + patients))]
    people = (f"{101 + patient} {age} F NA NA NA\n" for patient, age in enumerate(ages))
    (root / "demographic_info.txt").write_text("\n" + "".join(people))
    if with_split:
        (root / "ICBHI_challenge_train_test.txt").write_text("".join(split))
    return root


def make_manifest(
    root: Path, *, patients: int = 6, recordings_per_patient: int = 2, seconds: float = 9.0, seed: int = 0
) -> Path:
    """Write audio/ and manifest.csv below `root` and return the CSV."""
    root.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[object, ...]] = [("path", "start", "end", "label", "patient", "device", "site", "age")]
    for made in make_recordings(patients, recordings_per_patient, seconds, seed):
        path = f"audio/visit {made.number}/patient.{made.patient}.wav"
        _write_audio(root / path, made.samples)
        about = (f"P{made.patient}", "Littmann 3200", "back", 4.5 + made.patient)
        rows += [(path, start, end, label, *about) for start, end, label in made.events]
    file = root / "manifest.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return file
