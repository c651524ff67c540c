"""Planted bugs: each takes something away from the worker, and names a world in which that matters.

They show that the oracle would see such a bug. What they patch is the product itself, and it is put back afterwards.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final
from unittest import mock

from tests.fakes.vault import TOKENS
from tests.simulation.faults import Kind
from tests.simulation.oracle import Violation
from tests.simulation.worlds import Plan, SimWorld
from worker import obtain
from worker.core import appjwt, plan
from worker.core.account import Account, parse
from worker.core.appjwt import AppJWT, Check, Expected, TokenRefusedError
from worker.core.errors import CasMismatchError, RefreshError, ThrottledError, UnmanagedSecretError
from worker.core.errors import Kind as FailureKind
from worker.core.outcome import State
from worker.core.plan import Assessment, TrackedToken, Validity
from worker.core.record import AccountRecord
from worker.core.unchecked import StoredSecret
from worker.daemon import Daemon
from worker.liveperson.hosts import HostResolver
from worker.obtain import TokenSource
from worker.publish import Attempt, Publisher
from worker.refresh import Refresher
from worker.schedule.accounts import AccountScheduler
from worker.schedule.dispatch import Dispatcher
from worker.schedule.queues import HostQueues, Turn
from worker.schedule.resync import Resync
from worker.schedule.timer import SteadyScheduler
from worker.schedule.waitlist import DependencyWaitlist
from worker.vault import gate, tokens
from worker.vault.accounts import AccountStore
from worker.vault.gate import Gate
from worker.vault.kv import MetadataPatch
from worker.vault.tokens import MANAGED_BY, TokenStore, Written

_LATEST: Final = 16.0
"""Seconds: a pass of the main loop, which is every 15 s here, and a second."""
_SMALL: Final = Plan(accounts=6, hours=5.0, life=1800.0, gap=240.0, resync_interval=600.0)


@dataclass(frozen=True)
class Mutant:
    name: str
    world: Plan
    """Its seed is chosen by the test."""
    planted: Callable[[], AbstractContextManager[None]]


MUTANTS: Final[list[Mutant]] = []

_patch = mock.patch.object


def _mutant(*kinds: Kind, **world: Any) -> Callable[[Callable[[], Iterator[None]]], Callable[[], Iterator[None]]]:
    def register(planted: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        name = planted.__name__.replace("_", " ")
        MUTANTS.append(Mutant(name, replace(_SMALL, kinds=kinds, **world), contextmanager(planted)))
        return planted

    return register


@dataclass(frozen=True)
class Found:
    """The discovery of a planted bug."""

    mutant: str
    promise: str
    """The broken promise that showed it; empty = it was not found."""
    account_days: float
    """Until then, in all worlds that were tried."""
    seeds: int


def find(number: int, seeds: int = 50) -> Found:
    """Plant a bug in one world after another until it is found."""
    mutant, days = MUTANTS[number], 0.0
    for seed in range(seeds):
        plan = replace(mutant.world, seed=seed)
        with mutant.planted():
            world = SimWorld(plan)
            try:
                world.run_plan()
            except Violation as broken:
                days += plan.accounts * (world.clock() - world.began) / 86400
                return Found(mutant.name, str(broken).split("s ", 1)[1].partition(":")[0], days, seed + 1)
        days += plan.accounts * plan.hours / 24
    return Found(mutant.name, "", days, seeds)


# The check-and-set write rules


@_mutant(Kind.MANUAL_ALL, replicas=3, slowest=4.0, gap=60.0)
def check_and_set_left_out() -> Iterator[None]:
    """Overwrite the present data, whatever they are."""
    write = TokenStore.write

    def blind(self: TokenStore, name: str, token: AppJWT, fields: Any, replaces: StoredSecret) -> Written:
        for number in range(replaces.version, replaces.version + 100):
            try:
                return write(self, name, token, fields, replace(replaces, version=number))
            except CasMismatchError:
                pass
        raise AssertionError

    with _patch(TokenStore, "write", blind):
        yield


@_mutant(Kind.STRANGER_AMID, Kind.STRANGER_UNMARKED, replicas=2, slowest=4.0, gap=60.0)
def check_and_set_over_a_second_read() -> Iterator[None]:
    """Take the version from another read, not from the one that was assessed."""
    write = TokenStore.write

    def late(self: TokenStore, name: str, token: AppJWT, fields: Any, replaces: StoredSecret) -> Written:
        version = self._kv.get(self._path_in_mount(name)).number
        return write(self, name, token, fields, replace(replaces, version=version))

    with _patch(TokenStore, "write", late):
        yield


@_mutant(Kind.STRANGER_AMID, gap=60.0)
def metadata_before_data() -> Iterator[None]:
    """Set the mark first, as if the path were known to be ours."""
    write = TokenStore.write

    def marked_first(self: TokenStore, name: str, token: AppJWT, fields: Any, replaces: StoredSecret) -> Written:
        patch = MetadataPatch({"managed_by": MANAGED_BY}, max_versions=5)
        self._kv.patch_metadata(self._path_in_mount(name), patch, create=True)
        return write(self, name, token, fields, replace(replaces, managed=True))

    with _patch(TokenStore, "write", marked_first):
        yield


@_mutant(Kind.MARK_WIPED, gap=120.0)
def mark_after_a_read() -> Iterator[None]:
    """Restore the mark at once on a path that reads as ours."""
    read = TokenStore.read

    def restoring(self: TokenStore, name: str) -> StoredSecret:
        stored = read(self, name)
        if stored.version and not stored.managed:
            self._mark(name)
        return stored

    with _patch(TokenStore, "read", restoring):
        yield


@_mutant(Kind.PAUSED, Kind.MARK_WIPED, Kind.METADATA_DELETED, replicas=2, slowest=4.0, gap=60.0)
def a_mark_after_a_suspension() -> Iterator[None]:
    with _patch(tokens, "_MARK_WITHIN", float("inf")):
        yield


@_mutant(Kind.STRANGER_NEW, Kind.STRANGER_UNMARKED, gap=120.0)
def an_unmanaged_secret_is_overwritten() -> Iterator[None]:
    read = TokenStore.read

    def bold(self: TokenStore, name: str) -> StoredSecret:
        try:
            return read(self, name)
        except UnmanagedSecretError:
            found = self._kv.get(self._path_in_mount(name))
            return StoredSecret(found.number, None, None, None, managed=True, deletion_time=None, now=found.now)

    with _patch(TokenStore, "read", bold):
        yield


@_mutant(Kind.STRANGER_UNMARKED, Kind.HOST_503, gap=120.0)
def the_state_is_written_to_a_strangers_path() -> Iterator[None]:
    failed_outcome = Refresher._failed_outcome  # noqa: SLF001

    def telling(self: Refresher, attempt: Attempt, error: RefreshError) -> Any:
        if isinstance(error, UnmanagedSecretError):
            self._tokens.write_status(attempt.account, {"state": "unmanaged", "last_error": "x", "failing_since": "y"})
        return failed_outcome(self, attempt, error)

    with _patch(Refresher, "_failed_outcome", telling):
        yield


@_mutant(Kind.STRANGER_AMID, Kind.HOST_503, gap=60.0)
def the_state_stays_at_a_strangers_path() -> Iterator[None]:
    """Never take back the status that was written to a new path that somebody took meanwhile."""
    with _patch(TokenStore, "clear_status", lambda *_: None):
        yield


@_mutant(Kind.MANUAL_ALL, replicas=3, slowest=4.0, gap=60.0)
def no_second_look_after_a_lost_race() -> Iterator[None]:
    """Guess the next version's number after a conflict, and do not assess the present data."""

    def guess(_: Publisher, __: str, than: StoredSecret) -> StoredSecret:
        return replace(than, version=than.version + 1)

    with _patch(Publisher, "_read_newer", guess):
        yield


