"""One account's story, against the fake Vault and the fake LivePerson."""

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import pytest

from sandbox.faults import Fault
from tests.builders import ACCOUNT, account_secret, token_of
from tests.fakes.clock import HOUR, MINUTE, SECOND, Clock, nothing
from tests.fakes.vault import HEALTHY, FakeAccounts, FakeTokens, VaultFault
from tests.fakes.world import World
from worker.core.appjwt import utc
from worker.core.errors import (
    AccountDisabledError,
    AccountGoneError,
    ForeignSecretError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
)
from worker.core.outcome import Outcome, Result
from worker.core.plan import Reason
from worker.refresh import ByHand, Refresher

DAY = timedelta(days=1)
NOW = Clock().now()
"""When each of these worlds begins."""


@pytest.fixture
def world() -> World:
    made = World()
    made.add_account()
    return made


@pytest.fixture
def refresher(world: World) -> Refresher:
    return world.refresher()


def operations(world: World) -> list[str]:
    return [operation for operation, _ in world.vault.calls]


def error_of(outcome: Outcome) -> tuple[object, ...]:
    error = outcome.error
    assert error is not None
    return error.stage, error.kind, error.status, error.check


# Outcomes when all is well


def test_a_missing_token_is_minted_and_written(world: World, refresher: Refresher) -> None:
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.MISSING, 1)
    assert (outcome.account_id, outcome.host) == (ACCOUNT, world.liveperson.hosts["va"])
    assert outcome.left_at_replacement is None
    assert outcome.error is None
    assert outcome.token == world.token()


def test_what_a_reader_finds_beside_the_token_is_what_the_contract_says(world: World, refresher: Refresher) -> None:
    now = world.clock.now()
    outcome = refresher.refresh(ACCOUNT)
    assert outcome.token
    assert outcome.held
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
        "refresh_at": utc(now + timedelta(seconds=outcome.held.refresh_at - world.clock())),
        "fingerprint": outcome.token.fingerprint,
        "sentinel_host": world.liveperson.hosts["va"],
        "managed_by": "appjwt-worker",
    }


def test_a_fresh_token_is_adopted_without_reading_any_credentials(world: World, refresher: Refresher) -> None:
    written = world.refresher("b").refresh(ACCOUNT)
    world.vault.calls.clear()
    for outcome in (refresher.refresh(ACCOUNT), refresher.look(ACCOUNT)):
        assert outcome is not None
        assert (outcome.result, outcome.reason, outcome.version) == (Result.ADOPTED, None, 1)
        assert (outcome.token, outcome.host) == (written.token, written.host)
        assert outcome.held
    assert operations(world) == ["read_token", "read_token"]
    assert world.liveperson.mints() == 1


def test_a_due_token_is_replaced_by_one_that_ends_later(world: World, refresher: Refresher) -> None:
    first = refresher.refresh(ACCOUNT)
    world.clock.advance(35 * MINUTE)
    assert refresher.look(ACCOUNT).is_to_do
    outcome = refresher.refresh(ACCOUNT, held=first.held)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.DUE, 2)
    assert outcome.left_at_replacement == 25 * 60
    assert world.token().exp == world.clock.now() + HOUR


def test_a_token_is_due_at_the_very_moment_it_was_planned_for(world: World, refresher: Refresher) -> None:
    # FIELD 13: "not yet due" by a second, and never queued again
    world.vault.skew = -30 * SECOND  # Vault's clock would find it not due yet
    held = refresher.refresh(ACCOUNT).held
    assert held
    world.clock.advance_to(held.refresh_at)
    assert refresher.refresh(ACCOUNT, held=held).reason is Reason.DUE


def test_a_manual_refresh_replaces_a_fresh_token(world: World, refresher: Refresher) -> None:
    refresher.refresh(ACCOUNT)
    world.clock.advance(MINUTE)
    outcome = refresher.refresh(ACCOUNT, by_hand=ByHand())
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.MANUAL, 2)
    assert outcome.left_at_replacement == 59 * 60


def test_another_account_id_is_asked_for_and_its_token_stands(world: World, refresher: Refresher) -> None:
    world.add_account("brand/eu", account_id="12345678")
    outcome = refresher.refresh("brand/eu")
    assert (outcome.result, outcome.account_id) == (Result.REFRESHED, "12345678")
    assert world.data("brand/eu")["aud"] == "12345678"
    world.clock.advance(MINUTE)
    again = refresher.look("brand/eu")
    assert again is not None
    assert again.result is Result.ADOPTED
    assert world.liveperson.mints("12345678") == 1


