"""The order of accounts: the scheduler alone, with moments as plain numbers."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from worker.core.account import Absence
from worker.core.errors import (
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
    UnmanagedSecretError,
)
from worker.core.outcome import Outcome, Result, State, Transition
from worker.core.plan import Reason, TrackedToken, Validity
from worker.core.status import PREVIOUS_USED
from worker.schedule.accounts import AccountScheduler
from worker.vault.errors import LoginRefusedError

VA, LO = "va.example", "lo.example"
OUTAGE = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "answers 503", status=503)


def make_fleet(
    max_in_flight: int = 8, max_per_second: float = float("inf"), phase: Callable[[str], float] = lambda _: 0.0
) -> AccountScheduler:
    return AccountScheduler(
        max_in_flight=max_in_flight,
        max_per_second=max_per_second,
        recheck_after=60.0,
        jitter=lambda: 0.0,
        phase=phase,
    )


@pytest.fixture
def scheduler() -> AccountScheduler:
    return make_fleet()


def tracked(ends: float, refresh_at: float = 0.0) -> TrackedToken:
    return TrackedToken("fingerprint", Validity(ends - 3600, ends), refresh_at, planned_at=refresh_at)


def done(scheduler: AccountScheduler, outcome: Outcome, now: float) -> Transition:
    transition = scheduler.complete(outcome, now)
    assert transition
    return transition


def ok(name: str, ends: float = 3600.0, host: str = VA, refresh_at: float = 1800.0) -> Outcome:
    return Outcome(name, Result.REFRESHED, 0.1, host=host, tracked=tracked(ends, refresh_at))


def adopted(name: str, ends: float = 3600.0, host: str = VA, refresh_at: float = 1800.0) -> Outcome:
    return Outcome(name, Result.ADOPTED, 0.1, host=host, tracked=tracked(ends, refresh_at))


def failed(name: str, error: RefreshError = OUTAGE, left: TrackedToken | None = None) -> Outcome:
    return Outcome(name, Result.FAILED, 0.1, error=error, tracked=left)


def know(scheduler: AccountScheduler, *names: str, host: str = VA, ends: float = 3600.0) -> None:
    """Accounts whose token and host are known."""
    scheduler.add(names)
    for name in names:
        scheduler.complete(adopted(name, ends, host), 0.0)


def queue(scheduler: AccountScheduler, *names: str) -> None:
    for name in names:
        scheduler.queue(name)


def started(scheduler: AccountScheduler, now: float = 0.0) -> list[str]:
    """Return all that may start now, in order."""
    names = []
    while record := scheduler.start_next(now):
        names.append(record.name)
    return names


# Order


def test_who_has_no_token_goes_first_then_whose_ends_first(scheduler: AccountScheduler) -> None:
    know(scheduler, "late", ends=3000)
    know(scheduler, "early", ends=1000, host=LO)
    know(scheduler, "middle", ends=2000)
    scheduler.add(["new"])
    queue(scheduler, "late", "middle", "early", "new")
    assert started(scheduler) == ["new", "early", "middle", "late"]


def test_an_account_is_queued_once_and_not_while_it_runs(scheduler: AccountScheduler) -> None:
    scheduler.add(["a"])
    queue(scheduler, "a", "a")
    assert started(scheduler) == ["a"]
    queue(scheduler, "a")
    assert started(scheduler) == []
    scheduler.complete(ok("a"), 1.0)
    queue(scheduler, "a")
    assert started(scheduler, 2.0) == ["a"]


def test_an_unknown_account_is_not_queued(scheduler: AccountScheduler) -> None:
    queue(scheduler, "nobody")
    assert started(scheduler) == []


# Caps


def test_each_host_has_a_cap_of_its_own() -> None:
    scheduler = make_fleet(max_in_flight=2)
    know(scheduler, "a1", "a2", "a3", host=VA)
    know(scheduler, "b1", "b2", "b3", host=LO)
    queue(scheduler, "a1", "a2", "a3", "b1", "b2", "b3")
    assert sorted(started(scheduler)) == ["a1", "a2", "b1", "b2"]
    assert scheduler.next_wake() == 1800.0  # no wait for the rate: an account that finishes lets the next one in
    scheduler.complete(ok("a1"), 0.0)
    assert started(scheduler) == ["a3"]


def test_a_host_that_hangs_keeps_nobody_else_waiting() -> None:
    scheduler = make_fleet(max_in_flight=2)
    know(scheduler, "a1", "a2", "a3", host=VA, ends=10)
    know(scheduler, "b1", host=LO, ends=3600)
    queue(scheduler, "a1", "a2", "a3")
    started(scheduler)
    queue(scheduler, "b1")
    assert started(scheduler) == ["b1"]


def test_who_runs_without_a_known_host_counts_against_each() -> None:
    scheduler = make_fleet(max_in_flight=2)
    know(scheduler, "a1", "a2", host=VA)
    know(scheduler, "b1", host=LO)
    scheduler.add(["new"])
    queue(scheduler, "new")
    assert started(scheduler) == ["new"]
    queue(scheduler, "a1", "a2", "b1")
    assert sorted(started(scheduler)) == ["a1", "b1"]
    scheduler.complete(ok("new", host=LO), 0.0)
    assert started(scheduler) == ["a2"]


def test_who_has_no_known_host_waits_for_the_fullest_one() -> None:
    scheduler = make_fleet(max_in_flight=1)
    know(scheduler, "a1", host=VA)
    scheduler.add(["new"])
    queue(scheduler, "a1")
    started(scheduler)
    queue(scheduler, "new")
    assert started(scheduler) == []
    scheduler.complete(ok("a1"), 0.0)
    assert started(scheduler) == ["new"]


def test_a_host_that_a_failure_told_of_is_known_from_then_on() -> None:
    scheduler = make_fleet(max_in_flight=1)
    scheduler.add(["a1", "a2"])
    know(scheduler, "b1", host=LO)
    for name in ("a1", "a2"):
        scheduler.complete(Outcome(name, Result.FAILED, 0.1, host=VA, error=OUTAGE), 0.0)
    queue(scheduler, "a1", "a2", "b1")
    assert sorted(started(scheduler)) == ["a1", "b1"]


def test_the_rate_cap_lets_them_start_one_by_one_and_says_when() -> None:
    scheduler = make_fleet(max_per_second=4)
    know(scheduler, "a1", "a2", "a3", host=VA)
    know(scheduler, "b1", host=LO)
    queue(scheduler, "a1", "a2", "a3", "b1")
    assert sorted(started(scheduler, 100.0)) == ["a1", "b1"]
    assert scheduler.next_wake() == 100.25
    assert started(scheduler, 100.2) == []
    assert started(scheduler, 100.25) == ["a2"]
    assert scheduler.next_wake() == 100.5
    assert started(scheduler, 100.5) == ["a3"]
    assert scheduler.next_wake() == 1800.0


def test_the_rate_cap_holds_for_accounts_whose_host_is_not_known() -> None:
    scheduler = make_fleet(max_per_second=4)
    scheduler.add(["x", "y"])
    queue(scheduler, "x", "y")
    assert started(scheduler, 100.0) == ["x"]
    assert scheduler.next_wake() == 100.25


def test_what_was_adopted_does_not_count_against_the_rate() -> None:
    scheduler = make_fleet(max_per_second=1)
    know(scheduler, "a1", "a2", "a3")
    queue(scheduler, "a1", "a2", "a3")
    assert started(scheduler, 100.0) == ["a1"]
    scheduler.complete(adopted("a1"), 100.01)
    assert started(scheduler, 100.01) == ["a2"]
    scheduler.complete(ok("a2"), 100.02)
    assert started(scheduler, 100.02) == []
    assert scheduler.next_wake() == 101.01


# Those that time out


TIMEOUT = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "no complete answer within 10 s", host=VA, timed_out=True)
UNREADABLE = RefreshError(Stage.VAULT, Kind.TRANSIENT, "answers 503", status=503)
NO_HOST = RefreshError(Stage.DOMAIN, Kind.TRANSIENT, "answers 503", status=503)
REFUSED = RefreshError(Stage.CLAIMS, Kind.PERMANENT, "aud: expected another")


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number:02}" for number in range(count)]


def time_out(scheduler: AccountScheduler, *accounts: str, at: float = 0.0) -> None:
    for name in accounts:
        scheduler.complete(failed(name, TIMEOUT), at)


@pytest.mark.parametrize(("slots", "share"), [(1, 1), (2, 1), (4, 1), (7, 1), (8, 2), (64, 16)])
def test_accounts_that_timed_out_share_a_quarter_of_their_hosts_slots(slots: int, share: int) -> None:
    scheduler = make_fleet(max_in_flight=slots)
    sick, well = names("sick", 64), names("well", 64)
    know(scheduler, *sick, ends=1000)
    know(scheduler, *well)
    time_out(scheduler, *sick)
    queue(scheduler, *sick)
    assert started(scheduler) == sick[:share]
    queue(scheduler, *well)
    assert started(scheduler) == well[: slots - share]
    time_out(scheduler, *sick[:share])
    assert len(started(scheduler)) == share


def test_a_quarter_is_of_each_host() -> None:
    scheduler = make_fleet()
    for host in (VA, LO):
        know(scheduler, *names(host, 9), host=host)
        time_out(scheduler, *names(host, 9))
        queue(scheduler, *names(host, 9))
    assert sorted(started(scheduler)) == [*names(LO, 2), *names(VA, 2)]


@pytest.mark.parametrize(("slots", "per_second"), [(1, float("inf")), (8, 1.0)], ids=["one slot", "a slow rate"])
def test_while_others_wait_every_second_start_is_theirs(slots: int, per_second: float) -> None:
    scheduler = make_fleet(max_in_flight=slots, max_per_second=per_second)
    sick, well = names("sick", 9), names("well", 3)
    know(scheduler, *sick, ends=1000)
    know(scheduler, *well)
    time_out(scheduler, *sick)
    queue(scheduler, *sick, *well)
    order = []
    for now in range(1, 9):
        (name,) = started(scheduler, float(now))
        order.append(name[:4])
        scheduler.complete(failed(name, TIMEOUT) if name in sick else ok(name), float(now))
    assert order == ["sick", "well"] * 3 + ["sick", "sick"]


def test_only_an_account_that_timed_out_is_in_haste_and_only_while_others_wait_for_its_host() -> None:
    scheduler = make_fleet(max_in_flight=1)
    know(scheduler, "a", "b", "well", "fit")
    know(scheduler, "elsewhere", "too", host=LO)
    time_out(scheduler, "a", "b")

    def haste(*accounts: str) -> dict[str, bool]:
        queue(scheduler, *accounts)
        order = {}
        while record := scheduler.start_next(0.0):
            order[record.name] = record.others_wait
            scheduler.complete(failed(record.name, TIMEOUT if record.name in ("a", "b") else OUTAGE), 0.0)
        return order

    assert haste("a", "b") == {"a": False, "b": False}
    queue(scheduler, "elsewhere", "too")
    assert scheduler.start_next(0.0)
    assert haste("a", "b") == {"a": False, "b": False}
    assert haste("a", "b", "well", "fit") == {"a": True, "well": False, "b": True, "fit": False}


def test_an_account_whose_host_is_not_known_may_wait_for_any() -> None:
    scheduler = make_fleet(max_in_flight=8)
    know(scheduler, "a")
    time_out(scheduler, "a")
    scheduler.add(names("new", 7))
    queue(scheduler, *names("new", 7))
    assert started(scheduler) == names("new", 6)
    queue(scheduler, "a")
    record = scheduler.start_next(0.0)
    assert record
    assert (record.name, record.others_wait) == ("a", True)


@pytest.mark.parametrize(
    ("outcome", "times_out"),
    [
        (ok("a"), False),
        (adopted("a"), False),
        (failed("a", OUTAGE), False),
        (failed("a", REFUSED), False),
        (failed("a", UNREADABLE), True),
        (failed("a", NO_HOST), True),
    ],
    ids=["success", "adoption", "503", "a wrong token", "Vault fails", "Domain API fails"],
)
def test_an_account_times_out_until_sentinel_answers_it(outcome: Outcome, times_out: bool) -> None:  # noqa: FBT001
    scheduler = make_fleet(max_in_flight=4)
    know(scheduler, "a", "b")
    time_out(scheduler, "a", "b")
    scheduler.complete(outcome, 1.0)
    queue(scheduler, "b", "a")
    assert len(started(scheduler, 2.0)) == (1 if times_out else 2)


def test_of_those_that_time_out_every_second_start_is_for_a_live_token_and_the_others_take_turns() -> None:
    scheduler = make_fleet(max_in_flight=1)
    know(scheduler, "late", ends=7200)
    know(scheduler, "early", ends=3600)
    know(scheduler, "ended", ends=50)
    scheduler.add(["none"])
    scheduler.complete(replace(failed("none", TIMEOUT), host=VA), 100.0)
    time_out(scheduler, "ended", "late", "early", at=200.0)
    order = []
    for now in range(300, 900, 100):
        queue(scheduler, "none", "ended", "late", "early")
        record = scheduler.start_next(float(now))
        assert record
        order.append(record.name)
        time_out(scheduler, record.name, at=float(now))
    assert order == ["early", "none", "early", "ended", "early", "none"]


def test_a_token_that_expires_while_its_account_waits_to_be_tried_again_counts_as_expired() -> None:
    scheduler = make_fleet(max_in_flight=1)
    know(scheduler, "a", "b", ends=1000)
    know(scheduler, "c", ends=2000)
    time_out(scheduler, "a", "b", "c", at=500.0)
    queue(scheduler, "a", "b", "c")
    assert started(scheduler, 1500.0) == ["c"]
    time_out(scheduler, "c", at=1510.0)
    assert started(scheduler, 1510.0) == ["a"]


# Come and go


def test_accounts_that_are_new_are_told_and_those_left_out_stay_until_they_are_removed(
    scheduler: AccountScheduler,
) -> None:
    assert scheduler.add(["a", "b"]) == ["a", "b"]
    assert scheduler.add(["b", "c"]) == ["c"]
    assert scheduler.missing(frozenset({"a", "c"})) == ["b"]
    assert "b" in scheduler
    assert scheduler.remove("b")
    assert not scheduler.remove("b")
    assert "b" not in scheduler
    assert len(scheduler) == 2


def test_who_was_removed_while_queued_does_not_start(scheduler: AccountScheduler) -> None:
    scheduler.add(["a", "b"])
    queue(scheduler, "a", "b")
    scheduler.remove("a")
    assert started(scheduler) == ["b"]


def test_thousands_removed_while_queued_do_not_stand_in_the_way(scheduler: AccountScheduler) -> None:
    names = [f"a{number}" for number in range(5000)]
    scheduler.add([*names, "z"])
    queue(scheduler, *names, "z")
    for name in names:
        scheduler.remove(name)
    assert started(scheduler) == ["z"]


def test_who_was_removed_while_queued_and_came_back_starts_once(scheduler: AccountScheduler) -> None:
    scheduler.add(["a"])
    queue(scheduler, "a")
    scheduler.remove("a")
    scheduler.add(["a"])
    queue(scheduler, "a")
    assert started(scheduler) == ["a"]


def test_who_was_removed_while_it_ran_frees_its_slot_and_has_no_next() -> None:
    scheduler = make_fleet(max_in_flight=1)
    scheduler.add(["a", "b"])
    queue(scheduler, "a")
    started(scheduler)
    scheduler.remove("a")
    queue(scheduler, "b")
    assert scheduler.complete(ok("a"), 1.0) is None
    assert started(scheduler, 1.0) == ["b"]


def test_who_was_removed_while_it_ran_and_came_back_runs_once_and_gives_its_slot_back() -> None:
    scheduler = make_fleet(max_in_flight=8)
    scheduler.add(["a"])
    queue(scheduler, "a")
    started(scheduler)
    scheduler.remove("a")
    scheduler.add(["a", "b", "c"])
    queue(scheduler, "a")
    assert started(scheduler) == []
    scheduler.complete(ok("a"), 1.0)
    queue(scheduler, "b", "c")
    assert started(scheduler, 1.0) == ["b", "c"]


def test_what_is_due_is_queued_once_and_what_has_no_due_time_is_not(scheduler: AccountScheduler) -> None:
    know(scheduler, "due", "queued", "running")
    scheduler.add(["never looked at"])
    queue(scheduler, "running")
    started(scheduler)
    queue(scheduler, "queued")
    scheduler.queue_due(1799.0)
    assert started(scheduler) == ["queued"]
    scheduler.queue_due(1800.0)
    scheduler.queue_due(1800.0)
    assert started(scheduler, 1800.0) == ["due"]


def test_a_due_time_that_was_replaced_or_whose_account_is_gone_counts_no_more(scheduler: AccountScheduler) -> None:
    know(scheduler, "later", "gone", "back")
    scheduler.complete(ok("later", refresh_at=5000.0), 100.0)
    for name in ("gone", "back"):
        scheduler.remove(name)
    scheduler.add(["back"])
    scheduler.queue_due(1800.0)
    assert started(scheduler, 1800.0) == []
    assert scheduler.next_wake() == 5000.0
    scheduler.queue_due(5000.0)
    assert started(scheduler, 5000.0) == ["later"]


def test_an_account_that_comes_due_while_it_is_looked_at_is_due_when_that_ends(scheduler: AccountScheduler) -> None:
    know(scheduler, "a")
    record = scheduler.reserve("a")
    assert record
    scheduler.queue_due(1800.0)
    assert started(scheduler, 1800.0) == []
    scheduler.release(record, None)
    assert scheduler.next_wake() == 1800.0
    scheduler.queue_due(1800.0)
    assert started(scheduler, 1800.0) == ["a"]


@pytest.mark.parametrize(("refresh_at", "due"), [(1700.0, 1700.0), (1900.0, 1800.0)])
def test_a_look_brings_a_refresh_forward_and_never_puts_it_off(
    scheduler: AccountScheduler, refresh_at: float, due: float
) -> None:
    know(scheduler, "a")
    record = scheduler.reserve("a")
    assert record
    scheduler.release(record, replace(tracked(3600.0), refresh_at=refresh_at))
    assert scheduler.next_wake() == due


def test_a_look_at_an_account_that_was_never_planned_plans_nothing(scheduler: AccountScheduler) -> None:
    scheduler.add(["a"])
    record = scheduler.reserve("a")
    assert record
    scheduler.release(record, tracked(3600.0))
    assert (scheduler.next_wake(), record.tracked) == (None, tracked(3600.0))


# The next moment


def test_a_good_token_is_due_as_planned(scheduler: AccountScheduler) -> None:
    scheduler.add(["a"])
    transition = done(scheduler, ok("a", refresh_at=1800.0), 10.0)
    assert (transition.previous_state, transition.state, transition.failures) == (State.OK, State.OK, 0)
    assert (transition.remaining, transition.due) == (3590.0, 1800.0)


def test_a_plan_that_is_over_already_is_not_followed_at_once(scheduler: AccountScheduler) -> None:
    # a token that lives for no time at all makes no hot loop
    scheduler.add(["a"])
    transition = done(scheduler, ok("a", ends=10.0, refresh_at=5.0), 10.0)
    assert transition.due == 11.0


def test_pauses_grow_as_long_as_no_token_lives(scheduler: AccountScheduler) -> None:
    scheduler.add(["a"])
    pauses = []
    for _ in range(7):
        transition = done(scheduler, failed("a"), 100.0)
        pauses.append(transition.due - 100.0)
    assert pauses == [5, 10, 15, 120, 120, 120, 120]
    assert (transition.state, transition.failures) == (State.FAILING, 7)


def test_a_refused_login_is_told_as_permanent_and_tried_again_like_an_outage(scheduler: AccountScheduler) -> None:
    know(scheduler, "le1")
    refused = LoginRefusedError("approle login: status 400", status=400, kind=Kind.TRANSIENT)
    for pause in (5, 10, 15, 120, 120):
        transition = done(scheduler, failed("le1", refused), 4000.0)
        assert (transition.kind, transition.due) == (Kind.PERMANENT, 4000.0 + pause)


def test_no_pause_is_longer_than_a_quarter_of_the_life_that_is_left(scheduler: AccountScheduler) -> None:
    scheduler.add(["a"])
    for _ in range(6):
        transition = done(scheduler, failed("a", left=tracked(ends=500.0)), 100.0)
    assert transition.due == 200.0
    transition = done(scheduler, failed("a"), 498.0)
    assert transition.due == 499.0


def test_retry_after_is_heeded_up_to_three_quarters_of_the_life_that_is_left(scheduler: AccountScheduler) -> None:
    error = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "429", status=429, retry_after=timedelta(seconds=300))
    know(scheduler, "a", ends=200.0)
    transition = done(scheduler, failed("a", error), 100.0)
    assert transition.due == 175.0


def test_success_ends_a_row_of_failures(scheduler: AccountScheduler) -> None:
    # a state that stays "failed" after recovery
    scheduler.add(["a"])
    scheduler.complete(failed("a"), 0.0)
    scheduler.complete(failed("a"), 5.0)
    transition = done(scheduler, ok("a"), 15.0)
    assert (transition.previous_state, transition.state, transition.failures) == (State.FAILING, State.OK, 0)
    transition = done(scheduler, failed("a"), 20.0)
    assert transition.failures == 1


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (failed("a", InvalidAccountError("client_id: missing")), State.INVALID),
        (failed("a", UnmanagedSecretError("not ours")), State.UNMANAGED),
        (Outcome("a", Result.ABSENT, 0.1, absence=Absence.DISABLED), State.DISABLED),
        (Outcome("a", Result.ABSENT, 0.1, absence=Absence.REMOVED), State.REMOVED),
    ],
)
def test_each_cause_has_its_state_and_all_of_them_are_tried_again(
    scheduler: AccountScheduler, outcome: Outcome, state: State
) -> None:
    scheduler.add(["a"])
    transition = done(scheduler, outcome, 100.0)
    assert transition.state is state
    assert transition.failures == (1 if outcome.error else 0)
    assert 100.0 < transition.due <= 160.0


@pytest.mark.parametrize(("slots", "unknown"), [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6), (64, 48)])
def test_accounts_whose_host_is_not_known_leave_a_quarter_of_the_slots(slots: int, unknown: int) -> None:
    # a hanging Domain API filled every slot with new accounts, while tokens of known hosts expired; but where no host
    # is known, as with --refresh-all, they had two of eight slots, and took a third longer
    scheduler = make_fleet(max_in_flight=slots)
    known = [f"known{number:02}" for number in range(64)]
    know(scheduler, *known)
    new = [f"new{number}" for number in range(64)]
    scheduler.add(new)
    queue(scheduler, *new)
    assert len(started(scheduler)) == unknown
    queue(scheduler, *known)
    assert started(scheduler, 1.0) == known[: slots - unknown]


def test_an_account_whose_secret_is_invalid_is_looked_at_again_as_often_as_a_disabled_one() -> None:
    scheduler = make_fleet()
    scheduler.add(["a"])
    for attempt in range(8):
        transition = done(
            scheduler, Outcome("a", Result.FAILED, 0.0, error=InvalidAccountError("client_id: missing")), 0.0
        )
        assert transition.due <= 60.0, attempt


# Waiting for what is away, and waking


def ended(name: str, stage: Stage, host: str | None = VA, status: int | None = 503) -> Outcome:
    """Return an attempt that failed at this stage."""
    return Outcome(
        name, Result.FAILED, 0.1, host=host, error=RefreshError(stage, Kind.of(stage, status), "no", status=status)
    )


@pytest.mark.parametrize("stage", [Stage.SENTINEL, Stage.CLAIMS])
@pytest.mark.parametrize("result", [Result.REFRESHED, Result.UNCHANGED])
def test_the_first_success_at_a_host_wakes_who_waits_for_it_the_earliest_end_first(
    scheduler: AccountScheduler, stage: Stage, result: Result
) -> None:
    know(scheduler, "late", ends=3000)
    know(scheduler, "early", ends=1000)
    know(scheduler, "elsewhere", host=LO)
    for name, host in (("late", VA), ("early", VA), ("elsewhere", LO)):
        scheduler.complete(ended(name, stage, host, status=403), 10.0)
    assert started(scheduler, 11.0) == []
    know(scheduler, "well")
    queue(scheduler, "well")
    assert started(scheduler, 12.0) == ["well"]
    scheduler.complete(Outcome("well", result, 0.1, host=VA, tracked=tracked(3600.0)), 13.0)
    assert started(scheduler, 14.0) == ["early", "late"]


def test_an_adopted_token_tells_nothing_of_its_host(scheduler: AccountScheduler) -> None:
    know(scheduler, "a", "b")
    scheduler.complete(ended("a", Stage.SENTINEL), 10.0)
    scheduler.complete(adopted("b"), 11.0)
    assert started(scheduler, 12.0) == []


def test_who_is_to_blame_itself_is_tried_twice_as_often_at_most(scheduler: AccountScheduler) -> None:
    """One account's bad secret among many good ones: their successes must not make it knock all the time."""
    know(scheduler, "bad", "good")
    scheduler.complete(ended("bad", Stage.SENTINEL, status=401), 10.0)
    woken = 0
    for moment in range(11, 40):
        scheduler.complete(ok("good"), moment)
        for name in started(scheduler, moment):
            woken += 1
            scheduler.complete(ended(name, Stage.SENTINEL, status=401), moment)
    assert woken == 1
    queue(scheduler, "bad")  # its pause is over
    assert started(scheduler, 40.0) == ["bad"]
    scheduler.complete(ended("bad", Stage.SENTINEL, status=401), 41.0)
    scheduler.complete(ok("good"), 42.0)
    assert started(scheduler, 43.0) == ["bad"]


