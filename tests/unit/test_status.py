"""--status: how every account stands by what is stored, as Vault's clock has it."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta

import pytest
from pydantic import SecretStr

from tests.builders import ABSENT, HOUR, ISSUED, app_jwt, make_token, token_of
from worker import status
from worker.core.appjwt import utc
from worker.core.errors import ForeignSecretError, InvalidAccountError, Kind, RefreshError, Stage
from worker.core.outcome import State
from worker.core.unchecked import Stored
from worker.status import Line

HALF_WAY = ISSUED + HOUR / 2
PLANNED = "2018-04-25T08:21:10Z"
SINCE = "2018-04-25T08:00:00Z"


class Shelf:
    """Tokens, by account: what is stored there, or why it cannot be read. It takes no writes."""

    def __init__(self, stored: Mapping[str, Stored | RefreshError]) -> None:
        self._stored = stored

    def read(self, name: str) -> Stored:
        found = self._stored[name]
        if isinstance(found, RefreshError):
            raise found
        return found


def stored(raw: str | None, *, refresh_at: str | None = PLANNED, **notes: str) -> Stored:
    return Stored(
        version=1 if raw else 0,
        raw=SecretStr(raw) if raw else None,
        host=None,
        refresh_at=refresh_at,
        marked=True,
        kept_for=2 * HOUR,
        now=HALF_WAY,
        notes=notes,
    )


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def line_of(found: Stored | RefreshError, pool: ThreadPoolExecutor) -> Line:
    (line,) = status.lines(["a"], Shelf({"a": found}), pool)
    return line


def test_a_live_token_is_told_by_its_own_claims_and_by_vaults_clock(pool: ThreadPoolExecutor) -> None:
    token = app_jwt()
    line = line_of(stored(token.raw.get_secret_value()), pool)
    assert asdict(line) == {
        "account": "a",
        "state": "ok",
        "life_left": 1800.0,
        "issued_at": "2018-04-25T07:51:10Z",
        "expires_at": "2018-04-25T08:51:10Z",
        "refresh_at": PLANNED,
        "fingerprint": token.fingerprint,
        "last_error": None,
        "failing_since": None,
    }
    assert line.is_well


def test_a_failing_account_is_well_as_long_as_its_token_lives(pool: ThreadPoolExecutor) -> None:
    line = line_of(stored(make_token(), state="failing", last_error="status 401", failing_since=SINCE), pool)
    assert (line.state, line.last_error, line.failing_since) == (State.FAILING, "status 401", SINCE)
    assert line.is_well


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (None, "there is no token"),
        (make_token(iss="Somebody"), "the stored token is not accepted: iss: expected Sentinel, got Somebody"),
        (make_token(azp=ABSENT), "the stored token is not accepted: format: expected a claim azp"),
        ("garbage", "the stored token is not accepted: format: expected three base64url parts"),
    ],
)
def test_without_a_live_token_the_account_is_not_well_and_the_reason_is_told(
    raw: str | None, why: str, pool: ThreadPoolExecutor
) -> None:
    line = line_of(stored(raw), pool)
    assert (line.state, line.life_left, line.expires_at, line.fingerprint) == (State.FAILING, 0.0, None, None)
    assert (line.last_error or "").startswith(why)
    assert not line.is_well


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (20, None),
        (17, "overdue: the worker's log says why"),
        (0, "ended: the worker's log says why"),
        (-5, "ended: the worker's log says why"),
    ],
)
def test_a_token_that_should_long_have_been_replaced_is_failing(
    left: int, told: str | None, pool: ThreadPoolExecutor
) -> None:
    end = HALF_WAY + timedelta(minutes=left)
    line = line_of(stored(token_of(end - HOUR)), pool)
    assert (line.state, line.last_error) == (State.FAILING if told else State.OK, told)
    assert (line.life_left, line.expires_at) == (max(left, 0) * 60, utc(end))
    assert line.is_well == (left > 0)


def test_what_the_worker_noted_says_more_than_that_there_is_no_token(pool: ThreadPoolExecutor) -> None:
    line = line_of(stored(None, state="invalid", last_error="client_id: missing", failing_since=SINCE), pool)
    assert (line.state, line.last_error, line.failing_since) == (State.INVALID, "client_id: missing", SINCE)
    assert not line.is_well


@pytest.mark.parametrize("state", ["disabled", "removed"])
def test_an_account_that_needs_no_token_is_well_without_one(state: str, pool: ThreadPoolExecutor) -> None:
    assert line_of(stored(None, state=state), pool).is_well


def test_a_state_that_does_not_exist_is_not_repeated(pool: ThreadPoolExecutor) -> None:
    assert line_of(stored(make_token(), state="splendid"), pool).state is State.OK
    assert line_of(stored(None, state="splendid"), pool).state is State.FAILING


@pytest.mark.parametrize("planned", [None, "", "soon", "0001-01-01T00:00:00+14:00"])
def test_a_plan_that_is_no_moment_is_left_out(planned: str | None, pool: ThreadPoolExecutor) -> None:
    assert line_of(stored(make_token(), refresh_at=planned), pool).refresh_at is None


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ForeignSecretError("not ours", "vault kv metadata patch"), State.FOREIGN),
        (InvalidAccountError("'a b': no name"), State.INVALID),
    ],
)
def test_what_can_never_be_read_is_a_state_of_its_own(
    error: RefreshError, state: State, pool: ThreadPoolExecutor
) -> None:
    line = line_of(error, pool)
    assert (line.state, line.life_left, line.last_error) == (state, 0.0, str(error))
    assert not line.is_well


def test_a_vault_that_does_not_answer_is_no_ones_state(pool: ThreadPoolExecutor) -> None:
    with pytest.raises(RefreshError, match="connection refused"):
        line_of(RefreshError(Stage.VAULT, Kind.TRANSIENT, "connection refused"), pool)


def test_the_most_urgent_comes_first(pool: ThreadPoolExecutor) -> None:
    lives = {"late": HOUR, "soon": timedelta(minutes=40), "b-none": None, "a-none": None}
    shelf = {
        name: stored(make_token(exp=int((ISSUED + life).timestamp())) if life else None) for name, life in lives.items()
    }
    lines = status.lines(lives, Shelf(shelf), pool)
    assert [line.account for line in lines] == ["a-none", "b-none", "soon", "late"]
