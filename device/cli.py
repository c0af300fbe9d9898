"""`respsam-device`: parses arguments and prints; the work is in functions that a notebook can call."""

import json
import logging
import math
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO, cast

import typer

from firmware_config.command_line import (
    ConfigOption,
    application,
    counted,
    one_line,
    printable,
    run,
    wrapped,
)
from firmware_config.errors import GateRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from signal import Signals

    from device.capture.blocks import Source
    from device.capture.recording import Channel
    from device.listening.live import Session
    from device.listening.results import Screened
    from device.model.classifier import Classifier
    from device.model.tensorrt import BuildProgress
    from device.service import Service
    from device.store.sessions import Cells
    from device.view.view import View
    from firmware_config.settings import Settings

PROGRAM = "respsam-device"
INTERRUPTED = 130
AUTO = "auto"
MOST_SECONDS = 7 * 86_400.0  # of one session

app = application("Listen to breathing through a digital stethoscope and flag abnormal cycles. A screening aid.")
sessions = typer.Typer(help="List, show, export and delete what is stored.", rich_markup_mode=None)
app.add_typer(sessions, name="sessions")
engine = typer.Typer(help="Build, list and remove what TensorRT makes of a bundle for this GPU.", rich_markup_mode=None)
app.add_typer(engine, name="engine")


