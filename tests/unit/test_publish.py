"""The write by check-and-set: failures, races, other people's secrets, and a Vault that deletes tokens."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from sandbox.faults import Fault
from tests.builders import ACCOUNT, account_secret, error_of, token_of
from tests.fakes.clock import HOUR, MINUTE, SECOND, Clock, nothing
from tests.fakes.vault import ACCOUNTS, HEALTHY, LONGEST_LAG, TOKENS, Metadata, VaultFault
from tests.fakes.world import World
from worker.core.appjwt import utc
from worker.core.errors import Kind, Stage, UnmanagedSecretError
from worker.core.outcome import Result, State
from worker.core.plan import Reason
from worker.refresh import ForceRefresh, Refresher

NOW = Clock().now()
"""The start of each of these worlds."""
PATH = TOKENS + ACCOUNT
MARK = {"managed_by": "appjwt-worker"}
THEIRS = {"password": "theirs"}
FORCE = ForceRefresh()


def custom_metadata(world: World) -> dict[str, str]:
    """Return the custom metadata of the token's path."""
    metadata = world.vault.kv.metadata(PATH)
    return dict(metadata.custom_metadata) if metadata else {}


# Writes that go wrong


def test_a_write_whose_answer_was_lost_counts_as_ours_the_next_time(world: World, refresher: Refresher) -> None:
    world.vault.losing = {"write_token"}
    first = refresher.refresh(ACCOUNT)
    assert (first.result, first.reason) == (Result.FAILED, Reason.MISSING)
    assert error_of(first) == (Stage.VAULT, Kind.TRANSIENT, None, None)
    world.vault.losing = set()
    world.clock.advance(5 * SECOND)
    second = refresher.refresh(ACCOUNT)
    assert (second.result, second.reason, second.version) == (Result.REFRESHED, Reason.MISSING, 1)
    third = refresher.refresh(ACCOUNT)
    assert third.result is Result.ADOPTED
    assert world.liveperson.mints() == 1


def test_a_token_minted_while_vault_went_away_is_written_later_and_not_minted_again(
    world: World, refresher: Refresher
) -> None:
    def go_down(operation: str, _: str) -> None:
        world.vault.is_down = operation.startswith("write")

    world.vault.at_request = go_down
    assert refresher.refresh(ACCOUNT).result is Result.FAILED
    assert refresher.refresh(ACCOUNT).result is Result.FAILED
    assert world.data() == {}
    world.vault.at_request = nothing
    world.vault.is_down = False
    world.clock.advance(10 * MINUTE)
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.MISSING, 1)
    assert world.liveperson.mints() == 1
    assert world.token().exp == NOW + HOUR
    assert outcome.tracked
    assert outcome.tracked.validity.remaining(world.clock()) == 50 * 60


def test_a_write_that_failed_leaves_the_plan_of_what_stands_alone(world: World, refresher: Refresher) -> None:
    """Recounted by another clock it could be due later, and then the obtained token would be dropped."""
    tracked = refresher.refresh(ACCOUNT).tracked
    assert tracked
    world.clock.advance(HOUR / 2)
    world.vault.denied = {"write_token"}
    world.vault.skew = -10 * SECOND
    early = replace(tracked, refresh_at=world.clock())
    outcome = refresher.refresh(ACCOUNT, tracked=early)
    assert (outcome.result, outcome.tracked) == (Result.FAILED, early)
    world.vault.denied = set()
    mints = world.liveperson.mints()
    assert refresher.refresh(ACCOUNT, tracked=early).result is Result.REFRESHED
    assert world.liveperson.mints() == mints


def test_an_obtained_token_is_kept_while_an_older_one_that_was_put_back_is_fresh(
    world: World, refresher: Refresher
) -> None:
    refresher.refresh(ACCOUNT)
    world.clock.advance(20 * MINUTE)
    world.vault.kv.delete(PATH)
    world.vault.denied = {"write_token"}
    assert refresher.refresh(ACCOUNT).result is Result.FAILED
    world.vault.denied = set()
    world.vault.kv.undelete(PATH)
    adopted = refresher.refresh(ACCOUNT)
    assert adopted.result is Result.ADOPTED
    world.clock.advance(10 * MINUTE)
    assert refresher.refresh(ACCOUNT, tracked=adopted.tracked).result is Result.REFRESHED
    assert (world.liveperson.mints(), world.token().exp) == (2, NOW + 20 * MINUTE + HOUR)


