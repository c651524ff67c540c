"""Decide why and when to refresh, when to try again, and which of two tokens stays.

Moments are seconds on the steady clock, which neither jumps nor stops; `Validity.of` converts a token's own times by
the clock of the server that the token came from. Acting on a decision is left to refresh and the scheduler.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from worker.core.appjwt import CLOCK_LEEWAY, AppJWT, Check, Expected, TokenRefusedError, fingerprint, validate
from worker.core.errors import Kind, RefreshError


class Reason(StrEnum):
    """Why a token is refreshed."""

    MISSING = "missing"
    DUE = "due"
    INVALID = "invalid"
    CHANGED = "changed"
    """The account failed, and its secret was edited since."""
    MANUAL = "manual"
    DRIFT = "drift"
    """The expected token is no longer stored, and what is stored cannot replace it."""


RETRY_PAUSES = tuple(timedelta(seconds=s) for s in (5, 10, 15, 120, 240, 480))
"""LivePerson's policy: 5, 10, 15 s, then a slow loop of 2, 4, 8 min."""

SLOW_RETRY_PAUSE, _MAX_PAUSE = RETRY_PAUSES[3], RETRY_PAUSES[-1]
MIN_PAUSE = timedelta(seconds=1)
MAX_FRACTION_OF_REMAINING = 0.25
"""While a token is valid no pause exceeds this share of its remaining lifetime: there is time for a few more tries."""
RETRY_AFTER_FRACTION_OF_REMAINING = 0.75
MIN_TIMEOUT = timedelta(seconds=2)
_MIN_TURN_FRACTION = 0.1
"""Share of the pause: an account whose turn is due sooner gets its turn in the next round (`next_turn`)."""
_SERVER_ERROR = 500
_MIN_DESYNCHRONIZED_FRACTION = 0.2
"""Tokens that were obtained together are refreshed from this share of `refresh.at` on."""
_LATE_FRACTION = 0.05
"""A token overdue by this share of its lifetime was probably delayed by an outage, as were others."""
_JITTER_FRACTION = 0.1
"""Share of the lifetime by which jitter alone can separate two refreshes: twice the default `refresh.jitter`."""
_MIN_RETENTION = 60.0
"""Shortest lifetime, in seconds, assumed when the refresh of a token that Vault deletes early is planned."""


@dataclass(frozen=True, slots=True)
class Validity:
    """A token's lifetime on the steady clock."""

    start: float
    end: float

    @classmethod
    def of(
        cls, token: AppJWT, server_now: datetime | None, at: float, deletion_time: datetime | None = None
    ) -> "Validity":
        """Convert the token's times by the server's clock at the steady moment `at`.

        :param server_now: None = the server sent no Date; the token is taken to be new.
        :param deletion_time: when Vault deletes the stored token by itself; it is the end if it is before `exp`.
        """
        now = server_now or token.iat
        end = readable_until(token, deletion_time)
        return cls(at + (token.iat - now).total_seconds(), at + (end - now).total_seconds())

    def remaining(self, now: float) -> float:
        """Return the seconds until the end, 0 if it is past."""
        return max(0.0, self.end - now)

    def remaining_fraction(self, now: float) -> float:
        """Return the remaining share of the lifetime, from 0 to 1."""
        return self.remaining(now) / (self.end - self.start)


@dataclass(frozen=True, slots=True)
class RefreshPolicy:
    """`refresh.at` and `refresh.jitter` of this replica."""

    fraction: float
    jitter: float
    replica: str

    def refresh_at(self, name: str, validity: Validity, *, desynchronize: bool = False) -> float:
        """Return the moment at which this account's token is replaced: the same share of every lifetime.

        :param desynchronize: many tokens were obtained together, at a first start or after an outage: spread their
            refreshes, by default over 10 to 50 % of the lifetime.
        """
        if desynchronize:
            fraction = self.fraction * (
                _MIN_DESYNCHRONIZED_FRACTION
                + (1 - _MIN_DESYNCHRONIZED_FRACTION) * stable_fraction(f"{self.replica}\0{name}")
            )
        else:
            fraction = self.fraction + self.jitter * (2 * self.phase(name) - 1)
        return validity.start + fraction * (validity.end - validity.start)

    def phase(self, name: str) -> float:
        """Return this account's fixed phase in [0, 1), different in each replica."""
        return stable_fraction(f"{name}\0{self.replica}")