@pytest.mark.parametrize("stage", [Stage.DOMAIN, Stage.SENTINEL, Stage.CLAIMS])
def test_who_is_refused_at_its_very_first_attempt_is_not_tried_again_for_the_success_of_others(
    scheduler: AccountScheduler, stage: Stage
) -> None:
    scheduler.add(["bad", "away", "good"])
    queue(scheduler, "bad", "away", "good")
    started(scheduler)
    scheduler.complete(ended("bad", stage, status=401), 10.0)
    scheduler.complete(ended("away", stage), 10.0)
    scheduler.complete(ok("good"), 10.07)
    assert started(scheduler, 11.0) == ["away"]
    queue(scheduler, "bad")  # its pause is over, and it may have been an outage that looks like a refusal
    assert started(scheduler, 130.0) == ["bad"]
    scheduler.complete(ended("bad", stage, VA, status=401), 130.0)
    scheduler.add(["new"])
    queue(scheduler, "new")
    started(scheduler, 131.0)
    scheduler.complete(ok("new"), 131.0)
    assert started(scheduler, 132.0) == ["bad"]


def test_a_vault_that_refuses_a_first_attempt_may_not_know_the_login_yet_and_others_success_counts(
    scheduler: AccountScheduler,
) -> None:
    scheduler.add(["a", "good"])
    scheduler.complete(ended("a", Stage.CREDENTIALS, status=403), 10.0)
    scheduler.complete(ok("good"), 10.07)
    assert started(scheduler, 11.0) == ["a"]


