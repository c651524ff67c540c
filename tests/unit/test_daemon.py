"""The daemon on the fake world: a timer, a thread and a clock that all move when they are told to."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from sandbox.faults import Fault
from tests.builders import ACCOUNT, token_of
from tests.fakes.clock import DAY, HOUR, MINUTE, SECOND, nothing
from tests.fakes.vault import FakeAccounts, FakeTokens
from tests.fakes.world import Replica, World
from worker import status
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.outcome import Result, State
from worker.core.plan import Reason
from worker.refresh import ByHand


@pytest.fixture
def world() -> World:
    made = World()
    made.add_account()
    return made


def results(replica: Replica, account: str = ACCOUNT) -> list[Result]:
    return [outcome.result for outcome in replica.outcomes_of(account)]


def state(replica: Replica, account: str = ACCOUNT) -> State:
    return replica.following[account].state


# The main job


def test_a_new_account_has_its_token_at_once_and_then_always_a_fresh_one(world: World) -> None:
    world.start()
    world.run(SECOND)
    for _ in range(24 * 6):
        assert world.token().exp - world.clock.now() >= 0.4 * HOUR
        world.run(10 * MINUTE)
    assert 46 <= world.version() <= 54
    assert world.liveperson.mints() == world.version()


def test_between_two_refreshes_nothing_is_written_and_no_credentials_are_read(world: World) -> None:
    # FIELD 4: a new version on every tick though nothing changed
    replica = world.start()
    world.run(SECOND)
    world.vault.calls.clear()
    world.run(25 * MINUTE)
    assert {operation for operation, _ in world.vault.calls} == {"list"}
    assert results(replica) == [Result.REFRESHED]


def test_the_same_token_again_and_again_is_asked_for_ever_less_often(world: World) -> None:
    # FIELD 20: at half-life it would become a hot loop
    world.liveperson.faults.set(Fault(same_token=True))
    replica = world.start()
    world.run(HOUR - SECOND)
    assert world.version() == 1
    assert set(results(replica)[1:]) == {Result.UNCHANGED}
    assert world.liveperson.mints() <= 15
    world.run(2 * SECOND)
    assert world.version() == 2


def test_tokens_that_hardly_live_make_no_hot_loop(world: World) -> None:
    # FIELD 1
    world.liveperson.token_life = SECOND
    world.start()
    world.run(MINUTE)
    assert 30 <= world.liveperson.mints() <= 61


# Accounts come and go


def test_a_new_account_is_noticed_by_the_next_sync(world: World) -> None:
    replica = world.start(sync_every=MINUTE)
    world.run(10 * SECOND)
    world.add_account("12345678", "lo")
    with capture_logs() as logs:
        world.run(MINUTE)
    assert results(replica, "12345678") == [Result.REFRESHED]
    assert {"event": "account.added", "account": "12345678", "log_level": "info"} in logs


def test_a_removed_account_is_noticed_by_the_next_sync_and_left_alone_from_then_on(world: World) -> None:
    replica = world.start()
    world.run(10 * SECOND)
    world.vault.kv.remove(FakeAccounts.FOLDER + ACCOUNT)
    with capture_logs() as logs:
        world.run(MINUTE)
    assert ACCOUNT not in replica.fleet
    assert ACCOUNT not in replica.timer.due
    assert {"event": "account.removed", "account": ACCOUNT, "log_level": "info"} in logs
    world.run(2 * HOUR)
    assert world.liveperson.mints() == 1


def test_absence_from_a_list_alone_removes_nothing(world: World) -> None:
    replica = world.start()
    world.run(10 * SECOND)
    world.vault.unlisted = {ACCOUNT}
    world.run(2 * HOUR)
    assert ACCOUNT in replica.fleet
    assert world.token().exp > world.clock.now()


@pytest.mark.parametrize("trouble", ["denied", "losing"])
def test_an_account_that_cannot_be_read_is_not_removed(world: World, trouble: str) -> None:
    replica = world.start()
    world.run(10 * SECOND)
    secret = world.vault.kv.read(FakeAccounts.FOLDER + ACCOUNT)
    world.vault.kv.remove(FakeAccounts.FOLDER + ACCOUNT)
    setattr(world.vault, trouble, {"read_account"})
    world.run(5 * MINUTE)
    assert ACCOUNT in replica.fleet
    assert secret
    assert secret.data
    world.vault.kv.put(FakeAccounts.FOLDER + ACCOUNT, secret.data)
    setattr(world.vault, trouble, set())
    world.run(HOUR)
    assert ACCOUNT in replica.fleet
    assert world.token().exp > world.clock.now()


def test_a_deleted_account_is_skipped_without_a_word_and_taken_up_again_when_it_is_back(world: World) -> None:
    # a deleted secret stays in the LIST: comings and goings must not be told of at every sync
    replica = world.start()
    credentials = world.vault.kv.read(FakeAccounts.FOLDER + ACCOUNT)
    assert credentials
    assert credentials.data
    world.vault.kv.delete(FakeAccounts.FOLDER + ACCOUNT)
    with capture_logs() as lines:
        world.run(30 * MINUTE)
    assert not {line["event"] for line in lines} & {"account.added", "account.removed"}
    assert set(results(replica)) == {Result.SKIPPED}
    assert state(replica) is State.REMOVED
    world.vault.kv.put(FakeAccounts.FOLDER + ACCOUNT, credentials.data)
    world.run(2 * MINUTE)
    assert results(replica)[-1] is Result.REFRESHED


def test_a_disabled_account_is_taken_up_again_when_it_is_enabled(world: World) -> None:
    replica = world.start()
    world.add_account("12345678", enabled="false")
    world.run(HOUR)
    assert set(results(replica, "12345678")) == {Result.SKIPPED}
    assert world.data("12345678") == {}
    world.add_account("12345678")
    world.run(2 * MINUTE)
    assert world.data("12345678")


def test_a_failing_account_that_is_edited_is_tried_within_one_sync(world: World) -> None:
    # FIELD 8: a daemon that ignores an edit until its timer ends
    replica = world.start()
    world.add_account("12345678", client_secret="wrong")
    world.run(HOUR / 2)
    assert state(replica, "12345678") is State.FAILING
    assert replica.following["12345678"].due - world.clock() > 3 * 60
    world.add_account("12345678")
    world.run(MINUTE + SECOND)
    outcome = replica.outcomes_of("12345678")[-1]
    assert (outcome.result, outcome.reason) == (Result.REFRESHED, Reason.CHANGED)
    assert world.data("12345678")


def test_of_failing_accounts_that_are_not_edited_nothing_but_the_secret_is_read(world: World) -> None:
    replica = world.start()
    world.add_account("12345678", client_secret="wrong")
    world.run(HOUR)
    tries = len(replica.outcomes_of("12345678"))
    reads = world.vault.calls.count(("read_account", "12345678"))
    assert tries < 15
    assert tries + 40 < reads < tries + 62


def test_an_edited_account_is_looked_for_at_the_next_sync_again_when_vault_is_away(world: World) -> None:
    replica = world.start()
    world.add_account("12345678", client_secret="wrong")
    world.run(HOUR)
    world.add_account("12345678")
    world.vault.denied = {"read_account"}
    world.run(MINUTE + SECOND)
    assert state(replica, "12345678") is State.FAILING
    world.vault.denied = set()
    world.run(MINUTE + SECOND)
    assert results(replica, "12345678")[-1] is Result.REFRESHED


# Nobody else hurt


def test_one_accounts_trouble_changes_nothing_for_the_others(world: World) -> None:
    # FIELD 6
    for name in ("invalid", "refused", "foreign", "buggy"):
        world.add_account(name)
    world.vault.kv.put(FakeAccounts.FOLDER + "invalid", {"client_id": ""})
    world.vault.kv.put(FakeTokens.FOLDER + "foreign", {"password": "theirs"})
    world.liveperson.faults.set(Fault(status=401), account="refused")

    def bug(_: str, name: str) -> None:
        if name == "buggy":
            raise ZeroDivisionError

    world.vault.at_request = bug
    replica = world.start()
    for _ in range(12):
        world.run(10 * MINUTE)
        assert world.token().exp - world.clock.now() >= 0.4 * HOUR
    states = {name: state(replica, name) for name in ("invalid", "refused", "foreign", "buggy")}
    assert states == {
        "invalid": State.INVALID,
        "refused": State.FAILING,
        "foreign": State.FOREIGN,
        "buggy": State.FAILING,
    }
    assert set(results(replica)) == {Result.REFRESHED}


# It comes back by itself


def test_an_outage_of_vault_costs_nothing_while_tokens_live_and_is_over_when_vault_is_back(world: World) -> None:
    # FIELD 3: a timer stuck in the past, or a state that stays "failed" after recovery
    replica = world.start()
    world.run(10 * SECOND)
    world.vault.is_down = True
    world.run(50 * MINUTE)
    assert state(replica) is State.FAILING
    world.vault.is_down = False
    world.run(3 * MINUTE)
    assert state(replica) is State.OK
    assert world.token().exp - world.clock.now() >= 0.9 * HOUR


def test_a_live_token_is_renewed_in_time_once_sentinel_is_back(world: World) -> None:
    world.start()
    world.run(10 * SECOND)
    with world.liveperson.faults.on(Fault(status=503)):
        world.run(HOUR - MINUTE)
    world.run(15 * SECOND)
    assert world.token().exp - world.clock.now() >= 0.9 * HOUR


def test_a_restart_in_an_outage_still_heeds_how_long_the_token_lives(world: World) -> None:
    world.store(token_of(world.clock.now() - 50 * MINUTE, azp=world.add_account().client_id))
    world.start()
    with world.liveperson.faults.on(Fault(status=503)):
        world.run(8 * MINUTE)
    world.run(90 * SECOND)  # the token has 30 seconds left
    assert world.token().exp - world.clock.now() >= 0.9 * HOUR


def test_a_failed_sync_is_followed_by_the_next_and_loses_no_account(world: World) -> None:
    replica = world.start()
    world.run(10 * SECOND)
    world.vault.denied = {"list"}
    world.run(10 * MINUTE)
    world.add_account("12345678")
    assert ACCOUNT in replica.fleet
    world.vault.denied = set()
    world.run(MINUTE)
    assert results(replica, "12345678") == [Result.REFRESHED]
    assert results(replica) == [Result.REFRESHED]


def test_a_list_that_is_refused_is_told_once_and_once_more_when_it_works_again(world: World) -> None:
    world.start()
    world.run(MINUTE)
    with capture_logs() as lines:
        world.vault.denied = {"list"}
        world.run(10 * MINUTE)
        world.vault.denied = set()
        world.run(10 * MINUTE)
    assert [line["event"] for line in lines if line["event"].startswith("vault.")] == [
        "vault.unavailable",
        "vault.recovered",
    ]


def test_a_vault_that_is_away_is_asked_often_enough_to_notice_its_return(world: World) -> None:
    world.start(sync_every=5 * MINUTE)
    world.run(MINUTE)
    world.vault.is_down = True
    world.run(HOUR / 3)
    world.vault.calls.clear()
    world.run(MINUTE)
    assert world.vault.calls.count(("list", "")) == 4


def test_while_the_first_sync_fails_it_is_tried_again_sooner(world: World) -> None:
    world.vault.is_down = True
    replica = world.start(sync_every=HOUR)
    world.run(40 * SECOND)
    assert [operation for operation, _ in world.vault.calls] == ["list"] * 4
    world.vault.is_down = False
    world.run(2 * MINUTE)
    assert results(replica) == [Result.REFRESHED]


@pytest.mark.parametrize("where", ["list", "log_in"])
def test_a_bug_in_a_sync_is_told_and_the_next_sync_comes_all_the_same(world: World, where: str) -> None:
    replica = world.start()

    def bug(operation: str = "log_in", _: str = "") -> float:
        if operation == where:
            raise ZeroDivisionError
        return float("inf")

    world.vault.at_request = bug
    replica.log_in = bug
    with capture_logs() as logs:
        world.run(5 * MINUTE)
    assert [entry["event"] for entry in logs].count("worker.bug") == 6
    world.vault.at_request = lambda *_: None
    world.add_account("12345678")
    world.run(MINUTE + SECOND)
    assert results(replica, "12345678") == [Result.REFRESHED]


def test_an_account_whom_no_timer_rang_for_is_found_by_the_next_sync(world: World) -> None:
    # FIELD 15: APScheduler drops jobs in more than one way
    replica = world.start()
    world.run(10 * SECOND)
    replica.timer.drop(ACCOUNT)
    world.run(35 * MINUTE)
    assert results(replica) == [Result.REFRESHED, Result.REFRESHED]


def test_a_paused_machine_goes_on_where_it_stopped(world: World) -> None:
    # FIELD 3
    replica = world.start()
    world.run(10 * SECOND)
    world.clock.advance(DAY)
    world.run(MINUTE)
    assert results(replica) == [Result.REFRESHED, Result.REFRESHED]
    assert world.token().exp > world.clock.now()


def test_a_report_that_fails_stops_no_account(world: World) -> None:
    replica = world.start()

    def broken(*_: object) -> None:
        raise BrokenPipeError

    replica.report = broken
    with capture_logs():
        world.run(2 * HOUR)
    assert world.token().exp > world.clock.now()


# Ready


def test_ready_means_that_every_stored_token_was_looked_at(world: World) -> None:
    world.add_account("12345678")
    ready_at: list[bool] = []
    replica = world.start()
    world.vault.at_request = lambda operation, _: (
        ready_at.append(replica.daemon.ready.is_set()) if operation == "read_token" else None
    )
    assert not replica.daemon.ready.is_set()
    replica.work()
    assert ready_at[:2] == [False, False]
    assert replica.daemon.ready.is_set()


def test_not_ready_while_the_accounts_cannot_be_listed_and_ready_for_good_once_they_were(world: World) -> None:
    world.vault.is_down = True
    replica = world.start()
    world.run(5 * MINUTE)
    assert not replica.daemon.ready.is_set()
    world.vault.is_down = False
    world.run(MINUTE)
    assert replica.daemon.ready.is_set()
    world.vault.is_down = True
    world.add_account("12345678")
    world.run(HOUR)
    assert replica.daemon.ready.is_set()


def test_without_any_account_it_is_ready(world: World) -> None:
    world.vault.kv.remove(FakeAccounts.FOLDER + ACCOUNT)
    replica = world.start()
    replica.work()
    assert replica.daemon.ready.is_set()


# Restarts and replicas


def test_a_restart_adopts_what_is_fresh_and_mints_nothing(world: World) -> None:
    for number in range(20):
        world.add_account(f"le{number}")
    first = world.start()
    world.run(5 * MINUTE)
    minted = world.liveperson.mints()
    world.crash(first)
    world.vault.calls.clear()
    second = world.start()
    world.run(MINUTE)
    assert {outcome.result for outcome in second.outcomes} == {Result.ADOPTED}
    assert world.liveperson.mints() == minted == 21
    assert {operation for operation, _ in world.vault.calls} == {"list", "read_token"}


def test_the_first_account_that_is_due_after_a_restart_is_refreshed_at_once(world: World) -> None:
    # every account's host is known from its stored token, and none ever queued without one
    world.refresher().refresh(ACCOUNT)
    replica = world.start(sync_every=DAY)
    world.run(35 * MINUTE)
    assert results(replica) == [Result.ADOPTED, Result.REFRESHED]


def test_a_token_that_is_written_by_hand_is_adopted_when_ours_is_due(world: World) -> None:
    # FIELD 8: a daemon and a manual refresh, neither of which knows of the other
    replica = world.start()
    world.run(25 * MINUTE)
    world.refresher("by hand").refresh(ACCOUNT, by_hand=ByHand())
    world.run(10 * MINUTE)
    assert results(replica) == [Result.REFRESHED, Result.ADOPTED]
    assert world.liveperson.mints() == 2


def test_two_replicas_share_the_work_and_mint_hardly_more_than_one(world: World) -> None:
    for number in range(20):
        world.add_account(f"le{number}")
    world.start("a")
    world.run(MINUTE)
    world.start("b")
    world.run(10 * HOUR)
    assert all(world.token(f"le{number}").exp > world.clock.now() for number in range(20))
    assert world.liveperson.mints() <= 21 * 22


def test_a_replica_that_crashes_is_made_up_for_by_its_sister(world: World) -> None:
    first, second = world.start("a"), world.start("b")
    world.run(10 * MINUTE)
    world.crash(first)
    for _ in range(12):
        world.run(10 * MINUTE)
        assert world.token().exp - world.clock.now() >= 0.4 * HOUR
    assert state(second) is State.OK


# Login and stop


def test_the_login_is_kept_alive_when_it_wants_to_be_and_soon_again_where_that_failed(world: World) -> None:
    asked: list[float] = []
    begin = world.clock()

    def log_in() -> float:
        asked.append(world.clock() - begin)
        if len(asked) == 2:
            raise RefreshError(Stage.VAULT, Kind.TRANSIENT, "connection refused")
        return world.clock() + 100

    replica = world.start(sync_every=DAY)
    replica.log_in = log_in
    world.run(5 * MINUTE)
    assert asked == [0, 100, 105, 205]


def test_after_stop_nothing_new_begins(world: World) -> None:
    replica = world.start()
    world.run(10 * SECOND)
    replica.daemon.stop()
    world.vault.calls.clear()
    world.run(2 * HOUR)
    assert world.vault.calls == []


def test_the_rate_cap_is_held_and_everybody_has_a_token_in_the_end(world: World) -> None:
    for number in range(30):
        world.add_account(f"le{number}")
    starts: list[float] = []
    world.liveperson.at_request = lambda service, _: starts.append(world.clock()) if service == "sentinel" else None
    world.start(max_per_second=10, sync_every=HOUR)
    world.run(5 * SECOND)
    assert world.liveperson.mints() == 31
    assert all(later - earlier >= 0.099 for earlier, later in pairwise(starts))


# The sweep


@pytest.mark.parametrize(
    "harm", ["deleted", "destroyed", "removed", "rolled back", "ended", "unsound", "of another app"]
)
def test_a_stored_token_that_was_tampered_with_is_repaired_by_the_sweep(world: World, harm: str) -> None:
    first = world.start(sweep_every=5 * MINUTE)
    world.run(MINUTE)
    kv, path = world.vault.kv, FakeTokens.FOLDER + ACCOUNT
    before, now = world.token(), world.clock.now()
    match harm:
        case "deleted":
            kv.delete(path)
        case "destroyed":
            kv.destroy(path)
        case "removed":
            kv.remove(path)
        case "rolled back":
            world.store(token_of(now - 20 * MINUTE, azp=before.azp))
        case "ended":
            world.store(token_of(now - 2 * HOUR, azp=before.azp))
        case "unsound":
            world.store("no token at all")
        case "of another app":
            world.store(token_of(now, 90 * MINUTE))
    mints = world.liveperson.mints()
    world.run(5 * MINUTE)
    assert (world.token().azp, world.liveperson.mints()) == (before.azp, mints + 1)
    assert world.token().exp > before.exp
    outcome = first.outcomes_of(ACCOUNT)[-1]
    assert (outcome.result, outcome.reason) == (Result.REFRESHED, Reason.DRIFT)


def test_a_sweep_that_finds_all_as_it_was_does_nothing_and_reads_no_credentials(world: World) -> None:
    world.add_account("12345678", "lo")
    replica = world.start(sweep_every=MINUTE)
    world.run(2 * SECOND)
    world.vault.calls.clear()
    world.run(10 * MINUTE)
    assert {operation for operation, _ in world.vault.calls} == {"list", "read_token"}
    assert [operation for operation, _ in world.vault.calls].count("read_token") in (18, 20)
    assert results(replica) == [Result.REFRESHED]


def test_an_account_that_comes_due_while_the_sweep_looks_at_it_is_refreshed_all_the_same(world: World) -> None:
    replica = world.start(sync_every=DAY, sweep_every=HOUR)
    world.run(MINUTE)
    world.vault.kv.set_metadata(FakeTokens.FOLDER + ACCOUNT, custom_metadata={"state": "failing"})

    def comes_due(operation: str, _: str) -> None:
        if operation != "write_metadata":
            return
        world.vault.at_request = nothing  # the look was over, and takes back what is told wrongly
        world.clock.advance_to(replica.timer.due[ACCOUNT])
        replica.timer.drop(ACCOUNT)
        replica.daemon.ring(ACCOUNT)

    world.vault.at_request = comes_due
    replica.daemon.ring("/sweep")
    replica.pool.run()
    assert world.vault.at_request is nothing
    world.run(10 * SECOND)
    assert results(replica) == [Result.REFRESHED, Result.REFRESHED]


def test_another_app_s_token_that_a_restart_adopted_is_repaired_by_the_first_sweep(world: World) -> None:
    """It is told by azp alone, which only the account's secret knows; each is read once after a restart."""
    world.add_account(f"{ACCOUNT}/other")
    world.refresher("by hand").refresh(f"{ACCOUNT}/other")
    other = world.token(f"{ACCOUNT}/other")
    world.store(other.raw.get_secret_value())
    replica = world.start(sweep_every=5 * MINUTE)
    world.run(MINUTE)
    assert (results(replica), world.token().azp) == ([Result.ADOPTED], other.azp)
    world.vault.calls.clear()
    world.run(5 * MINUTE)
    assert results(replica) == [Result.ADOPTED, Result.REFRESHED]
    assert replica.outcomes_of(ACCOUNT)[-1].reason is Reason.UNSOUND
    assert world.token().azp != other.azp
    assert world.vault.calls.count(("read_account", f"{ACCOUNT}/other")) == 1
    world.run(5 * MINUTE)
    assert world.vault.calls.count(("read_account", f"{ACCOUNT}/other")) == 1
    assert results(replica, f"{ACCOUNT}/other") == [Result.ADOPTED]