# The same token, or an older one


def test_the_same_token_again_is_no_write_no_failure_and_no_loop(world: World, refresher: Refresher) -> None:
    # FIELD 20 and 4: a new version though nothing changed, and at half-life a hot loop
    with world.liveperson.faults.on(Fault(same_token=True)):
        first = refresher.refresh(ACCOUNT)
        world.clock.advance(36 * MINUTE)
        outcome = refresher.refresh(ACCOUNT, held=first.held)
    assert (outcome.result, outcome.reason, outcome.error) == (Result.UNCHANGED, Reason.DUE, None)
    assert (outcome.version, outcome.token) == (1, first.token)
    assert world.version() == 1
    assert outcome.held
    assert outcome.held.refresh_at == world.clock() + 12 * 60  # half of what is left


def test_a_token_that_ends_earlier_is_not_written(world: World, refresher: Refresher) -> None:
    # FIELD 20
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
        outcome = refresher.refresh(ACCOUNT, held=first.held, by_hand=ByHand())
    assert (outcome.result, outcome.held) == (Result.UNCHANGED, first.held)


# A stored token counts by its own JWT


@pytest.mark.parametrize("beside", [{}, {"exp": "4102444800"}, {"exp": "soon"}, {"expires_at": "2099-12-31T23:59:59Z"}])
def test_what_stands_beside_an_ended_token_does_not_keep_it(
    world: World, refresher: Refresher, beside: dict[str, str]
) -> None:
    # FIELD 21: a planted or broken exp field (year 2099) blocked the path for ever; FIELD 16: without verify_signature
    # PyJWT does not look at exp, aud and iss either
    world.store(token_of(world.clock.now() - 2 * HOUR), **beside)
    assert refresher.look(ACCOUNT).is_to_do
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
def test_an_unsound_token_is_replaced_whatever_it_claims(world: World, refresher: Refresher, raw: str) -> None:
    world.store(raw)
    assert refresher.look(ACCOUNT).is_to_do
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.UNSOUND, 2)
    assert world.token().aud == (ACCOUNT,)


def test_a_token_of_another_app_does_not_stand_against_the_accounts_own(world: World, refresher: Refresher) -> None:
    # the app is known from the credentials only, so this one is seen when the token is due
    world.store(token_of(world.clock.now() - 14 * HOUR, 24 * HOUR, azp="another app"))
    with world.liveperson.faults.on(Fault(status=503)):
        assert refresher.refresh(ACCOUNT).held is None
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.version) == (Result.REFRESHED, 2)
    assert world.token().exp == world.clock.now() + HOUR


@pytest.mark.parametrize("way", ["delete", "destroy"])
def test_a_deleted_token_is_missing_and_can_be_written_again(world: World, refresher: Refresher, way: str) -> None:
    # FIELD 14: its 404 has metadata, and a CAS of 0 would be refused for ever
    refresher.refresh(ACCOUNT)
    getattr(world.vault.kv, way)(FakeTokens.FOLDER + ACCOUNT)
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.MISSING, 2)


def test_a_token_that_ran_out_by_itself_is_missing_and_can_be_written_again(world: World, refresher: Refresher) -> None:
    # FIELD 14, by way of delete_version_after
    refresher.refresh(ACCOUNT)
    world.clock.advance(2 * HOUR + SECOND)
    assert world.data() == {}
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.MISSING, 2)


# Whose clock counts


def test_life_is_counted_by_sentinels_clock_however_wrong_it_is(world: World, refresher: Refresher) -> None:
    with world.liveperson.faults.on(Fault(skew=DAY)):
        outcome = refresher.refresh(ACCOUNT)
    assert outcome.held
    assert outcome.held.life.left(world.clock()) == 3600
    with world.liveperson.faults.on(Fault(skew=-DAY)):  # by now its own token is one of tomorrow
        assert refresher.refresh(ACCOUNT, by_hand=ByHand()).held


def test_without_a_date_a_token_counts_from_its_own_issue(world: World, refresher: Refresher) -> None:
    with world.liveperson.faults.on(Fault(no_date=True)):
        outcome = refresher.refresh(ACCOUNT)
    assert outcome.held
    assert outcome.held.life.left(world.clock()) == 3600


