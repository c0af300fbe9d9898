"""What the three commands share: errors in one line, exit codes, and common options.

Exit codes: 0 done, 1 internal error (or nobody reads our output any more), 2 bad input or usage, 3 a gate refused,
130 interrupted. Nothing heavy is imported here, so that `--help` answers at once.
"""

import errno
import gc
import logging
import os
import shutil
import sys
import textwrap
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TextIO, cast

import typer

from firmware_config.errors import RespSAMError
from firmware_config.log import FORMS, LEVELS, set_up, silence

if TYPE_CHECKING:
    from firmware_config.log import Form, Level

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file (TOML); see docs/settings.md."),
]


OUTPUT_FAILS: Final = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)  # full, gone or closed
EXTRAS: Final = {
    "train": ("huggingface_hub", "jinja2", "lightning_fabric", "matplotlib", "safetensors", "sklearn", "torch"),
    "export": ("onnx", "onnxscript"),
    "cluster": ("ray",),
}
"""The packages that a device does not have, by the extra of pip that brings them; export's brings train's, too."""


class ArgumentError(RespSAMError):
    """An argument that is empty, or not one of the allowed words."""


def application(help: str, versions: Callable[[], Sequence[str]] = tuple) -> typer.Typer:
    """A command with sub-commands; its help is plain text, because rich costs 0.1 s a start.

    `versions` are what `--version` says beside the package's own.
    """

    def print_versions(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import version

            typer.echo("\n".join([f"respsam {version('respsam')}", *versions()]))
            raise typer.Exit

    app = typer.Typer(
        help=help,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(help=help)
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version",
                help="Show all versions, of formats and of the model, too.",
                is_eager=True,
                callback=print_versions,
            ),
        ] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
        log_level: Annotated[
            str, typer.Option("--log-level", metavar="|".join(LEVELS), help="Write a log to stderr from this level on.")
        ] = "",
        log_format: Annotated[
            str, typer.Option("--log-format", metavar="|".join(FORMS), help="Format of the log's lines.")
        ] = "text",
    ) -> None:
        # `run` reads these first, because they may be anywhere; here they are for --help
        pass

    return app


def run(app: typer.Typer, program: str) -> NoReturn:
    """Run the command on sys.argv and exit; `program` is its name in messages. Without arguments it shows the help."""
    _open_closed_streams()
    arguments, debug = _without_debug(sys.argv[1:])
    silence()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a file's name need not be UTF-8
    try:
        code = _answer(app, program, arguments or ["--help"], debug)
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()  # the reader has closed the pipe (`| head`)
        code = 1
    except OSError as error:
        _close_stdout()
        remedy = "free the disk" if error.errno == errno.ENOSPC else "send it to a file or another terminal"
        _complain(f"{program}: error: stdout cannot be written ({error.strerror}); {remedy}")
        code = RespSAMError.exit_code
    gc.freeze()  # the interpreter's last collection would take 0.25 s, most of the time that a stop takes
    sys.exit(code)


def _open_closed_streams() -> None:
    """Open streams that the caller has closed: the next file would get their number, and our output."""
    for number, name, mode in (0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for as long as we run


def _complain(line: str) -> None:
    """Print one line to stderr, if it is still open."""
    with suppress(OSError):
        print(wrapped(line, sys.stderr), file=sys.stderr, flush=True)


def _close_stdout() -> None:
    # Python flushes again at exit and would print an error
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(path: Path) -> str:
    """The path as one line of text; control characters and bytes that are not UTF-8 are escaped."""
    return "".join(map(_escaped, os.fsencode(path).decode(errors="backslashreplace")))


def _escaped(character: str) -> str:
    unsafe = unicodedata.category(character) in ("Cc", "Zl", "Zp")
    return character.encode("unicode_escape").decode() if unsafe else character


def counted(count: int, what: str) -> str:
    """`1 cycle`, `2 cycles`."""
    return f"{count} {what}{'s' * (count != 1)}"


def wrapped(line: str, out: TextIO) -> str:
    """The line; on a terminal wrapped between words."""
    if not out.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def show_warning(program: str, package: str, message: str) -> None:
    """A warning in one line on stderr, and in the log of the package."""
    logging.getLogger(package).warning(one_line(message))
    typer.echo(wrapped(f"{program}: warning: {one_line(message)}", sys.stderr), err=True)


def one_line(message: str) -> str:
    """The message with its line breaks folded."""
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def next_step(what: str) -> None:
    """The last line of a command: what to do next."""
    typer.echo(f"next: {what}")


def json_text(value: Any) -> str:
    """One line of JSON; NaN and infinity, which JSON does not have, become null; other objects become text."""
    import json

    return json.dumps(json.loads(json.dumps(value, default=str), parse_constant=lambda _: None))


def _answer(app: typer.Typer, program: str, arguments: Sequence[str], debug: bool) -> int:
    try:
        _refuse_empty(arguments)
        result = app(args=_without_log(arguments), prog_name=program, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else program
        # typer hands on what pydantic says of a choice
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        text, code = f"error: {message[:1].lower()}{message[1:]}; try '{command} --help'", error.exit_code
    except RespSAMError as error:
        text, code = f"error: {error}", error.exit_code
        if debug:
            traceback.print_exc()
    except Exception as error:
        # an error of stdout: files that a user names are handled where they are opened
        if isinstance(error, OSError) and error.errno in OUTPUT_FAILS:
            raise
        text, code = f"internal error: {type(error).__name__}: {error}", 1
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if extra := _extra_of(missing, program):
            text, code = f"error: no {missing} here; it needs pip install 'respsam[{extra}]'", RespSAMError.exit_code
        elif debug:
            traceback.print_exc()
        else:
            text += " (run again with --debug for the traceback)"
    _complain(f"{program}: {one_line(text)}")
    return code


def _extra_of(package: str | None, program: str) -> str | None:
    """The extra of pip by which a program gets a package that is missing, None for a package of no extra."""
    found = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    return "export" if found == "train" and program == "respsam-export" else found


def _refuse_empty(arguments: Sequence[str]) -> None:
    """ArgumentError for an empty argument: an empty path would be the current folder."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option = argument[:-1] if argument.startswith("--") and argument.endswith("=") else before
        if not argument or (argument.endswith("=") and argument.startswith("--")):
            where = f"{option} has an empty value" if option.startswith("-") else "an argument is empty"
            raise ArgumentError(f"{where}; give a path or a word, or leave it out")


def _without_log(arguments: Sequence[str]) -> list[str]:
    """Set up the log, and return the other arguments; ArgumentError for an unknown level or format."""
    left, chosen, words = [], dict[str, str](), iter(arguments)
    known = {"--log-level": LEVELS, "--log-format": FORMS}
    for argument in words:
        name, _, value = argument.partition("=")
        if argument == "--" or name not in known:
            left += [argument, *(words if argument == "--" else ())]
            continue
        chosen[name] = value or next(words, "")
        if chosen[name] not in known[name]:
            raise ArgumentError(f"{name} {chosen[name]!r} is not one of {', '.join(known[name])}".replace(" ''", ""))
    if "--log-level" in chosen or "--log-format" in chosen:
        set_up(cast("Level", chosen.get("--log-level", "info")), cast("Form", chosen.get("--log-format", "text")))
    return left or ["--help"]


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, and whether it was there; what follows `--` is left alone."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*options, *arguments[end:]], len(options) < end
