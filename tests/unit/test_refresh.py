"""One account's refresh, against the fake Vault and the fake LivePerson; the write itself is in test_publish."""

from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import pytest

from sandbox.faults import Fault
from tests.builders import ACCOUNT, account_secret, error_of, token_of
from tests.fakes.clock import HOUR, MINUTE, SECOND, Clock
from tests.fakes.vault import ACCOUNTS, HEALTHY, TOKENS, VaultFault
from tests.fakes.world import World
from worker.core.account import Absence
from worker.core.appjwt import utc
from worker.core.errors import (
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
    UnmanagedSecretError,
)
from worker.core.outcome import Outcome, Result, State
from worker.core.plan import Reason
from worker.refresh import ForceRefresh, Refresher

DAY = timedelta(days=1)
NOW = Clock().now()
"""The start of each of these worlds."""


def operations(world: World) -> list[str]:
    return [operation for operation, _ in world.vault.calls]


# A rate limit of Vault


@pytest.mark.parametrize("force", [None, ForceRefresh()])
def test_a_write_that_a_rate_limit_held_back_for_long_begins_anew_and_keeps_its_token(
    world: World, refresher: Refresher, force: ForceRefresh | None
) -> None:
    def of_vault(operation: str, _: str) -> VaultFault:
        tries = operations(world).count("write_token")
        return VaultFault(status=429) if operation == "write_token" and tries < 3 else HEALTHY

    world.vault.fault = of_vault
    outcome = refresher.refresh(ACCOUNT, force=force)
    assert (outcome.result, outcome.error) == (Result.REFRESHED, None)
    assert operations(world).count("read_account") == operations(world).count("write_token") == 3
    assert world.liveperson.mints() == 1


def test_what_others_wrote_while_a_rate_limit_held_a_write_back_is_adopted(world: World, refresher: Refresher) -> None:
    def of_vault(operation: str, _: str) -> VaultFault:
        if operation != "write_token" or world.version():
            return HEALTHY
        world.clock.advance(30 * SECOND)
        world.vault.fault = lambda *_: HEALTHY
        world.refresher("b").refresh(ACCOUNT)
        return VaultFault(status=429)

    world.vault.fault = of_vault
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.account_id) == (Result.ADOPTED, None, ACCOUNT)
    assert world.version() == 1


def test_an_obtained_token_that_became_due_behind_a_rate_limit_is_obtained_anew(
    world: World, refresher: Refresher
) -> None:
    def of_vault(operation: str, _: str) -> VaultFault:
        if operation != "write_token" or operations(world).count("write_token") > 1:
            return HEALTHY
        world.clock.advance(40 * MINUTE)
        return VaultFault(status=429)

    world.vault.fault = of_vault
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED
    assert world.liveperson.mints() == 2
    assert world.token().exp - world.clock.now() > 59 * MINUTE


def test_of_the_tokens_at_work_the_least_remaining_lifetime_is_known(world: World, refresher: Refresher) -> None:
    world.add_account("le2")
    seen: dict[str, float] = {}
    world.vault.at_request = lambda operation, _: seen.setdefault(operation, refresher.min_remaining())
    tracked = refresher.refresh(ACCOUNT).tracked
    assert {*seen.values()} == {float("inf")}  # there was none, and it expires by no clock
    world.clock.advance(31 * MINUTE)
    seen.clear()
    refresher.refresh(ACCOUNT)
    assert seen["read_token"] == float("inf")  # of no account at work it was remembered
    assert seen["read_account"] == seen["write_token"] == pytest.approx(29 * 60, abs=2)
    world.clock.advance(20 * MINUTE)
    seen.clear()
    refresher.check_stored(ACCOUNT, tracked)
    assert seen["read_token"] == pytest.approx(9 * 60, abs=2)
    world.clock.advance(20 * MINUTE)
    seen.clear()
    refresher.check_stored(ACCOUNT, tracked)
    assert seen["read_token"] == float("inf")  # it has expired
    assert refresher.min_remaining() == float("inf")


