"""Why and when to refresh, when to try again, which of two tokens stays: as properties over times."""

import dataclasses
from collections import Counter
from datetime import datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.builders import ACCOUNT, CLIENT_ID, HOUR, ISSUED, app_jwt, make_token, token_of
from worker.core import plan
from worker.core.appjwt import Expected
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.plan import RETRY_PAUSES, Assessment, Reason, RefreshPolicy, TrackedToken, Validity

EXPECTED = Expected(ACCOUNT, CLIENT_ID)
DEFAULT = RefreshPolicy(0.5, 0.05, replica="one")
FAIR = 1e-6
"""Seconds by which floats and timedeltas may round."""
TRACKED = plan.schedule_token(ACCOUNT, app_jwt(), server_now=ISSUED, at=0.0, policy=DEFAULT)
"""A token that was written at 0 s and expires at 3600 s."""

moments = st.floats(0, 1e9)
lives = st.integers(1, 86_400).map(lambda seconds: timedelta(seconds=seconds))
ages = st.floats(0, 0.999)
names = st.text("abc/0", min_size=1, max_size=10)
timings = st.builds(
    lambda at, jitter, replica: RefreshPolicy(at, min(jitter, at - 0.05, 0.95 - at), replica),  # as the settings demand
    st.floats(0.1, 0.9),
    st.floats(0, 0.2),
    st.sampled_from(["one", "two"]),
)


def assess(
    raw: str | None,
    server_now: datetime,
    at: float = 0.0,
    tracked: TrackedToken | None = None,
    policy: RefreshPolicy = DEFAULT,
) -> Assessment:
    return plan.assess_stored(ACCOUNT, raw, EXPECTED, server_now=server_now, at=at, policy=policy, tracked=tracked)


# A life on the steady clock


@given(lives, moments, ages)
def test_a_life_is_counted_from_the_servers_clock_and_lasts_as_long_as_the_token(
    length: timedelta, at: float, age: float
) -> None:
    life = Validity.of(app_jwt(life=length), ISSUED + length * age, at)
    assert life.start <= at + FAIR
    assert life.end - life.start == pytest.approx(length.total_seconds(), abs=FAIR)
    assert life.remaining(at) == pytest.approx(length.total_seconds() * (1 - age), abs=1e-5)
    assert life.remaining_fraction(at) == pytest.approx(1 - age, abs=1e-5)


def test_without_a_servers_clock_a_token_is_as_new_as_can_be() -> None:
    assert Validity.of(app_jwt(), None, 50.0) == Validity(50.0, 3650.0)


def test_of_a_life_that_is_over_nothing_is_left() -> None:
    life = Validity(0.0, 3600.0)
    assert [life.remaining(now) for now in (3599.0, 3600.0, 9999.0)] == [1.0, 0.0, 0.0]
    assert life.remaining_fraction(9999.0) == 0.0


# When a token is replaced


@given(timings, names, lives, moments, ages)
def test_a_token_is_due_inside_its_life_and_well_before_its_end(
    policy: RefreshPolicy, name: str, length: timedelta, at: float, age: float
) -> None:
    """Everything is a share of the lifetime, so that a short one makes no hot loop."""
    life = Validity.of(app_jwt(life=length), ISSUED + length * age, at)
    due = policy.refresh_at(name, life)
    seconds = life.end - life.start
    assert life.start + seconds * 0.05 - FAIR <= due <= life.end - seconds * 0.05 + FAIR
    assert life.start < due < life.end
    assert (due - life.start) / seconds == pytest.approx(policy.fraction, abs=policy.jitter + FAIR)


