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

from device.breath.simulator import simulate
from device.capture.recording import AudioError, AudioWarning, ChannelWarning, looks_like_sound, read_audio, read_header
from device.signal import FloatArray
from firmware_config.errors import RespSAMError
from firmware_config.files import is_clutter

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


@pytest.mark.parametrize("lost", [200, 1000, 7000])
def test_truncated_wav(tmp_path: Path, lost: int) -> None:
    path = written(tmp_path / "cut.wav", breath())
    path.write_bytes(path.read_bytes()[:-lost])
    refused(path, rf"truncated, {(8000 - lost) / 16000:.1f} of 0\.5 s are there")
    with pytest.raises(AudioError, match="truncated"):
        read_header(path)


@pytest.mark.parametrize("lost", [1, 2, 3, 8])
def test_a_count_that_is_wrong_by_some_frames_is_no_truncation(tmp_path: Path, lost: int) -> None:
    path = written(tmp_path / "sloppy.wav", breath())
    path.write_bytes(path.read_bytes()[:-lost])
    assert read_audio(path)[0].size == (8000 - lost) // 2


@pytest.mark.parametrize("kept_share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_flac(tmp_path: Path, kept_share: float) -> None:
    path = written(tmp_path / "cut.flac", breath(50_000))
    whole = path.read_bytes()
    path.write_bytes(whole[: round(kept_share * len(whole))])
    refused(path, "truncated|damaged")


def with_sizes(path: Path, riff: int, data: int, more: bytes = b"") -> Path:
    """The same samples behind another header."""
    raw = bytearray(path.read_bytes())
    raw[4:8], raw[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    path.write_bytes(raw + more)
    return path


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),  # ffmpeg to a pipe
        (0x7FFFF024, 0x7FFFF000),  # SoX
        (0x80000024, 0x80000000),  # arecord
        (0x7FFFFFFF, 0x7FFFFFFF),  # Android
        (0x7FFFFFFF, 0x7FFFFFFF - 36),
        (0xFFFFFFFF, 8000),
        (0, 8000),
        (100, 8000),
        (8044, 8000),  # counts itself
        (8036 + 0x60000000, 8000),  # one wrong byte
        (8036, 8000 + 0x60000000),
    ],
)
def test_a_header_that_counts_wrong_loses_nothing(tmp_path: Path, riff: int, data: int) -> None:
    path = written(tmp_path / "a.wav", breath())
    whole = read_audio(path)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_audio(with_sizes(path, riff, data))[0], whole)
    assert read_header(path).frames == 4000


@pytest.mark.parametrize("riff", [0, 36, 8036])
def test_a_recorder_that_was_killed_loses_nothing_and_it_is_said(tmp_path: Path, riff: int) -> None:
    path = written(tmp_path / "a.wav", breath())
    whole = read_audio(path)[0]
    with pytest.warns(AudioWarning, match=r"did not finish the file; the 0\.5 s that are there are read"):
        np.testing.assert_array_equal(read_audio(with_sizes(path, riff, 0))[0], whole)
    assert read_header(path).frames == 4000


def test_chunks_behind_no_samples_are_no_sound(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", breath(0))
    refused(with_sizes(path, 36, 0, b"LIST" + struct.pack("<I", 4) + b"INFO"), "no samples")


def test_big_endian_and_64_bit_headers_are_read_and_their_truncation_is_seen(tmp_path: Path) -> None:
    for name, options in (("x.wav", {"endian": "BIG"}), ("64.wav", {"format": "RF64"})):
        path = tmp_path / name
        soundfile.write(path, breath(), SAMPLE_RATE, subtype="PCM_16", **options)
        np.testing.assert_allclose(read_audio(path)[0], breath(), rtol=0, atol=2**-15)
        path.write_bytes(path.read_bytes()[:-1000])
        refused(path, r"truncated, 0\.4 of 0\.5 s are there")


def test_a_flac_from_a_pipe_does_not_know_its_length(tmp_path: Path) -> None:
    path = written(tmp_path / "a.flac", breath(50_001))
    whole, raw = read_audio(path)[0], bytearray(path.read_bytes())
    raw[21] &= 0xF0  # 36 bits of total samples (RFC 9639, 8.2)
    raw[22:26] = bytes(4)
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_audio(path)[0], whole)
    assert read_header(path).frames == 50_001


