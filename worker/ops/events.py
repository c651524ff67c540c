"""What became of an attempt, as log lines: one for the attempt, one more where the account's state changed by it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from worker.core.appjwt import utc
from worker.core.errors import InternalError
from worker.core.notes import PREVIOUS_USED
from worker.core.outcome import Next, Outcome, Result, State
from worker.core.plan import Reason

log = structlog.get_logger()


class Events:
    def __init__(self, *, clock: Callable[[], float], vault_path: Callable[[str], str]) -> None:
        self._clock = clock
        self._vault_path = vault_path

    def report(self, outcome: Outcome, following: Next) -> None:
        if outcome.result is Result.FAILED:
            self._failed(outcome, following)
        elif outcome.result is not Result.SKIPPED:
            self._succeeded(outcome)
        repaired = outcome.reason is Reason.DRIFT and outcome.result is Result.REFRESHED
        if repaired or outcome.restored:
            what = "token" if repaired else "metadata"
            log.warning(
                "token.repaired", account=outcome.account, what=what, vault_path=self._vault_path(outcome.account)
            )
        if outcome.previous_used:
            log.warning("credentials.previous_used", account=outcome.account, host=outcome.host, hint=PREVIOUS_USED)
        if following.state is not following.before:
            self._changed(outcome, following)

    def _succeeded(self, outcome: Outcome) -> None:
        token, held = outcome.token, outcome.held
        if token is None or held is None:
            return
        refresh_at = token.exp - timedelta(seconds=held.life.ends - held.refresh_at)
        said = token.claims() | {"iat": int(token.iat.timestamp()), "exp": int(token.exp.timestamp())}
        del said["typ"]  # the checks leave it no choice
        event = f"token.{outcome.result}"
        log.info(
            event,
            account=outcome.account,
            account_id=outcome.account_id,
            host=outcome.host,
            reason=outcome.reason,
            **said,
            issued_at=utc(token.iat),
            expires_at=utc(token.exp),
            refresh_at=utc(refresh_at),
            fingerprint=token.fingerprint,
            vault_path=self._vault_path(outcome.account),
            vault_version=outcome.version,
            life_left_at_replacement=_rounded(outcome.left_at_replacement),
            duration=_rounded(outcome.duration),
        )

    def _failed(self, outcome: Outcome, following: Next) -> None:
        error = outcome.error
        if error is None:
            return
        log.error(
            "refresh.failed",
            account=outcome.account,
            host=outcome.host,
            stage=error.stage,
            kind=following.kind,
            reason=outcome.reason,
            check=error.check,
            status=error.status,
            error=str(error),
            failures=following.failures,
            life_left=_rounded(following.life_left),
            next_attempt=self._wall(following.due),
            exc_info=error.__cause__ if isinstance(error, InternalError) else None,
        )

    def _changed(self, outcome: Outcome, following: Next) -> None:
        match following.state:
            case State.OK if following.before is State.REMOVED:
                log.info("account.added", account=outcome.account)
            case State.OK if following.before is State.DISABLED:
                log.info("account.changed", account=outcome.account, state=following.state)
            case State.OK:
                log.info("account.recovered", account=outcome.account)
            case State.INVALID:
                log.error("account.invalid", account=outcome.account, error=str(outcome.error))
            case State.REMOVED:
                log.info("account.removed", account=outcome.account)
            case State.DISABLED:
                log.info("account.changed", account=outcome.account, state=following.state)
            case State.FOREIGN | State.FAILING:
                pass  # refresh.failed said so

    def _wall(self, moment: float) -> str | None:
        """For people: a moment of the steady clock as the wall clock would show it."""
        if moment == float("inf"):
            return None
        return utc(datetime.now(UTC) + timedelta(seconds=moment - self._clock()))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
