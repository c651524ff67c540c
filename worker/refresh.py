"""Refresh one account's token: assess what is stored, obtain a new one if it is due, publish it by check-and-set.

Left to others: when to refresh (schedule), what is valid (core), how to get a new token (obtain). The Protocols state
what is needed of Vault.
"""

import contextlib
import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from worker.core.account import Absence, Account, is_name
from worker.core.appjwt import Expected
from worker.core.errors import (
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
    ThrottledError,
    UnmanagedSecretError,
)
from worker.core.outcome import Outcome, Result
from worker.core.plan import Reason, RefreshPolicy, TrackedToken
from worker.core.status import status_patch
from worker.core.unchecked import StoredSecret
from worker.obtain import TokenSource
from worker.publish import Attempt, Publisher, Tokens

_EARLY_TOLERANCE: Final = 0.1
"""Share of the removal delay by which the second read may come early: the time between syncs is not exact."""


class Accounts(Protocol):
    def names(self) -> frozenset[str]: ...
    def read(self, name: str) -> Account | Absence: ...
    def path(self, name: str) -> str: ...


@dataclass(frozen=True, slots=True)
class ForceRefresh:
    """An operator's request: refresh regardless of the schedule."""

    expires_within: float = float("inf")
    """Refresh only a token that expires within so many seconds."""
    dry_run: bool = False
    """Only report whether the token would be refreshed, and why."""


