"""Passports of stethoscopes: what is known of each model, how it is recognised, how it was measured and calibrated.

A passport is a TOML file: shipped ones are in `passports/`, a device's own ones in its state folder, and these win.
"""

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from firmware_config.board import ROOT, read_text
from firmware_config.errors import RespSAMError, first_problem
from firmware_config.files import write_atomically
from firmware_config.settings import Layer, read_toml, state_folder

SHIPPED: Final = Path(__file__).with_name("passports")
LONGEST_NAME: Final = 40  # letters
NO_PASSPORT: Final = "none"  # as audio.passport
HIGHEST_HZ: Final = 96_000.0


class PassportError(RespSAMError):
    """A passport that is wrong, missing, or one of two that match; or a stethoscope that cannot be measured."""


class Part(BaseModel):
    """A table of a passport."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Words(Part):
    """A fact in words, with its source."""

    text: str
    source: str


class Rates(Part):
    """Sample rates at which it records, with their source."""

    hz: tuple[Annotated[int, Field(ge=1000, le=192_000)], ...] = Field(min_length=1)
    source: str


class Band(Part):
    """The frequencies that it carries, with their source."""

    name: str = ""
    """Of a filter; empty for all that it carries."""
    low_hz: float = Field(ge=0.0, le=HIGHEST_HZ)
    high_hz: float = Field(gt=0.0, le=HIGHEST_HZ)
    source: str

    @model_validator(mode="after")
    def _possible(self) -> "Band":
        if self.low_hz >= self.high_hz:
            raise ValueError(f"an impossible band: it begins at {self.low_hz:g} Hz and ends at {self.high_hz:g} Hz")
        return self


class Match(Part):
    """How it is recognised."""

    usb: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")], ...] = ()
    """USB vendor and product, only where they are published or were seen."""
    names: tuple[str, ...] = ()
    """Patterns of the input's name, with * for any text; upper and lower case are the same."""
    generic: bool = False
    """Whether it stands in only where no other passport matches."""


class Measured(Part):
    """The self-test of `passport new`, at 16 kHz and without gain."""

    made_at: str
    """Time with its zone, ISO 8601."""
    device: str
    """The input's name."""
    noise_dbfs: float = Field(ge=-200.0, le=0.0)
    """Level away from a chest: the quietest tenth."""
    chest_dbfs: float = Field(ge=-200.0, le=0.0)
    """Level on a healthy chest: the median."""
    rolloff_hz: float = Field(gt=0.0, le=HIGHEST_HZ)
    """95 % of the power of breath from 100 Hz on lies below."""
    clipping_dbfs: float | None = Field(default=None, ge=-200.0, le=0.0)
    """The highest level that it gives; None if the taps did not reach it."""

    def __str__(self) -> str:
        loudest = "not reached" if self.clipping_dbfs is None else f"{self.clipping_dbfs:.1f} dBFS"
        return (
            f"noise {self.noise_dbfs:.1f} dBFS, on a chest {self.chest_dbfs:.1f} dBFS with breath up to "
            f"{self.rolloff_hz:.0f} Hz, clipping {loudest}"
        )


class Calibration(Part):
    """A site threshold that healthy people chose for this stethoscope and one bundle."""

    name: str = Field(pattern=r"^[a-z0-9.-]+$")
    """It stands in every verdict."""
    made_at: str
    """Time with its zone, ISO 8601."""
    bundle: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Fingerprint of the bundle."""
    bundle_threshold: float = Field(ge=0.0, le=1.0)
    """The site threshold before."""
    threshold: float = Field(ge=0.0, le=1.0)
    """And the calibrated one."""
    people: int = Field(ge=2)
    sites: int = Field(ge=2)
    """Sites with a verdict, of all people together."""
    sites_flagged_before: int = Field(ge=0)
    sites_flagged_after: int = Field(ge=0)


class Passport(Part):
    """What is known of one model of stethoscope."""

    name: str = Field(min_length=1)
    """As people call it."""
    connection: Words
    """How its sound comes to this computer."""
    match: Match
    gain_db: float = Field(default=0.0, ge=-60.0, le=60.0)
    """Digital gain that it needs, as `audio.gain_db`."""
    gain: Words | None = None
    """Its own amplification."""
    native_rates: Rates | None = None
    band: Band | None = None
    filters: tuple[Band, ...] = ()
    quirks: tuple[Words, ...] = ()
    measured: Measured | None = None
    calibrations: tuple[Calibration, ...] = ()
    """The last one of a bundle is in force."""

    @model_validator(mode="after")
    def _carried(self) -> "Passport":
        if self.band and self.native_rates and self.band.high_hz > max(self.native_rates.hz) / 2:
            raise ValueError(
                f"an impossible band: it ends at {self.band.high_hz:g} Hz, but {max(self.native_rates.hz)} Hz carry "
                f"{max(self.native_rates.hz) / 2:g} Hz at most"
            )
        return self

    def calibration(self, bundle: str) -> Calibration | None:
        """The calibration in force for the bundle of this fingerprint."""
        return next((one for one in reversed(self.calibrations) if one.bundle == bundle), None)


@dataclass(frozen=True)
class PassportFile:
    """A passport and its file."""

    file: Path
    passport: Passport

    @property
    def key(self) -> str:
        """Its name for `audio.passport`."""
        return self.file.stem

    @property
    def own(self) -> bool:
        """Whether it was made here, and may be changed."""
        return self.file.parent != SHIPPED

    def layer(self) -> Layer:
        """Its settings, between those of the profile and those of the file."""
        return Layer(f"passport {self.key}", {"audio": {"gain_db": self.passport.gain_db}}, kind="passport")


def own_folder() -> Path:
    """Where this device's own passports are."""
    return state_folder() / "passports"


