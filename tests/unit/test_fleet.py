"""Whose turn it is: the fleet alone, with moments as plain numbers."""

from datetime import timedelta

import pytest

from worker.core.errors import (
    AccountDisabledError,
    AccountGoneError,
    ForeignSecretError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
)
from worker.core.outcome import Outcome, Result, State
from worker.core.plan import Held, Life
from worker.fleet import Fleet

VA, LO = "va.example", "lo.example"
OUTAGE = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "answers 503", status=503)


def make_fleet(max_in_flight: int = 8, max_per_second: float = float("inf")) -> Fleet:
    return Fleet(max_in_flight=max_in_flight, max_per_second=max_per_second, recheck_after=60.0, jitter=lambda: 0.0)


@pytest.fixture
def fleet() -> Fleet:
    return make_fleet()


def held(ends: float, refresh_at: float = 0.0) -> Held:
    return Held("fingerprint", Life(ends - 3600, ends), refresh_at)


def ok(name: str, ends: float = 3600.0, host: str = VA, refresh_at: float = 1800.0) -> Outcome:
    return Outcome(name, Result.REFRESHED, 0.1, host=host, held=held(ends, refresh_at))


def adopted(name: str, ends: float = 3600.0, host: str = VA, refresh_at: float = 1800.0) -> Outcome:
    return Outcome(name, Result.ADOPTED, 0.1, host=host, held=held(ends, refresh_at))


def failed(name: str, error: RefreshError = OUTAGE, left: Held | None = None) -> Outcome:
    return Outcome(name, Result.FAILED, 0.1, error=error, held=left)


def know(fleet: Fleet, *names: str, host: str = VA, ends: float = 3600.0) -> None:
    """Accounts whose token and host are known."""
    fleet.add(names)
    for name in names:
        fleet.done(adopted(name, ends, host), 0.0)


def queue(fleet: Fleet, *names: str) -> None:
    for name in names:
        fleet.queue(name)


def started(fleet: Fleet, now: float = 0.0) -> list[str]:
    """All that may start now, in order."""
    names = []
    while entry := fleet.start_next(now):
        names.append(entry.name)
    return names


# Order


def test_who_has_no_token_goes_first_then_whose_ends_first(fleet: Fleet) -> None:
    know(fleet, "late", ends=3000)
    know(fleet, "early", ends=1000, host=LO)
    know(fleet, "middle", ends=2000)
    fleet.add(["new"])
    queue(fleet, "late", "middle", "early", "new")
    assert started(fleet) == ["new", "early", "middle", "late"]


def test_an_account_is_queued_once_and_not_while_it_runs(fleet: Fleet) -> None:
    fleet.add(["a"])
    queue(fleet, "a", "a")
    assert started(fleet) == ["a"]
    queue(fleet, "a")
    assert started(fleet) == []
    fleet.done(ok("a"), 1.0)
    queue(fleet, "a")
    assert started(fleet, 2.0) == ["a"]


def test_an_unknown_account_is_not_queued(fleet: Fleet) -> None:
    queue(fleet, "nobody")
    assert started(fleet) == []


# Caps


def test_each_host_has_a_cap_of_its_own() -> None:
    fleet = make_fleet(max_in_flight=2)
    know(fleet, "a1", "a2", "a3", host=VA)
    know(fleet, "b1", "b2", "b3", host=LO)
    queue(fleet, "a1", "a2", "a3", "b1", "b2", "b3")
    assert sorted(started(fleet)) == ["a1", "a2", "b1", "b2"]
    assert fleet.next_start() is None  # nobody waits for the rate: who ends lets the next one in
    fleet.done(ok("a1"), 0.0)
    assert started(fleet) == ["a3"]


def test_a_host_that_hangs_keeps_nobody_else_waiting() -> None:
    fleet = make_fleet(max_in_flight=2)
    know(fleet, "a1", "a2", "a3", host=VA, ends=10)
    know(fleet, "b1", host=LO, ends=3600)
    queue(fleet, "a1", "a2", "a3")
    started(fleet)
    queue(fleet, "b1")
    assert started(fleet) == ["b1"]


def test_who_runs_without_a_known_host_counts_against_each() -> None:
    fleet = make_fleet(max_in_flight=2)
    know(fleet, "a1", "a2", host=VA)
    know(fleet, "b1", host=LO)
    fleet.add(["new"])
    queue(fleet, "new")
    assert started(fleet) == ["new"]
    queue(fleet, "a1", "a2", "b1")
    assert sorted(started(fleet)) == ["a1", "b1"]
    fleet.done(ok("new", host=LO), 0.0)
    assert started(fleet) == ["a2"]


