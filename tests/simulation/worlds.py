"""A world on the virtual clock, from one seed: Vault, LivePerson, one to three daemons, who refreshes by hand."""

import functools
import gc
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any, Final, cast

import structlog
from greenlet import getcurrent

from sandbox.liveperson import Credentials
from tests.fakes.liveperson import FakeLivePerson
from tests.fakes.vault import ACCOUNTS, TOKENS, KvEngine
from tests.fakes.world import Replica, World
from tests.simulation.faults import SPECS, Episode, Kind, Trouble
from tests.simulation.hub import Condition, GreenPool, Hub, Process, WallScheduler
from tests.simulation.oracle import BY_HAND, Oracle, Recovery, Truth, Window
from tests.simulation.ownership import MANAGED_BY
from worker.core import appjwt
from worker.core.account import Absence, Account
from worker.core.outcome import Outcome, Transition
from worker.core.unchecked import TokenResponse
from worker.manual import ManualRefresh
from worker.obtain import Sentinel
from worker.refresh import ForceRefresh, Refresher
from worker.schedule.timer import SteadyScheduler
from worker.vault.gate import Gate
from worker.vault.kv import SecretVersion

HOUR: Final = 3600.0
VAULT_TIMEOUT: Final = 10.0
_QUICKEST = 0.002
_TICK = 15.0
"""Seconds between two passes of the main loop; one in place of fifteen, for the sake of speed."""
_SEEN_LATE = 0.25
"""Share of calls whose answer takes as long again; other callers continue at once."""


@dataclass(frozen=True)
class Plan:
    """The parameters of a world."""

    seed: int = 0
    replicas: int = 1
    accounts: int = 10
    hosts: int = 2
    life: float = HOUR
    hours: float = 8.0
    sync_interval: float = 60.0
    resync_interval: float = 300.0
    max_in_flight: int = 8
    max_per_second: float = 20.0
    domain_cache_ttl: float = 12 * HOUR
    slowest: float = 0.04
    """Seconds that a call takes until it takes effect, at most."""
    sick: tuple[float, float] = (0.1, 0.9)
    """Share of a host's accounts, at least and at most, where it never answers for some."""
    kinds: tuple[Kind, ...] = ()
    """Faults that occur in it."""
    gap: float = 600.0
    """Seconds between two of them, on the average."""

    @classmethod
    def of(cls, seed: int) -> "Plan":
        """Return a small world with much trouble."""
        random = Random(seed)
        life = random.choice((0.5, 1, 1, 4, 4, 4)) * HOUR
        return cls(
            seed=seed,
            replicas=random.choice((1, 1, 1, 2, 2, 3)),
            accounts=random.randint(20, 50),
            hosts=random.randint(1, 3),
            life=life,
            hours=random.uniform(8, 14) * max(1.0, life / HOUR / 2),
            sync_interval=random.choice((60.0, 120.0, 300.0, 300.0)),
            resync_interval=random.choice((600.0, 1800.0, 1800.0)),
            domain_cache_ttl=random.choice((60.0, 600.0, 12 * HOUR)),
            kinds=tuple(dict.fromkeys((Kind.CRASH, *_turn(_WIDE, seed, 2), *_turn(_NARROW, seed, 7)))),
            gap=random.choice((60.0, 90.0, 120.0)),
        )


_WIDE, _NARROW = ([kind for kind, spec in SPECS.items() if spec.is_wide is wide] for wide in (True, False))


def _turn(kinds: list[Kind], seed: int, number: int) -> list[Kind]:
    """Return so many of them; over a row of seeds each has its turn as often, in ever other company."""
    turn, place = divmod(seed * number, len(kinds))
    mixed = Random(turn).sample(kinds, len(kinds)) + Random(turn + 1).sample(kinds, len(kinds))
    return list(dict.fromkeys(mixed[place : place + number]))


@dataclass
class Report:
    """The result of a world. It is passed between processes."""

    seed: int
    account_days: float = 0.0
    met: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    exceptions: Counter[str] = field(default_factory=Counter)
    """Cases that check-and-set cannot see."""
    mints: int = 0
    writes: int = 0
    digest: str = ""

    def __add__(self, other: "Report") -> "Report":
        return Report(
            seed=min(self.seed, other.seed),
            account_days=self.account_days + other.account_days,
            met=self.met + other.met,
            crashes=self.crashes + other.crashes,
            violations=[*self.violations, *other.violations],
            exceptions=self.exceptions + other.exceptions,
            mints=self.mints + other.mints,
            writes=self.writes + other.writes,
        )


