"""--status: every account's state from Vault alone; no daemon need run."""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor

from worker.core.errors import InvalidAccountError, Kind, RefreshError, UnmanagedSecretError
from worker.core.outcome import State
from worker.core.status import AccountStatus, format_error, stored_status
from worker.publish import StoredTokens


def statuses(
    names: Iterable[str], tokens: StoredTokens, pool: Executor, progress: Callable[[int], object] = lambda _: None
) -> list[AccountStatus]:
    """Return the accounts' states, the most urgent first, those that need no token last.

    Raises RefreshError where Vault cannot be used, or refuses every token: a token refused alone is its own trouble.

    :param progress: called with the number of accounts that are known so far.
    """
    refusals: list[RefreshError] = []  # the first ones: each keeps much in memory, by its traceback

    def status(name: str) -> tuple[AccountStatus, bool | None]:
        """Return the state, and whether Vault refused the token; None = it was not asked."""
        try:
            return stored_status(name, tokens.read(name)), False
        except UnmanagedSecretError as error:
            return AccountStatus.of(name, State.UNMANAGED, remaining=0.0, last_error=str(error)), False
        except InvalidAccountError as error:
            return AccountStatus.of(name, State.INVALID, remaining=0.0, last_error=str(error)), None
        except RefreshError as error:
            if error.kind is not Kind.PERMANENT:
                raise
            if not refusals:
                refusals.append(error)
            return AccountStatus.of(name, State.FAILING, remaining=0.0, last_error=format_error(error)), True

    found: list[tuple[AccountStatus, bool | None]] = []
    for each in pool.map(status, names):
        found.append(each)
        progress(len(found))
    if refusals and all(refused is not False for _, refused in found):
        raise refusals[0]
    return sorted((each for each, _ in found), key=lambda status: status.urgency)