def test_without_the_right_to_write_one_token_is_minted_and_kept(world: World, refresher: Refresher) -> None:
    # the world outside is not changed again and again for what cannot be stored
    world.vault.denied = {"write_token"}
    for _ in range(5):
        outcome = refresher.refresh(ACCOUNT)
        assert error_of(outcome) == (Stage.VAULT, Kind.PERMANENT, 403, None)
        world.clock.advance(MINUTE)
    assert world.liveperson.mints() == 1


def test_a_new_path_whose_data_is_refused_gets_no_mark(world: World, refresher: Refresher) -> None:
    """The next writer there must not find it marked as ours."""
    world.vault.denied = {"write_token"}
    refresher.refresh(ACCOUNT)
    assert "managed_by" not in custom_metadata(world)
    world.vault.denied = set()
    assert world.refresher("another").refresh(ACCOUNT).version == 1


def test_a_token_that_waited_until_it_was_due_itself_is_minted_anew(world: World, refresher: Refresher) -> None:
    world.vault.denied = {"write_token"}
    refresher.refresh(ACCOUNT)
    world.vault.denied = set()
    world.clock.advance(35 * MINUTE)
    refresher.refresh(ACCOUNT)
    assert world.liveperson.mints() == 2
    assert world.token().exp == world.clock.now() + HOUR


def test_a_token_that_waited_is_not_written_for_another_app(world: World, refresher: Refresher) -> None:
    world.vault.denied = {"write_token"}
    refresher.refresh(ACCOUNT)
    world.vault.denied = set()
    credentials = world.add_account()
    refresher.refresh(ACCOUNT)
    assert world.token().azp == credentials.client_id


def test_the_mark_comes_once_right_after_the_first_data_and_then_it_is_one_write_each(
    world: World, refresher: Refresher
) -> None:
    for _ in range(3):
        refresher.refresh(ACCOUNT)
        world.clock.advance(35 * MINUTE)
    writes = [operation for operation, _ in world.vault.calls if operation.startswith("write")]
    assert writes == ["write_token", "write_metadata", "write_token", "write_token"]


@pytest.mark.parametrize(("took", "mark"), [(MINUTE, MARK), (MINUTE + SECOND, {})])
def test_a_first_write_that_took_longer_than_a_minute_as_its_process_was_suspended_leaves_the_mark_to_the_next_refresh(
    world: World, refresher: Refresher, took: timedelta, mark: dict[str, str]
) -> None:
    # somebody else may have written there since: the mark would have made that ours
    def suspend(operation: str, _: str) -> None:
        if operation == "write_token":
            world.vault.at_answer = nothing
            world.clock.advance(took)

    world.vault.at_answer = suspend
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED
    assert custom_metadata(world) == mark
    world.clock.advance(35 * MINUTE)
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED
    assert custom_metadata(world) == MARK


# Races


def run_before(world: World, act: Callable[[], object], before: str = "write_token") -> None:
    """Have somebody else act just before the next write, or before Sentinel's answer."""

    def once(what: str, _: str) -> None:
        if what == before:
            world.vault.at_request = world.liveperson.at_answer = nothing
            act()

    world.vault.at_request = world.liveperson.at_answer = once


@pytest.mark.parametrize("before", ["sentinel", "write_token"])
def test_who_loses_the_race_to_a_later_token_adopts_it(world: World, refresher: Refresher, before: str) -> None:
    def sister() -> None:
        world.clock.advance(SECOND)
        world.refresher("b").refresh(ACCOUNT)

    run_before(world, sister, before)
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.reason, outcome.version, outcome.error) == (Result.ADOPTED, None, 1, None)
    assert outcome.token == world.token()
    assert world.token().exp == NOW + HOUR + SECOND
    world.clock.advance(SECOND)
    assert refresher.refresh(ACCOUNT).result is Result.ADOPTED  # the token minted in vain is forgotten


def test_who_loses_the_race_to_an_earlier_token_writes_over_it(world: World, refresher: Refresher) -> None:
    azp = world.add_account().client_id
    run_before(world, lambda: world.store(token_of(NOW - MINUTE, azp=azp)))
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.version) == (Result.REFRESHED, 2)
    assert world.token().exp == NOW + HOUR


