"""Vault's clock and Sentinel's differ: tokens are judged by Sentinel's, and nothing is obtained that is fresh."""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from sandbox.faults import Fault, Service
from tests.fakes.clock import HOUR, MINUTE, SECOND
from tests.fakes.world import Replica, World
from worker.core.outcome import Result
from worker.core.plan import Reason
from worker.refresh import ForceRefresh

OFF = [-5 * HOUR, -40 * MINUTE, -90 * SECOND, 90 * SECOND, 40 * MINUTE, 5 * HOUR]
NAMES = [f"le{number}" for number in range(10)]
HOST = "va.sentinel.liveperson.test"


def start(world: World) -> list[Replica]:
    return [world.start(name, resync_interval=5 * MINUTE) for name in "ab"]


def unlike(replicas: list[Replica]) -> list[Reason | None]:
    """Reasons of refreshes for which a world without trouble has no room."""
    usual = (Reason.MISSING, Reason.DUE)
    return [each.reason for replica in replicas for each in replica.outcomes if each.reason not in (None, *usual)]


@pytest.mark.parametrize("off", OFF)
def test_two_workers_adopt_each_others_tokens_however_wrong_vaults_clock_is(world: World, off: timedelta) -> None:
    world.vault.skew = off
    replicas = start(world)
    world.run(MINUTE)
    assert world.liveperson.mints() == len(NAMES)
    for _ in range(20):
        world.run(10 * MINUTE)
        assert min(world.token(name).exp - world.clock.now() for name in NAMES) >= 24 * MINUTE
    assert world.liveperson.mints() <= 9 * len(NAMES)
    assert unlike(replicas) == []


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("age", [MINUTE, 8 * MINUTE])
def test_a_restart_obtains_nothing_anew_however_wrong_vaults_clock_is(
    world: World, off: timedelta, age: timedelta
) -> None:
    world.vault.skew = off
    start(world)
    world.run(age)
    for replica in list(world.replicas):
        world.crash(replica)
    mints, replicas = world.liveperson.mints(), start(world)
    world.run(MINUTE)
    assert world.liveperson.mints() == mints
    world.run(HOUR)
    assert min(world.token(name).exp - world.clock.now() for name in NAMES) >= 24 * MINUTE
    assert unlike(replicas) == []


@pytest.mark.parametrize("off", OFF)
def test_a_vault_whose_clock_is_set_while_it_runs_makes_nothing_be_obtained(world: World, off: timedelta) -> None:
    replicas = start(world)
    world.run(10 * SECOND)
    for skew in (off, timedelta()):
        jump, world.vault.skew = (skew - world.vault.skew).total_seconds(), skew
        for replica in replicas:  # as the session sees it in an answer
            replica.daemon.on_clock_jump(jump, paused=False)
        world.run(2 * MINUTE)
    assert world.liveperson.mints() == len(NAMES)
    assert unlike(replicas) == []


@pytest.mark.parametrize("off", [-7 * MINUTE, 7 * MINUTE, 5 * HOUR])
def test_a_start_while_vaults_clock_is_wrong_and_sentinel_is_down_makes_no_refresh_late(
    world: World, off: timedelta
) -> None:
    replica = world.start()
    world.run(8 * MINUTE)
    world.crash(replica)
    world.vault.skew = off
    services: tuple[Service, ...] = ("clock", "sentinel")
    for service in services:
        world.liveperson.faults.set(Fault(refuse=True), service=service)
    world.start(resync_interval=5 * MINUTE)
    world.run(10 * MINUTE)
    for service in services:
        world.liveperson.faults.clear(service=service)
    for _ in range(40):
        world.run(MINUTE)
        assert min(world.token(name).exp - world.clock.now() for name in NAMES) >= 27 * MINUTE


@pytest.mark.parametrize("resync_interval", [5 * MINUTE, HOUR])
@pytest.mark.parametrize("off", [-5 * MINUTE, 5 * MINUTE])
def test_a_start_while_sentinels_clock_is_wrong_makes_no_refresh_late(
    world: World, off: timedelta, resync_interval: timedelta
) -> None:
    replica = world.start()
    world.run(8 * MINUTE)
    world.crash(replica)
    world.liveperson.faults.set(Fault(skew=off), service="clock")
    world.start(resync_interval=resync_interval)
    world.run(10 * SECOND)
    world.add_account("le10")  # its token shows the right time
    for _ in range(40):
        world.run(MINUTE)
        assert min(world.token(name).exp - world.clock.now() for name in NAMES) >= 24 * MINUTE


