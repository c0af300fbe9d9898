"""The settings of a device and of its trainer: frozen models, their defaults in `defaults.toml`, and one loader.

Precedence: flag > environment > file > passport > profile > default. The environment's name of `audio.sample_rate` is
`RESPSAM_AUDIO__SAMPLE_RATE`.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from firmware_config.errors import RespSAMError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULTS = Path(__file__).with_name("defaults.toml")
ENVIRONMENT_PREFIX = "RESPSAM_"
LONGEST_SHOWN = 100  # characters of a wrong value in an error
NOT_SETTINGS = frozenset({"RESPSAM_DATA", "RESPSAM_SOAK"})  # used by the tests


class SettingsError(RespSAMError):
    """A setting that does not exist or has a wrong value, or a settings file that cannot be read."""


class Section(BaseModel):
    """One table of the settings; no field has a default here, because `defaults.toml` has them all."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class AudioSettings(Section):
    """Where the sound comes from."""

    device: str
    """Name, or part of the name, of the input; empty is the system's default input."""
    sample_rate: Annotated[int, Field(ge=0, le=192_000)]
    """Hz to record at; 0 is the device's own rate."""
    channel: Annotated[int, Field(ge=0, le=63)]
    """Channel to listen to, counted from 0."""
    gain_db: Annotated[float, Field(ge=-60.0, le=60.0)]
    """Digital gain, before anything else looks at the sound."""
    block_seconds: Annotated[float, Field(ge=0.01, le=0.5)]
    """Length of one block of the capture."""
    queue_seconds: Annotated[float, Field(ge=1.0, le=600.0)]
    """Sound that may wait to be read; beyond it blocks are dropped and counted."""


class BundleSettings(Section):
    """The model that listens."""

    path: str
    """Folder or .respsam file; empty is the bundle shipped with the device."""
    engine: Literal["cpu", "tensorrt"]
    """What runs it: ONNX Runtime on the CPU, or what 'respsam-device engine build' made of it for this GPU."""
    precision: Literal["auto", "fp32", "fp16", "int8"]
    """Which of the bundle's models to run; auto takes the one that its maker put first, and fp16 with TensorRT."""
    threads: Annotated[int, Field(ge=1, le=256)]
    """Threads of the inference engine."""
    sensitivity: Annotated[float, Field(ge=0.0, le=1.0)]
    """Thresholds at which held-out patients reached this sensitivity; 0 keeps the bundle's own."""

    @property
    def chosen(self) -> Path | None:
        """The bundle that the settings name; None is the one shipped with the device."""
        return _expanded(self.path, "bundle.path") if self.path else None

    @property
    def engine_precision(self) -> Literal["fp32", "fp16", "int8"]:
        """Of TensorRT's engine."""
        return "fp16" if self.precision == "auto" else self.precision

    @property
    def engines(self) -> Path:
        """The folder of TensorRT's engines, following the XDG base directories."""
        return cache_folder("engines")


class QualitySettings(Section):
    """What is too poor to judge."""

    minimum_level_dbfs: Annotated[float, Field(ge=-160.0, le=0.0)]
    """RMS of a cycle below which it is too quiet, dB below full scale."""
    maximum_clipped_share: Annotated[float, Field(ge=0.0, le=1.0)]
    """Share of samples at full scale above which a cycle is clipped."""
    maximum_hum_share: Annotated[float, Field(ge=0.0, le=1.0)]
    """Share of the power in steady tones at 50 or 60 Hz and harmonics; good recordings have up to 0.05."""
    maximum_voice_share: Annotated[float, Field(ge=0.0, le=1.0)]
    """Share of a cycle's frames that are voiced and bright like speech; good recordings have up to 0.2."""
    maximum_knock_db: Annotated[float, Field(ge=0.0, le=120.0)]
    """Loudest frame over the median one at 1-4 kHz; crackles reach 30 through wide stethoscopes, 15 through others."""
    maximum_heart_db: Annotated[float, Field(ge=-60.0, le=120.0)]
    """Power of 20-100 Hz over that of 100-1000 Hz above which unclear breathing is put down to the heart; -20 to 33."""
    minimum_clarity: Annotated[float, Field(ge=0.0, le=1.0)]
    """How surely breaths sounded and began in the last 12 s, 0-1; good recordings have 0.4 to 0.8, noise has 0.1."""
    minimum_snr_db: Annotated[float, Field(ge=0.0, le=60.0)]
    """A cycle's power at 150-850 Hz over the quietest tenth of the last 12 s; good recordings have 6 to 40."""


