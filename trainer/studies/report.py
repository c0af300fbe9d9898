"""The result of a study: one table and one picture, with intervals over patients and paired differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from rich.table import Table

from device.labels import NORMAL
from device.runtime import own_font_list
from firmware_config.files import replacing, write_atomically
from trainer.evaluation.compare import direction, paired
from trainer.evaluation.outcome import Outcome, join, load_outcome
from trainer.evaluation.score import headline
from trainer.evaluation.served import STRETCH_CYCLES
from trainer.metrics import (
    NO_VERDICT,
    Float64Array,
    IntArray,
    Interval,
    area,
    auroc,
    choose_threshold,
    levels,
    patient_bootstrap,
    tally,
    too_few,
)
from trainer.studies.cells import Cell, CellFacts, Target
from trainer.studies.study import Study
from trainer.tables import markdown, table

SEEN: Final = {
    "few": "too few patients",
    "unknown": "unknown",
    "higher": "higher",
    "lower": "lower",
    "neither": "no difference seen",
}


@dataclass(frozen=True)
class Line:
    """One setting on one target: its models' rows, one seed after another."""

    setting: str
    target: Target
    facts: Sequence[CellFacts]
    """Of each seed."""
    outcome: Outcome
    """`predicted` at each model's own threshold."""
    seeds: IntArray
    """Of each row."""
    scored: bool
    """Whether every model had a threshold from patients whom it is not read on."""
    auroc: Interval
    score: Interval
    exact: Interval
    difference: Interval | None = None
    """Of the AUROC to the reference's, paired by patients and seeds; None for the reference itself, or without it."""

    @property
    def in_words(self) -> str:
        """What the difference shows."""
        return "" if self.difference is None else SEEN[direction(self.difference, len(set(self.outcome.patients)))]

    @property
    def short(self) -> bool:
        """Whether --minutes ended one of its models before the schedule."""
        return any(one.epochs_done < one.recipe.optimizer.epochs for one in self.facts)

    @property
    def words(self) -> list[str]:
        """One row under HEADINGS."""
        difference, planned = self.difference, self.facts[0].recipe.optimizer.epochs
        done = "/".join(str(one.epochs_done) for one in self.facts)
        return [
            self.setting,
            str(self.auroc),
            f"{difference:+.3f}" if difference else "",
            self.in_words,
            str(self.score) if self.scored else "-",
            f"{self.exact.value:.3f}" if self.scored and self.target.protocol != "recordings" else "-",
            f"{done} of {planned} (!)" if self.short else str(planned),
            f"{np.mean([one.step_seconds for one in self.facts]):.2f}",
        ]


HEADINGS: Final = ("setting", "AUROC [95 %]", "difference [95 %]", "seen", "Score [95 %]", "exact", "epochs", "s/step")
SHOWN: Final = 4  # columns that fit into a terminal; the file has all


def figures(outcome: Outcome, seeds: IntArray) -> Callable[[IntArray], Float64Array]:
    """AUROC, binary and exact Score of any rows: models do not share a scale, so their AUROCs are averaged."""
    of, abnormal, level = headline(outcome), outcome.true > 0, levels(outcome.probability)

    def values(rows: IntArray) -> Float64Array:
        parts = [rows[seeds[rows] == seed] for seed in np.unique(seeds[rows])]
        areas = np.array([area(tally(abnormal[part], level[part])) for part in parts])
        mean = np.nan if np.isnan(areas).all() else float(np.nanmean(areas))
        pooled = of(rows)
        return np.array([mean, pooled["binary", "score"], pooled["exact", "score"]])

    return values


def threshold_of(outcomes: Sequence[Outcome]) -> float:
    """Where (Se + Sp) / 2 is highest with Se >= Sp; NaN when a class is absent."""
    known = join(outcomes) if outcomes else None
    if known is None or len(np.unique(known.true > 0)) < 2:
        return float("nan")
    return choose_threshold(known.true > 0, known.probability)[0]


