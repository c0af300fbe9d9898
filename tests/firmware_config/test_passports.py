"""Passports: their facts, how a stethoscope is recognised, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from firmware_config.passports import (
    SHIPPED,
    Calibration,
    PassportError,
    all_passports,
    find_passport,
    new_file,
    own_folder,
    read_passport,
    recognise,
    usb_of,
    write_passport,
)

PLAIN = 'name = "{name}"\n[connection]\ntext = "a cable"\nsource = "seen"\n[match]\nnames = ["{pattern}"]\n'
KEYS = ["eko-core", "eko-duo", "littmann-3200", "littmann-core", "thinklabs-one", "usb-microphone", "yunting-ii"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


def own(key: str, pattern: str, more: str = "") -> Path:
    own_folder().mkdir(parents=True, exist_ok=True)
    file = own_folder() / f"{key}.toml"
    file.write_text(PLAIN.format(name=key, pattern=pattern) + more)
    return file


def refused(file: Path) -> str:
    with pytest.raises(PassportError) as error:
        read_passport(file)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    return str(error.value)


def facts(value: Any) -> list[dict[str, Any]]:
    """Every table that states a fact."""
    if isinstance(value, dict):
        inner = [fact for one in value.values() for fact in facts(one)]
        return inner + [value] * (not inner and bool(value.keys() & {"text", "hz", "low_hz", "source"}))
    return [fact for one in value for fact in facts(one)] if isinstance(value, list | tuple) else []


def test_every_shipped_fact_has_a_source_and_no_usb_id_is_guessed() -> None:
    passports = all_passports()
    assert [found.key for found in passports] == KEYS
    for found in passports:
        stated = facts(found.passport.model_dump(exclude_none=True))
        assert stated and all(fact["source"].strip() for fact in stated), found.key
        # none is published; one that was seen comes with who saw it
        assert found.passport.match.usb == ()
        assert not found.own


def test_a_written_passport_is_read_as_it_was() -> None:
    known = find_passport("littmann-3200").passport
    calibration = Calibration(
        name="a-1", made_at="2026-12-01T10:00:00+01:00", bundle="0" * 64, bundle_threshold=0.25, threshold=1 / 3,
        people=5, sites=20, sites_flagged_before=3, sites_flagged_after=1,
    )  # fmt: skip
    changed = known.model_copy(update={"name": 'the "new" one', "calibrations": (calibration, calibration)})
    file = own_folder() / "mine.toml"
    write_passport(file, changed)
    assert read_passport(file).passport == changed
    assert changed.calibration("0" * 64) == calibration and changed.calibration("1" * 64) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "[band]\nlow_hz = 2000\nhigh_hz = 20\nsource = 's'\n",
            "an impossible band: it begins at 2000 Hz and ends at 20",
        ),
        (
            "[band]\nlow_hz = 20\nhigh_hz = 3000\nsource = 's'\n[native_rates]\nhz = [4000]\nsource = 's'\n",
            "2000 Hz at most",
        ),
        ("[band]\nlow_hz = 20\nhigh_hz = 2000\n", "band.source: Field required"),
        ("[gains]\nx = 1\n", "gains: unknown key"),
        ("[[quirks]]\ntext = 1\nsource = 's'\n", "quirks.0.text: "),
    ],
)
def test_an_impossible_passport_is_refused_with_its_file(more: str, said: str) -> None:
    file = own("wrong", "*wrong*", more)
    message = refused(file)
    assert str(file) in message and said in message


def test_a_usb_id_is_eight_hexadecimal_digits() -> None:
    file = own("wrong", "x")
    file.write_text(file.read_text().replace("[match]\n", '[match]\nusb = ["0x1234:5678"]\n'))
    assert "match.usb.0" in refused(file)


def test_a_stethoscope_is_recognised_by_its_name() -> None:
    def key(device: str, wanted: str = "") -> str | None:
        found = recognise(device, wanted)
        return found.key if found else None

    assert key("3M Littmann 3200: USB Audio") == "littmann-3200"
    assert key("EKO CORE") == "eko-core"
    assert key("Sound Blaster: USB Audio (hw:1,0)") == "usb-microphone"
    assert key("default") is None
    assert key("default", "thinklabs-one") == "thinklabs-one"
    assert key("EKO CORE", "none") is None
    with pytest.raises(PassportError, match="no passport is called 'thinklabs'; nearest: 'thinklabs-one'"):
        key("default", "thinklabs")


def test_an_own_passport_wins_and_two_that_match_are_refused() -> None:
    mine = own("mine", "*core*")
    found = recognise("Eko CORE")
    assert found is not None and (found.file, found.own) == (mine, True)
    other = own("other", "eko*")
    with pytest.raises(PassportError) as error:
        recognise("Eko CORE")
    assert str(error.value).startswith(f"Eko CORE: two passports match, {mine} and {other}; set audio.passport to ")
    chosen = recognise("Eko CORE", "other")
    assert chosen is not None and chosen.key == "other"
    own("eko-core", "*eko*core*")  # replaces the shipped one of this name
    assert [found.own for found in all_passports() if found.key == "eko-core"] == [True]
    assert (SHIPPED / "eko-core.toml").is_file()


def test_the_usb_id_is_that_of_the_card_with_the_inputs_name(tmp_path: Path) -> None:
    asound = tmp_path / "proc/asound"
    (asound / "card1").mkdir(parents=True)
    (asound / "cards").write_text(
        " 0 [PCH            ]: HDA-Intel - HDA Intel PCH\n                      HDA Intel PCH at 0xb1\n"
        " 1 [Steth          ]: USB-Audio - Steth Pro\n                      Maker Steth Pro at usb-0000:00:14.0-1\n"
    )
    (asound / "card1/usbid").write_text("1a2b:3c4d\n")
    assert usb_of("Steth Pro: USB Audio (hw:1,0)", tmp_path) == "1a2b:3c4d"
    assert usb_of("HDA Intel PCH: ALC", tmp_path) == "" == usb_of("Steth Pro", tmp_path / "nowhere")
    file = own("by-usb", "nothing")
    file.write_text(file.read_text().replace("[match]\n", '[match]\nusb = ["1a2b:3c4d"]\n'))
    own("by-name", "steth*")
    found = recognise("Steth Pro: USB Audio", root=tmp_path)
    assert found is not None and found.key == "by-usb"


def test_a_new_passport_needs_a_name_of_its_own() -> None:
    assert new_file("Nurse's Eko No. 2").name == "nurse-s-eko-no-2.toml"
    file = own("mine", "x")
    with pytest.raises(PassportError, match="this passport is there already; give --replace"):
        new_file("Mine")
    with pytest.raises(PassportError, match="at most 40 letters"):
        new_file("a" * 300)
    assert new_file("Mine", replace=True) == file
    for name in ("???", "none"):
        with pytest.raises(PassportError, match="is no name for a passport"):
            new_file(name)
