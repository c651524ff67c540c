"""Keep every account's state and due time, and choose which starts: the one place that knows when an account runs.

It takes `now` (seconds on the steady clock) and owns no thread, no timer and no lock.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from worker.core import plan
from worker.core.errors import CREDENTIALS_REFUSED, Kind, Stage
from worker.core.outcome import Outcome, Result, State, Transition
from worker.core.plan import Reason, TrackedToken
from worker.core.record import AccountRecord
from worker.core.status import status_message
from worker.schedule.queues import HostQueues, Turn
from worker.schedule.waitlist import DependencyWaitlist, Vault

_MIN_CYCLE: Final = plan.MIN_PAUSE.total_seconds()
_MIN_CYCLE_EXPIRED: Final = plan.RETRY_PAUSES[0].total_seconds()
_FAILING: Final = (State.FAILING, State.INVALID, State.UNMANAGED)
_TIE_FRACTION: Final = 1 / 60
"""Expiries that differ by less than this share of the lifetime count as equal: a minute of an hour."""


class AccountScheduler:
    def __init__(
        self,
        *,
        max_in_flight: int,
        max_per_second: float,
        recheck_after: float,
        jitter: Callable[[], float],
        phase: Callable[[str], float],
    ) -> None:
        """
        :param recheck_after: seconds until a disabled or deleted account is read again.
        :param jitter: returns a random number in [0, 1) at each call.
        :param phase: returns an account's fixed place in [0, 1), which breaks ties and spreads retries, by replica.
        """
        self._recheck_after = recheck_after
        self._jitter = jitter
        self._phase = phase
        self._records: dict[str, AccountRecord] = {}
        self._due: list[tuple[float, str]] = []
        """A heap. An entry counts only while it is its account's current due time."""
        self._queues = HostQueues(max_in_flight=max_in_flight, max_per_second=max_per_second)
        self._waitlist = DependencyWaitlist()

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __len__(self) -> int:
        return len(self._records)

    def add(self, names: Iterable[str]) -> list[str]:
        """Add these accounts, and return those that are new."""
        new = [name for name in names if name not in self._records]
        # an account that was removed while running, and came back since, still holds its slot
        self._records.update((name, AccountRecord(name, running=self._queues.is_started(name))) for name in new)
        return new

    def missing(self, listed: frozenset[str]) -> list[str]:
        """Return the accounts that a LIST left out. They stay known until reading them returns 404."""
        return [name for name in self._records if name not in listed]

    def remove(self, name: str) -> bool:
        """Forget the account; return True if it was known, and not as removed."""
        record = self._records.pop(name, None)
        self._waitlist.forget(name)
        return record is not None and record.state is not State.REMOVED

    def queue(self, name: str) -> None:
        """Let the account run as soon as it may, whatever its due time."""
        record = self._records.get(name)
        if record and not record.running and not record.queued:
            record.queued = True
            turn = Turn.ANSWERED if record.timed_out_at is None else Turn.TIMED_OUT
            self._queues.push(record.host, turn, self._urgency(record), self._phase(name), name)

    def queue_due(self, now: float) -> None:
        """Queue every account that is due. One that runs stays due, and is queued again when it finishes."""
        while self._due and self._due[0][0] <= now:
            when, name = heapq.heappop(self._due)
            record = self._records.get(name)
            if record and record.due == when:
                self.queue(name)

    def next_wake(self) -> float | None:
        """Return when the next account is due or may start by the rate limit; None = at no known moment."""
        moments = (self._queues.next_start(), self._due[0][0] if self._due else None)
        return min((each for each in moments if each is not None), default=None)

    def on_vault_available(self) -> None:
        """Queue the accounts that wait for Vault."""
        for name in self._waitlist.wake(Vault.READ):
            self.queue(name)

    def on_sync(self) -> None:
        """Queue the accounts that wait to read, and those that failed again after a wake: nothing else may wake them.

        Of the accounts that wait to write, queue one as a probe: a standby without a leader answers reads only.
        """
        self.on_vault_available()
        for name in self._waitlist.wake_failed():
            self.queue(name)
        if first := self._waitlist.first(Vault.WRITE):
            self.queue(first)

    def failing(self, now: float) -> list[AccountRecord]:
        """Return the accounts that failed and wait for their next attempt, refused ones first; do not change them."""
        found = [
            record
            for record in self._records.values()
            if record.state is State.FAILING and record.due is not None and record.due > now and not record.running
        ]
        return sorted(found, key=lambda record: record.kind is not Kind.PERMANENT)

    def records(self) -> list[AccountRecord]:
        """Return all accounts, for display; they must not be changed."""
        return list(self._records.values())

    def healthy(self) -> list[str]:
        """Return the accounts whose latest attempt succeeded, by the expiry of their tokens."""
        found = [record for record in self._records.values() if _is_healthy(record) and record.expected_token]
        return [record.name for record in sorted(found, key=self._urgency)]

    def reserve(self, name: str) -> AccountRecord | None:
        """Mark a healthy account as running, so that it can be read; None = it is busy."""
        record = self._records.get(name)
        if record is None or record.running or record.queued or not _is_healthy(record):
            return None
        record.running = True
        return record

    def release(self, record: AccountRecord, tracked: TrackedToken | None) -> None:
        """Release an account whose read changed nothing; a due time that passed meanwhile is scheduled again.

        :param tracked: what the read found; it may expire earlier than was thought.
        """
        record.running, due = False, record.due
        if tracked:
            record.tracked, due = tracked, None if due is None else min(due, tracked.refresh_at)
        self._schedule(record, due)

    def start_next(self, now: float) -> AccountRecord | None:
        """Return the account that starts now, marked as running; None = none may start."""
        while popped := self._queues.pop(now):
            host, turn, name = popped
            record = self._records.get(name)
            if record is None or not record.queued:
                continue  # it was removed while it waited, and may be back
            tried_at = record.timed_out_at
            if turn is Turn.TIMED_OUT and tried_at is not None and not record.has_live_token(now):
                # there may be more of these than can be tried: ordered by expiry, the same few would always be first
                self._queues.push(host, Turn.EXPIRED, tried_at, self._phase(name), name)
                continue
            record.queued, record.running = False, True
            self._waitlist.discard(name)
            record.others_wait = turn is not Turn.ANSWERED and self._queues.others_wait(host)
            self._queues.start(host, turn, name, now)
            return record
        return None

    def complete(self, outcome: Outcome, now: float) -> Transition | None:
        """Record an outcome and plan what follows; None = the account was removed meanwhile."""
        finished = self._queues.finish(outcome.account, requests=_request_count(outcome))
        record = self._records.get(outcome.account)
        if record is None:
            return None
        previous_state, previous_error, record.running = record.state, record.last_error, False
        record.host = outcome.host or record.host
        replaced = outcome.result in (Result.REFRESHED, Result.UNCHANGED)
        displaced = outcome.state is State.UNMANAGED or (outcome.reason is Reason.DRIFT and not replaced)
        if displaced:
            record.tracked, record.displaced = outcome.tracked, record.displaced or record.tracked
        elif outcome.tracked:
            record.tracked, record.displaced = outcome.tracked, None
        remaining = record.tracked.validity.remaining(now) if record.tracked else 0.0
        if outcome.result is Result.DUE:
            if outcome.reason is Reason.DUE and record.tracked:  # else the old plan would call it fresh
                record.tracked = replace(record.tracked, refresh_at=min(record.tracked.refresh_at, now))
            self._schedule(record, now)
            self.on_vault_available()
            return Transition(previous_state, previous_state, record.failures, remaining, record.kind, now)
        started, host_was_unknown = finished or (None, False)
        lag = max(0.0, started - record.due) if started is not None and record.due is not None else None
        self._update_record(record, outcome, now)
        is_new = record.failures == 1 and record.expected_token is None
        for name in self._waitlist.record(outcome, record.host, host_was_unknown=host_was_unknown, is_new=is_new):
            self.queue(name)
        due = self._next_due(record, outcome, now, remaining)
        self._schedule(record, due)
        repeated = record.failures > 1 and (record.state, record.last_error) == (previous_state, previous_error)
        return Transition(previous_state, record.state, record.failures, remaining, record.kind, due, lag, repeated)

    def _schedule(self, record: AccountRecord, due: float | None) -> None:
        record.due = due
        if due is not None and due != float("inf"):
            heapq.heappush(self._due, (due, record.name))

    def _update_record(self, record: AccountRecord, outcome: Outcome, now: float) -> None:
        record.state = outcome.state
        failed = outcome.error if outcome.result is Result.FAILED else None
        record.failures = record.failures + 1 if failed else 0
        record.kind = plan.effective_kind(failed, record.failures) if failed else None
        record.last_error = status_message(outcome, record.last_error)
        if failed is None or failed.stage in (Stage.SENTINEL, Stage.CLAIMS):
            record.timed_out_at = now if failed and failed.timed_out else None
        record.failing_since = (record.failing_since or now) if outcome.state in _FAILING else None
        if not outcome.error:
            record.last_success = now

    def _urgency(self, record: AccountRecord) -> float:
        """Order accounts: those without a token first, then by expiry."""
        if record.tracked is None:
            return 0.0
        validity = record.tracked.validity
        tie = _TIE_FRACTION * (validity.end - validity.start)
        return validity.end // tie * tie

    def _next_due(self, record: AccountRecord, outcome: Outcome, now: float, remaining: float) -> float:
        if record.state in (State.DISABLED, State.REMOVED):  # a deleted secret stays in the LIST, and may come back
            return now + self._recheck_after
        if outcome.error is None:
            # never again at once, however short the token's lifetime is, or however clocks differ about its expiry
            is_expired = outcome.result is Result.UNCHANGED and not remaining
            min_wait = _MIN_CYCLE_EXPIRED if is_expired else _MIN_CYCLE
            return max(record.tracked.refresh_at if record.tracked else now, now + min_wait)
        others_wait = self._waitlist.waiting(outcome, record.host) > 1
        takes_turns = others_wait and not remaining and not outcome.error.retry_after
        pause = plan.next_retry(
            record.failures,
            remaining=remaining,
            kind=outcome.error.kind,
            retry_after=outcome.error.retry_after,
            jitter=0.0 if takes_turns else self._jitter(),
        ).total_seconds()
        if takes_turns and pause >= plan.SLOW_RETRY_PAUSE.total_seconds():
            # if all retried at once, they would notice only once per pause that their dependency is back
            return plan.next_turn(now, pause, self._phase(record.name))
        if record.state in (State.INVALID, State.UNMANAGED):  # it costs one read, and somebody waits for the fix
            return now + min(pause, self._recheck_after)
        return now + pause


def _request_count(outcome: Outcome) -> int:
    """Return how many token requests an attempt made at most: after a refusal the previous secret may be tried."""
    if outcome.result is Result.ADOPTED:
        return 0
    error = outcome.error
    is_refused = error is not None and error.stage is Stage.SENTINEL and error.status in CREDENTIALS_REFUSED
    return 2 if outcome.previous_used or is_refused else 1


def _is_healthy(record: AccountRecord) -> bool:
    """Return True if the latest attempt succeeded; an account whose token Vault deletes early is FAILING then."""
    return record.state is State.OK or (record.state is State.FAILING and record.failures == 0)