def thresholds(
    cells: Mapping[int, Cell], facts: Mapping[int, CellFacts], target: Target, source: Target
) -> list[float]:
    """What each seed's model is scored at, from patients whom that Score does not hold; NaN without any.

    On held-out patients: the best for the models of the other folds, on their patients. On another corpus: the best on
    the model's own held-out patients (`source`).
    """
    chosen = []
    for seed, own in facts.items():
        others = [one for one in facts if set(own.held_out).isdisjoint(facts[one].held_out)]
        known = [seed] if target.elsewhere else others
        chosen.append(
            threshold_of([load_outcome(cells[one].reading(source if target.elsewhere else target)) for one in known])
        )
    return chosen


def line_of(setting: str, target: Target, source: Target, cells: Mapping[int, Cell], reference: Line | None) -> Line:
    """One row from the cells (by seed) of one setting."""
    facts = {seed: found for seed, cell in cells.items() if (found := cell.facts()) is not None}
    read = [load_outcome(cells[seed].reading(target)) for seed in facts]
    limits = thresholds(cells, facts, target, source)
    called = [
        replace(one, predicted=np.where((one.probability >= at) | (one.predicted == NO_VERDICT), one.predicted, NORMAL))
        for one, at in zip(read, limits, strict=True)
    ]
    outcome, seeds = join(called), np.repeat(list(facts), [len(one.true) for one in read])
    intervals = patient_bootstrap(outcome.patients, figures(outcome, seeds))
    line = Line(setting, target, list(facts.values()), outcome, seeds, not np.isnan(limits).any(), *intervals)
    if reference is None:
        return line
    # the seeds that both have: row by row the same stretches, for all settings share folds and protocols
    mine, theirs = (np.isin(one.seeds, other.seeds) for one, other in ((line, reference), (reference, line)))
    if not mine.any():
        return line
    sides = [
        (one.outcome.at(np.flatnonzero(rows)), one.seeds[rows]) for one, rows in ((reference, theirs), (line, mine))
    ]
    assert sides[0][0].patients == sides[1][0].patients
    return replace(line, difference=paired(sides[0][0].patients, figures(*sides[0]), figures(*sides[1]))[0])


def lines_of(study: Study, cells: Sequence[Cell], targets: Sequence[Target]) -> list[Line]:
    """Every setting on every target, the reference first; what has no result is left out."""
    names = sorted((one.name for one in study.settings), key=lambda name: name != study.reference)
    lines: list[Line] = []
    for target in targets:
        reference: Line | None = None
        for name in names:
            done = {cell.seed: cell for cell in cells if cell.setting == name and cell.reading(target).is_file()}
            if done:
                lines.append(line_of(name, target, targets[0], done, reference))
                reference = lines[-1] if name == study.reference else reference
    return lines


def title_of(target: Target, lines: Sequence[Line]) -> str:
    """What was read, and on how much."""
    most = max((line for line in lines if line.target == target), key=lambda line: len(line.seeds))
    rows = len(most.seeds) // (len(most.facts) if target.elsewhere else 1)
    return f"{target.words}: {rows} {target.protocol} of {len(set(most.outcome.patients))} patients"


def tables(lines: Sequence[Line]) -> list[Table]:
    """One table a target for the terminal."""
    made = []
    for target in dict.fromkeys(line.target for line in lines):
        rows = (line.words[:SHOWN] for line in lines if line.target == target)
        made.append(table(*HEADINGS[:SHOWN], rows=rows, title=title_of(target, lines), words=SHOWN))
    return made


