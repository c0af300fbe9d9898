"""TensorRT engines: built once on this machine, stored, and opened for every session.

Each is one file, named by all that it depends on: model hash, precision, TensorRT version and GPU.
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

ENGINE_SUFFIX: Final = ".engine"
EnginePrecision = Literal["fp32", "fp16", "int8"]
ENGINE_COLUMNS: Final = "bundle model precision tensorrt gpu megabytes built_at"
NEXT: Final = "run 'respsam-device engine build'"


@dataclass(frozen=True)
class EngineInfo:
    """The description of an engine: the first line of its file."""

    bundle: str
    """The bundle's name."""
    model: str
    """The model's file name inside of it."""
    model_sha256: str
    """Of the model."""
    precision: EnginePrecision
    """As requested."""
    tensorrt: str
    """Version that built it; no other version can run it."""
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
        """File name (without suffix) of an engine: a hash of all that it depends on."""
        return _key(model_sha256, precision, self.version, self.name)


def open_gpu() -> Gpu:
    """This machine's TensorRT and GPU; TensorRTError when one is missing."""
    return Gpu(load_tensorrt(), Cuda())


def model_for(bundle: Bundle, precision: EnginePrecision, *, weak: bool) -> ModelFile:
    """The file that an engine of this precision is built from; BundleError when the bundle has none.

    `weak`: this TensorRT converts fp32 to fp16 itself; otherwise the file must be in fp16.
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
    """Build, test and store the bundle's engine; an engine that is there and loads is not rebuilt.

    Raises TensorRTError when TensorRT refuses the model or the disk is full, BundleError when the self-test fails.
    """
    file = model_for(bundle, precision, weak=weakly_typed(gpu.tensorrt))
    path = folder / f"{gpu.key(file.sha256, precision)}{ENGINE_SUFFIX}"
    with suppress(TensorRTError):
        info, data = _read_engine(path)
        _loaded(gpu, bundle, data)
        return info
    measured = folder / f"{_key(gpu.version, gpu.name)}.timing"
    timing = measured.read_bytes() if measured.is_file() else b""
    gpu.cuda.use()
    plan = build_serialized(gpu.tensorrt, bundle.read(file.path), precision, timing_cache=timing, progress=progress)
    engine = _loaded(gpu, bundle, plan.data)
    self_test(Classifier(bundle, file=file, engine=engine))
    sha256, megabytes = hashlib.sha256(plan.data).hexdigest(), len(plan.data) / 1e6
    names = (bundle.manifest.name, file.path, file.sha256, precision, gpu.version, gpu.name)
    info = EngineInfo(*names, sha256, megabytes, time.time())
    _write(measured, plan.timing_cache)
    _write(path, json.dumps(asdict(info)).encode() + b"\n" + plan.data)
    return info


def open_engine(bundle: Bundle, precision: EnginePrecision, folder: Path) -> tuple[ModelFile, Engine]:
    """The model file, and the engine built from it on this machine; TensorRTError or BundleError without one."""
    gpu = open_gpu()
    file = model_for(bundle, precision, weak=weakly_typed(gpu.tensorrt))
    _, data = _read_engine(folder / f"{gpu.key(file.sha256, precision)}{ENGINE_SUFFIX}")
    return file, _loaded(gpu, bundle, data)


def _loaded(gpu: Gpu, bundle: Bundle, data: bytes) -> Engine:
    window = (bundle.manifest.front_end.frames, bundle.manifest.front_end.mels)
    return TensorRTEngine(gpu.tensorrt, gpu.cuda, data, window, len(LABELS))


def stored_engines(folder: Path) -> list[dict[str, Any]]:
    """One row an engine on disk; of a damaged one only the name."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"*{ENGINE_SUFFIX}")):
        try:
            rows.append(asdict(_read_engine(path)[0]))
        except TensorRTError:
            rows.append({**dict.fromkeys(ENGINE_COLUMNS.split()), "bundle": f"damaged: {path.name}"})
    return rows


def clear(folder: Path) -> tuple[int, float]:
    """Remove every engine and all timings; returns the number of engines, and the megabytes of all files."""
    ours = (f"*{ENGINE_SUFFIX}", "*.timing", "*.part", f"{ORT_FOLDER}/*")
    paths = [path for pattern in ours for path in folder.glob(pattern)]
    engines, size = len(list(folder.glob(f"*{ENGINE_SUFFIX}"))), sum(path.stat().st_size for path in paths)
    for path in paths:
        path.unlink(missing_ok=True)
    return engines, size / 1e6


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _read_engine(path: Path) -> tuple[EngineInfo, bytes]:
    """An engine's description and bytes; TensorRTError when it is missing or damaged."""
    try:
        head, _, data = path.read_bytes().partition(b"\n")
        info = EngineInfo(**json.loads(head))
    except FileNotFoundError:
        raise TensorRTError(f"no engine is built; {NEXT}") from None
    except (OSError, ValueError, TypeError) as error:
        raise TensorRTError(f"{path} is damaged ({type(error).__name__}); {NEXT}") from error
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise TensorRTError(f"{path} is damaged (its hash does not hold); {NEXT}")
    return info, data


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except FileError as error:
        raise TensorRTError(str(error)) from error
