"""What the trainer shows: the bar of an epoch, and a reading of accuracy as a table."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from trainer.corpora.cycle import Corpus
from trainer.protocols import WINDOW_SECONDS

LIES = {
    "events": "annotated events as they are: their length alone tells much, see 'duration'",
    "windows": f"{WINDOW_SECONDS} s around each event: length tells nothing",
    "recordings": "whole recordings through the device's own segmenter: the product",
}


class EpochView:
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

    def __enter__(self) -> "EpochView":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def member_started(self, number: int, members: int, training: Corpus, held_out: Corpus) -> None:
        """One line: who trains and who is held out."""
        which = f"member {number + 1} of {members}: " if members > 1 else ""
        self.console.print(
            f"{which}{len(training.patients)} patients train ({len(training.cycles)} cycles), "
            f"{len(held_out.patients)} are held out ({len(held_out.cycles)} cycles)",
            highlight=False,
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
        self.console.print(
            f"epoch {row['epoch']:3d}  loss {row['loss']:.3f}  held out Se {row['sensitivity']:.3f} "
            f"Sp {row['specificity']:.3f} Score {row['score']:.3f} AUROC {row['auroc']:.3f}  {row['seconds']:.0f} s",
            highlight=False,
        )


def interval(value: dict[str, float | None]) -> str:
    """`0.812 [0.771, 0.850]`."""
    if value["value"] is None:
        return "-"
    if value["low"] is None:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def readings_table(readings: Sequence[dict[str, Any]], title: str) -> Table:
    """Readings in rows: binary Se, Sp, Score and AUROC, and the exact Score; 80 columns."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0), title_style="bold")
    for name in ("protocol", "n", "Se", "Sp", "Score [95 %]", "AUROC [95 %]", "exact"):
        table.add_column(name, justify="left" if name == "protocol" else "right", no_wrap=True)
    for reading in readings:
        binary = reading["binary"]
        table.add_row(
            reading["protocol"],
            str(reading["n"]),
            _plain(binary["sensitivity"]),
            _plain(binary["specificity"]),
            interval(binary["score"]),
            interval(reading["auroc"]),
            _plain(reading["exact"]["score"]),
        )
    return table


def _plain(value: dict[str, float | None]) -> str:
    return "-" if value["value"] is None else f"{value['value']:.3f}"


def show_reading(reading: dict[str, Any], console: Console) -> None:
    """One reading in full: what was read, both conventions, the confounders beside the AUROC, the confusion matrix."""
    seen = {
        True: "patients seen in training",
        False: "unseen patients",
        None: "patients (seen in training or not: unknown)",
    }
    console.print(
        f"{reading['corpus']} {reading['part']}: {reading['n']} {reading['protocol']} of {reading['patients']} "
        f"{seen[reading['patients_seen_in_training']]}",
        highlight=False,
    )
    console.print(f"[dim]{LIES[reading['protocol']]}[/dim]", highlight=False)
    rates = Table(box=None, pad_edge=False)
    for name in ("", "Se [95 %]", "Sp [95 %]", "Score [95 %]"):
        rates.add_column(name, no_wrap=True)
    for convention in ("binary", "exact"):
        values = reading[convention]
        rates.add_row(convention, *(interval(values[name]) for name in ("sensitivity", "specificity", "score")))
    console.print(rates)
    alone = ", ".join(f"{name} {interval(value)}" for name, value in reading["confounders"].items())
    console.print(f"AUROC {interval(reading['auroc'])}", highlight=False)
    console.print(f"alone would reach: {alone}", highlight=False)
    matrix = Table(title="true \\ heard", title_justify="left", box=None, pad_edge=False)
    matrix.add_column("")
    for name in reading["confusion"]["columns"]:
        matrix.add_column(name, justify="right")
    for name, counts in zip(reading["confusion"]["rows"], reading["confusion"]["counts"], strict=True):
        matrix.add_row(name, *map(str, counts))
    console.print(matrix)
