"""What Vault is told of an account, and when."""

from dataclasses import replace
from typing import Final

import pytest

from tests.builders import ACCOUNT, ISSUED, app_jwt
from worker.core.errors import (
    AccountDisabledError,
    AccountGoneError,
    ForeignSecretError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
)
from worker.core.notes import PREVIOUS_USED, news
from worker.core.outcome import Outcome, Result, State
from worker.core.plan import Reason

NOW: Final = "2018-04-25T07:51:10Z"
REFUSED = RefreshError(Stage.SENTINEL, Kind.LASTING, "va answers 401", status=401)
BEFORE: Final = {"state": "failing", "last_error": "sentinel: va answers 503", "failing_since": "2018-04-25T07:00:00Z"}
WELL: Final = {"state": "ok", "last_error": None, "failing_since": None}


def after(result: Result = Result.FAILED, error: RefreshError | None = None, reason: Reason | None = None) -> Outcome:
    return Outcome(ACCOUNT, result, 0.1, reason=reason, error=error)


def test_the_first_failure_is_told_with_its_cause_and_since_when() -> None:
    told = news(after(error=REFUSED), {}, ISSUED)
    assert told == {"state": "failing", "last_error": "sentinel: va answers 401", "failing_since": NOW}


def test_an_invalid_secret_is_told_as_such() -> None:
    told = news(after(error=InvalidAccountError("client_id: missing")), {}, ISSUED)
    assert told == {"state": "invalid", "last_error": "credentials: client_id: missing", "failing_since": NOW}


def test_a_failure_like_the_one_before_is_no_news() -> None:
    assert news(after(error=REFUSED), BEFORE, ISSUED) is None


def test_a_failure_whose_cause_somebody_took_out_of_the_metadata_is_told_again() -> None:
    told = {"state": "failing", "failing_since": BEFORE["failing_since"]}
    assert news(after(error=REFUSED), told, ISSUED) == {**told, "last_error": "sentinel: va answers 401"}


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RefreshError(Stage.DOMAIN, Kind.TRANSIENT, "no answer"), "failing"),
        (RefreshError(Stage.VAULT, Kind.LASTING, "no answer", status=403), "failing"),
        (InvalidAccountError("no answer"), "invalid"),
    ],
)
def test_another_cause_is_news_and_since_when_it_fails_stays(error: RefreshError, state: str) -> None:
    assert news(after(error=error), BEFORE, ISSUED) == {
        "state": state,
        "last_error": f"{error.stage}: no answer",
        "failing_since": BEFORE["failing_since"],
    }


def test_what_is_told_fits_into_vaults_metadata() -> None:
    """FIELD trap 22: up to 512 bytes without control characters."""
    told = news(after(error=RefreshError(Stage.SENTINEL, Kind.LASTING, "a\n\x1bß" + "ß" * 600)), {}, ISSUED)
    assert told
    assert told["last_error"] == "sentinel: a  " + "ß" * 249
    assert len(str(told["last_error"]).encode()) == 511
    longest = news(after(error=RefreshError(Stage.SENTINEL, Kind.LASTING, "x" * 600)), {}, ISSUED)
    assert longest
    assert len(str(longest["last_error"])) == 512


@pytest.mark.parametrize("result", [Result.REFRESHED, Result.ADOPTED, Result.UNCHANGED])
@pytest.mark.parametrize(("told", "expected"), [(BEFORE, WELL), ({}, None), ({"state": "ok", "team": "a"}, None)])
def test_a_success_takes_back_what_was_told_and_else_says_nothing(
    result: Result, told: dict[str, str], expected: dict[str, str | None] | None
) -> None:
    assert news(after(result), told, ISSUED) == expected


_SINCE: Final = {**BEFORE, "failing_since": "2018-04-25T07:51:11Z"}
"""Failed after the token was issued."""


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (_SINCE, None),
        ({**_SINCE, "failing_since": NOW}, WELL),
        ({**_SINCE, "last_error": "domain: no answer"}, None),
        ({**_SINCE, "last_error": "claims: azp: expected a, got b"}, None),
        ({**_SINCE, "last_error": "vault: status 403"}, WELL),
        ({**_SINCE, "last_error": "credentials: status 403"}, WELL),
        ({**_SINCE, "last_error": "rubbish"}, WELL),
        ({**_SINCE, "state": "invalid"}, WELL),
        ({**_SINCE, "failing_since": "soon"}, WELL),
        ({**_SINCE, "failing_since": "2018-04-25T08:00:00"}, WELL),
        ({"state": "failing", "last_error": "sentinel: va answers 401"}, WELL),
    ],
)
def test_who_adopts_a_token_that_is_older_than_a_failure_at_liveperson_leaves_that_told(
    told: dict[str, str], expected: dict[str, str | None] | None
) -> None:
    # an operator's refresh was refused, and seconds later --status said that all was well
    adopted = replace(after(Result.ADOPTED), token=app_jwt(ISSUED))
    assert news(adopted, told, ISSUED) == expected
    assert news(replace(adopted, result=Result.UNCHANGED), told, ISSUED) == WELL


@pytest.mark.parametrize(
    ("error", "state"), [(AccountDisabledError(), State.DISABLED), (AccountGoneError("404"), State.REMOVED)]
)
def test_who_is_to_have_no_token_is_told_once(error: RefreshError, state: State) -> None:
    outcome = after(Result.SKIPPED, error)
    assert news(outcome, BEFORE, ISSUED) == {"state": state, "last_error": None, "failing_since": None}
    assert news(outcome, {"state": state}, ISSUED) is None


def test_of_an_account_that_never_was_nothing_is_told() -> None:
    gone = after(Result.SKIPPED, AccountGoneError("404"))
    assert news(gone, {}, ISSUED) is None
    assert news(gone, {"managed_by": "appjwt-worker"}, ISSUED) is not None


@pytest.mark.parametrize(
    "outcome",
    [
        after(error=ForeignSecretError("not ours")),
        after(Result.SKIPPED),
        after(Result.SKIPPED, reason=Reason.DUE),
        after(error=RefreshError(Stage.VAULT, Kind.TRANSIENT, "connection refused")),
        after(error=RefreshError(Stage.CREDENTIALS, Kind.TRANSIENT, "status 503", status=503)),
    ],
    ids=["foreign", "skipped", "looked at", "vault is away", "credentials cannot be read"],
)
@pytest.mark.parametrize("told", [{}, BEFORE, {"state": "disabled"}])
def test_nothing_is_told_where_nothing_is_known_or_may_be_said(outcome: Outcome, told: dict[str, str]) -> None:
    assert news(outcome, told, ISSUED) is None


def test_that_the_secret_before_the_newest_serves_is_told_until_the_newest_does() -> None:
    serves = {"state": "ok", "last_error": PREVIOUS_USED, "failing_since": None}
    told = {"state": "ok", "last_error": PREVIOUS_USED}
    refreshed = after(Result.REFRESHED)
    assert news(replace(refreshed, previous_used=True), {}, ISSUED) == serves
    assert news(replace(refreshed, previous_used=True), told, ISSUED) is None
    assert news(after(Result.ADOPTED), told, ISSUED) is None
    assert news(refreshed, told, ISSUED) == WELL
