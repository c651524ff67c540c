"""--status: every account's state from Vault alone; no daemon need run."""

from collections.abc import Iterable
from concurrent.futures import Executor

from worker.core.errors import InvalidAccountError, UnmanagedSecretError
from worker.core.outcome import State
from worker.core.status import AccountStatus, stored_status
from worker.publish import StoredTokens


def statuses(names: Iterable[str], tokens: StoredTokens, pool: Executor) -> list[AccountStatus]:
    """Return the accounts' states, the most urgent first, those that need no token last.

    VaultError where a token cannot be read.
    """
    found = pool.map(lambda name: _status(name, tokens), names)
    return sorted(found, key=lambda status: status.urgency)


def _status(name: str, tokens: StoredTokens) -> AccountStatus:
    try:
        return stored_status(name, tokens.read(name))
    except UnmanagedSecretError as error:
        return AccountStatus.of(name, State.UNMANAGED, remaining=0.0, last_error=str(error))
    except InvalidAccountError as error:
        return AccountStatus.of(name, State.INVALID, remaining=0.0, last_error=str(error))
