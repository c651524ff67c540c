"""The daemon: accounts come and go, what is due is refreshed, a clean stop. It ends only when told to."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Protocol

import structlog

from worker.core import plan
from worker.core.entry import Entry
from worker.core.errors import Kind, RefreshError
from worker.core.outcome import Next, Outcome
from worker.refresh import Accounts, Refresher
from worker.schedule.clockwork import Clockwork
from worker.schedule.dispatch import Dispatcher
from worker.schedule.fleet import Fleet
from worker.schedule.sweep import Sweep, Timer

# the timer's names for what is not an account; no account's name begins with a slash
_SYNC, _LOGIN, _PUMP, _SWEEP = "/sync", "/login", "/pump", "/sweep"
_FAST_PAUSES = 3
"""A sync that failed is repeated at these first of the pauses, for it is what notices that Vault is back."""

_LOOKERS = 32
"""Threads, at most, that look at the stored tokens of new accounts; at a start that is all of them."""
_TICK = 1.0
_PATIENCE = 14.0
"""Seconds that what runs has to end after SIGTERM; with the revocation of the login it stays under the promised 20."""

log = structlog.get_logger()


class Daemon:
    def __init__(
        self,
        *,
        accounts: Accounts,
        refresher: Refresher,
        fleet: Fleet,
        timer: Timer,
        pool: Executor,
        clock: Callable[[], float],
        keep_login_alive: Callable[[], float],
        report: Callable[[Outcome, Next], None],
        sync_every: float,
        sweep_every: float,
    ) -> None:
        """
        :param keep_login_alive: returns the steady moment at which it wants to be called again.
        :param report: tells people about an outcome.
        :param sync_every: seconds, as sweep_every.
        """
        self._accounts = accounts
        self._refresher = refresher
        self._timer = timer
        self._pool = pool
        self._clock = clock
        self._keep_login_alive = keep_login_alive
        self._report = report
        self._sync_every = sync_every
        self._sync_failures = 0
        self._list_refused = False
        self._retrying = threading.Lock()
        self._unlooked: set[str] = set()
        self.synced_at: float | None = None
        """The steady moment of the latest sync that went well."""
        self._stopping = False
        self.ready = threading.Event()
        """Logged in, and every stored token was looked at once; it stays true."""
        self._dispatcher = Dispatcher(
            fleet=fleet,
            refresher=refresher,
            pool=pool,
            clock=clock,
            by_hand=None,
            on_done=self._plan,
            on_wait=partial(timer.at, _PUMP),
        )
        self._sweep = Sweep(self._dispatcher, timer, _SWEEP, clock=clock, every=sweep_every)

    def begin(self) -> None:
        self._timer.at(_SYNC, self._clock())

    def ring(self, name: str) -> None:
        """What the timer does when the moment of a name has come."""
        if self._stopping:
            return
        if name == _SYNC:
            self._in_pool(self._sync)
        elif name == _LOGIN:
            self._in_pool(self._log_in)
        elif name == _SWEEP:
            self._in_pool(self._sweep.step)
        elif name == _PUMP:
            self._dispatcher.pump()
        else:
            self._dispatcher.queue(name)

    def entries(self) -> list[Entry]:
        """All accounts, for showing."""
        with self._dispatcher.lock:
            return self._dispatcher.fleet.entries()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping = True
        self._dispatcher.stop()

    def _in_pool(self, work: Callable[..., None], *names: str) -> None:
        self._pool.submit(self._guarded, work, *names)

    def _guarded(self, work: Callable[..., None], *names: str) -> None:
        try:
            work(*names)
        except Exception:
            log.exception("worker.bug")  # the next sync makes good what was left undone

    def _sync(self) -> None:
        """Compare the accounts there are with those we know, so that no lost event stops one."""
        pause = self._sync_every
        try:
            listed = self._accounts.names()
        except RefreshError as error:
            self._sync_failures += 1
            failures = min(self._sync_failures, _FAST_PAUSES)
            pause = min(pause, plan.next_retry(failures, life_left=0.0, kind=Kind.TRANSIENT).total_seconds())
            if error.kind is Kind.LASTING and not self._list_refused:  # of the others the session told
                self._list_refused = True
                log.error("vault.unavailable", error=str(error), status=error.status)
        else:
            if self._list_refused:
                log.info("vault.recovered")
            self._sync_failures, self._list_refused, self.synced_at = 0, False, self._clock()
            self._take_in(listed)
        finally:
            self._timer.at(_SYNC, self._clock() + pause)
        self._in_pool(self._retry_edited)

    def _take_in(self, listed: frozenset[str]) -> None:
        dispatcher, first = self._dispatcher, not self.ready.is_set()
        with dispatcher.lock:
            dispatcher.fleet.vault_works()
            new = dispatcher.fleet.add(sorted(listed))
            missing = dispatcher.fleet.missing(listed)
            overdue = dispatcher.fleet.overdue(self._clock())
            self._unlooked.update(new)
        for name in new:
            if not first:
                log.info("account.added", account=name)
        unseen = deque(new)
        for _ in range(min(len(new), _LOOKERS)):
            self._pool.submit(self._look_at, unseen)
        for name in missing:
            self._in_pool(self._remove_if_gone, name)
        dispatcher.queue(*overdue)
        self._check_ready()
        say = log.info if first or new or missing else log.debug
        hint = None if listed else "there is no account below accounts.prefix"
        say("accounts.synced", accounts=len(listed), added=len(new), missing=len(missing), hint=hint)
        self._log_in()

    def _look_at(self, names: deque[str]) -> None:
        """One after the other, until others have taken the rest: a job for each would be thousands at once."""
        while names and not self._stopping:
            with contextlib.suppress(IndexError):
                self._guarded(self._look, names.popleft())

    def _look(self, name: str) -> None:
        self._dispatcher.settle(self._dispatcher.look(name, None))
        with self._dispatcher.lock:
            self._unlooked.discard(name)
        self._check_ready()

    def _retry_edited(self) -> None:
        """Try the failing accounts whose secret was edited: their own next attempt may be far off."""
        if not self._retrying.acquire(blocking=False):
            return  # they are many, and each costs a read
        try:
            with self._dispatcher.lock:
                failing = self._dispatcher.fleet.failing(self._clock())
            for name in failing:
                if self._is_edited(name):
                    self._dispatcher.queue(name)
        finally:
            self._retrying.release()

    def _is_edited(self, name: str) -> bool:
        try:
            return self._refresher.has_changed(name)
        except RefreshError:
            return False

    def _remove_if_gone(self, name: str) -> None:
        if self._refresher.is_gone(name):
            with self._dispatcher.lock:
                news = self._dispatcher.fleet.remove(name)
            self._timer.drop(name)
            if news:
                log.info("account.removed", account=name)

    def _plan(self, outcome: Outcome, following: Next) -> None:
        """The last act of each attempt: were the next one planned before, it could come due while this one runs."""
        if not outcome.is_to_do:
            self._report(outcome, following)
        self._timer.at(outcome.account, following.due)

    def _log_in(self) -> None:
        try:
            again = self._keep_login_alive()
        except RefreshError:
            again = self._clock() + plan.RETRY_PAUSES[0].total_seconds()
        if again != float("inf"):
            # not at once: another thread may be at it
            self._timer.at(_LOGIN, max(again, self._clock() + plan.SHORTEST_PAUSE.total_seconds()))

    def _check_ready(self) -> None:
        with self._dispatcher.lock:
            if self._unlooked or self.ready.is_set():
                return
            self.ready.set()
        self._sweep.begin()
        log.info("worker.ready", accounts=len(self._dispatcher.fleet))


class Http(Protocol):
    address: str

    def start(self) -> None: ...


def run(
    daemon: Daemon, clockwork: Clockwork, pool: ThreadPoolExecutor, http: Http | None, log_out: Callable[[], None]
) -> bool:
    """Run until SIGTERM or SIGINT; whether every thread ended in time."""
    told = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: told.set())
    log.info("worker.started", version=version("appjwt-worker"), http=http.address if http else None)
    if http:
        http.start()
    clockwork.start()
    daemon.begin()
    while not told.wait(_TICK):
        clockwork.watch()
    log.info("worker.stopping")
    daemon.stop()
    clockwork.stop()
    ending = threading.Thread(target=pool.shutdown, kwargs={"wait": True, "cancel_futures": True}, daemon=True)
    ending.start()
    ending.join(_PATIENCE)
    log_out()
    log.info("worker.stopped")
    return not ending.is_alive()
