"""--refresh and --refresh-all: the daemon's code, checks and check-and-set write rules, now and once."""

import difflib
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

from worker.core.account import Absence
from worker.core.appjwt import utc
from worker.core.errors import RefreshError
from worker.core.outcome import Outcome, Result, Transition
from worker.core.status import PREVIOUS_USED
from worker.refresh import Accounts, ForceRefresh, Refresher
from worker.schedule.accounts import AccountScheduler
from worker.schedule.dispatch import Dispatcher

_MAX_WAIT = 0.1
"""Seconds between two looks at how far it is."""


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """One account in the report."""

    account: str
    outcome: str
    reason: str | None = None
    expires_at: str | None = None
    fingerprint: str | None = None
    vault_version: int | None = None
    error: str | None = None
    claims: Mapping[str, str | int] | None = None
    """Header and claims of the token in Vault, as `token.refreshed` has them."""


class ManualRefresh:
    def __init__(
        self,
        *,
        accounts: Accounts,
        refresher: Refresher,
        scheduler: AccountScheduler,
        pool: Executor,
        clock: Callable[[], float],
        report: Callable[[Outcome, Transition], None],
        force: ForceRefresh,
    ) -> None:
        """:param report: reports an outcome."""
        self._accounts = accounts
        self._clock = clock
        self._report = report
        self._names: list[str] = []
        self._outcomes: dict[str, Outcome] = {}
        self._changed = threading.Condition()
        self._wake_at = float("inf")
        self._dispatcher = Dispatcher(
            scheduler=scheduler,
            refresher=refresher,
            pool=pool,
            clock=clock,
            force=force,
            on_done=self._on_done,
            on_wait=self._schedule_wake,
        )

    def run(
        self,
        names: Iterable[str],
        progress: Callable[[int], object] = lambda _: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Refresh these accounts, and wait until all are done, or until it is to stop.

        :param progress: called with the number of accounts that are done.
        """
        self._names = self._dispatcher.scheduler.add(dict.fromkeys(names))
        self._dispatcher.queue(*self._names)
        while len(self._outcomes) < len(self._names) and not is_stopped():
            self._wait()
            progress(len(self._outcomes))

    def stop(self) -> None:
        """Start no further account. Those that run may hold a token that is not written yet: let the pool finish."""
        self._dispatcher.stop()

    def results(self, *, named: bool = True) -> list[RefreshResult]:
        """Return what became of each account, in the order given.

        :param named: the operator named them, so that none may be missing; a LIST holds deleted ones too.
        """
        skipped = partial(RefreshResult, outcome=Result.DUE.public, error="interrupted before it was started")
        return [
            self._result(self._outcomes[name], named) if name in self._outcomes else skipped(name)
            for name in self._names
        ]

    def _wait(self) -> None:
        with self._changed:
            # looked at again under the lock, or the last one's notice is missed
            if len(self._outcomes) < len(self._names):
                self._changed.wait(min(max(self._wake_at - self._clock(), 0.0), _MAX_WAIT))
            is_due = self._wake_at <= self._clock()
            if is_due:
                self._wake_at = float("inf")
        if is_due:
            self._dispatcher.start_due()

    def _on_done(self, outcome: Outcome, transition: Transition) -> None:
        try:
            self._report(outcome, replace(transition, due=float("inf")))  # nobody will try again
        finally:  # whatever became of the report, somebody waits for this
            with self._changed:
                self._outcomes[outcome.account] = outcome
                if len(self._outcomes) == len(self._names):  # how far it is will be seen in time
                    self._changed.notify()

    def _schedule_wake(self, when: float) -> None:
        with self._changed:
            is_earlier, self._wake_at = when < self._wake_at, when
            if is_earlier:  # waking the main thread costs, at each account that is done
                self._changed.notify()

    def _result(self, outcome: Outcome, named: bool) -> RefreshResult:  # noqa: FBT001 - see results
        result, token = outcome.result.public, outcome.token
        error = str(outcome.error) if outcome.error else PREVIOUS_USED if outcome.previous_used else None
        if outcome.absence is Absence.DISABLED:
            error = "the account is disabled"
        elif outcome.absence is Absence.REMOVED:
            error = f"there is no secret at {self._accounts.path(outcome.account)}"
            if named:
                result, error = Result.FAILED, f"{error}{self._nearest(outcome.account)}"
        return RefreshResult(
            account=outcome.account,
            outcome=result,
            reason=outcome.reason,
            expires_at=utc(token.exp) if token else None,
            fingerprint=token.fingerprint if token else None,
            vault_version=outcome.version,
            error=error,
            claims=token.fields() if token else None,
        )

    def _nearest(self, name: str) -> str:
        try:
            # a LIST holds deleted ones too, such as this
            near = difflib.get_close_matches(name, self._accounts.names() - {name}, n=1)
        except RefreshError:
            return ""
        return f"; did you mean {near[0]}?" if near else ""
