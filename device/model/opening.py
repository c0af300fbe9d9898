"""A bundle, loaded into the fastest engine that this machine has for it."""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from device.bundle import DEFAULT_BUNDLE, Bundle, BundleError, read_bundle
from device.model.classifier import Classifier, fallback_providers, self_test
from device.model.engines import open_engine
from device.model.tensorrt import TensorRTError
from device.slots import STATE, Slots, Watch
from firmware_config.errors import RespSAMError
from firmware_config.settings import TRUST_OF_THE_BOX, BundleSettings, Settings, SettingsError, load_settings
from firmware_config.trust import Trust

LOG = logging.getLogger("device")


def open_bundle(path: str | Path | None = None, settings: Settings | None = None) -> Classifier:
    """Load the bundle at `path`, else that of the settings, else the installed or shipped one.

    BundleError and TrustError as `open_classifier`.
    """
    chosen = (settings or load_settings()).bundle
    return open_classifier(chosen if path is None else chosen.model_copy(update={"path": str(path)}))


def trust_of(settings: BundleSettings) -> Trust:
    """The keys that the settings choose; a user without a home folder has none but the box's."""
    try:
        return Trust(settings.trusted)
    except SettingsError:
        return Trust(TRUST_OF_THE_BOX)


def open_slots(settings: BundleSettings) -> Slots:
    """The slots that the settings choose; SettingsError for a user without a home folder."""
    return Slots(settings.installed, trust_of(settings))


def watch(settings: BundleSettings) -> Watch | None:
    """Notices when another bundle is activated; None where the settings name the bundle."""
    try:
        return None if settings.chosen is not None else Watch(settings.installed / STATE)
    except SettingsError:
        return None


def bundle_of(settings: BundleSettings, fingerprint: str) -> Path | None:
    """The installed or shipped bundle with this fingerprint; None without one, or where the settings name a bundle."""
    if settings.chosen is not None:
        return None
    with suppress(RespSAMError):
        slots = open_slots(settings)
        kept = slots.state().holds(fingerprint)
        if kept is not None:
            return slots.path(kept)
    return DEFAULT_BUNDLE if read_bundle(DEFAULT_BUNDLE).fingerprint == fingerprint else None


def is_active(settings: BundleSettings, bundle: Bundle) -> bool:
    """Whether this is the bundle that the next start takes, as far as that can be found out."""
    try:
        current = open_slots(settings).state().current
    except RespSAMError:
        return True
    return bundle.path == DEFAULT_BUNDLE if current is None else bundle.fingerprint == current.fingerprint


def roll_back(settings: BundleSettings, bundle: Bundle, why: str, warn: Callable[[str], None]) -> None:
    """Return to the bundle before an installed one that failed while it was in use; never fails."""
    with suppress(SettingsError):
        open_slots(settings).fail(bundle, why, warn)


def healthy(path: Path) -> None:
    """The self-test of a bundle on this machine's CPU; BundleError when it fails."""
    self_test(Classifier(read_bundle(path)))


def chosen_bundle(settings: BundleSettings, warn: Callable[[str], None] = LOG.warning) -> Bundle:
    """The bundle of the settings, else the installed one, else the shipped one.

    With a trusted key, TrustError for a bundle of the settings that it has not signed; the shipped one is a part of the
    program. What is installed never fails: `warn` says why the bundle before it is used.
    """
    if settings.chosen == DEFAULT_BUNDLE:
        return read_bundle(DEFAULT_BUNDLE)
    if settings.chosen is not None:
        bundle = read_bundle(settings.chosen)
        bundle.require_trust(trust_of(settings))
        return bundle
    try:
        installed = open_slots(settings).settle(healthy, warn)
    except SettingsError:
        installed = None
    return installed or read_bundle(DEFAULT_BUNDLE)


def open_classifier(settings: BundleSettings, warn: Callable[[str], None] = LOG.warning) -> Classifier:
    """Load the bundle of `chosen_bundle`; BundleError when a check fails or the model does not load."""
    bundle = chosen_bundle(settings, warn)
    # the bundle may have no fp16 file for a CPU
    precision = "auto" if settings.precision == "fp16" else settings.precision
    if settings.engine == "tensorrt":
        return _with_engine(bundle, precision, settings)
    if settings.precision == "fp16":
        raise BundleError(
            "bundle.precision = 'fp16' is for TensorRT only; set bundle.engine = 'tensorrt', or take fp32 or int8"
        )
    classifier = Classifier(bundle, precision, settings.threads, settings.sensitivity)
    _ = classifier.session  # a model that does not load must fail now, not at the first breath
    return classifier


def _with_engine(bundle: Bundle, precision: Literal["auto", "fp32", "int8"], settings: BundleSettings) -> Classifier:
    """On the TensorRT engine of this machine, else on the fastest provider of ONNX Runtime."""
    common = (bundle, precision, settings.threads, settings.sensitivity)
    try:
        file, engine = open_engine(bundle, settings.engine_precision, settings.engines)
        return Classifier(*common, file=file, engine=engine)
    except (TensorRTError, BundleError) as error:
        missing = str(error)
    classifier = Classifier(*common, providers=fallback_providers(settings.engines), missing=missing)
    try:
        _ = classifier.session
    except BundleError:
        # the provider is installed, its GPU or libraries are not
        classifier = Classifier(*common, missing=missing)
        _ = classifier.session
    return classifier
