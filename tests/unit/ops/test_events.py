"""The log lines about an attempt, as whole dicts: people write alerts against their names and fields."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.builders import ACCOUNT, CLIENT_ID, HOUR, ISSUED, SAMPLE, app_jwt
from tests.unit.ops.log import Log
from worker.core import plan
from worker.core.appjwt import Check, TokenRefusedError
from worker.core.errors import (
    AccountDisabledError,
    AccountGoneError,
    ForeignSecretError,
    InternalError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
)
from worker.core.outcome import Next, Outcome, Result, State
from worker.core.plan import Reason, Timing
from worker.ops.events import Events

NOW = 5000.0
"""The steady clock."""
TOKEN = app_jwt()
HELD = plan.hold(ACCOUNT, TOKEN, server_now=ISSUED, at=NOW, timing=Timing(0.5, 0.0, "one"))


PATH = f"secret/liveperson/tokens/{ACCOUNT}"


def report(outcome: Outcome, following: Next) -> None:
    Events(clock=lambda: NOW, vault_path=lambda name: f"secret/liveperson/tokens/{name}").report(outcome, following)


def ended(result: Result, **fields: Any) -> Outcome:
    return Outcome(ACCOUNT, result, 0.1234567, **fields)


def after(
    state: State = State.OK,
    before: State = State.OK,
    *,
    failures: int = 0,
    left: float = 3600.0,
    kind: Kind | None = None,
) -> Next:
    return Next(before, state, failures, left, kind, NOW + 60)


def test_a_refreshed_token_is_told_with_all_the_contract_names(log: Log) -> None:
    outcome = ended(
        Result.REFRESHED,
        reason=Reason.DUE,
        account_id=ACCOUNT,
        host="va.sentinel.liveperson.net",
        token=TOKEN,
        held=HELD,
        version=7,
        left_at_replacement=1800.98765,
    )
    report(outcome, after())
    assert log.only_line() == {
        "level": "info",
        "event": "token.refreshed",
        "account": ACCOUNT,
        "account_id": ACCOUNT,
        "host": "va.sentinel.liveperson.net",
        "reason": "due",
        "kid": "appjwt-13-05-17",
        "alg": "RS256",
        "aud": ACCOUNT,
        "azp": CLIENT_ID,
        "scope": "msg.consumer",
        "iss": "Sentinel",
        "iat": 1524642670,
        "exp": 1524646270,
        "issued_at": "2018-04-25T07:51:10Z",
        "expires_at": "2018-04-25T08:51:10Z",
        "refresh_at": "2018-04-25T08:21:10Z",
        "fingerprint": TOKEN.fingerprint,
        "vault_path": f"secret/liveperson/tokens/{ACCOUNT}",
        "vault_version": 7,
        "life_left_at_replacement": 1800.988,
        "duration": 0.123,
    }


@pytest.mark.parametrize(
    ("result", "event"), [(Result.ADOPTED, "token.adopted"), (Result.UNCHANGED, "token.unchanged")]
)
def test_a_token_that_was_not_replaced_is_told_without_what_was_not_found_out(
    result: Result, event: str, log: Log
) -> None:
    report(ended(result, token=TOKEN, held=HELD, version=7), after())
    line = log.only_line()
    assert (line["event"], line["level"], line["fingerprint"]) == (event, "info", TOKEN.fingerprint)
    assert not {"reason", "account_id", "host", "life_left_at_replacement"} & line.keys()


def test_the_planned_refresh_is_told_by_the_tokens_own_times(log: Log) -> None:
    """The plan is on the steady clock; people compare it with iat and exp."""
    late = plan.hold(ACCOUNT, TOKEN, server_now=ISSUED + HOUR / 2, at=NOW, timing=Timing(0.75, 0.0, "one"))
    report(ended(Result.ADOPTED, token=TOKEN, held=late), after())
    assert log.only_line()["refresh_at"] == "2018-04-25T08:36:10Z"


def test_a_failed_attempt_is_told_with_all_the_contract_names(log: Log) -> None:
    error = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "va answers 503: busy", status=503)
    before = datetime.now(UTC).replace(microsecond=0)
    outcome = ended(Result.FAILED, reason=Reason.DUE, host="va.sentinel.liveperson.net", error=error)
    report(outcome, after(State.FAILING, State.FAILING, failures=3, left=1234.56789, kind=Kind.LASTING))
    line = log.only_line()
    next_attempt = datetime.fromisoformat(line.pop("next_attempt")) - timedelta(seconds=60)
    assert before <= next_attempt <= datetime.now(UTC)
    assert line == {
        "level": "error",
        "event": "refresh.failed",
        "account": ACCOUNT,
        "host": "va.sentinel.liveperson.net",
        "stage": "sentinel",
        "kind": "lasting",
        "reason": "due",
        "status": 503,
        "error": "va answers 503: busy",
        "failures": 3,
        "life_left": 1234.568,
    }


def test_a_refused_token_is_told_with_the_check_that_refused_it(log: Log) -> None:
    error = TokenRefusedError(Check.AZP, CLIENT_ID, "another")
    report(
        ended(Result.FAILED, error=error),
        after(State.FAILING, State.FAILING, failures=1, left=0.0, kind=Kind.LASTING),
    )
    line = log.only_line()
    del line["next_attempt"]
    assert line == {
        "level": "error",
        "event": "refresh.failed",
        "account": ACCOUNT,
        "stage": "claims",
        "kind": "lasting",
        "check": "azp",
        "error": f"azp: expected {CLIENT_ID}, got another",
        "failures": 1,
        "life_left": 0.0,
    }


def test_a_bug_of_ours_is_told_with_its_traceback(log: Log) -> None:
    error = InternalError(ZeroDivisionError(f"with {SAMPLE}"))
    report(ended(Result.FAILED, error=error), after(State.FAILING, State.FAILING, failures=1))
    line = log.only_line()
    assert line["error"] == "internal error: ZeroDivisionError"
    assert line["exception"] == "ZeroDivisionError: with [redacted]"


@pytest.mark.parametrize(
    ("error", "state", "line"),
    [
        (
            InvalidAccountError("client_id: missing or empty"),
            State.INVALID,
            {
                "level": "error",
                "event": "account.invalid",
                "account": ACCOUNT,
                "error": "client_id: missing or empty",
            },
        ),
        (
            AccountGoneError("there is no secret"),
            State.REMOVED,
            {"level": "info", "event": "account.removed", "account": ACCOUNT},
        ),
        (
            AccountDisabledError(),
            State.DISABLED,
            {"level": "info", "event": "account.changed", "account": ACCOUNT, "state": "disabled"},
        ),
    ],
)
def test_a_change_of_state_has_a_line_of_its_own_and_only_once(
    error: RefreshError, state: State, line: dict[str, Any], log: Log
) -> None:
    result = Result.FAILED if state is State.INVALID else Result.SKIPPED
    report(ended(result, error=error), after(state, State.OK))
    *rest, last = log.lines
    assert [each["event"] for each in rest] == (["refresh.failed"] if result is Result.FAILED else [])
    del last["timestamp"]
    assert last == line
    log.set_up()
    report(ended(result, error=error), after(state, state))
    assert line["event"] not in [each["event"] for each in log.lines]


@pytest.mark.parametrize("state", [State.FAILING, State.FOREIGN])
def test_where_the_failure_says_it_the_change_of_state_has_no_line(state: State, log: Log) -> None:
    report(ended(Result.FAILED, error=ForeignSecretError("not ours")), after(state, State.OK))
    assert log.only_line()["event"] == "refresh.failed"


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (State.FAILING, {"event": "account.recovered"}),
        (State.INVALID, {"event": "account.recovered"}),
        (State.FOREIGN, {"event": "account.recovered"}),
        (State.DISABLED, {"event": "account.changed", "state": "ok"}),
        (State.REMOVED, {"event": "account.added"}),
    ],
)
def test_that_all_is_well_again_is_told_once_behind_what_brought_it(
    before: State, told: dict[str, Any], log: Log
) -> None:
    """FIELD trap 3: a state that stays failed after recovery."""
    report(ended(Result.REFRESHED, token=TOKEN, held=HELD, version=1), after(State.OK, before))
    refreshed, line = log.lines
    assert refreshed["event"] == "token.refreshed"
    del line["timestamp"]
    assert line == {"level": "info", "account": ACCOUNT, **told}


PREVIOUS = "Sentinel refuses the newest client_secret; the one before it serves, for 24 h after the change"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"reason": Reason.DRIFT}, {"event": "token.repaired", "what": "token", "vault_path": PATH}),
        ({"restored": True}, {"event": "token.repaired", "what": "metadata", "vault_path": PATH}),
        ({"previous_used": True, "host": "va"}, {"event": "credentials.previous_used", "host": "va", "hint": PREVIOUS}),
    ],
)
def test_what_somebody_should_look_at_has_a_warning_of_its_own(
    found: dict[str, Any], told: dict[str, Any], log: Log
) -> None:
    report(ended(Result.REFRESHED, token=TOKEN, held=HELD, version=1, **found), after())
    _, line = log.lines
    del line["timestamp"]
    assert line == {"level": "warning", "account": ACCOUNT, **told}
