"""Tokens before any check: as Sentinel issued them, and as they are stored in Vault."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """Sentinel's answer to a token request."""

    raw: SecretStr
    token_type: str
    now: datetime | None
    """Sentinel's clock when it answered; None = it sent no Date."""


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """The newest version at a token's path."""

    version: int
    """The version that the next check-and-set must name; a deleted version has one too. 0 = never written."""
    raw: SecretStr | None
    """The newest version's token; None = nothing can be read."""
    sentinel_host: str | None
    """The host stored beside the token. Good for queueing; a secret goes there only if the allow list holds it."""
    refresh_at: str | None
    """The planned refresh stored beside the token. Good for display only."""
    managed: bool
    """True if the metadata carries our mark."""
    deletion_time: datetime | None
    """Moment at which Vault deletes the newest version by itself; None = never."""
    now: datetime
    """Vault's clock when it answered; Sentinel's where the two differ."""
    custom_metadata: Mapping[str, str] = field(default_factory=dict)
    """The account's state in our keys, and other people's keys."""
    has_others_data: bool = False
    """True if somebody else wrote the newest version, at a path that carries our mark."""
    is_issuers_clock: bool = False
    """True if `now` is Sentinel's clock or agrees with it; False = Sentinel's is not known."""

    def with_clock(self, now: datetime) -> "StoredSecret":
        """Return the same with its times by a clock that showed `now` when Vault answered."""
        deletion_time = self.deletion_time and now + (self.deletion_time - self.now)
        return replace(self, now=now, deletion_time=deletion_time)