# Outcomes when all is well


def test_a_missing_token_is_minted_and_written(world: World, refresher: Refresher) -> None:
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.MISSING, 1)
    assert (outcome.account_id, outcome.host) == (ACCOUNT, world.liveperson.hosts["va"])
    assert outcome.remaining_at_refresh is None
    assert outcome.error is None
    assert outcome.token == world.token()


@pytest.mark.parametrize(
    ("operation", "account_id"), [("read_token", None), ("read_account", None), ("write_token", ACCOUNT)]
)
def test_a_failure_has_its_reason_and_the_account_id_as_far_as_it_was_read(
    operation: str, account_id: str | None, world: World, refresher: Refresher
) -> None:
    tracked = refresher.refresh(ACCOUNT).tracked
    world.run(40 * MINUTE)
    world.vault.denied = {operation}
    outcome = refresher.refresh(ACCOUNT, tracked=tracked)
    assert (outcome.result, outcome.reason, outcome.account_id) == (Result.FAILED, Reason.DUE, account_id)
    assert outcome.write_failed is (operation == "write_token")
    assert refresher.refresh(ACCOUNT, force=ForceRefresh()).reason is Reason.MANUAL


def test_what_could_never_be_read_is_missing_as_far_as_is_known(world: World, refresher: Refresher) -> None:
    world.vault.denied = {"read_token"}
    assert refresher.check_stored(ACCOUNT).reason is Reason.MISSING


def test_a_reader_finds_all_documented_fields_beside_the_token(world: World, refresher: Refresher) -> None:
    now = world.clock.now()
    outcome = refresher.refresh(ACCOUNT)
    assert outcome.token
    assert outcome.tracked
    data = dict(world.data())
    assert data.pop("access_token") == outcome.token.raw.get_secret_value()
    assert data == {
        "token_type": "Bearer",
        "account_id": ACCOUNT,
        "kid": "appjwt-13-05-17",
        "alg": "RS256",
        "typ": "JWT",
        "aud": ACCOUNT,
        "azp": outcome.token.azp,
        "scope": "msg.consumer",
        "iss": "Sentinel",
        "iat": str(int(now.timestamp())),
        "exp": str(int((now + HOUR).timestamp())),
        "issued_at": utc(now),
        "expires_at": utc(now + HOUR),
        "refresh_at": utc(now + timedelta(seconds=outcome.tracked.refresh_at - world.clock())),
        "fingerprint": outcome.token.fingerprint,
        "sentinel_host": world.liveperson.hosts["va"],
        "managed_by": "appjwt-worker",
    }


def test_a_fresh_token_is_adopted_without_reading_any_credentials(world: World, refresher: Refresher) -> None:
    written = world.refresher("b").refresh(ACCOUNT)
    world.vault.calls.clear()
    for outcome in (refresher.refresh(ACCOUNT), refresher.check_stored(ACCOUNT)):
        assert outcome is not None
        assert (outcome.result, outcome.reason, outcome.version) == (Result.ADOPTED, None, 1)
        assert (outcome.token, outcome.host) == (written.token, written.host)
        assert outcome.tracked
    assert operations(world) == ["read_token", "read_token"]
    assert world.liveperson.mints() == 1


def test_a_due_token_is_replaced_by_one_that_ends_later(world: World, refresher: Refresher) -> None:
    first = refresher.refresh(ACCOUNT)
    world.clock.advance(35 * MINUTE)
    assert refresher.check_stored(ACCOUNT).result is Result.DUE
    outcome = refresher.refresh(ACCOUNT, tracked=first.tracked)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.DUE, 2)
    assert outcome.remaining_at_refresh == 25 * 60
    assert world.token().exp == world.clock.now() + HOUR


