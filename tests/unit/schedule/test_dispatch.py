"""Whom the fleet lets run is run, and whatever happens to one is an outcome."""

import threading
from collections.abc import Callable

import pytest

from tests.fakes.clock import SECOND
from tests.fakes.world import OneThread, World
from worker.core.errors import InternalError
from worker.core.outcome import Next, Outcome, Result, State
from worker.schedule.dispatch import Dispatcher, Pool
from worker.schedule.fleet import Fleet


class Told:
    """What a dispatcher told its owner."""

    def __init__(self) -> None:
        self.done: list[tuple[Outcome, Next]] = []
        self.waits: list[float] = []

    def on_done(self, outcome: Outcome, following: Next) -> None:
        self.done.append((outcome, following))

    @property
    def results(self) -> dict[str, Result]:
        return {outcome.account: outcome.result for outcome, _ in self.done}


@pytest.fixture
def world() -> World:
    made = World()
    for name in ("a", "b", "c"):
        made.add_account(name)
    return made


@pytest.fixture
def pool() -> OneThread:
    return OneThread()


@pytest.fixture
def told() -> Told:
    return Told()


Make = Callable[..., Dispatcher]


@pytest.fixture
def make(world: World, pool: OneThread, told: Told) -> Make:
    def dispatcher(max_per_second: float = float("inf")) -> Dispatcher:
        fleet = Fleet(
            max_in_flight=8, max_per_second=max_per_second, recheck_after=60.0, jitter=lambda: 0.0, phase=lambda _: 0.0
        )
        fleet.add(["a", "b", "c"])
        return Dispatcher(
            fleet=fleet,
            refresher=world.refresher(),
            pool=pool,
            clock=world.clock,
            by_hand=None,
            on_done=told.on_done,
            on_wait=told.waits.append,
        )

    return dispatcher


def test_all_that_are_queued_are_refreshed_and_told(make: Make, pool: OneThread, told: Told) -> None:
    make().queue("a", "b", "c")
    pool.run()
    assert told.results == dict.fromkeys("abc", Result.REFRESHED)
    assert told.waits == []


def test_a_bug_at_one_account_is_an_outcome_and_neither_stops_it_nor_the_others(
    make: Make, world: World, pool: OneThread, told: Told
) -> None:
    def bug(_: str, name: str) -> None:
        if name == "a":
            raise ZeroDivisionError

    world.vault.at_request = bug
    dispatcher = make()
    dispatcher.queue("a", "b")
    pool.run()
    assert told.results == {"a": Result.FAILED, "b": Result.REFRESHED}
    outcome, following = next(each for each in told.done if each[0].account == "a")
    assert isinstance(outcome.error, InternalError)
    assert isinstance(outcome.error.__cause__, ZeroDivisionError)
    assert (following.state, following.due) == (State.FAILING, world.clock() + 5)

    world.vault.at_request = lambda *_: None
    dispatcher.queue("a")
    pool.run()
    assert told.results["a"] is Result.REFRESHED


def test_who_waited_looks_again_before_it_mints(make: Make, world: World, pool: OneThread, told: Told) -> None:
    # FIELD 7: a waiter that mints again what was minted while it waited
    dispatcher = make(max_per_second=1)
    dispatcher.queue("a", "b")
    pool.run()
    assert told.results == {"a": Result.REFRESHED}
    assert told.waits
    assert set(told.waits) == {world.clock() + 1}

    world.refresher("sister").refresh("b")
    world.clock.advance(SECOND)
    dispatcher.pump()
    pool.run()
    assert told.results == {"a": Result.REFRESHED, "b": Result.ADOPTED}
    assert world.liveperson.mints("b") == 1


def test_what_is_adopted_lets_the_next_one_in_at_once(make: Make, world: World, pool: OneThread, told: Told) -> None:
    world.refresher("sister").refresh("a")
    world.refresher("sister").refresh("b")
    make(max_per_second=1).queue("a", "b", "c")
    pool.run()
    assert told.results == {"a": Result.ADOPTED, "b": Result.ADOPTED, "c": Result.REFRESHED}


def test_after_stop_nobody_starts_and_what_runs_is_still_told(make: Make, pool: OneThread, told: Told) -> None:
    dispatcher = make()
    dispatcher.queue("a")
    dispatcher.stop()
    dispatcher.queue("b")
    pool.run()
    assert told.results == {"a": Result.REFRESHED}


def test_who_was_removed_while_it_ran_is_not_told_of(make: Make, pool: OneThread, told: Told) -> None:
    dispatcher = make()
    dispatcher.queue("a", "b")
    dispatcher.fleet.remove("a")
    pool.run()
    assert told.results == {"b": Result.REFRESHED}


def test_work_waits_for_the_threads_there_are_where_no_more_can_be_had() -> None:
    began, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        began.set()
        go_on.wait(5)

    with Pool(2) as pool:
        pool.submit(hold)
        assert began.wait(5)
        before = threading.stack_size(1 << 46)  # more than any machine has: as where its memory is used up
        try:
            pool.submit(done.set)
        finally:
            threading.stack_size(before)
        assert not done.is_set()
        go_on.set()
        assert done.wait(5)


def test_what_is_to_be_done_after_the_end_is_dropped() -> None:
    """A sync that runs while the daemon is told to end would tell of a bug."""
    done = threading.Event()
    with Pool(1) as pool:
        pass
    pool.submit(done.set)
    assert not done.is_set()
