"""Every account that the scheduler starts is run, and whatever happens to it is an outcome."""

import threading
import time
from collections.abc import Callable

import pytest

from sandbox.faults import Fault
from tests.fakes.clock import SECOND
from tests.fakes.world import OneThread, World
from worker.core.errors import InternalError
from worker.core.outcome import Outcome, Result, State, Transition
from worker.core.plan import Reason
from worker.schedule.accounts import AccountScheduler
from worker.schedule.dispatch import Dispatcher, Limits, Pool

NAMES = ["a", "b", "c"]


class Recorder:
    """The calls of a dispatcher to its owner."""

    def __init__(self) -> None:
        self.complete: list[tuple[Outcome, Transition]] = []
        self.waits: list[float] = []

    def on_done(self, outcome: Outcome, transition: Transition) -> None:
        self.complete.append((outcome, transition))

    @property
    def results(self) -> dict[str, Result]:
        return {outcome.account: outcome.result for outcome, _ in self.complete}


@pytest.fixture
def pool() -> OneThread:
    return OneThread()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


Make = Callable[..., Dispatcher]


@pytest.fixture
def make(world: World, pool: OneThread, recorder: Recorder) -> Make:
    def dispatcher(max_per_second: float = float("inf"), max_in_flight: int = 8) -> Dispatcher:
        scheduler = AccountScheduler(
            max_in_flight=max_in_flight,
            max_per_second=max_per_second,
            recheck_after=60.0,
            jitter=lambda: 0.0,
            phase=lambda _: 0.0,
        )
        scheduler.add(["a", "b", "c"])
        return Dispatcher(
            scheduler=scheduler,
            refresher=world.refresher(),
            pool=pool,
            clock=world.clock,
            force=None,
            on_done=recorder.on_done,
            on_wait=recorder.waits.append,
        )

    return dispatcher


def test_all_that_are_queued_are_refreshed_and_told(make: Make, pool: OneThread, recorder: Recorder) -> None:
    make().queue("a", "b", "c")
    pool.run()
    assert recorder.results == dict.fromkeys("abc", Result.REFRESHED)
    assert recorder.waits[-1] == min(transition.due for _, transition in recorder.complete)


def test_a_bug_at_one_account_is_an_outcome_and_neither_stops_it_nor_the_others(
    make: Make, world: World, pool: OneThread, recorder: Recorder
) -> None:
    def bug(_: str, name: str) -> None:
        if name == "a":
            raise ZeroDivisionError

    world.vault.at_request = bug
    dispatcher = make()
    dispatcher.queue("a", "b")
    pool.run()
    assert recorder.results == {"a": Result.FAILED, "b": Result.REFRESHED}
    outcome, transition = next(each for each in recorder.complete if each[0].account == "a")
    assert isinstance(outcome.error, InternalError)
    assert isinstance(outcome.error.__cause__, ZeroDivisionError)
    assert outcome.reason is Reason.DUE
    assert (transition.state, transition.due) == (State.FAILING, world.clock() + 5)

    world.vault.at_request = lambda *_: None
    dispatcher.queue("a")
    pool.run()
    assert recorder.results["a"] is Result.REFRESHED


def test_who_waited_looks_again_before_it_mints(make: Make, world: World, pool: OneThread, recorder: Recorder) -> None:
    # a waiter that mints again what was minted while it waited
    dispatcher = make(max_per_second=1)
    dispatcher.queue("a", "b")
    pool.run()
    assert recorder.results == {"a": Result.REFRESHED}
    assert recorder.waits
    assert set(recorder.waits) == {world.clock() + 1}

    world.refresher("sister").refresh("b")
    world.clock.advance(SECOND)
    dispatcher.start_due()
    pool.run()
    assert recorder.results == {"a": Result.REFRESHED, "b": Result.ADOPTED}
    assert world.liveperson.mints("b") == 1


def test_what_is_adopted_lets_the_next_one_in_at_once(
    make: Make, world: World, pool: OneThread, recorder: Recorder
) -> None:
    world.refresher("sister").refresh("a")
    world.refresher("sister").refresh("b")
    make(max_per_second=1).queue("a", "b", "c")
    pool.run()
    assert recorder.results == {"a": Result.ADOPTED, "b": Result.ADOPTED, "c": Result.REFRESHED}


