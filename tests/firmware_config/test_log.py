"""The log: its lines, who writes to it, and the options that every command has."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from firmware_config.log import PACKAGES, set_up
from tests.conftest import RunCli

AT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.level = [], True, logging.NOTSET


def test_a_line_has_time_level_package_words_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info")
    logging.getLogger("device").info("stretch complete", extra={"fields": {"verdict": "flagged", "cycles": 6}})
    assert re.fullmatch(AT + r' info device: stretch complete verdict="flagged" cycles=6\n', capsys.readouterr().err)


def test_json_lines_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("debug", "json")
    logging.getLogger("trainer").debug("two\nlines", extra={"fields": {"epoch": 1}})
    line = json.loads(capsys.readouterr().err)
    assert re.fullmatch(AT, line.pop("time"))
    assert line == {"level": "debug", "package": "trainer", "message": "two lines", "epoch": 1}


def test_lower_levels_are_left_out_and_a_second_call_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("info")
    set_up("warning")
    logging.getLogger("export").info("unseen")
    logging.getLogger("export").warning("seen")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reader_that_is_gone_takes_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    set_up("info")
    logging.getLogger("device").info("said to nobody")


def test_the_options_may_stand_anywhere_and_help_names_them(run_cli: RunCli) -> None:
    for arguments in (["--log-level", "debug", "sessions", "list"], ["sessions", "list", "--log-format=json"]):
        assert run_cli("device", *arguments).returncode == 0
    assert "--log-level" in run_cli("device", "--help").stdout


def test_another_word_is_one_line(run_cli: RunCli) -> None:
    for arguments in (["--log-level", "loud"], ["--log-format=xml"], ["sessions", "list", "--log-level"]):
        result = run_cli("device", *arguments)
        assert result.returncode == 2
        assert "is not one of" in result.stderr and "Traceback" not in result.stderr
