"""The settings of a device and of its trainer: frozen models, their defaults in `defaults.toml`, and one loader.

Precedence: flag > environment > file > passport > profile > default. The environment's name of `audio.sample_rate` is
`RESPSAM_AUDIO__SAMPLE_RATE`. `docs/settings.py` writes the reference and the comments of `defaults.toml` from here.
"""

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from firmware_config.errors import RespSAMError, first_problem

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WEB: Final = re.compile(r"https?://", re.IGNORECASE)  # the beginning of a URL
DEFAULTS: Final = Path(__file__).with_name("defaults.toml")
PROFILES: Final = Path(__file__).with_name("profiles")
ENVIRONMENT_PREFIX: Final = "RESPSAM_"
TRUST_OF_THE_BOX: Final = Path("/etc/respsam/trust")  # a box's service and its administrator need the same keys
LONGEST_SHOWN: Final = 100  # characters of a wrong value in an error
NOT_SETTINGS: Final = frozenset({"RESPSAM_DATA", "RESPSAM_SOAK"})  # used by the tests


class SettingsError(RespSAMError):
    """An unknown setting, a wrong value, or a settings file that cannot be read."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def within(low: float, high: float, unit: str) -> Any:
    """A number's range, with both ends, and its unit."""
    return Field(ge=low, le=high, json_schema_extra={"unit": unit})


def above(low: float, high: float, unit: str) -> Any:
    """A number's range without its lower end, and its unit."""
    return Field(gt=low, le=high, json_schema_extra={"unit": unit})


class Section(BaseModel):
    """One table of the settings; the defaults are in `defaults.toml`, not here."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class AudioSettings(Section):
    """The microphone and its sound."""

    device: str
    """Name, or part of the name, of the input; empty is the system's default input."""
    passport: str
    """Key of the stethoscope's passport; empty recognises it by its name or USB id, 'none' takes none."""
    sample_rate: Annotated[int, within(0, 192_000, "Hz")]
    """Hz to record at; 0 is the device's own rate."""
    channel: Annotated[int, within(0, 63, "number")]
    """Channel to listen to, counted from 0."""
    gain_db: Annotated[float, within(-60.0, 60.0, "dB")]
    """Digital gain, before anything else looks at the sound."""
    block_seconds: Annotated[float, within(0.01, 0.5, "s")]
    """Length of one block of the capture."""
    queue_seconds: Annotated[float, within(1.0, 600.0, "s")]
    """Sound that may wait to be read; beyond it blocks are dropped and counted."""


class BundleSettings(Section):
    """The model that listens."""

    path: str
    """Folder or .respsam file; empty is the installed bundle, or the shipped one if none is installed."""
    slots: str
    """Folder of the installed bundles; empty is bundles in the state folder, beside the store."""
    trust: str
    """Folder of the trusted keys; empty is `/etc/respsam/trust` if it exists, else `~/.config/respsam/trust`."""
    updates: str
    """Folder or URL that `bundle poll` looks at, on a provisioned box by a timer every hour; empty is no updates."""
    engine: Literal["cpu", "tensorrt"]
    """ONNX Runtime on the CPU, or the TensorRT engine that 'respsam-device engine build' made for this GPU."""
    precision: Literal["auto", "fp32", "fp16", "int8"]
    """Which model of the bundle to run; auto takes the first one, and fp16 with TensorRT."""
    threads: Annotated[int, within(1, 256, "threads")]
    """Threads of the inference engine."""
    sensitivity: Annotated[float, within(0.0, 1.0, "share")]
    """Take the thresholds at which held-out patients reached this sensitivity; 0 keeps the bundle's own."""

    @property
    def chosen(self) -> Path | None:
        """The bundle that the settings name; None is the installed one, or the one shipped with the device."""
        return _expanded(self.path, "bundle.path") if self.path else None

    @property
    def installed(self) -> Path:
        """The folder of the slots; in the state folder where the settings name none."""
        return _expanded(self.slots, "bundle.slots") if self.slots else state_folder() / "bundles"

    @property
    def trusted(self) -> Path:
        """The folder of the trusted keys: a box's, else the user's, following the XDG base directories."""
        if not self.trust and os.path.isdir(TRUST_OF_THE_BOX):
            return TRUST_OF_THE_BOX
        return _given_or(self.trust, "bundle.trust", "XDG_CONFIG_HOME", ".config", "respsam/trust")

    @property
    def engine_precision(self) -> Literal["fp32", "fp16", "int8"]:
        """Of TensorRT's engine."""
        return "fp16" if self.precision == "auto" else self.precision

    @property
    def engines(self) -> Path:
        """The folder of TensorRT's engines, following the XDG base directories."""
        return cache_folder("engines")


