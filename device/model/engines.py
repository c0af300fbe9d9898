"""Engines: built once on this machine with its own TensorRT, kept, and found again; else ONNX Runtime, said in a line.

One file an engine, named by what it depends on: the model's hash, the precision, TensorRT's version and the GPU's name.
"""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from device.bundle import Bundle, BundleError, ModelFile
from device.labels import LABELS
from device.model.classifier import ORT_FOLDER, Classifier, Engine, self_test
from device.model.tensorrt import (
    BuildProgress,
    Cuda,
    TensorRTEngine,
    TensorRTError,
    build_serialized,
    load_tensorrt,
    weakly_typed,
)
from firmware_config.files import FileError, write_atomically

ENGINE_SUFFIX = ".engine"
EnginePrecision = Literal["fp32", "fp16", "int8"]
ENGINE_COLUMNS: Final = "bundle model precision tensorrt gpu megabytes built_at"
NEXT: Final = "run 'respsam-device engine build'"


@dataclass(frozen=True)
class EngineInfo:
    """What is known of an engine on disk; the first line of its file."""

    bundle: str
    """The bundle's name."""
    model: str
    """The model's file name inside of it."""
    model_sha256: str
    """Of the model."""
    precision: EnginePrecision
    """As asked for."""
    tensorrt: str
    """Version that built it, and alone can run it."""
    gpu: str
    """Name of the GPU it was built for."""
    sha256: str
    """Of the engine itself."""
    megabytes: float
    """Its size."""
    built_at: float
    """Wall time, seconds since 1970."""


@dataclass(frozen=True)
class Gpu:
    """This machine's TensorRT and GPU."""

    tensorrt: Any
    cuda: Cuda

    @property
    def name(self) -> str:
        """Of the GPU."""
        return self.cuda.name

    @property
    def version(self) -> str:
        """TensorRT's."""
        return str(self.tensorrt.__version__)

    def key(self, model_sha256: str, precision: str) -> str:
        """Names an engine by everything that it depends on."""
        return _key(model_sha256, precision, self.version, self.name)


def open_gpu() -> Gpu:
    """TensorRTError when TensorRT or a GPU is missing."""
    return Gpu(load_tensorrt(), Cuda())


def model_for(bundle: Bundle, precision: EnginePrecision, *, weak: bool) -> ModelFile:
    """The file that an engine of this precision is built from; BundleError where the bundle has none.

    `weak`: TensorRT itself makes fp16 of fp32; otherwise only a model already in fp16 runs in it.
    """
    wanted = "fp32" if precision == "fp16" and weak else precision
    for file in bundle.manifest.files:
        if file.precision == wanted and file.target in ("tensorrt", "any"):
            return file
    raise BundleError(
        f"{bundle.path}: no {wanted} file for TensorRT; build the bundle with 'respsam-export build RUN --{wanted} "
        "--target tensorrt'"
    )


def build_engine(
    bundle: Bundle, precision: EnginePrecision, folder: Path, gpu: Gpu, progress: BuildProgress | None = None
) -> EngineInfo:
    """Build the bundle's engine, have it answer the self-test, and keep it; one that is kept and loads is not built.

    TensorRTError when TensorRT refuses the model or the disk the engine, BundleError when its answers are wrong.
    """
    file = model_for(bundle, precision, weak=weakly_typed(gpu.tensorrt))
    path = folder / f"{gpu.key(file.sha256, precision)}{ENGINE_SUFFIX}"
    with suppress(TensorRTError):
        kept, data = _read_engine(path)
        _loaded(gpu, bundle, data)
        return kept
    measured = folder / f"{_key(gpu.version, gpu.name)}.timing"
    timing = measured.read_bytes() if measured.is_file() else b""
    gpu.cuda.use()
    plan = build_serialized(gpu.tensorrt, bundle.read(file.path), precision, timing_cache=timing, progress=progress)
    engine = _loaded(gpu, bundle, plan.data)
    self_test(Classifier(bundle, file=file, engine=engine))
    sha256, megabytes = hashlib.sha256(plan.data).hexdigest(), len(plan.data) / 1e6
    names = (bundle.manifest.name, file.path, file.sha256, precision, gpu.version, gpu.name)
    kept = EngineInfo(*names, sha256, megabytes, time.time())
    _write(measured, plan.timing_cache)
    _write(path, json.dumps(asdict(kept)).encode() + b"\n" + plan.data)
    return kept


def open_engine(bundle: Bundle, precision: EnginePrecision, folder: Path) -> tuple[ModelFile, Engine]:
    """The bundle's engine as it was built on this gpu, and the file it was built from.

    TensorRTError or BundleError say why there is none.
    """
    gpu = open_gpu()
    file = model_for(bundle, precision, weak=weakly_typed(gpu.tensorrt))
    _, data = _read_engine(folder / f"{gpu.key(file.sha256, precision)}{ENGINE_SUFFIX}")
    return file, _loaded(gpu, bundle, data)


def _loaded(gpu: Gpu, bundle: Bundle, data: bytes) -> Engine:
    window = (bundle.manifest.front_end.frames, bundle.manifest.front_end.mels)
    return TensorRTEngine(gpu.tensorrt, gpu.cuda, data, window, len(LABELS))


def stored_engines(folder: Path) -> list[dict[str, Any]]:
    """What is known of every engine on disk, as rows; of a damaged one only its name."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"*{ENGINE_SUFFIX}")):
        try:
            rows.append(asdict(_read_engine(path)[0]))
        except TensorRTError:
            rows.append({**dict.fromkeys(ENGINE_COLUMNS.split()), "bundle": f"damaged: {path.name}"})
    return rows


def clear(folder: Path) -> tuple[int, float]:
    """Remove every engine and all timings; how many engines that were, and the megabytes of all."""
    ours = (f"*{ENGINE_SUFFIX}", "*.timing", "*.part", f"{ORT_FOLDER}/*")
    paths = [path for pattern in ours for path in folder.glob(pattern)]
    engines, size = len(list(folder.glob(f"*{ENGINE_SUFFIX}"))), sum(path.stat().st_size for path in paths)
    for path in paths:
        path.unlink(missing_ok=True)
    return engines, size / 1e6


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _read_engine(path: Path) -> tuple[EngineInfo, bytes]:
    """TensorRTError when it is not there, or not what was written."""
    try:
        head, _, data = path.read_bytes().partition(b"\n")
        kept = EngineInfo(**json.loads(head))
    except FileNotFoundError:
        raise TensorRTError(f"no engine is built; {NEXT}") from None
    except (OSError, ValueError, TypeError) as error:
        raise TensorRTError(f"{path} is damaged ({type(error).__name__}); {NEXT}") from error
    if hashlib.sha256(data).hexdigest() != kept.sha256:
        raise TensorRTError(f"{path} is damaged (its hash does not hold); {NEXT}")
    return kept, data


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except FileError as error:
        raise TensorRTError(str(error)) from error