def test_who_succeeded_in_its_own_time_is_not_woken(scheduler: AccountScheduler) -> None:
    know(scheduler, "a", "b")
    scheduler.complete(ended("a", Stage.SENTINEL), 10.0)
    scheduler.complete(ok("a"), 15.0)
    scheduler.complete(ok("b"), 16.0)
    assert started(scheduler, 17.0) == []


@pytest.mark.parametrize(
    "sign",
    [
        adopted("b"),
        ended("b", Stage.SENTINEL),
        ended("b", Stage.DOMAIN),
        Outcome("b", Result.FAILED, 0.1, error=UnmanagedSecretError("not ours")),
        Outcome("b", Result.ABSENT, 0.1, absence=Absence.DISABLED),
        Outcome("b", Result.DUE, 0.1, reason=Reason.DUE),
    ],
    ids=["adopted", "sentinel", "domain", "unmanaged", "disabled", "to do"],
)
@pytest.mark.parametrize("stage", [Stage.VAULT, Stage.CREDENTIALS])
def test_whatever_shows_that_vault_works_wakes_who_waits_for_it(
    scheduler: AccountScheduler, stage: Stage, sign: Outcome
) -> None:
    know(scheduler, "a", "b")
    scheduler.complete(ended("a", stage), 10.0)
    scheduler.complete(sign, 11.0)
    assert "a" in started(scheduler, 12.0)


