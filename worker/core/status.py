"""One view of an account for every screen, and the account's state in the metadata of its token's path."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from worker.core.appjwt import USUAL_SCOPE, AppJWT, Expected, TokenRefusedError, utc, validate
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.outcome import Outcome, Result, State
from worker.core.plan import planned_refresh, readable_until
from worker.core.record import AccountRecord
from worker.core.unchecked import StoredSecret

STATUS_KEYS: Final = ("state", "last_error", "failing_since")
NO_TOKEN: Final = "there is no token"  # noqa: S105 - a text
PREVIOUS_USED: Final = "the current client_secret is rejected; using the previous one (accepted for up to 24 h)"
_FAILING: Final = (State.FAILING, State.INVALID)
_READ_ONLY: Final = (Result.DUE, Result.WOULD_REFRESH, Result.NOT_EXPIRING)
_MAX_SCOPE_LENGTH: Final = 80
_MAX_BYTES: Final = 512
"""Bytes: Vault takes no longer value in custom_metadata, and no control characters."""


class Severity(StrEnum):
    """The urgency of an account's token, relative to its planned refresh."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


WARNING_MARGIN: Final = 0.5
CRITICAL_MARGIN: Final = 0.2
"""At `refresh.at` 0.5 these are 25 and 10 % of the lifetime. The alerts have the same."""

_NEEDS_NO_TOKEN: Final = (State.DISABLED, State.REMOVED)
_UNPROVISIONED: Final = (State.INVALID, State.UNMANAGED)
"""Without a token that it had before, no reader relies on such an account yet: it has an alert of its own."""


@dataclass(frozen=True, slots=True)
class AccountStatus:
    """One account as every screen shows it."""

    account: str
    state: State
    remaining: float
    """Seconds until the token expires; 0 = there is no live token."""
    margin: float | None
    """Remaining lifetime, as a share of the time from the planned refresh to the expiry: 1 at the refresh, 0 at the
    expiry. None = the account needs no token, or never had one and cannot have one."""
    issued_at: datetime | None = None
    expires_at: datetime | None = None
    refresh_at: datetime | None = None
    fingerprint: str | None = None
    last_error: str | None = None
    failing_since: str | None = None

    @classmethod
    def of(
        cls,
        account: str,
        state: State,
        *,
        remaining: float,
        issued_at: datetime | None = None,
        expires_at: datetime | None = None,
        refresh_at: datetime | None = None,
        fingerprint: str | None = None,
        last_error: str | None = None,
        failing_since: str | None = None,
    ) -> "AccountStatus":
        """Rate an account's token: an account in order whose token is overdue or expired is failing."""
        window = (expires_at - refresh_at).total_seconds() if expires_at and refresh_at else None
        previous, (state, margin) = state, rate(state, remaining, window)
        if state is not previous:
            last_error = last_error or f"{'overdue' if remaining else 'expired'}: the worker's log says why"
        return cls(
            account=account,
            state=state,
            remaining=remaining,
            margin=margin,
            issued_at=issued_at,
            expires_at=expires_at,
            refresh_at=refresh_at,
            fingerprint=fingerprint,
            last_error=last_error,
            failing_since=failing_since,
        )

    @property
    def severity(self) -> Severity:
        """Rate the margin."""
        if self.margin is None or self.margin >= WARNING_MARGIN:
            return Severity.OK
        return Severity.WARNING if self.margin >= CRITICAL_MARGIN else Severity.CRITICAL

    @property
    def is_served(self) -> bool:
        """Return True if a reader finds a live token, or needs none."""
        return self.remaining > 0 or self.state in _NEEDS_NO_TOKEN

    @property
    def urgency(self) -> tuple[bool, float, str, str]:
        """Return the order on every screen: by expiry, the longest without a live token first, who needs none last."""
        since = utc(self.expires_at) if self.expires_at else self.failing_since or ""
        return self.state in _NEEDS_NO_TOKEN, self.remaining, since, self.account

    def as_json(self) -> dict[str, object]:
        """Return the public fields of --status and /status.json."""
        return {
            "account": self.account,
            "state": self.state,
            "remaining": round(self.remaining, 3),
            "margin": None if self.margin is None else round(self.margin, 3),
            "issued_at": _utc(self.issued_at),
            "expires_at": _utc(self.expires_at),
            "refresh_at": _utc(self.refresh_at),
            "fingerprint": self.fingerprint,
            "last_error": self.last_error,
            "failing_since": self.failing_since,
        }


def stored_status(name: str, stored: StoredSecret) -> AccountStatus:
    """Return the view of an account that is known from Vault alone, by the clock that the secret was read with."""
    known = stored.custom_metadata
    state = State(known["state"]) if known.get("state") in set(State) else State.OK
    last_error, since = known.get("last_error"), known.get("failing_since")
    try:
        # aud and azp are the worker's to compare: no account's secret is read here; the expiry is rated below
        token = validate(stored.raw.get_secret_value() if stored.raw else "", Expected(), None)
    except TokenRefusedError as refused:
        state = State.FAILING if state is State.OK else state
        error = f"the stored token is not accepted: {refused}" if stored.raw else NO_TOKEN
        return AccountStatus.of(name, state, remaining=0.0, last_error=last_error or error, failing_since=since)
    end = readable_until(token, stored.deletion_time)
    return AccountStatus.of(
        name,
        state,
        remaining=max(end - stored.now, timedelta(0)).total_seconds(),
        issued_at=token.iat,
        expires_at=end,
        refresh_at=planned_refresh(token, stored.refresh_at, end),
        fingerprint=token.fingerprint,
        last_error=last_error,
        failing_since=since,
    )


