"""Recordings on disk: every format that is promised, and every way in which a file can be broken."""

import os
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device.audio import AudioError, ChannelWarning, read_audio, read_header
from device.signal import FloatArray
from firmware_config.errors import RespSAMError

SAMPLE_RATE = 8000
# the folder is shared by the examples of one test: each writes its own bytes over the last ones
FUZZ = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def breath(samples: int = 4000) -> FloatArray:
    return (0.2 * np.random.default_rng(0).standard_normal(samples)).clip(-0.99, 0.99).astype(np.float32)


def written(path: Path, samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]], subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, SAMPLE_RATE, subtype=subtype)
    return path


def refused(path: Path, words: str) -> None:
    """read_audio says in one line which file and what is wrong; so does read_header, or it lets the file through."""
    with pytest.raises(AudioError, match=words) as raised:
        read_audio(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, RespSAMError)


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_16", 2**-15),
        ("a.wav", "PCM_24", 2**-23),
        ("a.wav", "PCM_32", 2**-24),
        ("a.wav", "FLOAT", 0.0),
        ("a.flac", "PCM_16", 2**-15),
        ("a.flac", "PCM_24", 2**-23),
    ],
)
def test_formats(tmp_path: Path, name: str, subtype: str, tolerance: float) -> None:
    path = written(tmp_path / name, breath(), subtype)
    samples, sample_rate = read_audio(path)
    assert samples.dtype == np.float32
    assert (samples.shape, sample_rate) == ((4000,), SAMPLE_RATE)
    np.testing.assert_allclose(samples, breath(), rtol=0, atol=tolerance)
    header = read_header(path)
    assert (header.sample_rate, header.frames, header.channels, header.seconds) == (SAMPLE_RATE, 4000, 1, 0.5)


def test_of_several_channels_the_first_is_heard_with_a_warning(tmp_path: Path) -> None:
    stereo = np.stack([breath(), np.zeros(4000, np.float32)], axis=1)
    path = written(tmp_path / "two.wav", stereo, "FLOAT")
    with pytest.warns(ChannelWarning, match=r"two\.wav.*2 channels"):
        samples, _ = read_audio(path)
    np.testing.assert_array_equal(samples, breath())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_audio(written(tmp_path / "one.wav", breath()))


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "absent.wav", "no such recording")
    refused(tmp_path, "no such recording")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_not_permitted(tmp_path: Path) -> None:
    path = written(tmp_path / "locked.wav", breath())
    path.chmod(0)
    refused(path, "Permission denied")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "empty.wav", "empty")


def test_header_only(tmp_path: Path) -> None:
    path = written(tmp_path / "silent.wav", breath(0))
    assert path.stat().st_size >= 44
    refused(path, "no samples")


def test_text_named_wav(tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("0.0\t1.5\t0\t1\n")
    refused(tmp_path / "notes.wav", "not a readable wav or flac")


@pytest.mark.parametrize("lost", [2, 3, 1000, 7000])
def test_truncated_wav(tmp_path: Path, lost: int) -> None:
    path = written(tmp_path / "cut.wav", breath())
    path.write_bytes(path.read_bytes()[:-lost])
    refused(path, "truncated")
    with pytest.raises(AudioError, match="truncated"):
        read_header(path)


@pytest.mark.parametrize("kept_share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_flac(tmp_path: Path, kept_share: float) -> None:
    path = written(tmp_path / "cut.flac", breath(50_000))
    whole = path.read_bytes()
    path.write_bytes(whole[: round(kept_share * len(whole))])
    refused(path, "truncated|damaged")


def test_a_recorder_that_could_not_seek_back_is_read_whole(tmp_path: Path) -> None:
    """A streamed wav says 0xFFFFFFFF bytes, and that is no truncation."""
    path = written(tmp_path / "streamed.wav", breath())
    raw = bytearray(path.read_bytes())
    raw[4:8] = raw[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(raw)
    assert read_audio(path)[0].shape == (4000,)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_is_an_error_with_its_time(tmp_path: Path, value: float) -> None:
    samples = breath()
    samples[2000:] = value
    refused(written(tmp_path / "nan.wav", samples, "FLOAT"), r"0\.250 s")


@pytest.mark.parametrize("sample_rate", [0, 1, 2**31 - 1])
def test_a_sample_rate_that_no_recorder_has_is_an_error(tmp_path: Path, sample_rate: int) -> None:
    """Resampling a damaged header's 1 Hz to 16 kHz would fill the memory."""
    path = written(tmp_path / "rate.wav", breath())
    raw = bytearray(path.read_bytes())
    raw[24:28] = struct.pack("<I", sample_rate)
    path.write_bytes(raw)
    refused(path, "sample rate|not a readable")


def test_a_flac_that_promises_more_than_memory_holds_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "huge.flac", breath())
    raw = bytearray(path.read_bytes())
    # STREAMINFO ends its packed fields with 36 bits of total samples (RFC 9639, 8.2), at bytes 21-25 of the file
    raw[21] |= 0x0F
    raw[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    refused(path, "truncated|damaged|not a readable")


def _bytes_of(name: str, folder: Path) -> bytes:
    return written(folder / name, breath(300)).read_bytes()


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@settings(FUZZ, max_examples=150)
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused_but_never_crash(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Few flipped bytes near the headers, and a cut: either a finite recording or an AudioError, never another one."""
    raw = bytearray(_bytes_of(name, tmp_path))
    flips = st.tuples(st.integers(0, min(len(raw), 120) - 1), st.integers(0, 255))
    for position, value in data.draw(st.lists(flips, max_size=4)):
        raw[position] = value
    path = tmp_path / f"damaged-{name}"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChannelWarning)
        try:
            samples, sample_rate = read_audio(path)
        except AudioError as error:
            assert str(path) in str(error)
        else:
            assert samples.size == read_header(path).frames > 0
            assert sample_rate > 0
            assert np.isfinite(samples).all()


@given(content=st.binary(max_size=400))
@settings(FUZZ, max_examples=50)
def test_arbitrary_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise.wav"
    path.write_bytes(b"RIFF" + content)
    with pytest.raises(AudioError):
        read_audio(path)
