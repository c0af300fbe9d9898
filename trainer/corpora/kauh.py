"""KAUH (Fraiwan et al., Data in Brief 2021): lung sounds of adults, one label for each whole recording.

NAME is filter and number, then diagnosis, sound, place, age and sex: `BP1_Asthma,I E W,P L L,70,M`. Each subject has
one recording through each of three filters of a Littmann 3200: BPn bell, DPn diaphragm, EPn extended. Short names with
a manifest.csv, one row for each recording, are read, too.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from device.labels import Label
from trainer.corpora.cycle import Annotations, CorpusError, Cycle, Problem, Recording
from trainer.corpora.folder import audio_by_name, check_folder, copies_note, the_one
from trainer.corpora.manifest import FILE, read_manifest, whole

NAME: Final = re.compile(r"(?P<filter>[BDE]P) ?(?P<number>\d+) ?_(?P<facts>.+)", re.IGNORECASE)
FORM: Final = "FILTERnumber_diagnosis,sound,place,age,sex"
TREE: Final = (
    "expected the published names, DIR/BP1_Asthma,I E W,P L L,70,M.wav (BP, DP or EP), or short names, DIR/BP1.wav, "
    f"and DIR/{FILE}"
)
DEVICES: Final = {"BP": "Littmann 3200 bell", "DP": "Littmann 3200 diaphragm", "EP": "Littmann 3200 extended"}
WHEEZES: Final = ("W", "WHEEZE", "WHEEZES")
CRACKLES: Final = ("C", "CREP", "CREPS", "CRACKLE", "CRACKLES")
NORMALS: Final = ("N", "NORMAL")
BRONCHIAL: Final = ("B", "BRONCHIAL")
PHASES: Final = ("I", "E")  # of breathing in and out
PLACE: Final = re.compile(r"[AP](?:\s*[LRMU]){1,3}", re.IGNORECASE)  # as published, in any order: P L L, A U R, P L L R


@dataclass(frozen=True)
class _Named:
    """A recording, and facts that only its name has."""

    recording: Recording
    diagnosis: str = ""
    sound: str = ""
    sex: str = ""

    @property
    def facts(self) -> dict[str, object]:
        """What all recordings of one subject must share."""
        one = self.recording
        return {
            "diagnosis": self.diagnosis.casefold(),
            "sound": self.sound,
            "label": one.label,
            "place": one.site,
            "age": one.age_years,
            "sex": self.sex,
        }


def read_kauh(root: Path) -> Annotations:
    """Every recording below `root`; a subject whose recordings contradict each other is left out and noted."""
    check_folder(root)
    reading, named = _read_table(root) if (root / FILE).is_file() else _read_names(root)
    good, notes = _consistent(named)
    return replace(reading, recordings=good, notes=(*reading.notes, *notes))


def _read_table(root: Path) -> tuple[Annotations, list[_Named]]:
    reading = read_manifest(root, "kauh")
    several = [one for one in reading.recordings if len(one.cycles) > 1]
    problems = [
        Problem(f"{root / FILE}: {one.name} has several rows; KAUH has one label a recording") for one in several
    ]
    named = [_Named(replace(one, grain="recording")) for one in reading.recordings if one not in several]
    return replace(reading, problems=(*reading.problems, *problems)), named


def _read_names(root: Path) -> tuple[Annotations, list[_Named]]:
    audio = audio_by_name(root)
    if not audio:
        raise CorpusError(f"{root}: no wav or flac below it; {TREE}")
    named, problems = [], []
    for name, paths in audio.items():
        try:
            named.append(_read_name(name, the_one(paths)))
        except CorpusError as error:
            problems.append(Problem(str(error)))
    return Annotations((), tuple(problems), copies_note(audio)), named


def _read_name(name: str, path: Path) -> _Named:
    fields = NAME.fullmatch(name.strip())
    facts = [fact.strip() for fact in fields["facts"].rsplit(",", 4)] if fields else []
    if fields is None or len(facts) != 5:
        raise CorpusError(f"{path}: not a KAUH name ({FORM}); rename or remove it")
    diagnosis, sound, place, age, sex = facts
    label, sound = _label(sound, path)
    spot = PLACE.fullmatch(place)
    if spot is None or not age.isdigit() or sex.upper() not in ("M", "F"):
        wrong = f"place {place!r}" if spot is None else f"age {age!r}" if not age.isdigit() else f"sex {sex!r}"
        raise CorpusError(f"{path}: {wrong} is none of a KAUH name ({FORM}); rename or remove it")
    filtered, patient = fields["filter"].upper(), f"kauh{int(fields['number'])}"
    device, site = DEVICES[filtered], " ".join(re.sub(r"\s", "", place).upper())
    short = f"{filtered}{int(fields['number'])}"
    span = whole(path)
    cycles = (Cycle(short, *span, label, patient, device, site),) if span else ()
    recording = Recording(
        short, path, patient, device, site, float(age), "", label, cycles, grain="recording", corpus="kauh"
    )
    return _Named(recording, diagnosis, sound, sex.upper())


def _label(sound: str, path: Path) -> tuple[Label, str]:
    """Class, and the code of the sound in a comparable form; CorpusError for an unknown sound."""
    words = re.findall(r"[A-Z]+", sound.upper())
    wheeze, crackle, normal = (any(word in of for word in words) for of in (WHEEZES, CRACKLES, NORMALS))
    unknown = [word for word in words if word not in (*WHEEZES, *CRACKLES, *NORMALS, *BRONCHIAL, *PHASES)]
    if unknown or not (wheeze or crackle or normal) or (normal and (wheeze or crackle)):
        bronchial = " (bronchial breathing is neither normal nor a wheeze or crackle)" * bool({*words} & {*BRONCHIAL})
        raise CorpusError(f"{path}: sound {sound!r} is not N, W, C or Crep{bronchial}; correct or remove it")
    label: Label = "both" if wheeze and crackle else "wheeze" if wheeze else "crackle" if crackle else "normal"
    return label, " ".join(words)


def _consistent(named: Sequence[_Named]) -> tuple[tuple[Recording, ...], list[str]]:
    """Recordings of subjects without contradictions, and a note on every other subject."""
    subjects: dict[str, list[_Named]] = defaultdict(list)
    for one in named:
        subjects[one.recording.patient].append(one)
    left_out = {patient: why for patient, its in subjects.items() if (why := _contradiction(its))}
    good = tuple(one.recording for one in named if one.recording.patient not in left_out)
    return good, [f"{patient} is left out: {why}" for patient, why in left_out.items()]


def _contradiction(its: Sequence[_Named]) -> str:
    """In what the recordings of a subject differ, "" if in nothing."""
    differing = [name for name in its[0].facts if len({one.facts[name] for one in its}) > 1]
    if len({one.recording.name for one in its}) < len(its):
        differing.append("the recording of one filter")
    files = ", ".join(one.recording.audio.name if one.recording.audio else one.recording.name for one in its)
    return f"{' and '.join(differing)} contradict in {files}" if differing else ""