def test_accounts_and_replicas_are_due_at_moments_evenly_spread() -> None:
    life = Validity(0.0, 3600.0)
    for replica in ("one", "two"):
        policy = RefreshPolicy(0.5, 0.05, replica)
        due = [policy.refresh_at(f"account-{i}", life) for i in range(10_000)]
        assert 1620 <= min(due) < 1621
        assert 1979 < max(due) <= 1980
        minutes = Counter(int((moment - 1620) // 60) for moment in due)
        assert all(1500 < minutes[minute] < 1833 for minute in range(6))
    one, two = (RefreshPolicy(0.5, 0.05, replica).refresh_at(ACCOUNT, life) for replica in ("one", "two"))
    assert one != two


def test_without_jitter_all_are_due_at_the_same_share() -> None:
    policy = RefreshPolicy(0.25, 0.0, "one")
    assert {policy.refresh_at(f"account-{i}", Validity(100.0, 500.0)) for i in range(50)} == {200.0}


@given(st.text(max_size=50))
def test_a_stable_fraction_is_a_number_from_0_up_to_below_1(text: str) -> None:
    assert 0 <= plan.stable_fraction(text) < 1


def test_a_stable_fraction_is_the_same_on_every_machine() -> None:
    assert plan.stable_fraction("le81823118\0one") == 0.38965396288228504  # sha256sum, its first 12 digits by 2^48


def test_an_account_s_place_among_the_others_is_the_order_in_which_they_are_due() -> None:
    accounts = [f"account-{i}" for i in range(100)]
    due = sorted(accounts, key=lambda name: DEFAULT.refresh_at(name, Validity(0.0, 3600.0)))
    assert due == sorted(accounts, key=DEFAULT.phase)


@pytest.mark.parametrize("desynchronize", [False, True])
def test_a_token_is_planned_for_its_account_and_apart_from_those_obtained_with_it(desynchronize: bool) -> None:  # noqa: FBT001 - a parameter
    tracked = plan.schedule_token(
        ACCOUNT, app_jwt(), server_now=ISSUED, at=0.0, policy=DEFAULT, desynchronize=desynchronize
    )
    assert tracked.refresh_at == DEFAULT.refresh_at(ACCOUNT, Validity(0.0, 3600.0), desynchronize=desynchronize)


# Why a stored token is replaced


def test_no_token_is_missing() -> None:
    assert assess(None, ISSUED) == Assessment(Reason.MISSING)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.449])
def test_a_fresh_token_stands(share: float) -> None:
    assessment = assess(make_token(), ISSUED + HOUR * share)
    assert assessment.reason is None
    assert assessment.token == app_jwt()
    assert assessment.tracked is not None
    assert assessment.tracked.fingerprint == app_jwt().fingerprint


@pytest.mark.parametrize("share", [0.551, 0.75, 0.999])
def test_a_token_past_its_share_is_due_and_still_stands(share: float) -> None:
    assessment = assess(make_token(), ISSUED + HOUR * share)
    assert assessment.reason is Reason.DUE
    assert assessment.token is not None


@pytest.mark.parametrize("share", [1.0, 1.5, 50_000.0])
def test_a_token_that_ended_is_due_and_stands_no_more(share: float) -> None:
    assert assess(make_token(), ISSUED + HOUR * share) == Assessment(Reason.DUE)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "no token",
        make_token(aud="another"),
        make_token(azp="another"),
        make_token(iss="another"),
        make_token({"alg": "none"}),
        token_of(ISSUED, timedelta(days=365 * 70)),
        token_of(ISSUED + HOUR),
    ],
)
def test_a_stored_token_that_no_check_would_let_in_today_is_invalid(raw: str) -> None:
    """A planted token must not block the path, whatever it claims."""
    assert assess(raw, ISSUED) == Assessment(Reason.INVALID)


@given(lives, ages, moments, timings)
def test_an_assessment_agrees_with_the_plan_made_when_the_token_was_written(
    length: timedelta, age: float, at: float, policy: RefreshPolicy
) -> None:
    raw, token = token_of(ISSUED, length), app_jwt(life=length)
    tracked = plan.schedule_token(ACCOUNT, token, server_now=ISSUED, at=at, policy=policy)
    later = at + length.total_seconds() * age
    assume(abs(later - tracked.refresh_at) > 1e-3)  # closer than that the floats may round either way
    from_memory = assess(raw, ISSUED + length * age, later, tracked, policy)
    from_vault_alone = assess(raw, ISSUED + length * age, later, None, policy)
    assert from_memory.tracked == tracked
    assert from_memory.reason == from_vault_alone.reason == (Reason.DUE if later > tracked.refresh_at else None)
    assert from_vault_alone.tracked is not None
    assert from_vault_alone.tracked.refresh_at == pytest.approx(tracked.refresh_at, abs=1e-3)


