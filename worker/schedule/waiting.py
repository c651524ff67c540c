"""Accounts that failed, by what they wait for: the first success of another wakes them."""

from collections import defaultdict
from enum import Enum, auto

from worker.core.errors import Stage
from worker.core.outcome import Outcome, Result, State


class Vault(Enum):
    """What can be waited for beside a Sentinel host, which is named, and the Domain API, which is None."""

    READ = auto()
    WRITE = auto()
    """Apart, for there are times when Vault can be read, and not be written to."""


Thing = Vault | str | None


class Waiting:
    """An account that was woken and fails for the same again is woken no more until it was tried in its own time.

    So where it is to blame itself, the others' successes make it try twice as often at most.
    """

    def __init__(self) -> None:
        self._names: defaultdict[Thing, dict[str, None]] = defaultdict(dict)
        self._waits_for: dict[str, Thing] = {}
        self._woken_for: dict[str, Thing] = {}

    def take_in(self, outcome: Outcome, host: str | None, *, host_was_unknown: bool) -> list[str]:
        """Take in what became of an account; who is to be tried now, for what they waited for works.

        :param host: the account's Sentinel host, as known by now.
        """
        name = outcome.account
        self.leave(name)
        woken, woken_for = name in self._woken_for, self._woken_for.pop(name, None)
        if outcome.error and outcome.state is State.FAILING:
            waits_for = _waits_for(outcome, outcome.error.stage, host)
            if not (woken and woken_for == waits_for):
                self._names[waits_for][name] = None
                self._waits_for[name] = waits_for
        return [each for thing in _seen_to_work(outcome, host, host_was_unknown) for each in self.wake(thing)]

    def leave(self, name: str) -> None:
        """It waits no longer, for it is tried: what comes to work meanwhile does not count as woken for."""
        if name in self._waits_for:
            del self._names[self._waits_for.pop(name)][name]

    def wake(self, thing: Thing) -> list[str]:
        """Who waited for it, in order; they do no longer."""
        names = self._names.pop(thing, {})
        for name in names:
            self._woken_for[name] = self._waits_for.pop(name)
        return list(names)

    def forget(self, name: str) -> None:
        """The account is gone."""
        self._woken_for.pop(name, None)
        self.leave(name)


def _waits_for(outcome: Outcome, stage: Stage, host: str | None) -> Thing:
    match stage:
        case Stage.VAULT | Stage.CREDENTIALS:
            return Vault.WRITE if outcome.is_unwritten else Vault.READ
        case Stage.DOMAIN:
            return None
        case _:
            return host


def _seen_to_work(outcome: Outcome, host: str | None, host_was_unknown: bool) -> list[Thing]:  # noqa: FBT001 - as above
    failed_at = outcome.error.stage if outcome.error and outcome.state is State.FAILING else None
    works: list[Thing] = []
    if failed_at not in (Stage.VAULT, Stage.CREDENTIALS):
        works.append(Vault.READ)
        if host_was_unknown and host and failed_at is not Stage.DOMAIN:
            works.append(None)
    if outcome.result in (Result.REFRESHED, Result.UNCHANGED):
        works.append(host)
    if outcome.result is Result.REFRESHED:
        works.append(Vault.WRITE)
    return works