def read_passport(file: Path) -> PassportFile:
    """Read a passport; PassportError names the file and what is wrong in it."""
    layer = read_toml(file)
    try:
        return PassportFile(file, Passport.model_validate(layer.values))
    except ValidationError as error:
        key, reason, _ = first_problem(error)
        raise PassportError(f"{layer.place(key)}: {key or 'passport'}: {reason}; correct the file") from error


def all_passports() -> list[PassportFile]:
    """Every passport; an own one replaces the shipped one of the same file name. Raises PassportError."""
    files = {file.stem: file for folder in (SHIPPED, own_folder()) for file in sorted(folder.glob("*.toml"))}
    return [read_passport(files[key]) for key in sorted(files)]


def find_passport(key: str) -> PassportFile:
    """The passport of this key; PassportError with the nearest one if there is none."""
    known = {found.key: found for found in all_passports()}
    if key not in known:
        (nearest,) = get_close_matches(key, known, n=1, cutoff=0.0)
        raise PassportError(f"audio.passport: no passport is called {key!r}; nearest: '{nearest}'")
    return known[key]


def recognise(device: str, wanted: str = "", root: Path = ROOT) -> PassportFile | None:
    """The passport of the input with this name, by USB id or name; None if there is none.

    `wanted` is `audio.passport`: the key of a passport, or 'none'. PassportError when two passports match equally well.
    """
    if wanted:
        return None if wanted == NO_PASSPORT else find_passport(wanted)
    usb = usb_of(device, root)
    ranked: dict[tuple[bool, bool, bool], list[PassportFile]] = {}
    for found in all_passports():
        match = found.passport.match
        by_usb, by_name = usb in match.usb, _named(device, match.names)
        if by_usb or by_name:
            ranked.setdefault((not match.generic, by_usb, found.own), []).append(found)
    best = ranked[max(ranked)] if ranked else []
    if len(best) > 1:
        raise PassportError(
            f"{device}: two passports match, {best[0].file} and {best[1].file}; set audio.passport to "
            f"'{best[0].key}' or '{best[1].key}', or change 'match' in one of them"
        )
    return best[0] if best else None


def _named(device: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(device.casefold(), pattern.casefold()) for pattern in patterns)


def usb_of(device: str, root: Path = ROOT) -> str:
    """`vendor:product` of the USB sound card that gives an input its name; empty if there is none, or more than one."""
    cards = re.findall(r"^ *(\d+) \[.*?\]: \S+ - (.+)$", read_text(root / "proc/asound/cards"), re.MULTILINE)
    named = [number for number, name in cards if device == name or device.startswith(f"{name}:")]
    return read_text(root / f"proc/asound/card{named[0]}/usbid") if len(named) == 1 else ""


def new_file(name: str, *, replace: bool = False) -> Path:
    """The file of a new passport; PassportError for a name without letters, or one that is there, unless `replace`."""
    key = re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")
    file = own_folder() / f"{key}.toml"
    if not key or key == NO_PASSPORT:
        raise PassportError(f"{name!r} is no name for a passport; give a word with letters a to z")
    if len(key) > LONGEST_NAME:
        raise PassportError(f"{name[:20]!r}...: at most {LONGEST_NAME} letters for a passport's name")
    if file.exists() and not replace:
        raise PassportError(f"{file}: this passport is there already; give --replace to measure again, or another name")
    return file


def write_passport(file: Path, passport: Passport) -> None:
    """Write a passport, whole or not at all; FileError when it cannot be written."""
    head = "# Made by this device: 'respsam-device passport new' and 'respsam-device calibrate'.\n"
    write_atomically(file, head + toml_text(passport.model_dump(exclude_none=True, exclude_defaults=True)))


def toml_text(values: Mapping[str, Any], table: str = "") -> str:
    """Values of a passport as TOML: plain values first, then tables and lists of tables."""
    return "\n".join(_toml_lines(values, table)) + "\n"


def _toml_lines(values: Mapping[str, Any], table: str) -> Iterator[str]:
    later = {key: value for key, value in values.items() if _is_table(value)}
    yield from (f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in later)
    for key, value in later.items():
        name = f"{table}{key}"
        for one in [value] if isinstance(value, Mapping) else value:
            yield from ("", f"[{name}]" if isinstance(value, Mapping) else f"[[{name}]]")
            yield from _toml_lines(one, f"{name}.")


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, Sequence) and bool(value) and all(isinstance(one, Mapping) for one in value)
    )
