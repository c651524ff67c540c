"""--status: the state of every account by what is stored, at the time of Vault's clock."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.builders import ABSENT, HOUR, ISSUED, app_jwt, make_token, stored_secret, token_of
from worker import status
from worker.core.errors import InvalidAccountError, Kind, RefreshError, Stage, UnmanagedSecretError
from worker.core.outcome import State
from worker.core.status import AccountStatus, Severity
from worker.core.unchecked import StoredSecret
from worker.vault.errors import LoginRefusedError, VaultError

HALF_WAY = ISSUED + HOUR / 2
PLANNED = "2018-04-25T08:21:10Z"
SINCE = "2018-04-25T08:00:00Z"


class Shelf:
    """Tokens, by account: what is stored there, or why it cannot be read. It takes no writes."""

    def __init__(self, stored: Mapping[str, StoredSecret | RefreshError]) -> None:
        self._stored = stored

    def read(self, name: str) -> StoredSecret:
        found = self._stored[name]
        if isinstance(found, RefreshError):
            raise found
        return found


def stored(raw: str | None, *, refresh_at: str | None = PLANNED, **notes: str) -> StoredSecret:
    return stored_secret(raw, refresh_at=refresh_at, now=HALF_WAY, custom_metadata=notes)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def line_of(found: StoredSecret | RefreshError, pool: ThreadPoolExecutor) -> AccountStatus:
    (line,) = status.statuses(["a"], Shelf({"a": found}), pool)
    return line


def test_a_live_token_is_told_by_its_own_claims_and_by_vaults_clock(pool: ThreadPoolExecutor) -> None:
    token = app_jwt()
    line = line_of(stored(token.raw.get_secret_value()), pool)
    assert line.as_json() == {
        "account": "a",
        "state": "ok",
        "remaining": 1800.0,
        "margin": 1.0,
        "issued_at": "2018-04-25T07:51:10Z",
        "expires_at": "2018-04-25T08:51:10Z",
        "refresh_at": PLANNED,
        "fingerprint": token.fingerprint,
        "last_error": None,
        "failing_since": None,
    }
    assert line.is_served


def test_a_failing_account_is_well_as_long_as_its_token_lives(pool: ThreadPoolExecutor) -> None:
    line = line_of(stored(make_token(), state="failing", last_error="status 401", failing_since=SINCE), pool)
    assert (line.state, line.last_error, line.failing_since) == (State.FAILING, "status 401", SINCE)
    assert line.is_served


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (None, "there is no token"),
        (make_token(iss="Somebody"), "the stored token is not accepted: iss: expected Sentinel, got Somebody"),
        (make_token(azp=ABSENT), "the stored token is not accepted: format: expected a claim azp"),
        ("garbage", "the stored token is not accepted: format: not a compact JWS"),
    ],
)
def test_without_a_live_token_the_account_is_not_well_and_the_reason_is_told(
    raw: str | None, why: str, pool: ThreadPoolExecutor
) -> None:
    line = line_of(stored(raw), pool)
    assert (line.state, line.remaining, line.expires_at, line.fingerprint) == (State.FAILING, 0.0, None, None)
    assert (line.last_error or "").startswith(why)
    assert not line.is_served


@pytest.mark.parametrize(
    ("left", "last_error"),
    [
        (15, None),
        (14, "overdue: the worker's log says why"),
        (0, "expired: the worker's log says why"),
        (-5, "expired: the worker's log says why"),
    ],
)
def test_a_token_that_should_long_have_been_replaced_is_failing(
    left: int, last_error: str | None, pool: ThreadPoolExecutor
) -> None:
    end = HALF_WAY + timedelta(minutes=left)
    line = line_of(stored(token_of(end - HOUR), refresh_at=None), pool)
    assert (line.state, line.last_error) == (State.FAILING if last_error else State.OK, last_error)
    assert (line.remaining, line.expires_at) == (max(left, 0) * 60, end)
    assert line.is_served == (left > 0)


def test_what_the_worker_noted_says_more_than_that_there_is_no_token(pool: ThreadPoolExecutor) -> None:
    line = line_of(stored(None, state="invalid", last_error="client_id: missing", failing_since=SINCE), pool)
    assert (line.state, line.last_error, line.failing_since) == (State.INVALID, "client_id: missing", SINCE)
    assert not line.is_served


@pytest.mark.parametrize("state", ["disabled", "removed"])
def test_an_account_that_needs_no_token_is_well_without_one(state: str, pool: ThreadPoolExecutor) -> None:
    assert line_of(stored(None, state=state), pool).is_served


def test_a_state_that_does_not_exist_is_not_repeated(pool: ThreadPoolExecutor) -> None:
    assert line_of(stored(make_token(), state="splendid"), pool).state is State.OK
    assert line_of(stored(None, state="splendid"), pool).state is State.FAILING


@pytest.mark.parametrize("planned", [None, "", "soon", "0001-01-01T00:00:00+14:00", "2018-04-25T08:51:10Z"])
def test_without_a_plan_inside_the_lifetime_half_of_it_is_taken(planned: str | None, pool: ThreadPoolExecutor) -> None:
    assert line_of(stored(make_token(), refresh_at=planned), pool).refresh_at == HALF_WAY


def test_a_token_that_was_planned_late_is_no_trouble_shortly_before_that(pool: ThreadPoolExecutor) -> None:
    # refresh.at 0.8 with 25 % remaining was failing, and overdue three minutes before its refresh
    line = line_of(stored(token_of(HALF_WAY - HOUR * 3 / 4), refresh_at="2018-04-25T08:24:10Z"), pool)
    assert (line.state, line.severity, line.last_error, line.margin) == (State.OK, Severity.OK, None, 1.25)


def test_a_token_that_vault_deletes_early_is_rated_by_that(pool: ThreadPoolExecutor) -> None:
    end = HALF_WAY + HOUR / 8
    found = stored_secret(make_token(), refresh_at=PLANNED, now=HALF_WAY, deletion_time=end)
    line = line_of(found, pool)
    assert (line.expires_at, line.remaining, line.refresh_at) == (end, 450.0, HALF_WAY)
    gone_before = line_of(replace(found, deletion_time=HALF_WAY - HOUR / 8, now=ISSUED), pool)
    assert (gone_before.refresh_at, gone_before.margin) == (ISSUED + HOUR * 3 / 16, 2.0)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (UnmanagedSecretError("not ours", "vault kv metadata patch"), State.UNMANAGED),
        (InvalidAccountError("'a b': no name"), State.INVALID),
    ],
)
def test_what_can_never_be_read_is_a_state_of_its_own(
    error: RefreshError, state: State, pool: ThreadPoolExecutor
) -> None:
    line = line_of(error, pool)
    assert (line.state, line.remaining, line.last_error) == (state, 0.0, str(error))
    assert not line.is_served


def test_a_vault_that_does_not_answer_is_no_ones_state(pool: ThreadPoolExecutor) -> None:
    with pytest.raises(RefreshError, match="connection refused"):
        line_of(RefreshError(Stage.VAULT, Kind.TRANSIENT, "connection refused"), pool)


def test_the_most_urgent_comes_first(pool: ThreadPoolExecutor) -> None:
    lives = {"late": HOUR, "soon": timedelta(minutes=40), "b-none": None, "a-none": None}
    shelf = {
        name: stored(make_token(exp=int((ISSUED + life).timestamp())) if life else None) for name, life in lives.items()
    }
    lines = status.statuses(lives, Shelf(shelf), pool)
    assert [line.account for line in lines] == ["a-none", "b-none", "soon", "late"]


def test_what_vault_refuses_to_some_is_their_own_trouble_and_to_all_it_is_vaults(pool: ThreadPoolExecutor) -> None:
    refused = VaultError("read_token secret/a: status 403, permission denied", status=403)
    invalid = InvalidAccountError("its name is not allowed")
    lines = status.statuses("ab", Shelf({"a": refused, "b": stored(None)}), pool)
    assert {line.account: line.state for line in lines} == {"a": State.FAILING, "b": State.FAILING}
    assert lines[0].last_error == f"vault: {refused}"
    for others in ({}, {"b": refused}, {"b": invalid}):  # for an invalid name Vault is not asked
        with pytest.raises(VaultError) as caught:
            status.statuses(["a", *others], Shelf({"a": refused, **others}), pool)
        assert caught.value is refused


def test_a_login_that_is_refused_meanwhile_is_no_accounts_trouble(pool: ThreadPoolExecutor) -> None:
    refused = LoginRefusedError("approle login: status 400", status=400, kind=Kind.TRANSIENT)
    with pytest.raises(LoginRefusedError):
        status.statuses("ab", Shelf({"a": stored(None), "b": refused}), pool)
