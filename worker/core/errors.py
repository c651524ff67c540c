"""Why a refresh came to nothing: at which stage, and whether trying again can help."""

from datetime import timedelta
from enum import StrEnum


class Stage(StrEnum):
    CREDENTIALS = "credentials"
    DOMAIN = "domain"
    SENTINEL = "sentinel"
    CLAIMS = "claims"
    VAULT = "vault"


class Kind(StrEnum):
    TRANSIENT = "transient"
    LASTING = "lasting"
    """Somebody has to mend something. It is tried again all the same: an outage can look like a refusal."""

    @classmethod
    def of(cls, stage: Stage, status: int | None) -> "Kind":
        """What an HTTP status means at a stage; None = no answer came. The body of none is documented (FACTS 5)."""
        first_refusal = _MOVED if stage in (Stage.DOMAIN, Stage.SENTINEL) else _REFUSED
        refused = status is not None and first_refusal <= status < _SERVER_ERROR and status not in _PASSING
        return cls.LASTING if refused else cls.TRANSIENT


_MOVED, _REFUSED, _SERVER_ERROR = 300, 400, 500  # LivePerson's redirects are not followed; Vault's standby sends them
_PASSING = frozenset({408, 412, 425, 429, 472, 473})
"""Too slow, too early, too much at once; and what a Vault says that lags behind or stands by."""


class RefreshError(Exception):
    """One attempt failed. The text is for operators and public: it names things, and never holds a secret."""

    def __init__(
        self,
        stage: Stage,
        kind: Kind,
        text: str,
        *,
        status: int | None = None,
        retry_after: timedelta | None = None,
        check: str | None = None,
    ) -> None:
        super().__init__(text)
        self.stage = stage
        self.kind = kind
        self.status = status
        self.retry_after = retry_after
        self.check = check
        self.remedy: str | None = None
        """What to do about it, where that is known: a command, or what to look at."""
        self.host: str | None = None
        """The Sentinel host, where that was known by then."""


class InvalidAccountError(RefreshError):
    """The secret below the accounts prefix is no usable account."""

    def __init__(self, text: str) -> None:
        super().__init__(Stage.CREDENTIALS, Kind.LASTING, text)


class AccountDisabledError(RefreshError):
    """The account says `enabled = false`: nothing is to be done."""

    def __init__(self) -> None:
        super().__init__(Stage.CREDENTIALS, Kind.LASTING, "the account is disabled")


class AccountGoneError(RefreshError):
    """The account's own read answered 404."""

    def __init__(self, text: str) -> None:
        super().__init__(Stage.CREDENTIALS, Kind.LASTING, text, status=404)


class ForeignSecretError(RefreshError):
    """The token path holds a secret that is not ours: it is never overwritten."""

    def __init__(self, text: str, hand_over: str | None = None) -> None:
        """:param hand_over: the command that makes it ours."""
        super().__init__(Stage.VAULT, Kind.LASTING, f"{text}; to hand it over: {hand_over}" if hand_over else text)
        self.remedy = hand_over


class CasMismatchError(RefreshError):
    """Somebody wrote to the token's path since it was read: read again."""

    def __init__(self, text: str) -> None:
        super().__init__(Stage.VAULT, Kind.TRANSIENT, text)


class InternalError(RefreshError):
    """A bug of ours: the log line carries its traceback."""

    def __init__(self, bug: Exception) -> None:
        super().__init__(Stage.VAULT, Kind.TRANSIENT, f"internal error: {type(bug).__name__}")
        self.__cause__ = bug