@pytest.mark.parametrize(("left", "timeout"), [(40, 10), (12, 6), (3, 2)])
def test_an_exchange_takes_no_more_than_half_of_the_life_that_is_left(
    world: World, refresher: Refresher, left: int, timeout: int
) -> None:
    held = refresher.refresh(ACCOUNT).held
    world.clock.advance(HOUR - left * SECOND)
    world.liveperson.timeouts.clear()
    refresher.refresh(ACCOUNT, held=held)
    assert world.liveperson.timeouts == [timeout * SECOND]


# Nothing to do


def test_a_disabled_account_is_skipped_when_its_token_is_due(world: World, refresher: Refresher) -> None:
    world.vault.kv.put(FakeAccounts.FOLDER + ACCOUNT, account_secret(enabled=False))
    outcome = refresher.refresh(ACCOUNT)
    assert outcome.result is Result.SKIPPED
    assert isinstance(outcome.error, AccountDisabledError)
    assert world.liveperson.requests == []


def test_an_account_that_is_gone_is_skipped(world: World, refresher: Refresher) -> None:
    world.vault.kv.delete(FakeAccounts.FOLDER + ACCOUNT)
    outcome = refresher.refresh(ACCOUNT)
    assert outcome.result is Result.SKIPPED
    assert isinstance(outcome.error, AccountGoneError)
    assert refresher.is_gone(ACCOUNT)


def test_of_an_account_that_is_gone_its_trouble_is_no_longer_told(world: World, refresher: Refresher) -> None:
    world.vault.kv.put(FakeAccounts.FOLDER + ACCOUNT, {"client_id": "only"})
    refresher.refresh(ACCOUNT)
    assert notes(world)["state"] == "invalid"
    world.vault.kv.remove(FakeAccounts.FOLDER + ACCOUNT)
    assert refresher.is_gone(ACCOUNT)
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
    outcome = refresher.look(ACCOUNT)
    assert (outcome.reason, outcome.host) == (Reason.UNSOUND, None)
    assert refresher.refresh(ACCOUNT).host == world.liveperson.hosts["va"]


# Failures


def test_an_invalid_account_fails_with_what_is_wrong(world: World, refresher: Refresher) -> None:
    world.vault.kv.put(FakeAccounts.FOLDER + ACCOUNT, {"client_id": "only"})
    outcome = refresher.refresh(ACCOUNT)
    assert outcome.result is Result.FAILED
    assert isinstance(outcome.error, InvalidAccountError)


def test_a_foreign_secret_is_left_alone_and_nothing_is_minted_for_it(world: World, refresher: Refresher) -> None:
    # FIELD 12: look at the target's path before the world outside is changed
    world.vault.kv.put(FakeTokens.FOLDER + ACCOUNT, {"password": "theirs"})
    for outcome in (refresher.look(ACCOUNT), refresher.refresh(ACCOUNT), refresher.refresh(ACCOUNT, by_hand=ByHand())):
        assert outcome.result is Result.FAILED
        assert isinstance(outcome.error, ForeignSecretError)
    assert world.data() == {"password": "theirs"}
    assert world.liveperson.requests == []


def test_a_vault_that_cannot_be_read_costs_no_mint(world: World, refresher: Refresher) -> None:
    # FIELD 12
    world.vault.is_down = True
    for outcome in (refresher.look(ACCOUNT), refresher.refresh(ACCOUNT)):
        assert outcome.result is Result.FAILED
        assert error_of(outcome) == (Stage.VAULT, Kind.TRANSIENT, None, None)
    assert world.liveperson.requests == []


