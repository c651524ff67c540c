"""Whose turn it is: the fleet alone, with moments as plain numbers."""

from dataclasses import replace
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
from worker.core.notes import PREVIOUS_USED
from worker.core.outcome import Next, Outcome, Result, State
from worker.core.plan import Held, Life, Reason
from worker.schedule.fleet import Fleet

VA, LO = "va.example", "lo.example"
OUTAGE = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "answers 503", status=503)


def make_fleet(max_in_flight: int = 8, max_per_second: float = float("inf")) -> Fleet:
    return Fleet(
        max_in_flight=max_in_flight,
        max_per_second=max_per_second,
        recheck_after=60.0,
        jitter=lambda: 0.0,
        phase=lambda _: 0.0,
    )


@pytest.fixture
def fleet() -> Fleet:
    return make_fleet()


def held(ends: float, refresh_at: float = 0.0) -> Held:
    return Held("fingerprint", Life(ends - 3600, ends), refresh_at)


def done(fleet: Fleet, outcome: Outcome, now: float) -> Next:
    following = fleet.done(outcome, now)
    assert following
    return following


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
    following = done(fleet, ok("a", refresh_at=1800.0), 10.0)
    assert (following.before, following.state, following.failures) == (State.OK, State.OK, 0)
    assert (following.life_left, following.due) == (3590.0, 1800.0)


def test_a_plan_that_is_over_already_is_not_followed_at_once(fleet: Fleet) -> None:
    # FIELD 1: a token that lives for no time at all makes no hot loop
    fleet.add(["a"])
    following = done(fleet, ok("a", ends=10.0, refresh_at=5.0), 10.0)
    assert following.due == 11.0


def test_pauses_grow_as_long_as_no_token_lives(fleet: Fleet) -> None:
    fleet.add(["a"])
    pauses = []
    for _ in range(7):
        following = done(fleet, failed("a"), 100.0)
        pauses.append(following.due - 100.0)
    assert pauses == [5, 10, 15, 120, 120, 120, 120]
    assert (following.state, following.failures) == (State.FAILING, 7)


def test_no_pause_is_longer_than_a_quarter_of_the_life_that_is_left(fleet: Fleet) -> None:
    fleet.add(["a"])
    for _ in range(6):
        following = done(fleet, failed("a", left=held(ends=500.0)), 100.0)
    assert following.due == 200.0
    following = done(fleet, failed("a"), 498.0)
    assert following.due == 499.0


def test_retry_after_is_heeded_up_to_three_quarters_of_the_life_that_is_left(fleet: Fleet) -> None:
    error = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "429", status=429, retry_after=timedelta(seconds=300))
    know(fleet, "a", ends=200.0)
    following = done(fleet, failed("a", error), 100.0)
    assert following.due == 175.0


def test_success_ends_a_row_of_failures(fleet: Fleet) -> None:
    # FIELD 3: a state that stays "failed" after recovery
    fleet.add(["a"])
    fleet.done(failed("a"), 0.0)
    fleet.done(failed("a"), 5.0)
    following = done(fleet, ok("a"), 15.0)
    assert (following.before, following.state, following.failures) == (State.FAILING, State.OK, 0)
    following = done(fleet, failed("a"), 20.0)
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
    following = done(fleet, Outcome("a", result, 0.1, error=error), 100.0)
    assert following.state is state
    assert following.failures == (1 if result is Result.FAILED else 0)
    assert 100.0 < following.due <= 160.0


@pytest.mark.parametrize(("slots", "unknown"), [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6), (64, 48)])
def test_accounts_whose_host_is_not_known_leave_a_quarter_of_the_slots(slots: int, unknown: int) -> None:
    # a Domain API that hangs held every slot with new accounts, and the tokens of known hosts ended; but where no host
    # is known, as with --refresh-all, they had two of eight slots, and took a third longer
    fleet = make_fleet(max_in_flight=slots)
    known = [f"known{number:02}" for number in range(64)]
    know(fleet, *known)
    new = [f"new{number}" for number in range(64)]
    fleet.add(new)
    queue(fleet, *new)
    assert len(started(fleet)) == unknown
    queue(fleet, *known)
    assert started(fleet, 1.0) == known[: slots - unknown]


def test_an_account_whose_secret_is_invalid_is_looked_at_again_as_often_as_a_disabled_one() -> None:
    fleet = make_fleet()
    fleet.add(["a"])
    for attempt in range(8):
        following = done(fleet, Outcome("a", Result.FAILED, 0.0, error=InvalidAccountError("client_id: missing")), 0.0)
        assert following.due <= 60.0, attempt


