"""The view of an account, and the status written to Vault: its text and its moment."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from tests.builders import ACCOUNT, HOUR, ISSUED, app_jwt, stored_secret, tracked
from worker.core.account import Absence
from worker.core.errors import (
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
    UnmanagedSecretError,
)
from worker.core.outcome import EarlyDeletion, Outcome, Result, State
from worker.core.plan import Reason
from worker.core.record import AccountRecord
from worker.core.status import (
    PREVIOUS_USED,
    AccountStatus,
    Severity,
    is_our_status,
    rate,
    rate_record,
    record_status,
    status_patch,
)

NOW: Final = "2018-04-25T07:51:10Z"
REFUSED = RefreshError(Stage.SENTINEL, Kind.PERMANENT, "va answers 401", status=401)
BEFORE: Final = {"state": "failing", "last_error": "sentinel: va answers 503", "failing_since": "2018-04-25T07:00:00Z"}
WELL: Final = {"state": "ok", "last_error": None, "failing_since": None}


def after(
    result: Result = Result.FAILED,
    error: RefreshError | None = None,
    reason: Reason | None = None,
    absence: Absence | None = None,
) -> Outcome:
    return Outcome(ACCOUNT, result, 0.1, reason=reason, error=error, absence=absence)


def patch(outcome: Outcome, current: Mapping[str, str]) -> dict[str, str | None] | None:
    """Return the patch after this outcome if the path's metadata is this."""
    return status_patch(outcome, stored_secret(custom_metadata=current))


def test_the_first_failure_is_told_with_its_cause_and_since_when() -> None:
    status = patch(after(error=REFUSED), {})
    assert status == {"state": "failing", "last_error": "sentinel: va answers 401", "failing_since": NOW}


def test_an_invalid_secret_is_told_as_such() -> None:
    status = patch(after(error=InvalidAccountError("client_id: missing")), {})
    assert status == {"state": "invalid", "last_error": "credentials: client_id: missing", "failing_since": NOW}


def test_a_failure_like_the_one_before_is_no_news() -> None:
    assert patch(after(error=REFUSED), BEFORE) is None


def test_a_failure_whose_cause_somebody_took_out_of_the_metadata_is_told_again() -> None:
    status = {"state": "failing", "failing_since": BEFORE["failing_since"]}
    assert patch(after(error=REFUSED), status) == {**status, "last_error": "sentinel: va answers 401"}


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RefreshError(Stage.DOMAIN, Kind.TRANSIENT, "no answer"), "failing"),
        (RefreshError(Stage.VAULT, Kind.PERMANENT, "no answer", status=403), "failing"),
        (InvalidAccountError("no answer"), "invalid"),
    ],
)
def test_another_cause_is_news_and_since_when_it_fails_stays(error: RefreshError, state: str) -> None:
    assert patch(after(error=error), BEFORE) == {
        "state": state,
        "last_error": f"{error.stage}: no answer",
        "failing_since": BEFORE["failing_since"],
    }


def test_what_is_told_fits_into_vaults_metadata() -> None:
    """Up to 512 bytes without control characters."""
    status = patch(after(error=RefreshError(Stage.SENTINEL, Kind.PERMANENT, "a\n\x1bß" + "ß" * 600)), {})
    assert status
    assert status["last_error"] == "sentinel: a  " + "ß" * 249
    assert len(str(status["last_error"]).encode()) == 511
    longest = patch(after(error=RefreshError(Stage.SENTINEL, Kind.PERMANENT, "x" * 600)), {})
    assert longest
    assert len(str(longest["last_error"])) == 512


@pytest.mark.parametrize("result", [Result.REFRESHED, Result.ADOPTED, Result.UNCHANGED])
@pytest.mark.parametrize(("status", "expected"), [(BEFORE, WELL), ({}, None), ({"state": "ok", "team": "a"}, None)])
def test_a_success_takes_back_what_was_told_and_else_says_nothing(
    result: Result, status: dict[str, str], expected: dict[str, str | None] | None
) -> None:
    assert patch(after(result), status) == expected


_SINCE: Final = {**BEFORE, "failing_since": "2018-04-25T07:51:11Z"}
"""Failed after the token was issued."""


@pytest.mark.parametrize(
    ("status", "expected"),
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
    status: dict[str, str], expected: dict[str, str | None] | None
) -> None:
    # an operator's refresh was refused, and seconds later --status reported that all was well
    adopted = replace(after(Result.ADOPTED), token=app_jwt())
    assert patch(adopted, status) == expected
    assert patch(replace(adopted, result=Result.UNCHANGED), status) == WELL