@pytest.mark.parametrize(
    ("fault", "service", "error"),
    [
        (Fault(status=503), "sentinel", (Stage.SENTINEL, Kind.TRANSIENT, 503, None)),
        (Fault(status=401), "sentinel", (Stage.SENTINEL, Kind.LASTING, 401, None)),
        (Fault(refuse=True), "sentinel", (Stage.SENTINEL, Kind.TRANSIENT, None, None)),
        (Fault(answer=b"{}"), "sentinel", (Stage.SENTINEL, Kind.TRANSIENT, 200, None)),
        (Fault(status=404), "domain", (Stage.DOMAIN, Kind.LASTING, 404, None)),
        (Fault(claims={"aud": "12345678"}), "sentinel", (Stage.CLAIMS, Kind.LASTING, None, "aud")),
        (Fault(claims={"azp": "another app"}), "sentinel", (Stage.CLAIMS, Kind.LASTING, None, "azp")),
        (Fault(claims={"exp": 4102444800}), "sentinel", (Stage.CLAIMS, Kind.LASTING, None, "lifetime")),
        (Fault(header={"alg": "none"}), "sentinel", (Stage.CLAIMS, Kind.LASTING, None, "alg")),
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
    assert outcome.held
    assert outcome.held.life.left(world.clock()) == 600


# Writes that go wrong


def test_a_write_whose_answer_was_lost_counts_as_ours_the_next_time(world: World, refresher: Refresher) -> None:
    world.vault.losing = {"write_token"}
    first = refresher.refresh(ACCOUNT)
    assert (first.result, first.reason) == (Result.FAILED, Reason.MISSING)
    assert error_of(first) == (Stage.VAULT, Kind.TRANSIENT, None, None)
    world.vault.losing = set()
    world.clock.advance(5 * SECOND)
    second = refresher.refresh(ACCOUNT)
    assert (second.result, second.reason, second.version) == (Result.REFRESHED, Reason.MISSING, 1)
    third = refresher.refresh(ACCOUNT)
    assert third.result is Result.ADOPTED
    assert world.liveperson.mints() == 1


def test_a_token_minted_while_vault_went_away_is_written_later_and_not_minted_again(
    world: World, refresher: Refresher
) -> None:
    def go_down(operation: str, _: str) -> None:
        world.vault.is_down = operation.startswith("write")

    world.vault.at_request = go_down
    assert refresher.refresh(ACCOUNT).result is Result.FAILED
    assert refresher.refresh(ACCOUNT).result is Result.FAILED
    assert world.data() == {}
    world.vault.at_request = nothing
    world.vault.is_down = False
    world.clock.advance(10 * MINUTE)
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.MISSING, 1)
    assert world.liveperson.mints() == 1
    assert world.token().exp == NOW + HOUR
    assert outcome.held
    assert outcome.held.life.left(world.clock()) == 50 * 60


def test_a_write_that_failed_leaves_the_plan_of_what_stands_alone(world: World, refresher: Refresher) -> None:
    """Counted anew by another clock it could be due later, and then what was minted would be dropped."""
    held = refresher.refresh(ACCOUNT).held
    assert held
    world.clock.advance(HOUR / 2)
    world.vault.denied = {"write_token"}
    world.vault.skew = -10 * SECOND
    early = replace(held, refresh_at=world.clock())
    outcome = refresher.refresh(ACCOUNT, held=early)
    assert (outcome.result, outcome.held) == (Result.FAILED, early)
    world.vault.denied = set()
    mints = world.liveperson.mints()
    assert refresher.refresh(ACCOUNT, held=early).result is Result.REFRESHED
    assert world.liveperson.mints() == mints


def test_without_the_right_to_write_one_token_is_minted_and_kept(world: World, refresher: Refresher) -> None:
    # FIELD 12: the world outside is not changed again and again for what cannot be stored
    world.vault.denied = {"write_token"}
    for _ in range(5):
        outcome = refresher.refresh(ACCOUNT)
        assert error_of(outcome) == (Stage.VAULT, Kind.LASTING, 403, None)
        world.clock.advance(MINUTE)
    assert world.liveperson.mints() == 1


def test_settings_that_were_written_without_data_do_no_harm(world: World, refresher: Refresher) -> None:
    # FIELD 5 and 11: of two writes the second fails; what is left must neither stay nor block
    world.vault.denied = {"write_token"}
    refresher.refresh(ACCOUNT)
    assert world.vault.kv.metadata(FakeTokens.FOLDER + ACCOUNT)
    world.vault.denied = set()
    assert world.refresher("another").refresh(ACCOUNT).version == 1


def test_a_token_that_waited_until_it_was_due_itself_is_minted_anew(world: World, refresher: Refresher) -> None:
    world.vault.denied = {"write_token"}
    refresher.refresh(ACCOUNT)
    world.vault.denied = set()
    world.clock.advance(35 * MINUTE)
    refresher.refresh(ACCOUNT)
    assert world.liveperson.mints() == 2
    assert world.token().exp == world.clock.now() + HOUR


def test_a_token_that_waited_is_not_written_for_another_app(world: World, refresher: Refresher) -> None:
    world.vault.denied = {"write_token"}
    refresher.refresh(ACCOUNT)
    world.vault.denied = set()
    credentials = world.add_account()
    refresher.refresh(ACCOUNT)
    assert world.token().azp == credentials.client_id


def test_settings_are_written_once_and_then_one_write_each(world: World, refresher: Refresher) -> None:
    for _ in range(3):
        refresher.refresh(ACCOUNT)
        world.clock.advance(35 * MINUTE)
    writes = [operation for operation in operations(world) if operation.startswith("write")]
    assert writes == ["write_metadata", "write_token", "write_token", "write_token"]


# Races


def let_first(world: World, act: Callable[[], object]) -> None:
    """Have somebody else act just before the next write."""

    def once(operation: str, _: str) -> None:
        if operation == "write_token":
            world.vault.at_request = nothing
            act()

    world.vault.at_request = once


def test_who_loses_the_race_to_a_later_token_adopts_it(world: World, refresher: Refresher) -> None:
    def sister() -> None:
        world.clock.advance(SECOND)
        world.refresher("b").refresh(ACCOUNT)

    let_first(world, sister)
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version, outcome.error) == (Result.ADOPTED, None, 1, None)
    assert outcome.token == world.token()
    assert world.token().exp == NOW + HOUR + SECOND
    world.clock.advance(SECOND)
    assert refresher.refresh(ACCOUNT).result is Result.ADOPTED  # what was minted in vain is forgotten