class _Kv(KvEngine):
    """A KV engine that reports changes at a token's path to the oracle."""

    def __init__(self, world: "SimWorld") -> None:
        super().__init__(world.vault.now, world.clock.now)
        self._world = world

    def put(self, path: str, data: Mapping[str, object], cas: int | None = None) -> int:
        version = super().put(path, data, cas)
        if path.startswith(TOKENS):
            world, name = self._world, path.removeprefix(TOKENS)
            process = world.hub.process
            world.oracle.written(process, name, cas, data, version)
            if process:
                world.trouble.rewritten(name)
        return version

    def set_metadata(self, path: str, **settings: Any) -> None:
        super().set_metadata(path, **settings)
        if path.startswith(TOKENS):
            owner = self._world.oracle.owners[path.removeprefix(TOKENS)]
            changed = settings.get("custom_metadata") or {}
            owner.metadata_written(self._world.hub.process, changed, self._world.clock())

    def delete(self, path: str) -> None:
        super().delete(path)
        self._gone(path)

    def undelete(self, path: str) -> None:
        super().undelete(path)
        if path.startswith(TOKENS):
            self._world.oracle.back(path.removeprefix(TOKENS), self.get(path).data or {})

    def destroy(self, path: str) -> None:
        super().destroy(path)
        self._gone(path)

    def remove(self, path: str) -> None:
        super().remove(path)
        self._gone(path, wiped=True)

    def _gone(self, path: str, *, wiped: bool = False) -> None:
        if path.startswith(TOKENS):
            self._world.oracle.gone(path.removeprefix(TOKENS), wiped=wiped)


class _Sentinel:
    """Sentinel as the worker calls it, observed by the oracle."""

    def __init__(self, world: "SimWorld") -> None:
        self._world = world

    def reach(self, host: str, timeout: timedelta) -> datetime | None:
        return self._world.liveperson.reach(host, timeout)

    def request_token(self, account: Account, host: str, timeout: timedelta) -> TokenResponse:
        world = self._world
        process = world.hub.process
        world.calls = account.name
        world.oracle.asks(process, account, host)
        try:
            answer = world.liveperson.request_token(account, host, timeout)
        finally:
            world.oracle.answered(process, host)
        world.oracle.received(process, account, answer.raw.get_secret_value())
        return answer


