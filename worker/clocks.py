"""Clocks that differ: Sentinel's, by which a stored token is judged, for it expires by them; and which one is wrong.

Sentinel's are learnt from its answers, and counted on by the steady clock.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from worker.core.appjwt import CLOCK_LEEWAY
from worker.core.errors import RefreshError
from worker.core.plan import SHORTEST_TIMEOUT
from worker.core.unchecked import StoredSecret

_LARGEST_SKEW: Final = CLOCK_LEEWAY.total_seconds()
_NEXT_TO_NOTHING: Final = 2.0
"""Seconds. A server tells whole ones, and what it told has travelled."""


class ReachableSentinel(Protocol):
    def reach(self, host: str, timeout: timedelta) -> datetime | None: ...


class SentinelClocks:
    def __init__(
        self,
        sentinel: ReachableSentinel,
        *,
        allowed: Callable[[str | None], str | None],
        clock: Callable[[], float],
    ) -> None:
        """:param allowed: returns the host stored with a token if it may be asked, else None."""
        self._allowed = allowed
        self._sentinel = sentinel
        self._clock = clock
        self._learnt: dict[str, tuple[datetime, float] | None] = {}
        """By host what its clock showed, and the steady moment; None = it was asked in vain."""
        self._skews: dict[str, float] = {}
        self.on_skew: Callable[[str, float], object] = lambda *_: None
        """Called with a host and the seconds by which its clock is ahead of Vault's, once for each change."""

    @property
    def skew(self) -> float:
        """Return the seconds by which Sentinel's clock is ahead of Vault's; 0 = they agree, or none is known."""
        return min(list(self._skews.values()), key=abs, default=0.0)

    def learn(self, host: str, now: datetime | None, asked: float) -> None:
        """Remember what the host's clock showed after the steady moment `asked`; None = it showed nothing."""
        if now and self._clock() - asked <= _LARGEST_SKEW:  # else it is uncertain by so much
            self._learnt[host] = now, asked

    def keep(self, hosts: set[str]) -> None:
        """Forget all but these hosts."""
        for host in self._learnt.keys() - hosts:
            self._learnt.pop(host, None)
            self._skews.pop(host, None)

    def forget(self) -> None:
        """Forget what was learnt: the steady clock may have stopped for a while."""
        self._learnt, self._skews = {}, {}

    def judged(self, stored: StoredSecret) -> StoredSecret:
        """Return what was just read with Sentinel's clock in place of Vault's where the two differ.

        A clock that is not known yet is asked for, without a credential; while it is not told, Vault's serves.
        """
        host = self._allowed(stored.sentinel_host) if stored.raw else None
        if host is None:
            return stored
        if host not in self._learnt:
            self._learnt[host] = self._ask(host)
        learnt = self._learnt.get(host)  # it may be forgotten meanwhile
        if learnt is None:
            return stored
        now = learnt[0] + timedelta(seconds=self._clock() - learnt[1])
        skew = (now - stored.now).total_seconds()
        skew = skew if abs(skew) > _LARGEST_SKEW else 0.0
        before, self._skews[host] = self._skews.get(host, 0.0), skew
        if skew and abs(skew - before) > _LARGEST_SKEW:
            self.on_skew(host, skew)
        return replace(stored.by_clock(now) if skew else stored, is_issuers_clock=True)

    def _ask(self, host: str) -> tuple[datetime, float] | None:
        asked = self._clock()
        try:
            now = self._sentinel.reach(host, SHORTEST_TIMEOUT)
        except RefreshError:
            return None
        return (now, asked) if now else None


class ClockComparison:
    """Compare other clocks with this machine's. Which of two that differ is wrong, only a third can show."""

    def __init__(self) -> None:
        self._ahead: dict[str, float] = {}
        """Seconds by which this machine's clock is ahead of each other one."""

    def compare(self, other: str, theirs: datetime, ours: datetime) -> str | None:
        """Return how the other clock agrees with this machine's; None = it differs."""
        self._ahead[other] = ahead = (ours - theirs).total_seconds()
        if abs(ahead) < _NEXT_TO_NOTHING:
            return "this machine's is the same, to a second or two"
        return _off(ahead) if abs(ahead) <= _LARGEST_SKEW else None

    def differences(self) -> list[tuple[str, str, str]]:
        """Return each clock that differs from this machine's, by how much, and which clock to set."""
        differing = [(other, ahead) for other, ahead in self._ahead.items() if abs(ahead) > _LARGEST_SKEW]
        return [(other, _off(ahead), self._remedy(other, ahead)) for other, ahead in differing]

    def _remedy(self, against: str, ahead: float) -> str:
        others = [(other, seconds) for other, seconds in self._ahead.items() if other != against]
        with_us = [other for other, seconds in others if abs(seconds) <= _LARGEST_SKEW]
        with_it = [other for other, seconds in others if abs(seconds - ahead) <= _LARGEST_SKEW]
        wrong = "the clock that is wrong"
        if len(with_us) > len(with_it):
            wrong = f"the clock of {against}, which stands alone ({', '.join(with_us)} and this machine agree)"
        elif with_it:
            wrong = f"this machine's clock, which stands alone ({', '.join(with_it)} and {against} agree)"
        return f"set {wrong}, for example by NTP"


def _off(ahead: float) -> str:
    return f"this machine's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} it"
