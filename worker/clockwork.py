"""The steady clock, and APScheduler as the timer that rings by it.

APScheduler plans on the wall clock, and after a step back neither a date job nor an interval job ever fires again. So
due times are kept here on the steady clock, and on a jump of the wall clock every job is added anew.
"""

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

_LARGEST_DRIFT = 1.0
"""Seconds between two looks; a step of the wall clock is larger, NTP's slewing is far smaller."""
_FARTHEST = timedelta(days=365)

log = structlog.get_logger()


def steady() -> float:
    """Seconds that neither jump with the wall clock nor stop while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Clockwork:
    """Rings each name once at its moment, from APScheduler's thread: what `ring` does must be short."""

    def __init__(
        self,
        ring: Callable[[str], None],
        *,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._ring = ring
        self._clock = clock
        self._wall = wall
        self._due: dict[str, float] = {}
        self._offset = wall() - clock()
        # `ring` only hands the name on, so it runs in the scheduler's own thread; the threads that work are not its
        self._scheduler = BackgroundScheduler(executors={"default": DebugExecutor()}, timezone=UTC)

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        self._scheduler.shutdown(wait=False)

    def at(self, name: str, when: float) -> None:
        """Ring `name` at the steady moment `when`, at once if that is over, instead of when it was to ring before."""
        self._due[name] = when
        wait = min(timedelta(seconds=max(0.0, when - self._clock())), _FARTHEST)
        self._scheduler.add_job(
            self._fire,
            "date",
            run_date=datetime.fromtimestamp(self._wall(), UTC) + wait,
            args=[name],
            id=name,
            replace_existing=True,
            misfire_grace_time=None,  # by default a job that is a second late is dropped for good
        )

    def drop(self, name: str) -> None:
        if self._due.pop(name, None) is not None:
            with contextlib.suppress(JobLookupError):  # it rings just now
                self._scheduler.remove_job(name)

    def watch(self) -> None:
        """To be called each second: notices that the wall clock jumped."""
        offset = self._wall() - self._clock()
        jump, self._offset = offset - self._offset, offset
        if abs(jump) > _LARGEST_DRIFT:
            log.warning("clock.skewed", against="steady", skew=round(jump, 3))
            for name, when in list(self._due.items()):
                self.at(name, when)

    def _fire(self, name: str) -> None:
        self._due.pop(name, None)
        self._ring(name)