def test_a_token_is_due_at_the_very_moment_it_was_planned_for(world: World, refresher: Refresher) -> None:
    # "not yet due" by a second, and never queued again
    world.vault.skew = -30 * SECOND  # Vault's clock would find it not due yet
    tracked = refresher.refresh(ACCOUNT).tracked
    assert tracked
    world.clock.advance_to(tracked.refresh_at)
    assert refresher.refresh(ACCOUNT, tracked=tracked).reason is Reason.DUE


def test_a_manual_refresh_replaces_a_fresh_token(world: World, refresher: Refresher) -> None:
    refresher.refresh(ACCOUNT)
    world.clock.advance(MINUTE)
    outcome = refresher.refresh(ACCOUNT, force=ForceRefresh())
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.MANUAL, 2)
    assert outcome.remaining_at_refresh == 59 * 60


def test_another_account_id_is_asked_for_and_its_token_stands(world: World, refresher: Refresher) -> None:
    world.add_account("brand/eu", account_id="12345678")
    outcome = refresher.refresh("brand/eu")
    assert (outcome.result, outcome.account_id) == (Result.REFRESHED, "12345678")
    assert world.data("brand/eu")["aud"] == "12345678"
    world.clock.advance(MINUTE)
    again = refresher.check_stored("brand/eu")
    assert again is not None
    assert again.result is Result.ADOPTED
    assert world.liveperson.mints("12345678") == 1


# The same token, or an older one


def test_the_same_token_again_is_no_write_no_failure_and_no_loop(world: World, refresher: Refresher) -> None:
    # a new version though nothing changed, and at half-life a hot loop
    with world.liveperson.faults.on(Fault(same_token=True)):
        first = refresher.refresh(ACCOUNT)
        world.clock.advance(36 * MINUTE)
        outcome = refresher.refresh(ACCOUNT, tracked=first.tracked)
    assert (outcome.result, outcome.reason, outcome.error) == (Result.UNCHANGED, Reason.DUE, None)
    assert (outcome.version, outcome.token) == (1, first.token)
    assert world.version() == 1
    assert outcome.tracked
    assert outcome.tracked.refresh_at == world.clock() + 12 * 60  # half of what is left


def test_a_token_that_ends_earlier_is_not_written(world: World, refresher: Refresher) -> None:
    refresher.refresh(ACCOUNT)
    stored = world.token()
    world.liveperson.token_life = 10 * MINUTE
    world.clock.advance(35 * MINUTE)
    assert refresher.refresh(ACCOUNT).result is Result.UNCHANGED
    assert world.token() == stored


def test_a_manual_refresh_that_gets_the_same_token_leaves_the_plan_alone(world: World, refresher: Refresher) -> None:
    with world.liveperson.faults.on(Fault(same_token=True)):
        first = refresher.refresh(ACCOUNT)
        world.clock.advance(MINUTE)
        outcome = refresher.refresh(ACCOUNT, tracked=first.tracked, force=ForceRefresh())
    assert (outcome.result, outcome.tracked) == (Result.UNCHANGED, first.tracked)


# A stored token counts by its JWT alone


@pytest.mark.parametrize("fields", [{}, {"exp": "4102444800"}, {"exp": "soon"}, {"expires_at": "2099-12-31T23:59:59Z"}])
def test_what_stands_beside_an_ended_token_does_not_keep_it(
    world: World, refresher: Refresher, fields: dict[str, str]
) -> None:
    # a planted or broken exp field (year 2099) must not block the path for ever
    world.store(token_of(world.clock.now() - 2 * HOUR), **fields)
    assert refresher.check_stored(ACCOUNT).result is Result.DUE
    assert refresher.refresh(ACCOUNT).reason is Reason.DUE
    assert world.token().exp == world.clock.now() + HOUR


@pytest.mark.parametrize(
    "raw",
    [
        "no token at all",
        token_of(NOW, 75 * 365 * DAY),
        token_of(NOW + 12 * HOUR),
        token_of(NOW, 2 * HOUR, iss="somebody"),
        token_of(NOW, 2 * HOUR, aud="12345678"),
    ],
    ids=["garbage", "lives till 2100", "from the future", "another issuer", "of another account"],
)
def test_an_invalid_token_is_replaced_whatever_it_claims(world: World, refresher: Refresher, raw: str) -> None:
    world.store(raw)
    assert refresher.check_stored(ACCOUNT).result is Result.DUE
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.INVALID, 2)
    assert world.token().aud == (ACCOUNT,)


