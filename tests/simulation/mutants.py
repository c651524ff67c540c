"""Planted bugs: each takes something away from the worker, and names a world in which that matters.

They show that the oracle would see such a bug; what they patch is the worker's own, and put back afterwards.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final
from unittest import mock

from tests.fakes.vault import FakeTokens, FakeVault
from tests.simulation.faults import Kind
from tests.simulation.worlds import Plan
from worker import mint
from worker.core import appjwt, plan
from worker.core.appjwt import AppJWT, Check, Expected, TokenRefusedError
from worker.core.entry import Entry
from worker.core.errors import CasMismatchError, ForeignSecretError
from worker.core.errors import Kind as Lasts
from worker.core.outcome import State
from worker.core.plan import Held, Life, Standing
from worker.core.unchecked import Stored
from worker.daemon import Daemon
from worker.mint import Mint
from worker.refresh import Refresher
from worker.schedule.dispatch import Dispatcher
from worker.schedule.fleet import Fleet
from worker.schedule.waiting import Waiting

_SMALL: Final = Plan(accounts=6, hours=5.0, life=1800.0, gap=240.0, sweep_every=600.0)


@dataclass(frozen=True)
class Mutant:
    name: str
    world: Plan
    """Its seed is chosen by the test."""
    planted: Callable[[], AbstractContextManager[None]]


MUTANTS: Final[list[Mutant]] = []

_instead = mock.patch.object


def _mutant(*kinds: Kind, **world: Any) -> Callable[[Callable[[], Iterator[None]]], Callable[[], Iterator[None]]]:
    def register(planted: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        name = planted.__name__.replace("_", " ")
        MUTANTS.append(Mutant(name, replace(_SMALL, kinds=kinds, **world), contextmanager(planted)))
        return planted

    return register


@_mutant(Kind.MANUAL_ALL, replicas=3, slowest=4.0, gap=60.0)
def no_check_and_set() -> Iterator[None]:
    """Whatever is there by now is written over."""
    write = FakeTokens.write

    def blind(self: FakeTokens, name: str, token: AppJWT, beside: Any, replaces: Stored) -> int:
        newest = _vault(self).kv.metadata(self.FOLDER + name)
        current = newest.versions[-1] if newest and newest.versions else 0
        while True:
            try:
                return write(self, name, token, beside, replace(replaces, version=current))
            except CasMismatchError:
                current += 1

    with _instead(FakeTokens, "write", blind):
        yield


@_mutant(Kind.MANUAL_ALL, replicas=3, slowest=4.0, gap=60.0)
def no_second_look_after_a_lost_race() -> Iterator[None]:
    """The next version's number is guessed instead."""
    write = FakeTokens.write

    def again(self: FakeTokens, name: str, token: AppJWT, beside: Any, replaces: Stored) -> int:
        for number in range(replaces.version, replaces.version + 10):
            try:
                return write(self, name, token, beside, replace(replaces, version=number))
            except CasMismatchError:
                pass
        raise AssertionError

    with _instead(FakeTokens, "write", again):
        yield


@_mutant(Kind.TOKEN_DELETED)
def cas_0_after_a_soft_delete() -> Iterator[None]:
    read = FakeTokens.read

    def forgetful(self: FakeTokens, name: str) -> Stored:
        stored = read(self, name)
        return stored if stored.raw else replace(stored, version=0)

    with _instead(FakeTokens, "read", forgetful):
        yield


@_mutant(Kind.PAUSED)
def dropped_when_late() -> Iterator[None]:
    """As APScheduler does it by default."""
    ring = Daemon.ring

    def strict(self: Daemon, name: str) -> None:
        entry = self._dispatcher.fleet._entries.get(name)  # noqa: SLF001 - a mutant is inside
        if entry is None or entry.due is None or self._clock() - entry.due < 1.0:
            ring(self, name)

    with _instead(Daemon, "ring", strict), _instead(Fleet, "overdue", lambda *_: []):
        yield


@_mutant(Kind.HOST_REFUSES, Kind.HOST_503, Kind.DENIED_READ_ACCOUNT)
def retried_past_the_end() -> Iterator[None]:
    """Pauses that know no deadline."""
    retry = plan.next_retry

    def patient(failures: int, **known: Any) -> timedelta:
        return retry(failures + 3, **{**known, "life_left": 0.0, "kind": Lasts.LASTING})

    with _instead(plan, "next_retry", patient), _instead(Waiting, "wake", lambda *_: []):
        yield


@_mutant(Kind.PLANTED_EXP)
def trusts_the_exp_field() -> Iterator[None]:
    """What is told beside a token, not what it says itself."""
    judged = Refresher._judged  # noqa: SLF001

    def trusting(self: Refresher, attempt: Any, stored: Stored, expected: Expected) -> Standing:
        tokens: Any = self._tokens
        newest = _vault(tokens).kv.read(FakeTokens.FOLDER + attempt.account)
        told: Mapping[str, Any] = (newest and newest.data) or {}
        if stored.raw and int(told.get("exp", 0)) - stored.now.timestamp() > 365 * 86400:
            now = self._clock()
            token = appjwt.check(stored.raw.get_secret_value(), Expected(), None)
            return Standing(None, token, Held(token.fingerprint, Life(now, now + 365 * 86400), now + 180 * 86400))
        return judged(self, attempt, stored, expected)

    with _instead(Refresher, "_judged", trusting):
        yield


