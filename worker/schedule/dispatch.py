"""Run the accounts that may start, each in a thread of the pool; the daemon and the manual refresh share it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from worker.core.errors import InternalError
from worker.core.outcome import Outcome, Result, Transition
from worker.core.plan import Reason, TrackedToken
from worker.core.record import AccountRecord
from worker.refresh import ForceRefresh, Refresher
from worker.schedule.accounts import AccountScheduler

_MAX_WAIT = 0.1
"""Seconds: where a signal comes just before the main thread waits, Python does not see it until the wait is over."""
S = TypeVar("S")
T = TypeVar("T")


class Limits(NamedTuple):
    """Limits of the requests to a Sentinel host: at a time, and in a second."""

    max_in_flight: int
    max_per_second: float


class Pool(ThreadPoolExecutor):
    """A pool that makes do with the threads there are: work waits for them. Work after the shutdown is dropped."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                    future.set_exception(error)

        try:
            super().submit(work)
        except RuntimeError:
            if not self._threads and not self._shutdown:
                raise
            # where no thread could be started the work was queued before
        return future

    def call(self, fn: Callable[[], T]) -> T:
        """Call it in a thread of the pool, and return what it returns.

        A signal interrupts the caller alone: of a login that is cut off, nobody has the token to revoke it.
        """
        future = self.submit(fn)
        while not futures.wait([future], _MAX_WAIT).done:
            pass
        result: T = future.result()
        return result

    def map_unordered(self, fn: Callable[[S], T], items: Iterable[S], limits: Limits) -> Iterator[T]:
        """Call it for each item in threads of the pool, within the limits; yield each result as soon as it is known."""
        waiting, running = deque(items), set[Future[T]]()
        start_at = time.monotonic()
        while waiting or running:
            has_slot = bool(waiting) and len(running) < limits.max_in_flight
            pause = min(start_at - time.monotonic(), _MAX_WAIT) if has_slot else _MAX_WAIT
            if pause <= 0:
                running.add(self.submit(fn, waiting.popleft()))
                start_at = time.monotonic() + 1 / limits.max_per_second
            elif running:
                done, running = futures.wait(running, pause, futures.FIRST_COMPLETED)
                yield from (each.result() for each in done)
            else:
                time.sleep(pause)

    def join(self, timeout: float = float("inf")) -> bool:
        """Wait until the threads have ended, after shutdown. Return False if one has not by then."""
        end = time.monotonic() + timeout
        # not by `_threads`: a signal amid the start of one keeps it from being there
        while alive := [each for each in threading.enumerate() if each.name.startswith(f"{self._thread_name_prefix}_")]:
            if time.monotonic() >= end:
                return False
            alive[0].join(min(_MAX_WAIT, max(0.0, end - time.monotonic())))
        return True


class Dispatcher:
    def __init__(
        self,
        *,
        scheduler: AccountScheduler,
        refresher: Refresher,
        pool: Executor,
        clock: Callable[[], float],
        force: ForceRefresh | None,
        on_done: Callable[[Outcome, Transition], None],
        on_wait: Callable[[float], None],
    ) -> None:
        """
        :param force: an operator's request; None = refresh what is due.
        :param on_done: called with each outcome that was recorded, and what follows.
        :param on_wait: called with the moment at which `start_due` is wanted again.
        """
        self.scheduler = scheduler
        self.lock = threading.Lock()
        """Held for every use of the scheduler."""
        self._refresher = refresher
        self._pool = pool
        self._clock = clock
        self._force = force
        self._on_done = on_done
        self._on_wait = on_wait
        self._stopped = False
        self._submitted: dict[str, float] = {}
        """When accounts were handed to the pool that no thread has taken up yet."""
        self._finished_at = clock()

    def queue(self, *names: str) -> None:
        """Let these accounts run as soon as they may, whatever their due times."""
        with self.lock:
            for name in names:
                self.scheduler.queue(name)
        self.start_due()

    def start_due(self) -> None:
        """Start every account that is due, or queued, and may run now."""
        with self.lock:
            if self._stopped:
                return
            now = self._clock()
            self.scheduler.queue_due(now)
            while record := self.scheduler.start_next(now):
                self._submitted[record.name] = now
                self._pool.submit(self._run, record)
            wake = self.scheduler.next_wake()
        if wake is not None:
            self._on_wait(wake)

    def stalled_for(self) -> float:
        """Return for how many seconds work has waited for a thread while none finished; 0 = none waits."""
        oldest = min(list(self._submitted.values()), default=None)
        return 0.0 if oldest is None else self._clock() - max(oldest, self._finished_at)

    def check_stored(self, name: str, tracked: TrackedToken | None) -> Outcome:
        """Look at the account's stored token; the outcome is to be completed."""
        return self._catch_exceptions(name, lambda: self._refresher.check_stored(name, tracked))

    def complete(self, outcome: Outcome) -> None:
        """Record an outcome, also one that did not come from the queue; it may let others run."""
        self._finished_at = self._clock()
        with self.lock:
            transition = self.scheduler.complete(outcome, self._finished_at)
            if self._force:
                self.scheduler.remove(outcome.account)  # one attempt each: others' success wakes none
        if transition:
            self._on_done(outcome, transition)
        self.start_due()

    def stop(self) -> None:
        """Start no further account; running attempts finish."""
        with self.lock:
            self._stopped = True

    def _run(self, record: AccountRecord) -> None:
        self._submitted.pop(record.name, None)
        refresh = partial(
            self._refresher.refresh,
            record.name,
            tracked=record.expected_token,
            force=self._force,
            others_wait=record.others_wait,
        )
        self.complete(self._catch_exceptions(record.name, refresh))

    def _catch_exceptions(self, name: str, work: Callable[[], Outcome]) -> Outcome:
        """Turn a bug at one account into an outcome: it must stop neither that account for good nor the others."""
        started = self._clock()
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - it is logged with its traceback
            reason = Reason.MANUAL if self._force else Reason.DUE
            return Outcome(name, Result.FAILED, self._clock() - started, reason=reason, error=InternalError(error))
