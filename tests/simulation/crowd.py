"""Worlds and scenes, spread over processes of their own."""

import gc
import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from tests.simulation import shows
from tests.simulation.mutants import MUTANTS, Found, find
from tests.simulation.shows import Row
from tests.simulation.worlds import Report, run_seed

SMALL: dict[str, tuple[str, tuple[object, ...]]] = {
    **{f"an outage of {each}": ("outage", (each,)) for each in shows.OUTAGES},
    "others do not notice": ("isolation", ()),
    **{f"{share:.0%} of a host's accounts hang": ("neighbours", (share,)) for share in shows.SICK},
    "two and three replicas": ("replicas", ()),
    "load": ("load", ()),
}
"""The scenes of `make test`: which function of shows, and its arguments."""

LARGE: dict[str, tuple[str, tuple[object, ...]]] = {
    **SMALL,
    "others do not notice": ("isolation", (1000,)),
    **{f"{share:.0%} of a host's accounts hang": ("neighbours", (share, 1000)) for share in shows.SICK},
    "two and three replicas": ("replicas", (500, 24.0)),
    "load": ("load", (10_000, 24.0, 1.0)),
}
"""The same at full size, for `make simulate`."""


_AHEAD = 16
"""Worlds that wait for a process."""


class Crowd:
    """Scenes that run in other processes; their results can be requested in any order."""

    def __init__(self, pool: ProcessPoolExecutor, scenes: dict[str, tuple[str, tuple[object, ...]]]) -> None:
        self._pool = pool
        self._scenes = {name: pool.submit(_rows, *scene) for name, scene in scenes.items()}

    def live(
        self, first: int, account_days: float, trace: Callable[[Report, Report], object] = lambda *_: None
    ) -> tuple[Report, int]:
        """Run as many worlds as it takes, from this seed on; return all their reports in one, and the number of worlds.

        :param trace: called after each world, with its report and that of all so far.
        """
        seeds = itertools.count(first)
        going = deque(self._pool.submit(run_seed, next(seeds)) for _ in range(_AHEAD))
        total, worlds = Report(first), 0
        while total.account_days < account_days:
            world = going.popleft().result()
            total += world
            worlds += 1
            trace(world, total)
            going.append(self._pool.submit(run_seed, next(seeds)))
        for each in going:
            each.cancel()
        return total, worlds

    def found(self) -> list[Found]:
        """Return how each planted bug was found, in order."""
        return list(self._pool.map(find, range(len(MUTANTS))))

    def rows(self, scene: str) -> list[Row]:
        return self._scenes[scene].result()


@contextmanager
def crowd(scenes: dict[str, tuple[str, tuple[object, ...]]]) -> Iterator[Crowd]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_collect_rarely) as pool:
        try:
            yield Crowd(pool, scenes)
        finally:
            pool.shutdown(cancel_futures=True)


def _rows(scene: str, arguments: tuple[object, ...]) -> list[Row]:
    return list(getattr(shows, scene)(*arguments))


def _collect_rarely() -> None:
    """Cycles are few here, and the objects that live long are many."""
    gc.set_threshold(50_000)
