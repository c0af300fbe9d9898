"""The bundle: the contract between the desktop that trains and the device that listens.

It is a folder, or the folder's zip with the suffix `.respsam`. A device checks the manifest's schema and all hashes
before it uses a bundle.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from device.labels import LABELS, Label
from device.signal import FrontEnd
from firmware_config.errors import RespSAMError, first_problem
from firmware_config.files import is_clutter
from firmware_config.trust import SIGNATURE, Signature, Trust

SCHEMA: Final = 2
MANIFEST: Final = "manifest.json"
ARCHIVE_SUFFIX: Final = ".respsam"
DEFAULT_BUNDLE: Final = Path(__file__).parent / "default_bundle"


class BundleError(RespSAMError):
    """A bundle that is missing, damaged, edited, or of another schema; or a model that does not run."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelFile(_Part):
    """One serving form of the model."""

    path: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """File name inside the bundle."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the file's bytes."""
    precision: Literal["fp32", "fp16", "int8"]
    """Number format of the weights and the matrix products."""
    target: Literal["cpu", "tensorrt", "any"]
    """The engine that it is built for."""
    opset: int
    """ONNX operator set."""
    temperature: float = Field(gt=0.0)
    """Divides the logits before the softmax."""
    threshold: float = Field(ge=0.0, le=1.0)
    """A cycle is abnormal when its probability reaches this."""


class ThresholdChoice(_Part):
    """How a threshold was chosen."""

    rule: str
    """One sentence."""
    protocol: str
    """The protocol whose results chose it."""
    curve: tuple[tuple[float, float, float], ...]
    """Rows (threshold, sensitivity, specificity) on held-out patients, thresholds ascending."""

    def at_sensitivity(self, wanted: float) -> float:
        """The highest threshold with at least this sensitivity on held-out patients; BundleError if there is none."""
        reached = [threshold for threshold, sensitivity, _ in self.curve if sensitivity >= wanted]
        if not reached:
            highest = max((sensitivity for _, sensitivity, _ in self.curve), default=0.0)
            raise BundleError(
                f"sensitivity {wanted:g} was never reached on {self.protocol}, {highest:g} at most; ask for less"
            )
        return max(reached)


class Segmentation(_Part):
    """How the stream is cut into cycles."""

    method: Literal["breath", "windows"] = "breath"
    """'breath' finds breaths, and cuts windows where it finds none; 'windows' cuts windows only."""
    window_seconds: float = Field(default=2.5, gt=0.0, le=8.0)
    """Length of a window; windows do not overlap."""
    shortest_seconds: float = Field(default=0.6, gt=0.0)
    """The shortest breath."""
    longest_seconds: float = Field(default=6.0, gt=0.0, le=8.0)
    """The longest breath."""
    pause_seconds: float = Field(default=0.3, ge=0.0, le=2.0)
    """The silence after a breath that belongs to it, unless the next breath begins sooner."""
    context_seconds: float = Field(default=0.0, ge=0.0, le=8.0)
    """A shorter cycle is judged together with the sound around it, up to this length, if that was received in time."""


class SiteRule(_Part):
    """When a site is flagged: the gradable cycles of its first stretch decide together.

    On held-out patients of all corpora the mean log-odds of the cycles ranked recordings better (AUROC 0.94) than the
    strongest cycle (0.91), or the probability that a sixth, a third or half of the cycles reach (0.91 to 0.93).
    """

    threshold: float = Field(ge=0.0, le=1.0)
    """The mean log-odds of the cycles must reach it; it is a calibrated probability."""
    stretch_cycles: int = Field(ge=1)
    """Gradable cycles of a stretch; after so many its verdict is complete and does not change."""
    least_cycles: int = Field(ge=1)
    """A session that ends with fewer gradable cycles than this is 'not enough'."""

    @property
    def in_words(self) -> str:
        """The end of the sentence `A site is flagged when ...`."""
        return f"its first {self.stretch_cycles} gradable cycles reach {self.threshold:.3f} together (mean log-odds)"

    @model_validator(mode="after")
    def _within_a_stretch(self) -> "SiteRule":
        if self.least_cycles > self.stretch_cycles:
            raise ValueError(f"least_cycles {self.least_cycles} is more than stretch_cycles {self.stretch_cycles}")
        return self


