"""How the flags of a demo agree with the simulated breaths; no verdict depends on that truth."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from device.listening.cycle import CycleResult

if TYPE_CHECKING:  # the simulator imports scipy.signal, which takes long
    from device.breath.simulator import Breath


class AgreementObject(TypedDict):
    """The `demo_agreement` of a summary: graded cycles of a demo."""

    abnormal: int
    abnormal_heard: int
    normal: int
    normal_left_alone: int


@dataclass(frozen=True)
class Agreement:
    """Counts over the graded cycles of a demo."""

    abnormal: int
    abnormal_heard: int
    normal: int
    normal_left_alone: int

    def as_json(self) -> AgreementObject:
        """For a summary."""
        return {
            "abnormal": self.abnormal,
            "abnormal_heard": self.abnormal_heard,
            "normal": self.normal,
            "normal_left_alone": self.normal_left_alone,
        }

    def __str__(self) -> str:
        agreed, cycles = self.abnormal_heard + self.normal_left_alone, self.abnormal + self.normal
        return (
            f"agreement with the simulator's truth: {agreed} of {cycles} cycles "
            f"(abnormal heard {self.abnormal_heard} of {self.abnormal}, normal left alone {self.normal_left_alone} of "
            f"{self.normal})"
        )


def truly_abnormal(start_seconds: float, end_seconds: float, breaths: "Sequence[Breath]") -> bool:
    """Whether an abnormal breath overlaps this interval by at least half of the shorter of the two.

    `breaths` are in order and do not overlap.
    """
    first = bisect_right(breaths, start_seconds, key=lambda breath: breath.end_seconds)
    for breath in breaths[first : bisect_left(breaths, end_seconds, key=lambda breath: breath.onset_seconds)]:
        shared = min(end_seconds, breath.end_seconds) - max(start_seconds, breath.onset_seconds)
        shorter = min(breath.end_seconds - breath.onset_seconds, end_seconds - start_seconds)
        if breath.label != "normal" and shared >= shorter / 2:
            return True
    return False


def agreement_of(results: Iterable[CycleResult], breaths: "Sequence[Breath]") -> Agreement:
    """Compare every graded cycle with the breaths that were simulated in it."""
    graded = [
        (truly_abnormal(result.start_seconds, result.end_seconds, breaths), result.flagged)
        for result in results
        if result.judgement is not None
    ]
    return Agreement(
        abnormal=sum(true for true, _ in graded),
        abnormal_heard=sum(true and flagged for true, flagged in graded),
        normal=sum(not true for true, _ in graded),
        normal_left_alone=sum(not true and not flagged for true, flagged in graded),
    )