def test_who_timed_out_has_less_time_while_others_wait(
    make: Make, world: World, pool: OneThread, recorder: Recorder
) -> None:
    dispatcher = make(max_in_flight=1)
    world.liveperson.faults.set(Fault(hang=True), account="a")
    for together in ("bc", "a", "a", "abc"):
        dispatcher.queue(*together)
        pool.run()
    assert recorder.results == {"a": Result.FAILED, "b": Result.ADOPTED, "c": Result.ADOPTED}
    asked = zip(world.liveperson.requests, world.liveperson.timeouts, strict=True)
    timeouts = [timeout for request, timeout in asked if request == ("sentinel", "a")]
    assert timeouts == [10 * SECOND, 10 * SECOND, 2 * SECOND]


def test_after_stop_nobody_starts_and_what_runs_is_still_told(make: Make, pool: OneThread, recorder: Recorder) -> None:
    dispatcher = make()
    dispatcher.queue("a")
    dispatcher.stop()
    dispatcher.queue("b")
    pool.run()
    assert recorder.results == {"a": Result.REFRESHED}


def test_who_was_removed_while_it_ran_is_not_told_of(make: Make, pool: OneThread, recorder: Recorder) -> None:
    dispatcher = make()
    dispatcher.queue("a", "b")
    dispatcher.scheduler.remove("a")
    pool.run()
    assert recorder.results == {"b": Result.REFRESHED}


def test_work_waits_for_the_threads_there_are_where_no_more_can_be_had() -> None:
    began, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def schedule_token() -> None:
        began.set()
        go_on.wait(5)

    with Pool(2) as pool:
        pool.submit(schedule_token)
        assert began.wait(5)
        before = threading.stack_size(1 << 46)  # more than any machine has: as where its memory is used up
        try:
            pool.submit(done.set)
        finally:
            threading.stack_size(before)
        assert not done.is_set()
        go_on.set()
        assert done.wait(5)


def test_calls_are_made_side_by_side_within_the_limits_and_a_slow_one_keeps_none_from_the_next() -> None:
    running, peak, released = 0, 0, threading.Event()
    lock = threading.Lock()

    def call(name: str) -> str:
        nonlocal running, peak
        with lock:
            running, peak = running + 1, max(peak, running + 1)
        if name == "slow":
            assert released.wait(5)
        time.sleep(0.01)
        with lock:
            running -= 1
        return name

    names, got = ["slow", *map(str, range(9))], []
    with Pool(8) as pool:
        for name in pool.map_unordered(call, names, Limits(max_in_flight=3, max_per_second=1000.0)):
            got.append(name)
            if len(got) == len(names) - 1:
                released.set()
    assert sorted(got) == sorted(names)
    assert (got[-1], peak) == ("slow", 3)


def test_a_thread_that_a_signal_amid_its_start_kept_from_being_counted_is_waited_for() -> None:
    pool, release = Pool(1), threading.Event()
    pool.submit(release.wait)
    pool._threads = set()  # noqa: SLF001 - as the signal leaves it
    pool.shutdown(wait=False)
    joined = pool.join(0.05)
    release.set()
    assert not joined
    assert pool.join(10)


def test_calls_are_made_by_the_threads_there_are_where_no_more_can_be_had() -> None:
    def call(number: int) -> str:
        time.sleep(0.02)
        return str(number)

    with Pool(4) as pool:
        pool.submit(call, 0)
        before = threading.stack_size(1 << 46)
        try:
            got = sorted(pool.map_unordered(call, range(4), Limits(max_in_flight=4, max_per_second=1000.0)))
        finally:
            threading.stack_size(before)
    assert got == ["0", "1", "2", "3"]


def test_calls_start_no_faster_than_they_may() -> None:
    with Pool(8) as pool:
        at = [*pool.map_unordered(lambda _: time.monotonic(), range(4), Limits(max_in_flight=2, max_per_second=20.0))]
    assert max(at) - min(at) > 0.12
    assert [*Pool(1).map_unordered(str, (), Limits(1, 1.0))] == []


def test_what_is_to_be_done_after_the_end_is_dropped() -> None:
    """A sync that runs while the daemon is asked to stop would report a bug."""
    done = threading.Event()
    with Pool(1) as pool:
        pass
    pool.submit(done.set)
    assert not done.is_set()