# Waiting for what is away, and waking


def ended(name: str, stage: Stage, host: str | None = VA, status: int | None = 503) -> Outcome:
    """An attempt that failed at this stage."""
    return Outcome(
        name, Result.FAILED, 0.1, host=host, error=RefreshError(stage, Kind.of(stage, status), "no", status=status)
    )


@pytest.mark.parametrize("stage", [Stage.SENTINEL, Stage.CLAIMS])
@pytest.mark.parametrize("result", [Result.REFRESHED, Result.UNCHANGED])
def test_the_first_success_at_a_host_wakes_who_waits_for_it_the_earliest_end_first(
    fleet: Fleet, stage: Stage, result: Result
) -> None:
    know(fleet, "late", ends=3000)
    know(fleet, "early", ends=1000)
    know(fleet, "elsewhere", host=LO)
    for name, host in (("late", VA), ("early", VA), ("elsewhere", LO)):
        fleet.done(ended(name, stage, host, status=403), 10.0)
    assert started(fleet, 11.0) == []
    know(fleet, "well")
    queue(fleet, "well")
    assert started(fleet, 12.0) == ["well"]
    fleet.done(Outcome("well", result, 0.1, host=VA, held=held(3600.0)), 13.0)
    assert started(fleet, 14.0) == ["early", "late"]


def test_an_adopted_token_tells_nothing_of_its_host(fleet: Fleet) -> None:
    know(fleet, "a", "b")
    fleet.done(ended("a", Stage.SENTINEL), 10.0)
    fleet.done(adopted("b"), 11.0)
    assert started(fleet, 12.0) == []


def test_who_is_to_blame_itself_is_tried_twice_as_often_at_most(fleet: Fleet) -> None:
    """One account's bad secret among many good ones: their successes must not make it knock all the time."""
    know(fleet, "bad", "good")
    fleet.done(ended("bad", Stage.SENTINEL, status=401), 10.0)
    woken = 0
    for moment in range(11, 40):
        fleet.done(ok("good"), moment)
        for name in started(fleet, moment):
            woken += 1
            fleet.done(ended(name, Stage.SENTINEL, status=401), moment)
    assert woken == 1
    queue(fleet, "bad")  # its own pause is over
    assert started(fleet, 40.0) == ["bad"]
    fleet.done(ended("bad", Stage.SENTINEL, status=401), 41.0)
    fleet.done(ok("good"), 42.0)
    assert started(fleet, 43.0) == ["bad"]


def test_who_succeeded_in_its_own_time_is_not_woken(fleet: Fleet) -> None:
    know(fleet, "a", "b")
    fleet.done(ended("a", Stage.SENTINEL), 10.0)
    fleet.done(ok("a"), 15.0)
    fleet.done(ok("b"), 16.0)
    assert started(fleet, 17.0) == []


@pytest.mark.parametrize(
    "sign",
    [
        adopted("b"),
        ended("b", Stage.SENTINEL),
        ended("b", Stage.DOMAIN),
        Outcome("b", Result.FAILED, 0.1, error=ForeignSecretError("not ours")),
        Outcome("b", Result.SKIPPED, 0.1, error=AccountDisabledError()),
        Outcome("b", Result.SKIPPED, 0.1, reason=Reason.DUE),
    ],
    ids=["adopted", "sentinel", "domain", "foreign", "disabled", "to do"],
)
@pytest.mark.parametrize("stage", [Stage.VAULT, Stage.CREDENTIALS])
def test_whatever_shows_that_vault_works_wakes_who_waits_for_it(fleet: Fleet, stage: Stage, sign: Outcome) -> None:
    know(fleet, "a", "b")
    fleet.done(ended("a", stage), 10.0)
    fleet.done(sign, 11.0)
    assert "a" in started(fleet, 12.0)


def test_a_vault_that_is_still_away_wakes_nobody_until_somebody_says_that_it_works(fleet: Fleet) -> None:
    know(fleet, "a", "b")
    for name in ("a", "b"):
        fleet.done(ended(name, Stage.VAULT, status=None), 10.0)
    assert started(fleet, 11.0) == []
    fleet.vault_works()
    assert started(fleet, 12.0) == ["a", "b"]