def test_a_vault_that_is_still_away_wakes_nobody_until_somebody_says_that_it_works(scheduler: AccountScheduler) -> None:
    know(scheduler, "a", "b")
    for name in ("a", "b"):
        scheduler.complete(ended(name, Stage.VAULT, status=None), 10.0)
    assert started(scheduler, 11.0) == []
    scheduler.on_vault_available()
    assert started(scheduler, 12.0) == ["a", "b"]


def test_a_host_that_was_found_wakes_who_waits_for_the_domain_api(scheduler: AccountScheduler) -> None:
    scheduler.add(["a", "b"])
    queue(scheduler, "a", "b")
    assert started(scheduler) == ["a", "b"]
    scheduler.complete(ended("a", Stage.DOMAIN, host=None), 10.0)
    assert started(scheduler, 10.5) == []
    scheduler.complete(ended("b", Stage.SENTINEL), 11.0)  # its host is known by now
    assert started(scheduler, 12.0) == ["a"]


def test_a_known_host_s_success_tells_nothing_of_the_domain_api(scheduler: AccountScheduler) -> None:
    know(scheduler, "b")
    scheduler.add(["a"])
    queue(scheduler, "a", "b")
    started(scheduler)
    scheduler.complete(ended("a", Stage.DOMAIN, host=None), 10.0)
    scheduler.complete(ok("b"), 11.0)
    assert started(scheduler, 12.0) == []


