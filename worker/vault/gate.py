"""A mount's pace: Vault's 429 slows down every request to the mount, and makes none of them fail.

It is closed for a while at a 429 and reopens with one request. Each round of answers lets twice as many through, up to
half of those that were too many, and from there on one more.
"""

import math
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final, TypeVar

import structlog

from worker.core.errors import ThrottledError
from worker.core.plan import MAX_FRACTION_OF_REMAINING, RETRY_PAUSES
from worker.vault.operation import Operation

_PAUSE: Final = timedelta(seconds=1)
"""The closed time where the 429 has no Retry-After, or 0: a server may round down."""
_MIN_PAUSE: Final = 0.1
_MAX_PAUSE: Final = RETRY_PAUSES[-1].total_seconds()
_QUIET_PERIOD: Final = 5.0
"""Seconds without a 429 after which throttling is over."""
_LOG_AFTER: Final = 60.0
"""Seconds after which throttling is logged although it is not over."""
_MAX_WAIT: Final = 1.0
"""Seconds between two looks whether one may start, at most."""
_QUEUE_TIMEOUTS: Final[Mapping[str, float]] = {Operation.WRITE_TOKEN: 30.0, Operation.WRITE_METADATA: 10.0}
"""Seconds that a write waits at most, for what it was decided on grows old. A read waits as long as it takes."""

T = TypeVar("T")
log = structlog.get_logger()


class Gate:
    def __init__(
        self,
        mount: str,
        *,
        clock: Callable[[], float],
        min_remaining: Callable[[], float],
        condition: Any = None,
    ) -> None:
        """
        :param min_remaining: returns the seconds until the first token of an account at work expires.
        :param condition: waits in the clock's time; None = a threading.Condition.
        """
        self._mount = mount
        self._clock = clock
        self._min_remaining = min_remaining
        self._changed = condition or threading.Condition()
        self.closed_until = -math.inf
        self._limit = math.inf
        """Requests at a time; inf = not throttled."""
        self._slow_start_threshold = 1.0
        """Half of the requests that were too many at a time."""
        self._generation = 0
        self._in_flight = 0
        """Requests that were sent since the latest closing."""
        self._throttled_since = 0.0
        self._is_logged = False

    def call(self, operation: Operation, send: Callable[[], T]) -> T:
        """Send a request in its turn, and again after a 429; ThrottledError if a write waits for too long."""
        deadline = self._clock() + _QUEUE_TIMEOUTS.get(operation, math.inf)
        while True:
            generation, refusal = self._enter(deadline), None
            try:
                return send()
            except ThrottledError as error:
                refusal = error
                if self._clock() >= deadline:
                    raise
            finally:
                self._leave(generation, refusal)

    def close(self) -> None:
        """Log the throttling that goes on: no request follows."""
        with self._changed:
            self._log_throttling(self._clock(), is_over=True)

    def _enter(self, deadline: float) -> int:
        """Wait for the turn of a request; return the number of closings so far."""
        with self._changed:
            now = self._clock()
            if self._limit < math.inf:
                self._log_throttling(now, is_over=now > self.closed_until + _QUIET_PERIOD)
                self.closed_until = min(self.closed_until, now + self._max_pause())
            while self._wait(now) > 0 and now < deadline:
                self._changed.wait(min(self._wait(now), deadline - now, _MAX_WAIT))
                now = self._clock()
            self._in_flight += 1
            return self._generation

    def _leave(self, generation: int, refusal: ThrottledError | None) -> None:
        with self._changed:
            if generation != self._generation:
                return  # it was sent before the latest 429, and shows nothing of the pace since
            if refusal:
                self._throttle(refusal)
            else:
                self._in_flight -= 1
                self._limit = max(self._limit + 1 / self._limit, self._slow_start_threshold)
                self._changed.notify(2)  # no more, so that each round has twice as many at most

    def _throttle(self, refusal: ThrottledError) -> None:
        now = self._clock()
        if self._limit == math.inf:
            self._throttled_since, self._is_logged = now, False
        if self._limit > 1:  # else it was the one that reopens
            self._slow_start_threshold = self._in_flight / 2
        self._generation, self._in_flight, self._limit = self._generation + 1, 0, 1.0
        pause = (refusal.retry_after or _PAUSE).total_seconds()
        self.closed_until = now + min(pause, self._max_pause())

    def _max_pause(self) -> float:
        """Return the most seconds that it stays closed, whatever Retry-After asks for: no token may expire by it."""
        max_pause = min(_MAX_PAUSE, self._min_remaining() * MAX_FRACTION_OF_REMAINING)
        return max(_MIN_PAUSE, max_pause)

    def _wait(self, now: float) -> float:
        """Return for how many seconds no request may start, as far as is known; inf = until one was answered."""
        if now < self.closed_until:
            return self.closed_until - now
        return 0.0 if self._in_flight + 1 <= self._limit else math.inf

    def _log_throttling(self, now: float, *, is_over: bool) -> None:
        """Log a period of throttling, once; it need not be over for that if it is long."""
        duration = min(now, self.closed_until) - self._throttled_since
        if self._limit < math.inf and not self._is_logged and (is_over or duration > _LOG_AFTER):
            self._is_logged = True
            log.warning("vault.throttled", mount=self._mount, duration=round(duration, 3))
        if is_over:
            self._limit = math.inf
