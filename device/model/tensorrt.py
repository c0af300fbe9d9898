"""TensorRT: build an engine from an ONNX model for one GPU, and run it.

The same code serves TensorRT 8.6, 10, 11 and TensorRT-RTX: it looks at what the module offers, never at its version.
CUDA is called through the driver's library, which every GPU machine has; no other package is needed.
"""

import ctypes
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np

from device.signal import FloatArray
from firmware_config.errors import RespSAMError

LARGEST_BATCH: Final = 8
DRIVER: Final = "libcuda.so.1"
LONGEST_REASON: Final = 300  # characters of TensorRT's own message
# Common refusals of the parser: a part of its message, and what it means.
MEANINGS: Final = {
    "zero point": "a zero point other than 0; quantize symmetrically to int8",
    "UINT8": "uint8 values; quantize symmetrically to int8",
    "has type Int32": "an int32 bias; leave biases in float",
    "Plugin not found": "TensorRT has no such operator",
    "false": "TensorRT has no such operator; quantize statically",
}

BuildProgress = Callable[[str, int, int], None]
"""Called with a phase's name, the number of steps done, and the number of all steps."""


class TensorRTError(RespSAMError):
    """TensorRT or its GPU is missing, refuses a model, or cannot build or run it."""


def load_tensorrt(name: str = "tensorrt") -> ModuleType:
    """Import the module; TensorRTError when it or its libraries are not installed."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise TensorRTError(
            f"TensorRT is not installed ({_short(str(error))}); see docs/jetson-checklist.md"
        ) from error


def weakly_typed(tensorrt: Any) -> bool:
    """Whether precisions are builder flags; from version 11 on they come from the model."""
    return hasattr(tensorrt.BuilderFlag, "FP16")


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine."""

    data: bytes
    timing_cache: bytes
    """Kernel timings of this build; they make the next one shorter."""
    log: tuple[str, ...]
    """TensorRT's messages, if `verbose` was set."""


def build_serialized(
    tensorrt: Any,
    model: bytes,
    precision: Literal["fp32", "fp16", "int8"],
    *,
    timing_cache: bytes = b"",
    progress: BuildProgress | None = None,
    capability: str | None = None,
    verbose: bool = False,
) -> BuiltEngine:
    """An engine for batches of 1 to LARGEST_BATCH, tuned for 1; TensorRTError names a refused node and the reason.

    `capability` (`SM86`) builds for another GPU (TensorRT-RTX only); `verbose` logs every layer with its types.
    """
    log = _log(tensorrt, verbose)
    builder = _create(tensorrt.Builder, log)
    kinds = tensorrt.NetworkDefinitionCreationFlag
    kind = kinds.EXPLICIT_BATCH if weakly_typed(tensorrt) else kinds.STRONGLY_TYPED
    network = builder.create_network(1 << int(kind))
    parser = tensorrt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise TensorRTError(f"TensorRT refuses {'; '.join(map(_refusal, errors)) or log.reason}")
    if (ends := (network.num_inputs, network.num_outputs)) != (1, 1):
        raise TensorRTError(f"a model takes one input and gives one output, not {ends[0]} and {ends[1]}")
    config = builder.create_builder_config()
    if weakly_typed(tensorrt):
        # int8 comes from the model's Q/DQ nodes; the other layers may run in fp16
        for flag in {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}[precision]:
            config.set_flag(getattr(tensorrt.BuilderFlag, flag))
    if verbose:
        config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(tensorrt.ComputeCapability, capability), 0)
    monitor = None
    if progress is not None and hasattr(config, "progress_monitor"):
        monitor = config.progress_monitor = _monitor(tensorrt, progress)
    profile = builder.create_optimization_profile()
    window = network.get_input(0)
    smallest, largest = ((batch, *tuple(window.shape)[1:]) for batch in (1, LARGEST_BATCH))
    profile.set_shape(window.name, smallest, smallest, largest)
    config.add_optimization_profile(profile)
    # a cache of another version or GPU is refused; an empty one only makes the build slower
    for content in (timing_cache, b""):
        timing = config.create_timing_cache(content)
        if timing is not None and config.set_timing_cache(timing, ignore_mismatch=False):
            break
    data = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.interrupted:
        raise KeyboardInterrupt
    if data is None:
        raise TensorRTError(f"TensorRT cannot build this model: {log.reason}")
    return BuiltEngine(bytes(data), bytes(config.get_timing_cache().serialize()), tuple(log.lines))


def _refusal(error: Any) -> str:
    """A parser error in words: node, operator, reason; version 8.6 gives only the node's number."""
    name = getattr(error, "node_name", str)() or f"number {error.node()}"
    operator = getattr(error, "node_operator", str)()
    words = _short(error.desc().split("[checkMacros")[0])
    meant = next((meaning for part, meaning in MEANINGS.items() if part in words), "")
    return f"node {name}{f' ({operator})' if operator else ''}: {f'{meant} [{words}]' if meant else words}"