@pytest.mark.parametrize(("absence", "state"), [(Absence.DISABLED, State.DISABLED), (Absence.REMOVED, State.REMOVED)])
def test_who_is_to_have_no_token_is_told_once(absence: Absence, state: State) -> None:
    outcome = after(Result.ABSENT, absence=absence)
    assert patch(outcome, BEFORE) == {"state": state, "last_error": None, "failing_since": None}
    assert patch(outcome, {"state": state}) is None


def test_of_an_account_that_never_was_nothing_is_told() -> None:
    removed = after(Result.ABSENT, absence=Absence.REMOVED)
    assert patch(removed, {}) is None
    assert patch(removed, {"managed_by": "appjwt-worker"}) is not None


@pytest.mark.parametrize(
    "outcome",
    [
        after(error=UnmanagedSecretError("not ours")),
        after(Result.NOT_EXPIRING),
        after(Result.WOULD_REFRESH, reason=Reason.DUE),
        after(Result.DUE, reason=Reason.DUE),
        after(error=RefreshError(Stage.VAULT, Kind.TRANSIENT, "connection refused")),
        after(error=RefreshError(Stage.CREDENTIALS, Kind.TRANSIENT, "status 503", status=503)),
    ],
    ids=["unmanaged", "not expiring", "dry run", "looked at", "vault is away", "credentials cannot be read"],
)
@pytest.mark.parametrize("status", [{}, BEFORE, {"state": "disabled"}])
def test_nothing_is_told_where_nothing_is_known_or_may_be_said(outcome: Outcome, status: dict[str, str]) -> None:
    assert patch(outcome, status) is None


def test_that_the_secret_before_the_newest_serves_is_told_until_the_newest_does() -> None:
    serves = {"state": "ok", "last_error": PREVIOUS_USED, "failing_since": None}
    status = {"state": "ok", "last_error": PREVIOUS_USED}
    refreshed = after(Result.REFRESHED)
    assert patch(replace(refreshed, previous_used=True), {}) == serves
    assert patch(replace(refreshed, previous_used=True), status) is None
    assert patch(after(Result.ADOPTED), status) is None
    assert patch(refreshed, status) == WELL


# A Vault that deletes what it is given


def deleted(after: timedelta, **fields: object) -> Outcome:
    """Return a success whose token Vault deletes so long after it was issued."""
    deletion = EarlyDeletion(ISSUED + after, ISSUED + HOUR, "vault x")
    return Outcome(ACCOUNT, Result.REFRESHED, 0.1, early_deletion=deletion, **fields)  # type: ignore[arg-type]


DELETED: Final = {
    "state": "failing",
    "last_error": "vault: Vault deletes the token at 2018-04-25T07:51:20Z, before it expires: vault x",
    "failing_since": NOW,
}


def test_a_token_that_vault_deletes_before_it_expires_is_told_as_failing_and_once() -> None:
    assert patch(deleted(timedelta(seconds=10)), {}) == DELETED
    assert patch(deleted(timedelta(seconds=40)), DELETED) is None
    assert patch(after(Result.REFRESHED), DELETED) == WELL


def test_a_deletion_by_vault_is_told_where_another_failure_of_vault_was() -> None:
    status = {**BEFORE, "last_error": "vault: write_token a: status 403"}
    assert patch(deleted(timedelta(seconds=10)), status) == {**DELETED, "failing_since": BEFORE["failing_since"]}


def test_a_token_that_vault_deletes_after_it_expired_is_well() -> None:
    assert patch(deleted(HOUR), {}) is None
    assert patch(deleted(HOUR), DELETED) == WELL


# Whose state it is


@pytest.mark.parametrize("status", [BEFORE, DELETED, {"state": "ok"}, {"state": "ok", "last_error": PREVIOUS_USED}])
def test_a_state_as_the_worker_writes_it_is_ours(status: dict[str, str]) -> None:
    assert is_our_status({"owner": "the chat team", **status})


@pytest.mark.parametrize(
    "status",
    [{}, {"owner": "x"}, {"state": "done"}, {"state": "failing"}, {**BEFORE, "state": "ok"}, {"last_error": "x"}],
)
def test_a_state_as_the_worker_never_writes_it_is_another_s(status: dict[str, str]) -> None:
    assert not is_our_status(status)


# The view of an account

WINDOW: Final = 1800.0
"""Seconds from the planned refresh of an hour's token to its expiry, at refresh.at 0.5."""


def status_of(state: State = State.OK, remaining: float = WINDOW, *, expires: bool = True) -> AccountStatus:
    """Return the view of an account whose token has so many seconds left of an hour."""
    end = ISSUED + HOUR if expires else None
    planned = ISSUED + HOUR / 2 if expires else None
    return AccountStatus.of(
        ACCOUNT, state, remaining=remaining, issued_at=ISSUED, expires_at=end, refresh_at=planned, fingerprint="f"
    )


