"""Engines: built once on this machine with its own TensorRT, kept, and found again; else ONNX Runtime, said in a line.

One file an engine, named by what it depends on: the model's hash, the precision, TensorRT's version and the GPU's name.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from device.bundle import Bundle, BundleError, ModelFile
from device.labels import LABELS
from device.model.classifier import ORT_FOLDER, Classifier, Engine, self_test
from device.model.tensorrt import Cuda, Progress, TensorRTEngine, TensorRTError, build, load_tensorrt, weakly_typed

SUFFIX = ".engine"
Precision = Literal["fp32", "fp16", "int8"]
COLUMNS: Final = "bundle model precision tensorrt gpu megabytes built_at"
NEXT: Final = "run 'respsam-device engine build'"


@dataclass(frozen=True)
class Kept:
    """What is known of an engine on disk; the first line of its file."""

    bundle: str
    """The bundle's name."""
    model: str
    """The model's file name inside of it."""
    model_sha256: str
    """Of the model."""
    precision: Precision
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
class Machine:
    """This machine's TensorRT and GPU."""

    tensorrt: Any
    cuda: Cuda

    @property
    def gpu(self) -> str:
        """Its name."""
        return self.cuda.name

    @property
    def version(self) -> str:
        """TensorRT's."""
        return str(self.tensorrt.__version__)

    def key(self, model_sha256: str, precision: str) -> str:
        """Names an engine by everything that it depends on."""
        return _key(model_sha256, precision, self.version, self.gpu)


def open_machine() -> Machine:
    """TensorRTError when TensorRT or a GPU is missing."""
    return Machine(load_tensorrt(), Cuda())


def model_for(bundle: Bundle, precision: Precision, *, weak: bool) -> ModelFile:
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
    bundle: Bundle, precision: Precision, folder: Path, machine: Machine, progress: Progress | None = None
) -> Kept:
    """Build the bundle's engine, have it answer the self-test, and keep it; one that is kept and loads is not built.

    TensorRTError when TensorRT refuses the model or the disk the engine, BundleError when its answers are wrong.
    """
    file = model_for(bundle, precision, weak=weakly_typed(machine.tensorrt))
    place = folder / f"{machine.key(file.sha256, precision)}{SUFFIX}"
    with suppress(TensorRTError):
        kept, data = _read(place)
        _loaded(machine, bundle, data)
        return kept
    measured = folder / f"{_key(machine.version, machine.gpu)}.timing"
    timing = measured.read_bytes() if measured.is_file() else b""
    machine.cuda.use()
    plan = build(machine.tensorrt, bundle.read(file.path), precision, timing_cache=timing, progress=progress)
    engine = _loaded(machine, bundle, plan.data)
    self_test(Classifier(bundle, file=file, engine=engine))
    sha256, megabytes = hashlib.sha256(plan.data).hexdigest(), len(plan.data) / 1e6
    names = (bundle.manifest.name, file.path, file.sha256, precision, machine.version, machine.gpu)
    kept = Kept(*names, sha256, megabytes, time.time())
    _write(measured, plan.timing_cache)
    _write(place, json.dumps(asdict(kept)).encode() + b"\n" + plan.data)
    return kept


def open_engine(bundle: Bundle, precision: Precision, folder: Path) -> tuple[ModelFile, Engine]:
    """The bundle's engine as it was built on this machine, and the file it was built from.

    TensorRTError or BundleError say why there is none.
    """
    machine = open_machine()
    file = model_for(bundle, precision, weak=weakly_typed(machine.tensorrt))
    _, data = _read(folder / f"{machine.key(file.sha256, precision)}{SUFFIX}")
    return file, _loaded(machine, bundle, data)


def _loaded(machine: Machine, bundle: Bundle, data: bytes) -> Engine:
    window = (bundle.manifest.front_end.frames, bundle.manifest.front_end.mels)
    return TensorRTEngine(machine.tensorrt, machine.cuda, data, window, len(LABELS))


def kept_engines(folder: Path) -> list[dict[str, Any]]:
    """What is known of every engine on disk, as rows; of a damaged one only its name."""
    rows: list[dict[str, Any]] = []
    for place in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            rows.append(asdict(_read(place)[0]))
        except TensorRTError:
            rows.append({**dict.fromkeys(COLUMNS.split()), "bundle": f"damaged: {place.name}"})
    return rows


def clear(folder: Path) -> tuple[int, float]:
    """Remove every engine and all timings; how many engines that were, and the megabytes of all."""
    ours = (f"*{SUFFIX}", "*.timing", "*.part", f"{ORT_FOLDER}/*")
    places = [place for pattern in ours for place in folder.glob(pattern)]
    engines, size = len(list(folder.glob(f"*{SUFFIX}"))), sum(place.stat().st_size for place in places)
    for place in places:
        place.unlink(missing_ok=True)
    return engines, size / 1e6


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _read(place: Path) -> tuple[Kept, bytes]:
    """TensorRTError when it is not there, or not what was written."""
    try:
        head, _, data = place.read_bytes().partition(b"\n")
        kept = Kept(**json.loads(head))
    except FileNotFoundError:
        raise TensorRTError(f"no engine is built; {NEXT}") from None
    except (OSError, ValueError, TypeError) as error:
        raise TensorRTError(f"{place} is damaged ({type(error).__name__}); {NEXT}") from error
    if hashlib.sha256(data).hexdigest() != kept.sha256:
        raise TensorRTError(f"{place} is damaged (its hash does not hold); {NEXT}")
    return kept, data


def _write(place: Path, data: bytes) -> None:
    """All of it or nothing, also when the power goes."""
    beside = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(place)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise TensorRTError(f"{place}: cannot be written ({error.strerror}); free the disk") from error