def test_a_vault_whose_clock_lags_lets_no_token_go_backwards(world: World, refresher: Refresher) -> None:
    # by Vault's clock the sister's new token is one from the future, and would not stand
    def sister() -> None:
        world.clock.advance(SECOND)
        world.refresher("b").refresh(ACCOUNT)

    world.vault.skew = -5 * MINUTE
    run_before(world, sister)
    assert refresher.refresh(ACCOUNT).result is Result.ADOPTED
    assert world.token().exp == NOW + HOUR + SECOND


def test_who_loses_the_race_to_garbage_writes_over_it(world: World, refresher: Refresher) -> None:
    run_before(world, lambda: world.store("garbage"))
    assert refresher.refresh(ACCOUNT).version == 2


def test_who_loses_the_race_and_then_vault_keeps_what_it_minted(world: World, refresher: Refresher) -> None:
    def sister() -> None:
        world.store("garbage")
        world.vault.denied = {"read_token"}

    run_before(world, sister)
    assert refresher.refresh(ACCOUNT).result is Result.FAILED
    world.vault.denied = set()
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED
    assert world.liveperson.mints() == 1


def test_who_loses_every_race_fails_and_tries_again_later(world: World, refresher: Refresher) -> None:
    def garbage(operation: str, _: str) -> None:
        if operation == "write_token":
            world.store("garbage")

    world.vault.at_request = garbage
    assert error_of(refresher.refresh(ACCOUNT)) == (Stage.VAULT, Kind.TRANSIENT, None, None)
    world.vault.at_request = nothing
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED
    assert world.liveperson.mints() == 1


def lagging(world: World, by: timedelta) -> None:
    world.vault.fault = lambda operation, _: VaultFault(stale=by if operation == "read_token" else timedelta())


def test_who_loses_the_race_at_a_standby_that_lags_waits_until_it_knows(world: World, refresher: Refresher) -> None:
    def sister() -> None:
        world.clock.advance(SECOND)
        world.refresher("b").refresh(ACCOUNT)
        lagging(world, timedelta(seconds=1.2))

    run_before(world, sister)
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.error) == (Result.ADOPTED, None)
    assert outcome.duration == pytest.approx(1 + 0.05 + 0.1 + 0.2 + 0.4 + 0.8)
    assert world.version() == 1


def test_a_standby_that_never_knows_is_a_failure_that_says_so(world: World, refresher: Refresher) -> None:
    lagging(world, HOUR)
    run_before(world, lambda: world.store("garbage"))
    outcome = refresher.refresh(ACCOUNT)
    assert error_of(outcome) == (Stage.VAULT, Kind.TRANSIENT, None, None)
    assert "stale version" in str(outcome.error)
    world.vault.fault = lambda *_: HEALTHY
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED
    assert world.liveperson.mints() == 1


def test_a_manual_refresh_that_races_the_daemon_does_no_harm(world: World, refresher: Refresher) -> None:
    first = refresher.refresh(ACCOUNT)
    world.clock.advance(35 * MINUTE)
    run_before(world, lambda: world.refresher("by hand").refresh(ACCOUNT, force=ForceRefresh()))
    outcome = refresher.refresh(ACCOUNT, tracked=first.tracked)
    assert outcome.error is None
    assert outcome.token == world.token()
    assert world.token().exp == world.clock.now() + HOUR
    assert world.version() == 2


# The mark, after the data


@pytest.mark.parametrize("trouble", ["denied", "losing"])
def test_a_token_counts_though_its_mark_is_refused_and_the_next_refresh_sets_the_mark(
    world: World, refresher: Refresher, trouble: str
) -> None:
    setattr(world.vault, trouble, {"write_metadata"})
    with capture_logs() as lines:
        outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.state, outcome.error) == (Result.REFRESHED, State.OK, None)
    assert [(line["event"], line["log_level"], line["account"]) for line in lines] == [
        ("vault.warning", "warning", ACCOUNT)
    ]
    assert lines[0]["vault_path"] == f"secret/{PATH}"
    assert lines[0]["warning"].startswith(f"write_metadata {ACCOUNT}: ")
    setattr(world.vault, trouble, set())
    world.vault.kv.set_metadata(PATH, max_versions=0, custom_metadata={"managed_by": None})
    world.clock.advance(35 * MINUTE)
    assert refresher.refresh(ACCOUNT).result is Result.REFRESHED
    metadata = world.vault.kv.metadata(PATH)
    assert metadata
    assert (metadata.max_versions, metadata.custom_metadata) == (5, MARK)


