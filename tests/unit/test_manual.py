"""--refresh and --refresh-all, against the fakes."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from sandbox.faults import Fault
from tests.fakes.clock import HOUR
from tests.fakes.vault import FakeAccounts, FakeTokens
from tests.fakes.world import World
from worker.core.appjwt import utc
from worker.core.outcome import Outcome, Result
from worker.manual import Line, ManualRefresh
from worker.refresh import ByHand
from worker.schedule.fleet import Fleet

NAMES = ["le2", "le1/b", "le3", "le1/a"]


@pytest.fixture
def world() -> World:
    made = World()
    for name in NAMES:
        made.add_account(name)
    return made


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def manual_refresh(world: World, pool: Executor, report: Callable[[Outcome], None]) -> ManualRefresh:
    return ManualRefresh(
        accounts=world.vault.accounts,
        refresher=world.refresher(),
        fleet=Fleet(
            max_in_flight=8, max_per_second=float("inf"), recheck_after=60.0, jitter=lambda: 0.0, phase=lambda _: 0.0
        ),
        pool=pool,
        clock=world.clock,
        report=lambda outcome, _: report(outcome),
        by_hand=ByHand(),
    )


@pytest.fixture
def reported() -> list[Outcome]:
    return []


@pytest.fixture
def run(world: World, pool: Executor, reported: list[Outcome]) -> "Run":
    return manual_refresh(world, pool, reported.append).run


Run = Callable[..., list[Line]]


def test_every_account_is_refreshed_and_told_of_in_the_order_given(
    world: World, run: Run, reported: list[Outcome]
) -> None:
    lines = run(NAMES)
    assert [line.account for line in lines] == NAMES
    assert {line.outcome for line in lines} == {Result.REFRESHED}
    assert {line.reason for line in lines} == {"manual"}
    assert sorted(outcome.account for outcome in reported) == sorted(NAMES)
    token = world.token("le2")
    assert lines[0] == Line(
        account="le2",
        outcome=Result.REFRESHED,
        reason="manual",
        expires_at=utc(world.clock.now() + HOUR),
        fingerprint=token.fingerprint,
        vault_version=1,
        error=None,
    )


def test_an_account_named_twice_is_refreshed_once(world: World, run: Run) -> None:
    assert [line.account for line in run(["le2", "le3", "le2"])] == ["le2", "le3"]
    assert world.liveperson.mints("le2") == 1


def test_no_account_at_all_is_no_work(run: Run) -> None:
    assert run([]) == []


@pytest.mark.parametrize(("name", "near"), [("le1/bb", "; did you mean le1/b?"), ("zzzzzzzz", "")])
def test_an_unknown_account_has_failed_and_the_nearest_is_told(name: str, near: str, run: Run) -> None:
    line = run([name])[0]
    assert line.outcome is Result.FAILED
    assert line.error
    assert line.error.endswith(f"/{name}{near}")


def test_one_failure_stops_nothing(world: World, run: Run) -> None:
    # FIELD 6
    world.liveperson.faults.set(Fault(status=401), account="le2")
    world.vault.kv.put(FakeAccounts.FOLDER + "le3", {"enabled": "false"})
    world.vault.kv.put(FakeTokens.FOLDER + "le1/b", {"password": "theirs"})
    lines = run([*NAMES, "le1/a"])
    assert [line.outcome for line in lines] == [Result.FAILED, Result.FAILED, Result.SKIPPED, Result.REFRESHED]
    assert all(line.error for line in lines[:3])


def test_a_vault_that_goes_down_is_an_outcome_of_each(world: World, run: Run) -> None:
    world.vault.is_down = True
    lines = run(["le2", "le3"])
    assert [line.outcome for line in lines] == [Result.FAILED, Result.FAILED]


def test_the_same_token_again_is_unchanged_and_no_failure(world: World, run: Run) -> None:
    # FIELD 20
    world.refresher("daemon").refresh("le2")
    world.liveperson.faults.set(Fault(same_token=True))
    line = run(["le2"])[0]
    assert (line.outcome, line.vault_version, line.error) == (Result.UNCHANGED, 1, None)


def test_a_report_that_fails_does_not_keep_the_caller_waiting(world: World, pool: Executor) -> None:
    def broken(_: Outcome) -> None:
        raise BrokenPipeError  # as where whoever read the log has gone

    assert manual_refresh(world, pool, broken).run(["le2"])[0].outcome is Result.REFRESHED