class QualitySettings(Section):
    """Limits of sound that is good enough to judge."""

    minimum_level_dbfs: Annotated[float, within(-160.0, 0.0, "dBFS")]
    """RMS of a cycle below which it is too quiet, dB below full scale."""
    maximum_clipped_share: Annotated[float, within(0.0, 1.0, "share")]
    """Share of samples at full scale above which a cycle is clipped."""
    maximum_hum_share: Annotated[float, within(0.0, 1.0, "share")]
    """Share of the power in steady tones at 50 or 60 Hz and harmonics; good recordings have up to 0.05."""
    maximum_voice_share: Annotated[float, within(0.0, 1.0, "share")]
    """Share of a cycle's frames that are voiced and bright like speech; good recordings have up to 0.2."""
    maximum_knock_db: Annotated[float, within(0.0, 120.0, "dB")]
    """Loudest frame over the median one at 1-4 kHz; crackles reach 30 through wide stethoscopes, 15 through others."""
    maximum_heart_db: Annotated[float, within(-60.0, 120.0, "dB")]
    """Power of 20-100 Hz over that of 100-1000 Hz above which unclear breathing is put down to the heart; -20 to 33."""
    minimum_clarity: Annotated[float, within(0.0, 1.0, "share")]
    """How surely breaths sounded and began in the last 12 s, 0-1; good recordings have 0.4 to 0.8, noise has 0.1."""
    minimum_snr_db: Annotated[float, within(0.0, 60.0, "dB")]
    """A cycle's power at 150-850 Hz over the quietest tenth of the last 12 s; good recordings have 6 to 40."""


class StoreSettings(Section):
    """Where sessions are stored."""

    enabled: bool
    """Whether cycles are stored at all."""
    path: str
    """SQLite file; empty is respsam.sqlite in the state folder (`$STATE_DIRECTORY`, else `~/.local/state/respsam`)."""
    audio: bool
    """Whether the sound of every cycle is stored for a replay; it is personal data of the patient."""
    audio_key: str
    """File of 32 bytes, the key that encrypts the sound; empty stores the sound without encryption."""
    audio_days: Annotated[float, above(0.0, 36_500.0, "days")]
    """Sound older than this is removed; the verdicts stay."""
    audio_megabytes: Annotated[float, above(0.0, 10_000_000.0, "MB")]
    """Above this size the oldest sound is removed; an hour takes 90 MB, with 8 s around every breath some 240 MB."""

    @property
    def file(self) -> Path:
        """The SQLite file; in the state folder where the settings name none."""
        return _expanded(self.path, "store.path") if self.path else state_folder() / "respsam.sqlite"

    @property
    def key_file(self) -> Path | None:
        """The file with the key of the sound; None where it is stored in the clear."""
        return _expanded(self.audio_key, "store.audio_key") if self.audio_key else None


class DemoSettings(Section):
    """The built-in demo auscultation."""

    seed: Annotated[int, within(0, 2**32 - 1, "number")]
    """Seed of the simulator; the same seed sounds the same."""
    seconds: Annotated[float, within(0.5, 86_400.0, "s")]
    """Length of the auscultation."""


