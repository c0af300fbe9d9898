"""Stretches of a recording: where one is placed around an event, what lies in it, and where an error happened."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from device.signal import SignalError
from trainer.corpora.cycle import Cycle

OVERLAP_SECONDS: Final = 0.05  # an event that reaches less far into a stretch cannot be heard there


def overlapping(cycles: Sequence[Cycle], start_seconds: float, end_seconds: float) -> list[Cycle]:
    """The cycles that share more than 0.05 s with the stretch."""
    return [
        cycle
        for cycle in cycles
        if min(cycle.end_seconds, end_seconds) - max(cycle.start_seconds, start_seconds) > OVERLAP_SECONDS
    ]


def place(start: float, end: float, length: float, limit: float, share: float) -> tuple[float, float]:
    """A stretch of `length` s that holds the event, or lies in it when shorter; seconds in and out.

    It begins `share` of the way along the room there is, shifted inside a recording of `limit` s; a recording shorter
    than `length` is taken whole.
    """
    length = min(length, limit)
    room = (end - start) - length
    first = start + share * room
    first = min(max(first, 0.0), limit - length)
    return first, first + length


@contextmanager
def located(recording: str, start_seconds: float, end_seconds: float) -> Iterator[None]:
    """Adds where it happened to a SignalError."""
    try:
        yield
    except SignalError as error:
        raise SignalError(f"{recording} {start_seconds:.2f}-{end_seconds:.2f} s: {error}") from error
