"""What a nurse sees: plain lines, JSON lines, or a live page on a terminal. Words carry the meaning, not colours."""

from collections.abc import Mapping
from typing import Any, Final, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from device.capture.timeline import Entry
from device.listening.agreement import Agreement
from device.listening.cycle import CycleResult
from device.listening.live import Session
from device.signal import SAMPLE_RATE
from device.verdict.exam import Exam
from device.verdict.population import NOT_VALIDATED
from device.verdict.summary import Summary
from device.view.json_lines import stamped, summary_object
from device.view.view import View
from firmware_config.command_line import counted

ROWS: Final = 10
LINES_AROUND_ROWS: Final = 14  # frame, header, table head, footer, and one for the cursor: 23 of a terminal's 24 lines
BAR_CELLS: Final = 10
METER_DBFS: Final = (-80.0, 0.0)
REFRESHES_PER_SECOND: Final = 8
AID: Final = "screening aid, not a diagnosis"
# blue and orange: different also with red-green blindness
STYLES: Final = {"flagged": "bold orange1", "nothing flagged": "bold dodger_blue1"}


def time_text(seconds: float) -> str:
    """`01:23.4`."""
    tenths = round(10 * seconds)
    return f"{tenths // 600:02d}:{tenths % 600 / 10:04.1f}"


def cycle_line(result: CycleResult) -> str:
    """One cycle in one aligned line; DEMO leads every line of simulated sound."""
    span = f"{time_text(result.start_seconds)}-{time_text(result.end_seconds)}"
    head = f"{_mark(result.demo)}{result.number:4d}  {span}  {result.kind:<6}"
    if result.judgement is None:
        return f"{head}  not graded: {result.quality.reason}"
    flag = "  FLAG" if result.flagged else ""
    return f"{head}  probability {result.judgement.probability:.2f}  {result.judgement.label:<7}{flag}".rstrip()


def entry_line(entry: Entry, demo: bool) -> str:
    """One timeline entry in one line."""
    what = {"start": "listening to", "end": "end:", "passport": "passport"}.get(entry.kind, entry.kind.upper())
    lost = f" {entry.missing_samples / SAMPLE_RATE:.2f} s missing" if entry.missing_samples else ""
    note = f"{',' if lost else ''} {entry.note}" if entry.note else ""
    return f"{_mark(demo)}      {time_text(entry.seconds)}  {what}{lost}{note}"


def summary_lines(summary: Summary, agreement: Agreement | None) -> list[str]:
    """The lines at the end of a session: verdict, reasons, and the account of every second."""
    mark = _mark(summary.demo)
    likely = "" if summary.probability is None else f" (probability {summary.probability:.2f})"
    seconds = summary.seconds
    account = (
        f"{counted(summary.cycles, 'cycle')}, {summary.gradable} graded, {summary.flagged} flagged; "
        f"{seconds['heard']:.1f} s heard ({seconds['gradable']:.1f} s gradable), "
        f"{seconds['missing']:.1f} s missing, {seconds['dropped']:.1f} s dropped"
    )
    lines = [f"verdict: {summary.verdict.upper()}{likely}", *(f"  {reason}" for reason in summary.reasons)]
    if summary.stretches > 1:
        lines.append(f"  {_flagged_stretches(summary)}")
    lines.append(account)
    lines += summary.circumstances.lines()
    if summary.not_validated:
        lines.append(f"{NOT_VALIDATED}: {'; '.join(summary.not_validated)}")
    if agreement is not None:
        lines.append(str(agreement))
    return [f"{mark}{line}" for line in [*lines, AID]]


def complete(summary: Summary) -> str:
    """The line for a stretch that has just been completed; the first one has the verdict."""
    if summary.stretches == 1:
        return f"complete: {summary.verdict.upper()}; {'; '.join(summary.reasons)}"
    return f"stretch {summary.stretches} is complete; {_flagged_stretches(summary)}"


def _flagged_stretches(summary: Summary) -> str:
    return f"{summary.stretches_flagged} of {summary.stretches} stretches flagged"


def later_stretches(summary: Summary) -> list[str]:
    """How far the running stretch is, and how many are flagged; [] during the first stretch."""
    if not summary.stretches:
        return []
    wanted = summary.breaths_wanted
    return [f"stretch {summary.stretches + 1}: {counted(wanted, 'more good breath')}; {_flagged_stretches(summary)}"]


def exam_lines(exam: Exam, demo: bool) -> list[str]:
    """The lines at the end of an exam: its verdict, and the reasons site by site."""
    lines = [f"EXAM: {exam.verdict.upper()}", *(f"  {reason}" for reason in exam.reasons)]
    if exam.not_validated:
        lines.append(f"{NOT_VALIDATED}: {'; '.join(exam.not_validated)}")
    return [f"{_mark(demo)}{line}" for line in [*lines, AID]]


class PlainView(View):
    """One line a cycle, to a pipe, a log or a dumb terminal."""

    def __init__(self, session: Session, out: TextIO) -> None:
        self.session, self.out, self.demo = session, out, session.source.demo
        self._complete = 0

    def show(self, item: CycleResult | Entry) -> None:
        """One line, and another one for the cycle that completes a stretch."""
        if isinstance(item, Entry):
            self._line(entry_line(item, self.demo))
            return
        self._line(cycle_line(item))
        if self.session.decision.stretches > self._complete:
            self._complete = self.session.decision.stretches
            self._line(f"{_mark(self.demo)}      {time_text(item.end_seconds)}  {complete(self.session.summary)}")

    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """The summary's lines."""
        for line in summary_lines(summary, agreement):
            self._line(line)

    def _line(self, line: str) -> None:
        # in one piece: when a reader stalls, whole lines are dropped
        self.out.write(f"{line}\n")
        self.out.flush()