class ConsoleSettings(Section):
    """The pages in a browser: `respsam-device listen --console`."""

    serve: bool
    """Serve them without `--console` too, as the service; `provision` then opens its network so far."""
    host: str
    """Address to serve on; anything but this machine's own needs TLS and accounts."""
    port: Annotated[int, within(0, 65_535, "number")]
    """TCP port; 0 is any free one."""
    names: str
    """Names, between spaces, by which browsers on other machines call this box; no other is answered."""
    certificate: str
    """TLS certificate (PEM file); empty is one that is made once in the user's state folder."""
    key: str
    """Private key of the certificate (PEM file); empty together with the certificate."""
    accounts: str
    """File of the accounts; empty is respsam/accounts.json in the user's state folder."""
    metrics_token: str
    """File with the token by which Prometheus on another machine reads /metrics; empty lets only accounts read it."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the address."""
        return is_loopback(self.host)

    @property
    def accounts_file(self) -> Path:
        """The accounts, following the XDG base directories where the settings name none."""
        return _given_or(self.accounts, "console.accounts", "XDG_STATE_HOME", ".local/state", "respsam/accounts.json")

    @property
    def metrics_token_file(self) -> Path | None:
        """Of the scraper's token; None without one."""
        return _expanded(self.metrics_token, "console.metrics_token") if self.metrics_token else None

    @property
    def tls_files(self) -> tuple[Path, Path]:
        """Certificate and key, following the XDG base directories where the settings name none."""
        given = (("certificate", self.certificate), ("key", self.key))
        certificate, key = (
            _given_or(path, f"console.{name}", "XDG_STATE_HOME", ".local/state", f"respsam/console-{name}.pem")
            for name, path in given
        )
        return certificate, key


class OutputSettings(Section):
    """Where results go beyond this box: nowhere, unless a broker is named."""

    mqtt_host: str
    """Name or address of the MQTT broker that gets results and status; empty sends nothing."""
    mqtt_port: Annotated[int, within(1, 65_535, "number")]
    """TCP port of the broker."""
    mqtt_tls: bool
    """Whether the connection is encrypted; false is only for a broker on this machine."""
    mqtt_ca: str
    """Certificates of the authority that the broker's certificate is from (PEM file); empty is the system's."""
    mqtt_certificate: str
    """TLS certificate of this box with its key (PEM file), where the broker wants one; empty is none."""
    mqtt_user: str
    """Name of the account at the broker; empty is none."""
    mqtt_password_file: str
    """File with the password of that account on its first line; empty is none."""
    mqtt_prefix: Annotated[str, Field(pattern=r"^[^+#\x00]+$")]
    """First part of every topic, without + and #."""
    mqtt_box: Annotated[str, Field(pattern=r"^[^+#/\x00]*$")]
    """Name of this box in the topics, without + # and /; empty is the host name."""
    mqtt_waiting: Annotated[int, within(1_000, 100_000_000, "messages")]
    """So many messages may wait for the broker; beyond it the oldest go, and are counted. A breath takes 0.5 kB."""

    @property
    def box(self) -> str:
        """The name of this box."""
        return self.mqtt_box or platform.node()

    def file(self, key: str) -> Path | None:
        """The file that a setting names, as `mqtt_ca`; None where it is empty."""
        name = getattr(self, key)
        return _expanded(name, f"outputs.{key}") if name else None


class BoardSettings(Section):
    """The computer, and what is expected of it; a profile states these."""

    profile: str
    """Name of a shipped profile, or a profile's TOML file; empty is none. No profile can set it."""
    model: str
    """Text in the board's name (`/proc/device-tree/model`); empty is any computer."""
    cores: Annotated[int, within(1, 1024, "cores")]
    """The board has at least so many."""
    memory_gigabytes: Annotated[float, above(0.0, 10_000.0, "GB")]
    """The board has at least so much (1e9 bytes)."""
    power_mode: str
    """Name of a Jetson's power mode, as `/etc/nvpmodel.conf` has it; empty leaves it as it is."""
    jetson_clocks: bool
    """Whether a Jetson's clocks stay at the highest rate of the power mode."""
    real_time_factor: Annotated[float, above(0.0, 1.0, "share")]
    """Seconds that the model computes for a second of breath, at most; `doctor` measures it."""