@pytest.mark.parametrize(
    ("planned", "deleted_after", "at"),
    [
        ("2018-04-25T08:01:10Z", None, 600.0),
        ("2018-04-25T08:01:10Z", HOUR * 2, 600.0),
        ("2018-04-25T08:01:10Z", HOUR / 2, 600.0),
        ("2018-04-25T08:01:10Z", HOUR / 10, 180.0),
        ("2018-04-25T10:01:10+02:00", None, 600.0),
        (None, None, 1800.0),
        ("", None, 1800.0),
        ("soon", None, 1800.0),
        ("2018-04-25T08:01:10", None, 1800.0),
        ("2018-04-25T07:51:10Z", None, 1800.0),
        ("2018-04-25T08:51:10Z", None, 1800.0),
    ],
)
def test_the_plan_of_a_token_s_writer_is_remembered_and_half_of_its_lifetime_where_there_is_none(
    planned: str | None, deleted_after: timedelta | None, at: float
) -> None:
    assessment = plan.assess_stored(
        ACCOUNT,
        make_token(),
        EXPECTED,
        server_now=ISSUED,
        at=0.0,
        policy=DEFAULT,
        tracked=None,
        planned=planned,
        deletion_time=ISSUED + deleted_after if deleted_after else None,
    )
    assert assessment.tracked
    assert assessment.tracked.planned_at == at
    assert assessment.tracked.refresh_at != at


def test_a_token_is_due_at_the_very_moment_of_its_plan() -> None:
    """Not yet due by a rounded second, and never queued again."""
    tracked = plan.schedule_token(ACCOUNT, app_jwt(), server_now=ISSUED, at=0.0, policy=DEFAULT)
    assert assess(make_token(), ISSUED + HOUR / 2, tracked.refresh_at, tracked).reason is Reason.DUE
    assert assess(make_token(), ISSUED + HOUR / 2, tracked.refresh_at - 0.001, tracked).reason is None


def test_a_life_once_counted_is_not_counted_anew_by_another_clock() -> None:
    tracked = plan.schedule_token(ACCOUNT, app_jwt(), server_now=ISSUED, at=0.0, policy=DEFAULT)
    assert assess(make_token(), ISSUED + HOUR * 0.9, 60.0, tracked).tracked == tracked
    another = assess(token_of(ISSUED, HOUR + HOUR), ISSUED, 60.0, tracked).tracked
    assert another is not None
    assert another.validity == Validity(60.0, 7260.0)


def test_a_token_once_held_ends_by_the_steady_clock_whatever_a_server_s_clock_says() -> None:
    assert assess(make_token(), ISSUED + HOUR * 2, 60.0, TRACKED) == Assessment(None, app_jwt(), TRACKED)


@pytest.mark.parametrize(("seconds", "shortened"), [(61, True), (60, False), (0, False), (-3000, False)])
def test_sentinels_clock_shortens_a_life_by_more_than_a_minute_and_prolongs_none(
    seconds: int, *, shortened: bool
) -> None:
    """As after a start while that clock was wrong."""
    now = ISSUED + timedelta(seconds=60 + seconds)
    assessment = plan.assess_stored(
        ACCOUNT,
        make_token(),
        EXPECTED,
        server_now=now,
        at=60.0,
        policy=DEFAULT,
        tracked=TRACKED,
        is_issuers_clock=True,
    )
    tracked = plan.schedule_token(ACCOUNT, app_jwt(), server_now=now, at=60.0, policy=DEFAULT, planned="")
    assert assessment == Assessment(None, app_jwt(), tracked if shortened else TRACKED)


# What is stored is not what was stored


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(None, id="deleted"),
        pytest.param("no token", id="overwritten"),
        pytest.param("\ud800", id="overwritten with what is no text"),
        pytest.param(make_token(azp="another"), id="another app's"),
        pytest.param(token_of(ISSUED - HOUR * 2), id="an ended one"),
    ],
)
def test_while_our_token_lives_what_does_not_stand_in_its_place_is_drift(raw: str | None) -> None:
    assert assess(raw, ISSUED + HOUR / 4, 900.0, TRACKED) == Assessment(Reason.DRIFT)


@pytest.mark.parametrize(("at", "reason"), [(3599.5, Reason.DRIFT), (3600.0, Reason.MISSING), (9e9, Reason.MISSING)])
def test_a_token_that_ended_meanwhile_is_missing_and_nobody_s_doing(at: float, reason: Reason) -> None:
    assert assess(None, ISSUED + HOUR / 4, at, TRACKED) == Assessment(reason)


def test_our_own_token_that_today_s_checks_refuse_is_invalid_and_nobody_s_doing() -> None:
    edited = Expected(ACCOUNT, "another client_id")
    assessment = plan.assess_stored(
        ACCOUNT, make_token(), edited, server_now=ISSUED, at=60.0, policy=DEFAULT, tracked=TRACKED
    )
    assert assessment == Assessment(Reason.INVALID)


