"""--status: how every account stands, from Vault alone; no daemon need run."""

from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.core import appjwt
from worker.core.appjwt import Expected, TokenRefusedError, utc
from worker.core.errors import ForeignSecretError, InvalidAccountError
from worker.core.outcome import State
from worker.core.unchecked import Stored
from worker.refresh import StoredTokens

_OVERDUE = 0.3
"""Share of its life under which a token should long have been replaced: by default that is due at 0.45 to 0.55."""
_NEED_NO_TOKEN = frozenset({State.DISABLED, State.REMOVED})


@dataclass(frozen=True, slots=True)
class Line:
    """What is told of one account."""

    account: str
    state: State
    life_left: float
    """Seconds, by Vault's clock; 0 = there is no live token."""
    issued_at: str | None = None
    expires_at: str | None = None
    refresh_at: str | None = None
    fingerprint: str | None = None
    last_error: str | None = None
    failing_since: str | None = None

    @property
    def is_well(self) -> bool:
        return self.life_left > 0 or self.state in _NEED_NO_TOKEN


def lines(names: Iterable[str], tokens: StoredTokens, pool: Executor) -> list[Line]:
    """The most urgent first. VaultError where a token cannot be read."""
    return sorted(pool.map(lambda name: _line(name, tokens), names), key=lambda line: (line.life_left, line.account))


def _line(name: str, tokens: StoredTokens) -> Line:
    try:
        stored = tokens.read(name)
    except ForeignSecretError as error:
        return Line(name, State.FOREIGN, 0.0, last_error=str(error))
    except InvalidAccountError as error:
        return Line(name, State.INVALID, 0.0, last_error=str(error))
    notes = stored.notes
    state = State(notes["state"]) if notes.get("state") in set(State) else State.OK
    last_error, since = notes.get("last_error"), notes.get("failing_since")
    try:
        # aud and azp are the worker's to compare: here no account's secret is read; whether it has ended, we say
        token = appjwt.check(stored.raw.get_secret_value() if stored.raw else "", Expected(), None)
    except TokenRefusedError as refused:
        state = State.FAILING if state is State.OK else state
        why = f"the stored token is not accepted: {refused}" if stored.raw else "there is no token"
        return Line(name, state, 0.0, last_error=last_error or why, failing_since=since)
    left = max(token.exp - stored.now, timedelta(0))
    if state is State.OK and left < token.lifetime * _OVERDUE:
        state = State.FAILING
        last_error = last_error or f"{'overdue' if left else 'ended'}: the worker's log says why"
    return Line(
        account=name,
        state=state,
        life_left=round(left.total_seconds(), 3),
        issued_at=utc(token.iat),
        expires_at=utc(token.exp),
        refresh_at=_planned(stored),
        fingerprint=token.fingerprint,
        last_error=last_error,
        failing_since=since,
    )


def _planned(stored: Stored) -> str | None:
    """What the writer planned: a field beside the token, so only shown."""
    try:
        return utc(datetime.fromisoformat(stored.refresh_at or ""))
    except (ValueError, OverflowError):
        return None