class Refresher:
    def __init__(
        self,
        *,
        accounts: Accounts,
        tokens: Tokens,
        source: TokenSource,
        policy: RefreshPolicy,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        self.removal_delay = 0.0
        """Approximate seconds between the two 404s that prove a removal; 0 = one 404 is enough (manual refresh)."""
        self._missing_since: dict[str, float] = {}
        """The steady moment of an account's first 404 since it was last found."""
        self._accounts = accounts
        self._tokens = tokens
        self._source = source
        self._clock = clock
        self.clocks = source.clocks
        self._publisher = Publisher(tokens, clocks=source.clocks, policy=policy, clock=clock, sleep=sleep)
        self._failed_digests: dict[str, bytes] = {}
        """Digests of the accounts at their latest failed attempt: an edited one is tried at once."""
        self._key = secrets.token_bytes()
        self._running: dict[str, Attempt] = {}

    def check_stored(self, name: str, tracked: TrackedToken | None = None) -> Outcome:
        """Adopt the stored token if it is fresh, else return an outcome with the reason to refresh it.

        :param tracked: what is remembered of the stored token. Credentials are read only if another is stored now.
        """
        with self._attempt(name, tracked) as attempt:
            try:
                self._read_stored(attempt)
            except RefreshError as error:
                return self._failed_outcome(attempt, error)
            attempt.reason = attempt.assessment.reason
            if attempt.reason:
                return attempt.outcome(Result.DUE, self._clock())
            outcome = self._adopt(attempt)
            self._write_status(attempt, outcome)
            return outcome

    def refresh(
        self,
        name: str,
        *,
        tracked: TrackedToken | None = None,
        force: ForceRefresh | None = None,
        others_wait: bool = False,
    ) -> Outcome:
        """Refresh the account's token if it is due, or as the operator asks. A RefreshError becomes an outcome.

        :param tracked: what was remembered of the stored token when it became due.
        :param others_wait: other accounts wait for the same Sentinel host, so each exchange gets less time.
        """
        with self._attempt(name, tracked) as attempt:
            try:
                outcome = self._retry_while_throttled(attempt, force, others_wait=others_wait)
            except RefreshError as error:
                outcome = self._failed_outcome(attempt, error)
            if not (force and force.dry_run):
                self._write_status(attempt, outcome)
            return outcome

    def min_remaining(self) -> float:
        """Return the seconds until the first live token of the running attempts expires; inf = none is known."""
        now = self._clock()
        known = [attempt.assessment.tracked or attempt.tracked for attempt in list(self._running.values())]
        return min((each.validity.end - now for each in known if each and each.validity.end > now), default=math.inf)

    def has_changed(self, name: str) -> bool:
        """Return True if a failing account's secret was edited since its latest attempt; raises RefreshError."""
        digest = self._failed_digests.get(name)
        if digest is None:
            return False
        try:
            account = self._accounts.read(name)
        except InvalidAccountError:
            return True
        return isinstance(account, Absence) or account.digest(self._key) != digest

    def has_live_token(self, name: str) -> bool:
        """Return True if the stored token is live, as after a refresh by hand; raises RefreshError."""
        attempt = Attempt(name, self._clock())
        self._read_stored(attempt)
        return attempt.remaining(self._clock()) > 0

    def is_removed(self, name: str) -> bool:
        """Return True if reading the account returned 404 twice, the removal delay apart; an error is no proof."""
        try:
            removed = self._read_account(name) is Absence.REMOVED
        except InvalidAccountError:
            return not is_name(name)  # an invalid name is never read: its absence from the LIST is enough
        except RefreshError:
            return False
        if removed:
            self._missing_since.pop(name, None)
            self._write_removal(name)
        return removed

    @contextlib.contextmanager
    def _attempt(self, name: str, tracked: TrackedToken | None) -> Iterator[Attempt]:
        attempt = self._running[name] = Attempt(name, self._clock(), tracked)
        try:
            yield attempt
        finally:
            self._running.pop(name, None)

    def _retry_while_throttled(self, attempt: Attempt, force: ForceRefresh | None, *, others_wait: bool) -> Outcome:
        """Refresh; if a rate limit delayed the write, read again and write the token that was already obtained."""
        while True:
            with contextlib.suppress(ThrottledError):
                return self._refresh(attempt, force, others_wait=others_wait)

    def _read_account(self, name: str) -> Account | Absence:
        """Read the account; raises RefreshError also at the first 404, which may come from one lagging server."""
        try:
            account = self._accounts.read(name)
        except InvalidAccountError:
            self._missing_since.pop(name, None)
            raise
        if account is not Absence.REMOVED:
            self._missing_since.pop(name, None)
            return account
        now = self._clock()
        wait = self._missing_since.setdefault(name, now) + self.removal_delay - now
        if wait > self.removal_delay * _EARLY_TOLERANCE:
            text = f"there is nothing at {self._accounts.path(name)}: if that lasts, the account counts as removed"
            raise RefreshError(Stage.CREDENTIALS, Kind.TRANSIENT, text, status=404, retry_after=timedelta(seconds=wait))
        return account

    def _refresh(self, attempt: Attempt, force: ForceRefresh | None, *, others_wait: bool) -> Outcome:
        attempt.reason = Reason.MANUAL if force else None
        stored = self._read_stored(attempt)
        if force and attempt.remaining(self._clock()) >= force.expires_within:
            attempt.reason = None
            return attempt.outcome(Result.NOT_EXPIRING, self._clock())
        attempt.reason = reason = attempt.reason or attempt.assessment.reason
        if reason is None:
            return self._adopt(attempt)
        account = self._read_account(attempt.account)
        if isinstance(account, Absence):
            return self._absent_outcome(attempt, account)
        attempt.account_id = account.account_id
        digest, expected = account.digest(self._key), Expected.of(account)
        if not force and self._failed_digests.get(attempt.account, digest) != digest:
            attempt.reason = reason = Reason.CHANGED
        self._failed_digests[attempt.account] = digest
        attempt.assessment = self._publisher.assess(attempt, stored, expected)
        if force and force.dry_run:
            attempt.reason = attempt.assessment.reason or attempt.reason
            return attempt.outcome(Result.WOULD_REFRESH, self._clock())
        obtained = self._publisher.pending.get(attempt.account)
        if not obtained or obtained.expected != expected or obtained.tracked.refresh_at <= self._clock():
            obtained = self._source.obtain(
                account, reason, attempt.assessment.tracked, stored.sentinel_host, others_wait=others_wait
            )
        outcome = self._publisher.publish(attempt, obtained, stored)
        self._failed_digests.pop(attempt.account, None)
        return outcome

    def _read_stored(self, attempt: Attempt) -> StoredSecret:
        """Read and assess what is stored. The account's secret is read only if needed: a normal restart reads none."""
        stored = attempt.stored = self._publisher.read(attempt.account)
        attempt.deletion_time = stored.deletion_time
        attempt.assessment = self._publisher.assess(attempt, stored, Expected())
        token, tracked = attempt.assessment.token, attempt.tracked
        is_other_account = token and attempt.account.partition("/")[0] not in token.aud
        is_other_token = (
            token and tracked and (tracked.fingerprint != token.fingerprint or not tracked.identity_verified)
        )
        if is_other_account or is_other_token:  # only the account's secret can say whether that is right
            account = self._accounts.read(attempt.account)
            if not isinstance(account, Absence):
                attempt.account_id = account.account_id
                attempt.assessment = self._publisher.assess(attempt, stored, Expected.of(account))
        return stored

    def _adopt(self, attempt: Attempt) -> Outcome:
        self._failed_digests.pop(attempt.account, None)
        return self._publisher.adopt(attempt)

    def _failed_outcome(self, attempt: Attempt, error: RefreshError) -> Outcome:
        """Return the outcome of an error; an unmanaged secret is no error if the account is disabled or removed."""
        if isinstance(error, UnmanagedSecretError):
            if error.has_stale_status:
                with contextlib.suppress(RefreshError):  # the next attempt tries again
                    self._tokens.clear_status(attempt.account)
            with contextlib.suppress(RefreshError):
                account = self._read_account(attempt.account)
                if isinstance(account, Absence):
                    return self._absent_outcome(attempt, account)
        attempt.reason = attempt.reason or (Reason.DUE if attempt.tracked else Reason.MISSING)  # as far as is known
        return attempt.outcome(Result.FAILED, self._clock(), error)

    def _absent_outcome(self, attempt: Attempt, absence: Absence) -> Outcome:
        self._publisher.pending.pop(attempt.account, None)
        self._failed_digests.pop(attempt.account, None)
        attempt.reason = None
        return attempt.outcome(Result.ABSENT, self._clock(), absence=absence)

    def _write_removal(self, name: str) -> None:
        """Write the removal to the metadata, or an account that comes back would show its old error as a new one."""
        attempt = Attempt(name, self._clock())
        try:
            attempt.stored = self._tokens.read(name)
        except RefreshError as error:
            self._failed_outcome(attempt, error)
        self._write_status(attempt, self._absent_outcome(attempt, Absence.REMOVED))

    def _write_status(self, attempt: Attempt, outcome: Outcome) -> None:
        patch = status_patch(outcome, attempt.stored) if attempt.stored else None
        if patch:
            with contextlib.suppress(RefreshError):  # the next attempt sees that the status is outdated
                self._tokens.write_status(attempt.account, patch)