@pytest.mark.parametrize(
    ("earlier", "reason"), [(61, Reason.DRIFT), (60, None), (1, None), (-60, None)], ids=["drift", "60", "1", "later"]
)
def test_a_sound_token_in_the_place_of_ours_stands_unless_it_ends_more_than_a_minute_earlier(
    earlier: int, reason: Reason | None
) -> None:
    """The two lives may have been counted by different clocks."""
    other = app_jwt(ISSUED - timedelta(seconds=earlier))
    assessment = assess(other.raw.get_secret_value(), ISSUED + HOUR / 4, 900.0, TRACKED)
    expected = plan.schedule_token(ACCOUNT, other, server_now=ISSUED, at=0.0, policy=DEFAULT, planned="")
    assert assessment == Assessment(reason, other, expected)


# Which of two stays


@given(st.integers(-7200, 7200))
def test_only_a_token_that_ends_later_replaces_one_in_vault_unless_vault_deletes_that_early(seconds: int) -> None:
    stored, new = app_jwt(), app_jwt(ISSUED + timedelta(seconds=seconds))
    assert plan.replaces(new, stored, None) == (seconds > 0)
    assert plan.replaces(new, stored, stored.exp) == (seconds > 0)
    assert plan.replaces(new, stored, stored.exp - HOUR / 2) == (seconds >= 0)
    assert plan.replaces(new, None, None)


def test_where_sentinel_has_nothing_newer_the_plan_stays_until_its_moment() -> None:
    tracked = TrackedToken("any", Validity(0.0, 3600.0), refresh_at=1800.0, planned_at=1800.0)
    assert plan.retry_at_half_remaining(tracked, 1700.0) == tracked


@given(st.floats(0, 1, exclude_max=True))
def test_where_sentinel_has_nothing_newer_the_next_try_is_at_half_of_what_is_left(share: float) -> None:
    """The same token again is no failure and no hot loop."""
    tracked = TrackedToken("any", Validity(0.0, 3600.0), refresh_at=0.0, planned_at=0.0)
    now = 3600 * share
    again = plan.retry_at_half_remaining(tracked, now)
    assert (again.validity, again.planned_at) == (tracked.validity, tracked.planned_at)
    assert again.refresh_at - now == pytest.approx((3600 - now) / 2, abs=FAIR)


# When to try again

failures = st.integers(1, 10**6)
remainings = st.just(0.0) | st.floats(0.001, 86_400)
jitters = st.floats(0, 1, exclude_max=True)
kinds = st.sampled_from(Kind)
retry_afters = st.none() | st.integers(0, 10**6).map(lambda seconds: timedelta(seconds=seconds))


@given(failures, remainings, kinds, retry_afters, jitters)
def test_no_pause_is_shorter_than_a_second_nor_ever_endless(
    count: int, left: float, kind: Kind, retry_after: timedelta | None, jitter: float
) -> None:
    pause = plan.next_retry(count, remaining=left, kind=kind, retry_after=retry_after, jitter=jitter)
    assert timedelta(seconds=1) <= pause
    assert pause.total_seconds() <= (480 if not left else max(480, left * 0.75 + FAIR))


@given(failures, remainings.filter(bool), kinds, jitters)
def test_while_a_token_lives_no_pause_takes_more_than_a_quarter_of_what_is_left(
    count: int, left: float, kind: Kind, jitter: float
) -> None:
    pause = plan.next_retry(count, remaining=left, kind=kind, jitter=jitter).total_seconds()
    assert pause <= max(1, left / 4 + FAIR)


@given(failures, remainings.filter(bool), retry_afters, jitters)
def test_while_a_token_lives_the_kind_of_failure_makes_no_difference(
    count: int, left: float, retry_after: timedelta | None, jitter: float
) -> None:
    """An outage can look like a refusal."""
    one, other = (
        plan.next_retry(count, remaining=left, kind=kind, retry_after=retry_after, jitter=jitter) for kind in Kind
    )
    assert one == other


@given(failures, remainings.filter(bool), retry_afters, jitters)
def test_a_server_may_ask_for_a_pause_of_up_to_three_quarters_of_what_is_left(
    count: int, left: float, retry_after: timedelta | None, jitter: float
) -> None:
    pause = plan.next_retry(
        count, remaining=left, kind=Kind.TRANSIENT, retry_after=retry_after, jitter=jitter
    ).total_seconds()
    asked_for = retry_after.total_seconds() if retry_after else 0
    assert pause <= max(1, left * 0.75 + FAIR)
    assert pause >= min(asked_for, left * 0.75) - FAIR


