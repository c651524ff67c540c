"""Runs whom the fleet lets run, each in a thread of the pool; daemon and manual refresh share it."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from worker.core.entry import Entry
from worker.core.errors import InternalError
from worker.core.outcome import Next, Outcome, Result
from worker.core.plan import Held
from worker.refresh import ByHand, Refresher
from worker.schedule.fleet import Fleet


class Pool(ThreadPoolExecutor):
    """Where the machine gives no more threads, work waits for those there are. What comes after the end is dropped."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            if not self._threads and not self._shutdown:
                raise
            return Future()  # of no use; but where no thread could be started the work was queued before


class Dispatcher:
    def __init__(
        self,
        *,
        fleet: Fleet,
        refresher: Refresher,
        pool: Executor,
        clock: Callable[[], float],
        by_hand: ByHand | None,
        on_done: Callable[[Outcome, Next], None],
        on_wait: Callable[[float], None],
    ) -> None:
        """
        :param by_hand: what the operator asks for; None = refresh what is due.
        :param on_done: called as the last act of each attempt.
        :param on_wait: called with the moment at which `pump` is wanted again, because of the rate cap.
        """
        self.fleet = fleet
        self.lock = threading.Lock()
        """Held for every use of the fleet."""
        self._refresher = refresher
        self._pool = pool
        self._clock = clock
        self._by_hand = by_hand
        self._on_done = on_done
        self._on_wait = on_wait
        self._stopped = False

    def queue(self, *names: str) -> None:
        """These accounts are due."""
        with self.lock:
            for name in names:
                self.fleet.queue(name)
        self.pump()

    def pump(self) -> None:
        """Start everyone who may run now."""
        with self.lock:
            if self._stopped:
                return
            while entry := self.fleet.start_next(self._clock()):
                self._pool.submit(self._run, entry)
            wanted = self.fleet.next_start()
        if wanted is not None:
            self._on_wait(wanted)

    def look(self, name: str, held: Held | None) -> Outcome:
        """Look at the account's stored token; what it tells is to be settled."""
        return self._guarded(name, lambda: self._refresher.look(name, held))

    def settle(self, outcome: Outcome) -> None:
        """Take in an outcome, also one that did not come from `queue`; it may let others run."""
        with self.lock:
            following = self.fleet.done(outcome, self._clock())
            if self._by_hand:
                self.fleet.remove(outcome.account)  # one attempt each: what others' success tells wakes nobody
        if following:
            self._on_done(outcome, following)
        self.pump()

    def stop(self) -> None:
        """Start nobody any more; what runs ends by itself."""
        with self.lock:
            self._stopped = True

    def _run(self, entry: Entry) -> None:
        refresh = partial(self._refresher.refresh, entry.name, held=entry.should_stand, by_hand=self._by_hand)
        self.settle(self._guarded(entry.name, refresh))

    def _guarded(self, name: str, work: Callable[[], Outcome]) -> Outcome:
        """A bug at one account must stop neither it for good nor the others."""
        started = self._clock()
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - it is told, with its traceback
            return Outcome(name, Result.FAILED, self._clock() - started, error=InternalError(error))