@_mutant(Kind.TOKEN_DELETED)
def cas_0_after_a_soft_delete() -> Iterator[None]:
    read = TokenStore.read

    def forgetful(self: TokenStore, name: str) -> StoredSecret:
        stored = read(self, name)
        return stored if stored.raw else replace(stored, version=0)

    with _patch(TokenStore, "read", forgetful):
        yield


@_mutant(Kind.DISABLED, Kind.TOKEN_DELETED, gap=120.0)
def a_disabled_account_is_refreshed() -> Iterator[None]:
    def eager(self: AccountStore, name: str) -> Any:
        return parse(name, {**(self._get(name).data or {}), "enabled": True})

    with _patch(AccountStore, "read", eager):
        yield


# What is published, and adopted


@_mutant(Kind.ENDED, gap=120.0)
def an_expired_token_is_published() -> Iterator[None]:
    with _lenient(Check.EXP):
        yield


@_mutant(Kind.WRONG_AUD, Kind.WRONG_ISS, gap=120.0)
def an_unchecked_token_is_published() -> Iterator[None]:
    with _lenient(Check.AUD, Check.ISS):
        yield


@contextmanager
def _lenient(*passed: Check) -> Iterator[None]:
    """Let new tokens through that one of these checks refuses."""
    validate = appjwt.validate

    class Lenient:
        """A replacement for core.appjwt in obtain."""

        utc = staticmethod(appjwt.utc)

        @staticmethod
        def validate(raw: str, expected: Expected, now: Any, **known: Any) -> AppJWT:
            try:
                return validate(raw, expected, now, **known)
            except TokenRefusedError as refused:
                if refused.check in passed:
                    return appjwt._decode(raw)  # noqa: SLF001
                raise

    with _patch(obtain, "appjwt", Lenient):
        yield