class CalibrationBounds(_Part):
    """Bounds within which healthy people may raise the site's threshold for another stethoscope."""

    healthy_flagged: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of healthy people that may be flagged."""
    largest_shift: float = Field(ge=0.0)
    """Log-odds by which the threshold may rise at most; validation has shown that the sensitivity stays."""
    sensitivity_floor: float = Field(ge=0.0, le=1.0)
    """The sensitivity that the largest shift still reached on held-out patients."""


class Population(_Part):
    """The people on whom the model was trained; it is validated for nobody else."""

    youngest_years: float | None
    """Age of the youngest patient; null when the corpus gives no ages."""
    oldest_years: float | None
    """Age of the oldest."""
    sites: tuple[str, ...]
    """Auscultation sites, in the corpus's words."""
    stethoscopes: tuple[str, ...]
    """Recording devices."""
    patients: int
    """Number of patients."""


class SelfTest(_Part):
    """The answers that a model must give to simulated breaths; `doctor`, `export verify` and updates check them."""

    seeds: tuple[int, ...]
    """Seeds of `device.breath.simulator.breath`."""
    labels: tuple[Label, ...]
    """Their simulated classes."""
    expected_probability: tuple[float, ...]
    """Probability of being abnormal, from the fp32 file."""
    tolerance: float = Field(gt=0.0)
    """Largest deviation that passes."""


class Manifest(_Part):
    """Everything about a bundle except the weights; schema version 2."""

    schema_version: Literal[2] = 2
    """A new number where an older program would misread the bundle."""
    name: str
    """The model's name."""
    architecture: dict[str, JsonValue]
    """The model's sizes."""
    labels: tuple[str, ...]
    """Classes in the order of the logits."""
    front_end: FrontEnd
    """What happens to a cycle before the model."""
    files: tuple[ModelFile, ...] = Field(min_length=1)
    """The serving forms; the first one is what a CPU runs by default."""
    threshold: ThresholdChoice
    """Where the threshold came from."""
    site_rule: SiteRule
    """How cycles decide about a site."""
    site_threshold: ThresholdChoice | None = None
    """Where the site rule's threshold came from; null where no whole recordings were annotated."""
    calibration: CalibrationBounds | None = None
    """How far healthy people may raise the site's threshold; null if its cost was not measured."""
    segmentation: Segmentation
    """From the stream to cycles."""
    population: Population
    """The people in the training data."""
    corpus: str
    """Training corpus."""
    split: str
    """How its patients were divided, in words."""
    seen_parts: tuple[str, ...] = ("train", "intra")
    """Parts of the corpus whose patients trained or tuned it."""
    metrics: dict[str, JsonValue]
    """Readings of accuracy with 95 % patient-bootstrap intervals, by name."""
    recipe: dict[str, JsonValue]
    """The training recipe."""
    versions: dict[str, str]
    """Of the software that made it."""
    self_test: SelfTest
    """The answers that it must give to simulated breaths."""


@dataclass(frozen=True)
class Bundle:
    """A bundle after its schema and hashes were checked."""

    path: Path
    manifest: Manifest
    fingerprint: str
    """sha256 of the manifest, which contains every file's hash: it identifies this bundle."""

    def file(self, precision: Literal["auto", "fp32", "int8"] = "auto") -> ModelFile:
        """The model file for a CPU; 'auto' takes the manifest's first. BundleError if there is none."""
        usable = [file for file in self.manifest.files if file.target in ("cpu", "any")]
        chosen = [file for file in usable if precision in ("auto", file.precision)]
        if not chosen:
            available = ", ".join(file.precision for file in usable) or "none"
            raise BundleError(
                f"{self.path}: no {precision} file for a CPU (there: {available}); set bundle.precision to one of them"
            )
        return chosen[0]

    def read(self, name: str) -> bytes:
        """Bytes of one file of the bundle; BundleError when it cannot be read or is not what the manifest says.

        The hash is that of these bytes: a file may be replaced after the bundle was opened.
        """
        data = _read_file(self.path, name)
        for file in self.manifest.files:
            if file.path == name:
                _require_hash(self.path, file, data)
        return data

    def contents(self) -> dict[str, bytes]:
        """Every file of the bundle by name; BundleError when one cannot be read or is not what the manifest says."""
        return {name: self.read(name) for name in _names(self.path)}

    def require_trust(self, trust: Trust) -> Signature | None:
        """The bundle's signature; None where no key is trusted. TrustError when no trusted key has signed it."""
        if not trust.keys:
            return None
        signature = self.read(SIGNATURE) if SIGNATURE in _names(self.path) else None
        return trust.require(self.path, self.hashes(), signature)

    def hashes(self) -> dict[str, str]:
        """sha256 of every file to be signed; of manifest and models what was checked, not what is there now."""
        checked = {**{file.path: file.sha256 for file in self.manifest.files}, MANIFEST: self.fingerprint}
        others = set(_names(self.path)) - checked.keys() - {SIGNATURE}
        return {**checked, **{name: hashlib.sha256(self.read(name)).hexdigest() for name in others}}


