"""Publish an obtained token by check-and-set, and reconcile it with what others wrote meanwhile.

The token is kept until Vault is known to have it; whether a refresh is due is left to refresh. The Protocols state what
is needed of the tokens in Vault.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from worker.clocks import SentinelClocks
from worker.core import appjwt, plan
from worker.core.account import Absence
from worker.core.appjwt import USUAL_SCOPE, AppJWT, Expected
from worker.core.errors import CasMismatchError, Kind, RefreshError, Stage
from worker.core.outcome import EarlyDeletion, Outcome, Result
from worker.core.plan import Assessment, Reason, RefreshPolicy, TrackedToken
from worker.core.status import scope_message
from worker.core.unchecked import StoredSecret
from worker.obtain import ObtainedToken

_MAX_WRITE_ATTEMPTS: Final = 3
_STANDBY_PAUSES: Final = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Seconds before each re-read after a conflict: a standby of Vault lags behind the write, by 0.1 s as a rule, more
under load."""


class StoredTokens(Protocol):
    def read(self, name: str) -> StoredSecret: ...


class Written(Protocol):
    @property
    def version(self) -> int: ...
    @property
    def retention(self) -> timedelta | None: ...
    @property
    def request_id(self) -> str | None: ...


class Tokens(StoredTokens, Protocol):
    def write(self, name: str, token: AppJWT, fields: Mapping[str, str], replaces: StoredSecret) -> Written: ...
    def write_status(self, name: str, patch: Mapping[str, str | None]) -> None: ...
    def clear_status(self, name: str) -> None: ...
    def retention_command(self, name: str) -> str: ...


@dataclass(slots=True)
class Attempt:
    """The progress of one attempt at an account."""

    account: str
    started: float
    """The steady moment."""
    tracked: TrackedToken | None = None
    """What was remembered of the stored token when it became due."""
    reason: Reason | None = None
    account_id: str | None = None
    """None = the account's secret was not read."""
    stored: StoredSecret | None = None
    assessment: Assessment = field(default_factory=lambda: Assessment(None))
    obtained: ObtainedToken | None = None
    remaining_at_refresh: float | None = None
    """Seconds that the replaced token had left; None = no live token was replaced."""
    replaced_client_id: str | None = None
    """The client_id of the stored token, if that token is valid but another app's."""
    deletion_time: datetime | None = None
    """Moment at which Vault deletes the published token by itself; None = never."""
    vault_request_id: str | None = None
    """Of the write."""

    def remaining(self, now: float) -> float:
        """Return the seconds until the stored token expires, 0 if there is no live one."""
        tracked = self.assessment.tracked
        return tracked.validity.remaining(now) if tracked else 0.0

    @property
    def stored_host(self) -> str | None:
        """Return the Sentinel host that the stored token came from; None if the token is invalid."""
        valid = self.assessment.token or self.assessment.reason is Reason.DUE
        return self.stored.sentinel_host if self.stored and valid else None

    def outcome(
        self,
        result: Result,
        now: float,
        error: RefreshError | None = None,
        *,
        absence: Absence | None = None,
        early_deletion: EarlyDeletion | None = None,
    ) -> Outcome:
        """Return the attempt's outcome at the steady moment `now`."""
        obtained, stored, token = self.obtained, self.stored, self.assessment.token
        return Outcome(
            account=self.account,
            result=result,
            duration=now - self.started,
            reason=self.reason,
            account_id=self.account_id,
            host=error.host if error else obtained.host if obtained else self.stored_host,
            token=token,
            tracked=self.assessment.tracked,
            version=stored.version if stored and token else None,
            error=error,
            absence=absence,
            remaining_at_refresh=self.remaining_at_refresh,
            previous_used=bool(obtained and obtained.previous_used),
            early_deletion=early_deletion,
            vault_request_id=self.vault_request_id,
            replaced_client_id=self.replaced_client_id if result is Result.REFRESHED else None,
            scope_unusual=self._is_scope_unusual(),
            write_failed=bool(obtained and error and error.stage is Stage.VAULT),
        )

    def _is_scope_unusual(self) -> bool:
        """Return True if the token lacks the usual scope, and the account requires no scope, as far as is known."""
        token, stored = self.assessment.token, self.stored
        if token is None or stored is None or USUAL_SCOPE in token.scope.split():
            return False
        if self.obtained:
            return self.obtained.expected.scope is None
        return stored.custom_metadata.get("last_error") == scope_message(token)  # as its publisher wrote