@_mutant(Kind.SHORTER, gap=120.0)
def an_older_token_is_published() -> Iterator[None]:
    with _patch(plan, "replaces", lambda *_: True):
        yield


@_mutant(Kind.PLANTED_EXP)
def the_exp_field_is_trusted() -> Iterator[None]:
    """Trust the fields stored with a token, not the token itself."""
    assess = Publisher.assess

    def trusting(self: Publisher, attempt: Attempt, stored: StoredSecret, expected: Expected) -> Assessment:
        tokens: Any = self._tokens
        fields: Any = tokens._kv.get(TOKENS + attempt.account).data or {}  # noqa: SLF001
        if stored.raw and int(fields.get("exp", 0)) - stored.now.timestamp() > 365 * 86400:
            now = self._clock()
            token = appjwt.validate(stored.raw.get_secret_value(), Expected(), None)
            year = Validity(now, now + 365 * 86400)
            return Assessment(None, token, TrackedToken(token.fingerprint, year, now + 180 * 86400, now + 180 * 86400))
        return assess(self, attempt, stored, expected)

    with _patch(Publisher, "assess", trusting):
        yield


@_mutant(Kind.CROSSED, Kind.OLDER_TOKEN)
def an_invalid_token_is_adopted() -> Iterator[None]:
    """Accept a stored token of another account."""
    assess = Publisher.assess

    def lenient(self: Publisher, attempt: Attempt, stored: StoredSecret, _: Expected) -> Assessment:
        found = assess(self, attempt, stored, Expected())
        return replace(found, reason=None) if found.token and found.reason is plan.Reason.DRIFT else found

    with _patch(Publisher, "assess", lenient):
        yield


@_mutant(Kind.WRITE_NOT_DONE, Kind.DENIED_WRITE_TOKEN)
def an_obtained_token_is_lost() -> Iterator[None]:
    """Obtain a token again if it could not be written."""
    failed_outcome = Refresher._failed_outcome  # noqa: SLF001

    def forgetful(self: Refresher, attempt: Attempt, error: RefreshError) -> Any:
        self._publisher.pending.pop(attempt.account, None)
        return failed_outcome(self, attempt, error)

    with _patch(Refresher, "_failed_outcome", forgetful):
        yield


@_mutant(Kind.VAULT_429)
def a_rate_limit_loses_the_obtained_token() -> Iterator[None]:
    """Start over, without the token, if a rate limit delays a write for long."""
    refresh = Refresher._refresh  # noqa: SLF001

    def forgetful(self: Refresher, attempt: Attempt, force: Any, **others: Any) -> Any:
        try:
            return refresh(self, attempt, force, **others)
        except ThrottledError:
            self._publisher.pending.pop(attempt.account)
            raise

    with _patch(Refresher, "_refresh", forgetful):
        yield


@_mutant(Kind.EARLY_DELETION, hours=8.0)
def an_early_deletion_is_ignored() -> Iterator[None]:
    """Plan by the token's exp, though Vault deletes it before."""
    of = Validity.of

    def deaf(token: AppJWT, server_now: Any, at: float, _deletion_time: Any = None) -> Validity:
        return of(token, server_now, at)

    with _patch(Validity, "of", deaf):
        yield


