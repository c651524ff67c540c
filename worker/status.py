"""--status: every account's state from Vault alone; no daemon need run."""

from collections.abc import Iterable
from concurrent.futures import Executor

from worker.core.errors import InvalidAccountError, Kind, RefreshError, UnmanagedSecretError
from worker.core.outcome import State
from worker.core.status import AccountStatus, format_error, stored_status
from worker.publish import StoredTokens


def statuses(names: Iterable[str], tokens: StoredTokens, pool: Executor) -> list[AccountStatus]:
    """Return the accounts' states, the most urgent first, those that need no token last.

    RefreshError where Vault cannot be used, or refuses every token: what it refuses to some is their own trouble.
    """
    found = [*pool.map(lambda name: _status(name, tokens), names)]
    if found and all(refusal for _, refusal in found):
        raise next(refusal for _, refusal in found if refusal)
    return sorted((status for status, _ in found), key=lambda status: status.urgency)


def _status(name: str, tokens: StoredTokens) -> tuple[AccountStatus, RefreshError | None]:
    """Return the state, and what Vault refused its token with."""
    try:
        return stored_status(name, tokens.read(name)), None
    except UnmanagedSecretError as error:
        return AccountStatus.of(name, State.UNMANAGED, remaining=0.0, last_error=str(error)), None
    except InvalidAccountError as error:
        return AccountStatus.of(name, State.INVALID, remaining=0.0, last_error=str(error)), None
    except RefreshError as error:
        if error.reported_kind is not Kind.PERMANENT:
            raise
        return AccountStatus.of(name, State.FAILING, remaining=0.0, last_error=format_error(error)), error