# Failures that last


def test_a_server_s_trouble_that_lasts_is_told_as_permanent_and_pauses_as_before_while_a_token_lives(
    scheduler: AccountScheduler,
) -> None:
    know(scheduler, "a", ends=100_000.0)
    transitions = [scheduler.complete(failed("a"), 0.0) for _ in range(8)]
    assert [each and each.kind for each in transitions] == [Kind.TRANSIENT] * 6 + [Kind.PERMANENT] * 2
    assert [each and each.due for each in transitions][-3:] == [480, 480, 480]


def test_who_fails_and_waits_is_told_refused_ones_first(scheduler: AccountScheduler) -> None:
    scheduler.add(["away", "refused", "running", "well"])
    scheduler.complete(ok("well"), 0.0)
    scheduler.complete(ended("away", Stage.SENTINEL), 0.0)
    for name in ("refused", "running"):
        scheduler.complete(ended(name, Stage.SENTINEL, status=401), 0.0)
    queue(scheduler, "running")
    started(scheduler)
    assert [record.name for record in scheduler.failing(4.0)] == ["refused", "away"]
    assert [record.name for record in scheduler.failing(5.0)] == ["refused"]
    assert scheduler.failing(120.0) == []


def test_a_refused_attempt_counts_as_two_requests_for_the_secret_before_may_have_been_tried() -> None:
    scheduler = make_fleet(max_per_second=10.0)
    know(scheduler, "a", "b", "c", "d")
    queue(scheduler, "a", "b", "c", "d")
    assert started(scheduler, 5.0) == ["a"]
    done(scheduler, failed("a", refusal()), 5.05)
    assert started(scheduler, 5.15) == []
    assert started(scheduler, 5.2) == ["b"]
    done(scheduler, failed("b"), 5.25)
    assert started(scheduler, 5.3) == ["c"]
    done(scheduler, replace(ok("c"), previous_used=True), 5.35)
    assert started(scheduler, 5.45) == []
    assert len(started(scheduler, 5.5)) == 1