def test_who_loses_the_race_to_an_earlier_token_writes_over_it(world: World, refresher: Refresher) -> None:
    azp = world.add_account().client_id
    let_first(world, lambda: world.store(token_of(NOW - MINUTE, azp=azp)))
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.version) == (Result.REFRESHED, 2)
    assert world.token().exp == NOW + HOUR


def test_a_vault_whose_clock_lags_lets_no_token_go_backwards(world: World, refresher: Refresher) -> None:
    # by Vault's clock the sister's new token is one from the future, and would not stand
    def sister() -> None:
        world.clock.advance(SECOND)
        world.refresher("b").refresh(ACCOUNT)

    world.vault.skew = -5 * MINUTE
    let_first(world, sister)
    assert refresher.refresh(ACCOUNT).result is Result.ADOPTED
    assert world.token().exp == NOW + HOUR + SECOND


def test_who_loses_the_race_to_garbage_writes_over_it(world: World, refresher: Refresher) -> None:
    let_first(world, lambda: world.store("garbage"))
    assert refresher.refresh(ACCOUNT).version == 2


def test_who_loses_the_race_and_then_vault_keeps_what_it_minted(world: World, refresher: Refresher) -> None:
    def sister() -> None:
        world.store("garbage")
        world.vault.denied = {"read_token"}

    let_first(world, sister)
    assert refresher.refresh(ACCOUNT).result is Result.FAILED
    world.vault.denied = set()
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED
    assert world.liveperson.mints() == 1


def test_who_loses_every_race_fails_and_tries_again_later(world: World, refresher: Refresher) -> None:
    def garbage(operation: str, _: str) -> None:
        if operation == "write_token":
            world.store("garbage")

    world.vault.at_request = garbage
    assert error_of(refresher.refresh(ACCOUNT)) == (Stage.VAULT, Kind.TRANSIENT, None, None)
    world.vault.at_request = nothing
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED
    assert world.liveperson.mints() == 1


def lagging(world: World, by: timedelta) -> None:
    world.vault.fault = lambda operation, _: VaultFault(stale=by if operation == "read_token" else None)


def test_who_loses_the_race_at_a_standby_that_lags_waits_until_it_knows(world: World, refresher: Refresher) -> None:
    def sister() -> None:
        world.clock.advance(SECOND)
        world.refresher("b").refresh(ACCOUNT)
        lagging(world, timedelta(seconds=1.2))

    let_first(world, sister)
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.error) == (Result.ADOPTED, None)
    assert outcome.duration == pytest.approx(1 + 0.05 + 0.1 + 0.2 + 0.4 + 0.8)
    assert world.version() == 1


def test_a_standby_that_never_knows_is_a_failure_that_says_so(world: World, refresher: Refresher) -> None:
    lagging(world, HOUR)
    let_first(world, lambda: world.store("garbage"))
    outcome = refresher.refresh(ACCOUNT)
    assert error_of(outcome) == (Stage.VAULT, Kind.TRANSIENT, None, None)
    assert "newer version than Vault lets us read" in str(outcome.error)
    world.vault.fault = lambda *_: HEALTHY
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED
    assert world.liveperson.mints() == 1


