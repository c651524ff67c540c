"""The sweep: looks at stored tokens in turn, whether each is still what was written or adopted."""

from collections.abc import Callable
from typing import Protocol

from worker.core.errors import Kind
from worker.core.outcome import Result
from worker.schedule.dispatch import Dispatcher

_PAUSE = 0.1
"""Seconds between two reads."""


class Timer(Protocol):
    def at(self, name: str, when: float) -> None: ...
    def drop(self, name: str) -> None: ...


class Sweep:
    def __init__(
        self, dispatcher: Dispatcher, timer: Timer, name: str, *, clock: Callable[[], float], every: float
    ) -> None:
        """
        :param name: the timer's, for `step`.
        :param every: seconds from the beginning of one round to that of the next.
        """
        self._dispatcher = dispatcher
        self._timer = timer
        self._name = name
        self._clock = clock
        self._every = every
        self._left: list[str] = []
        self._began = 0.0

    def begin(self) -> None:
        self._timer.at(self._name, self._clock() + self._every)

    def step(self) -> None:
        """Look at one account, and plan the next step."""
        if not self._left:
            self._began = self._clock()
            with self._dispatcher.lock:
                self._left = self._dispatcher.fleet.settled()
        try:
            if self._left:
                self._look(self._left.pop())
        finally:
            pause = _PAUSE if self._left else self._every
            self._timer.at(self._name, max(self._began + pause, self._clock() + _PAUSE))

    def _look(self, name: str) -> None:
        dispatcher = self._dispatcher
        with dispatcher.lock:
            entry = dispatcher.fleet.borrow(name)
        if entry is None:
            return
        stood = entry.should_stand
        outcome = dispatcher.look(name, stood)
        same = outcome.held and stood and outcome.held.fingerprint == stood.fingerprint
        known = outcome.result is Result.ADOPTED and same and not outcome.restored
        unseen = outcome.error is not None and outcome.error.kind is Kind.TRANSIENT
        if known or unseen:
            with dispatcher.lock:
                dispatcher.fleet.give_back(entry, outcome.held if known else None)
            if entry.due is None or entry.due <= self._clock():
                self._timer.at(name, self._clock())  # it came due meanwhile, and its timer rang in vain
        else:
            dispatcher.settle(outcome)