def test_a_sweep_restores_a_mark_that_went_missing_and_says_so_once(world: World) -> None:
    replica = world.start(sweep_every=5 * MINUTE)
    world.run(MINUTE)
    path = FakeTokens.FOLDER + ACCOUNT
    world.vault.kv.set_metadata(path, custom_metadata={"managed_by": None})
    world.run(20 * MINUTE)
    metadata = world.vault.kv.metadata(path)
    assert metadata
    assert metadata.custom_metadata == {"managed_by": "appjwt-worker"}
    assert [(outcome.result, outcome.restored) for outcome in replica.outcomes] == [
        (Result.REFRESHED, False),
        (Result.ADOPTED, True),
    ]


def test_a_sweep_adopts_what_a_sister_wrote_and_is_quiet_while_vault_is_down(world: World) -> None:
    replica = world.start(sweep_every=5 * MINUTE)
    world.run(MINUTE)
    world.refresher("by hand").refresh(ACCOUNT, by_hand=ByHand())
    world.run(5 * MINUTE)
    assert results(replica) == [Result.REFRESHED, Result.ADOPTED]
    world.vault.is_down = True
    world.run(15 * MINUTE)
    assert len(results(replica)) == 2
    world.vault.is_down = False
    world.run(30 * MINUTE)
    assert results(replica) == [Result.REFRESHED, Result.ADOPTED, Result.REFRESHED]