def test_a_mark_and_a_number_of_versions_that_stand_are_not_written_again(world: World, refresher: Refresher) -> None:
    refresher.refresh(ACCOUNT)
    world.vault.kv.set_metadata(PATH, max_versions=20)  # the owner's wish
    world.clock.advance(35 * MINUTE)
    refresher.refresh(ACCOUNT)
    metadata = world.vault.kv.metadata(PATH)
    assert metadata
    assert metadata.max_versions == 20


# Other people's secrets, which a standby may not know yet


def taken(world: World, refresher: Refresher, path_was: str) -> Metadata:
    """Let somebody write at a path that is not ours, and every read answer without it for two seconds."""
    kv = world.vault.kv
    if path_was != "new":
        refresher.refresh(ACCOUNT)
        world.clock.advance(35 * MINUTE)
    if path_was == "removed":
        refresher.refresh(ACCOUNT)  # else theirs has the number of ours, and no check-and-set can tell them apart
        world.clock.advance(35 * MINUTE)
        kv.remove(PATH)
    elif path_was != "new":
        kv.set_metadata(PATH, custom_metadata={"managed_by": None})
    if path_was == "unmarked long ago":
        world.clock.advance(MINUTE)
    kv.put(PATH, THEIRS)
    kv.set_metadata(PATH, custom_metadata={"owner": "the chat team"})
    before = kv.metadata(PATH)
    assert before
    lagging(world, LONGEST_LAG)
    return before


def heal(world: World) -> None:
    """Let the standby catch up."""
    world.vault.fault = lambda *_: HEALTHY
    world.clock.advance(LONGEST_LAG)


@pytest.fixture(params=["new", "unmarked just now", "unmarked long ago", "removed"])
def path_was(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_secret_that_a_standby_does_not_know_yet_is_neither_written_over_nor_marked(
    world: World, refresher: Refresher, path_was: str
) -> None:
    before = taken(world, refresher, path_was)
    outcome = refresher.refresh(ACCOUNT)
    assert isinstance(outcome.error, UnmanagedSecretError)
    heal(world)
    for again in (refresher.check_stored(ACCOUNT), refresher.refresh(ACCOUNT), refresher.refresh(ACCOUNT, force=FORCE)):
        assert isinstance(again.error, UnmanagedSecretError)
    assert (world.data(), world.vault.kv.metadata(PATH)) == (THEIRS, before)


@pytest.mark.parametrize("act", ["refresh", "check_stored", "is_removed"])
def test_a_state_that_a_stale_read_put_beside_another_s_secret_is_removed(
    world: World, refresher: Refresher, path_was: str, act: str
) -> None:
    before = taken(world, refresher, path_was)
    with world.liveperson.faults.on(Fault(status=401)):
        refresher.refresh(ACCOUNT)
    assert custom_metadata(world).keys() == {"owner", "state", "last_error", "failing_since"}
    heal(world)
    if act == "is_removed":
        world.vault.kv.remove(ACCOUNTS + ACCOUNT)
    world.vault.denied = {"write_metadata"}
    getattr(refresher, act)(ACCOUNT)
    assert custom_metadata(world)["state"] == "failing"
    world.vault.denied = set()
    getattr(refresher, act)(ACCOUNT)
    assert (world.data(), world.vault.kv.metadata(PATH)) == (THEIRS, before)


@pytest.mark.parametrize("theirs", [{"state": "in review"}, {"state": "failing"}, {"last_error": "none"}])
def test_a_state_that_is_not_ours_stays_beside_another_s_secret(
    world: World, refresher: Refresher, theirs: dict[str, str]
) -> None:
    world.vault.kv.put(PATH, THEIRS)
    world.vault.kv.set_metadata(PATH, custom_metadata=theirs)
    assert isinstance(refresher.refresh(ACCOUNT).error, UnmanagedSecretError)
    assert custom_metadata(world) == theirs


@pytest.mark.parametrize("before", ["sentinel", "write_token"])
def test_a_stranger_who_is_faster_at_a_new_path_keeps_it(world: World, refresher: Refresher, before: str) -> None:
    run_before(world, lambda: world.vault.kv.put(PATH, THEIRS), before)
    outcome = refresher.refresh(ACCOUNT)
    assert isinstance(outcome.error, UnmanagedSecretError)
    assert (world.data(), custom_metadata(world)) == (THEIRS, {})
    assert isinstance(refresher.refresh(ACCOUNT).error, UnmanagedSecretError)


@pytest.mark.parametrize("way", ["delete", "destroy"])
def test_another_s_secret_that_was_deleted_is_theirs_all_the_same(world: World, refresher: Refresher, way: str) -> None:
    world.vault.kv.put(PATH, THEIRS)
    getattr(world.vault.kv, way)(PATH)
    assert isinstance(refresher.refresh(ACCOUNT).error, UnmanagedSecretError)
    assert world.version() == 1


def test_on_a_marked_path_what_others_write_is_replaced_and_stays_readable(world: World, refresher: Refresher) -> None:
    tracked = refresher.refresh(ACCOUNT).tracked
    world.vault.kv.put(PATH, THEIRS)
    outcome = refresher.refresh(ACCOUNT, tracked=tracked)
    assert (outcome.result, outcome.reason, outcome.version) == (Result.REFRESHED, Reason.DRIFT, 3)
    assert world.vault.kv.get(PATH, 2).data == THEIRS


def test_a_secret_that_is_handed_over_by_the_mark_is_replaced(world: World, refresher: Refresher) -> None:
    world.vault.kv.put(PATH, THEIRS)
    refresher.refresh(ACCOUNT)
    world.vault.kv.set_metadata(PATH, custom_metadata=MARK)
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.version) == (Result.REFRESHED, 2)