def _log(tensorrt: Any, verbose: bool = False) -> Any:
    """A logger that keeps errors, and with `verbose` everything; its base class comes with the imported TensorRT."""

    class Log(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if verbose:
                self.lines.append(message)
            if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        @property
        def reason(self) -> str:
            return _short(self.errors[0] if self.errors else "it gives no reason")

    return Log()


def _monitor(tensorrt: Any, progress: BuildProgress) -> Any:
    """Reports the outermost phases; nested ones are too short to read."""

    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[phase] = steps
                self.report(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self.report(phase, step + 1)
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            self.report(phase, self.steps.get(phase, 0))

        def report(self, phase: str, done: int) -> None:
            try:
                if phase in self.steps:
                    progress(phase, done, self.steps[phase])
            # an exception must not pass through TensorRT: after Ctrl-C it is asked to stop
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()


def _create(kind: Any, log: Any) -> Any:
    """A builder or a runtime; TensorRTError without a usable GPU (TensorRT raises TypeError and logs the reason)."""
    try:
        return kind(log)
    except TypeError as error:
        raise TensorRTError(f"TensorRT does not start: {log.reason}") from error


def _short(words: str) -> str:
    folded = " ".join(words.split())
    return folded if len(folded) <= LONGEST_REASON else f"{folded[:LONGEST_REASON]}…"


class Cuda:
    """The first GPU and one stream on it, through the driver; TensorRTError where there is none."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL(DRIVER)
        except OSError as error:
            raise TensorRTError(f"no GPU driver ({error}); see docs/jetson-checklist.md") from error
        device, self.context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode(errors="replace")
        # the context that TensorRT's own CUDA runtime uses
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        self.use()
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = int(stream.value or 0)

    def use(self) -> None:
        """Make this GPU current in the calling thread."""
        self._call("cuCtxSetCurrent", self.context)

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes on the GPU; returns their address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def upload(self, address: int, values: FloatArray) -> None:
        """Copy values (any shape) to the GPU; TensorRTError when the driver fails."""
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), values.ctypes.data_as(ctypes.c_void_p), _size(values))

    def download(self, values: FloatArray, address: int) -> None:
        """Copy from the GPU into `values` (any shape); TensorRTError when the driver fails."""
        self._call("cuMemcpyDtoH_v2", values.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(address), _size(values))

    def wait(self) -> None:
        """Wait until the stream is idle."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self.library, function)(*arguments)
        if status:
            words = ctypes.c_char_p()
            self.library.cuGetErrorString(status, ctypes.byref(words))
            raise TensorRTError(f"{function}: {(words.value or b'unknown error').decode()} (CUDA error {status})")


def _size(values: FloatArray) -> ctypes.c_size_t:
    return ctypes.c_size_t(values.nbytes)


class TensorRTEngine:
    """An engine on a GPU: from model inputs to logits."""

    def __init__(self, tensorrt: Any, cuda: Cuda, data: bytes, window: Sequence[int], classes: int) -> None:
        """`window` is (frames, mels); TensorRTError when the engine is for another TensorRT, GPU or shape."""
        self.cuda = cuda
        cuda.use()
        self.log = _log(tensorrt)
        # the engine does not keep its runtime alive
        self.runtime = _create(tensorrt.Runtime, self.log)
        self.engine = self.runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise TensorRTError(f"TensorRT cannot load the engine: {self.log.reason}")
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        shapes = [tuple(self.engine.get_tensor_shape(name)) for name in names]
        moments = shapes[-1][1] if len(shapes[-1]) == 3 else 0
        if moments < 1 or shapes != [(-1, *window), (-1, moments, classes)]:
            raise TensorRTError(f"the engine has tensors of {shapes}, not (-1, {window}) and (-1, moments, {classes})")
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise TensorRTError(f"TensorRT cannot run the engine: {self.log.reason}")
        self.input, output = names
        self.window, self.answer = tuple(window), (moments, classes)
        self.addresses = [cuda.allocate(4 * LARGEST_BATCH * int(np.prod(shape[1:]))) for shape in shapes]
        for name, address in zip((self.input, output), self.addresses, strict=True):
            self.context.set_tensor_address(name, address)

    def logits(self, inputs: FloatArray) -> FloatArray:
        """Logits (batch, moments, classes) of model inputs (batch, frames, mels), any batch."""
        self.cuda.use()
        return np.concatenate(
            [self._run(inputs[start : start + LARGEST_BATCH]) for start in range(0, len(inputs), LARGEST_BATCH)]
        )

    def _run(self, inputs: FloatArray) -> FloatArray:
        windows = np.ascontiguousarray(inputs, dtype=np.float32)
        found = np.empty((len(windows), *self.answer), np.float32)
        self.cuda.upload(self.addresses[0], windows)
        if not (
            self.context.set_input_shape(self.input, windows.shape) and self.context.execute_async_v3(self.cuda.stream)
        ):
            raise TensorRTError(f"TensorRT did not run: {self.log.reason}")
        self.cuda.wait()
        self.cuda.download(found, self.addresses[1])
        return found