def rate(state: State, remaining: float, window: float | None) -> tuple[State, float | None]:
    """Return the state and margin to show: an account in order whose token is overdue or expired is failing.

    :param remaining: seconds until the expiry.
    :param window: seconds from the planned refresh to the expiry; None = there is no token.
    """
    if state in _NEEDS_NO_TOKEN or (state in _UNPROVISIONED and window is None):
        return state, None
    margin = remaining / window if window else 0.0
    return (State.FAILING if state is State.OK and margin < WARNING_MARGIN else state), margin


def rate_record(record: AccountRecord, steady: float) -> tuple[State, float | None]:
    """Return the state and margin of an account that the daemon knows; one that was not read yet is in order."""
    tracked = record.tracked
    if tracked is None and record.state is State.OK:
        return State.OK, None
    window = tracked.validity.end - tracked.planned_at if tracked else None
    return rate(record.state, tracked.validity.remaining(steady) if tracked else 0.0, window)


def record_status(record: AccountRecord, steady: float, now: datetime) -> AccountStatus:
    """Return the view of an account that the daemon knows, at the steady moment that is `now` by Vault's clock."""

    def at(moment: float) -> datetime:
        return now + timedelta(seconds=moment - steady)

    tracked = record.tracked
    if tracked is None and record.state is State.OK:  # it was not read yet
        return AccountStatus(record.name, record.state, 0.0, None)
    return AccountStatus.of(
        record.name,
        record.state,
        remaining=tracked.validity.remaining(steady) if tracked else 0.0,
        issued_at=at(tracked.validity.start) if tracked else None,
        expires_at=at(tracked.validity.end) if tracked else None,
        refresh_at=at(tracked.planned_at) if tracked else None,
        fingerprint=tracked.fingerprint if tracked else None,
        last_error=record.last_error,
        failing_since=utc(at(record.failing_since)) if record.failing_since is not None else None,
    )


def _utc(moment: datetime | None) -> str | None:
    return None if moment is None else utc(moment)


def status_patch(outcome: Outcome, stored: StoredSecret) -> dict[str, str | None] | None:
    """Return the changes of the three keys after this outcome; None = they are current, or are not ours to write.

    :param stored: what the attempt read at the token's path.
    """
    error, state, current = outcome.error, outcome.state, stored.custom_metadata
    if state is State.REMOVED and not current:
        return None  # nothing of ours was ever there: a mistyped name leaves nothing behind
    if state is State.UNMANAGED or stored.has_others_data or outcome.result in _READ_ONLY:
        return None  # what is there is somebody else's; or the account was only looked at
    if error and error.stage in (Stage.VAULT, Stage.CREDENTIALS) and error.kind is Kind.TRANSIENT:
        return None  # Vault would not take it
    if outcome.result is Result.ADOPTED and _failed_since_issue(outcome, current):
        return None  # such as by hand: adopting an older token tells nothing of what failed
    previous = current.get("last_error")
    message, since = status_message(outcome, previous), None
    same = message == previous
    if message and state in _FAILING:
        # the wording may differ each time, and is in the log; a deletion by Vault only in its time
        cause = message.partition(": " if error else " at ")[:2]
        same = (previous or "").startswith("".join(cause))
        since = current.get("failing_since", utc(stored.now))
    if same and current.get("state", State.OK) == state:
        return None
    return {"state": state, "last_error": message, "failing_since": since}


def status_message(outcome: Outcome, previous: str | None) -> str | None:
    """Return the text for `last_error`; None = no error.

    :param previous: the text there now. Adopting a token tells nothing of the client_secret.
    """
    if outcome.error and outcome.result is Result.FAILED:
        return format_error(outcome.error)
    if outcome.early_deletion and outcome.early_deletion.is_before_expiry:
        return _printable(f"{Stage.VAULT}: {outcome.early_deletion}")
    if outcome.previous_used or (outcome.result is Result.ADOPTED and previous == PREVIOUS_USED):
        return PREVIOUS_USED
    return scope_message(outcome.token) if outcome.scope_unusual and outcome.token else None


def scope_message(token: AppJWT) -> str:
    """Return the text for `last_error` of an account whose token lacks the usual scope."""
    scope = f"scope {token.scope[:_MAX_SCOPE_LENGTH]}" if token.scope else "no scope"
    return _printable(f"the token has {scope}, without {USUAL_SCOPE}: the Send API may refuse it")


def is_our_status(custom_metadata: Mapping[str, str]) -> bool:
    """Return True if the three keys read as the worker writes them."""
    state = custom_metadata.get("state")
    failing = {"last_error", "failing_since"} <= custom_metadata.keys()
    return state in set(State) and failing == (state in _FAILING)


def format_error(error: RefreshError) -> str:
    """Return an error as the metadata, the page and --status show it."""
    return _printable(f"{error.stage}: {error}")


def _failed_since_issue(outcome: Outcome, current: Mapping[str, str]) -> bool:
    """Return True if an attempt at LivePerson failed after the stored token was issued."""
    try:
        stage, since = Stage(current["last_error"].partition(":")[0]), datetime.fromisoformat(current["failing_since"])
        older = outcome.token is not None and outcome.token.iat < since
    except (KeyError, ValueError, TypeError):  # there is no such state, or somebody edited it
        return False
    return older and current.get("state") == State.FAILING and stage not in (Stage.VAULT, Stage.CREDENTIALS)


def _printable(text: str) -> str:
    printable = "".join(each if each.isprintable() else " " for each in text)
    return printable.encode()[:_MAX_BYTES].decode(errors="ignore")
