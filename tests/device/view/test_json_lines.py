"""Lines of real runs against the published JSON Schema."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from device.view.json_lines import schema, stamped
from tests.conftest import REPOSITORY
from tests.device.conftest import Device

PUBLISHED = REPOSITORY / "docs" / "json-lines.schema.json"


def closed(node: Any) -> Any:
    """The schema without room for fields that it does not name; readers must allow them, these lines have none."""
    if isinstance(node, list):
        return [closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    inner = {name: closed(value) for name, value in node.items()}
    return {"additionalProperties": False, **inner} if "properties" in node else inner


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    published = json.loads(PUBLISHED.read_text())
    jsonschema.Draft202012Validator.check_schema(published)
    return jsonschema.Draft202012Validator(closed(published))


def test_the_published_schema_is_todays() -> None:
    assert json.loads(PUBLISHED.read_text()) == schema(), f"run: respsam-device json-schema > {PUBLISHED}"


def test_the_command_prints_it(respsam_device: Device) -> None:
    assert json.loads(respsam_device("json-schema").out) == schema()


def check(validator: jsonschema.Draft202012Validator, lines: list[dict[str, Any]]) -> None:
    """Every line is valid, and from now."""
    for line in lines:
        validator.validate(line)
        age = datetime.now(timezone.utc) - datetime.fromisoformat(line["time"])
        assert timedelta(0) <= age < timedelta(minutes=10)


def test_lines_of_a_session(respsam_device: Device, bundle: Path, validator: jsonschema.Draft202012Validator) -> None:
    options = ("--source", "demo", "--fast", "--json", "--seconds", 20, "--bundle", bundle, "--no-store")
    first, second = (respsam_device("listen", *options).objects for _ in range(2))
    check(validator, [*first, *second])
    assert {line["type"] for line in first} == {"timeline", "cycle", "summary"}
    (one,), (other,) = ({line["session"] for line in lines} for lines in (first, second))
    assert one != other


def test_lines_of_an_exam(respsam_device: Device, bundle: Path, validator: jsonschema.Draft202012Validator) -> None:
    options = ("--source", "demo", "--fast", "--json", "--seconds", 5, "--site", "p1", "--site", "p2")
    *lines, exam = respsam_device("exam", *options, "--bundle", bundle, "--no-store").objects
    check(validator, [*lines, exam])
    assert exam["type"] == "exam"
    sessions = [exam["sites"][site]["session"] for site in ("p1", "p2")]
    assert [line["session"] for line in lines if line["type"] == "summary"] == sessions
    assert {line["session"] for line in lines} == {*sessions} and exam["session"] not in sessions


def test_lines_of_a_screening(
    respsam_device: Device, bundle: Path, recording: Path, tmp_path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    answer = respsam_device("screen", recording, recording, tmp_path / "broken.wav", "--json", "--bundle", bundle)
    check(validator, answer.objects)
    assert {line["type"] for line in answer.objects} == {"recording"}
    assert len({line["session"] for line in answer.objects}) == 1


def test_a_line_in_the_place_of_dropped_ones(validator: jsonschema.Draft202012Validator) -> None:
    line = json.loads(stamped({"type": "unshown", "lines": 3, "note": "3 lines are missing here"}, 32 * "0"))
    check(validator, [line])
    assert line["schema_version"] == 1
    for wrong in (line | {"schema_version": 2}, line | {"session": "7"}, line | {"type": "cycle"}, {"type": "unshown"}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)
