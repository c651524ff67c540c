"""The daemon on the fake world: a timer, a thread and a clock that all move only when the test moves them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from sandbox.faults import Fault
from tests.builders import ACCOUNT, token_of
from tests.fakes.clock import DAY, HOUR, MINUTE, SECOND, nothing
from tests.fakes.vault import ACCOUNTS, TOKENS
from tests.fakes.world import Replica, World
from worker import status
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.outcome import Result, State
from worker.core.plan import Reason
from worker.core.status import AccountStatus, Severity, record_status
from worker.refresh import ForceRefresh
from worker.vault.outage import Outage


def results(replica: Replica, account: str = ACCOUNT) -> list[Result]:
    return [outcome.result for outcome in replica.outcomes_of(account)]


def state(replica: Replica, account: str = ACCOUNT) -> State:
    return replica.transition[account].state


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
    # a new version on every tick though nothing changed
    replica = world.start()
    world.run(SECOND)
    world.vault.calls.clear()
    world.run(25 * MINUTE)
    assert {operation for operation, _ in world.vault.calls} == {"list"}
    assert results(replica) == [Result.REFRESHED]


def test_the_same_token_again_and_again_is_asked_for_ever_less_often(world: World) -> None:
    # at half-life it would become a hot loop
    world.liveperson.faults.set(Fault(same_token=True))
    replica = world.start()
    world.run(HOUR - SECOND)
    assert world.version() == 1
    assert set(results(replica)[1:]) == {Result.UNCHANGED}
    assert world.liveperson.mints() <= 15
    world.run(2 * SECOND)
    assert world.version() == 2


def test_tokens_that_hardly_live_make_no_hot_loop(world: World) -> None:
    world.liveperson.token_life = SECOND
    world.start()
    world.run(MINUTE)
    assert 30 <= world.liveperson.mints() <= 61


def test_tokens_that_vault_deletes_within_seconds_make_no_hot_loop_and_are_no_drift(world: World) -> None:
    world.vault.kv.delete_version_after = 10 * SECOND
    replica = world.start(resync_interval=5 * MINUTE)
    world.run(HOUR)
    assert 100 <= world.liveperson.mints() <= 150
    assert {(outcome.result, outcome.reason) for outcome in replica.outcomes} == {(Result.REFRESHED, Reason.MISSING)}
    assert state(replica) is State.FAILING
    world.vault.kv.delete_version_after = timedelta()
    world.run(MINUTE)
    assert state(replica) is State.OK
    mints = world.liveperson.mints()
    world.run(20 * MINUTE)
    assert world.liveperson.mints() == mints


# Accounts come and go


def test_a_new_account_is_noticed_by_the_next_sync(world: World) -> None:
    replica = world.start(sync_interval=MINUTE)
    world.run(10 * SECOND)
    world.add_account("12345678", "lo")
    with capture_logs() as logs:
        world.run(MINUTE)
    assert results(replica, "12345678") == [Result.REFRESHED]
    assert {"event": "account.added", "account": "12345678", "log_level": "info"} in logs


def test_a_removed_account_is_noticed_by_two_syncs_and_left_alone_from_then_on(world: World) -> None:
    replica = world.start()
    world.run(10 * SECOND)
    world.vault.kv.remove(ACCOUNTS + ACCOUNT)
    with capture_logs() as logs:
        world.run(MINUTE)
        assert ACCOUNT in replica.scheduler
        assert state(replica) is State.OK
        world.run(MINUTE)
    assert ACCOUNT not in replica.scheduler
    assert ACCOUNT not in replica.timer.due
    assert {"event": "account.removed", "account": ACCOUNT, "log_level": "info"} in logs
    world.run(2 * HOUR)
    assert world.liveperson.mints() == 1


def test_an_account_that_is_back_at_the_second_sync_is_not_removed(world: World) -> None:
    replica = world.start()
    world.run(10 * SECOND)
    secret = world.vault.kv.get(ACCOUNTS + ACCOUNT).data
    assert secret
    for _ in range(3):
        world.vault.kv.remove(ACCOUNTS + ACCOUNT)
        world.run(MINUTE)
        world.vault.kv.put(ACCOUNTS + ACCOUNT, secret)
        world.run(HOUR / 2 + 5 * MINUTE)  # its token is due, and its secret is read
    assert ACCOUNT in replica.scheduler
    assert set(results(replica)) == {Result.REFRESHED}


def test_absence_from_a_list_alone_removes_nothing(world: World) -> None:
    replica = world.start()
    world.run(10 * SECOND)
    world.vault.unlisted = {ACCOUNT}
    world.run(2 * HOUR)
    assert ACCOUNT in replica.scheduler
    assert world.token().exp > world.clock.now()


@pytest.mark.parametrize("trouble", ["denied", "losing"])
def test_an_account_that_cannot_be_read_is_not_removed(world: World, trouble: str) -> None:
    replica = world.start()
    world.run(10 * SECOND)
    secret = world.vault.kv.get(ACCOUNTS + ACCOUNT).data
    world.vault.kv.remove(ACCOUNTS + ACCOUNT)
    setattr(world.vault, trouble, {"read_account"})
    world.run(5 * MINUTE)
    assert ACCOUNT in replica.scheduler
    assert secret
    world.vault.kv.put(ACCOUNTS + ACCOUNT, secret)
    setattr(world.vault, trouble, set())
    world.run(HOUR)
    assert ACCOUNT in replica.scheduler
    assert world.token().exp > world.clock.now()


def test_a_deleted_account_is_skipped_without_a_word_and_taken_up_again_when_it_is_back(world: World) -> None:
    # a deleted secret stays in the LIST: it must not be reported as added or removed at every sync
    replica = world.start()
    credentials = world.vault.kv.get(ACCOUNTS + ACCOUNT).data
    assert credentials
    world.vault.kv.delete(ACCOUNTS + ACCOUNT)
    with capture_logs() as lines:
        world.run(30 * MINUTE)
    assert not {line["event"] for line in lines} & {"account.added", "account.removed"}
    assert results(replica)[0] is Result.FAILED  # one read alone may be wrong
    assert replica.transition[ACCOUNT].failures == 0
    assert set(results(replica)[1:]) == {Result.ABSENT}
    assert state(replica) is State.REMOVED
    world.vault.kv.put(ACCOUNTS + ACCOUNT, credentials)
    world.run(2 * MINUTE)
    assert results(replica)[-1] is Result.REFRESHED


def test_a_first_404_is_read_again_a_sync_later_whatever_the_others_do(world: World) -> None:
    """Woken by their success it was read too soon for a second 404, and as one more failure put off for minutes."""
    others = [f"1234567{number}" for number in range(8)]
    for name in others:
        world.add_account(name)
    replica = world.start()
    world.run(MINUTE)
    world.vault.kv.delete(ACCOUNTS + ACCOUNT)
    world.run(35 * MINUTE)
    first = next(outcome for outcome in replica.outcomes_of(ACCOUNT) if outcome.error)
    assert first.error
    assert first.error.status == 404
    assert len([outcome for outcome in replica.outcomes_of(ACCOUNT) if outcome.error]) == 1
    assert state(replica) is State.REMOVED


def test_a_disabled_account_is_taken_up_again_when_it_is_enabled(world: World) -> None:
    replica = world.start()
    world.add_account("12345678", enabled="false")
    world.run(HOUR)
    assert set(results(replica, "12345678")) == {Result.ABSENT}
    assert world.data("12345678") == {}
    world.add_account("12345678")
    world.run(2 * MINUTE)
    assert world.data("12345678")


def test_a_failing_account_that_is_edited_is_tried_within_one_sync(world: World) -> None:
    # a daemon that ignores an edit until its timer is up
    replica = world.start()
    world.add_account("12345678", client_secret="wrong")
    world.run(HOUR / 2)
    assert state(replica, "12345678") is State.FAILING
    assert replica.transition["12345678"].due - world.clock() > 3 * 60
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
    # two each: the account, and its versions, one of which might serve
    assert 2 * tries + 40 < reads < 2 * tries + 62


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


def test_a_token_that_somebody_refreshed_by_hand_is_found_within_one_sync(world: World) -> None:
    replica = world.start()
    world.add_account("12345678")
    with world.liveperson.faults.on(Fault(status=401)):
        world.run(HOUR / 2 + 3 * MINUTE)
    assert state(replica, "12345678") is State.FAILING
    assert replica.transition["12345678"].due - world.clock() > 2 * 60
    assert world.refresher("by hand").refresh("12345678").result is Result.REFRESHED
    world.run(MINUTE + SECOND)
    assert (results(replica, "12345678")[-1], state(replica, "12345678")) == (Result.ADOPTED, State.OK)


# No other account is hurt


def test_one_accounts_trouble_changes_nothing_for_the_others(world: World) -> None:
    for name in ("invalid", "refused", "unmanaged", "buggy"):
        world.add_account(name)
    world.vault.kv.put(ACCOUNTS + "invalid", {"client_id": ""})
    world.vault.kv.put(TOKENS + "unmanaged", {"password": "theirs"})
    world.liveperson.faults.set(Fault(status=401), account="refused")

    def bug(_: str, name: str) -> None:
        if name == "buggy":
            raise ZeroDivisionError

    world.vault.at_request = bug
    replica = world.start()
    for _ in range(12):
        world.run(10 * MINUTE)
        assert world.token().exp - world.clock.now() >= 0.4 * HOUR
    states = {name: state(replica, name) for name in ("invalid", "refused", "unmanaged", "buggy")}
    assert states == {
        "invalid": State.INVALID,
        "refused": State.FAILING,
        "unmanaged": State.UNMANAGED,
        "buggy": State.FAILING,
    }
    assert set(results(replica)) == {Result.REFRESHED}


# It recovers by itself


def test_an_outage_of_vault_costs_nothing_while_tokens_live_and_is_over_when_vault_is_back(world: World) -> None:
    # a timer stuck in the past, or a state that stays "failed" after recovery
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
    assert ACCOUNT in replica.scheduler
    world.vault.denied = set()
    world.run(MINUTE)
    assert results(replica, "12345678") == [Result.REFRESHED]
    assert results(replica) == [Result.REFRESHED]


def test_a_list_that_is_refused_is_told_once_and_once_more_when_it_works_again(world: World) -> None:
    replica = world.start()
    replica.daemon.on_list = Outage("https://vault", world.clock).record_list
    world.run(MINUTE)
    with capture_logs() as lines:
        world.vault.denied = {"list"}
        world.run(10 * MINUTE)
        world.vault.denied = set()
        world.run(10 * MINUTE)
    began, over = [line for line in lines if line["event"].startswith("vault.")]
    assert (began["event"], began["address"], began["status"]) == ("vault.unavailable", "https://vault", 403)
    assert (over["event"], over["address"]) == ("vault.recovered", "https://vault")
    assert over["duration"] > 9 * 60


def test_a_vault_that_is_away_is_asked_often_enough_to_notice_its_return(world: World) -> None:
    world.start(sync_interval=5 * MINUTE)
    world.run(MINUTE)
    world.vault.is_down = True
    world.run(HOUR / 3)
    world.vault.calls.clear()
    world.run(MINUTE)
    assert world.vault.calls.count(("list", "")) == 4


def test_while_the_first_sync_fails_it_is_tried_again_sooner(world: World) -> None:
    world.vault.is_down = True
    replica = world.start(sync_interval=HOUR)
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
    assert [record["event"] for record in logs].count("worker.internal_error") == 6
    world.vault.at_request = lambda *_: None
    world.add_account("12345678")
    world.run(MINUTE + SECOND)
    assert results(replica, "12345678") == [Result.REFRESHED]


def test_a_wake_that_is_lost_costs_no_more_than_a_pass_of_the_main_loop(world: World) -> None:
    # APScheduler drops jobs in more than one way
    replica = world.start(sync_interval=DAY)
    world.run(10 * SECOND)
    del replica.timer.due["wake"]
    world.run(35 * MINUTE)
    assert results(replica) == [Result.REFRESHED]
    replica.daemon.tick()
    replica.pool.run()
    assert results(replica) == [Result.REFRESHED, Result.REFRESHED]


def test_a_paused_machine_goes_on_where_it_stopped(world: World) -> None:
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
    world.vault.kv.remove(ACCOUNTS + ACCOUNT)
    replica = world.start()
    replica.work()
    assert replica.daemon.ready.is_set()


# Restarts and replicas


def test_a_restart_adopts_what_is_fresh_and_mints_nothing(world: World) -> None:
    for number in range(20):
        world.add_account(f"le{number}")
    first = world.start()
    world.run(5 * MINUTE)
    obtained = world.liveperson.mints()
    world.crash(first)
    world.vault.calls.clear()
    second = world.start()
    world.run(MINUTE)
    assert {outcome.result for outcome in second.outcomes} == {Result.ADOPTED}
    assert world.liveperson.mints() == obtained == 21
    assert {operation for operation, _ in world.vault.calls} == {"list", "read_token"}


def test_the_first_account_that_is_due_after_a_restart_is_refreshed_at_once(world: World) -> None:
    # every account's host is known from its stored token, and none ever queued without one
    world.refresher().refresh(ACCOUNT)
    replica = world.start(sync_interval=DAY)
    world.run(35 * MINUTE)
    assert results(replica) == [Result.ADOPTED, Result.REFRESHED]


def test_a_token_that_is_written_by_hand_is_adopted_when_ours_is_due(world: World) -> None:
    # a daemon and a manual refresh, neither of which knows of the other
    replica = world.start()
    world.run(25 * MINUTE)
    world.refresher("by hand").refresh(ACCOUNT, force=ForceRefresh())
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

    replica = world.start(sync_interval=DAY)
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
    world.start(max_per_second=10, sync_interval=HOUR)
    world.run(5 * SECOND)
    assert world.liveperson.mints() == 31
    assert all(later - earlier >= 0.099 for earlier, later in pairwise(starts))


# The resync


@pytest.mark.parametrize(
    "harm", ["deleted", "destroyed", "removed", "rolled back", "ended", "invalid", "of another app"]
)
def test_a_stored_token_that_was_tampered_with_is_repaired_by_the_resync(world: World, harm: str) -> None:
    first = world.start(resync_interval=5 * MINUTE)
    world.run(MINUTE)
    kv, path = world.vault.kv, TOKENS + ACCOUNT
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
        case "invalid":
            world.store("no token at all")
        case "of another app":
            world.store(token_of(now, 90 * MINUTE))
    mints = world.liveperson.mints()
    world.run(5 * MINUTE)
    assert (world.token().azp, world.liveperson.mints()) == (before.azp, mints + 1)
    assert world.token().exp > before.exp
    outcome = first.outcomes_of(ACCOUNT)[-1]
    assert (outcome.result, outcome.reason) == (Result.REFRESHED, Reason.DRIFT)


def test_a_resync_that_finds_all_as_it_was_does_nothing_and_reads_no_credentials(world: World) -> None:
    world.add_account("12345678", "lo")
    replica = world.start(resync_interval=MINUTE)
    world.run(2 * SECOND)
    world.vault.calls.clear()
    world.run(10 * MINUTE)
    assert {operation for operation, _ in world.vault.calls} == {"list", "read_token"}
    assert [operation for operation, _ in world.vault.calls].count("read_token") in (18, 20)
    assert results(replica) == [Result.REFRESHED]


def test_an_account_that_comes_due_while_the_resync_looks_at_it_is_refreshed_all_the_same(world: World) -> None:
    replica = world.start(sync_interval=DAY, resync_interval=10 * MINUTE)
    world.run(9 * MINUTE)
    due = replica.daemon.records()[0].due
    assert due

    def comes_due(operation: str, _: str) -> None:
        assert operation == "read_token"
        world.vault.at_request = nothing
        world.clock.advance_to(due)
        replica.daemon.tick()  # it is due, and runs already

    world.vault.at_request = comes_due
    world.run(2 * MINUTE)
    assert world.vault.at_request is nothing
    world.run(10 * SECOND)
    assert results(replica) == [Result.REFRESHED, Result.REFRESHED]


def test_another_app_s_token_that_a_restart_adopted_is_repaired_by_the_first_resync(world: World) -> None:
    """Only its azp shows it, which needs the account's secret; each is read once after a restart."""
    world.add_account(f"{ACCOUNT}/other")
    world.refresher("by hand").refresh(f"{ACCOUNT}/other")
    other = world.token(f"{ACCOUNT}/other")
    world.store(other.raw.get_secret_value())
    replica = world.start(resync_interval=5 * MINUTE)
    world.run(MINUTE)
    assert (results(replica), world.token().azp) == ([Result.ADOPTED], other.azp)
    world.vault.calls.clear()
    world.run(5 * MINUTE)
    assert results(replica) == [Result.ADOPTED, Result.REFRESHED]
    assert replica.outcomes_of(ACCOUNT)[-1].reason is Reason.INVALID
    assert world.token().azp != other.azp
    assert world.vault.calls.count(("read_account", f"{ACCOUNT}/other")) == 1
    world.run(5 * MINUTE)
    assert world.vault.calls.count(("read_account", f"{ACCOUNT}/other")) == 1
    assert results(replica, f"{ACCOUNT}/other") == [Result.ADOPTED]