def _read_file(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            return (path / name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(_folder_inside(archive) + name)
    except (KeyError, FileNotFoundError):
        raise BundleError(f"{path}: {name} is missing; copy or build the bundle again") from None
    # a damaged zip raises one of these, depending on where the damage is
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {name} cannot be read ({error}); copy the bundle again") from error


def _folder_inside(archive: zipfile.ZipFile) -> str:
    """The folder of the manifest: macOS and Windows zip the folder itself, and macOS adds `__MACOSX` beside it."""
    folders = {Path(name).parent for name in archive.namelist() if Path(name).name == MANIFEST}
    ours = [folder for folder in folders if not any(map(is_clutter, [*folder.parents, folder]))]
    return f"{ours[0].as_posix()}/" if len(ours) == 1 and ours[0] != Path() else ""


def _names(path: Path) -> list[str]:
    """The names of all files of a bundle, without what a Mac or Windows leaves beside them."""
    try:
        if path.is_dir():
            found = [item.name for item in path.iterdir() if item.is_file()]
        else:
            with zipfile.ZipFile(path) as archive:
                folder = _folder_inside(archive)
                inside = [name.removeprefix(folder) for name in archive.namelist() if name.startswith(folder)]
                found = [name for name in inside if name and "/" not in name]
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); copy the bundle again") from error
    return sorted(name for name in found if not is_clutter(Path(name)))


def read_bundle(path: Path) -> Bundle:
    """Open a bundle, and check the manifest's schema and every file's hash; BundleError names what is wrong."""
    if not path.exists():
        raise BundleError(f"{path}: no bundle here; build one with 'respsam-export build RUN --out BUNDLE'")
    raw = _read_file(path, MANIFEST)
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        _refuse_other_schema(path, raw)
        key, reason, _ = first_problem(error)
        where = f"{path}/{MANIFEST}: {key or 'manifest'}"
        raise BundleError(f"{where}: {reason}; the bundle is of another schema or edited") from error
    if manifest.labels != LABELS:
        raise BundleError(f"{path}/{MANIFEST}: labels {', '.join(manifest.labels)} are not {', '.join(LABELS)}")
    bundle = Bundle(path, manifest, hashlib.sha256(raw).hexdigest())
    for file in manifest.files:
        bundle.read(file.path)
    return bundle


def _require_hash(path: Path, file: ModelFile, data: bytes) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise BundleError(
            f"{path}: {file.path} has sha256 {found[:12]}…, the manifest says {file.sha256[:12]}…; it was "
            "changed or damaged, copy or build the bundle again"
        )


def _refuse_other_schema(path: Path, manifest: bytes) -> None:
    """BundleError when a manifest has another schema than this version reads."""
    try:
        stated = json.loads(manifest).get("schema_version", SCHEMA)
    except (ValueError, AttributeError):
        return
    if stated == SCHEMA:
        return
    remedy = "build it again with 'respsam-export build RUN --out BUNDLE'"
    if isinstance(stated, int) and stated > SCHEMA:
        remedy = f"update this program, or {remedy}"
    raise BundleError(f"{path}: a bundle of schema {stated}, this version reads schema {SCHEMA}; {remedy}")


def pack(folder: Path, archive: Path) -> None:
    """Zip a bundle folder; fixed times and order, so the same folder gives the same bytes."""
    pack_files({item.name: item.read_bytes() for item in folder.iterdir()}, archive)


def pack_files(contents: Mapping[str, bytes], archive: Path) -> None:
    """As `pack`, for files by name."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in sorted(contents.items()):
            packed.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
