"""The owner of the secret at a token's path, and the worker's rights: the check-and-set write rules, from outside.

It knows the order of all writes and each answer to a process, and nothing of how the worker decides.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.simulation.hub import Process

MANAGED_BY: Final = "appjwt-worker"
_STATUS: Final = ("state", "last_error", "failing_since")
_RIGHT_AFTER: Final = 60.0
"""Seconds: a write may wait half a minute for a rate limit, and Vault's timeout is 10."""
LONGEST_ATTEMPT: Final = 120.0
"""Seconds from an attempt's first read to its last write, where everything hangs."""


@dataclass(eq=False, slots=True)
class _Stranger:
    """Somebody else's secret, the newest at its path."""

    since: float
    version: int
    protected: bool
    """True = the path carried no mark when it was written, or lost it since."""


@dataclass(eq=False, slots=True)
class _View:
    """The last answer that a process got about a path."""

    version: int
    is_strangers: bool
    as_of: float
    """The moment that the answer showed; a standby's is older than the answer."""


@dataclass(eq=False, slots=True)
class Ownership:
    """One token path."""

    name: str
    broken: Callable[..., object]
    """Called with a broken promise and its facts."""
    exceptions: Counter[str]
    """The cases that check-and-set cannot see, by their names."""
    marked: bool = False
    stranger: _Stranger | None = None
    wiped_at: float = float("-inf")
    mark_removed_at: float = float("-inf")
    unwanted_since: float | None = None
    """Since when the account is disabled, deleted or removed."""
    status_since: float | None = None
    """Since when our state is at a stranger's path."""
    status_writer: str | None = None
    """The process that wrote it."""
    unmarked_since: float | None = None
    """Since when data of ours is at a path without a mark."""
    _data_writes: dict[Process, float] = field(default_factory=dict)
    """When a process last made an accepted write of data here, until it marks the path."""
    _views: dict[Process, _View] = field(default_factory=dict)

    @property
    def is_strangers(self) -> bool:
        return self.stranger is not None

    def viewed(self, process: Process, version: int, *, is_strangers: bool, as_of: float) -> None:
        self._views[process] = _View(version, is_strangers, as_of)

    def written(self, process: Process | None, data: Mapping[str, object], version: int, now: float) -> None:
        """Record new data at the path."""
        if process is None:
            theirs = data.get("managed_by") != MANAGED_BY
            self.stranger = _Stranger(now, version, protected=not self.marked) if theirs else None
            self.unmarked_since = None
            return
        since = self.unwanted_since
        # an attempt interrupted by a pause of its process continues with what it had read
        if since is not None and now - max(since, process.paused_until) > LONGEST_ATTEMPT:
            self.broken("the path of a disabled or removed account is written", self.name)
        if self.stranger and self.stranger.protected:
            self._overwritten(process, self.stranger)
        self.stranger = None
        self._data_writes[process] = now
        if not self.marked:
            self.unmarked_since = now if self.unmarked_since is None else self.unmarked_since

    def metadata_written(self, process: Process | None, custom_metadata: Mapping[str, str | None], now: float) -> None:
        """Record a change of the path's metadata."""
        if process is None:
            if "managed_by" in custom_metadata:
                self._handed(marked=custom_metadata["managed_by"] == MANAGED_BY, now=now)
            return
        if "managed_by" in custom_metadata:
            self._marked_by(process)
        self._status_written(process, custom_metadata, now)

    def gone(self, *, wiped: bool, now: float) -> None:
        """Record that the newest version was deleted or destroyed, or the path wiped with its metadata."""
        if wiped:
            for view in self._views.values():
                if view.version:  # an answer with a wiped version is a standby's: it showed an earlier moment
                    view.as_of = min(view.as_of, now)
            self.wiped_at, self.marked, self.stranger = now, False, None
            self.status_since = self.unmarked_since = None

    def still_broken(self, now: float, within: float) -> None:
        """Check what has to be made good within so many seconds."""
        if self.status_since is not None and now - self.status_since > within:
            self.broken("our state stays at a stranger's path", self.name)
            self.status_since = None

    def _overwritten(self, process: Process, stranger: _Stranger) -> None:
        view = self._views.get(process)
        unseen = max(self.wiped_at, self.mark_removed_at)
        if view and view.version == stranger.version and not view.is_strangers and view.as_of <= unseen:
            self.exceptions["wiped, and written up to the very version that was read; or its mark removed"] += 1
        else:
            self.broken("a stranger's secret is overwritten", self.name)

    def _marked_by(self, process: Process) -> None:
        if process.called_at - self._data_writes.pop(process, float("-inf")) > _RIGHT_AFTER:
            self.broken("a path is marked without a data write", self.name)
        if self.stranger and self.stranger.protected:
            self.stranger.protected = False
            self.exceptions["written over our data, before its mark"] += 1
        self.marked, self.unmarked_since = True, None

    def _status_written(self, process: Process, custom_metadata: Mapping[str, str | None], now: float) -> None:
        status = [custom_metadata[key] for key in _STATUS if key in custom_metadata]
        if not any(status):
            if len(status) == len(_STATUS):
                self.status_since = None
            return
        if self.stranger and self.stranger.protected:
            view = self._views.get(process)
            if view is None or view.is_strangers:
                self.broken("the state is written to a stranger's path", self.name)
            self.status_since, self.status_writer = self.status_since or now, process.name

    def _handed(self, *, marked: bool, now: float) -> None:
        if self.stranger:
            self.stranger.protected = not marked
        if self.marked and not marked:
            self.mark_removed_at = now
        self.marked = marked
        self.unmarked_since = None