@_mutant(hours=1.0)
def a_secret_is_remembered() -> Iterator[None]:
    obtained = TokenSource.obtain
    remembered: list[Any] = []

    def greedy(self: TokenSource, account: Any, *known: Any, **more: Any) -> Any:
        remembered.append(account)
        return obtained(self, account, *known, **more)

    with _patch(TokenSource, "obtain", greedy):
        yield
        remembered.clear()


# Where to ask, and with what


@_mutant(Kind.MOVED, life=3600.0, hours=10.0)
def the_host_is_never_looked_up_again() -> Iterator[None]:
    with _patch(HostResolver, "invalidate", lambda *_: None):
        yield


@_mutant(Kind.DOMAIN_EVIL, gap=120.0, domain_cache_ttl=60.0)
def the_allow_list_is_ignored() -> Iterator[None]:
    with _patch(HostResolver, "_allow", lambda _self, host, _source: str(host)):
        yield


@_mutant(Kind.SECRET_EARLY, gap=120.0, hours=8.0)
def the_previous_secret_is_never_tried() -> Iterator[None]:
    with _patch(AccountStore, "previous", lambda *_: None):
        yield


@_mutant(Kind.SECRET_EDITED, Kind.SECRET_EARLY, gap=120.0, hours=8.0)
def the_previous_secret_is_tried_alone() -> Iterator[None]:
    """Once there is an older secret, the current one is not tried any more."""
    read = AccountStore.read

    def backward(self: AccountStore, name: str) -> Any:
        account = read(self, name)
        return (isinstance(account, Account) and self.previous(account)) or account

    with _patch(AccountStore, "read", backward):
        yield


# When


@_mutant(Kind.PAUSED)
def dropped_when_late() -> Iterator[None]:
    """Drop what is late, as APScheduler does by default."""
    queue_due = AccountScheduler.queue_due

    def strict(self: AccountScheduler, now: float) -> None:
        self._due[:] = sorted(each for each in self._due if now - each[0] < _LATEST)
        queue_due(self, now)

    with _patch(AccountScheduler, "queue_due", strict):
        yield


@_mutant(hours=3.0, sync_interval=7200.0, resync_interval=7200.0)
def a_wake_is_lost() -> Iterator[None]:
    """Take a wake that has rung for one that is still armed; the main loop's pass starts nothing."""
    with (
        _patch(Daemon, "_wake", lambda self: self._dispatcher.start_due()),
        _patch(Daemon, "tick", lambda *_: None),
        _patch(Daemon, "_schedule_wake", _armed_once),
    ):
        yield


def _armed_once(self: Daemon, when: float) -> None:
    if when < self._wake_at:
        self._wake_at = when
        self._timer.at("wake", when, self._wake)


@_mutant(Kind.HOST_503, Kind.VAULT_REFUSES, gap=120.0)
def a_stale_heap_entry_hides_the_current_one() -> Iterator[None]:
    """Do not push an account that is in the heap already."""
    schedule = AccountScheduler._schedule  # noqa: SLF001

    def once(self: AccountScheduler, record: AccountRecord, due: float | None) -> None:
        if any(name == record.name for _, name in self._due):
            record.due = due
        else:
            schedule(self, record, due)

    with _patch(AccountScheduler, "_schedule", once):
        yield


@_mutant(Kind.WALL_STEPPED, Kind.REMOVED, Kind.DISABLED, gap=120.0)
def jobs_stop_when_the_clock_steps_back_a_day() -> Iterator[None]:
    with _patch(SteadyScheduler, "check_clock_jump", lambda *_: None):
        yield


@_mutant(Kind.HOST_REFUSES, Kind.HOST_503, Kind.DENIED_READ_ACCOUNT)
def retried_past_the_expiry() -> Iterator[None]:
    """Pauses that know no deadline."""
    retry = plan.next_retry

    def patient(failures: int, **known: Any) -> timedelta:
        return retry(failures + 3, **{**known, "remaining": 0.0, "kind": FailureKind.PERMANENT})

    with _patch(plan, "next_retry", patient), _patch(DependencyWaitlist, "wake", lambda *_: []):
        yield