def test_a_mark_that_somebody_removed_waits_for_the_next_refresh_and_no_look_sets_it(world: World) -> None:
    # a look may be a standby's old answer: the secret that it would mark may be another's by now
    replica = world.start(resync_interval=5 * MINUTE)
    world.run(MINUTE)
    kv, path = world.vault.kv, TOKENS + ACCOUNT
    kv.set_metadata(path, max_versions=0, custom_metadata={"managed_by": None})
    before = kv.metadata(path)
    world.run(20 * MINUTE)
    assert (results(replica), kv.metadata(path)) == ([Result.REFRESHED], before)
    world.run(10 * MINUTE)
    after = kv.metadata(path)
    assert after
    assert results(replica) == [Result.REFRESHED, Result.REFRESHED]
    assert (after.max_versions, after.custom_metadata) == (5, {"managed_by": "appjwt-worker"})


def test_a_resync_adopts_what_a_sister_wrote_and_is_quiet_while_vault_is_down(world: World) -> None:
    replica = world.start(resync_interval=5 * MINUTE)
    world.run(MINUTE)
    world.refresher("by hand").refresh(ACCOUNT, force=ForceRefresh())
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
    # Sentinel hands out tokens with a third of their life left, or its Date is that far ahead
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
    assert world.refresher("by hand").refresh(ACCOUNT, force=ForceRefresh()).result is Result.UNCHANGED
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
    # as LivePerson does with a data centre that is lost: the look-up must not wait for the end of its cache
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


