"""The log lines about an attempt, as whole dicts: people write alerts against their names and fields."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.builders import ACCOUNT, CLIENT_ID, HOUR, ISSUED, SAMPLE, app_jwt
from tests.unit.ops.log import Log
from worker.core import plan
from worker.core.account import Absence
from worker.core.appjwt import Check
from worker.core.errors import (
    InternalError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
    UnmanagedSecretError,
)
from worker.core.outcome import EarlyDeletion, Outcome, Result, State, Transition
from worker.core.plan import Reason, RefreshPolicy
from worker.ops.events import Events

NOW = 5000.0
"""The steady clock."""
TOKEN = app_jwt()
TRACKED = plan.schedule_token(ACCOUNT, TOKEN, server_now=ISSUED, at=NOW, policy=RefreshPolicy(0.5, 0.0, "one"))


PATH = f"secret/liveperson/tokens/{ACCOUNT}"


def report(outcome: Outcome, transition: Transition) -> None:
    Events(clock=lambda: NOW, vault_path=lambda name: f"secret/liveperson/tokens/{name}").report(outcome, transition)


def ended(result: Result, **fields: Any) -> Outcome:
    return Outcome(ACCOUNT, result, 0.1234567, **fields)


def after(
    state: State = State.OK,
    previous_state: State = State.OK,
    *,
    failures: int = 0,
    left: float = 3600.0,
    kind: Kind | None = None,
) -> Transition:
    return Transition(previous_state, state, failures, left, kind, NOW + 60)


def test_a_refreshed_token_is_logged_with_all_its_fields(log: Log) -> None:
    outcome = ended(
        Result.REFRESHED,
        reason=Reason.DUE,
        account_id=ACCOUNT,
        host="va.sentinel.liveperson.net",
        token=TOKEN,
        tracked=TRACKED,
        version=7,
        vault_request_id="c501965a",
        remaining_at_refresh=1800.98765,
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
        "typ": "JWT",
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
        "vault_request_id": "c501965a",
        "remaining_at_refresh": 1800.988,
        "duration": 0.123,
    }


@pytest.mark.parametrize(
    ("result", "event"), [(Result.ADOPTED, "token.adopted"), (Result.UNCHANGED, "token.unchanged")]
)
def test_a_token_that_was_not_replaced_is_told_without_what_was_not_found_out(
    result: Result, event: str, log: Log
) -> None:
    report(ended(result, token=TOKEN, tracked=TRACKED, version=7), after())
    line = log.only_line()
    assert (line["event"], line["level"], line["fingerprint"]) == (event, "info", TOKEN.fingerprint)
    assert not {"reason", "account_id", "host", "remaining_at_refresh"} & line.keys()


def test_the_planned_refresh_is_told_by_the_tokens_own_times(log: Log) -> None:
    """The plan is on the steady clock; people compare it with iat and exp."""
    late = plan.schedule_token(
        ACCOUNT, TOKEN, server_now=ISSUED + HOUR / 2, at=NOW, policy=RefreshPolicy(0.75, 0.0, "one")
    )
    report(ended(Result.ADOPTED, token=TOKEN, tracked=late), after())
    assert log.only_line()["refresh_at"] == "2018-04-25T08:36:10Z"


def test_the_planned_refresh_of_a_token_that_vault_deletes_early_is_that_of_the_plan(log: Log) -> None:
    """Counted from `exp` it was reported as an hour later."""
    shortened = plan.schedule_token(
        ACCOUNT,
        TOKEN,
        server_now=ISSUED,
        at=NOW,
        policy=RefreshPolicy(0.5, 0.0, "one"),
        deletion_time=ISSUED + timedelta(minutes=10),
    )
    report(ended(Result.REFRESHED, token=TOKEN, tracked=shortened), after())
    assert log.only_line()["refresh_at"] == "2018-04-25T07:56:10Z"


def test_a_failed_attempt_is_logged_with_all_its_fields(log: Log) -> None:
    error = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "va answers 503: busy", status=503)
    before = datetime.now(UTC).replace(microsecond=0)
    host = "va.sentinel.liveperson.net"
    outcome = ended(Result.FAILED, reason=Reason.DUE, account_id="12345678", host=host, error=error)
    report(outcome, after(State.FAILING, State.FAILING, failures=3, left=1234.56789, kind=Kind.PERMANENT))
    line = log.only_line()
    next_attempt = datetime.fromisoformat(line.pop("next_attempt")) - timedelta(seconds=60)
    assert before <= next_attempt <= datetime.now(UTC)
    assert line == {
        "level": "error",
        "event": "refresh.failed",
        "account": ACCOUNT,
        "account_id": "12345678",
        "host": "va.sentinel.liveperson.net",
        "stage": "sentinel",
        "kind": "permanent",
        "reason": "due",
        "status": 503,
        "error": "va answers 503: busy",
        "failures": 3,
        "remaining": 1234.568,
    }


def test_a_refused_token_is_told_with_the_check_that_refused_it(log: Log) -> None:
    text = f"azp: expected {CLIENT_ID}, got another"
    error = RefreshError(Stage.CLAIMS, Kind.PERMANENT, text, check=Check.AZP)
    report(
        ended(Result.FAILED, error=error),
        after(State.FAILING, State.FAILING, failures=1, left=0.0, kind=Kind.PERMANENT),
    )
    line = log.only_line()
    del line["next_attempt"]
    assert line == {
        "level": "error",
        "event": "refresh.failed",
        "account": ACCOUNT,
        "account_id": None,
        "stage": "claims",
        "kind": "permanent",
        "check": "azp",
        "error": f"azp: expected {CLIENT_ID}, got another",
        "failures": 1,
        "remaining": 0.0,
    }


def test_a_bug_of_ours_is_told_with_its_traceback(log: Log) -> None:
    error = InternalError(ZeroDivisionError(f"with {SAMPLE}"))
    report(ended(Result.FAILED, error=error), after(State.FAILING, State.FAILING, failures=1))
    line = log.only_line()
    assert line["error"] == "internal error: ZeroDivisionError"
    assert line["exception"] == "ZeroDivisionError: with [redacted]"


@pytest.mark.parametrize(
    ("cause", "state", "line"),
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
            Absence.REMOVED,
            State.REMOVED,
            {"level": "info", "event": "account.removed", "account": ACCOUNT},
        ),
        (
            Absence.DISABLED,
            State.DISABLED,
            {"level": "info", "event": "account.changed", "account": ACCOUNT, "state": "disabled"},
        ),
    ],
)
def test_a_change_of_state_has_a_line_of_its_own_and_only_once(
    cause: RefreshError | Absence, state: State, line: dict[str, Any], log: Log
) -> None:
    outcome = ended(Result.ABSENT, absence=cause) if isinstance(cause, Absence) else ended(Result.FAILED, error=cause)
    report(outcome, after(state, State.OK))
    *rest, last = log.lines
    assert [each["event"] for each in rest] == (["refresh.failed"] if outcome.error else [])
    del last["timestamp"]
    assert last == line
    log.set_up()
    report(outcome, after(state, state))
    assert line["event"] not in [each["event"] for each in log.lines]


@pytest.mark.parametrize("state", [State.FAILING, State.UNMANAGED])
def test_where_the_failure_says_it_the_change_of_state_has_no_line(state: State, log: Log) -> None:
    report(ended(Result.FAILED, error=UnmanagedSecretError("not ours")), after(state, State.OK))
    assert log.only_line()["event"] == "refresh.failed"


@pytest.mark.parametrize(
    ("previous_state", "expected"),
    [
        (State.FAILING, {"event": "account.recovered"}),
        (State.INVALID, {"event": "account.recovered"}),
        (State.UNMANAGED, {"event": "account.recovered"}),
        (State.DISABLED, {"event": "account.changed", "state": "ok"}),
        (State.REMOVED, {"event": "account.added"}),
    ],
)
def test_that_all_is_well_again_is_told_once_behind_what_brought_it(
    previous_state: State, expected: dict[str, Any], log: Log
) -> None:
    """A state that stays failed after recovery is the bug."""
    report(ended(Result.REFRESHED, token=TOKEN, tracked=TRACKED, version=1), after(State.OK, previous_state))
    refreshed, line = log.lines
    assert refreshed["event"] == "token.refreshed"
    del line["timestamp"]
    assert line == {"level": "info", "account": ACCOUNT, **expected}


PREVIOUS = "the current client_secret is rejected; using the previous one (accepted for up to 24 h)"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"reason": Reason.DRIFT}, {"event": "token.repaired", "vault_path": PATH}),
        ({"previous_used": True, "host": "va"}, {"event": "credentials.previous_used", "host": "va", "hint": PREVIOUS}),
    ],
)
def test_what_somebody_should_look_at_has_a_warning_of_its_own(
    found: dict[str, Any], expected: dict[str, Any], log: Log
) -> None:
    report(ended(Result.REFRESHED, token=TOKEN, tracked=TRACKED, version=1, **found), after())
    _, line = log.lines
    del line["timestamp"]
    assert line == {"level": "warning", "account": ACCOUNT, **expected}


@pytest.mark.parametrize(
    ("deletion_time", "effect"),
    [
        (ISSUED + timedelta(seconds=10), "2018-04-25T07:51:20Z, before it expires"),
        (ISSUED + HOUR, "2018-04-25T08:51:10Z, and some agents take it for deleted until then"),
        (ISSUED + 2 * HOUR, "2018-04-25T09:51:10Z, and some agents take it for deleted until then"),
    ],
)
def test_a_token_that_vault_will_delete_is_a_warning_with_the_command_that_helps(
    deletion_time: datetime, effect: str, log: Log
) -> None:
    deleted = EarlyDeletion(deletion_time, TOKEN.exp, "vault kv metadata put x")
    report(ended(Result.REFRESHED, token=TOKEN, tracked=TRACKED, early_deletion=deleted), after())
    _, line = log.lines
    del line["timestamp"]
    assert line == {
        "level": "warning",
        "event": "vault.warning",
        "account": ACCOUNT,
        "warning": f"Vault deletes the token at {effect}: vault kv metadata put x",
    }


def test_the_warning_comes_once_per_account_until_vault_keeps_its_token_again(log: Log) -> None:
    events = Events(clock=lambda: NOW, vault_path=lambda name: name)
    deleted, sooner = (EarlyDeletion(ISSUED + after, TOKEN.exp, "vault x") for after in (HOUR, HOUR / 2))

    def warned(account: str, result: Result, early_deletion: EarlyDeletion | None, **fields: Any) -> bool:
        before = log.text.count("vault.warning")
        events.report(Outcome(account, result, 0.1, early_deletion=early_deletion, **fields), after())
        return log.text.count("vault.warning") > before

    assert warned("a", Result.REFRESHED, deleted)
    assert warned("b", Result.ADOPTED, deleted)
    assert not warned("a", Result.REFRESHED, deleted)
    assert not warned("a", Result.FAILED, None, error=RefreshError(Stage.VAULT, Kind.TRANSIENT, "away"))
    assert not warned("a", Result.ADOPTED, deleted)
    assert warned("a", Result.REFRESHED, sooner)
    assert not warned("a", Result.REFRESHED, sooner)
    assert not warned("a", Result.REFRESHED, None)
    assert warned("a", Result.REFRESHED, deleted)


def made() -> Events:
    return Events(clock=lambda: NOW, vault_path=lambda name: f"secret/liveperson/tokens/{name}")


def test_an_unusual_scope_is_told_once_for_each_change(log: Log) -> None:
    events = made()
    for scope in ("a", "a", "", "msg.consumer", "a"):
        unusual = scope != "msg.consumer"
        token = app_jwt(scope=scope)
        events.report(ended(Result.REFRESHED, token=token, tracked=TRACKED, scope_unusual=unusual), after())
    warnings = [line for line in log.lines if line["event"] == "token.scope_unusual"]
    assert [(line["level"], line["account"], line["scope"]) for line in warnings] == [
        ("warning", ACCOUNT, scope) for scope in ("a", "", "a")
    ]


@pytest.mark.parametrize("state", [State.INVALID, State.UNMANAGED])
def test_what_is_read_at_each_sync_is_no_error_again(state: State, log: Log) -> None:
    log.set_up("debug")
    outcome = ended(Result.FAILED, error=InvalidAccountError("client_id: missing or empty"))
    made().report(outcome, Transition(state, state, 2, 0.0, Kind.PERMANENT, NOW, repeated=True))
    made().report(outcome, Transition(state, state, 2, 0.0, Kind.PERMANENT, NOW))
    made().report(outcome, Transition(State.FAILING, State.FAILING, 2, 0.0, Kind.PERMANENT, NOW, repeated=True))
    assert [line["level"] for line in log.lines] == ["debug", "error", "error"]


def test_another_installation_at_the_same_path_is_told_at_the_third_time_within_an_hour(log: Log) -> None:
    now = [NOW]
    events = Events(clock=lambda: now[0], vault_path=lambda _: PATH)
    warnings = []
    for pause in (0.0, 3000.0, 1000.0, 600.0, 600.0, 600.0, 4000.0, 1.0, 1.0):
        now[0] += pause
        outcome = ended(Result.REFRESHED, token=TOKEN, tracked=TRACKED, replaced_client_id="theirs")
        before = len(log.lines)
        events.report(outcome, after())
        lines = [line for line in log.lines[before:] if line["event"] == "vault.warning"]
        warnings.append([(line["account"], line["vault_path"], line["client_id"]) for line in lines])
    assert [number for number, lines in enumerate(warnings) if lines] == [3, 8]
    assert warnings[3] == [(ACCOUNT, PATH, "theirs")]