@dataclass(frozen=True, slots=True)
class TrackedToken:
    """A stored token as the daemon remembers it. The token itself is not remembered."""

    fingerprint: str
    validity: Validity
    refresh_at: float
    planned_at: float
    """The refresh planned when the token was written: severity is measured from it, even if `refresh_at` changed."""
    identity_verified: bool = True
    """False = assessed without the account's secret: another app's token of the same account is not detected."""

    def is_deleted_early(self, token: AppJWT) -> bool:
        """Return True if Vault was to delete this token before its expiry; that may have changed since."""
        return self.validity.end - self.validity.start < token.lifetime.total_seconds() - 1

    def is_late(self, now: float) -> bool:
        """Return True if the refresh is overdue by so much that other accounts' tokens probably are too."""
        return now - self.refresh_at > _LATE_FRACTION * (self.validity.end - self.validity.start)

    def is_due_later_than(self, other: "TrackedToken") -> bool:
        """Return True if this token is due later than the other by more than jitter alone explains."""
        return self.refresh_at - other.refresh_at > _JITTER_FRACTION * (self.validity.end - self.validity.start)


@dataclass(frozen=True, slots=True)
class Assessment:
    """A stored token after its checks. `reason` None = no refresh is needed; `token` None = it is of no use."""

    reason: Reason | None
    token: AppJWT | None = None
    tracked: TrackedToken | None = None


def assess_stored(
    name: str,
    raw: str | AppJWT | None,
    expected: Expected,
    *,
    server_now: datetime,
    at: float,
    policy: RefreshPolicy,
    tracked: TrackedToken | None,
    planned: str | None = None,
    deletion_time: datetime | None = None,
    is_issuers_clock: bool = False,
) -> Assessment:
    """Assess a stored token by decoding it, never by the fields stored with it.

    :param raw: the token's text, or the token if it was decoded before; None = there is none.
    :param server_now: Vault's clock at the steady moment `at`, or the issuer's.
    :param tracked: what is remembered; the validity of that same token is not computed again by Vault's clock.
    :param planned: the planned refresh time that is stored with the token.
    :param is_issuers_clock: `server_now` is the issuer's clock or agrees with it. If the remembered token expires
        earlier by this clock, its validity is computed again.
    """
    found = raw.fingerprint if isinstance(raw, AppJWT) else raw and fingerprint(raw)
    same = tracked if tracked and tracked.fingerprint == found else None
    displaced = tracked if tracked and tracked.validity.remaining(at) > 0 and not same else None
    if raw is None:
        return Assessment(Reason.DRIFT if displaced else Reason.MISSING)
    try:
        token = validate(raw, expected, None if same else server_now)
    except TokenRefusedError as refused:
        reason = Reason.DUE if refused.check == Check.EXP else Reason.INVALID
        return Assessment(Reason.DRIFT if displaced else reason)
    identity_verified = expected.client_id is not None
    if same and is_issuers_clock:
        end = Validity.of(token, server_now, at, deletion_time).end
        same = same if end >= same.validity.end - CLOCK_LEEWAY.total_seconds() else None
    if same:
        now_tracked = same if same.identity_verified or not identity_verified else replace(same, identity_verified=True)
    else:
        scheduled = schedule_token(
            name, token, server_now=server_now, at=at, policy=policy, planned=planned or "", deletion_time=deletion_time
        )
        now_tracked = replace(scheduled, identity_verified=identity_verified)
    if displaced and now_tracked.validity.end < displaced.validity.end - CLOCK_LEEWAY.total_seconds():
        return Assessment(Reason.DRIFT, token, now_tracked)
    return Assessment(Reason.DUE if now_tracked.refresh_at <= at else None, token, now_tracked)


def schedule_token(
    name: str,
    token: AppJWT,
    *,
    server_now: datetime | None,
    at: float,
    policy: RefreshPolicy,
    desynchronize: bool = False,
    planned: str | None = None,
    deletion_time: datetime | None = None,
) -> TrackedToken:
    """Plan a token's refresh; `server_now` is the clock of the server it came from, at the steady moment `at`.

    :param planned: the planned refresh time that is stored with the token; None = it is new.
    """
    validity = planning_validity = Validity.of(token, server_now, at, deletion_time)
    if deletion_time and deletion_time < token.exp:  # no hot loop, however soon Vault deletes what it is given
        planning_validity = replace(validity, end=max(validity.end, validity.start + _MIN_RETENTION))
    refresh_at = planned_at = policy.refresh_at(name, planning_validity, desynchronize=desynchronize)
    if planned is not None:
        planned_time = planned_refresh(token, planned, readable_until(token, deletion_time))
        planned_at = validity.start + (planned_time - token.iat).total_seconds()
    return TrackedToken(token.fingerprint, validity, refresh_at, planned_at=planned_at)


