"""The outcome of an attempt as log lines: one for the attempt, one more where the account's state changed by it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from worker.core.appjwt import utc
from worker.core.errors import InternalError
from worker.core.outcome import Outcome, Result, State, Transition
from worker.core.plan import Reason
from worker.core.status import PREVIOUS_USED

_READ_AT_EACH_SYNC = (State.INVALID, State.UNMANAGED)
_HOUR = 3600.0
_MAX_REPLACEMENTS = 3
_PUBLISHED = (Result.REFRESHED, Result.ADOPTED, Result.UNCHANGED)

log = structlog.get_logger()


class Events:
    def __init__(self, *, clock: Callable[[], float], vault_path: Callable[[str], str]) -> None:
        self._clock = clock
        self._vault_path = vault_path
        self._warned_of_deletion: dict[str, bool] = {}
        """By account, whether the deletion it was warned of comes before the token expires."""
        self._warned_of_scope: dict[str, str] = {}
        """By account, the scope that it was warned of."""
        self._replaced: dict[str, list[float]] = {}
        """By account, when valid tokens of another client_id were replaced lately."""
        self._warned_of_client: dict[str, str] = {}
        """By account, the client_id that it was warned of."""

    def report(self, outcome: Outcome, transition: Transition) -> None:
        if outcome.result is Result.FAILED:
            self._failed(outcome, transition)
        elif outcome.result in _PUBLISHED:
            self._succeeded(outcome)
        repaired = outcome.reason is Reason.DRIFT and outcome.result is Result.REFRESHED
        if repaired:
            log.warning("token.repaired", account=outcome.account, vault_path=self._vault_path(outcome.account))
        if outcome.replaced_client_id:
            self._warn_of_other_client(outcome, outcome.replaced_client_id)
        if outcome.result in _PUBLISHED:
            self._warn_of_deletion(outcome)
            self._warn_of_scope(outcome)
        if outcome.previous_used:
            log.warning("credentials.previous_used", account=outcome.account, host=outcome.host, hint=PREVIOUS_USED)
        if transition.state is not transition.previous_state:
            self._log_transition(outcome, transition)

    def _warn_of_other_client(self, outcome: Outcome, client_id: str) -> None:
        """Warn at the third such replacement within an hour, and not again while they go on."""
        account, now = outcome.account, self._clock()
        recent = [moment for moment in self._replaced.get(account, ()) if moment > now - _HOUR]
        if not recent:
            self._warned_of_client.pop(account, None)
        self._replaced[account] = recent = [*recent[1 - _MAX_REPLACEMENTS :], now]
        if len(recent) == _MAX_REPLACEMENTS and self._warned_of_client.get(account) != client_id:
            self._warned_of_client[account] = client_id
            text = f"{_MAX_REPLACEMENTS} times within an hour a valid token of client_id {client_id} had replaced ours"
            hint = "another installation writes below this tokens.prefix: give it another one"
            path = self._vault_path(account)
            log.warning("vault.warning", account=account, vault_path=path, client_id=client_id, warning=text, hint=hint)

    def _warn_of_deletion(self, outcome: Outcome) -> None:
        deletion, account = outcome.early_deletion, outcome.account
        if deletion is None:
            self._warned_of_deletion.pop(account, None)
        elif self._warned_of_deletion.get(account) is not deletion.is_before_expiry:
            self._warned_of_deletion[account] = deletion.is_before_expiry
            log.warning("vault.warning", account=account, warning=str(deletion))

    def _warn_of_scope(self, outcome: Outcome) -> None:
        account, scope = outcome.account, outcome.token.scope if outcome.scope_unusual and outcome.token else None
        if scope is None:
            self._warned_of_scope.pop(account, None)
        elif self._warned_of_scope.get(account) != scope:
            self._warned_of_scope[account] = scope
            log.warning("token.scope_unusual", account=account, scope=scope)

    def _succeeded(self, outcome: Outcome) -> None:
        token, tracked = outcome.token, outcome.tracked
        if token is None or tracked is None:
            return
        refresh_at = token.iat + timedelta(seconds=tracked.refresh_at - tracked.validity.start)
        event = f"token.{outcome.result}"
        log.info(
            event,
            account=outcome.account,
            account_id=outcome.account_id,
            host=outcome.host,
            reason=outcome.reason,
            **token.fields(),
            issued_at=utc(token.iat),
            expires_at=utc(token.exp),
            refresh_at=utc(refresh_at),
            fingerprint=token.fingerprint,
            vault_path=self._vault_path(outcome.account),
            vault_version=outcome.version,
            vault_request_id=outcome.vault_request_id,
            remaining_at_refresh=_round(outcome.remaining_at_refresh),
            duration=_round(outcome.duration),
        )

    def _failed(self, outcome: Outcome, transition: Transition) -> None:
        error = outcome.error
        if error is None:
            return
        # an invalid account is read at each sync, for as long as nobody fixes it
        log_failure = log.debug if transition.repeated and transition.state in _READ_AT_EACH_SYNC else log.error
        log_failure(
            "refresh.failed",
            account=outcome.account,
            account_id=outcome.account_id,
            host=outcome.host,
            stage=error.stage,
            kind=transition.kind,
            reason=outcome.reason,
            check=error.check,
            status=error.status,
            error=str(error),
            failures=transition.failures,
            remaining=_round(transition.remaining),
            next_attempt=self._wall_time(transition.due),
            exc_info=error.__cause__ if isinstance(error, InternalError) else None,
        )

    def _log_transition(self, outcome: Outcome, transition: Transition) -> None:
        match transition.state:
            case State.OK if transition.previous_state is State.REMOVED:
                log.info("account.added", account=outcome.account)
            case State.OK if transition.previous_state is State.DISABLED:
                log.info("account.changed", account=outcome.account, state=transition.state)
            case State.OK:
                log.info("account.recovered", account=outcome.account)
            case State.INVALID:
                log.error("account.invalid", account=outcome.account, error=str(outcome.error))
            case State.REMOVED:
                log.info("account.removed", account=outcome.account)
            case State.DISABLED:
                log.info("account.changed", account=outcome.account, state=transition.state)
            case State.UNMANAGED | State.FAILING:
                pass  # refresh.failed said so

    def _wall_time(self, moment: float) -> str | None:
        """For people: a moment of the steady clock as the wall clock would show it."""
        if moment == float("inf"):
            return None
        return utc(datetime.now(UTC) + timedelta(seconds=moment - self._clock()))


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