def test_a_manual_refresh_that_races_the_daemon_does_no_harm(world: World, refresher: Refresher) -> None:
    # FIELD 8
    first = refresher.refresh(ACCOUNT)
    world.clock.advance(35 * MINUTE)
    let_first(world, lambda: world.refresher("by hand").refresh(ACCOUNT, by_hand=ByHand()))
    outcome = refresher.refresh(ACCOUNT, held=first.held)
    assert outcome.error is None
    assert outcome.token == world.token()
    assert world.token().exp == world.clock.now() + HOUR
    assert world.version() == 2


# What Vault is told of the account


def notes(world: World, name: str = ACCOUNT) -> dict[str, str]:
    """What stands beside our mark in the metadata of the token's path."""
    metadata = world.vault.kv.metadata(FakeTokens.FOLDER + name)
    assert metadata
    return {key: value for key, value in metadata.custom_metadata.items() if key != "managed_by"}


def test_a_change_of_state_is_told_once_and_taken_back_by_the_next_success(world: World, refresher: Refresher) -> None:
    with world.liveperson.faults.on(Fault(status=401)):
        refresher.refresh(ACCOUNT)
        told = notes(world)
        world.clock.advance(MINUTE)
        refresher.refresh(ACCOUNT)
    assert (
        told
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
    world.vault.tokens.note(ACCOUNT, {"state": "failing", "last_error": "vault: no", "failing_since": utc(NOW)})
    assert world.refresher("b").look(ACCOUNT).result is Result.ADOPTED
    assert notes(world) == {"state": "ok"}


def test_a_disabled_and_a_deleted_account_are_told_as_such(world: World, refresher: Refresher) -> None:
    world.add_account("12345678", enabled=False)
    refresher.refresh("12345678")
    assert notes(world, "12345678") == {"state": "disabled"}
    world.vault.kv.delete(FakeAccounts.FOLDER + "12345678")
    refresher.refresh("12345678")
    assert notes(world, "12345678") == {"state": "removed"}


def test_while_all_is_well_nothing_is_told(world: World, refresher: Refresher) -> None:
    refresher.refresh(ACCOUNT)
    world.clock.advance(HOUR / 2)
    refresher.refresh(ACCOUNT)
    assert notes(world) == {}


def test_a_dry_run_tells_vault_nothing(world: World, refresher: Refresher) -> None:
    world.add_account(client_id=7)
    outcome = refresher.refresh(ACCOUNT, by_hand=ByHand(dry_run=True))
    assert outcome.result is Result.FAILED
    assert world.vault.kv.metadata(FakeTokens.FOLDER + ACCOUNT) is None


def test_what_cannot_be_told_now_is_told_by_the_next_attempt(world: World, refresher: Refresher) -> None:
    world.vault.denied = {"write_metadata"}
    with world.liveperson.faults.on(Fault(status=401)):
        assert error_of(refresher.refresh(ACCOUNT)) == (Stage.SENTINEL, Kind.LASTING, 401, None)
        world.vault.denied = set()
        refresher.refresh(ACCOUNT)
    assert notes(world)["state"] == "failing"


def test_a_foreign_path_is_told_nothing(world: World, refresher: Refresher) -> None:
    world.vault.kv.put(FakeTokens.FOLDER + ACCOUNT, {"password": "theirs"})
    refresher.refresh(ACCOUNT)
    assert notes(world) == {}


def test_a_mark_that_went_missing_is_back_after_a_look(world: World, refresher: Refresher) -> None:
    refresher.refresh(ACCOUNT)
    path = FakeTokens.FOLDER + ACCOUNT
    world.vault.kv.set_metadata(path, max_versions=0, custom_metadata={"managed_by": None})
    world.vault.denied = {"write_metadata"}
    outcome = refresher.look(ACCOUNT)
    assert (outcome.result, outcome.restored) == (Result.ADOPTED, False)
    world.vault.denied = set()
    outcome = refresher.look(ACCOUNT)
    assert (outcome.result, outcome.restored) == (Result.ADOPTED, True)
    metadata = world.vault.kv.metadata(path)
    assert metadata
    assert (metadata.max_versions, metadata.custom_metadata) == (5, {"managed_by": "appjwt-worker"})
    assert refresher.look(ACCOUNT).restored is False


def test_a_stranger_who_was_faster_at_a_new_path_keeps_it_and_nothing_is_kept_for_it(
    world: World, refresher: Refresher
) -> None:
    path = FakeTokens.FOLDER + ACCOUNT

    let_first(world, lambda: world.vault.kv.put(path, {"password": "theirs"}))
    outcome = refresher.refresh(ACCOUNT)
    assert isinstance(outcome.error, ForeignSecretError)
    assert (world.data(), notes(world)) == ({"password": "theirs"}, {})
    assert isinstance(refresher.refresh(ACCOUNT).error, ForeignSecretError)


# An account that was edited


def test_a_failing_account_whose_secret_is_another_one_is_refreshed_for_that_reason(
    world: World, refresher: Refresher
) -> None:
    mended = world.liveperson.add_account(ACCOUNT)
    world.vault.kv.put(FakeAccounts.FOLDER + ACCOUNT, account_secret())
    assert refresher.has_changed(ACCOUNT) is False  # it never failed
    assert refresher.refresh(ACCOUNT).reason is Reason.MISSING
    assert refresher.has_changed(ACCOUNT) is False
    assert refresher.refresh(ACCOUNT).reason is Reason.MISSING
    world.vault.kv.put(FakeAccounts.FOLDER + ACCOUNT, asdict(mended))
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
        world.vault.kv.delete(FakeAccounts.FOLDER + ACCOUNT)
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
    ("name", "gone"), [(ACCOUNT, False), ("disabled", False), ("invalid", False), ("never", True), ("no name", True)]
)
def test_only_its_own_404_or_an_impossible_name_says_that_an_account_is_gone(
    world: World,
    refresher: Refresher,
    name: str,
    gone: bool,  # noqa: FBT001 - a parameter
) -> None:
    world.add_account("disabled", enabled=False)
    world.vault.kv.put(FakeAccounts.FOLDER + "invalid", {"client_id": "x"})
    assert refresher.is_gone(name) is gone
    world.vault.denied = {"read_account"}
    assert refresher.is_gone(name) is (name == "no name")
    world.vault.is_down = True
    assert refresher.is_gone(name) is (name == "no name")