class StoreSettings(Section):
    """Where sessions are stored."""

    enabled: bool
    """Whether cycles are stored at all."""
    path: str
    """SQLite file; empty is respsam/respsam.sqlite in the user's state folder."""
    audio: bool
    """Whether the sound of every cycle is stored too, for a replay; it is a patient's sound."""
    audio_days: Annotated[float, Field(gt=0.0, le=36_500.0)]
    """Sound older than this is removed; the verdicts stay."""
    audio_megabytes: Annotated[float, Field(gt=0.0, le=10_000_000.0)]
    """Beyond so much the oldest sound is removed; an hour takes 90 MB, with 8 s around every breath some 240 MB."""

    @property
    def file(self) -> Path:
        """The SQLite file, following the XDG base directories where the settings name none."""
        return _given_or(self.path, "store.path", "XDG_STATE_HOME", ".local/state", "respsam/respsam.sqlite")


class DemoSettings(Section):
    """The built-in demo auscultation."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    """Seed of the simulator; the same seed sounds the same."""
    seconds: Annotated[float, Field(ge=0.5, le=86_400.0)]
    """Length of the auscultation."""


class ConsoleSettings(Section):
    """The pages in a browser: `respsam-device listen --console`."""

    host: str
    """Address to serve on; anything but this machine's own needs TLS and accounts."""
    port: Annotated[int, Field(ge=0, le=65_535)]
    """TCP port; 0 is any free one."""
    names: str
    """Names, between spaces, by which browsers on other machines call this box; no other is answered."""
    certificate: str
    """TLS certificate (PEM file); empty is one that is made once in the user's state folder."""
    key: str
    """Private key of the certificate (PEM file); empty together with the certificate."""
    accounts: str
    """File of the accounts; empty is respsam/accounts.json in the user's state folder."""

    @property
    def accounts_file(self) -> Path:
        """The accounts, following the XDG base directories where the settings name none."""
        return _given_or(self.accounts, "console.accounts", "XDG_STATE_HOME", ".local/state", "respsam/accounts.json")

    @property
    def tls_files(self) -> tuple[Path, Path]:
        """Certificate and key, following the XDG base directories where the settings name none."""
        given = (("certificate", self.certificate), ("key", self.key))
        certificate, key = (
            _given_or(path, f"console.{name}", "XDG_STATE_HOME", ".local/state", f"respsam/console-{name}.pem")
            for name, path in given
        )
        return certificate, key


class TrainingSettings(Section):
    """The desktop that trains."""

    cache: str
    """Folder of the 16 kHz audio cache; empty is respsam/audio in the user's cache folder."""
    cache_gigabytes: Annotated[float, Field(gt=0.0, le=1_000_000.0)]
    """Beyond so much (1e9 bytes), the audio that was used longest ago is removed from it; an hour takes 0.23 GB."""
    threads: Annotated[int, Field(ge=0, le=1024)]
    """Threads of torch; 0 is all cores."""
    workers: Annotated[int, Field(ge=0, le=256)]
    """Processes that prepare batches; 0 prepares them in the training process."""

    @property
    def folder(self) -> Path:
        """The audio cache, following the XDG base directories where the settings name none."""
        return _given_or(self.cache, "training.cache", "XDG_CACHE_HOME", ".cache", "respsam/audio")


class Settings(Section):
    """Every setting there is."""

    audio: AudioSettings
    """Where the sound comes from."""
    bundle: BundleSettings
    """The model that listens."""
    quality: QualitySettings
    """What is too poor to judge."""
    store: StoreSettings
    """Where sessions are stored."""
    demo: DemoSettings
    """The built-in demo auscultation."""
    console: ConsoleSettings
    """The pages in a browser."""
    training: TrainingSettings
    """The desktop that trains."""

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all values: equal settings, equal fingerprint."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Layer:
    """Settings from one place: `source` names it in errors, `values` has tables inside (as TOML gives them)."""

    source: str
    values: Mapping[str, object]