def test_the_same_token_that_has_ended_by_sentinels_clock_is_not_asked_for_each_second(
    scheduler: AccountScheduler,
) -> None:
    know(scheduler, "a")
    same = Outcome("a", Result.UNCHANGED, 0.1, host=VA, tracked=tracked(90.0, 100.0))
    assert done(scheduler, same, 100.0).due == 105.0


# A host that refuses all of its accounts


def refusal(retry_after: timedelta | None = None) -> RefreshError:
    return RefreshError(Stage.SENTINEL, Kind.PERMANENT, "answers 401", status=401, retry_after=retry_after)


def refuse_all(scheduler: AccountScheduler, names: list[str], retry_after: timedelta | None = None) -> list[float]:
    """Let accounts without a live token be refused at once, many times, and return the moments that follow."""
    know(scheduler, *names, ends=1.0)
    for _ in range(8):
        transition = [done(scheduler, failed(name, refusal(retry_after)), 1000.0) for name in names]
    return [each.due - 1000.0 for each in transition]


def test_of_many_that_a_host_refuses_one_tries_in_each_share_of_the_pause() -> None:
    names = [f"a{number:02}" for number in range(48)]
    scheduler = make_fleet(phase=lambda name: names.index(name) / len(names))
    pauses = refuse_all(scheduler, names)
    assert sorted(pauses) == pytest.approx([10.0 * share for share in range(5, 53)])  # no sooner than a tenth of it
    # and each waits for the whole pause again when it was refused once more
    assert done(scheduler, failed(names[7], refusal()), 1000.0 + pauses[7]).due == pytest.approx(1480.0 + pauses[7])


def test_who_is_refused_alone_or_told_when_to_come_back_waits_for_all_of_the_pause() -> None:
    assert refuse_all(make_fleet(phase=lambda _: 0.5), ["a"]) == [480.0]
    assert refuse_all(make_fleet(phase=lambda _: 0.5), ["a", "b"], timedelta(minutes=7)) == [480.0] * 2


def test_many_whose_tokens_live_are_refused_at_their_own_pace() -> None:
    scheduler = make_fleet(phase=lambda _: 0.5)
    know(scheduler, "a", "b", ends=10_000.0)
    assert [done(scheduler, failed(name, refusal()), 0.0).due for name in "abab"] == [5.0, 5.0, 10.0, 10.0]


# Replicas