def notes_on(study: Study, lines: Sequence[Line], seeds: int) -> list[str]:
    """What a reader must know before believing the table."""
    trained = {(line.setting, one.seed): one.seconds for line in lines for one in line.facts}
    by_device = any(one.recipe.data.hold_out != "patients" for line in lines for one in line.facts)
    held = "the patients of other stethoscopes" if by_device else "a fold of the training part's patients"
    notes = [
        f"{len(trained)} models in {sum(trained.values()) / 60:.0f} minutes of training, a thread each. A seed holds "
        f"out {held}; its last epoch is read on those. The test part is not read.",
        "Intervals are over patients (bootstrap). They do not hold what another seed would change; see the dots. "
        f"Differences are to {study.reference!r} on the same patients.",
        "AUROC is the mean of the models' own. Score is binary, at the best threshold of the other folds' models on "
        "their patients; on another corpus, at the model's own best on its held-out patients.",
    ]
    targets = list(dict.fromkeys(line.target for line in lines))
    if any(target.protocol == "recordings" for target in targets):
        notes.append(
            f"Recordings go through the device's live path; the first {STRETCH_CYCLES} gradable cycles speak together. "
            "No site rule is fitted, so a recording has a probability and no class."
        )
    for target in targets:
        outcome = next(line.outcome for line in lines if line.target == target)
        alone = auroc(outcome.true > 0, outcome.confounders["duration"])
        notes.append(f"{target.words}: length alone reaches AUROC {max(alone, 1 - alone):.3f}.")
        people = len(set(outcome.patients))
        if (few := too_few(people)) or target.elsewhere:
            on = f"{len(set(outcome.recordings))} recordings of {people} patients"
            notes.append(f"NOTE {target.words} rests on {on}{f'; {few}' * bool(few)}.")
    short = {line.setting: line for line in lines if line.short}
    for name, line in short.items():
        longest = max(one.seconds / one.epochs_done for one in line.facts)
        notes.append(
            f"NOTE {name}: --minutes ended it before its schedule, an epoch takes {longest / 60:.2f} minutes"
            + (", the budget is shorter" if min(one.minutes or 0.0 for one in line.facts) < longest / 60 else "")
            + "; settings with unequal epochs do not compare."
        )
    for setting in study.settings:
        have = len({seed for name, seed in trained if name == setting.name})
        if have < seeds:
            notes.append(f"NOTE {setting.name}: {have} of {seeds} seeds.")
    return notes


def write_report(name: str, study: Study, lines: Sequence[Line], notes: Sequence[str], folder: Path) -> None:
    """FOLDER/NAME.md and FOLDER/NAME.svg."""
    parts = [f"# {study.title}", study.question, f"![{study.title}]({name}.svg)"]
    for target in dict.fromkeys(line.target for line in lines):
        rows = (line.words for line in lines if line.target == target)
        parts += [f"## {title_of(target, lines)}", markdown(HEADINGS, rows)]
    parts.append("\n".join(f"- {note}" for note in notes))
    write_atomically(folder / f"{name}.md", "\n\n".join(parts) + "\n")
    draw(study, lines, folder / f"{name}.svg")


def draw(study: Study, lines: Sequence[Line], path: Path) -> None:
    """AUROC of every setting with its interval, each seed's model as a dot; one panel a target."""
    own_font_list()
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    targets = list(dict.fromkeys(line.target for line in lines))
    settings = list(dict.fromkeys(line.setting for line in lines))
    figure = Figure(figsize=(2.0 + 3.6 * len(targets), 1.4 + 0.45 * len(settings)), layout="constrained")
    panels = dict(zip(targets, np.atleast_1d(figure.subplots(1, len(targets), sharey=True)), strict=True))
    for line in lines:
        panel, row, of = panels[line.target], settings.index(line.setting), figures(line.outcome, line.seeds)
        colour = "tab:gray" if line.setting == study.reference else "tab:blue"
        panel.plot([line.auroc.low, line.auroc.high], [row, row], color=colour, linewidth=2)
        panel.plot([line.auroc.value], [row], "o", color=colour)
        each = [of(np.flatnonzero(line.seeds == seed))[0] for seed in np.unique(line.seeds)]
        panel.plot(each, [row + 0.2] * len(each), ".", color="black", markersize=4)
        if line.setting == study.reference:
            panel.axvline(line.auroc.value, color=colour, linewidth=0.7, linestyle=":")
        panel.set_title(title_of(line.target, lines), fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.set_xlabel("AUROC, 95 % over patients; dots: single seeds", fontsize=8)
    panels[targets[0]].set_yticks(range(len(settings)), settings)
    panels[targets[0]].set_ylim(len(settings) - 0.4, -0.6)
    figure.suptitle(study.title, fontsize=10)
    # the same picture for the same numbers
    with rc_context({"svg.hashsalt": "respsam"}), replacing(path) as partial:
        figure.savefig(partial, format="svg", metadata={"Date": None})
