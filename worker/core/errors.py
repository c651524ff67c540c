"""Why a refresh came to nothing: at which stage, and whether trying again can help."""

from datetime import timedelta
from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    CREDENTIALS = "credentials"
    DOMAIN = "domain"
    SENTINEL = "sentinel"
    CLAIMS = "claims"
    VAULT = "vault"
    INTERNAL = "internal"


class Kind(StrEnum):
    TRANSIENT = "transient"
    PERMANENT = "permanent"
    """Somebody has to mend something. It is tried again all the same: an outage can look like a refusal."""

    @classmethod
    def of(cls, stage: Stage, status: int | None) -> "Kind":
        """Return what an HTTP status, None = no answer, means at a stage. LivePerson documents no body of a refusal."""
        first_permanent = _REDIRECT if stage in (Stage.DOMAIN, Stage.SENTINEL) else _CLIENT_ERROR
        is_permanent = (
            status is not None and first_permanent <= status < _SERVER_ERROR and status not in _TRANSIENT_STATUSES
        )
        return cls.PERMANENT if is_permanent else cls.TRANSIENT


_REDIRECT, _CLIENT_ERROR, _SERVER_ERROR = 300, 400, 500
"""First status of each class. LivePerson's redirects are not followed; Vault's standby sends them."""
_TRANSIENT_STATUSES = frozenset({408, 412, 425, 429, 472, 473, 474})
"""Too slow, too early, too much at once; and what a Vault says that lags behind or stands by."""


CREDENTIALS_REFUSED = frozenset({400, 401, 403})
"""Statuses by which Sentinel refuses credentials."""


class RefreshError(Exception):
    """One failed attempt, built once and never changed. The text is public: it names things and contains no secret."""

    def __init__(
        self,
        stage: Stage,
        kind: Kind,
        text: str,
        *,
        status: int | None = None,
        retry_after: timedelta | None = None,
        check: str | None = None,
        remedy: str | None = None,
        detail: str | None = None,
        host: str | None = None,
        timed_out: bool = False,
    ) -> None:
        """
        :param remedy: what to do about it: a command, or what to look at.
        :param detail: the text without the remedy, for a report with a column for that; None = it is not in the text.
        :param host: the Sentinel host, if it is known by then.
        :param timed_out: no complete answer came by the deadline.
        """
        super().__init__(text)
        self.stage: Final = stage
        self.kind: Final = kind
        self.status: Final = status
        self.retry_after: Final = retry_after
        self.check: Final = check
        self.remedy: Final = remedy
        self.detail: Final = text if detail is None else detail
        self.host: Final = host
        self.timed_out: Final = timed_out

    @property
    def reported_kind(self) -> Kind:
        """Return the kind for people, which may differ from the one that retries go by."""
        return self.kind


class InvalidAccountError(RefreshError):
    """The secret below the accounts prefix is no usable account."""

    def __init__(self, text: str) -> None:
        super().__init__(Stage.CREDENTIALS, Kind.PERMANENT, text)


class UnmanagedSecretError(RefreshError):
    """The token path contains a secret that is not ours: it is never overwritten."""

    def __init__(self, text: str, takeover_command: str | None = None, *, has_stale_status: bool = False) -> None:
        """
        :param takeover_command: the command that makes it ours.
        :param has_stale_status: an account's state was written there before the secret was seen.
        """
        with_remedy = f"{text}; to hand it over: {takeover_command}" if takeover_command else text
        super().__init__(Stage.VAULT, Kind.PERMANENT, with_remedy, remedy=takeover_command, detail=text)
        self.has_stale_status: Final = has_stale_status


class CasMismatchError(RefreshError):
    """Somebody wrote to the token's path since it was read: read again."""

    def __init__(self, text: str) -> None:
        super().__init__(Stage.VAULT, Kind.TRANSIENT, text)


class ThrottledError(RefreshError):
    """Vault's rate limit refused a request (429), which carried out nothing: a matter of pace, and no failure."""

    def __init__(self, stage: Stage, text: str, retry_after: timedelta | None = None) -> None:
        super().__init__(stage, Kind.TRANSIENT, text, status=429, retry_after=retry_after)


class InternalError(RefreshError):
    """A bug of ours: the log line carries its traceback."""

    def __init__(self, bug: Exception) -> None:
        super().__init__(Stage.INTERNAL, Kind.TRANSIENT, f"internal error: {type(bug).__name__}")
        self.__cause__ = bug
