"""Decides in one place what is wrong with Vault, logs when it begins and when it is over; every screen shows it."""

import threading
from collections.abc import Callable
from enum import Enum, auto

import structlog

from worker.core.errors import Kind, RefreshError, Stage
from worker.core.outcome import Outcome, Result, State

_MIN_REFUSED = 2
"""Accounts that are refused while none is refreshed: one alone may be refused for itself."""

log = structlog.get_logger()


class Use(Enum):
    """A use of Vault. One may work while another does not: a standby without a leader still answers reads."""

    LOGIN = auto()
    LIST = auto()
    READ = auto()
    WRITE = auto()
    REFRESH = auto()
    """What attempts at accounts need; they fail by refusals."""


class Outage:
    def __init__(self, address: str, clock: Callable[[], float]) -> None:
        self._address = address
        self._clock = clock
        self._failing: dict[Use, str] = {}
        """The latest error of each use."""
        self._refused: set[str] = set()
        """Accounts refused since one was last refreshed."""
        self._refused_alone: set[str] = set()
        """Accounts that were refused while another one was refreshed: for themselves, until they succeed."""
        self._since = 0.0
        self._lock = threading.Lock()

    @property
    def error(self) -> str | None:
        """Return what is wrong, in words; None = Vault can be used."""
        with self._lock:
            return next(iter(self._failing.values()), None)

    def record_failure(self, use: Use, error: RefreshError, **fields: object) -> None:
        with self._lock:
            self._begin(use, error, **fields)

    def record_success(self, use: Use) -> None:
        """End this use's trouble; who can write can read."""
        with self._lock:
            self._end(Use.READ, Use.WRITE) if use is Use.WRITE else self._end(use)

    def record_list(self, error: RefreshError | None) -> None:
        """Record a comparison with Vault's list: whatever fails it, a refusal too, stops all that it is for."""
        if error:
            self.record_failure(Use.LIST, error)
        else:
            self.record_success(Use.LIST)

    def record_attempt(self, outcome: Outcome, accounts: int) -> None:
        """Record an attempt. What Vault refuses to a few accounts while none is refreshed, it refuses to all.

        An account that was refused while others were refreshed does not count until it succeeds.

        :param accounts: the number of all accounts.
        """
        error = outcome.error
        with self._lock:
            if error and _is_refusal(error) and outcome.state is State.FAILING:
                if outcome.account not in self._refused_alone:
                    self._refused.add(outcome.account)
                if len(self._refused) >= max(1, min(_MIN_REFUSED, accounts - len(self._refused_alone))):
                    self._begin(Use.REFRESH, error)
            else:
                self._refused.discard(outcome.account)
                if error is None:
                    self._refused_alone.discard(outcome.account)
                if outcome.result in (Result.REFRESHED, Result.UNCHANGED):
                    self._refused_alone |= self._refused
                    self._refused.clear()
            if not self._refused:
                self._end(Use.REFRESH)

    def _begin(self, use: Use, error: RefreshError, **fields: object) -> None:
        if not self._failing:
            self._since = self._clock()
            log.error("vault.unavailable", address=self._address, error=str(error), status=error.status, **fields)
        self._failing[use] = str(error)

    def _end(self, *uses: Use) -> None:
        ended = [self._failing.pop(use) for use in uses if use in self._failing]
        if ended and not self._failing:
            log.info("vault.recovered", address=self._address, duration=round(self._clock() - self._since, 3))


def _is_refusal(error: RefreshError) -> bool:
    return error.stage in (Stage.VAULT, Stage.CREDENTIALS) and error.kind is Kind.PERMANENT
