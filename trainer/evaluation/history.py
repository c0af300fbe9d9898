"""The log of a run's readings: a test part that is read twice is no longer a test, and it shows."""

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from pydantic import ValidationError

from firmware_config.files import write_atomically
from trainer.documents import first_problem
from trainer.reading import REQUIRED, Reading
from trainer.run.folder import READINGS_FILE, RUN_FILE, RunError, RunFacts, read_rows


def log_reading(path: Path, reading: Reading) -> tuple[str, ...]:
    """Append a reading to its run's `readings.jsonl`; a note when the run has read the same before.

    A bundle keeps no log. RunError names a damaged line.
    """
    if not (path / RUN_FILE).is_file():
        return ()
    earlier = [one for one in read_readings(path) if one.what == reading.what]
    now, times = datetime.now(timezone.utc).isoformat(timespec="seconds"), len(earlier) + 1
    before = (path / READINGS_FILE).read_text() if (path / READINGS_FILE).exists() else ""
    line = json.dumps({"time": now, "times_read": times, **reading.as_json()})
    write_atomically(path / READINGS_FILE, f"{before}{line}\n")
    if not earlier:
        return ()
    what, last = " ".join(reading.what), (earlier[-1].time or "a day unknown")[:10]
    return (f"{what} of {path}: read for the {_ordinal(times)} time on {now[:10]}, before on {last}: no longer a test",)


def read_readings(run: Path) -> list[Reading]:
    """What `trainer evaluate` read of the run's accuracy, oldest first; RunError names a damaged line."""
    what = "a reading; remove the line and run 'trainer evaluate' again"
    rows = read_rows(run / READINGS_FILE, REQUIRED, what)
    try:
        return [Reading.model_validate(row) for row in rows]
    except ValidationError as error:
        raise RunError(f"{run / READINGS_FILE}: {first_problem(error, Reading)}, so not {what}") from error


def readings_of(run: Path, facts: RunFacts) -> tuple[list[Reading], int]:
    """Of the readings in a run's folder, those of the model that it holds now, and how many are of earlier ones.

    Readings of an earlier model are no accuracy of this one, but they show that the corpus has been looked at.
    """
    read = read_readings(run)
    own = [reading for reading in read if reading.bundle == facts.fingerprint]
    return own, len(read) - len(own)


def latest(readings: Sequence[Reading]) -> list[Reading]:
    """The last reading of every corpus, part and protocol; `times_read` tells how often that was read."""
    return list({reading.what: reading for reading in readings}.values())


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
