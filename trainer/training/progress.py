"""How a fit goes, on a terminal and in the log."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from trainer.corpora.cycle import Corpus

NOTES_SHOWN = 5
LOG = logging.getLogger("trainer")


@contextmanager
def audio_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first call (done, total) of what it yields."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    # off a terminal a bar that goes leaves an empty line
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task: list[TaskID] = []

    def advance(done: int, total: int) -> None:
        if not task:
            bar.start()
            task.append(bar.add_task(what, total=total))
        bar.update(task[0], completed=done)

    try:
        yield advance
    finally:
        # a bar that never started would leave an empty line where the error is to stand
        if task:
            bar.stop()


class FitView:
    """Progress of `trainer fit`: one bar an epoch with loss, samples/s and the time left, one line when it is over."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} samples/s "),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> "FitView":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

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
        which = f"model {number + 1} of {members}: " if members > 1 else ""
        others = (
            f"{len(held_out.patients)} are held out ({len(held_out.cycles)} cycles)" if held_out else "none is held out"
        )
        self.console.print(
            f"{which}{len(training.patients)} patients train ({len(training.cycles)} cycles), {others}", highlight=False
        )

    def epoch_started(self, epoch: int, epochs: int, steps: int) -> None:
        """A new bar."""
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task("", total=steps, epoch=f"{epoch + 1}/{epochs}", loss=float("nan"), rate=0.0)

    def stepped(self, step: int, loss: float, samples_per_second: float) -> None:
        """Move it."""
        if self.task is not None:
            self.bar.update(self.task, completed=step, loss=loss, rate=samples_per_second)

    def epoch_ended(self, row: dict[str, Any]) -> None:
        """One line that stays."""
        LOG.info("epoch ends", extra={"fields": row})
        read = (
            f"held out Se {row['sensitivity']:.3f} Sp {row['specificity']:.3f} Score {row['score']:.3f} "
            f"AUROC {row['auroc']:.3f}  "
            if "score" in row
            else ""
        )
        self.console.print(
            f"epoch {row['epoch']:3d}  loss {row['loss']:.3f}  {read}{row['seconds']:.0f} s", highlight=False
        )
