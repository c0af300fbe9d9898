"""One session from start to summary: the commands, a box's service and a notebook all call it.

startup: open the store. run: give every cycle to the store and to the views. shutdown: store and show the verdict, in
bounded time.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from device.bundle import BundleError
from device.capture.blocks import Source
from device.capture.microphone import MicrophoneSource
from device.capture.recording import Channel, looks_like_sound
from device.capture.sources import DemoSource, FileSource
from device.configuration import Configuration, configured
from device.listening.agreement import Agreement, agreement_of
from device.listening.cycle import CycleResult
from device.listening.live import Session
from device.model.classifier import Classifier
from device.model.opening import is_active, roll_back, watch
from device.mqtt import Sender
from device.signal import SAMPLE_RATE
from device.store.recorder import Beginning, Recorder, Store
from device.store.sessions import Warn
from device.verdict.circumstances import PLAIN, Circumstances
from device.verdict.population import Subject, not_validated
from device.verdict.summary import Summary
from device.view.log import LOG, LogView
from device.view.supervisor import SupervisorView
from device.view.view import View
from firmware_config.command_line import printable
from firmware_config.errors import RespSAMError
from firmware_config.passports import PassportFile
from firmware_config.settings import Settings, load_settings


class SourceError(RespSAMError):
    """An unknown source, or an option that this source does not have."""


def open_source(
    name: str | Path,
    settings: Settings,
    *,
    fast: bool = False,
    seconds: float | None = None,
    channel: Channel | None = None,
    site: int = 0,
    waits: bool = False,
) -> Source:
    """Open `mic`, `demo` or a recording; SourceError for anything else.

    `channel` replaces the settings' one; `site` is added to the demo's seed; `waits` for a microphone that is absent.
    """
    if name == "demo":
        return DemoSource(settings.demo.seed + site, max(settings.demo.seconds, seconds or 0.0), fast=fast)
    if name == "mic":
        if fast:
            raise SourceError("a microphone records in real time; leave --fast out")
        if channel == "auto":
            raise SourceError("the channel of a microphone must be a number")
        return MicrophoneSource(settings.audio, waits)
    path = Path(name)
    if not path.exists() and ("/" in str(name) or looks_like_sound(path)):
        raise SourceError(f"{printable(path)}: no such file; check the path")
    if not path.is_file():
        raise SourceError(
            f"{str(name)!r} is neither mic nor demo nor a recording (for folders there is 'respsam-device screen')"
        )
    return FileSource(path, fast=fast, channel=settings.audio.channel if channel is None else channel)


class Service:
    """A session as a service: `run` it once; `stop` ends it from any thread or signal handler.

    With `follow` a bundle that is installed meanwhile is used from the end of a stretch on: `run` returns, `advance`
    begins the next session on the same sound, and `run` is called again. `follow` is the configuration that the
    classifier is from.
    """

    def __init__(
        self,
        source: Source,
        classifier: Classifier,
        settings: Settings,
        subject: Subject | None = None,
        seconds: float | None = None,
        warn: Warn = LOG.warning,
        keep_cycles: bool = False,
        circumstances: Circumstances = PLAIN,
        follow: Configuration | None = None,
        sender: Sender | None = None,
    ) -> None:
        """`seconds` limits the sound; `warn` gets one line for each problem that does not end the session.

        `keep_cycles` collects the cycles without their samples (of a demo always): memory grows with the session.
        With a `sender` what is stored also goes to its broker.
        """
        self.source, self.classifier, self.settings, self.warn = source, classifier, settings, warn
        self.subject = subject or Subject()
        self.session = Session(source, classifier, settings.quality, seconds, self.not_validated, circumstances)
        self.cycles: list[CycleResult] = []
        self.last = True
        """Whether the program ends with this session, as its supervisor learns."""
        self._keep_cycles = keep_cycles or source.demo
        self._recorder = Recorder(None, warn)
        self._seconds, self._stopped, self._advanced = seconds, "", False
        self._follow, self._sender = follow, sender
        self._successor: Configuration | None = None
        self._installed = None if follow is None else watch(settings.bundle)

    def stop(self, note: str) -> None:
        """End at the next block; safe in a signal handler."""
        self._stopped = note
        self.session.stop(note)

    def advance(self) -> bool:
        """Begin the next session on the same sound with the bundle installed meanwhile; False without one."""
        blocks, self.session.left = self.session.left, None
        if self._seconds is not None:
            self._seconds -= self.session.timeline.position / SAMPLE_RATE
        over = self._stopped or (self._seconds is not None and self._seconds <= 0.0)
        if self._successor is None or blocks is None or over:
            return False
        self._follow, self._successor, self._advanced, self.cycles = self._successor, None, True, []
        self.classifier, circumstances = self._follow.classifier, self._follow.circumstances
        self.subject = replace(self.subject, fallback=self.classifier.fallback)
        common = (self.settings.quality, self._seconds, self.not_validated)
        self.session = Session(self.source, self.classifier, *common, circumstances, blocks)
        if self._stopped:  # by a signal in between
            self.session.stop(self._stopped)
        return True

    def run(self, views: Sequence[View] = ()) -> Summary:
        """Listen until the source ends or the session is stopped; source and model errors come after shutdown."""
        self._startup()
        with ExitStack() as stack:
            supervised = SupervisorView(self.session, door=self._sender, last=self.last)
            watching: list[View] = [stack.enter_context(view) for view in (LogView(self.session), supervised, *views)]
            self.session.watchers = watching
            try:
                for item in self.session.run():
                    self._recorder.add(item)
                    if self._keep_cycles and isinstance(item, CycleResult):
                        self.cycles.append(item.without_samples())
                    for view in watching:
                        view.show(item)
                    self._look_for_successor()
            except BundleError as error:
                roll_back(self.settings.bundle, self.classifier.bundle, str(error), self.warn)
                raise
            finally:
                # also when the microphone is lost: the results are stored and shown before the error
                self._shutdown(watching)
        return self.session.summary

    def not_validated(self) -> tuple[str, ...]:
        """Why the model is not validated for this subject and this source, as far as is known now; empty if it is."""
        source = self.source
        doubt = source.unverified if isinstance(source, MicrophoneSource) else ""
        subject = replace(self.subject, highest_hz=source.highest_hz)
        return (*not_validated(self.classifier.bundle.manifest, subject), *[doubt] * bool(doubt))

    @property
    def stored_as(self) -> int | None:
        """The number of the stored session; None while nothing is stored."""
        return self._recorder.session

    @property
    def agreement(self) -> Agreement | None:
        """Of the flags with the simulated breaths; None when the sound is real, or began in another session."""
        if self._advanced or not isinstance(self.source, DemoSource):
            return None
        return agreement_of(self.cycles, self.source.breaths)

    def _look_for_successor(self) -> None:
        """Load a bundle that was installed meanwhile, while sound waits, and end the session between two stretches."""
        if self._follow is None or self._installed is None:
            return
        if not self.session.between_stretches or not self._installed.changed():
            return
        if is_active(self.settings.bundle, self.classifier.bundle):
            return
        try:
            successor = self._follow.with_active_bundle(self.warn)
        except RespSAMError as error:
            self.warn(f"{error}; {self.classifier.bundle.manifest.name} is used until the next start")
            return
        if successor.classifier.fingerprint != self.classifier.fingerprint:
            self._successor = successor
            self.session.hand_over(f"{successor.classifier.bundle.manifest.name} is used from here on")

    def _startup(self) -> None:
        name, classifier = self.classifier.bundle.manifest.name, self.classifier
        LOG.info("session begins", extra={"fields": {
            "demo": self.source.demo, "live": self.source.live, "bundle": name, "sha256": classifier.fingerprint[:12],
            "precision": classifier.file.precision, "settings": self.settings.fingerprint()[:12],
            "stored": self.settings.store.enabled, **self.session.circumstances.as_json(),
        }})  # fmt: skip
        beginning = Beginning(
            self.source.name,
            self.source.demo,
            classifier.fingerprint,
            name,
            self.settings,
            self.subject.site or "",
            self.not_validated(),
            self.session.circumstances,
            classifier.site_rule.threshold,
            self.session.id if self._sender else "",
        )
        if self._sender:
            self._sender.use(classifier.fingerprint, name)
        self._recorder = Recorder((lambda: Store(beginning)) if self.settings.store.enabled else None, self.warn)

    def _shutdown(self, watching: Sequence[View]) -> None:
        summary, agreement = self.session.summary, self.agreement
        self._recorder.end(summary, agreement)
        for view in watching:
            view.end(summary, agreement)


def without_store(settings: Settings) -> Settings:
    """The same settings, but nothing is stored."""
    return settings.model_copy(update={"store": settings.store.model_copy(update={"enabled": False})})


def colleague_service(ready: Configuration, passport: PassportFile, seconds: float, warn: Warn) -> Service:
    """A session at one site of a healthy colleague, without a calibration; nothing of it is stored."""
    settings = without_store(ready.load(ready.config, [passport.layer()]).settings)
    common = (ready.classifier, settings, Subject(live=True), seconds, warn)
    return Service(MicrophoneSource(settings.audio), *common, circumstances=ready.circumstances)


@dataclass(frozen=True)
class SessionResult:
    """The summary of one session, and its cycles without their samples."""

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
) -> SessionResult:
    """Run one session on `demo`, `mic` or a recording, on at most `seconds` of sound; nothing is stored.

    A microphone is always in real time, under the calibration of its passport; the gain is that of the settings.
    Raises SourceError, AudioError, CaptureError, BundleError, PassportError and SettingsError.
    """
    settings = without_store(settings or load_settings())
    ready = configured(settings)
    opened = open_source(source, settings, fast=fast and source != "mic", seconds=seconds)
    ready = ready.with_stethoscope(opened, LOG.warning)
    subject = Subject(age_years, site, live=opened.live, fallback=ready.classifier.fallback)
    under = ready.circumstances
    service = Service(opened, ready.classifier, settings, subject, seconds, keep_cycles=True, circumstances=under)
    return SessionResult(service.run(), tuple(service.cycles))
