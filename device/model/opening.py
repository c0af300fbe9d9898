"""A bundle, loaded into the fastest engine that this machine has for it."""

from pathlib import Path
from typing import Literal

from device.bundle import DEFAULT_BUNDLE, Bundle, BundleError, read_bundle
from device.model.classifier import Classifier, fallback_providers
from device.model.engines import open_engine
from device.model.tensorrt import TensorRTError
from firmware_config.settings import BundleSettings, Settings, load_settings


def open_bundle(path: str | Path | None = None, settings: Settings | None = None) -> Classifier:
    """Load the bundle at `path`, else that of the settings, else the shipped one; BundleError as `open_classifier`."""
    chosen = (settings or load_settings()).bundle
    return open_classifier(chosen if path is None else chosen.model_copy(update={"path": str(path)}))


def open_classifier(settings: BundleSettings) -> Classifier:
    """Check and load the bundle that the settings choose; BundleError when a check fails or the model does not load."""
    bundle = read_bundle(settings.chosen or DEFAULT_BUNDLE)
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
