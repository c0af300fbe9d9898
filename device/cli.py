"""`respsam-device`: parses arguments and prints; the work is in functions that a notebook can call."""

import json
import math
import secrets
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TextIO, cast

import typer

from device import bundle_commands
from device.bundle_commands import PROGRAM, JsonOption, _warn
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
    from device.configuration import Configuration
    from device.healthy import Colleagues, People
    from device.listening.live import Session
    from device.listening.results import Screened
    from device.model.classifier import Classifier
    from device.model.tensorrt import BuildProgress
    from device.mqtt import Sender
    from device.service import Service
    from device.store.sessions import Cells
    from device.verdict.population import Subject
    from device.view.view import View
    from firmware_config.provisioning import Plan
    from firmware_config.settings import Settings

INTERRUPTED: Final = 130
AUTO: Final = "auto"
MOST_SECONDS: Final = 7 * 86_400.0  # of one session


def _versions() -> list[str]:
    from device.versions import versions

    return versions()


app = application(
    "Listen to breathing through a digital stethoscope and flag abnormal cycles. A screening aid.", _versions
)
sessions = typer.Typer(help="List, show, export and delete what is stored.", rich_markup_mode=None)
app.add_typer(sessions, name="sessions")
exams = typer.Typer(help="List and export the console's exams.", rich_markup_mode=None)
app.add_typer(exams, name="exams")
app.add_typer(bundle_commands.bundle, name="bundle")
app.add_typer(bundle_commands.trust, name="trust")
engine = typer.Typer(help="Build, list and remove what TensorRT makes of a bundle for this GPU.", rich_markup_mode=None)
app.add_typer(engine, name="engine")
configuration = typer.Typer(help="Show, check and describe the settings.", rich_markup_mode=None)
app.add_typer(configuration, name="config")
passport = typer.Typer(help="List, show and make passports of stethoscopes.", rich_markup_mode=None)
app.add_typer(passport, name="passport")


def _not_nan(value: float | None) -> float | None:
    """The value of an option; typer's ranges let NaN through."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


BundleOption = Annotated[
    Path | None,
    typer.Option(
        "--bundle", help="Bundle folder or .respsam; else that of the settings, the installed or the shipped one."
    ),
]
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
SessionArgument = Annotated[
    int, typer.Argument(help="Number of a session; see 'sessions list'.", metavar="SESSION", min=1, max=2**63 - 1)
]
OutOption = Annotated[Path | None, typer.Option("--out", help="A new file; else stdout.")]
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
    service: Annotated[
        bool, typer.Option("--service", help="With a broken settings file, listen with the last good one (safe mode).")
    ] = False,
    config: ConfigOption = None,
) -> int:
    """Listen, show every breath cycle, and give a verdict at the end.

    Ctrl-C, SIGTERM and SIGHUP end the session with its summary. The exit code is 130 after Ctrl-C, else 0.
    """
    from device.mqtt import sender_of
    from device.verdict.population import Subject

    flags = _flags(bundle, precision, sensitivity, no_store, channel)
    ready = _configure(config, flags, service)
    chosen: Channel | None = "auto" if channel == AUTO else None

    def open_service(age_years: float | None, site: str | None, place: int = 0) -> "Service":
        opened = _source(source, fast, seconds, ready.settings, channel=chosen, site=place, waits=ready.service)
        known = ready.with_stethoscope(opened, _warn)
        subject = Subject(age_years, site, live=source == "mic", fallback=known.classifier.fallback)
        # the console's pages show one bundle
        return _service(known, opened, subject, seconds, sender, follow=not serves)

    serves = console or ready.settings.console.serve
    with sender_of(ready.settings, _warn) as sender:
        first = open_service(age, site)
        if serves:
            from device.console.addresses import ConsoleError

            try:
                return _code(_run_with_console(ready, first, open_service, json_output, sender))
            except ConsoleError as error:
                if console:
                    raise
                _warn(f"{error}; it listens without the console")
        return _code(_run_service(first, json_output))


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

    from device.mqtt import sender_of
    from device.verdict.exam import Exam, remaining
    from device.verdict.population import Subject
    from device.verdict.summary import Summary
    from device.view.json_lines import stamped
    from device.view.terminal import exam_lines

    if source not in ("mic", "demo"):
        raise typer.BadParameter(f"{source!r} is neither mic nor demo", param_hint="--source")
    ready = _configure(config, _flags(bundle, precision, sensitivity, no_store))
    required, summaries = tuple(dict.fromkeys(sites)), dict[str, Summary]()
    asked, stopped = sys.stdin.isatty(), list[Signals]()
    waiting = list(required)
    with sender_of(ready.settings, _warn) as sender:
        try:
            while waiting and not stopped:
                for number, site in enumerate(waiting, 1):
                    if asked:
                        what = f"{number} of {len(waiting)}: stethoscope on {site}, then Enter"
                        typer.prompt(what, "", show_default=False, err=True)
                    opened = _source(source, fast, seconds, ready.settings, site=required.index(site))
                    subject = Subject(age, site, live=source == "mic", fallback=ready.classifier.fallback)
                    service = _service(ready.with_stethoscope(opened, _warn), opened, subject, seconds, sender)
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
            run = secrets.token_hex(16)
            lines = [stamped(whole.as_json(), run)] if json_output else exam_lines(whole, source == "demo")
            with _outlets(run if json_output else None, source == "mic", stopped) as out:
                out.write("".join(f"{line}\n" for line in lines * bool(summaries)))
            if sender is not None and summaries:
                sender.add(whole.as_json(), run)
    return _code(stopped)


def _configure(config: Path | None, flags: "dict[str, object]", service: bool = False) -> "Configuration":
    """Settings and model; a service with a broken settings file takes the last good one. Starts the settings' log."""
    from device.configuration import configure
    from firmware_config.log import is_set_up, set_up
    from firmware_config.safe_mode import is_service
    from firmware_config.settings import load

    service = service or is_service()
    ready = configure(lambda file, layers: load(file, flags, layers=layers), config, _warn, service=service)
    log = ready.settings.log
    if log.level != "off" and not is_set_up():
        set_up(log.level, log.format)
    _warn_of_fallback(ready.classifier)
    return ready