class LogSettings(Section):
    """The log of a service."""

    level: Literal["off", "debug", "info", "warning", "error"]
    """What `listen` and `exam` write to stderr from which level on; `--log-level` and `--log-format` replace it."""
    format: Literal["text", "json"]
    """Format of the lines."""
    journal_megabytes: Annotated[float, within(1.0, 100_000.0, "MB")]
    """Size up to which the system's journal keeps the log; `provision` sets it."""


class TrainingSettings(Section):
    """The desktop that trains."""

    cache: str
    """Folder of the 16 kHz audio cache; empty is respsam/audio in the user's cache folder."""
    cache_gigabytes: Annotated[float, above(0.0, 1_000_000.0, "GB")]
    """Above this size (1e9 bytes) the audio that was used longest ago is removed; an hour takes 0.23 GB."""
    threads: Annotated[int, within(0, 1024, "threads")]
    """Threads of torch; 0 is all cores."""
    workers: Annotated[int, within(0, 256, "processes")]
    """Processes that prepare batches; 0 prepares them in the training process."""

    @property
    def folder(self) -> Path:
        """The audio cache, following the XDG base directories where the settings name none."""
        return _given_or(self.cache, "training.cache", "XDG_CACHE_HOME", ".cache", "respsam/audio")


class Settings(Section):
    """Every setting there is."""

    audio: AudioSettings
    """The microphone and its sound."""
    bundle: BundleSettings
    """The model that listens."""
    quality: QualitySettings
    """Limits of sound that is good enough to judge."""
    store: StoreSettings
    """Where sessions are stored."""
    demo: DemoSettings
    """The built-in demo auscultation."""
    console: ConsoleSettings
    """The pages in a browser."""
    outputs: OutputSettings
    """Where results go beyond this box: nowhere, unless a broker is named."""
    board: BoardSettings
    """The computer, and what is expected of it."""
    log: LogSettings
    """The log of a service."""
    training: TrainingSettings
    """The desktop that trains."""

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all values as canonical JSON; equal settings have equal fingerprints."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def schema() -> dict[str, Any]:
    """The JSON Schema of a settings file: as of `Settings`, but every section and every key may be left out."""
    whole = Settings.model_json_schema()
    for part in (whole, *whole["$defs"].values()):
        del part["required"]
    return whole


@dataclass(frozen=True)
class Layer:
    """Settings from one place: `source` names it in errors, `values` has tables inside (as TOML gives them)."""

    source: str
    values: Mapping[str, object]
    text: str = ""
    """The TOML that the values are from; empty if they are not from a file."""
    kind: Literal["default", "profile", "passport", "file", "environment", "flag"] = "file"

    def place(self, key: str) -> str:
        """The source, and the line of a dotted key if it has one."""
        line = _line_of(self.text, key)
        return f"{self.source}, line {line}" if line else self.source


@dataclass(frozen=True)
class Loaded:
    """The settings in force, and the layer that each value is from by its dotted key."""

    settings: Settings
    layers: Mapping[str, Layer]
    text: str
    """Of the settings file; empty without one."""

    def values(self) -> dict[str, object]:
        """Every value by its dotted key."""
        return dict(_flat(self.settings.model_dump()))

    def origin(self, key: str) -> str:
        """The layer of a value in words: `default`, `profile pi`, `file a.toml, line 3`, `environment NAME`, `flag`."""
        layer = self.layers[key]
        if layer.kind == "file":
            return f"file {layer.place(key)}"
        if layer.kind == "environment":
            return f"environment {_name(key, layer)}"
        return layer.source if layer.kind in ("profile", "passport") else layer.kind


def load_settings(
    config: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    layers: Sequence[Layer] = (),
) -> Settings:
    """The settings in force; see `load`."""
    return load(config, flags, environment, layers).settings