def test_where_no_token_lives_a_server_may_ask_for_eight_minutes() -> None:
    day = timedelta(days=1)
    assert plan.next_retry(1, remaining=0.0, kind=Kind.TRANSIENT, retry_after=day) == timedelta(minutes=8)


@given(failures, remainings, kinds, jitters)
def test_pauses_never_get_shorter_with_more_failures(count: int, left: float, kind: Kind, jitter: float) -> None:
    first, second = (plan.next_retry(n, remaining=left, kind=kind, jitter=jitter) for n in (count, count + 1))
    assert first <= second


@given(failures, remainings, kinds, jitters)
def test_jitter_takes_off_a_fifth_at_most_and_adds_nothing(count: int, left: float, kind: Kind, jitter: float) -> None:
    whole, shorter = (plan.next_retry(count, remaining=left, kind=kind, jitter=each) for each in (0.0, jitter))
    assert whole * 0.8 <= shorter + timedelta(seconds=FAIR)
    assert shorter <= whole


def test_the_most_that_jitter_takes_off_is_a_fifth() -> None:
    pause = plan.next_retry(6, remaining=0.0, kind=Kind.PERMANENT, jitter=0.999_999).total_seconds()
    assert pause == pytest.approx(480 * 0.8, abs=0.001)


@given(jitters)
def test_jitter_adds_up_to_a_fifth_to_what_a_server_asks_for(jitter: float) -> None:
    asked_for = timedelta(minutes=1)
    pause = plan.next_retry(1, remaining=0.0, kind=Kind.TRANSIENT, retry_after=asked_for, jitter=jitter)
    assert pause == asked_for * (1 + jitter / 5)


@pytest.mark.parametrize("left", [10_000.0, 1920.0])
def test_the_pauses_are_liveperson_s_where_much_life_is_left(left: float) -> None:
    pauses = [plan.next_retry(count, remaining=left, kind=Kind.TRANSIENT).total_seconds() for count in range(1, 9)]
    assert pauses == [5, 10, 15, 120, 240, 480, 480, 480]
    assert [pause.total_seconds() for pause in RETRY_PAUSES] == pauses[:6]


def test_where_no_token_lives_it_is_tried_every_two_minutes_and_a_refusal_ever_less_often() -> None:
    transient, permanent = (
        [plan.next_retry(count, remaining=0.0, kind=kind).total_seconds() for count in range(1, 9)]
        for kind in (Kind.TRANSIENT, Kind.PERMANENT)
    )
    assert transient == [5, 10, 15, 120, 120, 120, 120, 120]
    assert permanent == [120, 120, 120, 120, 240, 480, 480, 480]


def test_a_token_with_an_hour_left_survives_an_outage_with_tries_to_the_end() -> None:
    """No pause outlasts the token: cert-manager's backoff of 1 h to 32 h did."""
    left, tries = 1800.0, []
    while left > 1:
        tries.append(left)
        left -= plan.next_retry(len(tries), remaining=left, kind=Kind.PERMANENT).total_seconds()
    assert 15 < len(tries) < 40
    assert sum(each < 60 for each in tries) > 5


# What kind of failure it is


@pytest.mark.parametrize("stage", [Stage.DOMAIN, Stage.SENTINEL, Stage.VAULT, Stage.CREDENTIALS])
def test_refusals_last_and_the_rest_passes(stage: Stage) -> None:
    permanent = {status for status in range(100, 600) if Kind.of(stage, status) is Kind.PERMANENT}
    passing = {408, 412, 425, 429, 472, 473, 474}
    assert {status for status in permanent if status >= 400} == set(range(400, 500)) - passing
    assert Kind.of(stage, None) is Kind.TRANSIENT


def test_a_redirect_is_a_refusal_of_livepersons_and_a_standby_s_answer_in_vault() -> None:
    kinds = [{Kind.of(stage, status) for status in (300, 302, 307, 399)} for stage in (Stage.SENTINEL, Stage.VAULT)]
    assert kinds == [{Kind.PERMANENT}, {Kind.TRANSIENT}]
    assert Kind.of(Stage.DOMAIN, 299) is Kind.TRANSIENT