def test_a_token_that_somebody_undeletes_is_adopted(world: World, refresher: Refresher) -> None:
    tracked = refresher.refresh(ACCOUNT).tracked
    world.vault.kv.delete(PATH)
    world.vault.kv.undelete(PATH)
    assert refresher.check_stored(ACCOUNT, tracked).result is Result.ADOPTED


def test_a_token_that_is_undeleted_just_before_the_write_is_replaced_by_a_later_one(
    world: World, refresher: Refresher
) -> None:
    refresher.refresh(ACCOUNT)
    world.clock.advance(MINUTE)
    world.vault.kv.delete(PATH)
    run_before(world, lambda: world.vault.kv.undelete(PATH))
    assert refresher.refresh(ACCOUNT).version == 2
    assert world.token().exp == NOW + MINUTE + HOUR


# A path that was taken back


@pytest.mark.parametrize(
    ("way", "state"), [("disabled", State.DISABLED), ("deleted", State.REMOVED), ("removed", State.REMOVED)]
)
@pytest.mark.parametrize("marked", [True, False])
def test_the_path_of_an_account_out_of_use_is_left_to_whoever_takes_it_back(
    world: World,
    refresher: Refresher,
    way: str,
    state: State,
    marked: bool,  # noqa: FBT001 - a parameter
) -> None:
    kv, tracked = world.vault.kv, refresher.refresh(ACCOUNT).tracked
    match way:
        case "disabled":
            kv.put(ACCOUNTS + ACCOUNT, account_secret(enabled=False))
        case "deleted":
            kv.delete(ACCOUNTS + ACCOUNT)
        case "removed":
            kv.remove(ACCOUNTS + ACCOUNT)
    assert refresher.refresh(ACCOUNT, force=FORCE).state is state
    kv.put(PATH, THEIRS)
    if not marked:
        kv.set_metadata(PATH, custom_metadata={"managed_by": None})
    world.clock.advance(HOUR)
    for outcome in (refresher.refresh(ACCOUNT, tracked=tracked), refresher.refresh(ACCOUNT, force=FORCE)):
        assert (outcome.result, outcome.state) == (Result.ABSENT, state)
    assert (world.data(), world.version()) == (THEIRS, 2)
    assert custom_metadata(world) == ({**MARK, "state": state} if marked else {})


