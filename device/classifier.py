"""The engine: one breath cycle in, logits out, on ONNX Runtime."""

from functools import cached_property
from typing import Any, Literal

import numpy as np

from device.bundle import DEFAULT_BUNDLE, Bundle, BundleError, open_bundle
from device.decision import Judgement, abnormal_probability, judge
from device.labels import LABELS
from device.signal import FRAMES, FloatArray, windows
from firmware_config.settings import BundleSettings


def open_session(model: bytes, threads: int = 1) -> Any:
    """An onnxruntime session of an ONNX model on the CPU; its threads are stated and never spin."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Classifier:
    """A checked bundle on a CPU; its threads are few and idle ones sleep, so that capture is not starved."""

    def __init__(
        self,
        bundle: Bundle,
        precision: Literal["auto", "fp32", "int8"] = "auto",
        threads: int = 1,
        sensitivity: float = 0.0,
    ) -> None:
        """`sensitivity` sets the thresholds at which held-out patients reached it; 0 keeps the bundle's own."""
        self.bundle = bundle
        self.file = bundle.file(precision)
        self.threads = threads
        self.fingerprint = bundle.fingerprint
        manifest = bundle.manifest
        self.segmentation = manifest.segmentation
        self.site_rule, self.threshold = manifest.site_rule, self.file.threshold
        if sensitivity:
            self.threshold = manifest.threshold.at_sensitivity(sensitivity)
            sites = manifest.site_threshold
            threshold = self.threshold if sites is None else sites.at_sensitivity(sensitivity)
            self.site_rule = self.site_rule.model_copy(update={"threshold": threshold})

    @cached_property
    def session(self) -> Any:
        """The onnxruntime session, made on first use; BundleError when the model's input or output does not fit."""
        try:
            session = open_session(self.bundle.read(self.file.path), self.threads)
        # onnxruntime raises bare pybind exceptions without a common base
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"{self.bundle.path}: {self.file.path} does not load: {reason}") from error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        expected = [FRAMES, self.bundle.manifest.front_end.mels]
        if len(inputs) != 1 or inputs[0].shape[1:] != expected or outputs[0].shape[1:] != [len(LABELS)]:
            raise BundleError(
                f"{self.bundle.path}: {self.file.path} takes {inputs[0].shape} and gives {outputs[0].shape}; the "
                f"manifest says (batch, {expected[0]}, {expected[1]}) and (batch, {len(LABELS)})"
            )
        return session

    def logits(self, inputs: FloatArray) -> FloatArray:
        """Logits (batch, 4) of model inputs (batch, FRAMES, mels)."""
        session = self.session
        return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0], dtype=np.float32)

    def judge(self, samples: FloatArray) -> Judgement:
        """One cycle (n,) at 16 kHz; the windows of a long one run one by one, as batching changes the last bits."""
        inputs = windows(samples, self.bundle.manifest.front_end)
        logits = np.concatenate([self.logits(inputs[i : i + 1]) for i in range(len(inputs))])
        return judge(logits, self.file.temperature, self.threshold)


def open_classifier(settings: BundleSettings) -> Classifier:
    """The bundle that the settings choose, checked and loaded; BundleError when anything about it does not hold."""
    bundle = open_bundle(settings.chosen or DEFAULT_BUNDLE)
    classifier = Classifier(bundle, settings.precision, settings.threads, settings.sensitivity)
    _ = classifier.session  # a model that does not load is an error now, not at the first breath
    return classifier


def self_test(classifier: Classifier) -> float:
    """Largest deviation from the bundle's expected probabilities on simulated breaths; BundleError beyond tolerance."""
    from device.simulator import breath

    expected = classifier.bundle.manifest.self_test
    front_end = classifier.bundle.manifest.front_end
    worst = 0.0
    for seed, label, wanted in zip(expected.seeds, expected.labels, expected.expected_probability, strict=True):
        logits = classifier.logits(windows(breath(seed, label), front_end))
        found = float(abnormal_probability(logits, classifier.file.temperature).max())
        worst = max(worst, abs(found - wanted))
    if worst > expected.tolerance:
        raise BundleError(
            f"{classifier.bundle.path}: self-test off by {worst:.4f}, allowed is {expected.tolerance}; this machine "
            "computes something else than the bundle's maker did, do not use it"
        )
    return worst
