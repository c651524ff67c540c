"""Clockwork on the real APScheduler: each name rings once at its moment, whatever the wall clock does."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo

import pytest
from structlog.testing import capture_logs

from worker.schedule.clockwork import Clockwork
from worker.schedule.steady import steady

DAY = 86_400.0
SOON = 0.1
LONG = 5.0
"""How long a test waits for what should come at once."""


class Wall:
    """The wall clock, which somebody may set; APScheduler is given the same one."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


class Bell:
    """What rang, and when on the steady clock."""

    def __init__(self) -> None:
        self.rung: list[tuple[str, float]] = []
        self.then: Callable[[str], object] = lambda _: None
        self._changed = threading.Condition()

    def __call__(self, name: str) -> None:
        with self._changed:
            self.rung.append((name, steady()))
            self._changed.notify()
        self.then(name)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.rung]

    def wait_for(self, count: int) -> list[str]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.rung) >= count, LONG), f"only {self.names} rang"
        return self.names


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    made = Wall()

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Shifted":
            return cls.fromtimestamp(made(), tz)

    # the only place where APScheduler reads the wall clock; the whole process's cannot be set from a test
    monkeypatch.setattr("apscheduler.schedulers.base.datetime", Shifted)
    return made


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def clockwork(bell: Bell, wall: Wall) -> Iterator[Clockwork]:
    made = Clockwork(bell, wall=wall)
    made.start()
    yield made
    made.stop()


def settle() -> None:
    """Time enough for whatever should not ring."""
    time.sleep(SOON + 0.1)


def test_a_name_rings_once_at_its_moment(clockwork: Clockwork, bell: Bell) -> None:
    when = steady() + SOON
    clockwork.at("a", when)
    bell.wait_for(1)
    settle()
    assert bell.names == ["a"]
    assert when <= bell.rung[0][1] < when + LONG


def test_names_ring_in_the_order_of_their_moments(clockwork: Clockwork, bell: Bell) -> None:
    now = steady()
    for name, wait in (("c", 0.5), ("a", 0.3), ("b", 0.4)):
        clockwork.at(name, now + wait)
    assert bell.wait_for(3) == ["a", "b", "c"]


def test_a_name_planned_again_rings_at_the_new_moment_only(clockwork: Clockwork, bell: Bell) -> None:
    clockwork.at("a", steady() + SOON)
    clockwork.at("a", steady() + 60)
    settle()
    assert bell.names == []
    clockwork.at("a", steady() + SOON)
    assert bell.wait_for(1) == ["a"]


def test_a_dropped_name_does_not_ring_and_may_be_dropped_twice(clockwork: Clockwork, bell: Bell) -> None:
    clockwork.at("a", steady() + SOON)
    clockwork.drop("a")
    clockwork.drop("a")
    settle()
    assert bell.names == []


def test_a_moment_that_is_over_long_ago_is_still_rung(clockwork: Clockwork, bell: Bell) -> None:
    # FIELD 15: by default APScheduler drops for good what is a second late
    clockwork.at("a", steady() - 3600)
    assert bell.wait_for(1) == ["a"]


def test_what_became_due_while_the_scheduler_was_busy_is_still_rung(clockwork: Clockwork, bell: Bell) -> None:
    # FIELD 15: as after a paused machine; 1.1 s is more than APScheduler's own grace
    bell.then = lambda name: time.sleep(1.1) if name == "slow" else None
    clockwork.at("slow", steady())
    clockwork.at("late", steady() + 0.05)
    assert bell.wait_for(2) == ["slow", "late"]


def test_a_name_may_be_planned_again_while_it_rings(clockwork: Clockwork, bell: Bell) -> None:
    # FIELD 15: APScheduler removes a date job after it ran, and with it one that was added under the same id meanwhile
    bell.then = lambda name: clockwork.at(name, steady() + 0.05) if len(bell.rung) < 3 else None
    clockwork.at("/pump", steady())
    assert bell.wait_for(3) == ["/pump"] * 3


@pytest.fixture
def both_due(bell: Bell) -> Iterator[Clockwork]:
    """Two names that come due in the same round of APScheduler, which begins with `start`."""
    clockwork = Clockwork(bell)
    clockwork.at("first", steady() - 2)
    clockwork.at("second", steady() - 1)
    yield clockwork
    clockwork.stop()


def test_a_name_planned_again_by_another_that_rings_with_it_keeps_its_new_moment(
    both_due: Clockwork, bell: Bell
) -> None:
    # FIELD 15: what APScheduler holds of the second is out of date by then
    later = steady() + 0.3
    bell.then = lambda name: both_due.at("second", later) if name == "first" else None
    both_due.start()
    assert bell.wait_for(2) == ["first", "second"]
    assert bell.rung[1][1] >= later


def test_a_name_dropped_by_another_that_rings_with_it_does_not_ring_and_the_clockwork_turns_on(
    both_due: Clockwork, bell: Bell, caplog: pytest.LogCaptureFixture
) -> None:
    # APScheduler's thread ends for good where a job that it is about to run is removed under its hands
    bell.then = lambda name: both_due.drop("second") if name == "first" else None
    both_due.start()
    bell.wait_for(1)
    both_due.at("third", steady() + SOON)
    assert bell.wait_for(2) == ["first", "third"]
    assert caplog.messages == []


@pytest.mark.parametrize("jump", [-DAY, DAY])
def test_every_name_still_rings_at_its_moment_after_the_wall_clock_was_set(
    clockwork: Clockwork, bell: Bell, wall: Wall, jump: float
) -> None:
    # FIELD 19: after a step back neither a date job nor an interval job ever fired again
    start = steady()
    for name, wait in (("a", 0.3), ("b", 0.35), ("never", 7200.0)):
        clockwork.at(name, start + wait)
    wall.offset = jump
    clockwork.watch()
    clockwork.at("planned after it", start + 0.4)
    assert bell.wait_for(3) == ["a", "b", "planned after it"]
    assert [when >= start + wait for (_, when), wait in zip(bell.rung, (0.3, 0.35, 0.4), strict=True)] == [True] * 3
    settle()
    assert "never" not in bell.names


def test_a_clock_put_forward_rings_nothing_before_its_moment_even_if_nobody_watched_yet(
    clockwork: Clockwork, bell: Bell, wall: Wall
) -> None:
    # FIELD 19: between the jump and the next look APScheduler thinks that a day's worth of names is due
    clockwork.at("in two hours", steady() + 7200)
    clockwork.at("soon", steady() + 0.5)
    wall.offset = DAY
    clockwork.at("now", steady())  # wakes APScheduler up
    assert bell.wait_for(2) == ["now", "soon"]
    settle()
    assert bell.names == ["now", "soon"]


def test_a_small_drift_changes_nothing(clockwork: Clockwork, bell: Bell, wall: Wall) -> None:
    clockwork.at("a", steady() + SOON)
    wall.offset = 0.5
    with capture_logs() as lines:
        clockwork.watch()
    assert lines == []
    bell.wait_for(1)
    settle()
    assert bell.names == ["a"]