def _not_nan(value: float | None) -> float | None:
    """The value of an option; typer's ranges let NaN through."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Bundle folder or .respsam; else the shipped one.")]
SensitivityOption = Annotated[
    float | None,
    typer.Option(
        "--sensitivity",
        min=0.0,
        max=1.0,
        callback=_not_nan,
        help="Take the thresholds at which held-out patients reached this.",
    ),
]
AgeOption = Annotated[
    float | None, typer.Option("--age", min=0.0, max=120.0, callback=_not_nan, help="The patient's age in years.")
]
ChannelOption = Annotated[
    str | None,
    typer.Option(
        "--channel", metavar="N|auto", help="Counted from 0; auto takes a recording's channel with breathing in it."
    ),
]
SiteOption = Annotated[str | None, typer.Option("--site", help="Where the stethoscope sits, in the bundle's words.")]
FastOption = Annotated[bool, typer.Option("--fast", help="A file or the demo without waiting.")]
NoStoreOption = Annotated[bool, typer.Option("--no-store", help="Store nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
SessionArgument = Annotated[
    int, typer.Argument(help="Number of a session; see 'sessions list'.", metavar="SESSION", min=1, max=2**63 - 1)
]
PrecisionOption = Annotated[str | None, typer.Option("--precision", help="auto, fp32 or int8; fp16 with TensorRT.")]


def main() -> None:
    """Entry point of `respsam-device`."""
    run(app, PROGRAM)


@app.command()
def listen(
    source: Annotated[str, typer.Option("--source", help="mic, demo, or a wav or flac file.")] = "mic",
    bundle: BundleOption = None,
    precision: PrecisionOption = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="JSON lines on stdout: cycle, timeline, summary.")
    ] = False,
    fast: FastOption = False,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", min=0.1, max=MOST_SECONDS, callback=_not_nan, help="Stop after so much sound."),
    ] = None,
    channel: ChannelOption = None,
    age: AgeOption = None,
    site: SiteOption = None,
    sensitivity: SensitivityOption = None,
    no_store: NoStoreOption = False,
    console: Annotated[
        bool, typer.Option("--console", help="Serve pages for a browser until Ctrl-C; prints their address.")
    ] = False,
    config: ConfigOption = None,
) -> int:
    """Listen, show every breath cycle, and give a verdict at the end.

    Ctrl-C, SIGTERM and SIGHUP end the session with its summary. The exit code is 130 after Ctrl-C, else 0.
    """
    from device.model.opening import open_classifier
    from device.service import Service
    from device.verdict.population import Subject

    settings = _settings(config, bundle, precision, sensitivity, no_store, channel)
    classifier = open_classifier(settings.bundle)
    _warn_of_fallback(classifier)

    def open_service(age_years: float | None, site: str | None, place: int = 0) -> Service:
        opened = _source(source, fast, seconds, settings, channel="auto" if channel == AUTO else None, site=place)
        subject = Subject(age_years, site, live=source == "mic", fallback=classifier.fallback)
        return Service(opened, classifier, settings, subject, seconds, _warn)

    first = open_service(age, site)
    return _code(_run_with_console(first, open_service, json_output) if console else _run_service(first, json_output))


@app.command()
def exam(
    sites: Annotated[list[str], typer.Option("--site", help="A site that the exam needs; give every one.")],
    age: AgeOption = None,
    source: Annotated[str, typer.Option("--source", help="mic or demo.")] = "mic",
    seconds: Annotated[
        float, typer.Option("--seconds", min=1.0, max=MOST_SECONDS, callback=_not_nan, help="Sound at each site.")
    ] = 30.0,
    bundle: BundleOption = None,
    precision: PrecisionOption = None,
    json_output: Annotated[bool, typer.Option("--json", help="JSON lines on stdout, an exam object last.")] = False,
    fast: FastOption = False,
    sensitivity: SensitivityOption = None,
    no_store: NoStoreOption = False,
    config: ConfigOption = None,
) -> int:
    """Listen at several sites, one after another, and give one verdict for all of them.

    One flagged site flags the exam; the verdict is 'nothing flagged' only when the stretch of every site is complete.
    On a terminal it waits for Enter before each site, and offers sites without an answer again.
    """
    from signal import Signals

    from device.model.opening import open_classifier
    from device.service import Service
    from device.verdict.exam import Exam, remaining
    from device.verdict.population import Subject
    from device.verdict.summary import Summary
    from device.view.terminal import exam_lines

    if source not in ("mic", "demo"):
        raise typer.BadParameter(f"{source!r} is neither mic nor demo", param_hint="--source")
    settings = _settings(config, bundle, precision, sensitivity, no_store)
    classifier = open_classifier(settings.bundle)
    _warn_of_fallback(classifier)
    required, summaries = tuple(dict.fromkeys(sites)), dict[str, Summary]()
    asked, stopped = sys.stdin.isatty(), list[Signals]()
    waiting = list(required)
    try:
        while waiting and not stopped:
            for number, site in enumerate(waiting, 1):
                if asked:
                    what = f"{number} of {len(waiting)}: stethoscope on {site}, then Enter"
                    typer.prompt(what, "", show_default=False, err=True)
                opened = _source(source, fast, seconds, settings, site=required.index(site))
                subject = Subject(age, site, live=source == "mic", fallback=classifier.fallback)
                service = Service(opened, classifier, settings, subject, seconds, _warn)
                try:
                    stopped = _run_service(service, json_output)
                finally:
                    summaries[site] = service.session.summary
                if stopped:
                    break
            waiting = remaining(required, summaries)
            if not asked or not waiting or stopped:
                break
            if not typer.confirm(f"again at {', '.join(waiting)}?", err=True):
                break
    finally:
        # also after Ctrl-C at a question or a lost microphone: the finished sites count
        whole = Exam(required, summaries)
        lines = [json.dumps(whole.as_json())] if json_output else exam_lines(whole, source == "demo")
        with _outlets(json_output, source == "mic", stopped) as out:
            out.write("".join(f"{line}\n" for line in lines * bool(summaries)))
    return _code(stopped)


def _code(received: "list[Signals]") -> int:
    """130 after Ctrl-C; 0 when a service was stopped, because it has done its work."""
    return INTERRUPTED if signal.SIGINT in received else 0


def _run_service(service: "Service", json_output: bool) -> "list[Signals]":
    """Run and show one session; returns the signals that stopped it."""
    from device.listening.live import stopped_by_signals

    with stopped_by_signals(service.session) as received:
        _show_service(service, json_output, received)
    return received


def _show_service(
    service: "Service", json_output: bool, received: "list[Signals]", views: "Sequence[View]" = ()
) -> None:
    """Run one session in the terminal's views and in others."""
    with _outlets(json_output, service.source.live, received) as out:
        service.run([*_views(service.session, service.classifier.bundle.manifest.name, json_output, out), *views])


def _run_with_console(
    first: "Service", open_service: "Callable[[float | None, str | None, int], Service]", json_output: bool
) -> "list[Signals]":
    """Run one session, and those that browsers order, until a signal; returns the signals."""
    from device.console.desk import Desk, Order, console_line
    from device.listening.live import stopped_by_signals

    waiting = [first]

    def opened(order: Order) -> "Service":
        return waiting.pop() if waiting else open_service(order.age_years, order.site, order.place)

    desk = Desk(opened, lambda service, view: _show_service(service, json_output, received, [view]))
    with console_line(first, desk.take, _warn) as line, stopped_by_signals(desk) as received:
        typer.echo(f"{PROGRAM}: the console is at {line.url}", err=True)
        desk.run(line, _warn)
    return received


