"""Whole files or none, and what killed writers left."""

import os
import time
from pathlib import Path

import pytest

from firmware_config.files import ABANDONED_SECONDS, replacing, write_atomically


def test_what_a_killed_writer_left_goes_with_the_next_whole_file(tmp_path: Path) -> None:
    """Of this file only; one that somebody may still be writing stays."""
    file = tmp_path / "model[1].bin"
    abandoned, writing = tmp_path / f".{file.name}.7.part", tmp_path / f".{file.name}.8.part"
    other = tmp_path / ".model1.bin.7.part"
    for part in (abandoned, writing, other):
        part.write_text("half")
    before = time.time() - ABANDONED_SECONDS - 60
    for part in (abandoned, other):
        os.utime(part, (before, before))
    write_atomically(file, "whole")
    assert {path.name for path in tmp_path.iterdir()} == {file.name, writing.name, other.name}
    assert file.read_text() == "whole"


def test_what_another_writer_takes_away_meanwhile_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has renamed its half between our listing and our look at it."""
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([tmp_path / ".log.txt.8.part"]))
    write_atomically(tmp_path / "log.txt", "whole")
    assert (tmp_path / "log.txt").read_text() == "whole"


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    write_atomically(file, "old")
    with pytest.raises(KeyboardInterrupt), replacing(file) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_text() == "old"
