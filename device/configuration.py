"""What a session begins with: settings, model and stethoscope; a service in safe mode takes the last good settings."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from device.capture.blocks import Source
from device.capture.microphone import NAMELESS, MicrophoneSource
from device.capture.process import CaptureError, find_device, input_devices
from device.capture.stethoscope import PlugInTest
from device.model.classifier import Classifier
from device.model.opening import open_classifier
from device.store.sessions import Warn
from device.verdict.circumstances import PLAIN, Circumstances
from firmware_config.errors import RespSAMError
from firmware_config.passports import PassportError, PassportFile, recognise
from firmware_config.safe_mode import keep_as_good, last_good_file, safe_mode_words
from firmware_config.settings import Layer, Loaded, Settings

Load = Callable[[Path | None, Sequence[Layer]], Loaded]
"""Load the settings of a file with the layers of a passport; a command adds its flags."""


@dataclass(frozen=True)
class Configuration:
    """Settings, the model that they choose, and under what its verdicts are given."""

    settings: Settings
    classifier: Classifier
    load: Load
    config: Path | None = None
    """The settings file in force; in safe mode the last good one."""
    circumstances: Circumstances = PLAIN
    service: bool = False
    passport: PassportFile | None = None
    """Of the stethoscope; None without one."""

    def with_stethoscope(self, source: Source, warn: Warn) -> "Configuration":
        """The configuration for this source: a microphone's passport sets gain, calibration and plug-in test.

        PassportError when two passports match or one is damaged; a service goes on without a passport instead.
        """
        if not isinstance(source, MicrophoneSource):
            return self
        try:
            found = recognise("" if source.name == NAMELESS else source.name, self.settings.audio.passport)
        except RespSAMError as error:
            if not self.service:
                source.close()
                raise
            warn(f"{error}; listening without a passport")
            return self
        if found is None:
            return self
        settings = self.load(self.config, [found.layer()]).settings
        source.gain_db = settings.audio.gain_db
        if found.passport.measured is not None:
            source.plug_in_test = PlugInTest(found.passport.measured, source.gain_db)
        return replace(self, settings=settings, passport=found).with_classifier(self.classifier, warn)

    def with_classifier(self, classifier: Classifier, warn: Warn) -> "Configuration":
        """The configuration with this classifier, under the passport's calibration for its bundle."""
        if self.passport is None:
            return replace(self, classifier=classifier)
        calibrated, name = calibrated_classifier(classifier, self.passport, warn)
        circumstances = replace(self.circumstances, passport=self.passport.key, calibration=name)
        return replace(self, classifier=calibrated, circumstances=circumstances)

    def with_active_bundle(self, warn: Warn) -> "Configuration":
        """The configuration with the bundle that is active now; raises what `open_classifier` raises."""
        return self.with_classifier(open_classifier(self.settings.bundle, warn), warn)


def calibrated_classifier(classifier: Classifier, found: PassportFile, warn: Warn) -> tuple[Classifier, str]:
    """The classifier with the passport's calibration and its name; the classifier itself and '' without one."""
    calibration = found.passport.calibration(classifier.fingerprint)
    if calibration is None:
        if found.passport.calibrations:
            warn(f"passport {found.key}: it was calibrated for another bundle; run 'respsam-device calibrate' again")
        return classifier, ""
    if calibration.bundle_threshold != classifier.site_rule.threshold:
        warn(
            f"passport {found.key}: calibration {calibration.name} was made at the site threshold "
            f"{calibration.bundle_threshold:.3f}, now it is {classifier.site_rule.threshold:.3f} "
            "(bundle.sensitivity); it is not applied"
        )
        return classifier, ""
    return classifier.with_site_threshold(calibration.threshold), calibration.name


def configure(load: Load, config: Path | None, warn: Warn, *, service: bool = False) -> Configuration:
    """The configuration of a settings file; SettingsError and BundleError as its parts raise them.

    A service with a broken file takes the last good one: the settings are valid and the bundle opens. What works is
    kept as the last good one.
    """
    try:
        loaded = load(config, ())
        classifier = open_classifier(loaded.settings.bundle, warn)
    except RespSAMError as error:
        kept = last_good_file(config) if service and config is not None else None
        if kept is None or not kept.is_file():
            raise
        settings = load(kept, ()).settings
        safe_mode = Circumstances(safe_mode=safe_mode_words(str(error), kept))
        warn(f"SAFE MODE: {safe_mode.safe_mode}")
        return Configuration(settings, open_classifier(settings.bundle, warn), load, kept, safe_mode, service)
    if service and config is not None:
        try:
            keep_as_good(config, loaded.text)
        except (RespSAMError, OSError) as error:
            warn(f"the settings cannot be kept for safe mode: {error}")
    return Configuration(loaded.settings, classifier, load, config, PLAIN, service)


def configured(settings: Settings) -> Configuration:
    """The configuration of settings that are not loaded again: a passport does not set their gain."""
    return Configuration(settings, open_classifier(settings.bundle), lambda _file, _layers: Loaded(settings, {}, ""))


def passport_here(settings: Settings) -> PassportFile | None:
    """The passport of the microphone that the settings choose; None without one. PassportError as `recognise`."""
    name = settings.audio.device
    with suppress(CaptureError):
        name = name if settings.audio.passport else str(find_device(input_devices(), name)["name"])
    return recognise(name, settings.audio.passport)


def passport_needed(settings: Settings) -> PassportFile:
    """As `passport_here`; PassportError without one."""
    found = passport_here(settings)
    if found is None:
        raise PassportError(
            f"no passport for {settings.audio.device or 'the default microphone'}: make one with 'respsam-device "
            "passport new', or name one with audio.passport"
        )
    return found
