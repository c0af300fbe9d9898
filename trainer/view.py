"""Tables of the trainer's results: readings of accuracy, comparisons, finished runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trainer.choices import HoldOut
from trainer.corpora.protocols import FLATTERED, LIES
from trainer.evaluation.compare import Compared
from trainer.evaluation.healthy import Stranger
from trainer.metrics import too_few
from trainer.reading import ClassReading, GroupReading, Joined, Reading
from trainer.run.folder import RunFacts
from trainer.tables import table


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


def show_fit(facts: RunFacts, console: Console) -> None:
    """The thresholds of a finished run, and the readings of its held-out patients."""
    choice = facts.choice
    kept = f"{facts.recipe.data.keep} epoch {' / '.join(map(str, choice.epochs))} of {max(facts.epochs_done)}"
    if not min(choice.epochs):
        kept = "stopped within the first epoch"
    console.print(
        f"{kept}, temperature {choice.temperature:.2f}, threshold {choice.cycle_threshold:.3f}; "
        f"a site is flagged when {choice.site_rule.in_words} ({choice.segmentation.method})"
    )
    title = "held-out patients (they chose the above: a little too good)"
    if facts.recipe.data.choose_on == "test":
        title = f"THE TEST PART: {FLATTERED}"
    console.print(readings_table(choice.readings.values(), title))
    say_too_few(min(one.patients for one in choice.readings.values()), console)


def show_reading(reading: Reading, console: Console) -> None:
    """One reading in full: its data, both conventions, the confounders beside the AUROC, the confusion matrix."""
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
    say_too_few(reading.patients, console)
    rates = (
        (name, *map(str, (read.sensitivity, read.specificity, read.score)))
        for name, read in (("binary", reading.binary), ("exact", reading.exact))
    )
    console.print(table("", "Se [95 %]", "Sp [95 %]", "Score [95 %]", rows=rates, words=4))
    console.print(_figures(reading), "")
    counts = zip(reading.confusion.rows, reading.confusion.counts, strict=True)
    rows = ((name, *map(str, row)) for name, row in counts)
    console.print(table("", *reading.confusion.columns, rows=rows, title="true \\ predicted"), "")
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
    """Se and Sp before and after a calibration on healthy people, in a line."""
    before, after = (
        f"Se {read[when]['sensitivity']:.3f}, Sp {read[when]['specificity']:.3f}" for when in ("before", "after")
    )
    return f"calibrated on {read['people']} healthy people (mean of {read['rounds']} choices): {before} -> {after}"


def show_strangers(strangers: Sequence[Stranger], hold_out: HoldOut, console: Console) -> None:
    """A row for each maker's stethoscopes, and below it one for each number of healthy people."""
    met = "never met the stethoscope" if hold_out != "patients" else "met the stethoscope, but not these patients"
    rows = []
    for stranger in strangers:
        counts = (str(stranger.patients), str(stranger.recordings))
        figures = (stranger.auroc, stranger.sensitivity, stranger.specificity, stranger.threshold)
        rows.append((stranger.maker, *counts, *(f"{figure:.3f}" for figure in figures)))
        for people, read in stranger.calibrated.items():
            after = (read["after"][name] for name in ("sensitivity", "specificity", "threshold"))
            rows.append((f"  after {people} healthy people", "", "", "", *(f"{figure:.3f}" for figure in after)))
    headings = ("stethoscope", "patients", "recordings", "AUROC", "Se", "Sp", "threshold")
    console.print(f"whole recordings, by models that {met}; thresholds chosen on the other stethoscopes")
    console.print(table(*headings, rows=rows))


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
    """Binary rates by device, site or age; a row of normal or abnormal ones only is marked."""
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
    """Both models' figures, their difference, and what it shows."""
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
            read.says.split(":")[0],
        )
        for name, read in compared.readings.items()
    )
    console.print(table("", "A", "B", "B - A [95 %, paired]", "says", rows=rows))
    say_too_few(compared.patients, console)


def say_too_few(patients: int, console: Console) -> None:
    """A note where so few patients allow no claim."""
    if why := too_few(patients):
        console.print(f"NOTE {why}", highlight=False)
