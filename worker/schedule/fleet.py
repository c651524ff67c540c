"""Every account's due time and state, and who may run now.

It takes `now` (seconds on the steady clock) and owns no thread, no timer and no lock.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from worker.core import notes, plan
from worker.core.entry import Entry
from worker.core.errors import Kind
from worker.core.outcome import Next, Outcome, Result, State
from worker.core.plan import Held, Reason
from worker.schedule.waiting import Vault, Waiting

_KEPT_FOR_KNOWN = 4
"""One in so many of a host's slots is kept from accounts whose host is not known yet."""
_SHORTEST_CYCLE = plan.SHORTEST_PAUSE.total_seconds()
_TIE = 1 / 60
"""Share of a life in which it makes no difference whose token ends first: a minute of an hour."""


@dataclass(slots=True)
class _Lane:
    """One Sentinel host's queue and caps. Accounts whose host is not known yet share a lane of their own."""

    queue: list[tuple[float, float, str]] = field(default_factory=list)
    in_flight: int = 0
    last_start: float = float("-inf")


class Fleet:
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
        :param max_in_flight: exchanges with one Sentinel host at a time.
        :param recheck_after: seconds until a disabled or deleted account is looked at again.
        :param jitter: a number in [0, 1), another one at each call.
        :param phase: decides who is first where it makes no other difference, so that replicas take turns.
        """
        self._max_in_flight = max_in_flight
        self._spacing = 1 / max_per_second
        self._recheck_after = recheck_after
        self._jitter = jitter
        self._phase = phase
        self._entries: dict[str, Entry] = {}
        self._lanes: dict[str | None, _Lane] = defaultdict(_Lane, {None: _Lane()})
        self._started: dict[str, tuple[_Lane, float]] = {}
        self._waiting = Waiting()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, names: Iterable[str]) -> list[str]:
        """Take up these accounts; those that are new."""
        new = [name for name in names if name not in self._entries]
        # who was removed while it ran and is back already still takes up its slot
        self._entries.update((name, Entry(name, running=name in self._started)) for name in new)
        return new

    def missing(self, listed: frozenset[str]) -> list[str]:
        """Accounts that a LIST left out. They stay until their own read says they are gone."""
        return [name for name in self._entries if name not in listed]

    def remove(self, name: str) -> bool:
        """Forget the account; whether that is news."""
        entry = self._entries.pop(name, None)
        self._waiting.forget(name)
        return entry is not None and entry.state is not State.REMOVED

    def overdue(self, now: float) -> list[str]:
        """Accounts whose moment is over and whom no timer rang for."""
        return [
            entry.name
            for entry in self._entries.values()
            if entry.due is not None and entry.due <= now and not entry.running and not entry.queued
        ]

    def queue(self, name: str) -> None:
        """The account is due: it runs as soon as it may."""
        entry = self._entries.get(name)
        if entry and not entry.running and not entry.queued:
            entry.queued = True
            heapq.heappush(self._lanes[entry.host].queue, (self._urgency(entry), self._phase(name), name))

    def vault_works(self) -> None:
        """Whoever waits for Vault runs as soon as it may."""
        for name in self._waiting.wake(Vault.READ):
            self.queue(name)

    def failing(self, now: float) -> list[str]:
        """Accounts that failed and wait for their next attempt; refused ones first."""
        found = [
            entry
            for entry in self._entries.values()
            if entry.state is State.FAILING and entry.due is not None and entry.due > now and not entry.running
        ]
        return [entry.name for entry in sorted(found, key=lambda entry: entry.kind is not Kind.LASTING)]

    def entries(self) -> list[Entry]:
        """All accounts, for showing: whoever holds the list may read it at leisure, and must change nothing."""
        return list(self._entries.values())

    def settled(self) -> list[str]:
        """Accounts of which there is nothing to be said."""
        return [entry.name for entry in self._entries.values() if entry.state is State.OK and entry.should_stand]

    def borrow(self, name: str) -> Entry | None:
        """Mark a settled account as running, to be looked at; None = it is busy."""
        entry = self._entries.get(name)
        if entry is None or entry.running or entry.queued or entry.state is not State.OK:
            return None
        entry.running = True
        return entry

    def give_back(self, entry: Entry, held: Held | None) -> None:
        """The look told nothing new of when the token is to be refreshed."""
        entry.running = False
        entry.held = held or entry.held

    def start_next(self, now: float) -> Entry | None:
        """Who runs now, marked as running; None = nobody may."""
        while ready := [lane for host, lane in self._lanes.items() if lane.queue and self._may_start(host) <= now]:
            lane = min(ready, key=lambda lane: lane.queue[0])
            entry = self._entries.get(heapq.heappop(lane.queue)[-1])
            if entry is None or not entry.queued:
                continue  # it was removed while it waited, and may be back
            entry.queued, entry.running = False, True
            self._waiting.leave(entry.name)
            lane.in_flight += 1
            lane.last_start = now
            self._started[entry.name] = (lane, now)
            return entry
        return None

    def next_start(self) -> float | None:
        """When the rate cap lets the next one run; None = nobody waits for that."""
        moments = [self._may_start(host) for host, lane in self._lanes.items() if lane.queue]
        return min((moment for moment in moments if moment != float("inf")), default=None)

    def done(self, outcome: Outcome, now: float) -> Next | None:
        """Take in what became of an account; None = it was removed meanwhile."""
        lane, started = self._started.pop(outcome.account, (None, 0.0))
        if lane:
            lane.in_flight -= 1
            if outcome.result is Result.ADOPTED and lane.last_start == started:
                lane.last_start = float("-inf")  # Sentinel was not asked, so nothing counts against its rate
        entry = self._entries.get(outcome.account)
        if entry is None:
            return None
        before, entry.running = entry.state, False
        host_was_unknown = lane is self._lanes[None]
        entry.host = outcome.host or entry.host
        replaced = outcome.result in (Result.REFRESHED, Result.UNCHANGED)
        drifted = outcome.state is State.FOREIGN or (outcome.reason is Reason.DRIFT and not replaced)
        if drifted:
            entry.held, entry.lost = outcome.held, entry.lost or entry.held
        elif outcome.held:
            entry.held, entry.lost = outcome.held, None
        left = entry.held.life.left(now) if entry.held else 0.0
        if outcome.is_to_do:
            entry.due = now
            self.vault_works()
            return Next(before, before, entry.failures, left, entry.kind, now)
        lag = max(0.0, started - entry.due) if lane and entry.due is not None else None
        self._remember(entry, outcome, now)
        entry.due = self._due(entry, outcome, now, left)
        for name in self._waiting.take_in(outcome, entry.host, host_was_unknown=host_was_unknown):
            self.queue(name)
        return Next(before, entry.state, entry.failures, left, entry.kind, entry.due, lag)

    def _remember(self, entry: Entry, outcome: Outcome, now: float) -> None:
        entry.state = outcome.state
        failed = outcome.error if outcome.result is Result.FAILED else None
        entry.failures = entry.failures + 1 if failed else 0
        entry.kind = plan.kind_by_now(failed, entry.failures) if failed else None
        entry.last_error = notes.what_is_wrong(outcome, entry.last_error)
        entry.failing_since = (entry.failing_since or now) if failed else None
        if not outcome.error:
            entry.last_success = now

    def _urgency(self, entry: Entry) -> float:
        """No token at all first, then whose ends first."""
        if entry.held is None:
            return 0.0
        life = entry.held.life
        tie = _TIE * (life.ends - life.begins)
        return life.ends // tie * tie

    def _due(self, entry: Entry, outcome: Outcome, now: float, left: float) -> float:
        match entry.state:
            case State.DISABLED | State.REMOVED:  # a deleted secret stays in the LIST, and may come back
                return now + self._recheck_after
            case State.OK:
                # never at once again, whatever the token says of its own life
                return max(entry.held.refresh_at if entry.held else now, now + _SHORTEST_CYCLE)
        pause = plan.next_retry(
            entry.failures,
            life_left=left,
            kind=outcome.error.kind if outcome.error else Kind.TRANSIENT,
            retry_after=outcome.error.retry_after if outcome.error else None,
            jitter=self._jitter(),
        ).total_seconds()
        if entry.state in (State.INVALID, State.FOREIGN):  # it costs one read, and whoever mends it waits
            return now + min(pause, self._recheck_after)
        return now + pause

    def _may_start(self, host: str | None) -> float:
        """From when on this lane may start one more; inf = when one of its own has ended."""
        unknown = self._lanes[None]
        # not all of them: where the Domain API hangs, the tokens of known hosts are still renewed
        kept = max(1, self._max_in_flight // _KEPT_FOR_KNOWN)
        if host is None and unknown.in_flight >= max(1, self._max_in_flight - kept):
            return float("inf")
        # whoever runs without a known host may be at any host, so it counts against each
        others = [lane for key, lane in self._lanes.items() if key is not None and host in (key, None)]
        in_flight = unknown.in_flight + max((lane.in_flight for lane in others), default=0)
        if in_flight >= self._max_in_flight:
            return float("inf")
        return max(lane.last_start for lane in (unknown, *others)) + self._spacing
