"""What the metadata of a token's path tells of its account: for --status, and for whoever else looks there."""

from collections.abc import Mapping
from datetime import datetime

from worker.core.appjwt import utc
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.outcome import Outcome, Result, State

_FAILING = (State.FAILING, State.INVALID)
PREVIOUS_USED = "Sentinel refuses the newest client_secret; the one before it serves, for 24 h after the change"
_LONGEST = 512
"""Bytes: Vault takes no longer value in custom_metadata, and no control characters."""


def news(outcome: Outcome, told: Mapping[str, str], now: datetime) -> dict[str, str | None] | None:
    """What is to be told after this outcome; a key that is None is to go. None = it is told already, or cannot be.

    :param told: the metadata's custom keys.
    :param now: Vault's clock.
    """
    error, state = outcome.error, outcome.state
    if state is State.REMOVED and not told:
        return None  # nothing of ours was ever there: a typing error leaves nothing behind
    if state is State.FOREIGN or (outcome.result is Result.SKIPPED and error is None):
        return None  # the path is somebody else's; or the account was only looked at
    if error and error.stage in (Stage.VAULT, Stage.CREDENTIALS) and error.kind is Kind.TRANSIENT:
        return None  # Vault would not take it
    if outcome.result is Result.ADOPTED and _failed_since_its_issue(outcome, told):
        return None  # such as by hand: who adopts an older token learns nothing of what failed
    before = told.get("last_error")
    said, since = what_is_wrong(outcome, before), None
    same = said == before
    if state in _FAILING and error:
        same = (before or "").startswith(f"{error.stage}: ")  # the words may differ each time, and are in the log
        since = told.get("failing_since", utc(now))
    if same and told.get("state", State.OK) == state:
        return None
    return {"state": state, "last_error": said, "failing_since": since}


def what_is_wrong(outcome: Outcome, before: str | None) -> str | None:
    """What stands beside the state; None = nothing is.

    :param before: what stood there. Who adopts a token learns nothing of its client_secret.
    """
    if outcome.error and outcome.result is Result.FAILED:
        return in_words(outcome.error)
    if outcome.previous_used or (outcome.result is Result.ADOPTED and before == PREVIOUS_USED):
        return PREVIOUS_USED
    return None


def _failed_since_its_issue(outcome: Outcome, told: Mapping[str, str]) -> bool:
    """Whether an attempt at LivePerson failed after the token that stands was issued."""
    try:
        stage, since = Stage(told["last_error"].partition(":")[0]), datetime.fromisoformat(told["failing_since"])
        older = outcome.token is not None and outcome.token.iat < since
    except (KeyError, ValueError, TypeError):  # nobody said so, or somebody edited it
        return False
    return older and told.get("state") == State.FAILING and stage not in (Stage.VAULT, Stage.CREDENTIALS)


def in_words(error: RefreshError) -> str:
    """An error in the words that Vault, the page and --status have alike."""
    text = f"{error.stage}: {error}"
    printable = "".join(each if each.isprintable() else " " for each in text)
    return printable.encode()[:_LONGEST].decode(errors="ignore")
