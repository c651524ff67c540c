"""Accounts that failed, by the dependency they wait for: the first success of another account wakes them."""

from collections import defaultdict
from enum import Enum, auto

from worker.core.errors import Kind, Stage
from worker.core.outcome import Outcome, Result, State


class Vault(Enum):
    """Vault as a dependency. Of the others, a Sentinel host is represented by its name, the Domain API by None."""

    READ = auto()
    WRITE = auto()
    """Apart from READ: there are times when Vault can be read and not be written to."""


Dependency = Vault | str | None


class DependencyWaitlist:
    """Failed accounts, by the dependency they wait for.

    An account that is woken and fails for the same dependency again is not woken again before an attempt at its due
    time; one that Vault let down once more is, by the next account that recovers or sync, but only once. So an account
    that is itself to blame is tried at most three times as often because of others' successes. They prove nothing for
    an account that never had a token and that LivePerson refuses: it is not woken until it fails again.
    """

    def __init__(self) -> None:
        self._names: defaultdict[Dependency, dict[str, None]] = defaultdict(dict)
        self._waits_for: dict[str, Dependency] = {}
        self._woken_for: dict[str, Dependency] = {}
        self._tried_for: dict[str, Dependency] = {}
        """Dependency that each running account waited for."""
        self._failed_after_wake: dict[Vault, dict[str, None]] = {each: {} for each in Vault}
        """Accounts that failed because Vault was down again after waking them, by the use of Vault they wait for."""
        self._rewoken: set[str] = set()
        """Accounts that an account that recovered woke again."""
        self._failed_after_rewake: dict[str, Vault] = {}
        """Of those, the ones that failed once more: only a sync, or their due time, lets them run."""

    def record(self, outcome: Outcome, host: str | None, *, host_was_unknown: bool, is_new: bool) -> list[str]:
        """Record an outcome, and return the accounts whose dependency it proved to be available.

        :param host: the account's Sentinel host, as known by now.
        :param is_new: this was the first attempt, at an account without a token.
        """
        name = outcome.account
        self.discard(name)
        woken, woken_for = name in self._woken_for, self._woken_for.pop(name, None)
        tried_for = self._tried_for.pop(name, woken_for)
        was_rewoken = name in self._rewoken
        self._rewoken.discard(name)
        error = outcome.error
        if error and error.stage is Stage.CREDENTIALS and error.retry_after:
            error = None  # a first 404, answered by Vault: woken early, it would be read too soon for the second
        if error and outcome.state is State.FAILING:
            waits_for = _waits_for(outcome, error.stage, host)
            refused = is_new and error.kind is Kind.PERMANENT and not isinstance(waits_for, Vault)
            failed_again = woken and woken_for == waits_for
            if failed_again and isinstance(waits_for, Vault) and error.kind is Kind.TRANSIENT:
                if was_rewoken:
                    self._failed_after_rewake[name] = waits_for
                else:
                    self._failed_after_wake[waits_for][name] = None
            if not refused and not failed_again:
                self._names[waits_for][name] = None
                self._waits_for[name] = waits_for
        proven = _proven_available(outcome, host, host_was_unknown)
        # not at each success, or an account that is itself to blame would be retried without a pause
        recovers = isinstance(tried_for, Vault) and tried_for in proven
        rewoken = [each for use in proven if isinstance(use, Vault) for each in self._rewake(use)] if recovers else []
        return [each for dependency in proven for each in self.wake(dependency)] + rewoken

    def discard(self, name: str) -> None:
        """Stop waiting, since the account is being tried: what becomes available meanwhile does not count as a wake."""
        if name in self._failed_after_rewake:
            self._tried_for[name] = self._failed_after_rewake.pop(name)
        for use, names in self._failed_after_wake.items():
            if name in names:
                del names[name]
                self._tried_for[name] = use
        if name in self._waits_for:
            dependency = self._tried_for[name] = self._waits_for.pop(name)
            del self._names[dependency][name]
            if not self._names[dependency]:
                del self._names[dependency]

    def wake(self, dependency: Dependency) -> list[str]:
        """Remove and return the accounts waiting for this dependency, in order."""
        names = self._names.pop(dependency, {})
        for name in names:
            self._woken_for[name] = self._waits_for.pop(name)
        return list(names)

    def waiting(self, outcome: Outcome, host: str | None) -> int:
        """Return how many accounts wait for a failed attempt's dependency; `host` is its account's Sentinel host."""
        return len(self._names.get(_waits_for(outcome, outcome.error.stage, host), ())) if outcome.error else 0

    def first(self, dependency: Dependency) -> str | None:
        """Return the account that has waited longest for this dependency; None = none waits."""
        return next(iter(self._names.get(dependency, ())), None)

    def wake_failed(self) -> list[str]:
        """Remove and return the accounts that failed because Vault was down again after waking them."""
        names = [*self._failed_after_rewake, *(name for names in self._failed_after_wake.values() for name in names)]
        self._failed_after_rewake.clear()
        for waiting in self._failed_after_wake.values():
            waiting.clear()
        return names

    def _rewake(self, use: Vault) -> list[str]:
        names, self._failed_after_wake[use] = self._failed_after_wake[use], {}
        self._rewoken.update(names)
        self._woken_for.update(dict.fromkeys(names, use))
        return list(names)

    def forget(self, name: str) -> None:
        """Remove all traces of a removed account."""
        self._woken_for.pop(name, None)
        self._rewoken.discard(name)
        self.discard(name)
        self._tried_for.pop(name, None)


def _waits_for(outcome: Outcome, stage: Stage, host: str | None) -> Dependency:
    match stage:
        case Stage.VAULT | Stage.CREDENTIALS:
            return Vault.WRITE if outcome.write_failed else Vault.READ
        case Stage.DOMAIN:
            return None
        case _:
            return host


def _proven_available(
    outcome: Outcome,
    host: str | None,
    host_was_unknown: bool,  # noqa: FBT001 - as above
) -> list[Dependency]:
    failed_at = outcome.error.stage if outcome.error and outcome.state is State.FAILING else None
    proven: list[Dependency] = []
    if failed_at not in (Stage.VAULT, Stage.CREDENTIALS):
        proven.append(Vault.READ)
        if host_was_unknown and host and failed_at is not Stage.DOMAIN:
            proven.append(None)
    if outcome.result in (Result.REFRESHED, Result.UNCHANGED):
        proven.append(host)
    if outcome.result is Result.REFRESHED:
        proven.append(Vault.WRITE)
    return proven