@_mutant(Kind.VAULT_429)
def a_rate_limit_is_a_failure() -> Iterator[None]:
    def strict(_: Gate, __: str, send: Callable[[], Any]) -> Any:
        try:
            return send()
        except ThrottledError as error:
            raise RefreshError(error.stage, error.kind, str(error), status=error.status) from error

    with _patch(Gate, "call", strict):
        yield


@_mutant(Kind.VAULT_429)
def retry_after_is_waited_for_past_the_expiry() -> Iterator[None]:
    """Wait as long as any rate limit asks for, whatever the caller."""
    with _patch(gate, "_MAX_PAUSE", float("inf")), _patch(gate, "MAX_FRACTION_OF_REMAINING", float("inf")):
        yield


@_mutant(Kind.VAULT_429)
def a_closed_gate_waits_for_a_request_in_flight() -> Iterator[None]:
    """Count requests in flight at a 429 as still in flight, so that their answers make no room."""
    throttle = Gate._throttle  # noqa: SLF001

    def forgetful(self: Gate, refusal: ThrottledError) -> None:
        in_flight = self._in_flight
        throttle(self, refusal)
        self._in_flight = in_flight

    with _patch(Gate, "_throttle", forgetful):
        yield


@_mutant(Kind.VAULT_REFUSES, life=3600.0, gap=3000.0, hours=10.0)
def nobody_is_woken() -> Iterator[None]:
    with _patch(DependencyWaitlist, "wake", lambda *_: []):
        yield


@_mutant(Kind.HOST_SLOW, accounts=30, max_in_flight=2, hours=1.0)
def the_limits_are_ignored() -> Iterator[None]:
    with _patch(HostQueues, "_may_start", lambda *_: float("-inf")):
        yield


@_mutant(Kind.HOST_HANGS_FOR_SOME, accounts=100, hosts=1, gap=1200.0, sick=(0.5, 0.5), max_in_flight=2)
def those_that_time_out_may_take_every_slot() -> Iterator[None]:
    next_turn = HostQueues._next_turn  # noqa: SLF001

    def greedy(self: HostQueues, queue: Any) -> Any:
        queue.timed_out_in_flight, queue.last_turn = 0, Turn.ANSWERED
        return next_turn(self, queue)

    with _patch(HostQueues, "_next_turn", greedy):
        yield


@_mutant(
    Kind.HOST_HANGS_FOR_SOME,
    accounts=440,
    hosts=1,
    gap=1200.0,
    sick=(0.1, 0.1),
    life=3600.0,
    max_in_flight=1,
    slowest=0.004,
)
def those_that_time_out_have_all_their_time_while_others_wait() -> Iterator[None]:
    with _patch(HostQueues, "others_wait", lambda *_: False):
        yield


@_mutant(Kind.LIST_INCOMPLETE, sync_interval=30.0)
def absence_from_a_list_removes() -> Iterator[None]:
    with _patch(Refresher, "is_removed", lambda *_: True):
        yield


@_mutant(Kind.HOST_403, Kind.SECRET_WRONG)
def a_refusal_is_final() -> Iterator[None]:
    due = AccountScheduler._next_due  # noqa: SLF001

    def final(self: AccountScheduler, record: AccountRecord, outcome: Any, now: float, left: float) -> float:
        if record.state is State.FAILING and outcome.error and outcome.error.kind is FailureKind.PERMANENT:
            return float("inf")
        return due(self, record, outcome, now, left)

    with _patch(AccountScheduler, "_next_due", final), _patch(DependencyWaitlist, "wake", lambda *_: []):
        yield


@_mutant(Kind.SAME_TOKEN, gap=120.0)
def the_same_token_is_requested_again_at_once() -> Iterator[None]:
    with _patch(plan, "retry_at_half_remaining", lambda tracked, _: tracked):
        yield


@_mutant(Kind.TOKEN_DELETED, Kind.RUBBISH)
def drift_is_never_seen() -> Iterator[None]:
    with _patch(Resync, "check", lambda *_: None):
        yield


@_mutant(Kind.MANUAL_ALL)
def an_outcome_is_dropped() -> Iterator[None]:
    """Let a bug at one account end its job: it is never tried again."""
    complete = Dispatcher.complete

    def deaf(self: Dispatcher, outcome: Any) -> None:
        if not (outcome.account.endswith("3") and self._clock() > 6000.0):
            complete(self, outcome)

    with _patch(Dispatcher, "complete", deaf):
        yield
