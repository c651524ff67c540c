"""Whether Vault is of use: said once when it no longer is, and once when it is again."""

import threading
from collections.abc import Callable
from enum import Enum, auto

import structlog

from worker.core.errors import RefreshError

log = structlog.get_logger()


class Use(Enum):
    """What Vault is used for. One may work while another does not: a standby without a leader still answers reads."""

    LOGIN = auto()
    READ = auto()
    WRITE = auto()


class Outage:
    def __init__(self, address: str, clock: Callable[[], float]) -> None:
        self._address = address
        self._clock = clock
        self._failing: set[Use] = set()
        self._since = 0.0
        self.error: str | None = None
        """What began it, while it lasts."""
        self._lock = threading.Lock()

    def failed(self, use: Use, error: RefreshError, **more: object) -> None:
        with self._lock:
            if not self._failing:
                self._since, self.error = self._clock(), str(error)
                log.error("vault.unavailable", address=self._address, error=str(error), status=error.status, **more)
            self._failing.add(use)

    def worked(self, use: Use) -> None:
        """Who can write can read."""
        with self._lock:
            over = self._failing & ({Use.READ, Use.WRITE} if use is Use.WRITE else {use})
            self._failing -= over
            if over and not self._failing:
                self.error = None
                log.info("vault.recovered", duration=round(self._clock() - self._since, 3))
