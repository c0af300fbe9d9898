"""How a command goes: its stages on a terminal, as lines every half minute elsewhere, and in the log."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from trainer.corpora.cycle import Corpus

NOTES_SHOWN: Final = 5
SILENCE_SECONDS: Final = 30.0  # the longest without a line where there is no terminal
LOG: Final = logging.getLogger("trainer")


def lasting(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


class Stage:
    """One stage of a command: how far it is, in words and as a share."""

    def __init__(self, name: str) -> None:
        self.name, self.began = name, time.monotonic()
        self.done, self.total, self.where, self.left = 0, 0, "", float("nan")

    def advance(self, done: int, total: int) -> None:
        """So many of all are done."""
        self.done, self.total = done, total
        self.where = f"{done} of {total}"
        self.left = self.seconds / max(done, 1) * (total - done)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    @property
    def in_words(self) -> str:
        """`reading audio: 120 of 1949, 40 s left`."""
        known = self.left == self.left
        left = f"about {lasting(self.left)} left" if known else f"for {lasting(self.seconds)}"
        return f"{self.name}: {', '.join(filter(None, (self.where, left)))}"


class FitView:
    """The stages of a command on a console; `trainer fit` is one of its watchers.

    A terminal shows a bar for the present stage, and a line for each that has ended. Elsewhere a line says every half
    minute how far it is.
    """

    def __init__(self, console: Console, silence_seconds: float = SILENCE_SECONDS) -> None:
        self.console, self.silence_seconds = console, silence_seconds
        self.now: Stage | None = None
        self.ends = float("inf")
        """The moment (monotonic) at which training has to end."""
        self._model = (0, 1)
        self._epoch = (0, 1, 1)
        self._first: tuple[int, float] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Show that this is what happens now; yields what takes (done, total)."""
        stage = self.now = Stage(name)
        over = threading.Event()
        shown = threading.Thread(target=self._show, args=(stage, over), daemon=True)
        if not self.console.quiet:
            shown.start()
        try:
            yield stage.advance
        finally:
            self._end(shown, over)
        LOG.info("stage ends", extra={"fields": {"stage": name, "seconds": round(stage.seconds, 1)}})
        if self.console.is_terminal or stage.seconds >= self.silence_seconds:
            self.say(f"{name}: done in {lasting(stage.seconds)}")

    def _end(self, shown: threading.Thread, over: threading.Event) -> None:
        self.now = None
        over.set()
        if shown.is_alive():
            shown.join()

    def _show(self, stage: Stage, over: threading.Event) -> None:
        """Until the stage is over."""
        if not self.console.is_terminal:
            while not over.wait(self.silence_seconds):
                self.say(stage.in_words)
            return
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20))
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(stage.name, total=None)
            while not over.wait(0.1):
                bar.update(task, description=stage.in_words, completed=stage.done, total=stage.total or None)

    def say(self, line: str) -> None:
        """A line that stays, as it is."""
        self.console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def notes(self, notes: Sequence[str]) -> None:
        """Of a corpus: the first few."""
        for note in notes[:NOTES_SHOWN]:
            self.say(f"note: {note}")
        if len(notes) > NOTES_SHOWN:
            self.say(f"note: and {len(notes) - NOTES_SHOWN} more")

    def member_started(self, number: int, members: int, training: Corpus, held_out: Corpus | None) -> None:
        """One line: who trains and who is held out."""
        sizes = {"training": len(training.patients), "held_out": len(held_out.patients) if held_out else 0}
        LOG.info("model begins", extra={"fields": {"number": number + 1, "of": members, **sizes}})
        self._model = number, members
        others = (
            f"{len(held_out.patients)} are held out ({len(held_out.cycles)} cycles)" if held_out else "none is held out"
        )
        self.say(
            f"{self._which}{len(training.patients)} patients train ({len(training.cycles)} cycles), {others}",
        )

    @property
    def _which(self) -> str:
        number, members = self._model
        return f"model {number + 1} of {members}: " if members > 1 else ""

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """The steps of an epoch follow."""
        self._epoch, self._first = (epoch, epochs, steps), None

    def stepped(self, step: int, loss: float, samples_per_second: float) -> None:
        """Say where training is; the time left is that of all steps of all models, but for readings between epochs."""
        (number, members), (epoch, epochs, steps), now = self._model, self._epoch, time.monotonic()
        self._first = first, began = self._first or (step, now)
        stage = self.now
        if stage is None:
            return
        stage.where = (
            f"{self._which}epoch {epoch + 1}/{epochs}, step {step}/{steps}, loss {loss:.3f}, "
            f"{samples_per_second:.{0 if samples_per_second >= 10 else 1}f} samples/s"
        )
        stage.done, stage.total = step, steps
        if step > first:
            left = (epochs - epoch) * steps - step + (members - number - 1) * epochs * steps
            stage.left = min(left * (now - began) / (step - first), max(self.ends - now, 0.0))

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """One line that stays."""
        LOG.info("epoch ends", extra={"fields": row})
        read = (
            f"held out Se {row['sensitivity']:.3f} Sp {row['specificity']:.3f} Score {row['score']:.3f} "
            f"AUROC {row['auroc']:.3f}  "
            if "score" in row
            else ""
        )
        self.say(f"epoch {row['epoch']:3d}  loss {row['loss']:.3f}  {read}{row['seconds']:.0f} s")
