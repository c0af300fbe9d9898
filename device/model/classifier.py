"""The classifier: from one breath cycle to logits and a judgement, on ONNX Runtime or a TensorRT engine."""

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from device.bundle import Bundle, BundleError, ModelFile
from device.labels import LABELS
from device.model.judgement import Judgement, abnormal_probability, judge, pool
from device.runtime import load_onnxruntime
from device.signal import WINDOW_SAMPLES, Float64Array, FloatArray, SignalError, Span, windows

CPU: Final = "CPUExecutionProvider"
# onnxruntime's providers, the fastest first, and their names in messages
PROVIDERS: Final = {
    "TensorrtExecutionProvider": "ONNX Runtime with TensorRT",
    "CUDAExecutionProvider": "ONNX Runtime with CUDA",
    CPU: "ONNX Runtime on the CPU",
}
ORT_FOLDER: Final = "onnxruntime"  # inside the folder of engines: the cache of ONNX Runtime's own TensorRT engines


class Engine(Protocol):
    """Runs a model."""

    def logits(self, inputs: FloatArray) -> FloatArray:
        """Logits (batch, moments, 4) of model inputs (batch, frames, mels)."""
        ...


def open_session(
    model: bytes, threads: int = 1, providers: Sequence[Any] = (CPU,), *, exact_integers: bool = False
) -> Any:
    """An onnxruntime session of an ONNX model, by default on the CPU; idle threads sleep.

    `exact_integers` computes quantized layers as the file defines them, for files built for TensorRT: the integer
    instructions of a CPU without VNNI saturate with 8-bit weights.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact_integers:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3
    # onnxruntime's own fallback prints to stdout, where the verdicts are
    return onnxruntime.InferenceSession(model, options, providers=list(providers), enable_fallback=0)


def fallback_providers(engines: Path) -> list[Any]:
    """onnxruntime's providers here with their options, the fastest first; TensorRT's cache is in `engines`."""
    onnxruntime = load_onnxruntime()
    cache = {"trt_fp16_enable": True, "trt_engine_cache_enable": True, "trt_engine_cache_path": engines / ORT_FOLDER}
    options = {"TensorrtExecutionProvider": {name: str(value) for name, value in cache.items()}}
    available = onnxruntime.get_available_providers()
    return [(name, options.get(name, {})) for name in PROVIDERS if name in available]


class Classifier:
    """A checked bundle, by default on the CPU; few threads, so that capture is not starved."""

    def __init__(
        self,
        bundle: Bundle,
        precision: Literal["auto", "fp32", "int8"] = "auto",
        threads: int = 1,
        sensitivity: float = 0.0,
        *,
        file: ModelFile | None = None,
        engine: Engine | None = None,
        providers: Sequence[Any] = (CPU,),
        missing: str = "",
    ) -> None:
        """`sensitivity` sets the thresholds at which held-out patients reached it; 0 keeps the bundle's own.

        `engine`, built from `file`, replaces ONNX Runtime; `missing` is the reason why a requested engine does not.
        """
        self.bundle = bundle
        self.file = file or bundle.file(precision)
        self.threads, self.engine, self.providers, self.missing = threads, engine, providers, missing
        self.fingerprint = bundle.fingerprint
        manifest = bundle.manifest
        self.segmentation = manifest.segmentation
        self.site_rule, self.threshold = manifest.site_rule, self.file.threshold
        if sensitivity:
            self.threshold = manifest.threshold.at_sensitivity(sensitivity)
            sites = manifest.site_threshold
            threshold = self.threshold if sites is None else sites.at_sensitivity(sensitivity)
            self.site_rule = self.site_rule.model_copy(update={"threshold": threshold})

    def with_site_threshold(self, threshold: float) -> "Classifier":
        """The same model with the site threshold of a calibration."""
        other = copy(self)
        other.site_rule = self.site_rule.model_copy(update={"threshold": threshold})
        return other

    @cached_property
    def session(self) -> Any:
        """The onnxruntime session, made on first use; BundleError when the model's input or output does not fit."""
        try:
            model, other = self.bundle.read(self.file.path), self.file.target == "tensorrt"
            session = open_session(model, self.threads, self.providers, exact_integers=other)
        # onnxruntime raises bare pybind exceptions without a common base
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"{self.bundle.path}: {self.file.path} does not load: {reason}") from error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        expected = [self.bundle.manifest.front_end.frames, self.bundle.manifest.front_end.mels]
        if len(inputs) != 1 or inputs[0].shape[1:] != expected or not _gives_moments(outputs[0].shape):
            raise BundleError(
                f"{self.bundle.path}: {self.file.path} takes {inputs[0].shape} and gives {outputs[0].shape}; the "
                f"manifest says (batch, {expected[0]}, {expected[1]}) and (batch, moments, {len(LABELS)})"
            )
        return session

    @property
    def fallback(self) -> str:
        """Which engine replaces the requested one, and why; empty if none does."""
        return f"fallback engine, {PROVIDERS[self.session.get_providers()[0]]}: {self.missing}" if self.missing else ""

    def logits(self, inputs: FloatArray) -> FloatArray:
        """Logits (batch, moments, 4) of model inputs (batch, frames, mels)."""
        if self.engine is not None:
            return self.engine.logits(inputs)
        session = self.session
        return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0], dtype=np.float32)

    def pooled(self, inputs: FloatArray) -> Float64Array:
        """Logits (batch, 4), pooled over all moments, of model inputs (batch, frames, mels)."""
        return pool(self.logits(inputs))

    def judge(self, samples: FloatArray, span: Span | None = None) -> Judgement:
        """Judge one cycle: all samples (n,) at 16 kHz, or the part `span` of at most 8 s; SignalError for another span.

        The windows of a long cycle run one by one, because batching changes the last bits.
        """
        if span is not None and not 0 <= span[0] < span[1] <= samples.size <= WINDOW_SAMPLES:
            raise SignalError(f"the cycle {span} does not lie in a window of {samples.size} samples, at most 8 s")
        inputs = windows(samples, self.bundle.manifest.front_end)
        logits = np.concatenate([self.logits(inputs[i : i + 1]) for i in range(len(inputs))])
        return judge(logits, self.file.temperature, self.threshold, span)


def _gives_moments(shape: Sequence[Any]) -> bool:
    """Whether a model's output is (batch, moments, classes) with a stated number of moments."""
    return len(shape) == 3 and isinstance(shape[1], int) and shape[1] >= 1 and shape[2] == len(LABELS)


def self_test(classifier: Classifier) -> float:
    """Largest deviation from the expected probabilities on simulated breaths; BundleError above the tolerance."""
    from device.breath.simulator import breath

    expected = classifier.bundle.manifest.self_test
    front_end = classifier.bundle.manifest.front_end
    worst = 0.0
    for seed, label, wanted in zip(expected.seeds, expected.labels, expected.expected_probability, strict=True):
        logits = classifier.pooled(windows(breath(seed, label), front_end))
        found = float(abnormal_probability(logits, classifier.file.temperature).max())
        worst = float(np.maximum(worst, abs(found - wanted)))  # max() would ignore NaN
    if not worst <= expected.tolerance:
        raise BundleError(
            f"{classifier.bundle.path}: self-test off by {worst:.4f}, allowed is {expected.tolerance}; this machine "
            "computes something else than the bundle's maker did, do not use it"
        )
    return worst
