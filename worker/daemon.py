"""The daemon: follow the list of accounts, refresh what is due, and stop cleanly when asked to."""

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, Protocol

import structlog

from worker.core import plan
from worker.core.errors import Kind, RefreshError
from worker.core.outcome import Outcome, Result, Transition
from worker.core.record import AccountRecord
from worker.refresh import Accounts, Refresher
from worker.schedule.accounts import AccountScheduler
from worker.schedule.dispatch import Dispatcher
from worker.schedule.resync import Resync

_MAX_FAST_RETRIES: Final = 3
"""A failed sync is retried after at most this one of RETRY_PAUSES, because the sync detects that Vault is back."""
_INITIAL_READERS: Final = 32
"""Threads, at most, that read the stored tokens of many accounts: at a start, and after a clock jump."""
TICK: Final = 1.0
"""Seconds between two passes of the main loop."""
_MAX_STALL: Final = 60.0
"""Seconds without a scheduling pass, or without a start of work that could run, after which the process is stuck."""
_PAUSE_THRESHOLD: Final = 5.0
"""A tick that is late by more than these seconds shows that the process was paused."""
_REREAD_INTERVAL: Final = 60.0
"""Seconds between two re-reads of all tokens after clock jumps: Vault nodes whose clocks differ must not cause more."""

log = structlog.get_logger()


class Timer(Protocol):
    def at(self, name: str, when: float, callback: Callable[[], None]) -> None: ...
    def check_clock_jump(self) -> bool: ...