@pytest.mark.parametrize("trouble", ["disabled", "refused"])
def test_beside_another_s_secret_at_a_marked_path_no_state_is_written(
    world: World, refresher: Refresher, trouble: str
) -> None:
    tracked = refresher.refresh(ACCOUNT).tracked
    world.vault.kv.put(PATH, THEIRS)
    if trouble == "disabled":
        world.vault.kv.put(ACCOUNTS + ACCOUNT, account_secret(enabled=False))
    with world.liveperson.faults.on(Fault(status=401)):
        state = refresher.refresh(ACCOUNT, tracked=tracked).state
    assert state is (State.DISABLED if trouble == "disabled" else State.FAILING)
    assert custom_metadata(world) == MARK
    world.add_account()
    assert refresher.refresh(ACCOUNT, tracked=tracked).result is Result.REFRESHED


def test_the_state_is_written_again_once_another_s_secret_was_replaced(world: World, refresher: Refresher) -> None:
    tracked = refresher.refresh(ACCOUNT).tracked
    with world.liveperson.faults.on(Fault(status=401)):
        refresher.refresh(ACCOUNT, tracked=tracked, force=FORCE)
    assert custom_metadata(world)["state"] == "failing"
    world.vault.kv.put(PATH, THEIRS)
    assert refresher.refresh(ACCOUNT, tracked=tracked).result is Result.REFRESHED
    assert custom_metadata(world) == {**MARK, "state": "ok"}


def test_a_path_is_another_s_where_the_account_cannot_be_read(world: World, refresher: Refresher) -> None:
    world.vault.kv.put(PATH, THEIRS)
    world.vault.denied = {"read_account"}
    assert isinstance(refresher.refresh(ACCOUNT).error, UnmanagedSecretError)


# A Vault that deletes what it is given


RETAINED = 10 * SECOND


def test_a_token_that_vault_deletes_before_it_expires_is_published_and_fails_with_the_command_that_helps(
    world: World, refresher: Refresher
) -> None:
    world.vault.kv.delete_version_after = RETAINED
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.state, outcome.error) == (Result.REFRESHED, State.FAILING, None)
    assert outcome.early_deletion
    assert outcome.early_deletion.deletion_time == NOW + RETAINED
    metadata = custom_metadata(world)
    assert metadata["state"] == "failing"
    assert metadata["failing_since"] == utc(NOW)
    assert metadata["last_error"] == (
        f"vault: Vault deletes the token at {utc(NOW + RETAINED)}, before it expires: "
        f"vault kv metadata put -mount=secret -delete-version-after=0s {PATH}; "
        "for the whole mount: vault write secret/config delete_version_after=0s"
    )


def test_where_vault_deletes_tokens_early_the_plan_takes_that_as_the_end_but_a_minute_at_least(
    world: World, refresher: Refresher
) -> None:
    for after, planned in ((RETAINED, MINUTE), (20 * MINUTE, 20 * MINUTE)):
        world.vault.kv.delete_version_after = after
        tracked = refresher.refresh(ACCOUNT, force=FORCE).tracked
        assert tracked
        assert tracked.validity.remaining(world.clock()) == after.total_seconds()
        share = (tracked.refresh_at - world.clock()) / planned.total_seconds()
        assert 0.45 <= share <= 0.55
        assert world.clock() + (after / 2).total_seconds() == pytest.approx(tracked.planned_at)
        world.clock.advance(MINUTE)


def test_where_vault_deletes_it_early_the_same_token_is_written_again(world: World, refresher: Refresher) -> None:
    world.vault.kv.delete_version_after = 20 * MINUTE
    with world.liveperson.faults.on(Fault(same_token=True)):
        first = refresher.refresh(ACCOUNT)
        world.clock.advance(12 * MINUTE)
        outcome = refresher.refresh(ACCOUNT, tracked=first.tracked)
    assert (outcome.result, outcome.version, outcome.token) == (Result.REFRESHED, 2, first.token)
    assert outcome.tracked
    assert outcome.tracked.validity.remaining(world.clock()) == 20 * 60
    assert outcome.tracked.refresh_at > world.clock() + 3 * 60