# What a hostile test broke


def test_tokens_that_come_past_their_moment_make_no_hot_loop(world: World) -> None:
    # FIELD 1: Sentinel hands out tokens with a third of their life left, or its Date is that far ahead
    world.start()
    for _ in range(60):
        iat, exp = (int((world.clock.now() + shift).timestamp()) for shift in (-40 * MINUTE, 20 * MINUTE))
        world.liveperson.faults.set(Fault(claims={"iat": iat, "exp": exp}))
        world.run(SECOND)
    assert world.liveperson.mints() == 1


def test_a_sentinel_whose_clock_is_behind_never_takes_a_living_token_away(world: World) -> None:
    world.refresher().refresh(ACCOUNT)
    before = world.token().exp
    world.liveperson.faults.set(Fault(skew=-2 * HOUR))
    assert world.refresher("by hand").refresh(ACCOUNT, by_hand=ByHand()).result is Result.UNCHANGED
    assert world.token().exp == before


def test_a_token_from_a_sentinel_whose_clock_was_ahead_is_replaced_and_makes_no_loop(world: World) -> None:
    world.liveperson.faults.set(Fault(skew=2 * HOUR), times=1)
    world.start()
    world.run(HOUR)
    mints = world.liveperson.mints()
    assert timedelta(0) < world.token().exp - world.clock.now() <= HOUR
    world.run(HOUR)
    assert 1 <= world.liveperson.mints() - mints <= 3