class SimWorld(World):
    def __init__(self, plan: Plan, trace: Callable[[str], object] | None = None) -> None:
        """:param tell: gets each line of the trace."""
        super().__init__(token_life=timedelta(seconds=plan.life))
        self.plan: Plan = plan
        self.began = self.clock()
        self._trace = trace
        self._latency = Random(f"{plan.seed} latency")
        self.fault_random = Random(f"{plan.seed} faults")
        self._jitter = Random(f"{plan.seed} jitter")
        self._digest = hashlib.blake2b(digest_size=8)
        self.wall_offset = 0.0
        self.hub = Hub(self.clock, Random(f"{plan.seed} ties"))
        regions = tuple(f"r{number}" for number in range(plan.hosts))
        self.liveperson = FakeLivePerson(
            self.clock,
            token_life=timedelta(seconds=plan.life),
            regions=regions,
            random=Random(f"{plan.seed} ids"),
        )
        self.oracle = Oracle(self)
        self.trouble = Trouble(self)
        self.calls = ""
        """The account that the call to Sentinel is for: LivePerson itself knows account_ids only."""
        self.vaults_clock_steps = Kind.VAULT_SKEWED in plan.kinds
        self.hosts_mislead = not {Kind.MOVED, Kind.CROSSED}.isdisjoint(plan.kinds)
        self.skewed: Episode | None = None
        self.incomplete: Episode | None = None
        self.names = [f"replica-{number}" for number in range(plan.replicas)]
        self.running: dict[str, Process] = {}
        self.crash_at: dict[str, tuple[str, str]] = {}
        self.on_crash: dict[str, Callable[[], object]] = {}
        self.crashes: Counter[str] = Counter()
        self.crashed_at = self.latest_start = float("-inf")
        self._impairments: dict[str, set[str]] = {name: set() for name in self.names}
        self._no_healthy_replica: Window | None = None
        vault, liveperson = self.vault, self.liveperson
        vault.kv = _Kv(self)
        self.domain_cache_ttl = timedelta(seconds=plan.domain_cache_ttl)
        read = vault.accounts.read

        def read_account(name: str) -> Account | Absence:
            account = read(name)
            if isinstance(account, Account):
                self.oracle.read(self.hub.process, account)
            return account

        vault.accounts.read = read_account  # type: ignore[method-assign] # seen from outside, and not changed
        vault.records = liveperson.records = False
        vault.pace = self._pace
        vault.at_request = liveperson.at_request = self._on_the_way
        vault.at_answer = liveperson.at_answer = self._on_the_way_back
        vault.at_view = self._viewed
        vault.at_hang = lambda: self.hub.sleep(VAULT_TIMEOUT)
        liveperson.at_delay = lambda delay: self.hub.sleep(delay.total_seconds())
        liveperson.at_token = lambda raw, account, now: self.oracle.issued(self.hub.process, raw, account, now)
        for number in range(plan.accounts):
            # some customers have two apps
            name = f"le{number:05}" if number % 8 else f"le{number // 16 * 16:05}/app-{number % 16}"
            self._add(name, regions[number % plan.hosts])
        for name in self.names:
            self.mark_impaired(name, "down")

    def run_plan(self) -> Report:
        """Live through the plan: trouble, and at the end a time without, in which everything recovers."""
        plan, random = self.plan, self.fault_random
        self.begin()
        if plan.kinds:
            until = self.began + plan.hours * HOUR - 2400.0
            self.hub.after(random.expovariate(1 / plan.gap), partial(self._next_fault, until))
        self.live(plan.hours * HOUR)
        return self.end()

    def begin(self) -> None:
        """Start the replicas."""
        for name in self.names:
            self.hub.after(self.fault_random.uniform(0, 30), partial(self.up, name))

    def live(self, until: float) -> None:
        """Go on until so many seconds after the beginning."""
        with cheaply():
            self.hub.run(self.began + until)

    def end(self) -> Report:
        """Make the last checks."""
        for process in self.running.values():
            if self.oracle.remembers(process):
                gc.collect()
                left = self.oracle.remembers(process)
                if left and not process.jobs:
                    self.oracle.broken("a client secret is remembered after its refresh", left)
        if too_many := self.oracle.too_many_mints():
            self.oracle.broken("too many mints", too_many)
        return self.report()

    def report(self) -> Report:
        return Report(
            seed=self.plan.seed,
            account_days=self.plan.accounts * self.plan.hours / 24 if self.trouble.met else 0.0,
            met=Counter({kind.value: times for kind, times in self.trouble.met.items()}),
            crashes=self.crashes,
            violations=self.oracle.violations,
            exceptions=self.oracle.exceptions,
            mints=self.liveperson.mints(),
            writes=self.oracle.writes,
            digest=self._digest.hexdigest(),
        )

    def sleep(self, seconds: float) -> None:
        self.hub.sleep(seconds)

    def wall(self) -> float:
        """Return what the replicas' machines take for the time."""
        return self.clock.now().timestamp() + self.wall_offset

    def trace(self, *words: object) -> None:
        if self._trace:
            process = self.hub.process
            text = " ".join(map(str, words))
            self._trace(f"{self.clock() - self.began:12.3f} {process.name if process else '-':12} {text}")

    # Accounts

    def _add(self, name: str, region: str) -> None:
        credentials = self.liveperson.add_account(name.partition("/")[0], region)
        self.write_account(name, credentials)
        self.oracle.add(Truth(name, name.partition("/")[0], credentials.client_id))

    def write_account(self, name: str, credentials: Credentials) -> None:
        self.vault.kv.put(ACCOUNTS + name, asdict(credentials))

    def account_data(self, name: str) -> Mapping[str, object]:
        data = self.vault.kv.get(ACCOUNTS + name).data
        assert data
        return data

    def is_wanted(self, name: str) -> bool:
        """Return True if the account can be read by Vault's clock, and is enabled."""
        data = self.vault.kv.get(ACCOUNTS + name).data
        return data is not None and data.get("enabled") != "false"

    def host_of(self, name: str) -> str:
        return self.liveperson.host_of(name.partition("/")[0])

    def vanishes(self, name: str) -> float:
        """Return the steady moment at which Vault deletes the stored token by itself."""
        deletion = self.vault.kv.get(TOKENS + name).deletion_time
        return float("inf") if deletion is None else self.clock() + (deletion - self.vault.now()).total_seconds()

    # Processes

    def sentinel(self) -> Sentinel:
        return _Sentinel(self)

    def up(self, name: str) -> None:
        process = self.running[name] = Process(name, self.clock())
        self.hub.process, self.latest_start = process, self.clock()
        self.trace("starts")
        timer = SteadyScheduler(clock=self.clock, wall=self.wall, scheduler=WallScheduler(self.hub, process, self.wall))
        plan = self.plan
        replica = Replica(
            self,
            name,
            sync_interval=timedelta(seconds=plan.sync_interval),
            resync_interval=timedelta(seconds=plan.resync_interval),
            max_in_flight=plan.max_in_flight,
            max_per_second=plan.max_per_second,
            timer=timer,
            pool=GreenPool(self.hub, process),
            jitter=self._jitter.random,
        )
        replica.report = self.noted
        process.pace = self._gate(replica.refresher)

        def tick() -> None:
            replica.daemon.tick()
            self.hub.at(self.clock() + _TICK, tick, process)

        self.hub.at(self.clock() + _TICK, tick, process)
        process.stop = replica.daemon.stop
        self.heal(name, "down", 45.0)
        self.unseen(*self.vault.unlisted)

    def unseen(self, *names: str) -> None:
        """Record that a process without these accounts cannot learn of them while LIST leaves them out."""
        for name in names:
            if self.incomplete and name in self.vault.unlisted:
                window = Window(self.clock(), self.incomplete.window.ends, Recovery.SYNC, "LIST leaves it out")
                self.oracle.trouble(window, name)

    def stop(self, name: str, *, back_in: float) -> None:
        """SIGTERM, and a new one after a while."""
        process = self.running.pop(name)
        self.mark_impaired(name, "down")
        process.stop()
        self.hub.after(14.0, partial(self.hub.kill, process))
        self.hub.after(back_in + 15.0, partial(self.up, name))

    def crash_now(self, process: Process) -> None:
        name = process.name
        self.crashed_at = self.clock()
        self.running.pop(name, None)
        self.crash_at.pop(name, None)
        self.on_crash.pop(name, lambda: None)()
        self.mark_impaired(name, "down")
        self.hub.after(self.fault_random.uniform(1, 300), partial(self.up, name))
        self.trace("crashes")
        self.hub.kill(process)

    def manual(
        self, names: list[str], *, named: bool, met: Callable[[], object], expires_within: float = float("inf")
    ) -> None:
        """--refresh by another process."""
        process = Process(BY_HAND, self.clock())
        for name in names:
            self.oracle.truths[name].allowed += 1
        reported: list[Outcome] = []

        def report(outcome: Outcome, _: Transition) -> None:
            reported.append(outcome)
            self.oracle.reported(outcome)

        def work() -> None:
            refresher = self.refresher(BY_HAND)
            process.pace = self._gate(refresher)
            manual: Any = ManualRefresh(
                accounts=self.vault.accounts,
                refresher=refresher,
                scheduler=self.scheduler(
                    BY_HAND,
                    max_in_flight=self.plan.max_in_flight,
                    max_per_second=self.plan.max_per_second,
                    recheck_after=self.plan.sync_interval,
                    jitter=self._jitter.random,
                ),
                pool=GreenPool(self.hub, process),
                clock=self.clock,
                report=report,
                force=ForceRefresh(expires_within=expires_within),
            )
            manual._changed = Condition(self.hub)  # noqa: SLF001 - it waits in virtual time
            manual.run(names)
            for line in manual.results(named=named):
                met()
                self.trace("reports", line.account, line.outcome, line.reason, line.error or "")
            if len(reported) != len(names):
                self.oracle.broken("a manual refresh does not report on each account", len(reported), len(names))

        self.hub.spawn(process, work)

    def noted(self, outcome: Outcome, transition: Transition) -> None:
        self.oracle.reported(outcome)
        self.trace(
            outcome.result,
            outcome.account,
            outcome.reason or "",
            outcome.error or "",
            f"next in {transition.due - self.clock():.3f}",
        )

    # Whether anybody is there who could do the work

    def mark_impaired(self, replica: str, why: str) -> None:
        self._impairments[replica].add(why)
        if self._no_healthy_replica is None and all(self._impairments.values()):
            self._no_healthy_replica = Window(self.clock(), float("inf"), Recovery.START, "no replica is well")
            for name in self.oracle.truths:
                self.oracle.trouble(self._no_healthy_replica, name)

    def was_down(self, since: float) -> bool:
        """Return True if Vault or a replica had trouble since: then the cleanup may have been impossible."""
        return bool(self.crashed_at > since - 60.0) or any(
            each.what.startswith(("Vault", "policy", "read", "write", "no replica")) and each.ends > since - 60.0
            for truth in self.oracle.truths.values()
            for each in truth.windows
        )

    def heal(self, replica: str, why: str, within: float) -> None:
        """End this trouble; it has no effect any more so many seconds later."""
        well = f"{why} until {self.clock()}"
        self._impairments[replica].add(well)
        self._impairments[replica].discard(why)

        def healed() -> None:
            self._impairments[replica].discard(well)
            if self._no_healthy_replica and not self._impairments[replica]:
                self._no_healthy_replica.ends, self._no_healthy_replica = self.clock(), None

        self.hub.after(within, healed)

    # The seams

    def _gate(self, refresher: Refresher) -> Callable[[str, Callable[[], Any]], Any]:
        condition = Condition(self.hub)
        gate = Gate("secret", clock=self.clock, min_remaining=refresher.min_remaining, condition=condition)
        return cast(Callable[[str, Callable[[], Any]], Any], gate.call)

    def _pace(self, operation: str, send: Callable[[], Any]) -> Any:
        process = self.hub.process
        assert process, "a call outside of any process"
        return process.pace(operation, send)

    def _on_the_way(self, operation: str, name: str) -> None:
        if operation in ("sentinel", "domain"):
            name = self.calls if operation == "sentinel" else name
        process = self.hub.process
        assert process, "a call outside of any process"
        called_at = self.clock()
        self.hub.sleep(self._latency.uniform(_QUICKEST, self.plan.slowest))
        process.called_at = called_at
        self._digest.update(f"{self.clock()} {process.name} {operation} {name}\n".encode())
        if self._trace:
            self.trace("calls", operation, name)
        if self.crash_at.get(process.name) == (operation, "before"):
            self._crash_in(process, operation, "before")
        if self.trouble.traps or self.trouble.on_mint:
            self.trouble.spring(operation, name)
        if operation == "read_token" and self.skewed:
            self.trouble.meet(self.skewed)

    def _on_the_way_back(self, operation: str, name: str) -> None:
        del name
        process = self.hub.process
        assert process
        if self.crash_at.get(process.name) == (operation, "after"):
            self._crash_in(process, operation, "after")
        if self._latency.random() < _SEEN_LATE:
            self.hub.sleep(self._latency.uniform(_QUICKEST, self.plan.slowest))

    def _viewed(self, path: str, found: SecretVersion, stale: timedelta) -> None:
        process = self.hub.process
        if process and path.startswith(TOKENS):
            signs = (found.custom_metadata.get("managed_by"), (found.data or {}).get("managed_by"))
            self.oracle.owners[path.removeprefix(TOKENS)].viewed(
                process,
                found.number,
                is_strangers=bool(found.number) and MANAGED_BY not in signs,
                as_of=self.clock() - stale.total_seconds(),
            )

    def _crash_in(self, process: Process, operation: str, when: str) -> None:
        if self.running.get(process.name) is process and getcurrent() in process.jobs:
            self.crashes[f"{operation}, {when} it took effect"] += 1
            self.crash_now(process)

    def _next_fault(self, until: float) -> None:
        random, plan = self.fault_random, self.plan
        trouble = self.trouble
        # some are met by every attempt, some hardly ever: whichever was met least is likely to be next
        weights = [1 / (1 + trouble.met[kind] + trouble.started[kind] / 4) ** 2 for kind in plan.kinds]
        trouble.begin(random.choices(plan.kinds, weights)[0])
        pause = random.expovariate(1 / plan.gap)
        if self.clock() + pause < until:
            self.hub.after(pause, partial(self._next_fault, until))


@contextmanager
def cheaply() -> Iterator[None]:
    """Skip what would cost most and proves nothing here.

    Log lines are dropped before they are rendered, and a decoded token is cached.
    """

    def drop(*_: Any) -> Any:
        raise structlog.DropEvent

    before, decode = structlog.get_config(), appjwt._decode  # noqa: SLF001 - see above
    structlog.configure(processors=[drop], wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False)
    appjwt._decode = functools.lru_cache(maxsize=20_000)(decode)  # noqa: SLF001
    try:
        yield
    finally:
        structlog.configure(**before)
        appjwt._decode = decode  # noqa: SLF001


def run_seed(seed: int) -> Report:
    """Run one random world; its violations are in the report."""
    world = SimWorld(Plan.of(seed))
    world.oracle.stop_at_first = False
    report = world.run_plan()
    report.violations[:] = [f"seed {seed}: {each}" for each in report.violations]
    return report