class Publisher:
    def __init__(
        self,
        tokens: Tokens,
        *,
        clocks: SentinelClocks,
        policy: RefreshPolicy,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
    ) -> None:
        self._tokens = tokens
        self._clocks = clocks
        self._policy = policy
        self._clock = clock
        self._sleep = sleep
        self.pending: dict[str, ObtainedToken] = {}
        """Tokens not known to be in Vault, by account: the next attempt writes one unless it is there, or is due."""

    def read(self, name: str) -> StoredSecret:
        """Return what is stored, with the time of the clock to assess it by."""
        return self._clocks.with_sentinel_clock(self._tokens.read(name))

    def assess(self, attempt: Attempt, stored: StoredSecret, expected: Expected) -> Assessment:
        """Assess what is stored by the clock it was read with; a token that was decoded before is not decoded again."""
        decoded, raw = attempt.assessment.token, stored.raw.get_secret_value() if stored.raw else None
        return plan.assess_stored(
            attempt.account,
            decoded if decoded and decoded.raw.get_secret_value() == raw else raw,
            expected,
            server_now=stored.now,
            at=self._clock(),
            policy=self._policy,
            tracked=attempt.tracked,
            planned=stored.refresh_at,
            deletion_time=stored.deletion_time,
            is_issuers_clock=stored.is_issuers_clock,
        )

    def publish(self, attempt: Attempt, obtained: ObtainedToken, stored: StoredSecret) -> Outcome:
        """Write the obtained token unless the stored one expires as late or later; after a conflict assess again."""
        self.pending[attempt.account] = attempt.obtained = obtained
        for conflicts in range(_MAX_WRITE_ATTEMPTS):
            now = self._clock()
            assessment = self._assess_against(obtained, attempt, stored, now)
            attempt.stored, attempt.assessment, attempt.deletion_time = stored, assessment, stored.deletion_time
            keeps_stored = not plan.replaces(obtained.token, assessment.token, stored.deletion_time)
            if assessment.tracked and keeps_stored:
                if conflicts:
                    return self.adopt(attempt)
                tracked = plan.retry_at_half_remaining(assessment.tracked, now)
                attempt.assessment = replace(assessment, tracked=tracked)
                return self._succeeded(attempt, Result.UNCHANGED)
            attempt.remaining_at_refresh = attempt.remaining(now) if assessment.tracked else None
            raw = stored.raw.get_secret_value() if stored.raw and assessment.token is None else ""
            attempt.replaced_client_id = appjwt.other_client_id(raw, obtained.expected, stored.now)
            try:
                written = self._tokens.write(attempt.account, obtained.token, obtained.fields(), stored)
            except CasMismatchError:
                stored = self._read_newer(attempt.account, stored)
                continue
            attempt.stored = replace(stored, version=written.version, has_others_data=False)
            attempt.vault_request_id = written.request_id
            attempt.assessment = Assessment(None, obtained.token, self._schedule_written(attempt, obtained, written))
            return self._succeeded(attempt, Result.REFRESHED)
        text = f"gave up after {_MAX_WRITE_ATTEMPTS} check-and-set conflicts on {attempt.account}"
        raise RefreshError(Stage.VAULT, Kind.TRANSIENT, text)

    def adopt(self, attempt: Attempt) -> Outcome:
        """Adopt the stored token. If it is our own, from a write whose answer was lost, that write succeeded."""
        pending, token = self.pending.get(attempt.account), attempt.assessment.token
        if pending and token and token.fingerprint == pending.token.fingerprint:
            attempt.obtained, attempt.reason = pending, pending.reason
            return self._succeeded(attempt, Result.REFRESHED)
        attempt.obtained = attempt.reason = attempt.remaining_at_refresh = None
        outcome = self._succeeded(attempt, Result.ADOPTED)
        if pending and outcome.tracked and pending.tracked.is_due_later_than(outcome.tracked):
            # an older token was put back: ours is kept for when that one is due
            self.pending[attempt.account] = pending
        return outcome

    def _succeeded(self, attempt: Attempt, result: Result) -> Outcome:
        """Finish an attempt that knows what is in Vault: no obtained token has to be written now."""
        self.pending.pop(attempt.account, None)
        token, deletion_time = attempt.assessment.token, attempt.deletion_time
        early_deletion = None
        if token and deletion_time:
            early_deletion = EarlyDeletion(deletion_time, token.exp, self._tokens.retention_command(attempt.account))
        return attempt.outcome(result, self._clock(), early_deletion=early_deletion)

    def _schedule_written(self, attempt: Attempt, obtained: ObtainedToken, written: Written) -> TrackedToken:
        """Return the plan of the written token, shortened where Vault deletes it before it expires."""
        now = self._clock()
        sentinel_now = obtained.sentinel_now(now)
        attempt.deletion_time = sentinel_now + written.retention if written.retention is not None else None
        if attempt.deletion_time is None or attempt.deletion_time >= obtained.token.exp:
            return obtained.tracked
        shortened = plan.schedule_token(
            attempt.account,
            obtained.token,
            server_now=sentinel_now,
            at=now,
            policy=self._policy,
            planned=obtained.fields()["refresh_at"],
            deletion_time=attempt.deletion_time,
        )
        return plan.retry_at_half_remaining(shortened, now)

    def _read_newer(self, name: str, outdated: StoredSecret) -> StoredSecret:
        """Re-read after a check-and-set conflict, retrying while a standby still returns the old version."""
        for pause in _STANDBY_PAUSES:
            self._sleep(pause)
            stored = self.read(name)
            if stored.version > outdated.version:
                return stored
        text = f"Vault returns a stale version of the token of {name} (performance standby lag?)"
        raise RefreshError(Stage.VAULT, Kind.TRANSIENT, text)

    def _assess_against(
        self, obtained: ObtainedToken, attempt: Attempt, stored: StoredSecret, now: float
    ) -> Assessment:
        """Assess the stored token by Vault's clock, then by Sentinel's, so that a wrong clock loses no live token."""
        # without the remembered validity, so that the token's own times are compared
        fresh = Attempt(attempt.account, now, assessment=Assessment(None, attempt.assessment.token))
        assessment = self.assess(fresh, stored, obtained.expected)
        if assessment.token is None:
            assessment = self.assess(fresh, replace(stored, now=obtained.sentinel_now(now)), obtained.expected)
        tracked, token = attempt.tracked, assessment.token
        if tracked and token and tracked.fingerprint == token.fingerprint and not tracked.is_deleted_early(token):
            return replace(assessment, tracked=tracked)  # it is planned already
        return assessment