@pytest.mark.parametrize("corrected", [True, False])
def test_a_clock_of_sentinel_that_becomes_wrong_makes_no_refresh_late(world: World, *, corrected: bool) -> None:
    replica = world.start(resync_interval=HOUR)
    world.run(6 * MINUTE)
    replica.daemon.on_clock_jump(5.0, paused=False)  # what is remembered is forgotten then, and not ever after
    world.run(2 * MINUTE)
    issued_before = {name: world.token(name) for name in NAMES}
    world.liveperson.faults.set(Fault(skew=-5 * MINUTE))
    world.add_account("le10")
    world.run(2 * MINUTE)
    if corrected:
        world.liveperson.faults.clear()
        world.add_account("le11")
    for _ in range(40):
        world.run(MINUTE)
        kept = [token for name, token in issued_before.items() if world.token(name) == token]
        assert all(token.exp - world.clock.now() >= 26 * MINUTE for token in kept)
    assert not kept


def test_the_skew_is_told_once_and_by_it_the_shown_times_are_right(world: World) -> None:
    world.vault.skew = -90 * SECOND
    with capture_logs() as logs:
        replicas = start(world)
        world.run(HOUR)
    skewed = [line for line in logs if line["event"] == "clock.skewed"]
    assert [(line["against"], line["host"], line["skew"]) for line in skewed] == [("vault", HOST, 90.0)] * 2
    assert {replica.refresher.clocks.skew for replica in replicas} == {90.0}
    world.vault.skew = timedelta()
    world.run(10 * MINUTE)
    assert {replica.refresher.clocks.skew for replica in replicas} == {0.0}


def test_sentinel_is_asked_for_its_clock_once_unless_its_answers_showed_it(world: World) -> None:
    world.start()
    world.run(HOUR)
    assert world.liveperson.reached == []
    world.refresher().check_stored(NAMES[0])
    refresher = world.refresher("b")
    for name in NAMES:
        refresher.check_stored(name)
    assert world.liveperson.reached == [HOST] * 2


@pytest.mark.parametrize("fault", [Fault(refuse=True), Fault(hang=True), Fault(no_date=True)])
def test_where_sentinel_does_not_show_its_clock_vaults_serves(world: World, fault: Fault) -> None:
    world.refresher().refresh(NAMES[0])
    world.vault.skew = 2 * HOUR
    world.liveperson.faults.set(fault, service="clock")
    refresher = world.refresher()
    world.liveperson.faults.set(Fault(status=503), times=2)
    for result in (Result.FAILED, Result.FAILED, Result.REFRESHED, Result.ADOPTED):
        world.clock.advance(SECOND)
        assert refresher.refresh(NAMES[0]).result is result
    assert len(world.liveperson.reached) <= 1  # and it is not asked again


def test_only_an_allowed_host_is_asked_for_its_clock(world: World) -> None:
    world.refresher().refresh(NAMES[0])
    world.store(world.data(NAMES[0])["access_token"], NAMES[0], sentinel_host="sentinel.evil.example")
    world.vault.skew = 2 * HOUR
    world.refresher().refresh(NAMES[0])
    assert (world.liveperson.mints(), world.liveperson.reached) == (2, [])


def test_by_hand_remaining_lifetime_is_counted_by_sentinels_clock(world: World) -> None:
    world.refresher().refresh(NAMES[0])
    world.vault.skew = 59 * MINUTE
    force = ForceRefresh(expires_within=20 * 60)
    assert world.refresher().refresh(NAMES[0], force=force).result is Result.NOT_EXPIRING


def test_a_deletion_by_vault_is_counted_by_sentinels_clock_too(world: World) -> None:
    world.vault.skew = 5 * HOUR
    world.vault.kv.delete_version_after = 2 * HOUR
    world.refresher().refresh(NAMES[0])
    outcome = world.refresher("b").refresh(NAMES[0])
    assert outcome.result is Result.ADOPTED
    assert outcome.early_deletion
    assert abs(outcome.early_deletion.deletion_time - world.clock.now() - 2 * HOUR) < SECOND
