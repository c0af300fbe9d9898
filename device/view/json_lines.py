"""JSON lines and MQTT messages: objects with schema version, wall time and session, and their schema."""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from device.capture.timeline import TimelineObject
from device.listening.agreement import Agreement, AgreementObject
from device.listening.cycle import CycleObject
from device.listening.results import ScreenedObject
from device.verdict.exam import ExamObject
from device.verdict.summary import SessionId, Summary, SummaryObject

SCHEMA_VERSION: Final = 1  # raise when a field goes or means something else; fields may be added under one version


class Dated(TypedDict):
    """The version of the schema, and when the line was written."""

    schema_version: Annotated[Literal[1], Field(description="Of this schema; fields may be added under one version.")]
    time: Annotated[
        str,
        Field(description="Wall time of the line, UTC.", json_schema_extra={"format": "date-time"}),
    ]


class Stamp(Dated):
    """What every line has."""

    session: SessionId


class CycleLine(CycleObject, Stamp):
    """One breath cycle of `listen` or `exam`."""


class TimelineLine(TimelineObject, Stamp):
    """Something that happened to the sound."""


class SummaryLine(SummaryObject, Dated):
    """The end of a session."""

    demo_agreement: Annotated[
        AgreementObject | None, Field(description="How flags agree with the simulator; null for real sound.")
    ]


class ExamLine(ExamObject, Stamp):
    """The end of an exam, after the summaries of its sites."""


class RecordingLine(ScreenedObject, Stamp):
    """One recording of `screen`; its other values are null where it could not be read."""

    type: Literal["recording"]


class UnshownLine(Stamp):
    """In the place of lines that were dropped, because the reader of stdout was too slow."""

    type: Literal["unshown"]
    lines: Annotated[int, Field(description="Lines that are missing here.")]
    note: str


class StatusLine(Dated):
    """What a box does: the retained status by MQTT, where cycle, summary and exam lines go, too."""

    type: Literal["status"]
    box: Annotated[str, Field(description="Its name.")]
    online: Annotated[bool, Field(description="False once it has stopped, or the broker has lost it.")]
    words: Annotated[str, Field(description="What it does, or why it stopped.")]
    bundle: Annotated[str | None, Field(description="sha256 of the model's file; null before the first session.")]
    bundle_name: Annotated[str | None, Field(description="Of the model in use.")]
    version: Annotated[str, Field(description="Of the program.")]
    unsent: Annotated[int, Field(description="Messages ever removed unsent, because too many waited.")]


Line = Annotated[
    CycleLine | TimelineLine | SummaryLine | ExamLine | RecordingLine | UnshownLine | StatusLine,
    Field(discriminator="type"),
]


def stamped(value: Mapping[str, Any], session: str) -> str:
    """One line of JSON of a session, without its line break."""
    return dated(value, session=session)


def dated(value: Mapping[str, Any], **more: str) -> str:
    """One line of JSON, without its line break."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({**value, "schema_version": SCHEMA_VERSION, "time": now, **more})


def summary_object(summary: Summary, agreement: Agreement | None) -> dict[str, Any]:
    """The end of a session, without its stamp."""
    return {**summary.as_json(), "demo_agreement": None if agreement is None else agreement.as_json()}


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of every line."""
    adapter: TypeAdapter[Any] = TypeAdapter(Line)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A JSON line of respsam-device listen, exam and screen, or an MQTT message",
        **adapter.json_schema(),
    }
