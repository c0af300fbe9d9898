"""What is stored, for the pages: sessions and exams, a cycle's sound and picture, and their removal."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from device.bundle import SiteRule
from device.console.chest import in_words
from device.console.picture import png, still
from device.listening.respiratory_rate import rate_of_onsets
from device.signal import SAMPLE_RATE, FloatArray, FrontEnd, heights, hertz_ticks
from device.store.audio import AudioStore
from device.store.database import KEPT, StoreError
from device.store.exams import Exams
from device.store.sealing import read_key
from device.store.sessions import cycle_span, delete_session, list_sessions, read_cycles, read_kept_cycle, read_session
from device.verdict.site import together
from firmware_config.settings import StoreSettings

if TYPE_CHECKING:
    from device.model.classifier import Classifier

Row = dict[str, Any]

MOST_CYCLES: Final = 60  # in one answer
STRETCH_COLUMNS: Final = "number, start_sample, end_sample, kind, probability"
MOST_SESSIONS: Final = 500  # that the history shows, the newest
PEAK: Final = 0.7  # of a cycle that is played: stethoscopes record too quietly for a loudspeaker
SHOWN: Final = (
    *("id", "started_at", "ended_at", "site", "demo", "source", "verdict", "heard_samples", "cycles", "graded"),
    *("flagged", "with_audio", "stretches", "stretches_flagged"),
)
WORDS: Final = ("reasons", "not_validated", "bundle_name", "bundle")


class Archive:
    """Reads and removes; without a store there are only the exams since the start."""

    def __init__(self, store: StoreSettings, exams: Exams, front_end: FrontEnd, rule: SiteRule) -> None:
        """`rule` divides sessions into stretches."""
        self._file = store.file if store.enabled else None
        self._store, self.exams, self._front_end, self._rule = store, exams, front_end, rule
        self._opened: Classifier | None = None

    def history(self) -> Row:
        """Sessions and exams, the newest first."""
        rows = list_sessions(self._file)[-MOST_SESSIONS:] if self._file else []
        subjects = self.exams.subjects()
        sessions = [_session(row, SHOWN) | {"subject": subjects.get(row["id"], "")} for row in rows]
        return {"sessions": sessions[::-1], "exams": self.exams.listed(), "stored": self._file is not None}

    def session(self, number: int) -> Row:
        """One session with its stretches, timeline (in seconds) and subject. Raises StoreError."""
        row = read_session(self._path, number, columns=STRETCH_COLUMNS)
        own = row["site_threshold"]
        # a session keeps the threshold that it was judged by: a calibration or another bundle may have come since
        rule = self._rule if own is None else self._rule.model_copy(update={"threshold": own})
        return {
            **_session(row, (*SHOWN[:7], "graded", "flagged", "with_audio", *WORDS)),
            "cycles": len(row["cycles"]),
            "subject": self.exams.subjects().get(number, ""),
            "heard": (row["heard_samples"] or 0) / SAMPLE_RATE,
            "stretches": stretches(row["cycles"], rule),
            "timeline": [_entry(entry) for entry in row["timeline"]],
        }

    def cycles(self, number: int, first: int, last: int, *, flagged: bool) -> Row:
        """The cycles from `first` to `last` with their opinions, times in seconds, and their `count`.

        At most MOST_CYCLES. Raises StoreError.
        """
        rows, count = read_cycles(self._path, number, first, last, MOST_CYCLES, flagged=flagged)
        opinions = self.exams.opinions(number)
        return {"cycles": [_cycle(row, opinions) for row in rows], "count": count}

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

    def evidence(self, number: int, cycle: int) -> Row:
        """Where the session's model looks in a cycle, judged again with places hidden. Raises StoreError."""
        from device.model.occlusion import SCALE, occlusion

        row, samples = self._kept(number, cycle)
        found = occlusion(self._classifier(row), samples, cycle_span(row))
        return {
            "seconds": found.seconds.tolist(),
            "heights": heights(found.hertz, self._front_end),
            "falls": np.round(found.falls, 3).tolist(),
            "ticks": hertz_ticks(self._front_end),
            "scale": SCALE,
            "probability": round(found.probability, 3),
            "flat": found.flat,
            "words": found.in_words(),
        }

    def delete(self, kind: str, number: int) -> None:
        """Remove a session, or an exam with its sessions, for good. Raises StoreError.

        The exam goes last: after a failure in between it is still listed, and can be deleted again.
        """
        for session in self.exams.sessions(number) if kind == "exam" else [number]:
            delete_session(self._path, session)
        if kind == "exam":
            self.exams.delete(number)

    @property
    def _path(self) -> Path:
        if self._file is None:
            raise StoreError("no sessions are stored: set store.enabled")
        return self._file

    def _classifier(self, row: Row) -> "Classifier":
        """The model that judged a cycle, on the CPU; it stays open for the next one."""
        from device.store.replay import own_classifier

        fingerprint: str = row["bundle"]
        if self._opened is None or self._opened.fingerprint != fingerprint:
            self._opened = own_classifier(row["session"], row["settings"], fingerprint, on_cpu=True)
        if self._opened.fingerprint != fingerprint:
            self._opened = None
            raise StoreError(
                f"this box has no {row['bundle_name']} ({fingerprint[:12]}) any more, which judged session "
                f"{row['session']}; install it, or look at a newer session"
            )
        return self._opened

    def _kept(self, number: int, cycle: int) -> tuple[Row, FloatArray]:
        """A cycle's row and all samples (n,) that were judged."""
        row = read_kept_cycle(self._path, number, cycle)
        if row is None:
            raise StoreError(f"session {number} has no sound of cycle {cycle}; it is kept if store.audio is set")
        return row, AudioStore(self._path, key=read_key(self._store)).read(number, cycle)

    def _samples(self, number: int, cycle: int) -> FloatArray:
        """The cycle's own samples (n,)."""
        row, samples = self._kept(number, cycle)
        return samples if (span := cycle_span(row)) is None else samples[slice(*span)]


def stretches(cycles: Sequence[Row], rule: SiteRule) -> list[Row]:
    """The stretches of stored cycles in order: times, verdict by the rule, breaths a minute, first and last cycle.

    A cycle that is not gradable lies in a stretch without counting; the last stretch may be incomplete.
    """
    found, members, graded = list[Row](), list[Row](), 0
    for cycle in cycles:
        members.append(cycle)
        graded += cycle["probability"] is not None
        if graded == rule.stretch_cycles or cycle is cycles[-1]:
            found.append(_stretch(members, rule))
            members, graded = [], 0
    return found


def _stretch(members: Sequence[Row], rule: SiteRule) -> Row:
    probabilities = np.array([one["probability"] for one in members if one["probability"] is not None])
    verdict = "not enough" if 2 * len(probabilities) >= len(members) else "poor quality"
    if len(probabilities) == rule.stretch_cycles:
        verdict = "flagged" if together(probabilities) >= rule.threshold else "nothing flagged"
    rate = rate_of_onsets([(one["start_sample"] / SAMPLE_RATE, one["kind"]) for one in members])
    return {
        "start": members[0]["start_sample"] / SAMPLE_RATE,
        "end": members[-1]["end_sample"] / SAMPLE_RATE,
        "verdict": verdict,
        "rate": None if rate is None else round(rate, 1),
        "first": members[0]["number"],
        "last": members[-1]["number"],
    }


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