def test_an_account_that_moved_to_another_region_is_found_by_its_next_attempts(world: World) -> None:
    replica = world.start()
    world.run(MINUTE)
    world.liveperson.move(ACCOUNT, "lo")
    world.run(HOUR)
    assert results(replica)[-1] is Result.REFRESHED
    assert world.token().exp - world.clock.now() > 0.4 * HOUR


@pytest.mark.parametrize("fault", [Fault(refuse=True), Fault(hang=True), Fault(status=503), Fault(status=404)])
def test_an_account_that_moved_away_from_a_host_in_trouble_does_not_wait_for_that_host(
    fault: Fault, world: World
) -> None:
    # what LivePerson does with a data centre that is lost: the look-up must not wait for the end of its cache
    replica = world.start()
    world.run(MINUTE)
    world.liveperson.move(ACCOUNT, "lo")
    with world.liveperson.faults.on(fault, host=world.liveperson.hosts["va"]):
        world.run(HOUR)
        assert results(replica)[-1] is Result.REFRESHED
        assert world.token().exp - world.clock.now() > 0.4 * HOUR


def test_while_a_host_has_trouble_the_domain_api_is_not_asked_at_every_attempt(world: World) -> None:
    world.start()
    world.run(MINUTE)
    world.liveperson.requests.clear()
    with world.liveperson.faults.on(Fault(status=503), service="sentinel"):
        world.run(45 * MINUTE)
    asked = [service for service, _ in world.liveperson.requests]
    assert 2 <= asked.count("domain") < asked.count("sentinel") - 2


