"""A stethoscope measured, and compared with its passport: each fault is named, and nothing where there is none."""

from pathlib import Path

import numpy as np
import pytest

from device.breath.simulator import simulate
from device.capture.blocks import SILENCE, Block
from device.capture.stethoscope import PLUG_IN_SECONDS, PlugInTest, drift, measured, rolloff_hz, self_test_passport
from device.signal import SAMPLE_RATE, FloatArray
from firmware_config.passports import Measured, PassportError, write_passport

MADE_AT = "2026-12-01T10:00:00+01:00"
QUIET = np.random.default_rng(0).normal(0.0, 1e-4, 5 * SAMPLE_RATE).astype(np.float32)
CHEST = (simulate(1, 30.0).samples + np.resize(QUIET, 30 * SAMPLE_RATE)).astype(np.float32)


def known(taps: FloatArray = QUIET) -> Measured:
    return measured(QUIET, CHEST, taps, "Steth", MADE_AT)


def low_passed(samples: FloatArray, hz: float) -> FloatArray:
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(samples.size, 1 / SAMPLE_RATE) > hz] = 0.0
    return np.fft.irfft(spectrum, samples.size).astype(np.float32)


def test_the_measures_are_those_of_the_sound() -> None:
    found = known()
    assert found.noise_dbfs == pytest.approx(-80.0, abs=1.0)
    assert found.noise_dbfs + 3.0 < found.chest_dbfs < 0.0
    assert found.clipping_dbfs is None
    assert rolloff_hz(QUIET) == pytest.approx(0.95 * 7900 + 100, rel=0.05)
    assert found.rolloff_hz < rolloff_hz(QUIET)


@pytest.mark.parametrize("ceiling", [1.0, 0.25])
def test_the_clipping_point_is_a_ceiling_that_the_taps_reach(ceiling: float) -> None:
    taps = np.clip(3.0 * np.sin(np.linspace(0.0, 300.0, SAMPLE_RATE)), -ceiling, ceiling).astype(np.float32)
    assert known(taps).clipping_dbfs == pytest.approx(20 * np.log10(ceiling), abs=0.1)


def test_a_step_without_sound_or_without_breath_is_refused() -> None:
    with pytest.raises(PassportError, match="Steth: complete silence: it is muted"):
        measured(np.zeros(SAMPLE_RATE, np.float32), CHEST, CHEST, "Steth", MADE_AT)
    with pytest.raises(PassportError, match="Steth: no breath: -80 dBFS on the chest, -80 dBFS off it"):
        measured(QUIET, QUIET, CHEST, "Steth", MADE_AT)


def test_the_same_stethoscope_has_not_drifted_on_another_chest() -> None:
    for seed, gain in ((2, 1.0), (3, 3.0), (4, 0.5)):
        chest = simulate(seed, 15.0).samples * np.float32(gain) + np.resize(QUIET, 15 * SAMPLE_RATE)
        assert drift(known(), chest.astype(np.float32)) == []
    assert drift(known(), QUIET) == []


@pytest.mark.parametrize(
    ("sound", "said"),
    [
        (np.zeros_like(CHEST), "a dead channel: complete silence"),
        (QUIET * np.float32(0.1), "another gain, or a dead channel: -100 dBFS, its noise alone was -80 dBFS"),
        (np.clip(1000 * CHEST, -1, 1), "another gain: "),
        (low_passed(CHEST, 150.0), "a narrower band: up to 1"),
    ],
)
def test_each_fault_is_named_with_what_to_do(sound: FloatArray, said: str) -> None:
    (words,) = drift(known(), sound)
    assert words.startswith(said)
    assert "when its passport was made (2026-12-01)" in words


def test_a_plug_in_is_tested_once_and_again_after_a_replug() -> None:
    test = PlugInTest(known(), gain_db=20.0)
    dead = QUIET * np.float32(0.1)  # by the gain as loud as in the passport
    blocks = [Block(np.resize(10 * dead, SAMPLE_RATE))] * round(3 * PLUG_IN_SECONDS)
    found = [said for block in blocks for said in test.look(block)]
    assert [said.kind for said in found] == ["drift"]
    assert found[0].note.startswith("another gain, or a dead channel")
    assert list(test.look(Block(SILENCE, 0, "back", "sound again after 3.0 s"))) == []
    assert len([said for block in blocks for said in test.look(block)]) == 1


def test_a_passport_from_the_self_test(tmp_path: Path) -> None:
    made = self_test_passport("Ward 3", "Steth [1]", [QUIET, CHEST, QUIET], tmp_path / "nowhere.toml")
    assert (made.name, made.match.names, made.calibrations) == ("Ward 3", ("Steth [[]1]",), ())
    assert made.measured is not None and made.measured.device == "Steth [1]"
    own = tmp_path / "own.toml"
    write_passport(own, made.model_copy(update={"gain_db": 6.0}))
    again = self_test_passport("Ward 3", "Steth [1]", [QUIET, CHEST, np.zeros_like(QUIET)], own)
    assert (again.gain_db, again.measured and again.measured.clipping_dbfs) == (6.0, -160.0)