# The report of --status


def shown(world: World, *names: str) -> dict[str, AccountStatus]:
    with ThreadPoolExecutor(1) as pool:
        return {line.account: line for line in status.statuses(names, world.vault.tokens, pool)}


def test_status_says_of_each_account_what_the_daemon_knows(world: World) -> None:
    replica = world.start()
    others = ["failing", "late", "invalid", "disabled", "unmanaged", "removed"]
    for name in others:
        world.add_account(name)
    world.vault.kv.put(TOKENS + "unmanaged", {"password": "theirs"})
    world.add_account("failing", client_secret="wrong")
    world.run(2 * MINUTE)
    world.add_account("late", client_secret="wrong")
    world.add_account("invalid", client_id=7)
    world.add_account("disabled", enabled=False)
    world.vault.kv.delete(ACCOUNTS + "removed")
    world.run(HOUR * 0.65)
    statuses = shown(world, ACCOUNT, *others)
    assert {name: line.state for name, line in statuses.items()} == {
        ACCOUNT: State.OK,
        "failing": State.FAILING,
        "late": State.FAILING,
        "invalid": State.INVALID,
        "disabled": State.DISABLED,
        "unmanaged": State.UNMANAGED,
        "removed": State.REMOVED,
    }
    known = {
        record.name: record_status(record, world.clock(), world.clock.now()) for record in replica.scheduler.records()
    }
    assert known.keys() == statuses.keys()
    for name, status_of in known.items():
        line = statuses[name]
        assert (status_of.state, status_of.severity, status_of.fingerprint) == (
            line.state,
            line.severity,
            line.fingerprint,
        )
        assert status_of.margin == pytest.approx(line.margin, abs=1 / 1000)  # the plan is stored in whole seconds
    assert statuses["late"].severity is Severity.WARNING
    assert statuses["late"].last_error == "sentinel: answers 401"
    assert statuses["invalid"].last_error == "credentials: client_id: must be a string, is a number"
    world.add_account("late")
    world.add_account("invalid")
    world.run(2 * MINUTE)
    again = shown(world, "late", "invalid").values()
    assert {(line.state, line.last_error, line.failing_since) for line in again} == {(State.OK, None, None)}


