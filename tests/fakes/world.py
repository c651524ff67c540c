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
from tests.fakes.vault import ACCOUNTS, TOKENS, FakeVault
from worker.core import appjwt
from worker.core.appjwt import AppJWT, Expected
from worker.core.outcome import Outcome, Transition
from worker.core.plan import RefreshPolicy
from worker.daemon import Daemon, Timer
from worker.liveperson.hosts import HostResolver
from worker.obtain import Hosts, Sentinel, TokenSource
from worker.refresh import Refresher
from worker.schedule.accounts import AccountScheduler
from worker.vault.tokens import MANAGED_BY


class FakeTimer:
    """A SteadyScheduler for a test that moves the clock."""

    def __init__(self) -> None:
        self.due: dict[str, float] = {}
        self.diverged = False
        self._callbacks: dict[str, Callable[[], None]] = {}

    def at(self, name: str, when: float, callback: Callable[[], None]) -> None:
        self.due[name], self._callbacks[name] = when, callback

    def check_clock_jump(self) -> bool:
        """Return True once after a test has set `diverged`."""
        diverged, self.diverged = self.diverged, False
        return diverged

    def next(self) -> float:
        return min(self.due.values(), default=float("inf"))

    def run_due(self, now: float) -> None:
        """Run the jobs whose moment has come, earliest first."""
        for name in sorted((name for name, when in self.due.items() if when <= now), key=lambda name: self.due[name]):
            del self.due[name]
            self._callbacks[name]()


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
        sync_interval: timedelta,
        resync_interval: timedelta,
        max_in_flight: int,
        max_per_second: float,
        timer: Timer | None = None,
        pool: Executor | None = None,
        jitter: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """:param timer, pool: passed together by a test that moves them; `work` is for the default ones."""
        self.clock = world.clock
        if timer is None or pool is None:
            timer, pool = self.timer, self.pool = FakeTimer(), OneThread()
        self.outcomes: list[Outcome] = []
        self.transition: dict[str, Transition] = {}
        self.log_in: Callable[[], float] = lambda: float("inf")
        self.report: Callable[[Outcome, Transition], None] = self._note
        self.scheduler = world.scheduler(
            name,
            max_in_flight=max_in_flight,
            max_per_second=max_per_second,
            recheck_after=sync_interval.total_seconds(),
            jitter=jitter,
        )
        self.refresher = world.refresher(name)
        self.daemon = Daemon(
            accounts=world.vault.accounts,
            refresher=self.refresher,
            scheduler=self.scheduler,
            timer=timer,
            pool=pool,
            clock=world.clock,
            keep_login_alive=lambda: self.log_in(),  # noqa: PLW0108 - a test may set another one
            report=lambda outcome, transition: self.report(outcome, transition),  # noqa: PLW0108 - the same
            sync_interval=sync_interval.total_seconds(),
            resync_interval=resync_interval.total_seconds(),
        )
        self.refresher.clocks.on_skew = self.daemon.on_vault_skewed
        self.daemon.start()

    def work(self) -> None:
        """Do all that is due now."""
        self.timer.run_due(self.clock())
        self.pool.run()

    def outcomes_of(self, account: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.account == account]

    def _note(self, outcome: Outcome, transition: Transition) -> None:
        self.outcomes.append(outcome)
        self.transition[outcome.account] = transition


class World:
    """One Vault, one LivePerson, one clock, and the replicas that were started."""

    def __init__(self, *, token_life: timedelta = HOUR) -> None:
        self.clock = Clock()
        self.domain_cache_ttl = timedelta(hours=12)
        self.vault = FakeVault(self.clock)
        self.liveperson = FakeLivePerson(self.clock, token_life=token_life)
        self.replicas: list[Replica] = []

    def add_account(self, name: str = builders.ACCOUNT, region: str = "va", **fields: object) -> Credentials:
        """Add an account known to LivePerson, and its secret where the worker looks for it."""
        account_id = fields.get("account_id", name.partition("/")[0])
        credentials = self.liveperson.add_account(str(account_id), region)
        self.vault.kv.put(ACCOUNTS + name, {**asdict(credentials), **fields})
        return credentials

    def hosts(self) -> Hosts:
        """Return a resolver with a new cache."""
        return HostResolver(
            self.liveperson,
            cache_ttl=self.domain_cache_ttl,
            allowed_hosts=tuple(self.liveperson.hosts.values()),
            clock=self.clock,
        )

    def sentinel(self) -> Sentinel:
        return self.liveperson

    def scheduler(self, replica: str, **limits: Any) -> AccountScheduler:
        return AccountScheduler(**limits, phase=RefreshPolicy(0.5, 0.05, replica).phase)

    def refresher(self, replica: str = "a") -> Refresher:
        policy = RefreshPolicy(fraction=0.5, jitter=0.05, replica=replica)
        source = TokenSource(
            hosts=self.hosts(),
            sentinel=self.sentinel(),
            keys=None,
            secrets=self.vault.accounts,
            policy=policy,
            timeout=timedelta(seconds=10),
            clock=self.clock,
        )
        return Refresher(
            accounts=self.vault.accounts,
            tokens=self.vault.tokens,
            source=source,
            policy=policy,
            clock=self.clock,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        self.clock.advance(timedelta(seconds=seconds))

    def start(
        self,
        name: str = "a",
        *,
        sync_interval: timedelta = MINUTE,
        resync_interval: timedelta = DAY,
        max_in_flight: int = 8,
        max_per_second: float = 20.0,
    ) -> Replica:
        replica = Replica(
            self,
            name,
            sync_interval=sync_interval,
            resync_interval=resync_interval,
            max_in_flight=max_in_flight,
            max_per_second=max_per_second,
        )
        self.replicas.append(replica)
        return replica

    def crash(self, replica: Replica) -> None:
        """Remove the replica, with all its state."""
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
        """Return the newest data at the token's path; empty if there is none."""
        return self.vault.kv.get(TOKENS + name).data or {}

    def version(self, name: str = builders.ACCOUNT) -> int:
        return self.vault.kv.get(TOKENS + name).number

    def token(self, name: str = builders.ACCOUNT) -> AppJWT:
        """Return the token that a reader finds."""
        raw: str = self.data(name)["access_token"]
        return appjwt.validate(raw, Expected(), None)

    def store(self, raw: str, name: str = builders.ACCOUNT, **fields: object) -> None:
        """Put a token there by hand, with our mark and nothing of its claims."""
        self.vault.kv.put(TOKENS + name, {"access_token": raw, "managed_by": MANAGED_BY, **fields})
