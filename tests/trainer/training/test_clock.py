"""When a model stops training: in time for the readings that are still to come."""

import pytest

from trainer.run.machine import Machine
from trainer.training import clock as clock_module
from trainer.training.clock import Clock


class Alone:
    """The machine of one process."""

    @staticmethod
    def broadcast(value: bool) -> bool:
        return value


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(clock_module, "time", made)
    return made


def made(minutes: float | None, **more: float | bool) -> Clock:
    machine: Machine = Alone()  # type: ignore[assignment]
    return Clock(minutes, machine, **more)  # type: ignore[arg-type]


def steps_until_it_stops(clock: Clock, time: Time, seconds: float, steps: int) -> int:
    for done in range(1, steps + 1):
        time.now += seconds
        if clock.stops_step(steps - done):
            return done
    return -1


def test_a_reading_of_the_held_out_patients_fits_after_the_last_step(time: Time) -> None:
    """60 s, 5 s a step, a reading of 12 s: nine steps leave 15 s, a tenth would leave 10 s."""
    assert steps_until_it_stops(made(1.0, reading_seconds=12.0), time, 5.0, steps=100) == 9


def test_the_last_step_of_an_epoch_is_followed_by_two_readings(time: Time) -> None:
    assert steps_until_it_stops(made(1.0, reading_seconds=12.0), time, 5.0, steps=9) == 8
    time.now = 0.0
    assert steps_until_it_stops(made(1.0, reading_seconds=5.0), time, 5.0, steps=9) == -1


def test_the_slowest_of_the_last_steps_counts(time: Time) -> None:
    clock = made(1.0)
    time.now += 20.0
    assert not clock.stops_step(10)
    time.now += 2.0
    assert not clock.stops_step(9)
    time.now += 19.0
    assert clock.stops_step(8), "19 s are left, and a step has taken 20"


def test_a_first_epoch_begins_whatever_the_time_and_the_next_one_if_it_fits(time: Time) -> None:
    clock = made(0.0)
    assert not clock.stops_epoch(trained=False, steps=10)
    assert clock.stops_epoch(trained=True, steps=10)
    assert steps_until_it_stops(clock, time, 5.0, steps=10) == 1
    whole = made(1.0, whole_epochs=True)
    assert steps_until_it_stops(whole, time, 25.0, steps=1) == -1
    whole.read(4.0)
    assert not whole.stops_epoch(trained=True, steps=1), "25 s of 60 are over, and an epoch takes 25 s"
    assert steps_until_it_stops(whole, time, 25.0, steps=1) == -1
    whole.read(4.0)
    assert whole.stops_epoch(trained=True, steps=1)


def test_without_minutes_nothing_stops(time: Time) -> None:
    clock = made(None)
    assert steps_until_it_stops(clock, time, 1e6, steps=3) == -1
    assert not clock.stops_epoch(trained=True, steps=3)