def readable_until(token: AppJWT, deletion_time: datetime | None) -> datetime:
    """Return the token's expiry, or the time of its deletion by Vault if that is earlier."""
    return min(token.exp, deletion_time) if deletion_time else token.exp


def planned_refresh(token: AppJWT, text: str | None, end: datetime) -> datetime:
    """Return the stored refresh time of a token, half of its lifetime if that is missing, unreadable or outside it."""
    try:
        planned = datetime.fromisoformat(text or "")
        if token.iat < planned < end:
            return planned
    except (ValueError, TypeError):  # no time, or one without a zone
        pass
    return token.iat + (end - token.iat) / 2


def retry_at_half_remaining(tracked: TrackedToken, at: float) -> TrackedToken:
    """Keep the planned refresh; if its moment is past, plan it at half of the remaining lifetime."""
    if tracked.refresh_at > at:
        return tracked
    return replace(tracked, refresh_at=at + tracked.validity.remaining(at) / 2)


def exchange_timeout(limit: timedelta, remaining: float, slowest: float | None = None) -> timedelta:
    """Return the deadline of one exchange: a hanging server must leave time for more tries before the token expires.

    :param remaining: seconds until the stored token expires; 0 = there is no live token.
    :param slowest: seconds of the longest recent exchange with the host, if other accounts wait for it; else None.
    """
    timeout = min(limit, max(MIN_TIMEOUT, timedelta(seconds=remaining / 2))) if remaining else limit
    return timeout if slowest is None else min(timeout, max(MIN_TIMEOUT, timedelta(seconds=slowest * 2)))


def stable_fraction(text: str) -> float:
    """Map a string to a stable number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def replaces(new: AppJWT, stored: AppJWT | None, deletion_time: datetime | None) -> bool:
    """Return True if the new token may replace the valid stored one: it must not expire earlier.

    :param deletion_time: when Vault deletes the stored one; if before its expiry, the same token is written again.
    """
    return stored is None or (new.exp >= stored.exp and new.exp > readable_until(stored, deletion_time))


def effective_kind(error: RefreshError, failures: int) -> Kind:
    """Return the kind to report after so many failures: a persistent 5xx can be a refusal of the credentials."""
    persistent = error.status is not None and error.status >= _SERVER_ERROR and failures > len(RETRY_PAUSES)
    return Kind.PERMANENT if persistent else error.reported_kind


def next_turn(now: float, pause: float, phase: float) -> float:
    """Return the time of an account's next turn: in each round of `pause` seconds it has a fixed place.

    :param phase: the account's place, in [0, 1). A turn that is almost due is left to the next round.
    """
    wait = (phase * pause - now) % pause
    return now + (wait if wait > pause * _MIN_TURN_FRACTION else wait + pause)


def next_retry(
    failures: int, *, remaining: float, kind: Kind, retry_after: timedelta | None = None, jitter: float = 0.0
) -> timedelta:
    """Return the pause after so many failures in a row.

    :param remaining: seconds until the stored token expires; 0 = there is no live token.
    :param kind: makes a difference only without a live token: an outage can look like a refusal.
    :param jitter: in [0, 1): takes off up to a fifth of the pause, so that accounts do not retry together.
    """
    min_pause, max_pause, max_requested = MIN_PAUSE, _MAX_PAUSE, _MAX_PAUSE
    if remaining > 0:
        max_pause = min(max_pause, timedelta(seconds=remaining * MAX_FRACTION_OF_REMAINING))
        max_requested = timedelta(seconds=remaining * RETRY_AFTER_FRACTION_OF_REMAINING)
    elif kind is Kind.PERMANENT:
        min_pause = SLOW_RETRY_PAUSE
    else:
        max_pause = SLOW_RETRY_PAUSE  # readers wait for it
    pause = max(min_pause, min(RETRY_PAUSES[min(failures, len(RETRY_PAUSES)) - 1], max_pause))
    requested = min((retry_after or timedelta(0)) * (1 + jitter / 5), max_requested)
    return max(MIN_PAUSE, pause * (1 - jitter / 5), requested)
