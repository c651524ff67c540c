"""APScheduler as the timer that rings by the steady clock.

APScheduler plans on the wall clock, and after a step back neither a date job nor an interval job ever fires again. So
due times are kept here on the steady clock, and on a jump of the wall clock every job is added anew.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler

from worker.schedule.steady import steady

_LARGEST_DRIFT = 1.0
"""Seconds between two looks; a step of the wall clock is larger, NTP's slewing is far smaller."""
_LONGEST_NAP = 15.0
_FARTHEST = timedelta(days=365)

log = structlog.get_logger()


class Clockwork:
    """Rings each name once at its moment, all from one thread: what `ring` does must be short."""

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
        self._due: dict[str, tuple[float, str]] = {}
        """The steady moment at which each name is to ring, and the id of APScheduler's job for that."""
        self._lock = threading.Lock()
        self._offset = wall() - clock()
        self._watched_at = clock()
        # not the scheduler's own thread: that one ends for good where `ring` removes a job that it is about to run
        self._scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone=UTC)

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        self._scheduler.remove_all_jobs()  # or its thread may end with a traceback: it cannot shut down amid a round
        self._scheduler.shutdown(wait=False)

    def at(self, name: str, when: float) -> None:
        """Ring `name` at the steady moment `when`, at once if that is over, instead of when it was to ring before."""
        # a new id each time: APScheduler removes a job by its id after it ran, and `ring` may plan the name anew
        job = uuid4().hex
        with self._lock:
            before, self._due[name] = self._due.get(name), (when, job)
        self._remove(before)
        wait = min(timedelta(seconds=max(0.0, when - self._clock())), _FARTHEST)
        self._scheduler.add_job(
            self._fire,
            "date",
            run_date=datetime.fromtimestamp(self._wall(), UTC) + wait,
            args=[name, job],
            id=job,
            misfire_grace_time=None,  # by default a job that is a second late is dropped for good
        )

    def drop(self, name: str) -> None:
        with self._lock:
            before = self._due.pop(name, None)
        self._remove(before)

    @property
    def turns(self) -> bool:
        """Whether the watch was kept of late: without it a step of the clock could end every timer."""
        return self._clock() - self._watched_at < _LONGEST_NAP

    def watch(self) -> None:
        """To be called each second: notices that the wall clock jumped."""
        self._watched_at = self._clock()
        offset = self._wall() - self._clock()
        jump, self._offset = offset - self._offset, offset
        if abs(jump) > _LARGEST_DRIFT:
            log.warning("clock.skewed", against="steady", skew=round(jump, 3))
            for name, (when, _) in list(self._due.items()):
                self.at(name, when)

    def _fire(self, name: str, job: str) -> None:
        with self._lock:
            when, planned = self._due.get(name, (0.0, None))
            if planned != job:
                return  # planned anew, or dropped, after APScheduler took this job up
            early = when > self._clock()
            if not early:
                del self._due[name]
        if early:
            self.at(name, when)  # the wall clock was put forward, and `watch` has not seen it yet
        else:
            self._ring(name)

    def _remove(self, planned: tuple[float, str] | None) -> None:
        if planned:
            with contextlib.suppress(JobLookupError):  # it ran, or is about to
                self._scheduler.remove_job(planned[1])