@pytest.mark.parametrize(
    ("status", "failures", "kind"),
    [
        (500, 6, Kind.TRANSIENT),
        (500, 7, Kind.PERMANENT),
        (599, 7, Kind.PERMANENT),
        (499, 7, Kind.TRANSIENT),
        (None, 100, Kind.TRANSIENT),
    ],
)
def test_a_server_s_trouble_that_lasts_counts_as_permanent(status: int | None, failures: int, kind: Kind) -> None:
    """A refused credential may be answered by a 500."""
    error = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "text", status=status)
    assert plan.effective_kind(error, failures) is kind


def test_a_refusal_lasts_from_the_first_on() -> None:
    assert plan.effective_kind(RefreshError(Stage.SENTINEL, Kind.PERMANENT, "text", status=403), 1) is Kind.PERMANENT


# Whether the account's secret was at hand


def test_a_token_that_was_not_compared_is_so_once_the_account_is_known_and_its_plan_stays() -> None:
    raw = make_token()
    unknown = plan.assess_stored(
        ACCOUNT, raw, Expected(), server_now=ISSUED, at=0.0, policy=DEFAULT, tracked=None
    ).tracked
    assert unknown
    assert unknown.identity_verified is False
    later = assess(raw, ISSUED + HOUR / 4, 900.0, tracked=unknown).tracked
    assert later == dataclasses.replace(unknown, identity_verified=True)
    again = plan.assess_stored(
        ACCOUNT, raw, Expected(), server_now=ISSUED, at=950.0, policy=DEFAULT, tracked=later
    ).tracked
    assert again is later
    assert assess(raw, ISSUED, tracked=later).tracked is later


# Many at once


@given(timings, names, lives)
def test_tokens_minted_together_are_renewed_far_apart_and_early(
    policy: RefreshPolicy, name: str, length: timedelta
) -> None:
    life = Validity.of(app_jwt(life=length), ISSUED, 0.0)
    due = policy.refresh_at(name, life, desynchronize=True)
    seconds = length.total_seconds()
    assert seconds * policy.fraction / 5 - FAIR <= due <= seconds * policy.fraction + FAIR


def test_a_thousand_minted_together_fall_evenly_between_a_tenth_and_a_half_of_their_life() -> None:
    due = [DEFAULT.refresh_at(f"account-{i}", Validity(0.0, 3600.0), desynchronize=True) for i in range(10_000)]
    minutes = Counter(int((moment - 360) // 60) for moment in due)
    assert sorted(minutes) == list(range(24))
    assert all(350 < count < 490 for count in minutes.values())
    usual = [DEFAULT.phase(f"account-{i}") for i in range(10_000)]
    early = [each for each, phase in zip(due, usual, strict=True) if phase < 0.1]
    assert 1030 < sum(early) / len(early) < 1130  # an account that is usually early is not so here, too


@pytest.mark.parametrize(("late_by", "late"), [(-1.0, False), (0.0, False), (180.0, False), (180.1, True)])
def test_a_token_is_late_from_a_twentieth_of_its_life_after_its_moment(late_by: float, late: bool) -> None:  # noqa: FBT001 - a parameter
    assert TrackedToken("f", Validity(5000.0, 8600.0), 6800.0, 6800.0).is_late(6800.0 + late_by) is late


@given(st.floats(0, 1e5), st.integers(1, 60))
def test_an_exchange_takes_at_most_half_of_what_is_left_but_two_seconds_in_any_case(left: float, limit: int) -> None:
    timeout = plan.exchange_timeout(timedelta(seconds=limit), left).total_seconds()
    assert min(limit, 2) <= timeout <= limit
    if left:
        assert timeout <= max(2, left / 2 + FAIR)


def test_an_exchange_has_its_whole_time_where_no_token_lives_or_much_is_left() -> None:
    limit = timedelta(seconds=10)
    assert [plan.exchange_timeout(limit, left).total_seconds() for left in (0.0, 1e4, 20.0, 12.0, 1.0)] == [
        10,
        10,
        10,
        6,
        2,
    ]


def test_where_others_wait_an_exchange_has_twice_what_theirs_took_and_two_seconds_at_least() -> None:
    limit = timedelta(seconds=10)
    assert [plan.exchange_timeout(limit, 0.0, slowest).total_seconds() for slowest in (0.1, 3.0, 7.0)] == [2, 6, 10]
    assert plan.exchange_timeout(limit, 8.0, 3.0).total_seconds() == 4
    assert plan.exchange_timeout(limit, 100.0, 3.0).total_seconds() == 6
    assert plan.exchange_timeout(timedelta(seconds=1), 0.0, 0.1).total_seconds() == 1