# Pauses, and clocks that jump


def read_order(world: World) -> list[str]:
    """Return the accounts whose tokens were read, in order."""
    return [path.removeprefix(TOKENS) for operation, path in world.vault.calls if operation == "read_token"]


def crowd(world: World, replica: Replica) -> list[str]:
    """Add three accounts whose tokens expire in another order than that of their names."""
    names = ["c", "a", "b"]
    world.run(SECOND)
    for name in names:
        world.add_account(name)
        world.run(2 * MINUTE)
    assert all(state(replica, name) is State.OK for name in names)
    world.vault.calls.clear()
    return [ACCOUNT, *names]


@pytest.mark.parametrize(("late", "lines"), [(4.9, []), (20.0, [20.0])])
def test_a_tick_that_comes_late_says_for_how_long_the_process_stood_still(
    world: World, late: float, lines: list[float]
) -> None:
    replica = world.start()
    replica.daemon.tick()
    world.clock.advance(timedelta(seconds=1 + late))
    with capture_logs() as logs:
        replica.daemon.tick()
        replica.daemon.tick()
    assert [line["duration"] for line in logs if line["event"] == "worker.paused"] == lines


def test_clocks_that_diverge_bring_the_next_sync_forward_for_its_answer_has_vaults_clock(world: World) -> None:
    replica = world.start(sync_interval=HOUR)
    world.run(SECOND)
    replica.daemon.tick()
    assert replica.timer.due["sync"] > world.clock() + 3000
    replica.timer.diverged = True
    replica.daemon.tick()
    assert replica.timer.due["sync"] == world.clock()


