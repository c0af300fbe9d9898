"""The capture process: its ring, the choice of an input, the list of inputs."""

import os

import numpy as np
import pytest

from device.capture.process import CaptureError, Ring, find_device, input_devices, stable_name
from tests.device.virtual_microphone import DEFAULT, NAME, VirtualMicrophone

# parts


def test_a_full_ring_drops_the_newest_and_says_how_many_where() -> None:
    memory = os.memfd_create("test")
    put, take = Ring(memory, 100, 2), Ring(memory, 100)
    fits = [put.put(np.full(100, value, np.float32), value) for value in (1.0, 2.0, 3.0, 4.0)]
    assert fits == [True, True, False, False]
    taken = [take.take(), take.take()]
    assert put.put(np.full(100, 5.0, np.float32), 5.0, overflowed=True)
    taken.append(take.take())
    assert [(one.samples[99], one.clock, one.lost_frames, one.overflows) for one in taken] == [
        (1.0, 1.0, 0, 0),
        (2.0, 2.0, 0, 0),
        (5.0, 5.0, 200, 1),
    ]
    os.close(memory)


def device(index: int, name: str, host_api: str = "ALSA", default: bool = False) -> dict[str, object]:
    return {
        "index": index,
        "name": name,
        "host_api": host_api,
        "channels": 1,
        "sample_rate": 48_000,
        "default": default,
    }


INPUTS = [
    device(0, "Stethoscope: USB Audio (hw:1,0)"),
    device(1, "Webcam: USB Audio (hw:2,0)", default=True),
    device(2, "Webcam: USB Audio (hw:2,0)", "JACK"),
]


@pytest.mark.parametrize(("word", "index"), [("", 1), ("0", 0), ("stetho", 0), ("Stethoscope: USB Audio", 0)])
def test_the_input_that_is_meant_is_found(word: str, index: int) -> None:
    assert find_device(INPUTS, word)["index"] == index


def test_a_replugged_device_is_found_under_its_new_number_and_no_other_in_its_place() -> None:
    name = stable_name("Stethoscope: USB Audio (hw:1,0)")
    assert name == "Stethoscope: USB Audio"
    again = [INPUTS[1], device(0, "Stethoscope: USB Audio (hw:7,0)")]
    assert find_device(again, name, "ALSA", remembered=True)["name"].endswith("(hw:7,0)")
    assert find_device(INPUTS, "Webcam: USB Audio", "JACK", remembered=True)["index"] == 2
    for other in ([INPUTS[1]], [device(3, f"Second {name} (hw:1,0)")], [device(0, name, "JACK")], []):
        with pytest.raises(CaptureError, match="no microphone called") as error:
            find_device(other, name, "ALSA", remembered=True)
        assert not error.value.hopeless


@pytest.mark.parametrize(
    ("word", "hopeless", "said"),
    [("USB", True, "several microphones"), ("7", False, "called '7'"), ("Piano", False, "called 'Piano'")],
)
def test_what_cannot_be_told_apart_or_found_is_refused(word: str, hopeless: bool, said: str) -> None:
    with pytest.raises(CaptureError, match=said) as error:
        find_device(INPUTS, word)
    assert error.value.hopeless == hopeless
    with pytest.raises(CaptureError, match="no default input"):
        find_device(INPUTS[:1], "")


@pytest.mark.sound
def test_the_inputs_are_listed_without_hanging(plugged: VirtualMicrophone) -> None:
    assert {NAME, DEFAULT, "default"} == {one["name"] for one in input_devices()}
    assert [one["name"] for one in input_devices() if one["default"]] == ["default"]
