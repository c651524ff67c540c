"""The worker's own logic on a virtual clock, as the simulation has it: what time and lag do as accounts grow."""

import json
import sys
import time
from dataclasses import replace
from typing import Final

from tests.simulation.worlds import Plan, SimWorld
from worker.core.outcome import Outcome, Transition

_HOSTS: Final = 10
_HOURS: Final = 0.75
_WATCHED: Final = 600.0
"""Seconds after the cold start."""
_COLD_PER_SECOND: Final = 80
"""Accounts of unknown hosts take a quarter of one host's slots, so that a cold start is no faster than that here."""


def main(accounts: int) -> None:
    """Simulate from a cold start on; caps of 64 in flight and 400 a second for each of ten hosts."""
    plan = Plan(accounts=accounts, hosts=_HOSTS, hours=_HOURS, max_in_flight=64, max_per_second=400)
    world = SimWorld(replace(plan, sync_interval=300.0, resync_interval=7200.0))
    lags: list[float] = []
    noted = world.noted

    def note(outcome: Outcome, transition: Transition) -> None:
        noted(outcome, transition)
        if transition.lag is not None:
            lags.append(transition.lag)

    world.noted = note  # type: ignore[method-assign]
    world.begin()
    cold = accounts / _COLD_PER_SECOND + 60
    world.live(cold)
    done, started = len(world.oracle.mints), time.process_time()
    lags.clear()
    world.live(cold + _WATCHED)
    renewed = len(world.oracle.mints) - done
    cpu = time.process_time() - started
    lags.sort()
    result = {
        "accounts": accounts,
        "minutes": round(_WATCHED / 60),
        "refreshes": renewed,
        "cpu_ms": round(cpu / renewed * 1000, 3),
        "lag_p50_s": round(lags[len(lags) // 2], 3),
        "lag_p99_s": round(lags[len(lags) * 99 // 100], 3),
        "broken": len(world.oracle.violations),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