@pytest.mark.parametrize(
    ("remaining", "margin", "severity", "state", "error"),
    [
        (3600.0, 2.0, Severity.OK, State.OK, None),
        (1800.0, 1.0, Severity.OK, State.OK, None),
        (900.0, 0.5, Severity.OK, State.OK, None),
        (899.1, 0.4995, Severity.WARNING, State.FAILING, "overdue: the worker's log says why"),
        (360.0, 0.2, Severity.WARNING, State.FAILING, "overdue: the worker's log says why"),
        (359.1, 0.1995, Severity.CRITICAL, State.FAILING, "overdue: the worker's log says why"),
        (0.0, 0.0, Severity.CRITICAL, State.FAILING, "expired: the worker's log says why"),
    ],
)
def test_an_account_is_rated_by_the_time_from_its_planned_refresh_to_its_expiry(
    remaining: float, margin: float, severity: Severity, state: State, error: str | None
) -> None:
    status = status_of(remaining=remaining)
    assert (status.margin, status.severity, status.state, status.last_error) == (margin, severity, state, error)


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8, 0.9])
def test_until_its_planned_refresh_no_token_is_in_danger_whatever_refresh_at_is(fraction: float) -> None:
    window = 3600 * (1 - fraction)
    assert rate(State.OK, window, window) == (State.OK, 1.0)
    assert rate(State.OK, window * 0.49, window)[0] is State.FAILING


@pytest.mark.parametrize("state", [State.FAILING, State.INVALID, State.UNMANAGED])
def test_a_state_that_says_more_than_failing_stays_and_its_token_is_rated(state: State) -> None:
    assert status_of(state, 300.0).state is state
    assert status_of(state, 300.0).severity is Severity.CRITICAL
    assert status_of(state, 0.0, expires=False).margin == (0.0 if state is State.FAILING else None)
    assert status_of(state, 0.0, expires=False).last_error is None


@pytest.mark.parametrize("state", [State.DISABLED, State.REMOVED])
def test_an_account_that_needs_no_token_is_in_no_danger(state: State) -> None:
    status = status_of(state, 0.0)
    assert (status.state, status.margin, status.severity, status.last_error) == (state, None, Severity.OK, None)
    assert status.is_served
    assert not status_of(State.INVALID, 0.0).is_served
    assert status_of(State.INVALID, 1.0).is_served


def test_the_view_as_json_has_seconds_and_utc() -> None:
    assert status_of(remaining=599.9996).as_json() == {
        "account": ACCOUNT,
        "state": "failing",
        "remaining": 600.0,
        "margin": 0.333,
        "issued_at": NOW,
        "expires_at": "2018-04-25T08:51:10Z",
        "refresh_at": "2018-04-25T08:21:10Z",
        "fingerprint": "f",
        "last_error": "overdue: the worker's log says why",
        "failing_since": None,
    }
    nothing = AccountStatus(ACCOUNT, State.DISABLED, 0.0, None).as_json()
    assert (nothing["margin"], nothing["expires_at"]) == (None, None)


VAULT_NOW: Final = datetime(2027, 1, 15, 8, tzinfo=UTC)
"""Vault's clock at the steady moment 100, at which `tracked` counts."""


@pytest.mark.parametrize(
    ("record", "state", "margin"),
    [
        (AccountRecord("a"), State.OK, None),
        (AccountRecord("a", tracked=tracked(900.0, planned_in=-900.0)), State.OK, 0.5),
        (AccountRecord("a", tracked=tracked(720.0, planned_in=-1080.0)), State.FAILING, 0.4),
        (AccountRecord("a", State.FAILING), State.FAILING, 0.0),
        (AccountRecord("a", State.DISABLED, tracked=tracked(900.0)), State.DISABLED, None),
    ],
)
def test_the_metrics_and_the_page_rate_alike(record: AccountRecord, state: State, margin: float | None) -> None:
    assert rate_record(record, 100.0) == (state, margin)
    status = record_status(record, 100.0, VAULT_NOW)
    assert (status.state, status.margin) == (state, margin)


def test_a_known_account_is_shown_by_vaults_clock() -> None:
    record = AccountRecord("a", State.FAILING, tracked(1800.0), last_error="vault: no answer", failing_since=40.0)
    assert record_status(record, 100.0, VAULT_NOW).as_json() == {
        "account": "a",
        "state": "failing",
        "remaining": 1800.0,
        "margin": 1.5,
        "issued_at": "2027-01-15T07:30:00Z",
        "expires_at": "2027-01-15T08:30:00Z",
        "refresh_at": "2027-01-15T08:10:00Z",
        "fingerprint": "f" * 16,
        "last_error": "vault: no answer",
        "failing_since": "2027-01-15T07:59:00Z",
    }