@_mutant(Kind.VAULT_REFUSES, life=3600.0, gap=3000.0, hours=10.0)
def nobody_is_woken() -> Iterator[None]:
    with _instead(Waiting, "wake", lambda *_: []):
        yield


@_mutant(Kind.HOST_SLOW, accounts=30, max_in_flight=2, hours=1.0)
def the_caps_are_ignored() -> Iterator[None]:
    with _instead(Fleet, "_may_start", lambda *_: float("-inf")):
        yield


@_mutant(Kind.CROSSED, Kind.OLDER_TOKEN)
def adopts_what_is_unsound() -> Iterator[None]:
    """A stored token need not be this account's."""
    judged = Refresher._judged  # noqa: SLF001

    def lenient(self: Refresher, attempt: Any, stored: Stored, _expected: Expected) -> Standing:
        standing = judged(self, attempt, stored, Expected())
        return replace(standing, reason=None) if standing.token and standing.reason is plan.Reason.DRIFT else standing

    with _instead(Refresher, "_judged", lenient):
        yield


@_mutant(Kind.WRONG_AUD, Kind.WRONG_ISS, Kind.ENDED, gap=120.0)
def publishes_what_it_did_not_check() -> Iterator[None]:
    check = appjwt.check

    class Lenient:
        """What mint has of core.appjwt."""

        utc = staticmethod(appjwt.utc)

        @staticmethod
        def check(raw: str, expected: Expected, now: Any) -> AppJWT:
            try:
                return check(raw, expected, now)
            except TokenRefusedError as refused:
                if refused.check in (Check.AUD, Check.ISS):
                    return appjwt._decode(raw)  # noqa: SLF001
                raise

    with _instead(mint, "appjwt", Lenient):
        yield


@_mutant(Kind.WRITE_NOT_DONE, Kind.DENIED_WRITE_TOKEN)
def loses_the_unwritten_token() -> Iterator[None]:
    ended = Refresher._ended  # noqa: SLF001

    def forgetful(self: Refresher, attempt: Any, error: Any) -> Any:
        self._unwritten.pop(attempt.account, None)
        return ended(self, attempt, error)

    with _instead(Refresher, "_ended", forgetful):
        yield


@_mutant(Kind.SHORTER, gap=120.0)
def goes_backwards() -> Iterator[None]:
    with _instead(plan, "replaces", lambda *_: True):
        yield


@_mutant(Kind.FOREIGN, gap=120.0)
def writes_over_a_foreign_secret() -> Iterator[None]:
    read = FakeTokens.read

    def bold(self: FakeTokens, name: str) -> Stored:
        try:
            return read(self, name)
        except ForeignSecretError:
            vault = _vault(self)
            newest = vault.kv.read(self.FOLDER + name)
            assert newest
            return Stored(newest.version, None, None, None, False, timedelta(), vault.now())

    with _instead(FakeTokens, "read", bold):
        yield


@_mutant(Kind.LIST_INCOMPLETE, sync_every=30.0)
def removes_whom_a_list_leaves_out() -> Iterator[None]:
    with _instead(Refresher, "is_gone", lambda *_: True):
        yield


@_mutant(Kind.HOST_403, Kind.SECRET_WRONG)
def gives_up_after_a_refusal() -> Iterator[None]:
    due = Fleet._due  # noqa: SLF001

    def final(self: Fleet, entry: Entry, outcome: Any, now: float, left: float) -> float:
        if entry.state is State.FAILING and outcome.error.kind is Lasts.LASTING:
            return float("inf")
        return due(self, entry, outcome, now, left)

    with _instead(Fleet, "_due", final), _instead(Waiting, "wake", lambda *_: []):
        yield


@_mutant(Kind.SAME_TOKEN, gap=120.0)
def asks_again_at_once_for_the_same_token() -> Iterator[None]:
    with _instead(plan, "half_of_what_is_left", lambda held, _: held):
        yield


@_mutant(hours=1.0)
def remembers_a_secret() -> Iterator[None]:
    minted = Mint.mint
    kept: list[Any] = []

    def greedy(self: Mint, account: Any, *known: Any) -> Any:
        kept.append(account)
        return minted(self, account, *known)

    with _instead(Mint, "mint", greedy):
        yield
        kept.clear()


@_mutant(Kind.MANUAL_ALL)
def a_bug_at_one_account_ends_its_job() -> Iterator[None]:
    """It is never settled, and never tried again."""
    settle = Dispatcher.settle

    def deaf(self: Dispatcher, outcome: Any) -> None:
        if not (outcome.account.endswith("3") and self._clock() > 6000.0):
            settle(self, outcome)

    with _instead(Dispatcher, "settle", deaf):
        yield


def _vault(part: FakeTokens) -> FakeVault:
    return part._vault  # noqa: SLF001
