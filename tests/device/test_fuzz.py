"""Mangled recordings and settings files: read, or refused in one line, never another exception."""

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device.capture.recording import AudioError, AudioWarning, read_audio
from firmware_config.settings import DEFAULTS, SettingsError, load_settings

EXAMPLES = 10_000 if os.environ.get("RESPSAM_SOAK") else 200
# the folder is shared by the examples of one test: each writes its own bytes over the last ones
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not os.environ.get("RESPSAM_SOAK"),
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HEADER_BYTES = 44
SUBTYPES = ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM", "PCM_U8")
NUMBERS = (0, 1, 2, 3, 0x11, 0xFE, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WORDS = (b"RIFF", b"RIFX", b"RF64", b"WAVE", b"fmt ", b"data", b"fact", b"LIST", b"bext", b"cue ", b"smpl", b"ds64")
TEXT = DEFAULTS.read_text(encoding="utf-8")
# what a hand or a broken card puts into a settings file
# fmt: off
PIECES = ("[", "]", "[[audio]]", "=", '"', "'''", "\\", "#", "\n", "\0", "\r", "-", "nan", "inf", "1e999", "9" * 5000,
          "{}", "[store]", "store.path", "true", "1979-05-27", "audio.a.b.c = 1\n", "[" * 200, "ä", "\ud7ff", "''=1\n")
# fmt: on
scalars = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.times(), st.none(), st.binary()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def wav(folder: Path, subtype: str, channels: int) -> bytes:
    samples = (0.2 * np.random.default_rng(0).standard_normal((200, channels))).clip(-0.99, 0.99)
    soundfile.write(folder / "whole.wav", samples, 8000, subtype=subtype)
    return (folder / "whole.wav").read_bytes()


@FUZZ
@given(data=st.data())
def test_mangled_wav_headers(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(wav(tmp_path, data.draw(st.sampled_from(SUBTYPES)), data.draw(st.integers(1, 2))))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, HEADER_BYTES + 40))
        match data.draw(st.integers(0, 5)):
            case 0:
                raw[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case 1:
                raw[at : at + 4] = struct.pack("<I", data.draw(st.sampled_from(NUMBERS)))
            case 2:
                raw[at : at + 2] = struct.pack("<H", data.draw(st.sampled_from(NUMBERS)) & 0xFFFF)
            case 3:
                raw[at : at + 4] = data.draw(st.sampled_from(WORDS))
            case 4:
                raw[at:at] = data.draw(st.binary(max_size=12))
            case _:
                del raw[at : at + data.draw(st.integers(1, 400))]
    path = tmp_path / "mangled.wav"
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", AudioWarning)
        try:
            samples, sample_rate = read_audio(path)
        except AudioError as error:
            assert str(path) in str(error)
            assert len(str(error).splitlines()) == 1
        else:
            assert samples.ndim == 1 and samples.size and sample_rate > 0
            assert np.isfinite(samples).all()


def load(path: Path, content: bytes) -> None:
    """The file loads, or is refused in one printable line that names it."""
    path.write_bytes(content)
    try:
        load_settings(path, environment={})
    except SettingsError as error:
        assert str(path) in str(error)
        assert len(str(error).splitlines()) == 1
        str(error).encode()  # what cannot be printed is no message


@FUZZ
@given(data=st.data())
def test_mangled_settings_files(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(TEXT.encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw)))
        match data.draw(st.integers(0, 4)):
            case 0:
                raw[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case 1:
                raw[at:at] = data.draw(st.sampled_from(PIECES)).encode()
            case 2:
                del raw[at : at + data.draw(st.integers(1, 60))]
            case 3:
                raw[at:at] = raw[: data.draw(st.integers(0, 200))]
            case _:
                # a value in the place of another
                lines = raw.split(b"\n")
                which = data.draw(st.integers(0, len(lines) - 1))
                name = lines[which].split(b"=")[0]
                lines[which] = name + b"= " + data.draw(st.sampled_from(PIECES)).encode()
                raw = bytearray(b"\n".join(lines))
    load(tmp_path / "mangled.toml", bytes(raw))


def toml(value: object) -> str:
    """As TOML writes it, as far as TOML can."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {toml(one)}" for key, one in value.items()) + "}"
    return quoted(value) if isinstance(value, str) else str(value)


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(one):08x}" for one in text) + '"'


@FUZZ
@given(
    section=st.sampled_from(["audio", "store", "bundle", "quality", "demo", "training"]) | st.text(max_size=6),
    keys=st.dictionaries(
        st.sampled_from(["path", "device", "seed", "threads", "enabled", "a"]) | st.text(max_size=6), values, max_size=3
    ),
)
def test_settings_of_any_shape(tmp_path: Path, section: str, keys: dict[str, object]) -> None:
    lines = [f"[{quoted(section)}]", *(f"{quoted(key)} = {toml(value)}" for key, value in keys.items())]
    load(tmp_path / "shaped.toml", "\n".join(lines).encode("utf-8", "surrogatepass"))