# Many at once


def test_after_a_missing_or_a_late_token_the_next_is_planned_apart_from_the_others(
    world: World, refresher: Refresher
) -> None:
    def share(outcome: Outcome) -> float:
        held = outcome.held
        assert held
        return (held.refresh_at - held.life.begins) / HOUR.total_seconds()

    def refreshed(planned_ago: float, before: Outcome) -> Outcome:
        assert before.held
        return refresher.refresh(ACCOUNT, held=replace(before.held, refresh_at=world.clock() - planned_ago))

    first = refresher.refresh(ACCOUNT)
    world.clock.advance(HOUR * 0.59)
    usual = refreshed(180, first)
    world.clock.advance(HOUR * 0.59)
    late = refreshed(181, usual)
    assert share(first) == share(late) != share(usual)
    assert share(usual) == pytest.approx(0.5, abs=0.05)
    assert 0.1 <= share(first) < 0.45


# What the operator asks for


@pytest.mark.parametrize(("less_than", "result"), [(1799.0, Result.SKIPPED), (1801.0, Result.REFRESHED)])
def test_by_hand_only_those_with_less_life_than_asked_for(
    world: World, refresher: Refresher, less_than: float, result: Result
) -> None:
    refresher.refresh(ACCOUNT)
    world.clock.advance(HOUR / 2)
    outcome = refresher.refresh(ACCOUNT, by_hand=ByHand(if_less_than=less_than))
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
    outcome = refresher.refresh(ACCOUNT, by_hand=ByHand(dry_run=True))
    assert (outcome.result, outcome.reason) == (Result.SKIPPED, reason)
    assert (world.liveperson.mints(), world.version()) == (mints, version)


def test_after_a_restart_the_stored_host_serves_while_the_domain_api_is_down(
    world: World, refresher: Refresher
) -> None:
    refresher.refresh(ACCOUNT)
    world.clock.advance(35 * MINUTE)
    with world.liveperson.faults.on(Fault(status=503), service="domain"):
        outcome = world.refresher().refresh(ACCOUNT)
    assert (outcome.result, outcome.host) == (Result.REFRESHED, world.liveperson.hosts["va"])
