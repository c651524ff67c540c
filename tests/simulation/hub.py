"""One virtual clock and one OS thread for many processes: every job is a greenlet, and who waits lets others go on.

A call to the outside sleeps here, so any order of calls can happen; ties are broken by the seeded generator.
"""

import heapq
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from types import TracebackType
from typing import Any

from apscheduler.jobstores.base import JobLookupError
from greenlet import GreenletExit, getcurrent, greenlet

from tests.fakes.clock import Clock

_THREADS = 256
"""As many as wiring gives to a process."""


@dataclass(eq=False)
class Process:
    """A replica's run, or a manual refresh: it has a name, and does not run again once it has ended."""

    name: str
    began: float
    alive: bool = True
    paused_until: float = 0.0
    called_at: float = 0.0
    """When it decided to make the call that takes effect now: it may have been paused since."""
    postponed: int = 0
    """Events delayed by a pause."""
    jobs: dict[greenlet, None] = field(default_factory=dict)
    stop: Callable[[], object] = lambda: None
    """SIGTERM."""
    pace: Callable[[str, Callable[[], Any]], Any] = lambda _operation, send: send()
    """Sends a request to Vault, through the gate of this process."""


@dataclass(eq=False, slots=True)
class Event:
    """Something that happens at a moment, unless it is cancelled."""

    when: float
    process: Process | None
    act: Callable[[], object] | None


class Hub:
    def __init__(self, clock: Clock, random: Random) -> None:
        self.clock = clock
        self.process: Process | None = None
        """The process whose code runs now; None = the operator or a service."""
        self._random = random.random
        self._heap: list[tuple[float, float, int, Event]] = []
        self._count = 0
        self._main = getcurrent()

    def at(self, when: float, act: Callable[[], object], process: Process | None = None) -> Event:
        event = Event(max(when, self.clock()), process, act)
        self._push(event)
        return event

    def after(self, seconds: float, act: Callable[[], object]) -> Event:
        return self.at(self.clock() + seconds, act)

    def spawn(self, process: Process, work: Callable[[], object]) -> None:
        """Run it as a thread of that process would."""
        if not process.alive:
            return

        def job() -> None:
            try:
                work()
            finally:
                process.jobs.pop(made, None)

        made = greenlet(job, parent=self._main)
        process.jobs[made] = None
        self.at(self.clock(), made.switch, process)

    def sleep(self, seconds: float) -> None:
        """Let others run for so long. In a process that ended meanwhile this never returns."""
        process = self.process
        if process is None or not process.alive:
            raise GreenletExit
        self.at(self.clock() + seconds, getcurrent().switch, process)
        self._main.switch()

    def kill(self, process: Process) -> None:
        """End the process: its waiting jobs never continue. May be called by one of them, which ends here."""
        process.alive = False
        self.at(self.clock(), lambda: self._bury(process))
        if getcurrent() in process.jobs:
            raise GreenletExit

    def run(self, until: float) -> None:
        self._main = getcurrent()
        heap, clock = self._heap, self.clock
        while heap and heap[0][0] <= until:
            when, _, _, event = heapq.heappop(heap)
            act, process = event.act, event.process
            if act is None:
                continue
            clock.advance_to(when)
            if process is not None:
                if not process.alive:
                    continue
                if process.paused_until > when:
                    process.postponed += 1
                    event.when = process.paused_until
                    self._push(event)
                    continue
            self.process = process
            act()
        self.process = None
        clock.advance_to(until)

    def _push(self, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._heap, (event.when, self._random(), self._count, event))

    def _bury(self, process: Process) -> None:
        self.process = process
        for job in list(process.jobs):
            job.throw(GreenletExit)
        process.jobs.clear()


class WallScheduler:
    """The part of APScheduler that SteadyScheduler uses: date jobs by the wall clock, with its steps unnoticed."""

    def __init__(self, hub: Hub, process: Process, wall: Callable[[], float]) -> None:
        self._hub = hub
        self._process = process
        self._wall = wall
        self._jobs: dict[str, Event] = {}

    def add_job(self, call: Callable[..., object], _: str, *, run_date: datetime, args: list[str], **more: Any) -> None:
        due, job = run_date.timestamp(), str(more["id"])

        def fire() -> None:
            if self._wall() < due:  # the wall clock was put back
                self._jobs[job] = self._hub.at(self._hub.clock() + due - self._wall(), fire, self._process)
            elif self._jobs.pop(job, None):
                call(*args)

        self._jobs[job] = self._hub.at(self._hub.clock() + max(0.0, due - self._wall()), fire, self._process)

    def remove_job(self, job: str) -> None:
        event = self._jobs.pop(job, None)
        if event is None:
            raise JobLookupError(job)
        event.act = None


class GreenPool(Executor):
    """A pool whose threads are greenlets."""

    def __init__(self, hub: Hub, process: Process) -> None:
        self._hub = hub
        self._process = process
        self._free = _THREADS
        self._waiting: deque[Callable[[], None]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def work() -> None:
            fn(*args, **kwargs)
            self._free += 1
            if self._waiting:
                self._start(self._waiting.popleft())

        if self._free:
            self._start(work)
        else:
            self._waiting.append(work)
        return Future()  # the worker asks none of them

    def _start(self, work: Callable[[], None]) -> None:
        self._free -= 1
        self._hub.spawn(self._process, work)


class Condition:
    """threading.Condition among greenlets: they change only where one sleeps, so there is nothing to lock."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._waiting: list[Event] = []

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def wait(self, timeout: float) -> None:
        hub, woken = self._hub, getcurrent().switch
        assert hub.process
        event = hub.at(hub.clock() + timeout, woken, hub.process)
        self._waiting.append(event)
        hub._main.switch()  # noqa: SLF001 - a part of the hub
        if event in self._waiting:
            self._waiting.remove(event)

    def notify(self, number: int = 1) -> None:
        for _ in range(min(number, len(self._waiting))):
            event = self._waiting.pop(0)
            act, event.act = event.act, None
            assert act
            self._hub.at(self._hub.clock(), act, event.process)
