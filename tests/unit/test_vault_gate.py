"""The pace of the requests to one mount, on virtual time: each caller is a greenlet, Vault's rate limit a few lines."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.clock import Clock
from tests.simulation.hub import Condition, Hub, Process
from worker.core.errors import CasMismatchError, Stage, ThrottledError
from worker.vault.gate import Gate
from worker.vault.operation import Operation

LATENCY = 0.005
READ, WRITE = Operation.READ_TOKEN, Operation.WRITE_TOKEN


class Mount:
    """A KV mount under a rate limit: so many requests in each interval, as Vault counts them."""

    def __init__(self, quota: int, interval: float = 1.0, *, retry_after: float | None = None) -> None:
        self.clock = Clock()
        self.began = self.clock()
        self.hub = Hub(self.clock, Random(0))
        self.quota = quota
        self.retry_after = None if retry_after is None else timedelta(seconds=retry_after)
        self.latency = LATENCY
        self.min_remaining = float("inf")
        self.answers: list[tuple[float, bool]] = []
        """The moment of each answer, and True if the request was let through."""
        self.most_at_once = 0
        self._windows: Counter[float] = Counter()
        self._interval = interval
        self._in_flight = 0
        self._process = Process("worker", self.clock())
        self.gate = Gate(
            "secret",
            clock=self.clock,
            min_remaining=lambda: self.min_remaining,
            condition=Condition(self.hub),
        )

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return round(self.clock() - self.began, 3)

    def send(self) -> None:
        self._in_flight += 1
        self.most_at_once = max(self.most_at_once, self._in_flight)
        self.hub.sleep(self.latency)
        self._in_flight -= 1
        window = self.now // self._interval
        self._windows[window] += 1
        is_passed = self._windows[window] <= self.quota
        self.answers.append((self.now, is_passed))
        if not is_passed:
            raise ThrottledError(Stage.VAULT, "status 429", self.retry_after)

    def begin(self, work: Callable[[], object], after: float = 0.0) -> None:
        self.hub.after(after, lambda: self.hub.spawn(self._process, work))

    def call(self, operation: Operation = READ, after: float = 0.0) -> None:
        self.begin(lambda: self.gate.call(operation, self.send), after)

    def run(self, seconds: float) -> list[Any]:
        """Let so much time pass; what was logged."""
        with capture_logs() as logs:
            self.hub.run(self.clock() + seconds)
        return logs

    @property
    def passed(self) -> list[float]:
        return [when for when, ok in self.answers if ok]

    @property
    def refused(self) -> list[float]:
        return [when for when, ok in self.answers if not ok]


def test_without_a_429_everything_goes_at_once() -> None:
    mount = Mount(1000)
    for _ in range(200):
        mount.call()
    assert mount.run(20) == []
    assert mount.passed == [LATENCY] * 200
    assert mount.refused == []


@pytest.mark.parametrize("threads", [8, 40])
@pytest.mark.parametrize("latency", [0.002, 0.3])
@pytest.mark.parametrize(("quota", "interval"), [(50, 1.0), (5, 1.0), (1, 1.0), (200, 60.0)])
def test_the_work_is_done_within_twice_what_the_quota_needs(
    quota: int, interval: float, latency: float, threads: int
) -> None:
    mount = Mount(quota, interval)
    mount.latency = latency
    count = 5 * quota + threads

    def work(share: int) -> None:
        for _ in range(share):
            mount.gate.call(READ, mount.send)

    for number in range(threads):
        mount.begin(lambda share=count // threads + (number < count % threads): work(share))  # type: ignore[misc]
    needed = max((count - 1) // quota * interval, count * latency / threads)
    mount.run(2 * needed + 4 * latency)
    assert len(mount.passed) == count
    assert len(mount.refused) < 2 * count + threads


def test_it_stays_closed_for_a_second_reopens_with_one_request_and_speeds_up() -> None:
    mount = Mount(1000)
    mount.quota = 0
    for _ in range(100):
        mount.call()
    mount.run(0.5)
    assert mount.refused == [LATENCY] * 100
    mount.quota, mount.most_at_once = 1000, 0
    mount.run(1)
    first, *others = mount.passed
    assert first == pytest.approx(1 + 2 * LATENCY)
    rounds = [others.count(each) for each in sorted({*others})]
    assert rounds == [2, 4, 8, 16, 32, 37]
    assert len(mount.passed) == 100


def test_after_one_that_was_too_much_it_speeds_up_from_half_of_that() -> None:
    mount = Mount(12)

    def work() -> None:
        for _ in range(20):
            mount.gate.call(READ, mount.send)

    for _ in range(4):
        mount.begin(work)
    mount.run(1.5)
    reopened = [when for when in mount.passed if when > 1]
    assert [reopened.count(each) for each in sorted({*reopened})] == [1, 2, 2, 3, 4]


def test_a_probe_that_is_refused_is_the_only_one() -> None:
    mount = Mount(0)
    for _ in range(100):
        mount.call()
    mount.run(10)
    assert len(mount.refused) == 100 + 9


def test_retry_after_is_waited_for() -> None:
    mount = Mount(0, retry_after=7.0)
    mount.call()
    mount.run(20)
    assert mount.refused == [0.005, 7.01, 14.015]


def test_a_retry_after_of_0_is_a_second() -> None:
    """OpenBao rounds down: 0.9 s are 0."""
    mount = Mount(0, retry_after=0.0)
    mount.call()
    mount.run(10)
    assert len(mount.refused) == 10


def test_it_waits_for_a_quarter_of_what_remains_at_most_and_for_eight_minutes_if_no_token_lives() -> None:
    mount = Mount(0, retry_after=3600.0)
    mount.min_remaining = 40.0
    mount.call()
    mount.run(15)
    assert mount.refused == [0.005, 10.01]
    mount.min_remaining = 8.0
    mount.call()  # with less life, it cannot wait for as long
    mount.run(2.5)
    assert mount.refused == [0.005, 10.01, 17.005]
    mount.min_remaining = float("inf")
    mount.run(600)
    assert mount.refused[3:] == pytest.approx([19.0, 499.0], abs=0.1)


def test_a_token_that_is_about_to_expire_makes_no_hot_loop() -> None:
    mount = Mount(0)
    mount.min_remaining = 0.001
    mount.call()
    mount.run(10)
    assert len(mount.refused) < 110


def test_a_write_waits_for_half_a_minute_a_mark_for_ten_seconds_and_a_read_as_long_as_it_takes() -> None:
    mount = Mount(0, retry_after=3600.0)
    ended: dict[Operation, float] = {}

    def call(operation: Operation) -> None:
        try:
            mount.gate.call(operation, mount.send)
        except ThrottledError:
            ended[operation] = mount.now

    for operation in (WRITE, Operation.WRITE_METADATA, READ, Operation.LIST):
        mount.begin(lambda operation=operation: call(operation))  # type: ignore[misc]
    mount.run(400)
    assert ended == {WRITE: pytest.approx(30, abs=0.1), Operation.WRITE_METADATA: pytest.approx(10, abs=0.1)}


def test_any_other_answer_counts_as_let_through() -> None:
    mount = Mount(0)
    mount.call()
    mount.run(0.5)
    mount.quota = 1000

    def conflict() -> None:
        mount.send()
        raise CasMismatchError("another version")

    def call() -> None:
        with pytest.raises(CasMismatchError):
            mount.gate.call(WRITE, conflict)

    for _ in range(10):
        mount.begin(call)
    mount.run(2)
    assert len(mount.passed) == 11


def test_a_429_that_comes_late_does_not_close_it_again() -> None:
    mount = Mount(0)
    mount.call()
    mount.latency = 1.1
    mount.call()  # its answer arrives when the gate is open again
    mount.latency = LATENCY
    mount.begin(lambda: setattr(mount, "latency", LATENCY), after=0.002)
    mount.run(0.5)
    mount.quota = 10
    mount.run(2)
    assert len(mount.passed) == 2


# What is logged


def throttled(logs: list[Any]) -> list[tuple[Any, ...]]:
    return [(line["event"], line["mount"], line["duration"], line["log_level"]) for line in logs]


def test_a_spell_is_logged_once_when_it_is_over() -> None:
    mount = Mount(5)
    for _ in range(40):
        mount.call()
    assert mount.run(20) == []  # no request is made
    assert len(mount.passed) == 40
    assert len({int(when) for when in mount.refused}) > 5
    mount.call()
    (line,) = throttled(mount.run(1))
    assert line == ("vault.throttled", "secret", pytest.approx(8, abs=2), "warning")
    mount.call()
    assert mount.run(10) == []


def test_the_next_spell_is_logged_too() -> None:
    mount = Mount(5)
    for begin in (0, 60, 120):
        for _ in range(10):
            mount.call(after=begin)
    assert [line[0] for line in throttled(mount.run(180))] == ["vault.throttled"] * 2
    with capture_logs() as logs:
        mount.gate.close()
        mount.gate.close()
    assert [line[0] for line in throttled(logs)] == ["vault.throttled"]


def test_a_long_spell_is_logged_after_a_minute_and_not_at_its_end() -> None:
    mount = Mount(0)
    mount.call()
    ((event, _, duration, _),) = throttled(mount.run(70))
    assert (event, duration) == ("vault.throttled", pytest.approx(60, abs=2))
    mount.quota = 100
    mount.call(after=20)
    assert mount.run(30) == []


def test_nothing_is_logged_where_nothing_was_throttled() -> None:
    mount = Mount(100)
    mount.call()
    assert mount.run(1) == []
    with capture_logs() as logs:
        mount.gate.close()
    assert logs == []
