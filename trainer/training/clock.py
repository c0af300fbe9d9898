"""How long a model may train: it stops in time for the readings of held-out patients that are still to come."""

import time
from collections import deque
from typing import Final

from trainer.run.machine import Machine

STEPS: Final = 5  # the slowest of the last ones is what the next step may take


class Clock:
    """The minutes of one model's training; process 0's decide for all."""

    def __init__(
        self, minutes: float | None, machine: Machine, whole_epochs: bool = False, reading_seconds: float = 0.0
    ) -> None:
        """None never ends. `reading_seconds`: of one reading of the held-out patients, until `read` measures it."""
        self.minutes, self.machine = minutes, machine
        self.whole_epochs, self.reading_seconds = whole_epochs, reading_seconds
        self.began = self.last = self.epoch_began = time.monotonic()
        self.step_seconds: deque[float] = deque(maxlen=STEPS)
        self.epoch_seconds = 0.0

    def read(self, seconds: float) -> None:
        """A reading of the held-out patients took so long; it ends an epoch."""
        now = time.monotonic()
        self.reading_seconds, self.last = seconds, now
        self.epoch_seconds, self.epoch_began = max(self.epoch_seconds, now - self.epoch_began), now

    def stops_epoch(self, trained: bool, steps: int) -> bool:
        """Before an epoch with so many steps left.

        The first of a call begins, unless no time is left for a model that has `trained` before.
        """
        if self.minutes is None:
            return False
        if not self.step_seconds:
            return self.machine.broadcast(trained and self.minutes <= 0.0)
        if self.whole_epochs:
            return self._over(self.epoch_seconds)
        return self._over(self._step(steps))

    def stops_step(self, steps: int) -> bool:
        """After a step, with so many left in the epoch."""
        now = time.monotonic()
        self.step_seconds.append(now - self.last)
        self.last = now
        return self.minutes is not None and not self.whole_epochs and steps > 0 and self._over(self._step(steps))

    def _step(self, left: int) -> float:
        """Seconds of the next of `left` steps: the last of an epoch is followed by a reading, and so is the end."""
        return max(self.step_seconds) + self.reading_seconds * (2 if left == 1 else 1)

    def _over(self, seconds: float) -> bool:
        assert self.minutes is not None
        return self.machine.broadcast(time.monotonic() - self.began + seconds > 60 * self.minutes)