def load_settings(
    config: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    layers: Sequence[Layer] = (),
) -> Settings:
    """The settings in force.

    `config` is a TOML file; `flags` maps dotted keys to values, None meaning that the flag was not given;
    `environment` is os.environ unless given; `layers` are what lies between defaults and file, weakest first
    (profile, then passport). Raises SettingsError for a file that cannot be read, an unknown key and a wrong value,
    also where a stronger layer would hide it.
    """
    defaults = read_toml(DEFAULTS)
    known = dict(_flat(defaults.values))
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    stack = [
        defaults,
        *layers,
        *([read_toml(config)] if config else []),
        Layer("environment", _from_environment(os.environ if environment is None else environment, known)),
        Layer("command line", given),
    ]
    merged: dict[str, object] = {}
    for layer in stack:
        merged |= _checked_keys(layer, known)
        settings = _validated(merged, layer)
    return settings


def read_toml(file: Path) -> Layer:
    """Read a settings file as a layer; SettingsError when it cannot be read or is not TOML."""
    try:
        return Layer(str(file), tomllib.loads(file.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise SettingsError(f"{file}: cannot read the settings: {error.strerror}; check --config") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: not UTF-8 text at byte {error.start}; settings are a TOML file") from error
    # beside TOMLDecodeError: bare ValueError for numbers and dates beyond any range, RecursionError for deep nesting
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{file}: not TOML: {error}") from error


def cache_folder(below: str) -> Path:
    """A cache folder, following the XDG base directories."""
    return _given_or("", "XDG_CACHE_HOME", "XDG_CACHE_HOME", ".cache", f"respsam/{below}")


def _given_or(given: str, setting: str, variable: str, home: str, below: str) -> Path:
    if given:
        return _expanded(given, setting)
    root = Path(os.environ.get(variable, ""))
    # The XDG specification: a relative path in these variables is invalid and to be ignored.
    return (root if root.is_absolute() else _expanded("~", setting) / home) / below


def _expanded(path: str, setting: str) -> Path:
    """The path with ~ expanded; SettingsError if the home folder is unknown, as in a container without users."""
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:
        expanded = Path()
    if path.startswith("~") and (not expanded.is_absolute() or os.environ.get("HOME") == ""):
        raise SettingsError(f"{path}: this user has no home folder; set {setting} to an absolute path, or HOME")
    return expanded


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _from_environment(environment: Mapping[str, str], known: Mapping[str, object]) -> dict[str, object]:
    texts = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."): text
        for name, text in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX) and name not in NOT_SETTINGS
    }
    return {key: _typed(text, known.get(key, "")) for key, text in texts.items()}


def _typed(text: str, default: object) -> object:
    """The text in the type of the default; the text itself if it does not fit, which validation then refuses."""
    try:
        return TypeAdapter(type(default)).validate_python(text)
    except ValidationError:
        return text


def _checked_keys(layer: Layer, known: Mapping[str, object]) -> dict[str, object]:
    values = dict(_flat(layer.values))
    for key, value in list(values.items()):
        if key in known:
            continue
        if key in Settings.model_fields:  # a section; an empty one is allowed
            if value != {}:
                raise SettingsError(f"{layer.source}: '{key}' is a section, not a value; write [{key}] and its keys")
            del values[key]
            continue
        (nearest,) = get_close_matches(key, known, n=1, cutoff=0.0)
        raise SettingsError(
            f"{layer.source}: unknown setting {_shown(_name(key, layer))}; nearest: '{_name(nearest, layer)}'"
        )
    return values


def _validated(values: Mapping[str, object], layer: Layer) -> Settings:
    nested: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, field = key.split(".")
        nested.setdefault(section, {})[field] = value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        allowed = first["msg"].replace("Input should", "should")
        raise SettingsError(f"{layer.source}: {_name(key, layer)} = {_shown(first['input'])}: {allowed}") from error


def _shown(value: object) -> str:
    """A value for an error message: one line, printable, not too long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _name(key: str, layer: Layer) -> str:
    """The key in the notation of that layer."""
    if layer.source == "environment":
        return ENVIRONMENT_PREFIX + key.upper().replace(".", "__")
    return key