# What --status says


def shown(world: World, *names: str) -> dict[str, status.Line]:
    with ThreadPoolExecutor(1) as pool:
        return {line.account: line for line in status.lines(names, world.vault.tokens, pool)}


def test_status_says_of_each_account_what_the_daemon_knows(world: World) -> None:
    replica = world.start()
    others = ["failing", "late", "invalid", "disabled", "foreign", "removed"]
    for name in others:
        world.add_account(name)
    world.vault.kv.put(FakeTokens.FOLDER + "foreign", {"password": "theirs"})
    world.add_account("failing", client_secret="wrong")
    world.run(2 * MINUTE)
    world.add_account("late", client_secret="wrong")
    world.add_account("invalid", client_id=7)
    world.add_account("disabled", enabled=False)
    world.vault.kv.delete(FakeAccounts.FOLDER + "removed")
    world.run(HOUR * 0.6)
    told = shown(world, ACCOUNT, *others)
    assert {name: line.state for name, line in told.items()} == {
        ACCOUNT: State.OK,
        "failing": State.FAILING,
        "late": State.FAILING,
        "invalid": State.INVALID,
        "disabled": State.DISABLED,
        "foreign": State.FOREIGN,
        "removed": State.REMOVED,
    }
    assert all(state(replica, name) is line.state for name, line in told.items())
    assert told["late"].last_error == "sentinel: answers 401"
    assert told["invalid"].last_error == "credentials: client_id: must be a string, is a number"
    world.add_account("late")
    world.add_account("invalid")
    world.run(2 * MINUTE)
    again = shown(world, "late", "invalid").values()
    assert {(line.state, line.last_error, line.failing_since) for line in again} == {(State.OK, None, None)}