def _service(
    ready: "Configuration",
    source: "Source",
    subject: "Subject",
    seconds: float | None,
    sender: "Sender | None" = None,
    *,
    follow: bool = False,
) -> "Service":
    """`follow`: a bundle that is installed meanwhile is used."""
    from device.service import Service

    common = (source, ready.classifier, ready.settings, subject, seconds, _warn)
    under = ready.circumstances
    return Service(*common, circumstances=under, follow=ready if follow else None, sender=sender)


def _code(received: "list[Signals]") -> int:
    """130 after Ctrl-C; 0 when a service was stopped, because it has done its work."""
    return INTERRUPTED if signal.SIGINT in received else 0


def _run_service(service: "Service", json_output: bool) -> "list[Signals]":
    """Run and show a session, and the next ones where a bundle is installed meanwhile; returns the signals received."""
    from device.listening.live import stopped_by_signals

    with stopped_by_signals(service) as received:
        running = True
        while running:
            _show_service(service, json_output, received)
            running = service.advance()
    return received


def _show_service(
    service: "Service", json_output: bool, received: "list[Signals]", views: "Sequence[View]" = ()
) -> None:
    """Run one session in the terminal's views and in others."""
    run = service.session.id if json_output else None
    with _outlets(run, service.source.live, received) as out:
        service.run([*_views(service.session, service.classifier.bundle.manifest.name, json_output, out), *views])


def _run_with_console(
    ready: "Configuration",
    first: "Service",
    open_service: "Callable[[float | None, str | None, int], Service]",
    json_output: bool,
    sender: "Sender | None",
) -> "list[Signals]":
    """Run one session, and those that browsers order, until a signal; returns the signals."""
    from device.capture.microphone import MicrophoneSource
    from device.console.desk import Desk, Order, console_line
    from device.listening.live import stopped_by_signals
    from device.service import colleague_service
    from device.view.supervisor import Supervisor
    from firmware_config.passports import find_passport

    waiting = [first]

    def opened(order: Order) -> "Service":
        if order.do == "calibrate":
            return colleague_service(ready, find_passport(order.passport), order.seconds, _warn)
        return waiting.pop() if waiting else open_service(order.age_years, order.site, order.place)

    def show(service: "Service", view: "View") -> None:
        _show_service(service, json_output, received, [view])

    desk = Desk(opened, show, lambda: MicrophoneSource(ready.settings.audio), gives_up=ready.service)
    with console_line(ready, desk.take, _warn) as line, stopped_by_signals(desk) as received:
        typer.echo(f"{PROGRAM}: the console is at {line.url}", err=True)
        supervisor = Supervisor(door=sender)
        desk.run(line, _warn, supervisor.idle)
        supervisor.stop(desk.ending)
    return received


