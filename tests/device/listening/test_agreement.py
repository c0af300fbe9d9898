"""The demo's agreement with the simulator's truth, on a hand-made session."""

import numpy as np

from device.breath.quality import Quality
from device.breath.simulator import Breath
from device.labels import Label
from device.listening.agreement import agreement_of, truly_abnormal
from device.listening.cycle import CycleResult
from device.model.judgement import Judgement
from device.signal import SAMPLE_RATE

BREATHS = (
    Breath(0.0, 1.0, 3.0, "normal"),
    Breath(3.0, 4.0, 6.0, "crackle"),
    Breath(6.0, 7.0, 9.0, "normal"),
    Breath(9.0, 10.0, 12.0, "wheeze"),
)


GOOD = Quality(-40.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def cycle(start: float, end: float, abnormal: bool | None) -> CycleResult:
    leading: Label = "crackle"
    judgement = None if abnormal is None else Judgement(0.9 if abnormal else 0.1, abnormal, leading)
    nothing = np.empty(0, np.float32)
    return CycleResult(
        1, round(start * SAMPLE_RATE), round(end * SAMPLE_RATE), "breath", 0.5, GOOD, judgement, True, nothing
    )


def test_a_stretch_is_abnormal_when_it_holds_half_of_an_abnormal_breath_or_half_consists_of_one() -> None:
    assert truly_abnormal(3.0, 6.0, BREATHS)
    assert truly_abnormal(0.0, 4.5, BREATHS)  # half of the breath, a third of the stretch
    assert not truly_abnormal(0.0, 4.4, BREATHS)
    assert truly_abnormal(2.0, 4.0, BREATHS)  # half of the stretch, a third of the breath
    assert not truly_abnormal(1.9, 3.9, BREATHS)
    assert not truly_abnormal(6.0, 9.0, BREATHS)


def test_counts_and_their_words() -> None:
    results = [
        cycle(0, 3, False),
        cycle(3, 6, True),
        cycle(6, 9, True),
        cycle(9, 12, False),
        cycle(9, 12, None),  # not graded: neither right nor wrong
    ]
    counted = agreement_of(results, BREATHS)
    assert counted.as_json() == {"abnormal": 2, "abnormal_heard": 1, "normal": 2, "normal_left_alone": 1}
    assert str(counted) == (
        "agreement with the simulator's truth: 2 of 4 cycles (abnormal heard 1 of 2, normal left alone 1 of 2)"
    )
