"""One account as the daemon knows it, without credentials and token."""

from dataclasses import dataclass

from worker.core.errors import Kind
from worker.core.outcome import State
from worker.core.plan import TrackedToken


@dataclass(slots=True)
class AccountRecord:
    """One account, written by the scheduler only. Moments are seconds on the steady clock."""

    name: str
    state: State = State.OK
    tracked: TrackedToken | None = None
    """The token that a reader finds, as far as known."""
    displaced: TrackedToken | None = None
    """The token that a reader should find: it was deleted, or something worse was put in its place."""
    host: str | None = None
    failures: int = 0
    kind: Kind | None = None
    """Of the latest failure."""
    last_error: str | None = None
    """As in the metadata of the token's path; None = no error."""
    failing_since: float | None = None
    last_success: float | None = None
    due: float | None = None
    timed_out_at: float | None = None
    """Steady moment of the latest attempt that asked Sentinel, if it timed out; None = it was answered."""
    others_wait: bool = False
    """Others waited for its host when the attempt began that is to be short for their sake."""
    running: bool = False
    queued: bool = False

    @property
    def expected_token(self) -> TrackedToken | None:
        """Return the token that the stored one is compared with."""
        return self.displaced or self.tracked

    def has_live_token(self, now: float) -> bool:
        return self.tracked is not None and self.tracked.validity.end > now
