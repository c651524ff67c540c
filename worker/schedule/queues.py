"""A queue for each Sentinel host, with its concurrency and rate limits."""

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

_QUARTER: Final = 4
"""One in so many of a host's slots is kept from accounts whose host is not known yet, and as many may be taken by those
that time out."""

_Heap = list[tuple[float, float, str]]


class Turn(IntEnum):
    """Accounts of one host that take turns with its others, so that none wait for ever."""

    ANSWERED = 0
    TIMED_OUT = 1
    """Their latest attempt did. They share a quarter of the slots, and while others wait have every second start."""
    EXPIRED = 2
    """The same, without a live token: every second start of those, so that one that recovered is tried in time."""


@dataclass(slots=True)
class _HostQueue:
    """One host's accounts. Those whose host is not known yet share a queue of their own."""

    waiting: tuple[_Heap, _Heap, _Heap] = field(default_factory=lambda: ([], [], []))
    """By turn."""
    in_flight: int = 0
    timed_out_in_flight: int = 0
    last_turn: Turn = Turn.ANSWERED
    last_timed_out: Turn = Turn.EXPIRED
    """The latest turn of those that time out."""
    last_start: float = float("-inf")

    def is_unused(self, since: float) -> bool:
        """Return True if no account waits or runs, or started since then."""
        return not any(self.waiting) and not self.in_flight and self.last_start <= since


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place in a host's queue, taken by an account from start to finish."""

    queue: _HostQueue
    started: float
    timed_out: bool


class HostQueues:
    def __init__(self, *, max_in_flight: int, max_per_second: float) -> None:
        """:param max_in_flight: exchanges with one Sentinel host at a time."""
        self._max_in_flight = max_in_flight
        self._quarter = max(1, max_in_flight // _QUARTER)
        self._spacing = 1 / max_per_second
        self._queues: dict[str | None, _HostQueue] = defaultdict(_HostQueue, {None: _HostQueue()})
        self._slots: dict[str, _Slot] = {}

    def push(self, host: str | None, turn: Turn, urgency: float, phase: float, name: str) -> None:
        """Queue an account; at its turn the least urgency starts first, then the least phase."""
        heapq.heappush(self._queues[host].waiting[turn], (urgency, phase, name))

    def pop(self, now: float) -> tuple[str | None, Turn, str] | None:
        """Remove and return host, turn and name of the account that may start first; None = none may now."""
        for unused in [host for host, queue in self._queues.items() if host and queue.is_unused(now - self._spacing)]:
            del self._queues[unused]
        ready = {
            host: turn
            for host, queue in self._queues.items()
            if (turn := self._next_turn(queue)) is not None and self._may_start(host) <= now
        }
        if not ready:
            return None
        host = min(ready, key=lambda host: self._queues[host].waiting[ready[host]][0])
        return host, ready[host], heapq.heappop(self._queues[host].waiting[ready[host]])[-1]

    def others_wait(self, host: str | None) -> bool:
        """Return True if accounts wait that do not time out, and are or may be at this host."""
        return any(self._queues[key].waiting[Turn.ANSWERED] for key in (host, None))

    def start(self, host: str | None, turn: Turn, name: str, now: float) -> None:
        """Take a slot for an account that `pop` returned."""
        queue, timed_out = self._queues[host], turn is not Turn.ANSWERED
        queue.in_flight += 1
        queue.timed_out_in_flight += timed_out
        queue.last_start, queue.last_turn = now, turn
        queue.last_timed_out = turn if timed_out else queue.last_timed_out
        self._slots[name] = _Slot(queue, now, timed_out)

    def finish(self, name: str, *, requests: int) -> tuple[float, bool] | None:
        """Free an account's slot, and return when it started and whether its host was unknown; None = it has none.

        :param requests: for a token, that it made at most: so many starts are counted against the host's rate.
        """
        slot = self._slots.pop(name, None)
        if slot is None:
            return None
        queue = slot.queue
        queue.in_flight -= 1
        queue.timed_out_in_flight -= slot.timed_out
        if requests:
            queue.last_start += (requests - 1) * self._spacing
        else:
            # where another one has started since, that counts on
            queue.last_start = float("-inf") if queue.last_start == slot.started else queue.last_start
        return slot.started, queue is self._queues[None]

    def is_started(self, name: str) -> bool:
        """Return True if the account has a slot."""
        return name in self._slots

    def next_start(self) -> float | None:
        """Return when the rate limit lets the next account start; None = none waits for that."""
        moments = [self._may_start(host) for host, queue in self._queues.items() if self._next_turn(queue) is not None]
        return min((moment for moment in moments if moment != float("inf")), default=None)

    def _next_turn(self, queue: _HostQueue) -> Turn | None:
        """Return whose turn it is; None = no waiting account's."""
        answered, timed_out, expired = map(bool, queue.waiting)
        others_turn = answered and queue.last_turn is not Turn.ANSWERED
        if queue.timed_out_in_flight < self._quarter and not others_turn:
            if timed_out and not (expired and queue.last_timed_out is Turn.TIMED_OUT):
                return Turn.TIMED_OUT
            if expired:
                return Turn.EXPIRED
        return Turn.ANSWERED if answered else None

    def _may_start(self, host: str | None) -> float:
        """Return the moment from which this host may start one more; inf = after one of its accounts has finished."""
        unknown = self._queues[None]
        # not all of them: while the Domain API hangs, the tokens of known hosts are still refreshed
        if host is None and unknown.in_flight >= max(1, self._max_in_flight - self._quarter):
            return float("inf")
        # an account without a known host may be at any host, so it counts against each
        others = [queue for key, queue in self._queues.items() if key is not None and host in (key, None)]
        in_flight = unknown.in_flight + max((queue.in_flight for queue in others), default=0)
        if in_flight >= self._max_in_flight:
            return float("inf")
        return max(queue.last_start for queue in (unknown, *others)) + self._spacing
