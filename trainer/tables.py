"""Tables: plain ones for a terminal, and Markdown."""

from collections.abc import Iterable, Sequence

from rich.table import Table


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


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The lines of a Markdown table."""
    first, *others = (f"| {' | '.join(row)} |" for row in (header, *rows))
    return "\n".join((first, f"|{'---|' * len(header)}", *others))
