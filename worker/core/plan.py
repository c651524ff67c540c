"""Why and when to refresh, when to try again, which of two tokens stands.

Moments are seconds on the steady clock, which neither jumps nor stops; a token's own times are turned into them by
`Life.of`, with the clock of the server that the token came from. What to do about it is left to refresh and fleet.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from worker.core.appjwt import CLOCK_LEEWAY, AppJWT, Check, Expected, TokenRefusedError, check, fingerprint
from worker.core.errors import Kind, RefreshError


class Reason(StrEnum):
    """Why a token is refreshed."""

    MISSING = "missing"
    DUE = "due"
    UNSOUND = "unsound"
    CHANGED = "changed"
    """The account failed, and its secret is another one since."""
    MANUAL = "manual"
    DRIFT = "drift"
    """What is stored is not what was stored, and does not stand in its place."""


RETRY_PAUSES = tuple(timedelta(seconds=s) for s in (5, 10, 15, 120, 240, 480))
"""LivePerson's policy: 5, 10, 15 s, then a slow loop of 2, 4, 8 min."""

_FIRST_SLOW, _LONGEST_PAUSE = RETRY_PAUSES[3], RETRY_PAUSES[-1]
SHORTEST_PAUSE = timedelta(seconds=1)
LONGEST_SHARE_OF_LIFE = 0.25
"""While a token lives no pause is longer than this share of what is left: there is always time for a few more tries."""
RETRY_AFTER_SHARE_OF_LIFE = 0.75
SHORTEST_TIMEOUT = timedelta(seconds=2)
_SERVER_ERROR = 500
_EARLIEST_OF_MANY = 0.2
"""Share of `refresh.at` from which on tokens are renewed that were minted together."""
_LATE = 0.05
"""Share of a life by which a token is overdue, and no longer alone."""


@dataclass(frozen=True, slots=True)
class Life:
    """A token's life on the steady clock."""

    begins: float
    ends: float

    @classmethod
    def of(cls, token: AppJWT, server_now: datetime | None, at: float) -> "Life":
        """Count from the server's clock at the steady moment `at`; without one the token is taken to be new."""
        ends = at + (token.exp - (server_now or token.iat)).total_seconds()
        return cls(begins=ends - token.lifetime.total_seconds(), ends=ends)

    def left(self, now: float) -> float:
        """Seconds left, 0 when over."""
        return max(0.0, self.ends - now)

    def share_left(self, now: float) -> float:
        return self.left(now) / (self.ends - self.begins)


@dataclass(frozen=True, slots=True)
class Timing:
    """`refresh.at` and `refresh.spread`, for this replica."""

    at: float
    spread: float
    replica: str

    def refresh_at(self, name: str, life: Life, *, of_many: bool = False) -> float:
        """When this account's token is replaced: the same share of every life, evenly spread over the accounts.

        :param of_many: many were minted together, at a first start or after an outage; they must not come back so.
        """
        if of_many:  # by default between 10 and 50 % of the life
            share = self.at * (_EARLIEST_OF_MANY + (1 - _EARLIEST_OF_MANY) * evenly(f"{self.replica}\0{name}"))
        else:
            share = self.at + self.spread * (2 * self.phase(name) - 1)
        return life.begins + share * (life.ends - life.begins)

    def phase(self, name: str) -> float:
        """In [0, 1): this account's place among the others, another one in each replica."""
        return evenly(f"{name}\0{self.replica}")


@dataclass(frozen=True, slots=True)
class Held:
    """What the daemon remembers of a token that it wrote or adopted."""

    fingerprint: str
    life: Life
    refresh_at: float
    compared: bool = True
    """Whether the account's secret was at hand: without it nobody can tell another app's token of the same account."""

    def is_late(self, now: float) -> bool:
        """Whether it should have been replaced long ago, as other accounts' tokens then, too."""
        return now - self.refresh_at > _LATE * (self.life.ends - self.life.begins)


@dataclass(frozen=True, slots=True)
class Standing:
    """A stored token as judged: it stands, as `token` and `held`, or not. `reason` None = no need to refresh it."""

    reason: Reason | None
    token: AppJWT | None = None
    held: Held | None = None