class Daemon:
    def __init__(
        self,
        *,
        accounts: Accounts,
        refresher: Refresher,
        scheduler: AccountScheduler,
        timer: Timer,
        pool: Executor,
        clock: Callable[[], float],
        keep_login_alive: Callable[[], float],
        report: Callable[[Outcome, Transition], None],
        sync_interval: float,
        resync_interval: float,
    ) -> None:
        """
        :param keep_login_alive: returns the steady moment at which it wants to be called again.
        :param report: called with each outcome, for the log and the metrics.
        :param sync_interval: seconds; so is resync_interval.
        """
        self._accounts = accounts
        self._refresher = refresher
        refresher.removal_delay = sync_interval
        self._timer = timer
        self._pool = pool
        self._clock = clock
        self._keep_login_alive = keep_login_alive
        self._report = report
        self.throttled_until: Callable[[], float] = lambda: -math.inf
        """Returns the steady moment until which Vault's rate limit holds requests back."""
        self._sync_interval = sync_interval
        self._sync_failures = 0
        self._retrying = threading.Lock()
        self._unread: set[str] = set()
        self._wake_at = float("inf")
        self._ticked_at = clock()
        self._reread_from = float("-inf")  # inf = a re-read of all tokens is planned already
        self._reread_as_new = False
        self.on_list: Callable[[RefreshError | None], object] = lambda _: None
        """Called after each LIST with its error; None = it worked."""
        self.synced_at: float | None = None
        """The steady moment of the latest sync that succeeded."""
        self._stopping = False
        self.ready = threading.Event()
        """Set once logged in and every stored token was read; it stays set."""
        self._dispatcher = Dispatcher(
            scheduler=scheduler,
            refresher=refresher,
            pool=pool,
            clock=clock,
            force=None,
            on_done=self._on_done,
            on_wait=self._schedule_wake,
        )
        self._resync = Resync(self._dispatcher, clock=clock, interval=resync_interval)

    def start(self) -> None:
        self._arm("sync", self._clock(), self._sync)

    def tick(self) -> None:
        """Start what is due. Call it each second, so that a lost wake delays nothing by more than that."""
        delay = self._clock() - self._ticked_at - TICK
        if delay > _PAUSE_THRESHOLD:
            log.warning("worker.paused", duration=round(delay, 3))
        if self._timer.check_clock_jump():  # the machine may have slept: sync, to compare Vault's clock
            self._arm("sync", self._clock(), self._sync)
        self._dispatcher.start_due()
        self._ticked_at = self._clock()

    @property
    def stall_reason(self) -> str | None:
        """Return why the process counts as stuck; None = it does not. Outages of Vault or Sentinel do not count."""
        if (stalled_for := self._clock() - self._ticked_at) > _MAX_STALL:
            return f"no scheduling pass for {stalled_for:.0f} s"
        stalled_for = min(self._dispatcher.stalled_for(), self._clock() - self.throttled_until())
        if stalled_for > _MAX_STALL:
            return f"work that could run was not started for {stalled_for:.0f} s"
        return None

    def records(self) -> list[AccountRecord]:
        """Return all accounts, for display."""
        with self._dispatcher.lock:
            return self._dispatcher.scheduler.records()

    def on_clock_jump(self, jump: float, *, paused: bool) -> None:
        """Read every stored token again as if it were new: Vault's clock jumped by so many seconds.

        :param paused: this machine's wall clock jumped by as much, so the process was paused.
        """
        self._refresher.clocks.forget()
        if not self._schedule_reread(as_new=True):
            return
        if not paused:
            log.warning("clock.skewed", against="vault", skew=round(-jump, 3), hint="every token is read again")
            return
        log.warning("worker.paused", duration=round(jump, 3))
        with self._dispatcher.lock:
            failing = self._dispatcher.scheduler.failing(self._clock())
        # their retries were delayed while the process was paused
        self._dispatcher.queue(*(record.name for record in failing))

    def on_vault_skewed(self, host: str, skew: float) -> None:
        """Read every stored token again: this Sentinel host's clock is so many seconds ahead of Vault's; 0 = agrees."""
        if self._schedule_reread(as_new=False) and skew:
            hint = "--check names the clock to set; until then Sentinel's clock is used, and every token is read again"
            log.warning("clock.skewed", against="vault", host=host, skew=round(skew, 3), hint=hint)

    def _schedule_reread(self, *, as_new: bool) -> bool:
        """Plan a re-read of every stored token, now or a minute after the last one; False = one is planned already.

        :param as_new: the remaining lifetimes that are remembered may be wrong; else they can only become shorter.
        """
        with self._dispatcher.lock:  # many requests may see one jump
            self._reread_as_new = self._reread_as_new or as_new
            if self._reread_from == float("inf"):
                return False
            when, self._reread_from = max(self._clock(), self._reread_from), float("inf")
        self._arm("reread", when, self._reread_all)
        return True

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping = True
        self._dispatcher.stop()

    def _arm(self, name: str, when: float, work: Callable[[], None]) -> None:
        """Let the timer run this work in the pool."""
        self._timer.at(name, when, lambda: self._submit(work))

    def _submit(self, work: Callable[..., None], *arguments: object) -> None:
        if not self._stopping:
            self._pool.submit(self._log_exceptions, work, *arguments)

    def _log_exceptions(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except Exception:
            log.exception("worker.internal_error")  # the next sync does what was left undone

    def _schedule_wake(self, when: float) -> None:
        """Arm the wake job unless it is armed for an earlier moment; the tick starts what is due as well."""
        if when < self._wake_at or self._wake_at <= self._clock():
            self._wake_at = when
            self._timer.at("wake", when, self._wake)

    def _wake(self) -> None:
        self._wake_at = float("inf")
        if not self._stopping:
            self._dispatcher.start_due()

    def _sync(self) -> None:
        """Compare Vault's LIST with the known accounts; wake accounts waiting for Vault, in case nothing else does."""
        pause = self._sync_interval
        try:
            listed = self._accounts.names()
        except RefreshError as error:
            self._sync_failures += 1
            failures = min(self._sync_failures, _MAX_FAST_RETRIES)
            pause = min(pause, plan.next_retry(failures, remaining=0.0, kind=Kind.TRANSIENT).total_seconds())
            self.on_list(error)
        else:
            self.on_list(None)
            self._sync_failures, self.synced_at = 0, self._clock()
            self._reconcile(listed)
        finally:
            self._arm("sync", self._clock() + pause, self._sync)
        self._submit(self._retry_fixed)

    def _reconcile(self, listed: frozenset[str]) -> None:
        dispatcher, is_first = self._dispatcher, not self.ready.is_set()
        with dispatcher.lock:
            dispatcher.scheduler.on_sync()
            new = dispatcher.scheduler.add(sorted(listed))
            missing = dispatcher.scheduler.missing(listed)
            self._unread.update(new)
        for name in () if is_first else new:
            log.info("account.added", account=name)
        self._start_readers(deque(new), self._read_new)
        for name in missing:
            self._submit(self._remove_if_absent, name)
        dispatcher.start_due()
        self._check_ready()
        log_sync = log.info if is_first or new or missing else log.debug
        hint = None if listed else "there is no account below accounts.prefix"
        log_sync("accounts.synced", accounts=len(listed), added=len(new), missing=len(missing), hint=hint)
        self._renew_login()

    def _start_readers(self, names: deque[str], read: Callable[[str], None]) -> None:
        for _ in range(min(len(names), _INITIAL_READERS)):
            self._pool.submit(self._read_batch, names, read)

    def _read_batch(self, names: deque[str], read: Callable[[str], None]) -> None:
        """Read names from the shared queue until it is empty: a job for each would be thousands at once."""
        while names and not self._stopping:
            with contextlib.suppress(IndexError):
                self._log_exceptions(read, names.popleft())

    def _read_new(self, name: str) -> None:
        self._dispatcher.complete(self._dispatcher.check_stored(name, None))
        with self._dispatcher.lock:
            self._unread.discard(name)
        self._check_ready()

    def _reread_all(self) -> None:
        with self._dispatcher.lock:
            self._reread_from = self._clock() + _REREAD_INTERVAL
            read = self._reread_as_if_new if self._reread_as_new else self._resync.check
            self._reread_as_new = False
            names = deque(self._dispatcher.scheduler.healthy())
        self._start_readers(names, read)

    def _reread_as_if_new(self, name: str) -> None:
        """Read a known account's token; its remaining lifetime is computed again."""
        with self._dispatcher.lock:
            record = self._dispatcher.scheduler.reserve(name)
        if record:
            self._dispatcher.complete(self._dispatcher.check_stored(name, None))

    def _retry_fixed(self) -> None:
        """Try failing accounts that were edited, or refreshed by hand: their planned attempt may be far off."""
        if not self._retrying.acquire(blocking=False):
            return  # the pass before still runs: each account costs a read, and there may be many
        try:
            with self._dispatcher.lock:
                failing = self._dispatcher.scheduler.failing(self._clock())
            for record in failing:
                with contextlib.suppress(RefreshError):
                    if self._is_fixed(record):
                        self._dispatcher.queue(record.name)
        finally:
            self._retrying.release()

    def _is_fixed(self, record: AccountRecord) -> bool:
        if self._refresher.has_changed(record.name):
            return True
        return not record.has_live_token(self._clock()) and self._refresher.has_live_token(record.name)

    def _remove_if_absent(self, name: str) -> None:
        if self._refresher.is_removed(name):
            with self._dispatcher.lock:
                was_known = self._dispatcher.scheduler.remove(name)
            if was_known:
                log.info("account.removed", account=name)

    def _on_done(self, outcome: Outcome, transition: Transition) -> None:
        if outcome.result is not Result.DUE:
            self._report(outcome, transition)

    def _resync_step(self) -> None:
        next_at = self._clock() + plan.MIN_PAUSE.total_seconds()
        try:
            next_at = self._resync.step()
        finally:
            self._arm("resync", next_at, self._resync_step)

    def _renew_login(self) -> None:
        try:
            next_at = self._keep_login_alive()
        except RefreshError:
            next_at = self._clock() + plan.RETRY_PAUSES[0].total_seconds()
        if next_at != float("inf"):
            # not at once: another thread may be logging in
            next_at = max(next_at, self._clock() + plan.MIN_PAUSE.total_seconds())
            self._arm("login", next_at, self._renew_login)

    def _check_ready(self) -> None:
        with self._dispatcher.lock:
            if self._unread or self.ready.is_set():
                return
            self.ready.set()
        self._arm("resync", self._clock() + self._resync.interval, self._resync_step)
        log.info("worker.ready", accounts=len(self._dispatcher.scheduler))
