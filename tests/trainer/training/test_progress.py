"""How a command goes: stages on a terminal, lines elsewhere, never silence."""

import time
from io import StringIO

import pytest
from rich.console import Console

from trainer.training.progress import FitView, Stage, lasting


def shown(terminal: bool, silence_seconds: float = 30.0) -> tuple[FitView, StringIO]:
    out = StringIO()
    return FitView(Console(file=out, force_terminal=terminal, width=200), silence_seconds), out


def test_without_a_terminal_no_stage_is_silent() -> None:
    view, out = shown(terminal=False, silence_seconds=0.05)
    with view.stage("reading audio") as advance:
        advance(30, 120)
        time.sleep(0.3)
    lines = out.getvalue().splitlines()
    assert len(lines) >= 2
    assert lines[0].startswith("reading audio: 30 of 120, about ") and lines[0].endswith(" left")
    assert lines[-1] == "reading audio: done in 0 s"


def test_a_stage_that_says_nothing_of_its_length_says_how_long_it_takes() -> None:
    view, out = shown(terminal=False, silence_seconds=0.05)
    with view.stage("writing the report"):
        time.sleep(0.3)
    assert out.getvalue().splitlines()[0] == "writing the report: for 0 s"


def test_a_short_stage_leaves_no_line_in_a_file() -> None:
    view, out = shown(terminal=False)
    with view.stage("reading audio"):
        pass
    assert out.getvalue() == ""


def test_on_a_terminal_a_stage_has_its_name_and_its_end() -> None:
    view, out = shown(terminal=True)
    with view.stage("reading audio"):
        time.sleep(0.3)
    with view.stage("training"):
        pass
    text = out.getvalue()
    assert "reading audio: done in 0 s\n" in text and "training: done in 0 s\n" in text
    assert text.index("reading audio: for 0 s") < text.index("reading audio: done"), "the bar has its name"


def test_a_stage_that_fails_has_no_end() -> None:
    view, out = shown(terminal=True)
    with pytest.raises(OSError, match="no"), view.stage("reading audio"):
        raise OSError("no")
    assert "done in" not in out.getvalue() and view.now is None


def test_a_step_says_stage_step_loss_speed_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of 4 epochs of 10 steps; after 5 steps in 5 s of the second epoch 25 + 40 are left."""
    clock = [100.0]
    monkeypatch.setattr("trainer.training.progress.time.monotonic", lambda: clock[0])
    view, _ = shown(terminal=False)
    view.now = stage = Stage("training")
    view._model = (0, 2)
    view.epoch_started(1, 4, 10)
    for step in range(1, 6):
        view.stepped(step, 0.81234, 41.3)
        clock[0] += 1.0
    clock[0] -= 1.0
    assert stage.in_words == ("training: model 1 of 2: epoch 2/4, step 5/10, loss 0.812, 41 samples/s, about 65 s left")
    view.ends = 110.0
    clock[0] += 1.0
    view.stepped(6, 0.8, 4.13)
    assert "4.1 samples/s, about 5 s left" in stage.in_words, "the minutes end before"


def test_times_in_words() -> None:
    assert [lasting(seconds) for seconds in (0.2, 99.4, 99.6, 3600.0, 9000.0)] == [
        "0 s",
        "99 s",
        "2 min",
        "60 min",
        "2.5 h",
    ]