def test_a_token_of_another_app_does_not_stand_against_the_accounts_own(world: World, refresher: Refresher) -> None:
    # the app is known from the credentials only, so this one is seen when the token is due
    world.store(token_of(world.clock.now() - 14 * HOUR, 24 * HOUR, azp="another app"))
    with world.liveperson.faults.on(Fault(status=503)):
        assert refresher.refresh(ACCOUNT).tracked is None
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.version) == (Result.REFRESHED, 2)
    assert world.token().exp == world.clock.now() + HOUR


@pytest.mark.parametrize("way", ["delete", "destroy"])
def test_a_deleted_token_is_missing_and_can_be_written_again(world: World, refresher: Refresher, way: str) -> None:
    # its 404 has metadata, and a CAS of 0 would be refused for ever
    refresher.refresh(ACCOUNT)
    getattr(world.vault.kv, way)(TOKENS + ACCOUNT)
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.MISSING, 2)


def test_a_token_that_ran_out_by_itself_is_missing_and_can_be_written_again(world: World, refresher: Refresher) -> None:
    # a version that ran out is a 404 with metadata too
    world.vault.kv.delete_version_after = 2 * HOUR
    refresher.refresh(ACCOUNT)
    world.clock.advance(2 * HOUR + SECOND)
    assert world.data() == {}
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.MISSING, 2)


# Whose clock counts


def test_life_is_counted_by_sentinels_clock_however_wrong_it_is(world: World, refresher: Refresher) -> None:
    with world.liveperson.faults.on(Fault(skew=DAY)):
        outcome = refresher.refresh(ACCOUNT)
    assert outcome.tracked
    assert outcome.tracked.validity.remaining(world.clock()) == 3600
    with world.liveperson.faults.on(Fault(skew=-DAY)):  # by now the first token is one of tomorrow
        assert refresher.refresh(ACCOUNT, force=ForceRefresh()).tracked


def test_without_a_date_a_token_counts_from_its_own_issue(world: World, refresher: Refresher) -> None:
    with world.liveperson.faults.on(Fault(no_date=True)):
        outcome = refresher.refresh(ACCOUNT)
    assert outcome.tracked
    assert outcome.tracked.validity.remaining(world.clock()) == 3600


@pytest.mark.parametrize(("left", "timeout"), [(40, 10), (12, 6), (3, 2)])
def test_an_exchange_takes_no_more_than_half_of_the_life_that_is_left(
    world: World, refresher: Refresher, left: int, timeout: int
) -> None:
    tracked = refresher.refresh(ACCOUNT).tracked
    world.clock.advance(HOUR - left * SECOND)
    world.liveperson.timeouts.clear()
    refresher.refresh(ACCOUNT, tracked=tracked)
    assert world.liveperson.timeouts == [timeout * SECOND]


# Nothing to do


def test_a_disabled_account_is_skipped_when_its_token_is_due(world: World, refresher: Refresher) -> None:
    world.vault.kv.put(ACCOUNTS + ACCOUNT, account_secret(enabled=False))
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.absence, outcome.state) == (Result.ABSENT, Absence.DISABLED, State.DISABLED)
    assert world.liveperson.requests == []


@pytest.mark.parametrize("ended", [False, True])
def test_a_token_of_another_account_at_a_disabled_account_s_path_is_left_alone(
    world: World,
    refresher: Refresher,
    ended: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Only the account's secret could tell which token belongs there, and that secret is disabled."""
    world.vault.kv.put(ACCOUNTS + ACCOUNT, account_secret(enabled=False))
    world.store(token_of(NOW - (2 * HOUR if ended else timedelta()), aud="12345678"))
    before = world.data()
    refresher.check_stored(ACCOUNT)
    refresher.refresh(ACCOUNT)
    assert (world.data(), world.version()) == (before, 1)
    assert world.liveperson.requests == []


def test_an_account_that_is_gone_is_skipped(world: World, refresher: Refresher) -> None:
    world.vault.kv.delete(ACCOUNTS + ACCOUNT)
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.absence, outcome.state) == (Result.ABSENT, Absence.REMOVED, State.REMOVED)
    assert refresher.is_removed(ACCOUNT)


