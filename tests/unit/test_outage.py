"""Vault's errors are judged in one place: by exchanges, by the list, and by the refusals of attempts."""

import pytest
from structlog.testing import capture_logs

from worker.core.errors import InternalError, InvalidAccountError, Kind, RefreshError, Stage, UnmanagedSecretError
from worker.core.outcome import Outcome, Result
from worker.vault.errors import VaultError
from worker.vault.outage import Outage, Use

DENIED = VaultError("write_token secret/le1: status 403, permission denied", status=403)


@pytest.fixture
def outage() -> Outage:
    return Outage("https://vault", lambda: 100.0)


def fail(outage: Outage, account: str, error: RefreshError = DENIED, accounts: int = 9) -> None:
    outage.record_attempt(Outcome(account, Result.FAILED, 0.1, error=error), accounts)


def succeed(outage: Outage, account: str, result: Result = Result.REFRESHED) -> None:
    outage.record_attempt(Outcome(account, result, 0.1), 9)


def test_what_two_accounts_are_refused_while_none_is_refreshed_is_vaults_trouble(outage: Outage) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            fail(outage, "le1")
            assert outage.error is None
        fail(outage, "le2")
        fail(outage, "le3")
        assert outage.error == str(DENIED)
        succeed(outage, "le4")
        assert outage.error is None
    assert [(line["event"], line["address"]) for line in logs] == [
        ("vault.unavailable", "https://vault"),
        ("vault.recovered", "https://vault"),
    ]


def test_what_the_only_account_is_refused_is_vaults_trouble(outage: Outage) -> None:
    fail(outage, "le1", accounts=1)
    assert outage.error == str(DENIED)


def test_a_success_in_between_shows_that_the_refused_accounts_are_refused_for_themselves(outage: Outage) -> None:
    for account in ("le1", "le2", "le1", "le2"):
        fail(outage, account)
        succeed(outage, "le3")
        assert outage.error is None


def test_accounts_that_were_refused_for_themselves_do_not_count_again_until_they_succeed(outage: Outage) -> None:
    """With two of them among four healthy ones the alert fired fifty times a day."""
    for account in ("le1", "le2"):
        fail(outage, account)
    succeed(outage, "le3")
    for account in ("le1", "le2", "le1", "le2"):
        fail(outage, account)
        assert outage.error is None
    fail(outage, "le3")
    assert outage.error is None
    fail(outage, "le4")
    assert outage.error == str(DENIED)
    succeed(outage, "le3")
    succeed(outage, "le1", Result.ADOPTED)
    for account in ("le1", "le5"):
        assert outage.error is None
        fail(outage, account)
    assert outage.error == str(DENIED)


def test_where_all_others_are_refused_for_themselves_the_last_one_counts_alone(outage: Outage) -> None:
    for account in ("le1", "le2"):
        fail(outage, account, accounts=3)
    succeed(outage, "le3")
    fail(outage, "le3", accounts=3)
    assert outage.error == str(DENIED)


def test_an_account_that_fails_by_something_else_is_not_refused_any_more(outage: Outage) -> None:
    for account in ("le1", "le2"):
        fail(outage, account)
    for account in ("le1", "le2"):
        assert outage.error == str(DENIED)
        fail(outage, account, RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "va answers 503", status=503))
    assert outage.error is None


def test_a_token_that_is_adopted_shows_that_its_account_is_not_refused_any_more(outage: Outage) -> None:
    for account in ("le1", "le2"):
        fail(outage, account)
    succeed(outage, "le3", Result.ADOPTED)
    succeed(outage, "le1", Result.ADOPTED)
    assert outage.error == str(DENIED)
    succeed(outage, "le2", Result.ADOPTED)
    assert outage.error is None


@pytest.mark.parametrize(
    "error",
    [
        InvalidAccountError("client_id: missing or empty"),
        UnmanagedSecretError("secret/le1 holds a secret that is not ours"),
        RefreshError(Stage.SENTINEL, Kind.PERMANENT, "va answers 401", status=401),
        VaultError("status 429", status=429),
        InternalError(KeyError("x")),
    ],
)
def test_what_is_wrong_with_the_accounts_or_elsewhere_is_not_vaults_trouble(
    error: RefreshError, outage: Outage
) -> None:
    for account in ("le1", "le2", "le3"):
        fail(outage, account, error)
    assert outage.error is None


def test_the_latest_error_of_what_fails_first_is_shown(outage: Outage) -> None:
    outage.record_failure(Use.READ, VaultError("status 503, sealed", status=503))
    outage.record_list(VaultError("list: status 503, sealed", status=503))
    outage.record_success(Use.READ)
    assert outage.error == "list: status 503, sealed"
    outage.record_list(VaultError("list: status 403", status=403))
    assert outage.error == "list: status 403"
    outage.record_list(None)
    assert outage.error is None