def test_who_has_no_known_host_waits_for_the_fullest_one() -> None:
    fleet = make_fleet(max_in_flight=1)
    know(fleet, "a1", host=VA)
    fleet.add(["new"])
    queue(fleet, "a1")
    started(fleet)
    queue(fleet, "new")
    assert started(fleet) == []
    fleet.done(ok("a1"), 0.0)
    assert started(fleet) == ["new"]


def test_a_host_that_a_failure_told_of_is_known_from_then_on() -> None:
    fleet = make_fleet(max_in_flight=1)
    fleet.add(["a1", "a2"])
    know(fleet, "b1", host=LO)
    for name in ("a1", "a2"):
        fleet.done(Outcome(name, Result.FAILED, 0.1, host=VA, error=OUTAGE), 0.0)
    queue(fleet, "a1", "a2", "b1")
    assert sorted(started(fleet)) == ["a1", "b1"]


def test_the_rate_cap_lets_them_start_one_by_one_and_says_when() -> None:
    fleet = make_fleet(max_per_second=4)
    know(fleet, "a1", "a2", "a3", host=VA)
    know(fleet, "b1", host=LO)
    queue(fleet, "a1", "a2", "a3", "b1")
    assert sorted(started(fleet, 100.0)) == ["a1", "b1"]
    assert fleet.next_start() == 100.25
    assert started(fleet, 100.2) == []
    assert started(fleet, 100.25) == ["a2"]
    assert fleet.next_start() == 100.5
    assert started(fleet, 100.5) == ["a3"]
    assert fleet.next_start() is None


def test_the_rate_cap_holds_for_accounts_whose_host_is_not_known() -> None:
    fleet = make_fleet(max_per_second=4)
    fleet.add(["x", "y"])
    queue(fleet, "x", "y")
    assert started(fleet, 100.0) == ["x"]
    assert fleet.next_start() == 100.25


def test_what_was_adopted_does_not_count_against_the_rate() -> None:
    fleet = make_fleet(max_per_second=1)
    know(fleet, "a1", "a2", "a3")
    queue(fleet, "a1", "a2", "a3")
    assert started(fleet, 100.0) == ["a1"]
    fleet.done(adopted("a1"), 100.01)
    assert started(fleet, 100.01) == ["a2"]
    fleet.done(ok("a2"), 100.02)
    assert started(fleet, 100.02) == []
    assert fleet.next_start() == 101.01


# Come and go


def test_accounts_that_are_new_are_told_and_those_left_out_stay_until_they_are_removed(fleet: Fleet) -> None:
    assert fleet.add(["a", "b"]) == ["a", "b"]
    assert fleet.add(["b", "c"]) == ["c"]
    assert fleet.missing(frozenset({"a", "c"})) == ["b"]
    assert "b" in fleet
    assert fleet.remove("b")
    assert not fleet.remove("b")
    assert "b" not in fleet
    assert len(fleet) == 2


def test_who_was_removed_while_queued_does_not_start(fleet: Fleet) -> None:
    fleet.add(["a", "b"])
    queue(fleet, "a", "b")
    fleet.remove("a")
    assert started(fleet) == ["b"]


def test_thousands_removed_while_queued_do_not_stand_in_the_way(fleet: Fleet) -> None:
    names = [f"a{number}" for number in range(5000)]
    fleet.add([*names, "z"])
    queue(fleet, *names, "z")
    for name in names:
        fleet.remove(name)
    assert started(fleet) == ["z"]


def test_who_was_removed_while_queued_and_came_back_starts_once(fleet: Fleet) -> None:
    fleet.add(["a"])
    queue(fleet, "a")
    fleet.remove("a")
    fleet.add(["a"])
    queue(fleet, "a")
    assert started(fleet) == ["a"]


def test_who_was_removed_while_it_ran_frees_its_slot_and_has_no_next() -> None:
    fleet = make_fleet(max_in_flight=1)
    fleet.add(["a", "b"])
    queue(fleet, "a")
    started(fleet)
    fleet.remove("a")
    queue(fleet, "b")
    assert fleet.done(ok("a"), 1.0) is None
    assert started(fleet, 1.0) == ["b"]


def test_who_was_removed_while_it_ran_and_came_back_runs_once_and_gives_its_slot_back() -> None:
    fleet = make_fleet(max_in_flight=8)
    fleet.add(["a"])
    queue(fleet, "a")
    started(fleet)
    fleet.remove("a")
    fleet.add(["a", "b", "c"])
    queue(fleet, "a")
    assert started(fleet) == []
    fleet.done(ok("a"), 1.0)
    queue(fleet, "b", "c")
    assert started(fleet, 1.0) == ["b", "c"]


