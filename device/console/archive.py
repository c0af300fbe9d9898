"""What is stored, for the pages: sessions and exams, a cycle's sound and picture, and their removal."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from device.bundle import SiteRule
from device.console.chest import in_words
from device.console.picture import png, still
from device.signal import SAMPLE_RATE, FloatArray, FrontEnd
from device.store.audio import AudioStore
from device.store.database import KEPT, StoreError
from device.store.exams import Exams
from device.store.sealing import read_key
from device.store.sessions import delete_session, list_sessions, read_session, sound_is_its_own
from device.verdict.site import together
from firmware_config.settings import StoreSettings

Row = dict[str, Any]

MOST_SESSIONS: Final = 500  # that the history shows, the newest
PEAK: Final = 0.7  # of a cycle that is played: stethoscopes record too quietly for a loudspeaker
SHOWN: Final = (
    *("id", "started_at", "ended_at", "site", "demo", "source", "verdict", "heard_samples", "cycles", "graded"),
    *("flagged", "with_audio", "stretches", "stretches_flagged"),
)


class Archive:
    """Reads and removes; without a store there are only the exams since the start."""

    def __init__(self, store: StoreSettings, exams: Exams, front_end: FrontEnd, rule: SiteRule) -> None:
        """`rule` divides sessions into stretches."""
        self._file = store.file if store.enabled else None
        self._store, self.exams, self._front_end, self._rule = store, exams, front_end, rule

    def history(self) -> Row:
        """Sessions and exams, the newest first."""
        rows = list_sessions(self._file)[-MOST_SESSIONS:] if self._file else []
        subjects = self.exams.subjects()
        sessions = [_session(row, SHOWN) | {"subject": subjects.get(row["id"], "")} for row in rows]
        return {"sessions": sessions[::-1], "exams": self.exams.listed(), "stored": self._file is not None}

    def session(self, number: int) -> Row:
        """One session with its cycles (times in seconds), timeline, subject and opinions. Raises StoreError."""
        row = read_session(self._path, number)
        opinions, own = self.exams.opinions(number), row["site_threshold"]
        # a session keeps the threshold that it was judged by: a calibration or another bundle may have come since
        rule = self._rule if own is None else self._rule.model_copy(update={"threshold": own})
        return {
            **_session(row, (*SHOWN[:7], "reasons", "not_validated", "bundle_name", "bundle")),
            "subject": self.exams.subjects().get(number, ""),
            "heard": (row["heard_samples"] or 0) / SAMPLE_RATE,
            "cycles": [_cycle(cycle, opinions) for cycle in row["cycles"]],
            "stretches": stretches(row["cycles"], rule),
            "timeline": [_entry(entry) for entry in row["timeline"]],
        }

    def sound(self, number: int, cycle: int) -> bytes:
        """A cycle's own sound as WAV, loud enough for a loudspeaker. Raises StoreError."""
        import soundfile

        samples = self._samples(number, cycle)
        louder = samples * np.float32(PEAK / max(float(np.abs(samples).max(initial=0.0)), 1e-6))
        file = io.BytesIO()
        soundfile.write(file, louder, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        return file.getvalue()

    def picture(self, number: int, cycle: int) -> bytes:
        """A cycle's spectrogram as PNG. Raises StoreError."""
        return png(still(self._samples(number, cycle), self._front_end), scale=2)

    def delete(self, kind: str, number: int) -> None:
        """Remove a session, or an exam with its sessions, for good. Raises StoreError."""
        for session in self.exams.delete(number) if kind == "exam" else [number]:
            delete_session(self._path, session)

    @property
    def _path(self) -> Path:
        if self._file is None:
            raise StoreError("no sessions are stored: set store.enabled")
        return self._file

    def _samples(self, number: int, cycle: int) -> FloatArray:
        found = [one for one in read_session(self._path, number)["cycles"] if one["number"] == cycle]
        if not found or found[0]["audio"] != KEPT or not sound_is_its_own(self._path, number):
            raise StoreError(f"session {number} has no sound of cycle {cycle}; it is kept if store.audio is set")
        row, samples = found[0], AudioStore(self._path, key=read_key(self._store)).read(number, cycle)
        before = 0 if row["context_start_sample"] is None else row["start_sample"] - row["context_start_sample"]
        return samples[before : before + row["end_sample"] - row["start_sample"]]


def stretches(cycles: Sequence[Row], rule: SiteRule) -> list[Row]:
    """The stretches of stored cycles in order: their verdict by the rule, and the numbers of their cycles.

    A cycle that is not gradable lies in a stretch without counting; the last stretch may be incomplete.
    """
    found, numbers, probabilities = list[Row](), list[int](), list[float]()
    for cycle in cycles:
        if not numbers:
            start = cycle["start_sample"] / SAMPLE_RATE
        numbers.append(cycle["number"])
        probabilities += [] if cycle["probability"] is None else [cycle["probability"]]
        complete = len(probabilities) == rule.stretch_cycles
        if complete or cycle is cycles[-1]:
            verdict = "not enough" if 2 * len(probabilities) >= len(numbers) else "poor quality"
            if complete:
                reached = together(np.array(probabilities)) >= rule.threshold
                verdict = "flagged" if reached else "nothing flagged"
            found.append({"start": start, "verdict": verdict, "cycles": numbers})
            numbers, probabilities = [], []
    return found


def _session(row: Row, names: Sequence[str]) -> Row:
    return {name: row[name] for name in names} | {"site": in_words(row["site"])}


def _cycle(row: Row, opinions: Mapping[int, str]) -> Row:
    return {
        **{name: row[name] for name in ("number", "kind", "reason", "probability", "class", "flag")},
        "start": row["start_sample"] / SAMPLE_RATE,
        "end": row["end_sample"] / SAMPLE_RATE,
        "audio": row["audio"] == KEPT,
        "opinion": opinions.get(row["number"], ""),
    }


def _entry(row: Row) -> Row:
    missing = row["missing_samples"] / SAMPLE_RATE
    return {"seconds": row["sample"] / SAMPLE_RATE, "kind": row["kind"], "missing": missing, "note": row["note"]}
