"""What became of one attempt at one account: the source of its log line, its count and its next due time."""

from dataclasses import dataclass
from enum import StrEnum

from worker.core.appjwt import AppJWT
from worker.core.errors import (
    AccountDisabledError,
    AccountGoneError,
    ForeignSecretError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
)
from worker.core.plan import Held, Reason


class Result(StrEnum):
    """What contract and metrics call the outcome."""

    REFRESHED = "refreshed"
    ADOPTED = "adopted"
    """The stored token is fresh: somebody else renewed it, or this is a restart."""
    UNCHANGED = "unchanged"
    """Sentinel's answer ends no later than the stored token: nothing was written, nothing is wrong."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """The account is disabled or gone; or it was only looked at."""


class State(StrEnum):
    """How an account stands."""

    OK = "ok"
    FAILING = "failing"
    INVALID = "invalid"
    DISABLED = "disabled"
    FOREIGN = "foreign"
    REMOVED = "removed"


_STATES: dict[type, State] = {
    InvalidAccountError: State.INVALID,
    ForeignSecretError: State.FOREIGN,
    AccountDisabledError: State.DISABLED,
    AccountGoneError: State.REMOVED,
}


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
    held: Held | None = None
    version: int | None = None
    """The version in Vault of `token`."""
    error: RefreshError | None = None
    left_at_replacement: float | None = None
    """Seconds that the replaced token still had; None = none was replaced."""
    previous_used: bool = False
    """Sentinel refused the newest client_secret and took the one before it."""
    restored: bool = False
    """The token's path had lost its settings, and has them again."""

    @property
    def state(self) -> State:
        """How the account stands after it."""
        return _STATES.get(type(self.error), State.FAILING) if self.error else State.OK

    @property
    def is_unwritten(self) -> bool:
        """Whether a token was minted, and Vault did not take it."""
        return self.error is not None and self.error.stage is Stage.VAULT and self.account_id is not None

    @property
    def is_to_do(self) -> bool:
        """Whether it was only looked at, and is to be refreshed for `reason`."""
        return self.result is Result.SKIPPED and self.reason is not None and self.error is None


@dataclass(frozen=True, slots=True)
class Next:
    """What follows from an outcome."""

    before: State
    state: State
    failures: int
    life_left: float
    kind: Kind | None
    """Of a failure, after so many in a row."""
    due: float
    """When the account is to be refreshed, tried or looked at again; inf = never."""
    lag: float | None = None
    """Seconds from the moment it was due until the attempt began; None = it was not planned."""
