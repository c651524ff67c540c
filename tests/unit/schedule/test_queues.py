"""A Sentinel host is forgotten as soon as neither its accounts nor its rate limit need it."""

from worker.core.errors import Kind, RefreshError, Stage
from worker.core.outcome import Outcome, Result, State
from worker.schedule.queues import HostQueues, Turn
from worker.schedule.waitlist import DependencyWaitlist


def test_hosts_that_come_and_go_are_forgotten_but_not_before_their_rate_limit_allows_the_next_start() -> None:
    queues, now = HostQueues(max_in_flight=1, max_per_second=10), 0.0
    for number in range(2000):
        now += 1.0
        queues.push(f"host-{number}", Turn.ANSWERED, 0.0, 0.0, "a")
        assert queues.pop(now) == (f"host-{number}", Turn.ANSWERED, "a")
        queues.start(f"host-{number}", Turn.ANSWERED, "a", now)
        queues.push(f"host-{number}", Turn.ANSWERED, 0.0, 0.0, "b")
        assert queues.pop(now + 0.5) is None  # one runs
        queues.finish("a", requests=1)
        assert queues.pop(now + 0.05) is None
        assert queues.pop(now + 0.1) == (f"host-{number}", Turn.ANSWERED, "b")
    assert len(queues._queues) <= 2  # noqa: SLF001 - nothing else shows what is remembered


def test_a_host_for_which_no_account_waits_any_more_is_forgotten() -> None:
    waitlist = DependencyWaitlist()
    for number in range(2000):
        for name in ("a", "b"):
            error = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "no answer")
            outcome = Outcome(name, Result.FAILED, 0.1, error=error)
            assert outcome.state is State.FAILING
            waitlist.record(outcome, f"host-{number}", host_was_unknown=False, is_new=False)
    assert len(waitlist._names) == 1  # noqa: SLF001 - nothing else shows what is remembered
    assert waitlist.wake("host-1999") == ["a", "b"]
