"""What is known of one account while the daemon runs. No credential and no token is kept."""

from dataclasses import dataclass

from worker.core.errors import Kind
from worker.core.outcome import State
from worker.core.plan import Held


@dataclass(slots=True)
class Entry:
    """The fleet's own; others only read it. Moments are on the steady clock."""

    name: str
    state: State = State.OK
    held: Held | None = None
    """What a reader finds, as far as known."""
    lost: Held | None = None
    """What he should find: it was deleted, or something worse was put in its place."""
    host: str | None = None
    failures: int = 0
    kind: Kind | None = None
    """Of the latest failure."""
    last_error: str | None = None
    """In the words that Vault's metadata has; None = all is well."""
    failing_since: float | None = None
    last_success: float | None = None
    due: float | None = None
    running: bool = False
    queued: bool = False

    @property
    def should_stand(self) -> Held | None:
        """What the stored token is compared with."""
        return self.lost or self.held