def test_overdue_is_whose_moment_is_over_and_who_neither_waits_nor_runs(fleet: Fleet) -> None:
    # FIELD 15: who was dropped by the timer is found by the next sync
    know(fleet, "dropped", "queued", "running")
    fleet.add(["never looked at"])
    queue(fleet, "running")
    started(fleet)
    queue(fleet, "queued")
    assert fleet.overdue(1799.0) == []
    assert fleet.overdue(1800.0) == ["dropped"]


# What comes next


def test_a_good_token_is_due_as_planned(fleet: Fleet) -> None:
    fleet.add(["a"])
    following = fleet.done(ok("a", refresh_at=1800.0), 10.0)
    assert following
    assert (following.before, following.state, following.failures) == (State.OK, State.OK, 0)
    assert (following.life_left, following.due) == (3590.0, 1800.0)


def test_a_plan_that_is_over_already_is_not_followed_at_once(fleet: Fleet) -> None:
    # FIELD 1: a token that lives for no time at all makes no hot loop
    fleet.add(["a"])
    following = fleet.done(ok("a", ends=10.0, refresh_at=5.0), 10.0)
    assert following
    assert following.due == 11.0


def test_pauses_grow_as_long_as_no_token_lives(fleet: Fleet) -> None:
    fleet.add(["a"])
    pauses = []
    for _ in range(7):
        following = fleet.done(failed("a"), 100.0)
        assert following
        pauses.append(following.due - 100.0)
    assert pauses == [5, 10, 15, 120, 240, 480, 480]
    assert following
    assert (following.state, following.failures) == (State.FAILING, 7)


def test_no_pause_is_longer_than_a_quarter_of_the_life_that_is_left(fleet: Fleet) -> None:
    fleet.add(["a"])
    for _ in range(6):
        following = fleet.done(failed("a", left=held(ends=500.0)), 100.0)
    assert following
    assert following.due == 200.0
    following = fleet.done(failed("a"), 498.0)
    assert following
    assert following.due == 499.0


def test_retry_after_is_heeded_up_to_three_quarters_of_the_life_that_is_left(fleet: Fleet) -> None:
    error = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "429", status=429, retry_after=timedelta(seconds=300))
    know(fleet, "a", ends=200.0)
    following = fleet.done(failed("a", error), 100.0)
    assert following
    assert following.due == 175.0


def test_success_ends_a_row_of_failures(fleet: Fleet) -> None:
    # FIELD 3: a state that stays "failed" after recovery
    fleet.add(["a"])
    fleet.done(failed("a"), 0.0)
    fleet.done(failed("a"), 5.0)
    following = fleet.done(ok("a"), 15.0)
    assert following
    assert (following.before, following.state, following.failures) == (State.FAILING, State.OK, 0)
    following = fleet.done(failed("a"), 20.0)
    assert following
    assert following.failures == 1


@pytest.mark.parametrize(
    ("result", "error", "state"),
    [
        (Result.FAILED, InvalidAccountError("client_id: missing"), State.INVALID),
        (Result.FAILED, ForeignSecretError("not ours"), State.FOREIGN),
        (Result.SKIPPED, AccountDisabledError(), State.DISABLED),
        (Result.SKIPPED, AccountGoneError("404"), State.REMOVED),
    ],
)
def test_each_error_has_its_state_and_all_of_them_are_tried_again(
    fleet: Fleet, result: Result, error: RefreshError, state: State
) -> None:
    fleet.add(["a"])
    following = fleet.done(Outcome("a", result, 0.1, error=error), 100.0)
    assert following
    assert following.state is state
    assert following.failures == (1 if result is Result.FAILED else 0)
    assert 100.0 < following.due <= 160.0


def test_accounts_whose_host_is_not_known_never_take_more_than_a_quarter_of_the_slots() -> None:
    # a Domain API that hangs held every slot with new accounts, and the tokens of known hosts ended
    fleet = make_fleet(max_in_flight=8)
    know(fleet, "known")
    new = [f"new{number}" for number in range(9)]
    fleet.add(new)
    queue(fleet, *new)
    assert len(started(fleet)) == 2
    queue(fleet, "known")
    assert started(fleet, 1.0) == ["known"]


def test_an_account_whose_secret_is_invalid_is_looked_at_again_as_often_as_a_disabled_one() -> None:
    fleet = make_fleet()
    fleet.add(["a"])
    for attempt in range(8):
        following = fleet.done(Outcome("a", Result.FAILED, 0.0, error=InvalidAccountError("client_id: missing")), 0.0)
        assert following
        assert following.due <= 60.0, attempt
