"""The results of a screening: the row of one recording, and a file of rows that a stopped screening resumes."""

import csv
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from device.model.classifier import Classifier
from device.verdict.site import Verdict
from device.verdict.summary import SecondsObject, Summary
from firmware_config.command_line import one_line, printable
from firmware_config.errors import RespSAMError
from firmware_config.settings import QualitySettings


class ScreenedObject(TypedDict):
    """The object of `screen --json`; null values for a refused recording."""

    recording: Annotated[str, Field(description="Its path with the extension.")]
    channel: Annotated[int | None, Field(description="The one that was judged, counted from 0.")]
    verdict: Verdict | None
    probability: Annotated[float | None, Field(description="Of the first stretch; null before its least cycles.")]
    cycles: int | None
    stretches: Annotated[int | None, Field(description="Complete ones; the first decides the verdict.")]
    stretches_flagged: int | None
    flagged_share: Annotated[float | None, Field(description="Of the gradable cycles.")]
    breaths_per_minute: float | None
    seconds: SecondsObject | None
    reasons: Annotated[list[str], Field(description="Of the verdict.")]
    not_validated: Annotated[list[str], Field(description="Why the model is not validated for this subject.")]


@dataclass(frozen=True)
class Screened:
    """The summary of one recording, or the error that prevented it."""

    recording: Path
    summary: Summary | None
    error: str = ""
    warnings: tuple[str, ...] = ()
    sha256: str = ""
    """Of the file that was judged."""
    channel: int | None = None
    """The channel that was judged, counted from 0."""

    def as_json(self) -> ScreenedObject:
        """For `screen --json`."""
        full = self.summary.as_json() if self.summary else None
        return {
            "recording": printable(self.recording),
            "channel": self.channel,
            "verdict": full and full["verdict"],
            "probability": full and full["probability"],
            "cycles": full and full["cycles"],
            "stretches": full and full["stretches"],
            "stretches_flagged": full and full["stretches_flagged"],
            "flagged_share": round(full["flagged"] / full["gradable"], 3) if full and full["gradable"] else None,
            "breaths_per_minute": full and full["breaths_per_minute"],
            "seconds": full and full["seconds"],
            "reasons": full["reasons"] if full else [],
            "not_validated": full["not_validated"] if full else [],
        }


def judged_by(model: Classifier, quality: QualitySettings) -> dict[str, str | float]:
    """What decides a verdict, by the names of the columns."""
    return {
        "bundle": model.fingerprint,
        "precision": model.file.precision,
        "cycle_threshold": model.threshold,
        "site_threshold": model.site_rule.threshold,
        "quality_limits": hashlib.sha256(quality.model_dump_json().encode()).hexdigest()[:12],
    }


class ResultsError(RespSAMError):
    """A file of results that cannot be resumed or written."""


class Results:
    """Verdicts in a file that a stopped screening resumes: JSON lines, or CSV by the suffix `.csv`.

    Every row names the recording's content, and the bundle, precision, thresholds and quality limits that judged it;
    a file never mixes two of these. A half-written last row is replaced. A refused recording has a row with the
    `error` and no verdict; it is tried again, and gets another row when the result differs.
    """

    COLUMNS = (
        *("recording", "channel", "verdict", "probability", "cycles", "stretches", "stretches_flagged"),
        *("flagged_share", "breaths_per_minute", "heard", "missing", "dropped", "gradable"),
        *("reasons", "not_validated", "error", "sha256"),
        *("bundle", "precision", "cycle_threshold", "site_threshold", "quality_limits"),
    )

    def __init__(self, path: Path, model: Classifier, quality: QualitySettings) -> None:
        """ResultsError when the file has another bundle, thresholds or limits, or cannot be written."""
        self.path = path
        self.judged_by = judged_by(model, quality)
        self._is_csv = path.suffix.lower() == ".csv"
        self._done: dict[str, set[str]] = defaultdict(set)
        self._refused: set[tuple[str, str, str]] = set()
        try:
            # not a device or a pipe, which may have no end
            if path.is_file():
                self._resume(path.read_bytes())
            self._file = path.open("a", encoding="utf-8", newline="")
            empty = not path.stat().st_size
        except OSError as error:
            raise ResultsError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
        if self._is_csv and empty:
            self._write(_csv_line(self.COLUMNS))

    def _resume(self, content: bytes) -> None:
        whole = content[: content.rfind(b"\n") + 1]
        begun = content[len(whole) :]
        opening = (",".join(self.COLUMNS) if self._is_csv else '{"recording": ').encode()
        lines = whole.decode("utf-8", "replace").split("\n")[:-1]  # not splitlines: a reason may contain U+2028
        try:
            table = csv.DictReader(lines, strict=True)
            rows = list(table) if self._is_csv else [json.loads(line) for line in lines]
            if self._is_csv and lines and table.fieldnames != [*self.COLUMNS]:
                raise ValueError("other columns")
            # a file without a complete line may be another program's
            if not whole and begun[: len(opening)] != opening[: len(begun)]:
                raise ValueError("another opening")
            for row in rows:
                if row["verdict"]:
                    self._done[str(row["recording"])].add(str(row["sha256"]))
                else:
                    self._refused.add((row["recording"], row["sha256"], row["error"]))
            others = {name: {str(row[name]) for row in rows} - {str(own)} for name, own in self.judged_by.items()}
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ResultsError(f"{self.path}: not a file of screening results; choose another --out") from error
        for name, found in others.items():
            if found:
                raise ResultsError(
                    f"{self.path}: holds results of {name.replace('_', ' ')} {min(found)[:12]}, this one is "
                    f"{str(self.judged_by[name])[:12]}; choose another --out"
                )
        # only now is it certain that the file is ours
        if begun:
            os.truncate(self.path, len(whole))  # not rewritten: a full disk would lose the complete rows too

    def holds(self, recording: Path) -> bool:
        """Whether this recording was judged: by name and content, as files of two patients may share a name."""
        known = self._done.get(printable(recording), set())
        return bool(known) and sha256_of(recording) in known

    def add(self, screened: Screened) -> None:
        """Add one row, written when this returns; ResultsError when the disk is full."""
        row: dict[str, Any] = {
            **screened.as_json(),
            "error": one_line(screened.error),
            "sha256": screened.sha256,
            **self.judged_by,
        }
        if screened.summary is None:
            refusal = (row["recording"], row["sha256"], row["error"])
            if refusal in self._refused:
                return
            self._refused.add(refusal)
        if self._is_csv:
            seconds = row["seconds"] or dict.fromkeys(("heard", "missing", "dropped", "gradable"))
            flat = {**row, **seconds, **{name: "; ".join(row[name]) for name in ("reasons", "not_validated")}}
            self._write(_csv_line([flat[name] for name in self.COLUMNS]))
        else:
            self._write(json.dumps(row) + "\n")

    def _write(self, line: str) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise ResultsError(
                f"{self.path}: cannot be written ({error.strerror}); free the disk, then run the same command again"
            ) from error

    def close(self) -> None:
        """Close the file."""
        # an error was reported already; closing tries to write once more
        with suppress(OSError):
            self._file.close()


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's content; empty where there is no file to read: screening it reports why."""
    digest = hashlib.sha256()
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            return digest.hexdigest()
    return ""


def _csv_line(cells: Sequence[object]) -> str:
    line = StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