def test_a_pause_that_only_vaults_clock_shows_has_every_token_read_again_earliest_expiry_first(world: World) -> None:
    replica = world.start()
    expected = crowd(world, replica)
    with capture_logs() as logs:
        replica.daemon.on_clock_jump(100.0, paused=True)
        replica.work()
    assert read_order(world) == expected
    assert {"event": "worker.paused", "duration": 100.0, "log_level": "warning"} in logs


@pytest.mark.parametrize("skewed", [True, False])
@pytest.mark.parametrize("pause", [40 * MINUTE, 2 * HOUR])
def test_a_token_that_came_due_or_expired_while_the_steady_clock_stood_still_is_refreshed_at_once(
    world: World, pause: timedelta, *, skewed: bool
) -> None:
    # its refresh went by the validity that was remembered, and adopted what was expired
    replica = world.start(sync_interval=HOUR)
    world.run(SECOND)
    world.clock.stand_still(pause)
    world.liveperson.faults.set(Fault(refuse=True), service="clock")  # what Vault's shows has to be enough
    replica.daemon.on_clock_jump(pause.total_seconds(), paused=True)
    if skewed:  # before the tokens are read
        replica.daemon.on_vault_skewed("va.sentinel.liveperson.test", 60.0)
    world.run(SECOND)
    assert results(replica) == [Result.REFRESHED, Result.REFRESHED]
    assert world.token().exp > world.clock.now()
    world.run(20 * SECOND)
    assert world.liveperson.mints() == 2