def test_a_daemon_s_first_404_is_a_failure_and_the_second_in_time_a_removal(world: World, refresher: Refresher) -> None:
    refresher.removal_delay = 60.0
    secret = world.vault.kv.get(ACCOUNTS + ACCOUNT).data
    assert secret

    def refresh(after: int) -> tuple[Result, State, object]:
        world.clock.advance(after * SECOND)
        outcome = refresher.refresh(ACCOUNT)
        return outcome.result, outcome.state, outcome.error.kind if outcome.error else None

    fails, removed = (Result.FAILED, State.FAILING, Kind.TRANSIENT), (Result.ABSENT, State.REMOVED, None)
    for back in (secret, {"client_id": "only"}, {**secret, "enabled": False}):
        world.vault.kv.remove(ACCOUNTS + ACCOUNT)
        assert refresh(0) == fails
        assert refresh(50) == fails
        assert not refresher.is_removed(ACCOUNT)
        world.vault.kv.put(ACCOUNTS + ACCOUNT, back)
        refresh(10)
        world.vault.kv.remove(TOKENS + ACCOUNT)
    world.vault.kv.remove(ACCOUNTS + ACCOUNT)
    assert [refresh(0), refresh(60), refresh(60)] == [fails, removed, removed]
    assert refresher.is_removed(ACCOUNT)


def test_a_first_404_says_where_and_when_it_is_read_again(world: World, refresher: Refresher) -> None:
    refresher.removal_delay = 60.0
    world.vault.kv.remove(ACCOUNTS + ACCOUNT)
    error = refresher.refresh(ACCOUNT).error
    assert error
    assert (error.stage, error.status, error.retry_after) == (Stage.CREDENTIALS, 404, MINUTE)
    assert str(error).startswith(f"there is nothing at secret/{ACCOUNTS}{ACCOUNT}: ")


def test_of_an_account_that_is_gone_its_trouble_is_no_longer_told(world: World, refresher: Refresher) -> None:
    world.vault.kv.put(ACCOUNTS + ACCOUNT, {"client_id": "only"})
    refresher.refresh(ACCOUNT)
    assert notes(world)["state"] == "invalid"
    world.vault.kv.remove(ACCOUNTS + ACCOUNT)
    assert refresher.is_removed(ACCOUNT)
    assert notes(world) == {"state": "removed"}


# The Sentinel host


def test_the_host_beside_another_account_s_token_is_not_believed(world: World, refresher: Refresher) -> None:
    world.add_account("12345678", "lo")
    refresher.refresh("12345678")
    world.store(
        **{key: value for key, value in world.data("12345678").items() if key != "access_token"},
        raw=(world.data("12345678")["access_token"]),
    )
    assert world.data()["sentinel_host"] == world.liveperson.hosts["lo"]
    outcome = refresher.check_stored(ACCOUNT)
    assert (outcome.reason, outcome.host) == (Reason.INVALID, None)
    assert refresher.refresh(ACCOUNT).host == world.liveperson.hosts["va"]


# Failures


def test_an_invalid_account_fails_with_what_is_wrong(world: World, refresher: Refresher) -> None:
    world.vault.kv.put(ACCOUNTS + ACCOUNT, {"client_id": "only"})
    outcome = refresher.refresh(ACCOUNT)
    assert outcome.result is Result.FAILED
    assert isinstance(outcome.error, InvalidAccountError)