def test_replicas_take_turns_where_it_makes_no_difference_whose_token_ends_first() -> None:
    phases = [{"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 0.9, "b": 0.5, "c": 0.4}]
    orders = []
    for phase in phases:
        scheduler = AccountScheduler(
            max_in_flight=8,
            max_per_second=float("inf"),
            recheck_after=60.0,
            jitter=lambda: 0.0,
            phase=lambda name, phase=phase: phase.get(name, 0.0),  # type: ignore[misc] # bound now
        )
        know(scheduler, "a", ends=3601)
        know(scheduler, "b", ends=3630)  # within the same minute of an hour
        know(scheduler, "c", ends=3659)
        know(scheduler, "later", ends=3661)
        queue(scheduler, "later", "a", "b", "c")
        orders.append(started(scheduler))
    assert orders == [["a", "b", "c", "later"], ["c", "b", "a", "later"]]


def test_who_mends_a_unmanaged_path_does_not_wait_long() -> None:
    scheduler = make_fleet()
    scheduler.add(["a"])
    for attempt in range(8):
        transition = done(scheduler, Outcome("a", Result.FAILED, 0.0, error=UnmanagedSecretError("not ours")), 0.0)
        assert transition.due <= 60.0, attempt


def unwritten(name: str) -> Outcome:
    """Return the outcome of an attempt whose token Vault did not accept."""
    error = RefreshError(Stage.VAULT, Kind.TRANSIENT, "write_token: status 500", status=500)
    return Outcome(name, Result.FAILED, 0.1, host=VA, error=error, write_failed=True)


def test_who_could_not_write_is_woken_by_a_write_and_by_nothing_less(scheduler: AccountScheduler) -> None:
    """A cluster without a leader answers reads: an account woken by those only fails again."""
    know(scheduler, "a", "b", "c")
    scheduler.complete(ended("a", Stage.VAULT), 10.0)
    scheduler.complete(adopted("b"), 11.0)
    assert started(scheduler, 11.0) == ["a"]
    scheduler.complete(unwritten("a"), 12.0)
    scheduler.complete(adopted("b"), 13.0)
    scheduler.complete(ended("c", Stage.SENTINEL), 13.0)
    scheduler.on_vault_available()
    assert started(scheduler, 13.0) == []
    scheduler.complete(ok("b"), 14.0)
    assert started(scheduler, 14.0) == ["a", "c"]


def test_of_those_who_could_not_write_one_tries_at_each_sync_in_turn(scheduler: AccountScheduler) -> None:
    """While all of them were in the same pause of two minutes, none found out that there was a leader again."""
    know(scheduler, "a", "b", "c")
    for name in "abc":
        scheduler.complete(unwritten(name), 10.0)
    for moment, name in ((20.0, "a"), (30.0, "b"), (40.0, "c"), (50.0, "a")):
        scheduler.on_sync()
        assert started(scheduler, moment) == [name]
        scheduler.complete(unwritten(name), moment)
    scheduler.on_sync()
    assert started(scheduler, 60.0) == ["b"]
    scheduler.complete(ok("b"), 60.0)
    assert sorted(started(scheduler, 60.0)) == ["a", "c"]


def test_who_runs_when_vault_comes_back_and_fails_for_it_still_is_woken_once_more(scheduler: AccountScheduler) -> None:
    # its request was lost just before the return; it counted as woken, and waited out its pause of four minutes
    know(scheduler, "a", "b")
    scheduler.complete(ended("a", Stage.VAULT), 10.0)
    queue(scheduler, "a")
    assert started(scheduler, 20.0) == ["a"]
    scheduler.complete(ok("b"), 21.0)
    scheduler.complete(ended("a", Stage.VAULT), 30.0)
    assert started(scheduler, 30.0) == []
    scheduler.complete(ok("b"), 31.0)
    assert started(scheduler, 31.0) == ["a"]


def test_who_was_woken_by_a_vault_that_went_away_again_is_tried_at_the_next_sync(scheduler: AccountScheduler) -> None:
    """It waited for the end of its pause, eight minutes where no token is live, though Vault worked again."""
    know(scheduler, "a", "b", "denied")
    for name in ("a", "denied"):
        scheduler.complete(ended(name, Stage.VAULT, status=503), 10.0)
    scheduler.complete(ok("b"), 11.0)
    assert started(scheduler, 11.0) == ["a", "denied"]
    scheduler.complete(ended("a", Stage.VAULT, status=503), 12.0)
    scheduler.complete(ended("denied", Stage.VAULT, status=403), 12.0)
    scheduler.complete(ok("b"), 13.0)
    scheduler.on_vault_available()
    assert started(scheduler, 13.0) == []
    scheduler.on_sync()
    assert started(scheduler, 14.0) == ["a"]
    scheduler.on_sync()
    assert started(scheduler, 14.0) == []


def test_who_was_woken_in_vain_is_woken_again_by_one_that_waited_for_vault_and_recovers(
    scheduler: AccountScheduler,
) -> None:
    """The next sync may be minutes off; by a success of any other it would run without a pause."""
    know(scheduler, "a", "b", "c")
    for name in ("a", "c"):
        scheduler.complete(ended(name, Stage.VAULT, status=503), 10.0)
    scheduler.on_vault_available()
    assert started(scheduler, 11.0) == ["a", "c"]
    for name in ("a", "c"):
        scheduler.complete(ended(name, Stage.VAULT, status=503), 12.0)
    scheduler.complete(ok("b"), 13.0)
    assert started(scheduler, 13.0) == []
    queue(scheduler, "c")
    assert started(scheduler, 14.0) == ["c"]
    scheduler.complete(ok("c"), 15.0)
    assert started(scheduler, 15.0) == ["a"]
    scheduler.complete(ended("a", Stage.VAULT, status=503), 16.0)
    scheduler.complete(ended("c", Stage.VAULT, status=503), 17.0)
    queue(scheduler, "c")
    assert started(scheduler, 18.0) == ["c"]
    scheduler.complete(ok("c"), 19.0)
    assert started(scheduler, 19.0) == []
    queue(scheduler, "a")
    assert started(scheduler, 20.0) == ["a"]
    scheduler.complete(ended("a", Stage.VAULT, status=503), 21.0)
    scheduler.complete(ok("b"), 22.0)
    assert started(scheduler, 22.0) == ["a"]


def test_who_fails_at_vault_for_itself_is_not_tried_at_each_recovery_of_the_others(scheduler: AccountScheduler) -> None:
    """With ten of them 2,000 accounts once took eleven times as long to recover from an outage."""
    others = [f"b{number}" for number in range(50)]
    know(scheduler, "a", *others)
    for name in ("a", *others):
        scheduler.complete(ended(name, Stage.VAULT, status=503), 10.0)
    tries, now = 0, 20.0
    for _ in range(3):
        scheduler.on_sync()
        while names := started(scheduler, now):
            for name in names:
                now += 0.01
                tries += name == "a"
                scheduler.complete(ended(name, Stage.VAULT, status=503) if name == "a" else ok(name), now)
    assert 3 <= tries <= 9


def test_who_recovers_from_another_trouble_wakes_nobody_again(scheduler: AccountScheduler) -> None:
    know(scheduler, "a", "b")
    scheduler.complete(ended("a", Stage.VAULT, status=503), 10.0)
    scheduler.on_vault_available()
    assert started(scheduler, 11.0) == ["a"]
    scheduler.complete(ended("a", Stage.VAULT, status=503), 12.0)
    scheduler.complete(ended("b", Stage.SENTINEL), 13.0)
    queue(scheduler, "b")
    assert started(scheduler, 14.0) == ["b"]
    scheduler.complete(ok("b"), 15.0)
    assert started(scheduler, 15.0) == []


def test_a_token_that_nobody_took_tells_nothing_of_vault(scheduler: AccountScheduler) -> None:
    know(scheduler, "a", "b")
    scheduler.complete(ended("a", Stage.CREDENTIALS), 10.0)
    scheduler.complete(unwritten("b"), 11.0)
    assert started(scheduler, 12.0) == []


def test_who_is_back_after_its_removal_waits_for_nothing(scheduler: AccountScheduler) -> None:
    know(scheduler, "a", "b")
    scheduler.complete(ended("a", Stage.SENTINEL), 10.0)
    scheduler.remove("a")
    scheduler.add(["a"])
    scheduler.complete(ok("b"), 11.0)
    assert started(scheduler, 12.0) == []


def test_nobody_is_borrowed_who_is_busy_or_not_well(scheduler: AccountScheduler) -> None:
    scheduler.add(["running", "queued", "failing", "well"])
    for name in ("running", "queued", "well"):
        scheduler.complete(ok(name), 0.0)
    scheduler.complete(failed("failing"), 0.0)
    queue(scheduler, "running")
    started(scheduler)
    queue(scheduler, "queued")
    assert [scheduler.reserve(name) is None for name in ("running", "queued", "failing", "nobody")] == [True] * 4
    well = scheduler.reserve("well")
    assert well
    assert well.running
    before = well.tracked
    scheduler.release(well, None)
    assert (well.running, well.tracked) == (False, before)


def test_what_drifted_and_cannot_be_bettered_is_asked_for_again_by_its_own_plan(scheduler: AccountScheduler) -> None:
    # an older token was put back while the one before it was due, and Sentinel has none that expires later
    know(scheduler, "a", ends=3600.0)
    transition = done(
        scheduler,
        Outcome("a", Result.UNCHANGED, 0.1, reason=Reason.DRIFT, host=VA, tracked=tracked(3000.0, refresh_at=2500.0)),
        2000.0,
    )
    assert transition.due == 2500.0
    assert transition.remaining == 1000.0


def test_what_is_gone_has_no_remaining_lifetime_though_it_is_still_known_what_should_be_there(
    scheduler: AccountScheduler,
) -> None:
    """A reader finds nothing: page, metrics and pauses must not go by what he should find."""
    know(scheduler, "a", ends=3600.0)
    (a,) = scheduler.records()
    stood = a.tracked
    scheduler.complete(Outcome("a", Result.DUE, 0.1, reason=Reason.DRIFT), 100.0)
    transition = done(scheduler, replace(failed("a"), reason=Reason.DRIFT), 101.0)
    assert transition.remaining == 0.0
    assert (a.tracked, a.expected_token) == (None, stood)
    older = tracked(900.0)
    transition = done(scheduler, replace(failed("a"), reason=Reason.DRIFT, tracked=older), 102.0)
    assert transition.remaining == 798.0
    assert (a.tracked, a.expected_token) == (older, stood)
    scheduler.complete(ok("a", ends=4000.0), 110.0)
    assert a.tracked
    assert (a.displaced, a.tracked.validity.end) == (None, 4000.0)


def test_where_somebody_elses_secret_is_there_is_no_token_until_ours_is_back(scheduler: AccountScheduler) -> None:
    know(scheduler, "a", ends=3600.0)
    (a,) = scheduler.records()
    stood = a.tracked
    unmanaged = Outcome("a", Result.FAILED, 0.1, error=UnmanagedSecretError("not ours"))
    assert done(scheduler, unmanaged, 100.0).remaining == 0.0
    assert (a.tracked, a.expected_token) == (None, stood)
    assert done(scheduler, adopted("a", 3600.0, VA), 200.0).remaining == 3400.0
    assert a.displaced is None


def test_its_accounts_can_be_shown(scheduler: AccountScheduler) -> None:
    know(scheduler, "a", "b")
    scheduler.complete(failed("b"), 5.0)
    a, b = scheduler.records()
    assert (a.name, a.last_error, a.failing_since, a.last_success) == ("a", None, None, 0.0)
    assert (b.last_error, b.failing_since, b.last_success) == ("sentinel: answers 503", 5.0, 0.0)
    scheduler.complete(failed("b"), 9.0)
    assert (b.failures, b.failing_since) == (2, 5.0)
    scheduler.complete(replace(ok("b"), previous_used=True), 10.0)
    assert (b.state, b.last_error, b.failing_since, b.last_success) == (State.OK, PREVIOUS_USED, None, 10.0)
    scheduler.complete(ok("b"), 11.0)
    assert b.last_error is None


def test_a_failure_for_the_same_reason_again_is_a_repeated_one(scheduler: AccountScheduler) -> None:
    scheduler.add(["a"])
    repeated = [done(scheduler, failed("a", InvalidAccountError(text)), 0.0).repeated for text in ("x", "x", "y", "y")]
    assert repeated == [False, True, False, True]