class JsonView(PlainView):
    """One JSON object a line."""

    def show(self, item: CycleResult | Entry) -> None:
        """A `cycle` or a `timeline` object."""
        self._print(item.as_json(self.demo) if isinstance(item, Entry) else item.as_json())

    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """The `summary` object."""
        self._print(summary_object(summary, agreement))

    def _print(self, value: Mapping[str, Any]) -> None:
        self._line(stamped(value, self.session.id))


class LiveView(View):
    """The live page of `listen` on a terminal; it redraws itself from the session."""

    def __init__(self, session: Session, bundle_name: str, console: Console) -> None:
        self.session, self.bundle_name, self.console = session, bundle_name, console
        self.block, self.dot = ("█", "·") if console.encoding.startswith("utf") else ("#", ".")
        self._live = Live(console=console, get_renderable=self.page, refresh_per_second=REFRESHES_PER_SECOND)

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()

    def show(self, item: CycleResult | Entry) -> None:
        """Entries about the sound stay above the page; the page itself shows the rest."""
        if isinstance(item, Entry) and item.kind not in ("start", "end"):
            self.console.print(entry_line(item, self.session.source.demo), highlight=False, markup=False)

    def end(self, summary: Summary, agreement: Agreement | None) -> None:
        """Keep the last page, and print the summary below it."""
        self._live.stop()
        for line in summary_lines(summary, agreement):
            self.console.print(line, highlight=False, markup=False)

    def page(self) -> RenderableType:
        """The whole page."""
        summary = self.session.summary
        title = Text(f" {_mark(summary.demo)}RespSAM: {AID} ", style="bold")
        parts = Group(self._header(summary), "", self._cycles(), "", self._footer(summary))
        # three free columns: a ^C that the terminal echoes must not wrap and shift the page
        return Panel(parts, title=title, title_align="left", border_style="dim", width=self.console.width - 3)

    def _header(self, summary: Summary) -> RenderableType:
        rate = summary.breaths_per_minute
        window = self.session.model.segmentation.window_seconds
        breathing = f"no rhythm, windows of {window:g} s"
        # a copy: cycles come from another thread
        if rate is not None:
            breathing = f"{rate:.0f} breaths a minute"
        elif any(cycle.kind == "breath" for cycle in list(self.session.latest)):
            breathing = "breathing rate unsure"
        level, lost = self.session.level_dbfs, self.session.lost_seconds
        low, high = METER_DBFS
        meter = self._bar((level - low) / (high - low), 2 * BAR_CELLS)
        sound = Text(f"{meter} {level:6.1f} dBFS    {breathing}")
        if lost is not None:
            # level and rhythm are old
            sound = Text(f"NO SOUND since {time_text(lost)}, see above", style="bold")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row("source", Text(_worn(summary)))
        grid.add_row("model", Text(f"{self.bundle_name} ({summary.bundle[:12]})"))
        grid.add_row("level", sound)
        return grid

    def _cycles(self) -> RenderableType:
        rows = max(1, min(ROWS, self.console.height - LINES_AROUND_ROWS))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("DEMO",) * self.session.source.demo + ("#", "from - to", "cut", "probability", "class", ""):
            table.add_column("" if name == "DEMO" else name, no_wrap=True, justify="right" if name == "#" else "left")
        shown = list(self.session.latest)[-rows:]
        for result in shown:
            table.add_row(*self._row(result))
        for _ in range(rows - len(shown)):
            table.add_row("")
        return table

    def _row(self, result: CycleResult) -> list[Text]:
        mark = [Text("DEMO", style="dim")] * result.demo
        span = f"{time_text(result.start_seconds)} - {time_text(result.end_seconds)}"
        head = [*mark, Text(str(result.number)), Text(span), Text(result.kind, style="dim")]
        if result.judgement is None:
            return [*head, Text("not graded"), Text(result.quality.reason.split(":")[0]), Text("")]
        probability = result.judgement.probability
        style = STYLES["flagged" if result.flagged else "nothing flagged"]
        bar = Text.assemble((self._bar(probability, BAR_CELLS), style), f" {probability:.2f}")
        return [*head, bar, Text(result.judgement.label), Text("FLAG" if result.flagged else "", style=style)]

    def _footer(self, summary: Summary) -> RenderableType:
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{_mark(summary.demo)}{'complete' if summary.stretches else 'so far'}: ")
        line.append(summary.verdict.upper(), style=STYLES.get(summary.verdict, "bold"))
        why = Text("; ".join([*summary.reasons, *later_stretches(summary)]), no_wrap=True, overflow="ellipsis")
        seconds = summary.seconds
        account = Text(
            f"{time_text(seconds['heard'])} heard, {seconds['missing']:.1f} s missing, "
            f"{seconds['gradable']:.1f} s gradable; {summary.flagged} of {summary.gradable} cycles flagged",
            style="dim",
        )
        outside = f"{NOT_VALIDATED}: {'; '.join(summary.not_validated)}" if summary.not_validated else ""
        if summary.circumstances.safe_mode:
            outside = f"SAFE MODE, see above. {outside}"
        return Group(line, why, Text(outside, style="bold", no_wrap=True, overflow="ellipsis"), account)

    def _bar(self, share: float, cells: int) -> str:
        filled = round(cells * min(max(share, 0.0), 1.0))
        return self.block * filled + self.dot * (cells - filled)


def _worn(summary: Summary) -> str:
    """The source, with the stethoscope's passport and calibration."""
    known = summary.circumstances
    words = [known.passport and f"passport {known.passport}", known.calibration and f"calibration {known.calibration}"]
    return "  ".join([summary.source, *filter(None, words)])


def _mark(demo: bool) -> str:
    return "DEMO " if demo else ""