def test_a_unmanaged_secret_is_left_alone_and_nothing_is_minted_for_it(world: World, refresher: Refresher) -> None:
    # look at the target's path before the world outside is changed
    world.vault.kv.put(TOKENS + ACCOUNT, {"password": "theirs"})
    for outcome in (
        refresher.check_stored(ACCOUNT),
        refresher.refresh(ACCOUNT),
        refresher.refresh(ACCOUNT, force=ForceRefresh()),
    ):
        assert outcome.result is Result.FAILED
        assert isinstance(outcome.error, UnmanagedSecretError)
    assert world.data() == {"password": "theirs"}
    assert world.liveperson.requests == []


def test_a_vault_that_cannot_be_read_costs_no_mint(world: World, refresher: Refresher) -> None:
    world.vault.is_down = True
    for outcome in (refresher.check_stored(ACCOUNT), refresher.refresh(ACCOUNT)):
        assert outcome.result is Result.FAILED
        assert error_of(outcome) == (Stage.VAULT, Kind.TRANSIENT, None, None)
    assert world.liveperson.requests == []


@pytest.mark.parametrize(
    ("fault", "service", "error"),
    [
        (Fault(status=503), "sentinel", (Stage.SENTINEL, Kind.TRANSIENT, 503, None)),
        (Fault(status=401), "sentinel", (Stage.SENTINEL, Kind.PERMANENT, 401, None)),
        (Fault(refuse=True), "sentinel", (Stage.SENTINEL, Kind.TRANSIENT, None, None)),
        (Fault(answer=b"{}"), "sentinel", (Stage.SENTINEL, Kind.TRANSIENT, 200, None)),
        (Fault(status=404), "domain", (Stage.DOMAIN, Kind.PERMANENT, 404, None)),
        (Fault(claims={"aud": "12345678"}), "sentinel", (Stage.CLAIMS, Kind.PERMANENT, None, "aud")),
        (Fault(claims={"azp": "another app"}), "sentinel", (Stage.CLAIMS, Kind.PERMANENT, None, "azp")),
        (Fault(claims={"exp": 4102444800}), "sentinel", (Stage.CLAIMS, Kind.PERMANENT, None, "lifetime")),
        (Fault(header={"alg": "none"}), "sentinel", (Stage.CLAIMS, Kind.PERMANENT, None, "alg")),
    ],
)
def test_whatever_fails_leaves_the_stored_token_as_it_is(
    world: World, refresher: Refresher, fault: Fault, service: Any, error: tuple[object, ...]
) -> None:
    raw = token_of(NOW - 35 * MINUTE, azp=world.add_account().client_id)
    world.store(raw)
    with world.liveperson.faults.on(fault, service=service):
        outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason) == (Result.FAILED, Reason.DUE)
    assert error_of(outcome) == error
    assert (world.version(), world.data()["access_token"]) == (1, raw)
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED


def test_a_failure_tells_how_long_the_stored_token_still_lives(world: World, refresher: Refresher) -> None:
    # or pauses after a restart would take no heed of it, and outlast the token
    world.store(token_of(NOW - 50 * MINUTE, azp=world.add_account().client_id))
    with world.liveperson.faults.on(Fault(status=503)):
        outcome = refresher.refresh(ACCOUNT)
    assert outcome.tracked
    assert outcome.tracked.validity.remaining(world.clock()) == 600


# The account's status in Vault


def notes(world: World, name: str = ACCOUNT) -> dict[str, str]:
    """Return the custom metadata of the token's path, without our mark."""
    metadata = world.vault.kv.metadata(TOKENS + name)
    assert metadata
    return {key: value for key, value in metadata.custom_metadata.items() if key != "managed_by"}


def test_a_change_of_state_is_told_once_and_taken_back_by_the_next_success(world: World, refresher: Refresher) -> None:
    with world.liveperson.faults.on(Fault(status=401)):
        refresher.refresh(ACCOUNT)
        status = notes(world)
        world.clock.advance(MINUTE)
        refresher.refresh(ACCOUNT)
    assert (
        status
        == notes(world)
        == {
            "state": "failing",
            "last_error": "sentinel: answers 401",
            "failing_since": utc(NOW),
        }
    )
    assert operations(world).count("write_metadata") == 1
    refresher.refresh(ACCOUNT)
    assert notes(world) == {"state": "ok"}
    assert world.data()