def test_a_stream_longer_than_its_placeholder_is_read_to_its_end(tmp_path: Path) -> None:
    """A night from SoX is longer than the 2 GiB that its header says; here the file is made of holes."""
    path = with_sizes(written(tmp_path / "night.wav", breath()), 0x7FFFF024, 0x7FFFF000)
    seconds = (1 << 31) / 2 / SAMPLE_RATE + 10
    with path.open("r+b") as file:
        file.truncate(44 + round(seconds * SAMPLE_RATE) * 2)
    assert read_header(path).seconds == seconds


@pytest.mark.parametrize(("scale", "by"), [(30_000, 32_768), (8e6, 8_388_608), (2e9, 2_147_483_648)])
def test_float_samples_on_an_integers_scale_are_said_to_be_so(tmp_path: Path, scale: float, by: int) -> None:
    loud = (breath() * scale).astype(np.float32)
    path = written(tmp_path / "a.wav", loud, "FLOAT")
    with pytest.warns(AudioWarning, match=f"full scale is 1.0; taken as integers and divided by {by}"):
        np.testing.assert_allclose(read_audio(path)[0], loud / by, rtol=1e-6)
    refused(written(path, (breath() * 1e15).astype(np.float32), "FLOAT"), "full scale is 1.0")


def test_the_asked_channel_is_heard(tmp_path: Path) -> None:
    path = written(tmp_path / "two.wav", np.stack([0 * breath(), breath()], axis=1), "FLOAT")
    with pytest.warns(ChannelWarning, match=r"2 channels, only channel 1 is used \(counted from 0\)"):
        np.testing.assert_array_equal(read_audio(path, 1)[0], breath())
    with pytest.raises(AudioError, match="has no channel 2"):
        read_audio(path, 2)
    # the microphone's setting does not refuse what has only one
    np.testing.assert_array_equal(read_audio(written(tmp_path / "one.wav", breath(), "FLOAT"), 1)[0], breath())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_auto_hears_the_channel_with_breathing_in_it(tmp_path: Path, place: int) -> None:
    """Beside a louder heart, hiss and nothing at all."""
    lung = simulate(3, 20.0).samples
    time = np.arange(lung.size) / 16_000
    heart = (0.5 * np.sin(2 * np.pi * 50 * time) * (np.sin(2 * np.pi * 1.2 * time) > 0.9)).astype(np.float32)
    hiss = (0.1 * np.random.default_rng(0).standard_normal(lung.size)).astype(np.float32)
    channels = [heart, hiss, 0 * lung]
    channels[place] = lung
    soundfile.write(tmp_path / "three.wav", np.stack(channels, axis=1), 16_000, subtype="FLOAT")
    with pytest.warns(ChannelWarning, match=f"only channel {place} is used .*the one with breathing in it"):
        samples, _ = read_audio(tmp_path / "three.wav", "auto")
    np.testing.assert_array_equal(samples, lung)


def test_clutter_of_other_systems_is_known_by_its_name() -> None:
    clutter = ("._a.wav", ".DS_Store", "__MACOSX", "Thumbs.db", "desktop.ini")
    assert all(is_clutter(Path("x") / name) for name in clutter)
    assert not any(is_clutter(Path(name)) for name in ("a.wav", ".hidden.wav", "_._a.wav", "__MACOSX/a.wav"))


def test_what_looks_like_sound(tmp_path: Path) -> None:
    sound, text, table = tmp_path / "REC0001", tmp_path / "a.wav.txt", tmp_path / "a.csv"
    written(tmp_path / "a.wav", breath()).rename(sound)
    text.write_text("no sound")
    table.write_bytes(b"RIFF0000AVI ")
    assert all(map(looks_like_sound, (sound, Path("absent.M4A"), Path("a.WAV"), Path("a.mp3"))))
    assert not any(map(looks_like_sound, (text, table, tmp_path, tmp_path / "absent")))


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
        warnings.simplefilter("ignore", AudioWarning)
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