def judge(
    name: str,
    raw: str | AppJWT | None,
    expected: Expected,
    *,
    server_now: datetime,
    at: float,
    timing: Timing,
    held: Held | None,
) -> Standing:
    """Judge a stored token by its own decoded JWT, never by what stands beside it.

    :param raw: the token's text, or what it was taken apart to before; None = there is none.
    :param server_now: Vault's clock at the steady moment `at`.
    :param held: what is remembered; the life of that same token is not counted anew by another clock.
    """
    mark = raw.fingerprint if isinstance(raw, AppJWT) else raw and fingerprint(raw)
    same = held if held and held.fingerprint == mark else None
    lost = held if held and held.life.left(at) > 0 and not same else None
    if raw is None:
        return Standing(Reason.DRIFT if lost else Reason.MISSING)
    try:
        token = check(raw, expected, None if same else server_now)
    except TokenRefusedError as refused:
        reason = Reason.DUE if refused.check == Check.EXP else Reason.UNSOUND
        return Standing(Reason.DRIFT if lost else reason)
    compared = expected.client_id is not None
    if same:
        now_held = same if same.compared or not compared else replace(same, compared=True)
    else:
        now_held = replace(hold(name, token, server_now=server_now, at=at, timing=timing), compared=compared)
    if lost and now_held.life.ends < lost.life.ends - CLOCK_LEEWAY.total_seconds():
        return Standing(Reason.DRIFT, token, now_held)
    return Standing(Reason.DUE if now_held.refresh_at <= at else None, token, now_held)


def hold(
    name: str, token: AppJWT, *, server_now: datetime | None, at: float, timing: Timing, of_many: bool = False
) -> Held:
    """Plan from a token: `server_now` is the clock of the server that it came from, at the steady moment `at`."""
    life = Life.of(token, server_now, at)
    return Held(token.fingerprint, life, timing.refresh_at(name, life, of_many=of_many))


def half_of_what_is_left(held: Held, at: float) -> Held:
    """Sentinel has nothing better: keep the plan, or where that is over ask again at half of what is left."""
    return held if held.refresh_at > at else replace(held, refresh_at=at + held.life.left(at) / 2)


def exchange_timeout(limit: timedelta, life_left: float) -> timedelta:
    """The deadline of one exchange: near the end of a token's life a hanging server must leave time for more tries.

    :param life_left: seconds that the stored token still lives; 0 = none does.
    """
    return min(limit, max(SHORTEST_TIMEOUT, timedelta(seconds=life_left / 2))) if life_left else limit


def evenly(text: str) -> float:
    """A number in [0, 1) that is the same for the same text on every machine and in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def replaces(new: AppJWT, stored: AppJWT | None) -> bool:
    """Whether the new token may replace the stored sound one: a token in Vault never goes backwards."""
    return stored is None or new.exp > stored.exp


def kind_by_now(error: RefreshError, failures: int) -> Kind:
    """What kind of failure it is after so many in a row: a server's trouble that lasts can be a refusal (FACTS 5)."""
    lasts = error.status is not None and error.status >= _SERVER_ERROR and failures > len(RETRY_PAUSES)
    return Kind.LASTING if lasts else error.kind


def next_retry(
    failures: int, *, life_left: float, kind: Kind, retry_after: timedelta | None = None, jitter: float = 0.0
) -> timedelta:
    """The pause after so many failures in a row.

    :param life_left: seconds that the stored token still lives; 0 = none does.
    :param kind: makes a difference only where no token lives: an outage can look like a refusal.
    :param jitter: in [0, 1): up to a fifth of the pause is taken off, so that accounts do not come back in step.
    """
    shortest, longest, longest_wait = SHORTEST_PAUSE, _LONGEST_PAUSE, _LONGEST_PAUSE
    if life_left > 0:
        longest = min(longest, timedelta(seconds=life_left * LONGEST_SHARE_OF_LIFE))
        longest_wait = timedelta(seconds=life_left * RETRY_AFTER_SHARE_OF_LIFE)
    elif kind is Kind.LASTING:
        shortest = _FIRST_SLOW
    else:
        longest = _FIRST_SLOW  # readers wait for it
    pause = max(shortest, min(RETRY_PAUSES[min(failures, len(RETRY_PAUSES)) - 1], longest))
    asked_for = min((retry_after or timedelta(0)) * (1 + jitter / 5), longest_wait)
    return max(SHORTEST_PAUSE, pause * (1 - jitter / 5), asked_for)