def load(
    config: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    layers: Sequence[Layer] = (),
) -> Loaded:
    """The settings in force, with their origins.

    `config` is a TOML file; `flags` maps dotted keys to values, None meaning that the flag was not given;
    `environment` is os.environ unless given; `layers` are what lies between the profile and the file (a passport).
    The profile is the one that flag, environment or file name. Raises SettingsError for a file that cannot be read,
    an unknown key and a wrong value, also where a stronger layer would hide it.
    """
    defaults = replace(read_toml(DEFAULTS), kind="default")
    known = dict(_flat(defaults.values))
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    file = read_toml(config) if config else None
    strong = [
        *([file] if file else []),
        Layer(
            "environment",
            _from_environment(os.environ if environment is None else environment, known),
            "",
            "environment",
        ),
        Layer("command line", given, "", "flag"),
    ]
    merged: dict[str, object] = {}
    origins: dict[str, Layer] = {}
    for layer in [defaults, *_profile(strong), *layers, *strong]:
        values = _checked_keys(layer, known)
        merged |= values
        origins |= dict.fromkeys(values, layer)
        settings = _validated(merged, layer)
    return Loaded(settings, origins, file.text if file else "")


def _profile(strong: Sequence[Layer]) -> list[Layer]:
    """The profile that the strongest of these layers names, as a list of one layer, or of none."""
    named = [value for layer in strong for key, value in _flat(layer.values) if key == "board.profile"]
    return [read_profile(named[-1])] if named and named[-1] and isinstance(named[-1], str) else []


def profile_names() -> list[str]:
    """The shipped profiles."""
    return sorted(file.stem for file in PROFILES.glob("*.toml"))


def read_profile(name: str) -> Layer:
    """A profile as a layer of settings: a shipped one by its name, or a TOML file; SettingsError if there is none."""
    if name in profile_names():
        return replace(read_toml(PROFILES / f"{name}.toml"), source=f"profile {name}", kind="profile")
    if "/" in name or name.endswith(".toml"):
        return replace(read_toml(_expanded(name, "board.profile")), kind="profile")
    (nearest,) = get_close_matches(name, profile_names(), n=1, cutoff=0.0)
    raise SettingsError(
        f"board.profile: no profile is called {_shown(name)}; nearest: '{nearest}', others: "
        f"{', '.join(other for other in profile_names() if other != nearest)}; or give a TOML file"
    )


def read_toml(file: Path) -> Layer:
    """Read a settings file as a layer; SettingsError when it cannot be read or is not TOML."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        return Layer(str(file), tomllib.loads(text), text)
    except OSError as error:
        raise SettingsError(f"{file}: cannot read the settings: {error.strerror}; check --config") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: not UTF-8 text at byte {error.start}; settings are a TOML file") from error
    # beside TOMLDecodeError: bare ValueError for numbers and dates beyond any range, RecursionError for deep nesting
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{file}: not TOML: {error}") from error


def _line_of(text: str, key: str) -> int:
    """The line on which a dotted key gets its value; 0 if none does.

    tomllib gives no positions. The shortest beginning of the text that is TOML and has the key ends with its line.
    """
    lines = text.splitlines()
    for count in range(1, len(lines) + 1):
        with suppress(ValueError, RecursionError):
            if key in dict(_flat(tomllib.loads("\n".join(lines[:count])))):
                return count
    return 0


def state_folder() -> Path:
    """The folder of what a device remembers: the one that systemd gives a service, else by the XDG base directories."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(given) if given else _given_or("", "store.path", "XDG_STATE_HOME", ".local/state", "respsam")


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
                raise SettingsError(
                    f"{layer.place(key)}: '{key}' is a section, not a value; write [{key}] and its keys"
                )
            del values[key]
            continue
        (nearest,) = get_close_matches(key, known, n=1, cutoff=0.0)
        raise SettingsError(
            f"{layer.place(key)}: unknown setting {_shown(_name(key, layer))}; nearest: '{_name(nearest, layer)}'"
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
        key, reason, value = first_problem(error)
        allowed = reason.replace("Input should", "should")
        raise SettingsError(f"{layer.place(key)}: {_name(key, layer)} = {_shown(value)}: {allowed}") from error


def _shown(value: object) -> str:
    """A value for an error message: one line, printable, not too long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _name(key: str, layer: Layer) -> str:
    """The key in the notation of that layer."""
    if layer.kind == "environment":
        return ENVIRONMENT_PREFIX + key.upper().replace(".", "__")
    return key
