"""SteadyScheduler on the real APScheduler: each job runs once at its moment, whatever the wall clock does."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo

import pytest
from structlog.testing import capture_logs

from worker.schedule.boottime import boottime
from worker.schedule.timer import SteadyScheduler

DAY = 86_400.0
SOON = 0.1
LONG = 5.0
"""Seconds that a test waits for something due at once."""


class Wall:
    """The wall clock, which somebody may set; APScheduler is given the same one."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


class Jobs:
    """Jobs that record when they ran, on the steady clock."""

    timer: SteadyScheduler

    def __init__(self) -> None:
        self.runs: list[tuple[str, float]] = []
        self.then: Callable[[str], object] = lambda _: None
        self._changed = threading.Condition()

    def at(self, name: str, when: float) -> None:
        self.timer.at(name, when, lambda: self._run(name))

    def _run(self, name: str) -> None:
        with self._changed:
            self.runs.append((name, boottime()))
            self._changed.notify()
        self.then(name)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.runs]

    def wait_for(self, count: int) -> list[str]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.runs) >= count, LONG), f"only {self.names} ran"
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
def jobs(wall: Wall) -> Iterator[Jobs]:
    made = Jobs()
    made.timer = SteadyScheduler(wall=wall)
    made.timer.start()
    yield made
    made.timer.stop()


def wait_for_nothing() -> None:
    """Wait long enough for whatever should not run."""
    time.sleep(SOON + 0.1)


def test_a_job_runs_once_at_its_moment(jobs: Jobs) -> None:
    when = boottime() + SOON
    jobs.at("a", when)
    jobs.wait_for(1)
    wait_for_nothing()
    assert jobs.names == ["a"]
    assert when <= jobs.runs[0][1] < when + LONG


def test_jobs_run_in_the_order_of_their_moments(jobs: Jobs) -> None:
    now = boottime()
    for name, wait in (("c", 0.5), ("a", 0.3), ("b", 0.4)):
        jobs.at(name, now + wait)
    assert jobs.wait_for(3) == ["a", "b", "c"]


def test_a_job_armed_again_runs_at_the_new_moment_only(jobs: Jobs) -> None:
    jobs.at("a", boottime() + SOON)
    jobs.at("a", boottime() + 60)
    wait_for_nothing()
    assert jobs.names == []
    jobs.at("a", boottime() + SOON)
    assert jobs.wait_for(1) == ["a"]


def test_a_moment_that_is_over_long_ago_still_runs(jobs: Jobs) -> None:
    # by default APScheduler drops for good what is a second late
    jobs.at("a", boottime() - 3600)
    assert jobs.wait_for(1) == ["a"]


def test_what_became_due_while_the_scheduler_was_busy_still_runs(jobs: Jobs) -> None:
    # as after a paused machine; 1.1 s is more than APScheduler's own grace
    jobs.then = lambda name: time.sleep(1.1) if name == "slow" else None
    jobs.at("slow", boottime())
    jobs.at("late", boottime() + 0.05)
    assert jobs.wait_for(2) == ["slow", "late"]


def test_a_job_may_be_armed_again_while_it_runs(jobs: Jobs) -> None:
    # APScheduler removes a date job after it ran, and with it one that was added under the same id meanwhile
    jobs.then = lambda name: jobs.at(name, boottime() + 0.05) if len(jobs.runs) < 3 else None
    jobs.at("wake", boottime())
    assert jobs.wait_for(3) == ["wake"] * 3


def test_a_job_armed_again_by_another_that_runs_with_it_keeps_its_new_moment(wall: Wall) -> None:
    # APScheduler's moment of the second is out of date by then
    jobs, later = Jobs(), boottime() + 0.3
    jobs.timer = SteadyScheduler(wall=wall)
    jobs.at("first", boottime() - 2)
    jobs.at("second", boottime() - 1)
    jobs.then = lambda name: jobs.at("second", later) if name == "first" else None
    jobs.timer.start()
    try:
        assert jobs.wait_for(2) == ["first", "second"]
        assert jobs.runs[1][1] >= later
    finally:
        jobs.timer.stop()


@pytest.mark.parametrize("jump", [-DAY, DAY])
def test_every_job_still_runs_at_its_moment_after_the_wall_clock_was_set(jobs: Jobs, wall: Wall, jump: float) -> None:
    # after a step back neither a date job nor an interval job ever fired again
    start = boottime()
    for name, wait in (("a", 0.3), ("b", 0.35), ("never", 7200.0)):
        jobs.at(name, start + wait)
    wall.offset = jump
    jobs.timer.check_clock_jump()
    jobs.at("planned after it", start + 0.4)
    assert jobs.wait_for(3) == ["a", "b", "planned after it"]
    assert [when >= start + wait for (_, when), wait in zip(jobs.runs, (0.3, 0.35, 0.4), strict=True)] == [True] * 3
    wait_for_nothing()
    assert "never" not in jobs.names


def test_a_clock_put_forward_runs_nothing_before_its_moment_even_if_nobody_watched_yet(jobs: Jobs, wall: Wall) -> None:
    # between the jump and the next look APScheduler thinks that a day's worth of names is due
    jobs.at("in two hours", boottime() + 7200)
    jobs.at("soon", boottime() + 0.5)
    wall.offset = DAY
    jobs.at("now", boottime())  # wakes APScheduler up
    assert jobs.wait_for(2) == ["now", "soon"]
    wait_for_nothing()
    assert jobs.names == ["now", "soon"]


def test_a_small_drift_changes_nothing(jobs: Jobs, wall: Wall) -> None:
    jobs.at("a", boottime() + SOON)
    wall.offset = 0.5
    with capture_logs() as lines:
        jobs.timer.check_clock_jump()
    assert lines == []
    jobs.wait_for(1)
    wait_for_nothing()
    assert jobs.names == ["a"]
