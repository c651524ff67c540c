"""A Vault, a LivePerson and any number of daemons on one clock, which moves from one due time to the next."""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sandbox.liveperson import Credentials
from tests import builders
from tests.fakes.clock import DAY, HOUR, MINUTE, Clock
from tests.fakes.liveperson import FakeLivePerson
from tests.fakes.vault import MANAGED_BY, FakeAccounts, FakeTokens, FakeVault
from worker.core import appjwt
from worker.core.appjwt import AppJWT, Expected
from worker.core.outcome import Next, Outcome
from worker.core.plan import Timing
from worker.daemon import Daemon
from worker.mint import Domains, Mint, Sentinel
from worker.refresh import Refresher
from worker.schedule.fleet import Fleet
from worker.schedule.sweep import Timer


class FakeTimer:
    """What APScheduler and Clockwork do, for whoever moves the clock."""

    def __init__(self) -> None:
        self.due: dict[str, float] = {}

    def at(self, name: str, when: float) -> None:
        self.due[name] = when

    def drop(self, name: str) -> None:
        self.due.pop(name, None)

    def next(self) -> float:
        return min(self.due.values(), default=float("inf"))

    def take(self, now: float) -> list[str]:
        """The names whose moment has come, earliest first; they are no longer waited for."""
        names = sorted((name for name, when in self.due.items() if when <= now), key=lambda name: self.due[name])
        for name in names:
            del self.due[name]
        return names


class OneThread(Executor):
    """A pool of one thread, which is the test's own: what was submitted is done, in order, when `run` is called."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - as the standard library's pools do
                future.set_exception(error)

        self._waiting.append(work)
        return future

    def run(self) -> None:
        while self._waiting:
            self._waiting.popleft()()


class Replica:
    """One daemon, as wiring would build it."""

    timer: FakeTimer
    pool: OneThread

    def __init__(
        self,
        world: "World",
        name: str,
        *,
        sync_every: timedelta,
        sweep_every: timedelta,
        max_in_flight: int,
        max_per_second: float,
        timer: Timer | None = None,
        pool: Executor | None = None,
        jitter: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """:param timer, pool: whoever brings others moves them, too; `work` is for our own."""
        self.clock = world.clock
        if timer is None or pool is None:
            timer, pool = self.timer, self.pool = FakeTimer(), OneThread()
        self.outcomes: list[Outcome] = []
        self.following: dict[str, Next] = {}
        self.log_in: Callable[[], float] = lambda: float("inf")
        self.report: Callable[[Outcome, Next], None] = self._note
        self.fleet = world.fleet(
            name,
            max_in_flight=max_in_flight,
            max_per_second=max_per_second,
            recheck_after=sync_every.total_seconds(),
            jitter=jitter,
        )
        self.refresher = world.refresher(name)
        self.daemon = Daemon(
            accounts=world.vault.accounts,
            refresher=self.refresher,
            fleet=self.fleet,
            timer=timer,
            pool=pool,
            clock=world.clock,
            keep_login_alive=lambda: self.log_in(),  # noqa: PLW0108 - a test may set another one
            report=lambda outcome, following: self.report(outcome, following),  # noqa: PLW0108 - the same
            sync_every=sync_every.total_seconds(),
            sweep_every=sweep_every.total_seconds(),
        )
        self.daemon.begin()

    def work(self) -> None:
        """Do all that is due now."""
        for name in self.timer.take(self.clock()):
            self.daemon.ring(name)
        self.pool.run()

    def outcomes_of(self, account: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.account == account]

    def _note(self, outcome: Outcome, following: Next) -> None:
        self.outcomes.append(outcome)
        self.following[outcome.account] = following


class World:
    """One Vault, one LivePerson, one clock, and the replicas that were started."""

    def __init__(self, *, token_life: timedelta = HOUR) -> None:
        self.clock = Clock()
        self.vault = FakeVault(self.clock)
        self.liveperson = FakeLivePerson(self.clock, token_life=token_life)
        self.replicas: list[Replica] = []

    def add_account(self, name: str = builders.ACCOUNT, region: str = "va", **fields: object) -> Credentials:
        """An account known to LivePerson, and its secret where the worker looks for it."""
        account_id = fields.get("account_id", name.partition("/")[0])
        credentials = self.liveperson.add_account(str(account_id), region)
        self.vault.kv.put(FakeAccounts.FOLDER + name, {**asdict(credentials), **fields})
        return credentials

    def domains(self) -> Domains:
        return self.liveperson

    def sentinel(self) -> Sentinel:
        return self.liveperson

    def fleet(self, replica: str, **caps: Any) -> Fleet:
        return Fleet(**caps, phase=Timing(0.5, 0.05, replica).phase)

    def refresher(self, replica: str = "a") -> Refresher:
        timing = Timing(at=0.5, spread=0.05, replica=replica)
        mint = Mint(
            domains=self.domains(),
            sentinel=self.sentinel(),
            keys=None,
            secrets=self.vault.accounts,
            timing=timing,
            timeout=timedelta(seconds=10),
            clock=self.clock,
        )
        return Refresher(
            accounts=self.vault.accounts,
            tokens=self.vault.tokens,
            mint=mint,
            timing=timing,
            clock=self.clock,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        self.clock.advance(timedelta(seconds=seconds))

    def start(
        self,
        name: str = "a",
        *,
        sync_every: timedelta = MINUTE,
        sweep_every: timedelta = DAY,
        max_in_flight: int = 8,
        max_per_second: float = 20.0,
    ) -> Replica:
        replica = Replica(
            self,
            name,
            sync_every=sync_every,
            sweep_every=sweep_every,
            max_in_flight=max_in_flight,
            max_per_second=max_per_second,
        )
        self.replicas.append(replica)
        return replica

    def crash(self, replica: Replica) -> None:
        """It is gone, and what it knew with it."""
        self.replicas.remove(replica)

    def run(self, duration: timedelta) -> None:
        """Let time pass, and everybody do what is due in it."""
        end = self.clock() + duration.total_seconds()
        while (due := min((replica.timer.next() for replica in self.replicas), default=float("inf"))) <= end:
            self.clock.advance_to(due)
            for replica in list(self.replicas):
                replica.work()
        self.clock.advance_to(end)

    # What readers see

    def data(self, name: str = builders.ACCOUNT) -> Mapping[str, Any]:
        """The newest data at the token's path; empty if there is none."""
        newest = self.vault.kv.read(FakeTokens.FOLDER + name)
        return (newest and newest.data) or {}

    def version(self, name: str = builders.ACCOUNT) -> int:
        newest = self.vault.kv.read(FakeTokens.FOLDER + name)
        return newest.version if newest else 0

    def token(self, name: str = builders.ACCOUNT) -> AppJWT:
        """The token that a reader finds."""
        raw: str = self.data(name)["access_token"]
        return appjwt.check(raw, Expected(), None)

    def store(self, raw: str, name: str = builders.ACCOUNT, **beside: object) -> None:
        """Put a token there by hand, with our mark and nothing of its claims."""
        self.vault.kv.put(FakeTokens.FOLDER + name, {"access_token": raw, "managed_by": MANAGED_BY, **beside})
