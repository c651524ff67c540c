"""Clocks that differ: Sentinel's, by which a stored token is assessed, for it expires by them; and which one is wrong.

Sentinel's are read from its answers, and counted on by the steady clock.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from worker.core.appjwt import CLOCK_LEEWAY
from worker.core.errors import RefreshError
from worker.core.plan import MIN_TIMEOUT
from worker.core.unchecked import StoredSecret

_MAX_SKEW: Final = CLOCK_LEEWAY.total_seconds()
_NEGLIGIBLE_SKEW: Final = 2.0
"""Seconds. A server tells whole ones, and what it told has travelled."""
_FETCH_INTERVAL: Final = 60.0
"""Seconds after which a host that did not show its clock is asked again."""


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
        self._samples: dict[str, tuple[datetime, float]] = {}
        """By host what its clock showed, and the steady moment."""
        self._fetch_at: dict[str, float] = {}
        """By host the steady moment before which its clock is not asked for again."""
        self._skews: dict[str, float] = {}
        self.on_skew: Callable[[str, float], object] = lambda *_: None
        """Called with a host and the seconds by which its clock is ahead of Vault's, at each change; 0 = they agree."""

    @property
    def skew(self) -> float:
        """Return the seconds by which Sentinel's clock is ahead of Vault's; 0 = they agree, or none is known."""
        return min(list(self._skews.values()), key=abs, default=0.0)

    def record_time(self, host: str, now: datetime | None, requested_at: float) -> None:
        """Remember what the host's clock showed after the steady moment `requested_at`; None = it showed nothing."""
        if now and self._clock() - requested_at <= _MAX_SKEW:  # else it is uncertain by so much
            self._samples[host] = now, requested_at

    def retain_hosts(self, hosts: set[str]) -> None:
        """Forget all but these hosts."""
        for known in (self._samples, self._fetch_at, self._skews):
            for host in known.keys() - hosts:
                known.pop(host, None)

    def forget(self) -> None:
        """Forget all samples: the steady clock may have stopped for a while."""
        self._samples, self._fetch_at, self._skews = {}, {}, {}

    def with_sentinel_clock(self, stored: StoredSecret) -> StoredSecret:
        """Return what was just read with Sentinel's clock in place of Vault's where the two differ.

        A clock that is not known yet is asked for, without a credential; while it is not told, Vault's serves.
        """
        host = self._allowed(stored.sentinel_host) if stored.raw else None
        if host is None:
            return stored
        sample = self._samples.get(host) or self._fetch_time(host)
        if sample is None:
            return stored
        now = sample[0] + timedelta(seconds=self._clock() - sample[1])
        skew = (now - stored.now).total_seconds()
        skew = skew if abs(skew) > _MAX_SKEW else 0.0
        previous, self._skews[host] = self._skews.get(host, 0.0), skew
        if abs(skew - previous) > _MAX_SKEW:
            self.on_skew(host, skew)
        return replace(stored.with_clock(now) if skew else stored, is_issuers_clock=True)

    def _fetch_time(self, host: str) -> tuple[datetime, float] | None:
        requested_at = self._clock()
        if requested_at >= self._fetch_at.get(host, requested_at):
            with suppress(RefreshError):
                self.record_time(host, self._sentinel.reach(host, MIN_TIMEOUT), requested_at)
            self._fetch_at[host] = self._clock() + _FETCH_INTERVAL
        return self._samples.get(host)


class ClockComparison:
    """Compare other clocks with this machine's. Which of two that differ is wrong, only a third can show."""

    def __init__(self) -> None:
        self._skews: dict[str, float] = {}
        """Seconds by which this machine's clock is ahead of each other one."""

    def compare(self, other: str, theirs: datetime, ours: datetime) -> str | None:
        """Return how the other clock agrees with this machine's; None = it differs."""
        self._skews[other] = skew = (ours - theirs).total_seconds()
        if abs(skew) < _NEGLIGIBLE_SKEW:
            return "this machine's is the same, to a second or two"
        return _format_skew(skew) if abs(skew) <= _MAX_SKEW else None

    def differences(self) -> list[tuple[str, str, str]]:
        """Return each clock that differs from this machine's, by how much, and which clock to set."""
        differing = [(other, skew) for other, skew in self._skews.items() if abs(skew) > _MAX_SKEW]
        return [(other, _format_skew(skew), self._remedy(other, skew)) for other, skew in differing]

    def _remedy(self, against: str, skew: float) -> str:
        others = [(other, seconds) for other, seconds in self._skews.items() if other != against]
        with_us = [other for other, seconds in others if abs(seconds) <= _MAX_SKEW]
        with_it = [other for other, seconds in others if abs(seconds - skew) <= _MAX_SKEW]
        wrong = "the clock that is wrong"
        if len(with_us) > len(with_it):
            wrong = f"the clock of {against}, which alone differs ({', '.join(with_us)} and this machine agree)"
        elif with_it:
            wrong = f"this machine's clock, which alone differs ({', '.join(with_it)} and {against} agree)"
        return f"set {wrong}, for example by NTP"


def _format_skew(skew: float) -> str:
    return f"this machine's is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} it"
