import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_config.command_line import json_text

PROGRAM = '''
import atexit, gc, sys
from typing import Annotated
import typer
from firmware_config.command_line import ConfigOption, application, run
from firmware_config.errors import GateRefused, RespSAMError

app = application("A program for the test.")

@app.command()
def fail(how: str, config: ConfigOption = None, number: int = 3) -> None:
    """Fail in one of the ways there are."""
    if how == "input":
        raise RespSAMError("breath.wav: too short\\n  at 0.1 s")
    if how == "gate":
        raise GateRefused("parity 0.1 is worse than 0.001")
    if how == "bug":
        {}["absent"]
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "end":
        atexit.register(lambda: print(len(gc.get_objects()) < gc.get_freeze_count() // 10))
    if how == "exit":
        raise typer.Exit(3)
    if how == "wait":
        print("ready", flush=True)
        import time
        time.sleep(60)
    if how == "flood":
        while True:
            print("x" * 1000)
    print(how, number, config)

@app.command()
def other() -> None:
    """Another one."""

run(app, "test-program")
'''


@pytest.fixture
def program(tmp_path: Path, repository: Path) -> list[str]:
    file = tmp_path / "program.py"
    file.write_text(f"import sys\nsys.path.insert(0, {str(repository)!r})\n{PROGRAM}")
    return [sys.executable, str(file)]


def run(program: list[str], *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_success(program: list[str]) -> None:
    assert run(program, "fail", "fine", "--config", "a.toml") == (0, "fine 3 a.toml\n", "")


def test_user_errors_are_one_line_and_exit_2_a_gate_3(program: list[str]) -> None:
    assert run(program, "fail", "input") == (2, "", "test-program: error: breath.wav: too short at 0.1 s\n")
    assert run(program, "fail", "gate") == (3, "", "test-program: error: parity 0.1 is worse than 0.001\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fail", "--bogus", "a"], "no such option: --bogus; try 'test-program fail --help'"),
        (["fail"], "missing argument 'how'; try 'test-program fail --help'"),
        (["fail", "a", "--number", "x"], "'--number': Input should be a valid integer"),
        (["fial"], "'fial'"),
        (["other", "extra"], "extra"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(program: list[str], arguments: list[str], line: str) -> None:
    code, out, err = run(program, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("test-program: error: ") and line in err and "--help'" in err
    assert err.count("\n") == 1


def test_a_bug_is_one_line_and_debug_shows_the_traceback_wherever_it_stands(program: list[str]) -> None:
    code, _, err = run(program, "fail", "bug")
    assert code == 1
    assert err == "test-program: internal error: KeyError: 'absent' (run again with --debug for the traceback)\n"
    for arguments in (["--debug", "fail", "bug"], ["fail", "bug", "--debug"], ["fail", "--debug", "input"]):
        code, _, err = run(program, *arguments)
        assert "Traceback" in err and "program.py" in err
    assert run(program, "fail", "--", "--debug") == (0, "--debug 3 None\n", "")


def test_exit_codes_of_commands(program: list[str]) -> None:
    assert run(program, "fail", "exit") == (3, "", "")
    assert run(program, "fail", "interrupt") == (130, "", "")


def test_a_real_interrupt_exits_130_without_a_word(program: list[str]) -> None:
    # A shell hides Ctrl-C from what it starts in the background (`nohup make test &`), and children inherit that.
    asked = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([*program, "fail", "wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, asked)
    with process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


def test_a_closed_pipe_is_quiet(program: list[str]) -> None:
    for how in ("flood", "short"):  # while writing, and at the last flush
        read, write = os.pipe()
        with subprocess.Popen([*program, "fail", how], stdout=write, stderr=subprocess.PIPE) as process:
            os.close(read)
            os.close(write)
            _, err = process.communicate(timeout=30)
        assert err == b"", how
        assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("how", ["flood", "short"])
def test_a_full_disk_behind_stdout_is_one_line(program: list[str], how: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*program, "fail", how], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (
        2,
        "test-program: error: stdout cannot be written (No space left on device); free the disk\n",
    )


def test_help_and_version(program: list[str]) -> None:
    code, out, err = run(program, "--help")
    assert (code, err) == (0, "")
    assert "A program for the test." in out and "--debug" in out and "Another one." in out
    assert run(program) == (code, out, err)
    assert "--config FILE" in run(program, "fail", "-h")[1]
    code, out, _ = run(program, "--version")
    assert code == 0 and out.startswith("respsam ")


def test_json_has_no_number_that_is_none() -> None:
    value = {"nan": float("nan"), "list": [1.5, float("-inf"), "NaN"], "path": Path("a/b")}
    assert json.loads(json_text(value), parse_constant=pytest.fail) == {
        "nan": None,
        "list": [1.5, None, "NaN"],
        "path": "a/b",
    }


def test_at_the_end_nothing_is_collected_as_that_takes_long_on_a_busy_machine(program: list[str]) -> None:
    assert run(program, "fail", "end") == (0, "end 3 None\nTrue\n", "")