def test_a_look_that_adopts_takes_back_what_a_dead_replica_told(world: World, refresher: Refresher) -> None:
    refresher.refresh(ACCOUNT)
    world.vault.tokens.write_status(ACCOUNT, {"state": "failing", "last_error": "vault: no", "failing_since": utc(NOW)})
    assert world.refresher("b").check_stored(ACCOUNT).result is Result.ADOPTED
    assert notes(world) == {"state": "ok"}


def test_a_disabled_and_a_deleted_account_are_told_as_such(world: World, refresher: Refresher) -> None:
    world.add_account("12345678", enabled=False)
    refresher.refresh("12345678")
    assert notes(world, "12345678") == {"state": "disabled"}
    world.vault.kv.delete(ACCOUNTS + "12345678")
    refresher.refresh("12345678")
    assert notes(world, "12345678") == {"state": "removed"}


def test_while_all_is_well_nothing_is_told(world: World, refresher: Refresher) -> None:
    refresher.refresh(ACCOUNT)
    world.clock.advance(HOUR / 2)
    refresher.refresh(ACCOUNT)
    assert notes(world) == {}


def test_a_dry_run_tells_vault_nothing(world: World, refresher: Refresher) -> None:
    world.add_account(client_id=7)
    outcome = refresher.refresh(ACCOUNT, force=ForceRefresh(dry_run=True))
    assert outcome.result is Result.FAILED
    assert world.vault.kv.metadata(TOKENS + ACCOUNT) is None


def test_what_cannot_be_told_now_is_told_by_the_next_attempt(world: World, refresher: Refresher) -> None:
    world.vault.denied = {"write_metadata"}
    with world.liveperson.faults.on(Fault(status=401)):
        assert error_of(refresher.refresh(ACCOUNT)) == (Stage.SENTINEL, Kind.PERMANENT, 401, None)
        world.vault.denied = set()
        refresher.refresh(ACCOUNT)
    assert notes(world)["state"] == "failing"


def test_a_unmanaged_path_is_told_nothing(world: World, refresher: Refresher) -> None:
    world.vault.kv.put(TOKENS + ACCOUNT, {"password": "theirs"})
    refresher.refresh(ACCOUNT)
    assert notes(world) == {}


# An account that was edited


def test_a_failing_account_whose_secret_is_another_one_is_refreshed_for_that_reason(
    world: World, refresher: Refresher
) -> None:
    fixed_account = world.liveperson.add_account(ACCOUNT)
    world.vault.kv.put(ACCOUNTS + ACCOUNT, account_secret())
    assert refresher.has_changed(ACCOUNT) is False  # it never failed
    assert refresher.refresh(ACCOUNT).reason is Reason.MISSING
    assert refresher.has_changed(ACCOUNT) is False
    assert refresher.refresh(ACCOUNT).reason is Reason.MISSING
    world.vault.kv.put(ACCOUNTS + ACCOUNT, asdict(fixed_account))
    assert refresher.has_changed(ACCOUNT) is True
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason) == (Result.REFRESHED, Reason.CHANGED)
    assert refresher.has_changed(ACCOUNT) is False


@pytest.mark.parametrize("edited", [{"enabled": "false"}, {"client_id": 7}, None], ids=["disabled", "invalid", "gone"])
def test_an_account_that_can_no_longer_be_used_has_changed(
    world: World, refresher: Refresher, edited: dict[str, Any] | None
) -> None:
    with world.liveperson.faults.on(Fault(status=401)):
        refresher.refresh(ACCOUNT)
    if edited is None:
        world.vault.kv.delete(ACCOUNTS + ACCOUNT)
    else:
        world.add_account(**edited)
    assert refresher.has_changed(ACCOUNT) is True


