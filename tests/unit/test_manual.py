"""--refresh and --refresh-all, against the fakes."""

from collections.abc import Callable, Iterator

import pytest

from sandbox.faults import Fault
from tests.fakes.clock import HOUR
from tests.fakes.vault import ACCOUNTS, TOKENS
from tests.fakes.world import World
from worker.core.appjwt import utc
from worker.core.outcome import Outcome, Result
from worker.manual import ManualRefresh, RefreshResult
from worker.refresh import ForceRefresh
from worker.schedule.accounts import AccountScheduler
from worker.schedule.dispatch import Pool

NAMES = ["le2", "le1/b", "le3", "le1/a"]


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(1) as made:
        yield made


def manual_refresh(world: World, pool: Pool, report: Callable[[Outcome], None]) -> ManualRefresh:
    return ManualRefresh(
        accounts=world.vault.accounts,
        refresher=world.refresher(),
        scheduler=AccountScheduler(
            max_in_flight=8, max_per_second=float("inf"), recheck_after=60.0, jitter=lambda: 0.0, phase=lambda _: 0.0
        ),
        pool=pool,
        clock=world.clock,
        report=lambda outcome, _: report(outcome),
        force=ForceRefresh(),
    )


@pytest.fixture
def reported() -> list[Outcome]:
    return []


@pytest.fixture
def run(world: World, pool: Pool, reported: list[Outcome]) -> "Run":
    refresh = manual_refresh(world, pool, reported.append)

    def run(names: list[str]) -> list[RefreshResult]:
        refresh.run(names)
        return refresh.results()

    return run


Run = Callable[[list[str]], list[RefreshResult]]


def test_every_account_is_refreshed_and_told_of_in_the_order_given(
    world: World, run: Run, reported: list[Outcome]
) -> None:
    lines = run(NAMES)
    assert [line.account for line in lines] == NAMES
    assert {line.outcome for line in lines} == {Result.REFRESHED}
    assert {line.reason for line in lines} == {"manual"}
    assert sorted(outcome.account for outcome in reported) == sorted(NAMES)
    token = world.token("le2")
    assert lines[0] == RefreshResult(
        account="le2",
        outcome=Result.REFRESHED,
        reason="manual",
        expires_at=utc(world.clock.now() + HOUR),
        fingerprint=token.fingerprint,
        vault_version=1,
        error=None,
        claims={
            "kid": token.kid,
            "alg": "RS256",
            "typ": "JWT",
            "aud": "le2",
            "azp": token.azp,
            "scope": "msg.consumer",
            "iss": "Sentinel",
            "iat": int(world.clock.now().timestamp()),
            "exp": int((world.clock.now() + HOUR).timestamp()),
        },
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
    world.liveperson.faults.set(Fault(status=401), account="le2")
    world.vault.kv.put(ACCOUNTS + "le3", {"enabled": "false"})
    world.vault.kv.put(TOKENS + "le1/b", {"password": "theirs"})
    lines = run([*NAMES, "le1/a"])
    assert [line.outcome for line in lines] == ["failed", "failed", "skipped", "refreshed"]
    assert all(line.error for line in lines[:3])


def test_a_vault_that_goes_down_is_an_outcome_of_each(world: World, run: Run) -> None:
    world.vault.is_down = True
    lines = run(["le2", "le3"])
    assert [line.outcome for line in lines] == [Result.FAILED, Result.FAILED]


def test_the_same_token_again_is_unchanged_and_no_failure(world: World, run: Run) -> None:
    world.refresher("daemon").refresh("le2")
    world.liveperson.faults.set(Fault(same_token=True))
    line = run(["le2"])[0]
    assert (line.outcome, line.vault_version, line.error) == (Result.UNCHANGED, 1, None)


def test_a_report_that_fails_does_not_keep_the_caller_waiting(world: World, pool: Pool) -> None:
    def broken(_: Outcome) -> None:
        raise BrokenPipeError  # as where the reader of the log has closed it

    refresh = manual_refresh(world, pool, broken)
    refresh.run(["le2"])
    assert refresh.results()[0].outcome == Result.REFRESHED


def test_once_stopped_it_starts_no_account_and_reports_what_was_done(world: World) -> None:
    with Pool(1) as pool:
        done: list[Outcome] = []
        refresh = manual_refresh(world, pool, done.append)
        refresh.run(NAMES, is_stopped=lambda: bool(done))
        refresh.stop()
    results = refresh.results()
    assert [result.account for result in results] == NAMES
    refreshed = [result.account for result in results if result.outcome == Result.REFRESHED]
    assert sorted(refreshed) == sorted(outcome.account for outcome in done)
    assert all(world.data(name) for name in refreshed)
    assert {(result.outcome, result.error) for result in results if result.account not in refreshed} <= {
        ("skipped", "interrupted before it was started")
    }
