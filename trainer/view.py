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


def interval(value: dict[str, float | None], form: str = ".3f") -> str:
    """`0.812 [0.771, 0.850]`."""
    if value["value"] is None:
        return "-"
    if value["low"] is None:
        return f"{value['value']:{form}}"
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


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
    console.print(_figures(reading), "")
    matrix = Table(title="true \\ heard", title_justify="left", box=None, pad_edge=False)
    matrix.add_column("")
    for name in reading["confusion"]["columns"]:
        matrix.add_column(name, justify="right")
    for name, counts in zip(reading["confusion"]["rows"], reading["confusion"]["counts"], strict=True):
        matrix.add_row(name, *map(str, counts))
    console.print(matrix, "")
    if "not_met" in reading:
        console.print(f"{reading['not_met']:.1%} of the annotated are met by no gradable cycle on the screen")
    if "listening" in reading:
        console.print(_listening(reading["listening"]), "")
    if "calibration" in reading:
        console.print(calibration_in_words(reading["calibration"]), "", highlight=False)
    console.print(_classes(reading["per_class"]), "")
    for key in ("per_corpus", "per_device", "per_site", "per_age"):
        console.print(_places(reading[key], key.removeprefix("per_")), "")


def _listening(rows: list[dict[str, Any]]) -> Table:
    """Share of people who are flagged, by how long one listens."""
    table = Table(title="flagged by listening time", title_justify="left", box=None, pad_edge=False)
    for name in ("seconds", "normal recordings joined", "abnormal recordings joined"):
        table.add_column(name, justify="right")
    for row in rows:
        shares = (f"{row[f'{kind}_flagged']} of {row[kind]}" for kind in ("normal", "abnormal"))
        table.add_row(f"{row['seconds']:g}", *shares)
    return table


def calibration_in_words(read: dict[str, Any]) -> str:
    """What a calibration on healthy people is worth, in a line."""
    before, after = (
        f"Se {read[when]['sensitivity']:.3f}, Sp {read[when]['specificity']:.3f}" for when in ("before", "after")
    )
    return f"calibrated on {read['people']} healthy people (mean of {read['rounds']} choices): {before} -> {after}"


def _figures(reading: dict[str, Any]) -> Table:
    """The areas, calibration, sensitivity at given specificities, and what the confounders reach."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("AUROC", interval(reading["auroc"]))
    for name, value in reading["confounders"].items():
        table.add_row(f"  {name} alone would reach", interval(value))
    table.add_row("AUPRC", interval(reading["auprc"]))
    for specificity, value in reading["sensitivity_at"].items():
        table.add_row(f"Se at Sp {specificity}", interval(value))
    table.add_row("ECE, 15 bins", interval(reading["ece"]))
    return table


def _classes(classes: dict[str, Any]) -> Table:
    """How each abnormal class is found, beside the normal ones."""
    table = _rows("class", "n", "called abnormal", "named exactly", "AUROC to normal")
    for name, read in classes.items():
        values = (interval(read[key]) for key in ("any_abnormal", "exact", "auroc"))
        table.add_row(name, str(read["n"]), *values)
    return table


def _places(places: dict[str, Any], what: str) -> Table:
    """Binary rates by device, site or age; a row of one kind only says so."""
    table = _rows(what, "n", "patients", "Se", "Sp", "Score [95 %]")
    for name, read in places.items():
        kind = {0: "normal only", read["n"]: "abnormal only"}.get(read["abnormal"], interval(read["score"]))
        rates = (_plain(read[key]) for key in ("sensitivity", "specificity"))
        table.add_row(name or "unknown", str(read["n"]), str(read["patients"]), *rates, kind)
    return table


def _rows(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="ellipsis", no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def show_comparison(compared: dict[str, Any], console: Console) -> None:
    """What `trainer compare` found: both readings, the difference, and what it says."""
    console.print(
        f"A {compared['a']}, B {compared['b']}: {compared['n']} {compared['protocol']} of "
        f"{compared['patients']} patients, {compared['corpus']} {compared['part']}",
        highlight=False,
        soft_wrap=True,
    )
    if compared["judged_by_one_only"]:
        console.print(f"{compared['judged_by_one_only']} more were judged by one of them only", highlight=False)
    table = _rows("", "A", "B", "B - A [95 %, paired]", "says")
    for name, read in compared["readings"].items():
        a, b = ("-" if read[key] is None else f"{read[key]:.3f}" for key in ("a", "b"))
        table.add_row(name, a, b, interval(read["difference"], "+.3f"), read["says"].split(":")[0])
    console.print(table)