def test_after_a_pause_an_account_that_failed_is_tried_at_once(world: World) -> None:
    replica = world.start(sync_interval=HOUR)
    world.run(SECOND)
    world.liveperson.faults.set(Fault(status=503))
    world.run(35 * MINUTE)
    assert state(replica) is State.FAILING
    world.liveperson.faults.reset()
    before = len(results(replica))
    replica.daemon.on_clock_jump(-100.0, paused=False)  # servers whose clocks differ are no reason
    replica.work()
    assert len(results(replica)) == before
    world.clock.advance(MINUTE)
    due = replica.transition[ACCOUNT].due
    assert due is not None
    replica.daemon.on_clock_jump(100.0, paused=True)
    replica.pool.run()
    assert results(replica)[before:] == [Result.REFRESHED]


def test_clocks_that_jump_again_and_again_have_every_token_read_once_a_minute(world: World) -> None:
    replica = world.start()
    accounts = crowd(world, replica)
    with capture_logs() as logs:
        for second in range(179):
            replica.daemon.on_clock_jump(5.0 if second % 2 else -5.0, paused=False)
            world.run(SECOND)
    assert read_order(world) == accounts * 3
    skewed = [line for line in logs if line["event"] == "clock.skewed"]
    assert len(skewed) == 4  # the last one is of the next minute
    assert {line["against"] for line in skewed} == {"vault"}