@contextmanager
def _outlets(json_output: bool, live: bool, received: "list[Signals]") -> "Iterator[TextIO]":
    """Stdout and stderr in a form that never blocks the session; yields stdout's."""
    from contextlib import redirect_stderr

    from device.view.outlet import Outlet

    def notice(lines: int) -> str:
        note = f"{lines} lines are missing here: the reader was too slow"
        return json.dumps({"type": "unshown", "lines": lines, "note": note}) + "\n" if json_output else f"{note}\n"

    def stopping() -> bool:
        return bool(received)

    out = Outlet(sys.stdout, notice, wait=not live, stopping=stopping)
    errors = Outlet(sys.stderr, lambda lines: f"{PROGRAM}: {lines} lines are missing here\n", stopping=stopping)
    with redirect_stderr(errors):
        try:
            yield cast("TextIO", out)
        finally:
            try:
                if lost := out.finish():
                    _warn(f"{lost} lines were not shown: the reader of stdout was too slow; the store has everything")
            finally:
                errors.finish()


@app.command("screen")
def screen_recordings(
    paths: Annotated[list[Path], typer.Argument(help="Recordings (wav, flac) or folders of them.", metavar="PATH...")],
    bundle: BundleOption = None,
    precision: PrecisionOption = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object a recording on stdout.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File for the verdicts, .csv or JSON lines; a stopped screening resumes."),
    ] = None,
    channel: ChannelOption = None,
    age: AgeOption = None,
    site: SiteOption = None,
    sensitivity: SensitivityOption = None,
    config: ConfigOption = None,
) -> int:
    """Give each recording a verdict, as fast as possible.

    Folders are searched for everything that looks like sound. A recording that cannot be read is an error with exit
    code 2; the others are still screened. `--age` and `--site` apply to all of them.
    """
    from collections import Counter
    from contextlib import ExitStack, closing

    from device.listening.results import Results
    from device.listening.screening import ScreenOptions, find_recordings, model, screen

    settings = _settings(config, bundle, precision, sensitivity, channel=channel)
    options = ScreenOptions("auto" if channel == AUTO else settings.audio.channel, age, site)
    found = find_recordings(paths)
    recordings = found.recordings
    _warn_of_fallback(model(settings.bundle))
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        results = None
        if out is not None:
            results = stack.enter_context(closing(Results(out, model(settings.bundle), settings.quality)))
            left = [recording for recording in recordings if not results.holds(recording)]
            counts[f"in {out} already"] = len(recordings) - len(left)
        else:
            left = recordings
        for screened in _with_progress(screen(left, settings, options), len(left)):
            for warning in screened.warnings:
                _warn(warning)
            if results is not None:
                results.add(screened)
            if screened.summary is None:
                typer.echo(wrapped(f"{PROGRAM}: error: {one_line(screened.error)}", sys.stderr), err=True)
                counts["could not be read"] += 1
                continue
            counts[screened.summary.verdict] += 1
            if results is None:
                line = json.dumps(screened.as_json()) if json_output else wrapped(_screened_line(screened), sys.stdout)
                typer.echo(line)
    if len(recordings) > 1 or not left or found.ignored:
        total = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        ignored = f"; {counted(found.ignored, 'other file')} ignored" if found.ignored else ""
        typer.echo(f"{counted(len(recordings), 'recording')}: {total}{ignored}", err=True)
    return 2 if counts["could not be read"] else 0


@app.command("account")
def set_account(
    name: Annotated[str, typer.Argument(help="Who logs in to the console.", metavar="NAME")],
    role: Annotated[
        Literal["viewer", "examiner", "admin"],
        typer.Option("--role", help="A viewer looks, an examiner examines too, an admin deletes too."),
    ] = "examiner",
    config: ConfigOption = None,
) -> None:
    """Make or change an account of the console; asks for the password, or reads it from stdin."""
    from device.console.accounts import Accounts

    accounts = Accounts(_settings(config).console.accounts_file)
    if sys.stdin.isatty():
        password = typer.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\n")
    accounts.set(name, role, password)
    typer.echo(f"{name} is {role}; a console that runs must be started again", err=True)


@sessions.command("list")
def sessions_list(json_output: JsonOption = False, config: ConfigOption = None) -> None:
    """List the stored sessions: verdict, seconds of sound, and cycles with audio."""
    from device.store.sessions import SESSION_COLUMNS, cells, list_sessions

    rows = list_sessions(_store_file(config), _warn)
    if json_output:
        for row in rows:
            typer.echo(json.dumps(row))
    else:
        _print_table(cells(rows, SESSION_COLUMNS), "no sessions are stored")


