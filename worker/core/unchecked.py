"""Tokens as they come in, before any check: from Sentinel, and from Vault."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import SecretStr


@dataclass(frozen=True, slots=True)
class Answer:
    """What Sentinel handed out."""

    raw: SecretStr
    token_type: str
    now: datetime | None
    """Sentinel's clock when it answered; None = it sent no Date."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What is at a token's path in Vault."""

    version: int
    """The number that the next write must know; a deleted version has one too. 0 = nothing was ever written."""
    raw: SecretStr | None
    """The newest version's token; None = there is none to be read."""
    host: str | None
    """The Sentinel host it names: good for queueing; secrets go there only where the allow list lets them."""
    refresh_at: str | None
    """When its writer planned to replace it: good for showing."""
    marked: bool
    """Whether our mark is in the metadata: it is set together with the other settings."""
    kept_for: timedelta
    """How long the newest version is kept before it goes by itself; 0 = it is gone, or would stay for ever."""
    now: datetime
    """Vault's clock when it answered."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """The metadata's custom keys: ours on the account's state, and other people's."""