@contextmanager
def _outlets(session: str | None, live: bool, received: "list[Signals]") -> "Iterator[TextIO]":
    """Stdout and stderr in a form that never blocks the session; yields stdout's.

    `session` is that of JSON lines, None for words.
    """
    from contextlib import redirect_stderr

    from device.view.json_lines import stamped
    from device.view.outlet import Outlet

    def notice(lines: int) -> str:
        note = f"{lines} lines are missing here: the reader was too slow"
        value = {"type": "unshown", "lines": lines, "note": note}
        return f"{note if session is None else stamped(value, session)}\n"

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
    ray: Annotated[
        str,
        typer.Option("--ray", metavar="ADDRESS", help="Of a Ray cluster that sees PATH and the bundle; docs/scale.md."),
    ] = "",
    config: ConfigOption = None,
) -> int:
    """Give each recording a verdict, as fast as possible: on all cores, or with --ray on a cluster.

    Folders are searched for everything that looks like sound. A recording that cannot be read is an error with exit
    code 2; the others are still screened. `--age` and `--site` apply to all of them.
    """
    from collections import Counter
    from contextlib import ExitStack, closing

    from device.listening.results import Results
    from device.listening.screening import ScreenOptions, find_recordings, model, screen
    from device.model.opening import chosen_bundle
    from device.view.json_lines import stamped

    run = secrets.token_hex(16)
    settings = _settings(config, bundle, precision, sensitivity, channel=channel)
    # every process of the screening takes the same bundle, whatever is installed meanwhile
    fixed = settings.bundle.model_copy(update={"path": str(chosen_bundle(settings.bundle, _warn).path)})
    settings = settings.model_copy(update={"bundle": fixed})
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
        for screened in _with_progress(screen(left, settings, options, ray), len(left)):
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
                value = {**screened.as_json(), "type": "recording"}
                line = stamped(value, run) if json_output else wrapped(_screened_line(screened), sys.stdout)
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
        typer.Option("--role", help="A viewer looks, an examiner examines too, an admin deletes and calibrates too."),
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
    session: Annotated[
        int | None,
        typer.Argument(
            help="Number of a session; with --format manifest all by default.",
            metavar="[SESSION]",
            min=1,
            max=2**63 - 1,
        ),
    ] = None,
    form: Annotated[
        Literal["csv", "json", "manifest"],
        typer.Option("--format", help="csv has the cycles, json everything, manifest is a corpus of opinions."),
    ] = "csv",
    out: Annotated[
        Path | None, typer.Option("--out", help="A new file, else stdout; a new folder of a corpus.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Write a session for other programs, or clinicians' opinions with their sound for the trainer."""
    from device.store.sessions import export_session, read_session

    if form == "manifest":
        _export_opinions(session, out, config)
        return
    if session is None:
        raise typer.BadParameter("name one; see 'respsam-device sessions list'", param_hint="SESSION")
    found = read_session(_store_file(config), session, _warn)
    with _new_file(out) as file:
        export_session(found, form, file)


@contextmanager
def _new_file(out: Path | None) -> "Iterator[TextIO]":
    """The new file of --out, or stdout; BadParameter when it cannot be written."""
    if out is None:
        yield sys.stdout
        return
    try:
        with out.open("x", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise typer.BadParameter(
            f"{out} cannot be written ({error.strerror}); name a new file", param_hint="--out"
        ) from error


def _export_opinions(session: int | None, out: Path | None, config: Path | None) -> None:
    from device.store.opinions import export_opinions
    from device.store.sealing import read_key

    if out is None:
        raise typer.BadParameter("a corpus is a folder; name a new one", param_hint="--out")
    store = _settings(config).store
    for line in export_opinions(store.file, out, session, read_key(store)).lines():
        typer.echo(line, err=True)
    typer.echo(f"next: trainer data describe --corpus manifest --data {printable(out)}", err=True)


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
    _confirm("\n".join([*about, "remove this session and its audio for good?"]), yes)
    delete_session(file, session)
    typer.echo(f"session {session} is removed", err=True)


@exams.command("list")
def exams_list(json_output: JsonOption = False, config: ConfigOption = None) -> None:
    """List the exams that the console has stored, the newest first."""
    from device.store.exams import EXAM_COLUMNS, read_exams
    from device.store.sessions import cells

    rows = read_exams(_store_file(config)).listed()
    if json_output:
        for row in rows:
            typer.echo(json.dumps(row))
    else:
        _print_table(cells(rows, EXAM_COLUMNS), "no exams are stored")


@exams.command("export")
def exams_export(
    exam: Annotated[
        int, typer.Argument(help="Number of an exam; see 'exams list'.", metavar="EXAM", min=1, max=2**63 - 1)
    ],
    form: Annotated[
        Literal["json", "fhir"],
        typer.Option("--format", help="json is the exam as stored, fhir a Bundle of FHIR R4 (extra fhir)."),
    ] = "json",
    out: OutOption = None,
    config: ConfigOption = None,
) -> None:
    """Write an exam for other programs."""
    from device.console.fhir import fhir_bundle
    from device.store.exams import read_exams

    document = read_exams(_store_file(config)).document(exam)
    found = fhir_bundle(document) if form == "fhir" else document
    with _new_file(out) as file:
        file.write(json.dumps(found, indent=1) + "\n")


@app.command()
def wipe(
    expired: Annotated[
        bool,
        typer.Option("--expired", help="Only the sound that is beyond store.audio_days and store.audio_megabytes."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """Remove everything stored of patients for good: sessions, sound, and what was set aside; bundles stay.

    With store.audio_key the key is replaced too, so that nothing that is left on the disk can be read as sound.
    """
    from device.store.wiping import remove_expired, wipe

    store = _settings(config).store
    if expired:
        if warning := remove_expired(store):
            _warn(warning)
        return
    _confirm(f"remove all sessions and all sound of {store.file} for good?", yes)
    wiped = wipe(store)
    new_key = "; the key of the sound was replaced" * wiped.new_key
    typer.echo(f"{counted(wiped.files, 'file')} removed, {wiped.megabytes:.1f} MB{new_key}", err=True)


def _require_terminal(yes: bool) -> None:
    """BadParameter without a terminal, where nobody can confirm, unless --yes is given."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("stdin is no terminal, so nobody can confirm; give the option", param_hint="--yes")


def _confirm(question: str, yes: bool) -> None:
    """Ask on a terminal, unless --yes is given."""
    _require_terminal(yes)
    if not yes:
        typer.confirm(question, abort=True, err=True)


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
    from device.store.sealing import read_key

    store = _settings(config).store
    done = replay(store.file, session, bundle, anyway=anyway, warn=_warn, key=read_key(store))
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
    from device.model.engines import build_engine, open_gpu
    from device.model.opening import chosen_bundle

    settings = _settings(config, bundle)
    opened, gpu = chosen_bundle(settings.bundle, _warn), open_gpu()
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


@app.command("json-schema")
def json_schema() -> None:
    """Print the JSON Schema of the lines of 'listen --json', 'exam --json' and 'screen --json'."""
    from device.view.json_lines import schema

    typer.echo(json.dumps(schema(), indent=2))


@configuration.command("show")
def config_show(json_output: JsonOption = False, config: ConfigOption = None) -> None:
    """Show every setting in force, and where its value comes from."""
    from device.configuration import passport_here
    from firmware_config.settings import load

    loaded = load(config)
    if found := passport_here(loaded.settings):
        loaded = load(config, layers=[found.layer()])
    rows = [(key, value, loaded.origin(key)) for key, value in loaded.values().items()]
    if json_output:
        typer.echo("\n".join(json.dumps(dict(zip(("key", "value", "from"), row, strict=True))) for row in rows))
    else:
        _print_table([{"key": key, "value": json.dumps(value), "from": origin} for key, value, origin in rows], "")


@configuration.command("check")
def config_check(
    file: Annotated[Path | None, typer.Argument(help="A settings file; else that of --config.")] = None,
    config: ConfigOption = None,
) -> None:
    """Check a settings file with the environment; exit code 2 names file, line, key and the nearest valid one."""
    from firmware_config.board import check_board
    from firmware_config.passports import recognise
    from firmware_config.settings import load

    chosen = file or config
    loaded = load(chosen)
    check_board(loaded.settings.board)
    recognise("", loaded.settings.audio.passport)  # all passports can be read, and the named one is there
    changed = [key for key, layer in loaded.layers.items() if layer.kind != "default"]
    place = f"{printable(chosen)}: " if chosen else ""
    typer.echo(f"{place}all is right; {counted(len(changed), 'setting')} set, the others have their defaults")


@configuration.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a settings file."""
    from firmware_config.settings import schema

    typer.echo(json.dumps(schema(), indent=1))


@passport.command("list")
def passport_list(json_output: JsonOption = False) -> None:
    """List the passports: how each stethoscope is recognised, and its calibrations."""
    from firmware_config.passports import all_passports

    rows = [
        {
            "key": found.key,
            "name": found.passport.name,
            "made": "here" if found.own else "shipped",
            "recognised by": ", ".join((*found.passport.match.usb, *found.passport.match.names)),
            "calibrations": ", ".join(one.name for one in found.passport.calibrations),
        }
        for found in all_passports()
    ]
    if json_output:
        typer.echo("\n".join(map(json.dumps, rows)))
    else:
        _print_table(rows, "")


@passport.command("show")
def passport_show(
    key: Annotated[str, typer.Argument(help="Of 'passport list'; else that of the plugged-in stethoscope.")] = "",
    config: ConfigOption = None,
) -> None:
    """Show the facts of a passport with their sources."""
    from device.configuration import passport_needed
    from firmware_config.passports import find_passport, toml_text

    found = find_passport(key) if key else passport_needed(_settings(config))
    facts = found.passport.model_dump(exclude_none=True, exclude_defaults=True)
    typer.echo(f"# {found.key}: {printable(found.file)}\n{toml_text(facts)}", nl=False)


@passport.command("new")
def passport_new(
    name: Annotated[str, typer.Argument(help="What people call this stethoscope.")],
    seconds: Annotated[
        float, typer.Option("--seconds", min=5.0, max=600.0, callback=_not_nan, help="Of all three steps together.")
    ] = 110.0,
    replace: Annotated[bool, typer.Option("--replace", help="Measure again; calibrations are kept.")] = False,
    config: ConfigOption = None,
) -> None:
    """Make the passport of a stethoscope in two minutes: its noise, its band on a healthy chest, its loudest sound.

    Later plug-ins are compared with it. On a terminal every step waits for Enter.
    """
    from device.capture.microphone import MicrophoneSource
    from device.capture.stethoscope import SelfTest, record

    settings, test = _settings(config), SelfTest(name, replace=replace)
    for number, step in enumerate(test.steps, 1):
        what = f"{number} of {len(test.steps)}: {step.what}"
        if sys.stdin.isatty():
            typer.prompt(f"{what}, then Enter", "", show_default=False, err=True)
        else:
            typer.echo(what, err=True)
        opened = MicrophoneSource(settings.audio)
        test.add(opened.name, record(opened, step.share * seconds))
    for words in test.drift():
        _warn(f"{test.device}: {words}")
    made = test.save()
    typer.echo(f"{printable(test.file)}: {made}")


@app.command()
def calibrate(
    recordings: Annotated[
        Path | None, typer.Option("--recordings", help="A folder for each person, with a recording for each site.")
    ] = None,
    people: Annotated[int, typer.Option("--people", min=5, max=100, help="Healthy people to record.")] = 5,
    sites: Annotated[list[str] | None, typer.Option("--site", help="A site to record at; else four.")] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=5.0, max=600.0, callback=_not_nan, help="Sound at each site.")
    ] = 30.0,
    undo: Annotated[bool, typer.Option("--undo", help="Remove the last calibration of this stethoscope.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an interrupted calibration.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Write it without asking.")] = False,
    bundle: BundleOption = None,
    config: ConfigOption = None,
) -> None:
    """Let five healthy colleagues raise the sites' threshold for this stethoscope, within the bundle's bounds.

    It shows what would change before it writes the passport. Nothing is stored of the colleagues but probabilities and
    counts. An interrupted calibration goes on where it was.
    """
    from device.configuration import passport_needed
    from device.healthy import SITES, Colleagues, Uncalibrated, recorded_people, undo_calibration

    ready = _configure(config, _flags(bundle))
    found = passport_needed(ready.settings)
    if undo:
        removed, now = undo_calibration(found, ready.classifier.fingerprint)
        typer.echo(f"{removed.name} is removed; in force: {now.name if now else 'the threshold of the bundle'}")
        return
    _require_terminal(yes)
    base, asked = Uncalibrated.of(ready.classifier), sites or SITES
    colleagues = Colleagues(found, base, people, asked, restart=restart and recordings is None)
    if recordings is not None:
        recorded: People = recorded_people(recordings, ready.classifier, ready.settings.quality)
    else:
        recorded = _listen_to_colleagues(ready, colleagues, seconds)
    proposal = colleagues.propose(recorded)
    typer.echo("\n".join(proposal.lines()))
    _confirm("calibrate this stethoscope so?", yes)
    file = colleagues.save(proposal)
    typer.echo(f"{printable(file)}: calibration {proposal.calibration.name}; 'calibrate --undo' removes it")


def _listen_to_colleagues(ready: "Configuration", colleagues: "Colleagues", seconds: float) -> "People":
    """Listen to each person at each site; on a terminal Enter begins, and a site without a verdict is tried again."""
    from device.service import colleague_service

    sites = len(colleagues.asked)
    if there := sites - len(colleagues.waiting):
        typer.echo(
            f"{there} of {sites} sites are there already: an interrupted calibration goes on (--restart begins anew)",
            err=True,
        )
    while waiting := colleagues.waiting:
        person, site = waiting[0]
        if sys.stdin.isatty():
            what = f"{person}, {site}: stethoscope on the chest, breathe deeply, then Enter"
            typer.prompt(what, "", show_default=False, err=True)
        summary = colleague_service(ready, colleagues.passport, seconds, _warn).run()
        typer.echo(f"{person}, {site}: {summary.verdict}, {counted(summary.gradable, 'good breath')}", err=True)
        colleagues.take(summary, again=sys.stdin.isatty())
    return colleagues.draft.people


RootOption = Annotated[
    Path, typer.Option("--root", file_okay=False, help="Folder of the system to set up; else this one.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the changes and make none.")]


@app.command()
def provision(
    profile: Annotated[
        str | None, typer.Option("--profile", help="What the board is; else as before, or as the board's name says.")
    ] = None,
    root: RootOption = Path("/"),
    dry_run: DryRunOption = False,
) -> None:
    """Set up the service: units, udev rules, ALSA, journal, user. Shows the changes first, and repeats none."""
    from firmware_config.provisioning import activate, apply, default_profile, installed_program, plan_provision

    root = root.resolve()
    plan = plan_provision(profile or default_profile(root), installed_program(root), root)
    _show_plan(plan, root)
    if not dry_run:
        apply(plan)
        activate(root, restart=bool(plan.changes))


@app.command()
def unprovision(root: RootOption = Path("/"), dry_run: DryRunOption = False) -> None:
    """Restore what was there before 'provision'; the store stays."""
    from firmware_config.provisioning import apply, plan_unprovision, reload, stop

    root = root.resolve()
    plan = plan_unprovision(root)
    _show_plan(plan, root)
    if not dry_run:
        stop(root)
        apply(plan)
        reload(root)


def _show_plan(plan: "Plan", root: Path) -> None:
    for change in plan.changes:
        typer.echo(change.diff(), nl=False)
    for note in plan.notes:
        _warn(note)
    typer.echo(f"{printable(root)}: {counted(len(plan.changes), 'file')} to change", err=True)


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

    return load_settings(config, _flags(bundle, precision, sensitivity, no_store, channel))


def _flags(
    bundle: Path | None = None,
    precision: str | None = None,
    sensitivity: float | None = None,
    no_store: bool = False,
    channel: str | None = None,
) -> "dict[str, object]":
    """A command's flags by the keys of the settings; None where one is not given."""
    if channel not in (None, AUTO) and not channel.isdecimal():
        raise typer.BadParameter(f"{channel!r} is neither a number from 0 on nor {AUTO}", param_hint="--channel")
    return {
        "audio.channel": None if channel in (None, AUTO) else int(channel),
        "bundle.path": None if bundle is None else str(bundle),
        "bundle.precision": precision,
        "bundle.sensitivity": sensitivity,
        "store.enabled": False if no_store else None,
    }


def _source(
    name: str,
    fast: bool,
    seconds: float | None,
    settings: "Settings",
    channel: "Channel | None" = None,
    site: int = 0,
    waits: bool = False,
) -> "Source":
    """`device.service.open_source`, with a warning for each remark about a recording."""
    from device.capture.sources import FileSource
    from device.service import open_source

    opened = open_source(name, settings, fast=fast, seconds=seconds, channel=channel, site=site, waits=waits)
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
    from device.verdict.population import NOT_VALIDATED

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