def test_a_host_that_was_found_wakes_who_waits_for_the_domain_api(fleet: Fleet) -> None:
    fleet.add(["a", "b"])
    queue(fleet, "a", "b")
    assert started(fleet) == ["a", "b"]
    fleet.done(ended("a", Stage.DOMAIN, host=None), 10.0)
    assert started(fleet, 10.5) == []
    fleet.done(ended("b", Stage.SENTINEL), 11.0)  # its host is known by now
    assert started(fleet, 12.0) == ["a"]


def test_a_known_host_s_success_tells_nothing_of_the_domain_api(fleet: Fleet) -> None:
    know(fleet, "b")
    fleet.add(["a"])
    queue(fleet, "a", "b")
    started(fleet)
    fleet.done(ended("a", Stage.DOMAIN, host=None), 10.0)
    fleet.done(ok("b"), 11.0)
    assert started(fleet, 12.0) == []


# Failures that last


def test_a_server_s_trouble_that_lasts_is_told_as_lasting_and_pauses_as_before_while_a_token_lives(
    fleet: Fleet,
) -> None:
    know(fleet, "a", ends=100_000.0)
    told = [fleet.done(failed("a"), 0.0) for _ in range(8)]
    assert [each and each.kind for each in told] == [Kind.TRANSIENT] * 6 + [Kind.LASTING] * 2
    assert [each and each.due for each in told][-3:] == [480, 480, 480]


def test_who_fails_and_waits_is_told_refused_ones_first(fleet: Fleet) -> None:
    fleet.add(["away", "refused", "running", "well"])
    fleet.done(ok("well"), 0.0)
    fleet.done(ended("away", Stage.SENTINEL), 0.0)
    for name in ("refused", "running"):
        fleet.done(ended(name, Stage.SENTINEL, status=401), 0.0)
    queue(fleet, "running")
    started(fleet)
    assert fleet.failing(4.0) == ["refused", "away"]
    assert fleet.failing(5.0) == ["refused"]
    assert fleet.failing(120.0) == []


# Replicas