def test_whether_an_account_has_changed_cannot_be_told_without_vault(world: World, refresher: Refresher) -> None:
    with world.liveperson.faults.on(Fault(status=401)):
        refresher.refresh(ACCOUNT)
    world.vault.is_down = True
    with pytest.raises(RefreshError):
        refresher.has_changed(ACCOUNT)


@pytest.mark.parametrize(
    ("name", "is_gone"), [(ACCOUNT, False), ("disabled", False), ("invalid", False), ("never", True), ("no name", True)]
)
def test_only_its_own_404_or_an_impossible_name_says_that_an_account_is_gone(
    world: World,
    refresher: Refresher,
    name: str,
    is_gone: bool,  # noqa: FBT001 - a parameter
) -> None:
    world.add_account("disabled", enabled=False)
    world.vault.kv.put(ACCOUNTS + "invalid", {"client_id": "x"})
    assert refresher.is_removed(name) is is_gone
    world.vault.denied = {"read_account"}
    assert refresher.is_removed(name) is (name == "no name")
    world.vault.is_down = True
    assert refresher.is_removed(name) is (name == "no name")


# Many at once


def test_after_a_missing_or_a_late_token_the_next_is_planned_apart_from_the_others(
    world: World, refresher: Refresher
) -> None:
    def share(outcome: Outcome) -> float:
        tracked = outcome.tracked
        assert tracked
        return (tracked.refresh_at - tracked.validity.start) / HOUR.total_seconds()

    def refreshed(planned_ago: float, before: Outcome) -> Outcome:
        assert before.tracked
        return refresher.refresh(ACCOUNT, tracked=replace(before.tracked, refresh_at=world.clock() - planned_ago))

    first = refresher.refresh(ACCOUNT)
    world.clock.advance(HOUR * 0.59)
    usual = refreshed(180, first)
    world.clock.advance(HOUR * 0.59)
    late = refreshed(181, usual)
    assert share(first) == share(late) != share(usual)
    assert share(usual) == pytest.approx(0.5, abs=0.05)
    assert 0.1 <= share(first) < 0.45


# What the operator asks for


@pytest.mark.parametrize(("less_than", "result"), [(1799.0, Result.NOT_EXPIRING), (1801.0, Result.REFRESHED)])
def test_by_hand_only_those_with_less_life_than_asked_for(
    world: World, refresher: Refresher, less_than: float, result: Result
) -> None:
    refresher.refresh(ACCOUNT)
    world.clock.advance(HOUR / 2)
    outcome = refresher.refresh(ACCOUNT, force=ForceRefresh(expires_within=less_than))
    assert (outcome.result, outcome.reason) == (result, Reason.MANUAL if result is Result.REFRESHED else None)


@pytest.mark.parametrize(
    ("age", "reason"), [(None, Reason.MISSING), (HOUR / 4, Reason.MANUAL), (HOUR * 0.6, Reason.DUE)]
)
def test_a_dry_run_says_why_and_does_nothing(
    world: World, refresher: Refresher, age: timedelta | None, reason: Reason
) -> None:
    if age:
        refresher.refresh(ACCOUNT)
        world.clock.advance(age)
    mints, version = world.liveperson.mints(), world.version()
    outcome = refresher.refresh(ACCOUNT, force=ForceRefresh(dry_run=True))
    assert (outcome.result, outcome.reason) == (Result.WOULD_REFRESH, reason)
    assert (world.liveperson.mints(), world.version()) == (mints, version)


def test_after_a_restart_the_stored_host_serves_while_the_domain_api_is_down(
    world: World, refresher: Refresher
) -> None:
    refresher.refresh(ACCOUNT)
    world.clock.advance(35 * MINUTE)
    with world.liveperson.faults.on(Fault(status=503), service="domain"):
        outcome = world.refresher().refresh(ACCOUNT)
    assert (outcome.result, outcome.host) == (Result.REFRESHED, world.liveperson.hosts["va"])
