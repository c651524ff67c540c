"""Time that passes only when a test advances it."""

from datetime import UTC, datetime, timedelta
from typing import Final

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
MINUTE: Final = timedelta(minutes=1)
SECOND: Final = timedelta(seconds=1)


class Clock:
    """The steady clock, and the true time that advances with it."""

    def __init__(self) -> None:
        self._steady = 1_000.0
        self._epoch = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=self._steady)

    def __call__(self) -> float:
        return self._steady

    def now(self) -> datetime:
        return self._epoch + timedelta(seconds=self._steady)

    def advance(self, by: timedelta) -> None:
        self._steady += by.total_seconds()

    def stand_still(self, duration: timedelta) -> None:
        """Let true time pass by, and not the steady clock."""
        self._epoch += duration

    def advance_to(self, moment: float) -> None:
        self._steady = max(self._steady, moment)


def nothing(*_: object) -> None:
    """Do nothing: a call-back until a test sets another."""
