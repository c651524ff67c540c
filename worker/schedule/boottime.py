"""The clock that all due times are on."""

import time


def boottime() -> float:
    """Return seconds that neither jump with the wall clock nor stop while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