def test_a_second_pause_within_a_minute_is_made_good_when_the_minute_is_over(world: World) -> None:
    replica = world.start()
    accounts = crowd(world, replica)
    replica.daemon.on_clock_jump(100.0, paused=True)
    world.run(SECOND)
    replica.daemon.on_clock_jump(100.0, paused=True)
    world.run(58 * SECOND)
    assert read_order(world) == accounts
    world.run(SECOND)
    assert read_order(world) == accounts * 2


def test_a_jump_at_the_moment_of_a_planned_reading_does_not_put_it_off(world: World) -> None:
    replica = world.start()
    accounts = crowd(world, replica)
    for _ in range(2):
        replica.daemon.on_clock_jump(5.0, paused=False)
        replica.work()
    world.clock.advance(MINUTE)  # the job is due, and did not run yet
    replica.daemon.on_clock_jump(5.0, paused=False)
    replica.work()
    assert read_order(world) == accounts * 2


def test_an_account_that_runs_while_the_clock_jumps_is_not_read_twice(world: World) -> None:
    replica = world.start(sync_interval=HOUR)
    world.run(SECOND)
    world.vault.calls.clear()
    record = replica.scheduler.reserve(ACCOUNT)
    assert record
    replica.daemon.on_clock_jump(100.0, paused=True)
    replica.work()
    assert read_order(world) == []


def test_after_stop_a_jump_reads_nothing(world: World) -> None:
    replica = world.start(sync_interval=HOUR)
    world.run(SECOND)
    world.vault.calls.clear()
    replica.daemon.stop()
    replica.daemon.on_clock_jump(100.0, paused=True)
    replica.work()
    assert world.vault.calls == []


# Whether it is alive


def test_a_main_loop_that_does_not_pass_is_trouble_after_a_minute(world: World) -> None:
    replica = world.start()
    replica.daemon.tick()
    world.clock.advance(MINUTE)
    assert replica.daemon.stall_reason is None
    world.clock.advance(SECOND)
    assert replica.daemon.stall_reason == "no scheduling pass for 61 s"
    replica.daemon.tick()
    assert replica.daemon.stall_reason is None


def test_a_scheduler_whose_lock_nobody_releases_is_trouble_though_the_main_loop_waits_for_it(world: World) -> None:
    replica = world.start()
    replica.daemon.tick()
    lock = replica.daemon._dispatcher.lock  # noqa: SLF001 - what a bug would leave locked
    with lock:
        tick = threading.Thread(target=replica.daemon.tick)
        tick.start()
        world.clock.advance(61 * SECOND)
        assert replica.daemon.stall_reason == "no scheduling pass for 61 s"
    tick.join()
    assert replica.daemon.stall_reason is None


def test_work_that_no_thread_takes_up_is_trouble_after_a_minute(world: World) -> None:
    replica = world.start()
    world.run(SECOND)
    world.clock.advance(35 * MINUTE)
    replica.daemon.tick()  # it is due, and the pool does nothing
    world.clock.advance(61 * SECOND)
    replica.daemon.tick()
    assert replica.daemon.stall_reason == "work that could run was not started for 61 s"
    replica.pool.run()
    assert replica.daemon.stall_reason is None


def test_work_that_waits_behind_a_rate_limit_of_vault_is_no_trouble(world: World) -> None:
    replica = world.start()
    world.run(SECOND)
    world.clock.advance(35 * MINUTE)
    replica.daemon.tick()
    reopens = world.clock() + 300
    replica.daemon.throttled_until = lambda: reopens
    for passed, trouble in (300, None), (60, None), (1, "work that could run was not started for 61 s"):
        world.clock.advance(passed * SECOND)
        replica.daemon.tick()
        assert replica.daemon.stall_reason == trouble


@pytest.mark.parametrize("trouble", ["vault", "sentinel", "limits"])
def test_neither_an_outage_nor_full_limits_are_trouble(trouble: str, world: World) -> None:
    for number in range(40):
        world.add_account(f"more-{number}")
    replica = world.start(max_in_flight=1, max_per_second=0.01 if trouble == "limits" else 20.0)
    world.run(SECOND)
    if trouble == "vault":
        world.vault.losing = {"list", "read_token", "read_account", "write_token"}
    elif trouble == "sentinel":
        world.liveperson.faults.set(Fault(status=503))
    for _ in range(2 * 3600):
        world.run(SECOND)
        replica.daemon.tick()
        assert replica.daemon.stall_reason is None
    waits = any(record.queued for record in replica.scheduler.records())
    assert waits is (trouble == "limits")