@sessions.command("show")
def sessions_show(session: SessionArgument, json_output: JsonOption = False, config: ConfigOption = None) -> None:
    """Show a session with its cycles and its timeline."""
    from device.store.sessions import CYCLE_COLUMNS, ENTRY_COLUMNS, about_lines, cells, read_session

    found = read_session(_store_file(config), session, _warn)
    if json_output:
        typer.echo(json.dumps(found))
        return
    typer.echo("\n".join(about_lines(found)))
    for rows, columns in ((found["cycles"], CYCLE_COLUMNS), (found["timeline"], ENTRY_COLUMNS)):
        typer.echo()
        _print_table(cells(rows, columns), "none")


@sessions.command("export")
def sessions_export(
    session: SessionArgument,
    form: Annotated[
        Literal["csv", "json"], typer.Option("--format", help="csv has the cycles, json everything.")
    ] = "csv",
    out: Annotated[Path | None, typer.Option("--out", help="A new file; else stdout.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write a session for other programs."""
    from device.store.sessions import export_session, read_session

    found = read_session(_store_file(config), session, _warn)
    if out is None:
        export_session(found, form, sys.stdout)
        return
    try:
        with out.open("x", encoding="utf-8", newline="") as file:
            export_session(found, form, file)
    except OSError as error:
        raise typer.BadParameter(
            f"{out} cannot be written ({error.strerror}); name a new file", param_hint="--out"
        ) from error


@sessions.command("delete")
def sessions_delete(
    session: SessionArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """Remove a session's rows and its audio for good."""
    from device.store.sessions import about_lines, delete_session, read_session

    file = _store_file(config)
    about = about_lines(read_session(file, session))
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("stdin is no terminal, so nobody can confirm; give the option", param_hint="--yes")
        typer.confirm("\n".join([*about, "remove this session and its audio for good?"]), abort=True, err=True)
    delete_session(file, session)
    typer.echo(f"session {session} is removed", err=True)


@app.command("replay")
def replay_session(
    session: SessionArgument,
    bundle: BundleOption = None,
    json_output: JsonOption = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare also with another bundle.")] = False,
    config: ConfigOption = None,
) -> int:
    """Judge a session's stored audio again; exit code 0 when every result is identical bit for bit, else 3."""
    from device.store.replay import replay

    done = replay(_store_file(config), session, bundle, anyway=anyway, warn=_warn)
    typer.echo(json.dumps(done.as_json()) if json_output else "\n".join(done.lines()))
    return 0 if done.exact else GateRefused.exit_code


@engine.command("build")
def engine_build(
    bundle: BundleOption = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option("--precision", help="What the engine multiplies in.")
    ] = "fp16",
    config: ConfigOption = None,
) -> None:
    """Build the bundle's engine with this machine's TensorRT and test it; takes minutes, nothing when it is there."""
    from device.bundle import DEFAULT_BUNDLE, read_bundle
    from device.model.engines import build_engine, open_gpu

    settings = _settings(config, bundle)
    opened, gpu = read_bundle(settings.bundle.chosen or DEFAULT_BUNDLE), open_gpu()
    with _engine_progress(f"TensorRT {gpu.version} builds for {gpu.name}") as progress:
        built = build_engine(opened, precision, settings.bundle.engines, gpu, progress)
    typer.echo(
        f"{built.model} in {built.precision} is ready ({built.megabytes:.1f} MB, TensorRT {built.tensorrt}, "
        f"{built.gpu}); to run it set bundle.engine = tensorrt and bundle.precision = {built.precision}"
    )


@engine.command("list")
def engine_list(config: ConfigOption = None) -> None:
    """List the engines that were built."""
    from device.model.engines import ENGINE_COLUMNS, stored_engines
    from device.store.sessions import cells

    _print_table(cells(stored_engines(_settings(config).bundle.engines), ENGINE_COLUMNS), "no engines are stored")


@engine.command("clear")
def engine_clear(config: ConfigOption = None) -> None:
    """Remove every engine; 'engine build' makes them again."""
    from device.model.engines import clear

    count, megabytes = clear(_settings(config).bundle.engines)
    typer.echo(f"{count} engines removed, {megabytes:.1f} MB freed")


@app.command()
def devices(json_output: JsonOption = False) -> None:
    """List the microphones that can be listened to."""
    from device.capture.process import input_devices
    from device.doctor import device_line

    found = input_devices()
    for device in found:
        typer.echo(json.dumps(device) if json_output else device_line(device))
    if not found and not json_output:
        typer.echo(f"no microphone: plug one in; to see it work without one use '{PROGRAM} listen --source demo'")


@app.command()
def doctor(json_output: JsonOption = False, bundle: BundleOption = None, config: ConfigOption = None) -> int:
    """Check microphone, bundle, store and machine; exit code 3 when a check fails."""
    from device.doctor import examine

    failed = False
    for finding in examine(_settings(config, bundle)):
        failed |= finding.state == "FAIL"
        typer.echo(json.dumps(finding.as_json()) if json_output else str(finding))
    return GateRefused.exit_code if failed else 0


def _store_file(config: Path | None) -> Path:
    return _settings(config).store.file


def _print_table(rows: "list[Cells]", nothing: str) -> None:
    """A table on a terminal, aligned lines in a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from device.store.sessions import plain_lines

    if not rows:
        typer.echo(nothing, err=True)
    elif sys.stdout.isatty():
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for name in rows[0]:
            # columns of single words keep their width, the others wrap
            words = not any(" " in text for text in (name, *(row[name] for row in rows)))
            table.add_column(name, no_wrap=words, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row.values()))
        Console().print(table)
    else:
        typer.echo("\n".join(plain_lines(rows)))


def _settings(
    config: Path | None,
    bundle: Path | None = None,
    precision: str | None = None,
    sensitivity: float | None = None,
    no_store: bool = False,
    channel: str | None = None,
) -> "Settings":
    """The settings with a command's flags applied."""
    from firmware_config.settings import load_settings

    if channel not in (None, AUTO) and not channel.isdecimal():
        raise typer.BadParameter(f"{channel!r} is neither a number from 0 on nor {AUTO}", param_hint="--channel")
    flags = {
        "audio.channel": None if channel in (None, AUTO) else int(channel),
        "bundle.path": None if bundle is None else str(bundle),
        "bundle.precision": precision,
        "bundle.sensitivity": sensitivity,
        "store.enabled": False if no_store else None,
    }
    return load_settings(config, flags)


def _source(
    name: str, fast: bool, seconds: float | None, settings: "Settings", channel: "Channel | None" = None, site: int = 0
) -> "Source":
    """`device.service.open_source`, with a warning for each remark about a recording."""
    from device.capture.sources import FileSource
    from device.service import open_source

    opened = open_source(name, settings, fast=fast, seconds=seconds, channel=channel, site=site)
    for remark in opened.recorded.remarks if isinstance(opened, FileSource) else ():
        _warn(str(remark))
    return opened


def _views(session: "Session", bundle_name: str, json_output: bool, out: TextIO) -> "list[View]":
    """JSON or plain lines on stdout; the live page on a terminal: on stdout, or on stderr while JSON goes to a file."""
    from rich.console import Console

    from device.view.terminal import JsonView, LiveView, PlainView

    console = Console(file=sys.stderr if json_output else out)
    # isatty rather than rich's own guess, which FORCE_COLOR in the environment changes
    live: list[View] = []
    if console.file.isatty() and not console.is_dumb_terminal:
        live = [LiveView(session, bundle_name, console)]
    if not json_output:
        return live or [PlainView(session, out)]
    return [JsonView(session, out), *([] if out.isatty() else live)]


def _with_progress(screened: "Iterator[Screened]", total: int) -> "Iterator[Screened]":
    """A progress bar on stderr, when that is a terminal and stdout is not."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = [*Progress.get_default_columns(), MofNCompleteColumn()]
    shown = console.file.isatty() and not sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not shown) as bar:
        yield from bar.track(screened, total=total, description="screening")


@contextmanager
def _engine_progress(title: str) -> "Iterator[BuildProgress]":
    """A progress bar: by the phases that TensorRT reports (version 10 on), else without a length."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    words = TextColumn("{task.description}")
    columns = (SpinnerColumn(), words, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.file.isatty()) as shown:
        task = shown.add_task(f"{title}, this takes minutes", total=None)
        yield lambda phase, done, steps: shown.update(
            task, description=f"{title}: {phase}", completed=done, total=steps
        )


def _screened_line(screened: "Screened") -> str:
    from device.view.terminal import NOT_VALIDATED

    summary = screened.summary
    assert summary is not None
    likely = "   -" if summary.probability is None else f"{summary.probability:.2f}"
    reasons = f"  ({'; '.join(summary.reasons)})" if summary.reasons else ""
    cycles = f"{counted(summary.cycles, 'cycle'):>10}"
    line = f"{summary.verdict:<15}  {likely}  {cycles}  {printable(screened.recording)}{reasons}"
    return f"{line}  {NOT_VALIDATED}: {'; '.join(summary.not_validated)}" if summary.not_validated else line


def _warn_of_fallback(classifier: "Classifier") -> None:
    if classifier.fallback:
        _warn(f"{classifier.fallback}; verdicts are marked as not validated")


def _warn(message: str) -> None:
    logging.getLogger("device").warning(one_line(message))
    typer.echo(wrapped(f"{PROGRAM}: warning: {one_line(message)}", sys.stderr), err=True)
