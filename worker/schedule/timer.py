"""A few named jobs on the steady clock, run by APScheduler.

APScheduler plans on the wall clock, and after a step back neither a date job nor an interval job ever fires again. So
the moments are kept here on the steady clock, and after a jump of the wall clock every job is armed again.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from worker.schedule.boottime import boottime

_MAX_DRIFT: Final = 1.0
"""Seconds between two checks: a step of the wall clock is larger, NTP's slewing far smaller."""
_MAX_DELAY: Final = timedelta(days=365)
_ROUNDING: Final = timedelta(milliseconds=1)
"""Dates have microseconds: a job that fires one too early would be armed again at once, and again."""

log = structlog.get_logger()


class SteadyScheduler:
    """Call each job once at its moment, all in one thread: what a job does must be short."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = boottime,
        wall: Callable[[], float] = time.time,
        scheduler: Any = None,
    ) -> None:
        """:param scheduler: an APScheduler that is not started; None = one with a thread of its own."""
        self._clock = clock
        self._wall = wall
        self._armed: dict[str, tuple[float, Callable[[], None], str]] = {}
        """By the job's name the steady moment, the callback, and the id of APScheduler's job for it."""
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._offset = wall() - clock()
        # not the scheduler's own thread: that one ends for good where a call removes a job that it is about to run
        self._scheduler = scheduler or BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone=UTC)

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        self._scheduler.remove_all_jobs()  # or its thread may end with a traceback: it cannot shut down amid a round
        self._scheduler.shutdown(wait=False)

    def at(self, name: str, when: float, callback: Callable[[], None]) -> None:
        """Run this job at the steady moment `when`, at once if that is past, in place of its earlier moment."""
        job = str(next(self._ids))  # a new id each time: APScheduler removes a job by its id after it ran
        with self._lock:
            previous, self._armed[name] = self._armed.get(name), (when, callback, job)
        if previous:
            with contextlib.suppress(JobLookupError):  # it ran, or is about to
                self._scheduler.remove_job(previous[2])
        wait = min(timedelta(seconds=max(0.0, when - self._clock())), _MAX_DELAY) + _ROUNDING
        self._scheduler.add_job(
            self._fire,
            "date",
            run_date=datetime.fromtimestamp(self._wall(), UTC) + wait,
            args=[name, job],
            id=job,
            misfire_grace_time=None,  # by default a job that is a second late is dropped for good
        )

    def check_clock_jump(self) -> bool:
        """Return True if wall and steady clock diverged since the last check; to be called each second.

        Every job is armed again then.
        """
        offset = self._wall() - self._clock()
        jump, self._offset = offset - self._offset, offset
        if abs(jump) <= _MAX_DRIFT:
            return False
        hint = "the wall clock was set (no refresh moves), or the steady clock stood still (Vault's clock will tell)"
        log.warning("clock.skewed", against="boottime", skew=round(jump, 3), hint=hint)
        for name, (when, callback, _) in list(self._armed.items()):
            self.at(name, when, callback)
        return True

    def _fire(self, name: str, job: str) -> None:
        with self._lock:
            when, callback, armed = self._armed.get(name, (0.0, None, None))
            if armed != job or callback is None:
                return  # armed again after APScheduler took this job up
            is_early = when > self._clock()
            if not is_early:
                del self._armed[name]
        if is_early:
            self.at(name, when, callback)  # the wall clock was put forward, and the check has not seen it yet
        else:
            callback()