def test_the_same_token_that_vault_no_longer_deletes_early_is_planned_anew(world: World, refresher: Refresher) -> None:
    world.vault.kv.delete_version_after = 20 * MINUTE
    with world.liveperson.faults.on(Fault(same_token=True)):
        tracked = refresher.refresh(ACCOUNT).tracked
        world.vault.kv.delete_version_after = timedelta()
        world.clock.advance(12 * MINUTE)
        assert world.refresher("b").refresh(ACCOUNT, force=FORCE).result is Result.REFRESHED
        outcome = refresher.refresh(ACCOUNT, tracked=tracked)
    assert (outcome.result, outcome.version) == (Result.UNCHANGED, 2)
    assert outcome.tracked
    assert outcome.tracked.validity.remaining(world.clock()) == 48 * 60


def test_a_token_that_vault_deleted_is_missing_and_no_drift_and_its_state_is_told_once(
    world: World, refresher: Refresher
) -> None:
    world.vault.kv.delete_version_after = RETAINED
    tracked = refresher.refresh(ACCOUNT).tracked
    metadata = custom_metadata(world)
    world.clock.advance(30 * SECOND)
    outcome = refresher.refresh(ACCOUNT, tracked=tracked)
    assert (outcome.result, outcome.reason) == (Result.REFRESHED, Reason.MISSING)
    assert custom_metadata(world) == metadata
    world.vault.kv.delete_version_after = timedelta()
    world.clock.advance(30 * SECOND)
    outcome = refresher.refresh(ACCOUNT, tracked=outcome.tracked)
    assert (outcome.state, outcome.early_deletion) == (State.OK, None)
    assert custom_metadata(world) == {**MARK, "state": "ok"}


def test_a_restart_sees_that_vault_will_delete_the_stored_token(world: World, refresher: Refresher) -> None:
    world.vault.kv.delete_version_after = RETAINED
    refresher.refresh(ACCOUNT)
    outcome = world.refresher("b").check_stored(ACCOUNT)
    assert (outcome.result, outcome.state) == (Result.ADOPTED, State.FAILING)
    assert outcome.tracked
    assert outcome.tracked.validity.remaining(world.clock()) == RETAINED.total_seconds()


def test_a_token_that_vault_deletes_after_it_expired_is_well_and_planned_as_any(
    world: World, refresher: Refresher
) -> None:
    world.vault.kv.delete_version_after = 2 * HOUR
    outcome = refresher.refresh(ACCOUNT)
    assert (outcome.result, outcome.state) == (Result.REFRESHED, State.OK)
    assert outcome.early_deletion
    assert not outcome.early_deletion.is_before_expiry
    assert outcome.tracked
    assert outcome.tracked.validity.remaining(world.clock()) == 3600
    assert custom_metadata(world) == MARK


def test_a_path_s_own_delete_version_after_is_never_touched(world: World, refresher: Refresher) -> None:
    world.vault.kv.set_metadata(PATH, delete_version_after=2 * HOUR)
    refresher.refresh(ACCOUNT)
    metadata = world.vault.kv.metadata(PATH)
    assert metadata
    assert (metadata.delete_version_after, metadata.custom_metadata) == (2 * HOUR, MARK)


# What readers and operators have to know of a published token


def test_a_scope_that_is_unusual_is_shown_as_long_as_the_account_names_none(world: World, refresher: Refresher) -> None:
    world.liveperson.faults.set(Fault(claims={"scope": "other"}))
    assert refresher.refresh(ACCOUNT).scope_unusual
    assert "without msg.consumer" in custom_metadata(world)["last_error"]
    assert world.refresher("b").refresh(ACCOUNT).scope_unusual  # adopted: its publisher reported it
    account = world.vault.kv.get(ACCOUNTS + ACCOUNT).data or {}
    world.vault.kv.put(ACCOUNTS + ACCOUNT, {**account, "scope": "other"})
    world.clock.advance(SECOND)
    outcome = refresher.refresh(ACCOUNT, force=FORCE)
    assert (outcome.result, outcome.scope_unusual) == (Result.REFRESHED, False)
    assert "last_error" not in custom_metadata(world)


def test_the_client_id_of_another_apps_valid_token_that_was_replaced_is_told(
    world: World, refresher: Refresher
) -> None:
    for azp, issued, replaced in (("theirs", NOW, "theirs"), ("theirs", NOW - 2 * HOUR, None)):
        world.store(token_of(issued, azp=azp))
        outcome = refresher.refresh(ACCOUNT, force=FORCE)
        assert (outcome.result, outcome.replaced_client_id) == (Result.REFRESHED, replaced)
        world.clock.advance(SECOND)
