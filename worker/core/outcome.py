"""The outcome of one attempt at one account: the source of its log line, its count and its next due time."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from worker.core.account import Absence
from worker.core.appjwt import AppJWT, utc
from worker.core.errors import (
    InvalidAccountError,
    Kind,
    RefreshError,
    UnmanagedSecretError,
)
from worker.core.plan import Reason, TrackedToken


class Result(StrEnum):
    """The result of an attempt."""

    REFRESHED = "refreshed"
    ADOPTED = "adopted"
    """The stored token is fresh: another replica refreshed it, or this is a restart."""
    UNCHANGED = "unchanged"
    """Sentinel's token expires no later than the stored one: nothing was written, nothing is wrong."""
    FAILED = "failed"
    DUE = "due"
    """The stored token was only looked at, and is to be refreshed."""
    WOULD_REFRESH = "would refresh"
    """A dry run: the token would be refreshed."""
    NOT_EXPIRING = "not expiring"
    """The operator asked for tokens that expire sooner."""
    ABSENT = "absent"
    """The account is disabled or removed: there is nothing to refresh."""

    @property
    def public(self) -> str:
        """Return the word for users and metrics: the last four are `skipped`."""
        return self.value if self in _PUBLIC else "skipped"


_PUBLIC = frozenset({Result.REFRESHED, Result.ADOPTED, Result.UNCHANGED, Result.FAILED})


class State(StrEnum):
    """The state of an account."""

    OK = "ok"
    FAILING = "failing"
    INVALID = "invalid"
    DISABLED = "disabled"
    UNMANAGED = "unmanaged"
    REMOVED = "removed"


_STATES: dict[type, State] = {
    InvalidAccountError: State.INVALID,
    UnmanagedSecretError: State.UNMANAGED,
}


@dataclass(frozen=True, slots=True)
class EarlyDeletion:
    """A published token that Vault deletes by itself: its path or mount has a delete_version_after."""

    deletion_time: datetime
    expires_at: datetime
    remedy: str
    """The command that unsets it."""

    @property
    def is_before_expiry(self) -> bool:
        """Return True if readers find nothing before the token expires."""
        return self.deletion_time < self.expires_at

    def __str__(self) -> str:
        """Say what happens and what to do."""
        effect = "before it expires" if self.is_before_expiry else "and some agents take it for deleted until then"
        return f"Vault deletes the token at {utc(self.deletion_time)}, {effect}: {self.remedy}"


@dataclass(frozen=True, slots=True)
class Outcome:
    account: str
    result: Result
    duration: float
    """Seconds from the first read to the last write."""
    reason: Reason | None = None
    """Why it was to be refreshed; None = it was not."""
    account_id: str | None = None
    """As LivePerson knows it; None = the account's secret was not read."""
    host: str | None = None
    """The Sentinel host, as far as it was found."""
    token: AppJWT | None = None
    """The token that stands in Vault now, as far as known."""
    tracked: TrackedToken | None = None
    version: int | None = None
    """The version in Vault of `token`."""
    vault_request_id: str | None = None
    """Of the write, as in Vault's audit log; None = nothing was written, or its answer was lost."""
    error: RefreshError | None = None
    absence: Absence | None = None
    """Why there is nothing to refresh."""
    remaining_at_refresh: float | None = None
    """Seconds that the replaced token still had; None = none was replaced."""
    previous_used: bool = False
    """Sentinel refused the newest client_secret and took the one before it."""
    early_deletion: EarlyDeletion | None = None
    """Vault deletes the published token by itself."""
    replaced_client_id: str | None = None
    """The client_id of the replaced token, where that was valid and another app's."""
    scope_unusual: bool = False
    """The token lacks the usual scope, and the account names none."""
    write_failed: bool = False
    """A token was obtained, and Vault did not take it."""

    @property
    def state(self) -> State:
        """Return the account's state after the attempt."""
        if self.absence:
            return State(self.absence)
        if self.error:
            return _STATES.get(type(self.error), State.FAILING)
        return State.FAILING if self.early_deletion and self.early_deletion.is_before_expiry else State.OK


@dataclass(frozen=True, slots=True)
class Transition:
    """The consequence of an outcome."""

    previous_state: State
    state: State
    failures: int
    remaining: float
    kind: Kind | None
    """Of a failure, after so many in a row."""
    due: float
    """When the account is to be refreshed, tried or looked at again; inf = never."""
    lag: float | None = None
    """Seconds from the moment it was due until the attempt began; None = it was not planned."""
    repeated: bool = False
    """The attempt before failed for the same reason, word by word."""
