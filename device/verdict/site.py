"""The verdict of one site from its judged cycles. A cycle's flag and a complete verdict are never withdrawn."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from scipy.special import expit, logit

from device.bundle import SiteRule
from device.labels import Label
from device.model.judgement import Judgement
from device.signal import Float64Array
from firmware_config.command_line import counted

Verdict = Literal["flagged", "nothing flagged", "not enough", "poor quality"]
SUREST: Final = 0.01  # no single cycle outweighs all others in a mean of log-odds


def sounds(labels: Sequence[Label]) -> list[str]:
    """The sounds in cycles of these abnormal classes; 'both' is crackle and wheeze."""
    return sorted({sound for label in labels for sound in (("crackle", "wheeze") if label == "both" else (label,))})


def together(probability: Float64Array) -> float:
    """One probability for a stretch's cycles (count,), at least one: that of their mean log-odds."""
    return float(expit(logit(np.clip(probability, SUREST, 1.0 - SUREST)).mean()))


class SiteDecision:
    """Running verdict of one auscultation site by the bundle's rule over its gradable cycles, in bounded memory.

    The first stretch decides; every later one is only counted. Call `end` when no more cycles come.
    """

    def __init__(self, rule: SiteRule) -> None:
        self.rule = rule
        self.graded = 0
        """Gradable cycles so far."""
        self.abnormal = 0
        """Flagged ones among these."""
        self.named: Counter[Label] = Counter()
        """Leading classes of the cycles in the first stretch that reach the rule's threshold."""
        self.ungradable: Counter[str] = Counter()
        """Why the others were not graded."""
        self.failure = ""
        """Why the model failed; the verdict is then never 'nothing flagged'."""
        self.stretches = 0
        """Complete stretches."""
        self.stretches_flagged = 0
        """Flagged ones among these."""
        self.ended = False
        """No more cycles come: the first stretch is judged as it is."""
        self._first: tuple[float, ...] = ()
        self._running: tuple[float, ...] = ()

    def add(self, judgement: Judgement) -> None:
        """Count a gradable cycle."""
        self.graded += 1
        self.abnormal += judgement.abnormal
        self._running = (*self._running, judgement.probability)
        if self.stretches == 0:
            self._first = self._running
            if judgement.probability >= self.rule.threshold:
                self.named[judgement.leading] += 1
        if len(self._running) == self.rule.stretch_cycles:
            self.stretches += 1
            self.stretches_flagged += self._reached(self._running)
            self._running = ()

    def refuse(self, reason: str) -> None:
        """Count a cycle that is not gradable."""
        self.ungradable[reason] += 1

    def end(self) -> None:
        """No more cycles come."""
        self.ended = True

    @property
    def breaths_wanted(self) -> int:
        """Gradable cycles that the running stretch still needs."""
        return self.rule.stretch_cycles - len(self._running)

    @property
    def probability(self) -> float | None:
        """Of the first stretch so far; None below the rule's least number of cycles."""
        first = self._first
        return together(np.array(first)) if len(first) >= self.rule.least_cycles else None

    @property
    def verdict(self) -> Verdict:
        """`flagged` has priority, and is given as soon as no further cycle can change it."""
        first = self._first
        complete = self.stretches > 0 or self.ended
        enough = len(first) >= self.rule.least_cycles
        if enough and self._reached(first if complete else (*first, *[0.0] * self.breaths_wanted)):
            return "flagged"
        if self.failure:
            return "not enough"
        if enough:
            return "nothing flagged" if complete else "not enough"
        # most of the sound was not gradable: another recording helps, a longer one does not
        return "poor quality" if self.ungradable.total() > self.graded else "not enough"

    @property
    def reasons(self) -> list[str]:
        """The reasons of the verdict, one phrase each; with the reasons why cycles were not graded."""
        verdict = self.verdict
        if verdict == "flagged":
            return [f"{' and '.join(sounds(list(self.named)))}: {self._evidence}"]
        # a copy: the live page reads this in another thread while cycles come in
        listed = [f"{reason} ({counted(count, 'cycle')})" for reason, count in list(self.ungradable.items())]
        if self.failure:
            return [self.failure, *listed]
        if verdict == "nothing flagged":
            return [self._evidence, *listed]
        if self.ended and verdict == "not enough":
            few = f"{counted(self.graded, 'good breath')}, {self.rule.least_cycles} are needed; listen longer"
            return [few, *listed]
        return listed if self.ended else [f"{counted(self.breaths_wanted, 'more good breath')}", *listed]

    def _reached(self, probabilities: tuple[float, ...]) -> bool:
        return together(np.array(probabilities)) >= self.rule.threshold

    @property
    def _evidence(self) -> str:
        """`6 breaths together 0.71, flagged from 0.55`."""
        first = self._first
        breaths, probability = counted(len(first), "breath"), together(np.array(first))
        return f"{breaths} together {probability:.2f}, flagged from {self.rule.threshold:.2f}"
