"""What the trainer shows: the bar of an epoch, and a reading of accuracy as a table."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from trainer.compare import Compared, in_words
from trainer.corpora.cycle import Corpus
from trainer.protocols import WINDOW_SECONDS
from trainer.reading import ClassReading, GroupReading, Joined, Reading

LIES = {
    "events": "annotated events as they are: their length alone tells much, see 'duration'",
    "windows": f"{WINDOW_SECONDS} s around each event: length tells nothing",
    "stretches": f"{WINDOW_SECONDS} s around each event, each annotated breath cycle, each recording with one label",
    "live": "each annotated event or cycle against the cycle that the screen showed there",
    "recordings": "whole recordings through the device's own segmenter: the product",
}

FLATTERED = (
    "the test part chooses epoch, temperature and thresholds (choose_on = 'test', as published): every reading of it "
    "flatters; elsewhere this made a Score of 59.6 into 61.5"
)


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

    def member_started(self, number: int, members: int, training: Corpus, held_out: Corpus | None) -> None:
        """One line: who trains and who is held out."""
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
        read = (
            f"held out Se {row['sensitivity']:.3f} Sp {row['specificity']:.3f} Score {row['score']:.3f} "
            f"AUROC {row['auroc']:.3f}  "
            if "score" in row
            else ""
        )
        self.console.print(
            f"epoch {row['epoch']:3d}  loss {row['loss']:.3f}  {read}{row['seconds']:.0f} s", highlight=False
        )


def table(
    *headings: str,
    rows: Iterable[Sequence[str]] = (),
    title: str | None = None,
    words: int = 1,
    head: bool = True,
) -> Table:
    """A plain table: the first columns hold `words`, to the left; the others hold numbers, to the right."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_header=head,
    )
    for number, heading in enumerate(headings):
        made.add_column(heading, justify="left" if number < words else "right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        made.add_row(*row)
    return made


def readings_table(readings: Iterable[Reading], title: str) -> Table:
    """Readings in rows: binary Se, Sp, Score and AUROC, and the exact Score; 80 columns."""
    rows = (
        (
            one.protocol,
            str(one.n),
            one.binary.sensitivity.alone(),
            one.binary.specificity.alone(),
            str(one.binary.score),
            str(one.auroc),
            one.exact.score.alone(),
        )
        for one in readings
    )
    return table("protocol", "n", "Se", "Sp", "Score [95 %]", "AUROC [95 %]", "exact", rows=rows, title=title)


def show_reading(reading: Reading, console: Console) -> None:
    """One reading in full: what was read, both conventions, the confounders beside the AUROC, the confusion matrix."""
    seen = {
        True: "patients seen in training",
        False: "unseen patients",
        None: "patients (seen in training or not: unknown)",
    }
    console.print(
        f"{reading.corpus} {reading.part}: {reading.n} {reading.protocol} of {reading.patients} "
        f"{seen[reading.patients_seen_in_training]}",
        highlight=False,
    )
    console.print(f"[dim]{LIES[reading.protocol]}[/dim]", highlight=False)
    rates = (
        (name, *map(str, (read.sensitivity, read.specificity, read.score)))
        for name, read in (("binary", reading.binary), ("exact", reading.exact))
    )
    console.print(table("", "Se [95 %]", "Sp [95 %]", "Score [95 %]", rows=rates, words=4))
    console.print(_figures(reading), "")
    counts = zip(reading.confusion.rows, reading.confusion.counts, strict=True)
    rows = ((name, *map(str, row)) for name, row in counts)
    console.print(table("", *reading.confusion.columns, rows=rows, title="true \\ heard"), "")
    if reading.not_met is not None:
        console.print(f"{reading.not_met:.1%} of the annotated are met by no gradable cycle on the screen")
    if reading.listening is not None:
        console.print(_listening(reading.listening), "")
    if reading.calibration is not None:
        console.print(calibration_in_words(reading.calibration), "", highlight=False)
    console.print(_classes(reading.per_class), "")
    for name in ("corpus", "device", "site", "age"):
        console.print(_groups(getattr(reading, f"per_{name}"), name), "")


def _listening(joined: Sequence[Joined]) -> Table:
    """Share of people who are flagged, by how long one listens."""
    rows = (
        (f"{one.seconds:g}", f"{one.normal_flagged} of {one.normal}", f"{one.abnormal_flagged} of {one.abnormal}")
        for one in joined
    )
    headings = ("seconds", "normal recordings joined", "abnormal recordings joined")
    return table(*headings, rows=rows, title="flagged by listening time", words=0)


def calibration_in_words(read: dict[str, Any]) -> str:
    """What a calibration on healthy people is worth, in a line."""
    before, after = (
        f"Se {read[when]['sensitivity']:.3f}, Sp {read[when]['specificity']:.3f}" for when in ("before", "after")
    )
    return f"calibrated on {read['people']} healthy people (mean of {read['rounds']} choices): {before} -> {after}"


def _figures(reading: Reading) -> Table:
    """The areas, calibration, sensitivity at given specificities, and what the confounders reach."""
    figures = {
        "AUROC": reading.auroc,
        **{f"  {name} alone would reach": value for name, value in reading.confounders.items()},
        "AUPRC": reading.auprc,
        **{f"Se at Sp {specificity}": value for specificity, value in reading.sensitivity_at.items()},
        "ECE, 15 bins": reading.ece,
    }
    return table("", "", rows=((name, str(value)) for name, value in figures.items()), words=2, head=False)


def _classes(classes: Mapping[str, ClassReading]) -> Table:
    """How each abnormal class is found, beside the normal ones."""
    rows = (
        (name, str(read.n), str(read.any_abnormal), str(read.exact), str(read.auroc)) for name, read in classes.items()
    )
    return table("class", "n", "called abnormal", "named exactly", "AUROC to normal", rows=rows)


def _groups(groups: Mapping[str, GroupReading], what: str) -> Table:
    """Binary rates by device, site or age; a row of one kind only says so."""
    rows = (
        (
            name or "unknown",
            str(read.n),
            str(read.patients),
            read.sensitivity.alone(),
            read.specificity.alone(),
            {0: "normal only", read.n: "abnormal only"}.get(read.abnormal, str(read.score)),
        )
        for name, read in groups.items()
    )
    return table(what, "n", "patients", "Se", "Sp", "Score [95 %]", rows=rows)


def show_comparison(compared: Compared, console: Console) -> None:
    """What `trainer compare` found: both readings, the difference, and what it says."""
    console.print(
        f"A {compared.a}, B {compared.b}: {compared.n} {compared.protocol} of "
        f"{compared.patients} patients, {compared.corpus} {compared.part}",
        highlight=False,
        soft_wrap=True,
    )
    if compared.judged_by_one_only:
        console.print(f"{compared.judged_by_one_only} more were judged by one of them only", highlight=False)
    rows = (
        (
            name,
            *("-" if np.isnan(value) else f"{value:.3f}" for value in (read.a, read.b)),
            f"{read.difference:+.3f}",
            in_words(read.difference).split(":")[0],
        )
        for name, read in compared.readings.items()
    )
    console.print(table("", "A", "B", "B - A [95 %, paired]", "says", rows=rows))