def test_replicas_take_turns_where_it_makes_no_difference_whose_token_ends_first() -> None:
    phases = [{"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 0.9, "b": 0.5, "c": 0.4}]
    orders = []
    for phase in phases:
        fleet = Fleet(
            max_in_flight=8,
            max_per_second=float("inf"),
            recheck_after=60.0,
            jitter=lambda: 0.0,
            phase=lambda name, phase=phase: phase.get(name, 0.0),  # type: ignore[misc] # bound now
        )
        know(fleet, "a", ends=3601)
        know(fleet, "b", ends=3630)  # within the same minute of an hour
        know(fleet, "c", ends=3659)
        know(fleet, "later", ends=3661)
        queue(fleet, "later", "a", "b", "c")
        orders.append(started(fleet))
    assert orders == [["a", "b", "c", "later"], ["c", "b", "a", "later"]]


def test_who_mends_a_foreign_path_does_not_wait_long() -> None:
    fleet = make_fleet()
    fleet.add(["a"])
    for attempt in range(8):
        following = done(fleet, Outcome("a", Result.FAILED, 0.0, error=ForeignSecretError("not ours")), 0.0)
        assert following.due <= 60.0, attempt


def unwritten(name: str) -> Outcome:
    """Its token was minted, and Vault did not take it."""
    error = RefreshError(Stage.VAULT, Kind.TRANSIENT, "write_token: status 500", status=500)
    return Outcome(name, Result.FAILED, 0.1, account_id=name, host=VA, error=error)


def test_who_could_not_write_is_woken_by_a_write_and_by_nothing_less(fleet: Fleet) -> None:
    """A cluster without a leader answers reads: whoever is woken by those only fails again."""
    know(fleet, "a", "b", "c")
    fleet.done(ended("a", Stage.VAULT), 10.0)
    fleet.done(adopted("b"), 11.0)
    assert started(fleet, 11.0) == ["a"]
    fleet.done(unwritten("a"), 12.0)
    fleet.done(adopted("b"), 13.0)
    fleet.done(ended("c", Stage.SENTINEL), 13.0)
    fleet.vault_works()
    assert started(fleet, 13.0) == []
    fleet.done(ok("b"), 14.0)
    assert started(fleet, 14.0) == ["a", "c"]


def test_who_runs_when_vault_comes_back_and_fails_for_it_still_is_woken_once_more(fleet: Fleet) -> None:
    # its request was lost just before the return; it counted as woken, and waited out its pause of four minutes
    know(fleet, "a", "b")
    fleet.done(ended("a", Stage.VAULT), 10.0)
    queue(fleet, "a")
    assert started(fleet, 20.0) == ["a"]
    fleet.done(ok("b"), 21.0)
    fleet.done(ended("a", Stage.VAULT), 30.0)
    assert started(fleet, 30.0) == []
    fleet.done(ok("b"), 31.0)
    assert started(fleet, 31.0) == ["a"]


def test_a_token_that_nobody_took_tells_nothing_of_vault(fleet: Fleet) -> None:
    know(fleet, "a", "b")
    fleet.done(ended("a", Stage.CREDENTIALS), 10.0)
    fleet.done(unwritten("b"), 11.0)
    assert started(fleet, 12.0) == []


def test_who_is_back_after_its_removal_waits_for_nothing(fleet: Fleet) -> None:
    know(fleet, "a", "b")
    fleet.done(ended("a", Stage.SENTINEL), 10.0)
    fleet.remove("a")
    fleet.add(["a"])
    fleet.done(ok("b"), 11.0)
    assert started(fleet, 12.0) == []


def test_nobody_is_borrowed_who_is_busy_or_not_well(fleet: Fleet) -> None:
    fleet.add(["running", "queued", "failing", "well"])
    for name in ("running", "queued", "well"):
        fleet.done(ok(name), 0.0)
    fleet.done(failed("failing"), 0.0)
    queue(fleet, "running")
    started(fleet)
    queue(fleet, "queued")
    assert [fleet.borrow(name) is None for name in ("running", "queued", "failing", "nobody")] == [True] * 4
    well = fleet.borrow("well")
    assert well
    assert well.running
    before = well.held
    fleet.give_back(well, None)
    assert (well.running, well.held) == (False, before)


def test_what_drifted_and_cannot_be_bettered_is_asked_for_again_by_its_own_plan(fleet: Fleet) -> None:
    # an older token was put back while the one before it was due, and Sentinel has none that ends later
    know(fleet, "a", ends=3600.0)
    following = done(
        fleet,
        Outcome("a", Result.UNCHANGED, 0.1, reason=Reason.DRIFT, host=VA, held=held(3000.0, refresh_at=2500.0)),
        2000.0,
    )
    assert following.due == 2500.0
    assert following.life_left == 1000.0


def test_what_is_gone_has_no_life_left_though_it_is_still_known_what_should_be_there(fleet: Fleet) -> None:
    """A reader finds nothing: page, metrics and pauses must not go by what he should find."""
    know(fleet, "a", ends=3600.0)
    (a,) = fleet.entries()
    stood = a.held
    fleet.done(Outcome("a", Result.SKIPPED, 0.1, reason=Reason.DRIFT), 100.0)
    following = done(fleet, replace(failed("a"), reason=Reason.DRIFT), 101.0)
    assert following.life_left == 0.0
    assert (a.held, a.should_stand) == (None, stood)
    older = held(900.0)
    following = done(fleet, replace(failed("a"), reason=Reason.DRIFT, held=older), 102.0)
    assert following.life_left == 798.0
    assert (a.held, a.should_stand) == (older, stood)
    fleet.done(ok("a", ends=4000.0), 110.0)
    assert a.held
    assert (a.lost, a.held.life.ends) == (None, 4000.0)


def test_where_somebody_elses_secret_is_there_is_no_token_until_ours_is_back(fleet: Fleet) -> None:
    know(fleet, "a", ends=3600.0)
    (a,) = fleet.entries()
    stood = a.held
    foreign = Outcome("a", Result.FAILED, 0.1, error=ForeignSecretError("not ours"))
    assert done(fleet, foreign, 100.0).life_left == 0.0
    assert (a.held, a.should_stand) == (None, stood)
    assert done(fleet, adopted("a", 3600.0, VA), 200.0).life_left == 3400.0
    assert a.lost is None


def test_its_accounts_can_be_shown(fleet: Fleet) -> None:
    know(fleet, "a", "b")
    fleet.done(failed("b"), 5.0)
    a, b = fleet.entries()
    assert (a.name, a.last_error, a.failing_since, a.last_success) == ("a", None, None, 0.0)
    assert (b.last_error, b.failing_since, b.last_success) == ("sentinel: answers 503", 5.0, 0.0)
    fleet.done(failed("b"), 9.0)
    assert (b.failures, b.failing_since) == (2, 5.0)
    fleet.done(replace(ok("b"), previous_used=True), 10.0)
    assert (b.state, b.last_error, b.failing_since, b.last_success) == (State.OK, PREVIOUS_USED, None, 10.0)
    fleet.done(ok("b"), 11.0)
    assert b.last_error is None
