"""The resync: look at stored tokens in turn, whether each is still the one that was written or adopted."""

from collections.abc import Callable
from typing import Final

from worker.core.errors import Kind
from worker.core.outcome import Result
from worker.schedule.dispatch import Dispatcher

_PAUSE: Final = 0.1
"""Seconds between two reads."""


class Resync:
    def __init__(self, dispatcher: Dispatcher, *, clock: Callable[[], float], interval: float) -> None:
        """:param interval: seconds from the start of one round to that of the next."""
        self._dispatcher = dispatcher
        self._clock = clock
        self.interval = interval
        self._pending: list[str] = []
        self._started = 0.0

    def step(self) -> float:
        """Look at one account, and return the moment of the next step."""
        if not self._pending:
            self._started = self._clock()
            with self._dispatcher.lock:
                self._pending = self._dispatcher.scheduler.healthy()
        if self._pending:
            self.check(self._pending.pop())
        pause = _PAUSE if self._pending else self.interval
        return max(self._started + pause, self._clock() + _PAUSE)

    def check(self, name: str) -> None:
        """Compare an account's stored token with the one that is remembered, unless the account is busy."""
        dispatcher = self._dispatcher
        with dispatcher.lock:
            record = dispatcher.scheduler.reserve(name)
        if record is None:
            return
        expected = record.expected_token
        outcome = dispatcher.check_stored(name, expected)
        is_same = outcome.tracked and expected and outcome.tracked.fingerprint == expected.fingerprint
        is_unchanged = outcome.result is Result.ADOPTED and is_same
        is_unreadable = outcome.error is not None and outcome.error.kind is Kind.TRANSIENT
        if is_unchanged or is_unreadable:
            with dispatcher.lock:
                dispatcher.scheduler.release(record, outcome.tracked if is_unchanged else None)
        else:
            dispatcher.complete(outcome)
