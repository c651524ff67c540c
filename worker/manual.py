"""--refresh and --refresh-all: the daemon's code, checks and fence, now and once."""

import difflib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from worker.core.appjwt import utc
from worker.core.errors import AccountGoneError, RefreshError
from worker.core.notes import PREVIOUS_USED
from worker.core.outcome import Next, Outcome, Result
from worker.refresh import Accounts, ByHand, Refresher
from worker.schedule.dispatch import Dispatcher
from worker.schedule.fleet import Fleet

_LONGEST_WAIT = 0.1
"""Seconds between two looks at how far it is."""


@dataclass(frozen=True, slots=True)
class Line:
    """What the report says of one account."""

    account: str
    outcome: Result
    reason: str | None
    expires_at: str | None
    fingerprint: str | None
    vault_version: int | None
    error: str | None


class ManualRefresh:
    def __init__(
        self,
        *,
        accounts: Accounts,
        refresher: Refresher,
        fleet: Fleet,
        pool: Executor,
        clock: Callable[[], float],
        report: Callable[[Outcome, Next], None],
        by_hand: ByHand,
    ) -> None:
        """:param report: tells people about an outcome."""
        self._accounts = accounts
        self._clock = clock
        self._report = report
        self._wanted = 0
        self._outcomes: dict[str, Outcome] = {}
        self._changed = threading.Condition()
        self._pump_at = float("inf")
        self._dispatcher = Dispatcher(
            fleet=fleet,
            refresher=refresher,
            pool=pool,
            clock=clock,
            by_hand=by_hand,
            on_done=self._done,
            on_wait=self._pump_later,
        )

    def run(
        self, names: Iterable[str], progress: Callable[[int], object] = lambda _: None, *, named: bool = True
    ) -> list[Line]:
        """Refresh these accounts, wait for all of them, and tell what became of each, in the order given.

        :param progress: called with the number of accounts that are done.
        :param named: the operator named them, so that none may be missing; a LIST holds deleted ones too.
        """
        wanted = self._dispatcher.fleet.add(dict.fromkeys(names))
        self._wanted = len(wanted)
        try:
            self._dispatcher.queue(*wanted)
            self._wait(progress)
        finally:
            self._dispatcher.stop()  # Ctrl-C: what runs ends, nothing new begins
        return [self._line(self._outcomes[name], named) for name in wanted]

    def _wait(self, progress: Callable[[int], object]) -> None:
        while len(self._outcomes) < self._wanted:
            with self._changed:
                # looked at again under the lock, or the last one's notice is missed
                if len(self._outcomes) < self._wanted:
                    self._changed.wait(min(max(self._pump_at - self._clock(), 0.0), _LONGEST_WAIT))
                pump = self._pump_at <= self._clock()
                if pump:
                    self._pump_at = float("inf")
            if pump:
                self._dispatcher.pump()
            progress(len(self._outcomes))

    def _done(self, outcome: Outcome, following: Next) -> None:
        try:
            self._report(outcome, replace(following, due=float("inf")))  # nobody will try again
        finally:  # whatever became of the report, somebody waits for this
            with self._changed:
                self._outcomes[outcome.account] = outcome
                if len(self._outcomes) == self._wanted:  # how far it is will be seen in time
                    self._changed.notify()

    def _pump_later(self, when: float) -> None:
        with self._changed:
            self._pump_at = when
            self._changed.notify()

    def _line(self, outcome: Outcome, named: bool) -> Line:  # noqa: FBT001 - see run
        result, token = outcome.result, outcome.token
        error = str(outcome.error) if outcome.error else PREVIOUS_USED if outcome.previous_used else None
        if named and isinstance(outcome.error, AccountGoneError):
            result, error = Result.FAILED, f"{error}{self._nearest(outcome.account)}"
        return Line(
            account=outcome.account,
            outcome=result,
            reason=outcome.reason,
            expires_at=utc(token.exp) if token else None,
            fingerprint=token.fingerprint if token else None,
            vault_version=outcome.version,
            error=error,
        )

    def _nearest(self, name: str) -> str:
        try:
            # a LIST holds deleted ones too, such as this
            near = difflib.get_close_matches(name, self._accounts.names() - {name}, n=1)
        except RefreshError:
            return ""
        return f"; did you mean {near[0]}?" if near else ""
