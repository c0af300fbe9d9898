"""One auscultation from its start to its summary: what the commands, a box's service and a notebook call.

startup: bundle, source and store are open. run: every cycle goes to the store and to whoever watches.
shutdown: the verdict is stored and shown, within bounded time.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from device.capture.blocks import Source
from device.capture.microphone import MicrophoneSource
from device.capture.recording import Channel, looks_like_sound
from device.capture.sources import DemoSource, FileSource
from device.listening.agreement import Agreement, agreement
from device.listening.cycle import CycleResult
from device.listening.live import Auscultation
from device.model.classifier import Classifier
from device.model.opening import open_classifier
from device.store.recorder import Beginning, Recorder, Store
from device.verdict.population import Subject, not_validated
from device.verdict.summary import Summary
from device.view.log import LogView
from device.view.view import View
from firmware_config.command_line import printable
from firmware_config.errors import RespSAMError
from firmware_config.settings import Settings, load_settings

LOG = logging.getLogger("device")
Warn = Callable[[str], None]


class SourceError(RespSAMError):
    """Words that name no source, or one that cannot do what was asked."""


def open_source(
    name: str | Path,
    settings: Settings,
    *,
    fast: bool = False,
    seconds: float | None = None,
    channel: Channel | None = None,
    site: int = 0,
) -> Source:
    """`mic`, `demo`, or a recording; SourceError for anything else.

    `channel` is over the settings', and `site` varies a demo.
    """
    if name == "demo":
        return DemoSource(settings.demo.seed + site, max(settings.demo.seconds, seconds or 0.0), fast=fast)
    if name == "mic":
        if fast:
            raise SourceError("a microphone cannot be heard faster; leave --fast out")
        if channel == "auto":
            raise SourceError("of a microphone the channel must be a number")
        return MicrophoneSource(settings.audio)
    path = Path(name)
    if not path.exists() and ("/" in str(name) or looks_like_sound(path)):
        raise SourceError(f"{printable(path)}: no such file; check the path")
    if not path.is_file():
        raise SourceError(
            f"{str(name)!r} is neither mic nor demo nor a recording (for folders there is 'respsam-device screen')"
        )
    return FileSource(path, fast=fast, channel=settings.audio.channel if channel is None else channel)


class Service:
    """The live daemon of one session: make it, `run` it once, `session.stop` it from anywhere."""

    def __init__(
        self,
        source: Source,
        classifier: Classifier,
        settings: Settings,
        subject: Subject | None = None,
        seconds: float | None = None,
        warn: Warn = LOG.warning,
        keep_cycles: bool = False,
    ) -> None:
        """`seconds` of sound at most; `warn` gets one line for whatever goes wrong beside the listening.

        `keep_cycles` (a demo's always are) keeps the cycles without their samples, which grows with the session.
        """
        self.source, self.classifier, self.settings, self.warn = source, classifier, settings, warn
        self.subject = subject or Subject()
        self.session = Auscultation(source, classifier, settings.quality, seconds, self.not_validated)
        self.cycles: list[CycleResult] = []
        self._keep_cycles = keep_cycles or source.demo
        self._recorder = Recorder(None, warn)

    def run(self, views: Sequence[View] = ()) -> Summary:
        """Listen until the source ends or somebody stops it; errors of source and model come after the shutdown."""
        self._startup()
        with ExitStack() as stack:
            watching: list[View] = [stack.enter_context(view) for view in (LogView(self.session), *views)]
            try:
                for happened in self.session.run():
                    self._recorder.add(happened)
                    if self._keep_cycles and isinstance(happened, CycleResult):
                        self.cycles.append(happened.without_samples())
                    for view in watching:
                        view.show(happened)
            finally:
                # also when the microphone goes: what was heard is kept and shown before the error
                self._shutdown(watching)
        return self.session.summary

    def not_validated(self) -> tuple[str, ...]:
        """Why a verdict on this subject through this source is outside of what was validated, as is known now."""
        source = self.source
        doubt = source.unverified if isinstance(source, MicrophoneSource) else ""
        subject = replace(self.subject, highest_hz=source.highest_hz)
        return (*not_validated(self.classifier.bundle.manifest, subject), *[doubt] * bool(doubt))

    @property
    def agreement(self) -> Agreement | None:
        """With the breaths that were simulated; None unless the sound was."""
        return agreement(self.cycles, self.source.breaths) if isinstance(self.source, DemoSource) else None

    def _startup(self) -> None:
        name, classifier = self.classifier.bundle.manifest.name, self.classifier
        LOG.info("session begins", extra={"fields": {
            "demo": self.source.demo, "live": self.source.live, "bundle": name, "sha256": classifier.fingerprint[:12],
            "precision": classifier.file.precision, "settings": self.settings.fingerprint()[:12],
            "stored": self.settings.store.enabled,
        }})  # fmt: skip
        beginning = Beginning(
            self.source.name,
            self.source.demo,
            classifier.fingerprint,
            name,
            self.settings,
            self.subject.site or "",
            self.not_validated(),
        )
        self._recorder = Recorder((lambda: Store(beginning)) if self.settings.store.enabled else None, self.warn)

    def _shutdown(self, watching: Sequence[View]) -> None:
        summary = self.session.summary
        self._recorder.end(summary)
        for view in watching:
            view.end(summary, self.agreement)


@dataclass(frozen=True)
class Auscultated:
    """What one session came to, and its cycles without their samples."""

    summary: Summary
    cycles: tuple[CycleResult, ...]


def auscultate(
    source: str | Path = "demo",
    *,
    seconds: float | None = None,
    fast: bool = True,
    age_years: float | None = None,
    site: str | None = None,
    settings: Settings | None = None,
) -> Auscultated:
    """One session at one site: `demo`, `mic` or a recording, at most `seconds` of sound; nothing is stored.

    A microphone is heard in real time. Raises what the source, the bundle or the settings have against it.
    """
    settings = settings or load_settings()
    settings = settings.model_copy(update={"store": settings.store.model_copy(update={"enabled": False})})
    classifier = open_classifier(settings.bundle)
    opened = open_source(source, settings, fast=fast and source != "mic", seconds=seconds)
    subject = Subject(age_years, site, live=opened.live, fallback=classifier.fallback)
    service = Service(opened, classifier, settings, subject, seconds, keep_cycles=True)
    return Auscultated(service.run(), tuple(service.cycles))
