"""`respsam-device`: listen and screen. Parses and prints; the work is in functions that a notebook could call."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from firmware_config.command_line import ConfigOption, application, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from device.agreement import Agreement
    from device.live import Auscultation, CycleResult
    from device.screening import Screened
    from device.sources import Source
    from device.view import View
    from firmware_config.settings import Settings

PROGRAM = "respsam-device"
INTERRUPTED = 130

app = application("Listen to breathing through a digital stethoscope and flag abnormal cycles. A screening aid.")

BundleOption = Annotated[Path | None, typer.Option("--bundle", help="Bundle folder or .respsam; else the shipped one.")]
SensitivityOption = Annotated[
    float | None,
    typer.Option(
        "--sensitivity", min=0.0, max=1.0, help="Take the thresholds at which held-out patients reached this."
    ),
]
PrecisionOption = Annotated[str | None, typer.Option("--precision", help="auto, fp32 or int8.")]


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
    fast: Annotated[bool, typer.Option("--fast", help="A file or the demo without waiting.")] = False,
    seconds: Annotated[float | None, typer.Option("--seconds", min=0.1, help="Stop after so much sound.")] = None,
    age: Annotated[float | None, typer.Option("--age", min=0.0, max=120.0, help="The patient's age in years.")] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="Where the stethoscope sits, in the bundle's words.")
    ] = None,
    sensitivity: SensitivityOption = None,
    no_store: Annotated[bool, typer.Option("--no-store", help="Keep nothing of this session.")] = False,
    config: ConfigOption = None,
) -> int:
    """Listen, show every breath cycle, and give a verdict at the end.

    Ctrl-C and SIGTERM end the session with its summary; a service that is stopped has done its work (exit 0), an
    interrupted user's command says so (130).
    """
    from contextlib import ExitStack
    from dataclasses import replace
    from signal import Signals

    from device.classifier import open_classifier
    from device.live import Auscultation, CycleResult, stopped_by_signals
    from device.population import Subject, not_validated
    from device.store import Recorder, Store

    flags = {"store.enabled": False if no_store else None, "bundle.sensitivity": sensitivity}
    settings = _settings(config, bundle, precision, flags)
    classifier = open_classifier(settings.bundle)
    opened = _source(source, fast, seconds, settings)
    subject = Subject(age, site, opened.highest_hz, live=source == "mic")
    outside = not_validated(classifier.bundle.manifest, subject)
    session = Auscultation(opened, classifier, settings.quality, seconds, outside)

    def store() -> Store:
        return Store(settings.store.file, opened.name, opened.demo, classifier.fingerprint, settings.fingerprint())

    simulated: list[CycleResult] = []
    recorder = Recorder(store if settings.store.enabled else None, _warn)
    with stopped_by_signals(session) as came, ExitStack() as stack:
        views = [stack.enter_context(view) for view in _views(session, classifier.bundle.manifest.name, json_output)]
        try:
            for happened in session.run():
                recorder.add(happened)
                if opened.demo and isinstance(happened, CycleResult):
                    simulated.append(replace(happened, samples=happened.samples[:0]))
                for view in views:
                    view.show(happened)
        finally:
            # also when the microphone goes: what was heard is kept and printed before the error
            recorder.end(session.summary)
            for view in views:
                view.end(session.summary, _agreement(opened, simulated))
    return INTERRUPTED if Signals.SIGINT in came else 0


@app.command()
def screen(
    paths: Annotated[list[Path], typer.Argument(help="Recordings (wav, flac) or folders of them.", metavar="PATH...")],
    bundle: BundleOption = None,
    precision: PrecisionOption = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object a recording on stdout.")] = False,
    sensitivity: SensitivityOption = None,
    config: ConfigOption = None,
) -> int:
    """Give each recording a verdict, as fast as possible.

    A recording that cannot be read is named, the others go on, and the exit code is 2.
    """
    import json
    from collections import Counter

    from device.screening import find_recordings
    from device.screening import screen as screened

    settings = _settings(config, bundle, precision, {"bundle.sensitivity": sensitivity})
    recordings = find_recordings(paths)
    counts: Counter[str] = Counter()
    for one in _with_progress(screened(recordings, settings.bundle, settings.quality), len(recordings)):
        for warning in one.warnings:
            _warn(warning)
        if one.summary is None:
            typer.echo(f"{PROGRAM}: error: {one.error}", err=True)
            counts["could not be read"] += 1
            continue
        counts[one.summary.verdict] += 1
        typer.echo(json.dumps(one.as_json()) if json_output else _screened_line(one))
    if len(recordings) > 1:
        total = ", ".join(f"{count} {what}" for what, count in counts.items())
        typer.echo(f"{len(recordings)} recordings: {total}", err=True)
    return 2 if counts["could not be read"] else 0


def _settings(config: Path | None, bundle: Path | None, precision: str | None, flags: dict[str, Any]) -> "Settings":
    from firmware_config.settings import load_settings

    path = None if bundle is None else str(bundle)
    return load_settings(config, {"bundle.path": path, "bundle.precision": precision, **flags})


def _source(source: str, fast: bool, seconds: float | None, settings: "Settings") -> "Source":
    from device.screening import told_warnings
    from device.sources import DemoSource, FileSource, MicrophoneSource

    if source == "demo":
        return DemoSource(settings.demo.seed, max(settings.demo.seconds, seconds or 0.0), fast=fast)
    if source == "mic":
        if fast:
            raise typer.BadParameter("a microphone cannot be heard faster; leave --fast out", param_hint="--fast")
        audio = settings.audio
        return MicrophoneSource(
            audio.device, audio.sample_rate, audio.channel, audio.block_seconds, audio.queue_seconds
        )
    if not Path(source).is_file():
        raise typer.BadParameter(
            f"{source!r} is neither mic nor demo nor a recording (for folders there is '{PROGRAM} screen')",
            param_hint="--source",
        )
    with told_warnings() as told:
        opened = FileSource(Path(source), fast=fast)
    for warning in told:
        _warn(warning)
    return opened


def _views(session: "Auscultation", bundle_name: str, json_output: bool) -> "list[View]":
    """JSON or lines on stdout; the live page on stdout's terminal, or beside JSON that goes elsewhere on stderr's."""
    from rich.console import Console

    from device.view import JsonView, LiveView, PlainView

    demo = session.source.demo
    console = Console(stderr=json_output)
    # isatty rather than rich's own guess, which FORCE_COLOR in the environment changes
    live: list[View] = []
    if console.file.isatty() and not console.is_dumb_terminal:
        live = [LiveView(session, bundle_name, console)]
    if not json_output:
        return live or [PlainView(sys.stdout, demo)]
    return [JsonView(sys.stdout, demo), *([] if sys.stdout.isatty() else live)]


def _agreement(source: "Source", cycles: "list[CycleResult]") -> "Agreement | None":
    """None unless the sound was simulated."""
    from device.agreement import agreement
    from device.sources import DemoSource

    return agreement(cycles, source.truth.breaths) if isinstance(source, DemoSource) else None


def _with_progress(screened: "Iterator[Screened]", total: int) -> "Iterator[Screened]":
    """A bar on stderr's terminal, unless the verdicts scroll by on one."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = [*Progress.get_default_columns(), MofNCompleteColumn()]
    shown = console.file.isatty() and not sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not shown) as bar:
        yield from bar.track(screened, total=total, description="screening")


def _screened_line(one: "Screened") -> str:
    summary = one.summary
    assert summary is not None
    likely = "   -" if summary.probability is None else f"{summary.probability:.2f}"
    reasons = f"  ({'; '.join(summary.reasons)})" if summary.reasons else ""
    return f"{summary.verdict:<15}  {likely}  {summary.cycles:3d} cycles  {one.recording}{reasons}"


def _warn(message: str) -> None:
    typer.echo(f"{PROGRAM}: warning: {message}", err=True)
