"""The one way to Vault: a login that is kept alive, every exchange bounded, every error translated once.

What the secrets mean is left to accounts.py and tokens.py.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import hvac
import requests
import structlog

from worker import net
from worker.core.errors import Kind, RefreshError, Stage
from worker.vault.adapter import OddAnswerError, VaultAdapter, VaultError
from worker.vault.login import WORD, Login, hint
from worker.vault.outage import Outage, Use

_RENEW_AT = 0.5
_RENEW_AGAIN = 5.0
_RELOGIN_FLOOR = 30.0
"""Seconds between two logins because of a 403: a policy taken away must not use up a secret_id."""
_GOODBYE = 3.0
"""Seconds: whoever is told to end has no more time than that for a Vault that does not answer."""

_HEALTH: dict[int | None, tuple[str, str]] = {
    501: ("it is not initialised", "vault operator init"),
    503: ("it is sealed", "vault operator unseal"),
}

log = structlog.get_logger()


class Operation(StrEnum):
    LOGIN = "login"
    RENEW = "renew"
    LIST = "list"
    READ_ACCOUNT = "read_account"
    READ_TOKEN = "read_token"  # noqa: S105 - a name
    WRITE_TOKEN = "write_token"  # noqa: S105 - a name
    WRITE_METADATA = "write_metadata"


_WRITES = frozenset({Operation.WRITE_TOKEN, Operation.WRITE_METADATA})


@dataclass(frozen=True, slots=True)
class _Lease:
    """What a login or a renewal gave, on the steady clock."""

    ends: float
    renew_at: float
    length: float
    renewable: bool

    @classmethod
    def of(cls, auth: dict[str, Any], now: float) -> "_Lease":
        length = float(auth["lease_duration"]) or float("inf")
        # not too often, where renewals give less and less; but before the end
        renew_at = now + max(length * _RENEW_AT, min(_RENEW_AGAIN, length - 1.0))
        return cls(now + length, renew_at, length, bool(auth["renewable"]))


class VaultSession:
    def __init__(
        self,
        address: str,
        login: Login,
        *,
        http: requests.Session,
        namespace: str | None,
        timeout: timedelta,
        clock: Callable[[], float],
    ) -> None:
        self._address = address
        self._login = login
        self._clock = clock
        self._lock = threading.Lock()
        self._lease: _Lease | None = None
        self._failed: tuple[float, RefreshError] | None = None
        self._refusals = 0
        self._outage = Outage(address, clock)
        self._relogin_from = float("-inf")
        self._clock_sample: tuple[datetime, float] | None = None
        self.on_request: Callable[[str, int | None, float], object] = lambda *_: None
        """Called with the operation, the answer's status (None = none came) and the seconds it took."""
        self._latest = threading.local()
        # token="": with None hvac would look into the environment and into the home directory
        self._client = hvac.Client(
            url=address,
            token="",
            session=http,
            namespace=namespace,
            timeout=timeout.total_seconds(),
            adapter=VaultAdapter,
            on_answer=self._answered,
        )

    def call(self, operation: Operation, path: str, request: Callable[[hvac.Client], Any]) -> dict[str, Any]:
        """Make one request to Vault, logged in; VaultError names the login, or operation and path.

        A login that has ended is noticed and made anew, once.
        """
        use = Use.WRITE if operation in _WRITES else Use.READ
        try:
            self.keep_alive()
            token = self._client.token
            try:
                answer = self._named(operation, path, request)
            except VaultError as error:
                if error.status != requests.codes.forbidden or not self._has_ended(token):
                    raise
                self.keep_alive()
                answer = self._named(operation, path, request)
        except VaultError as error:
            if error.kind is Kind.TRANSIENT:
                self._outage.failed(use, error)
            else:  # it works, and says no
                self._outage.worked(use)
            raise
        self._outage.worked(use)
        return answer if isinstance(answer, dict) else {}

    def _named(self, operation: Operation, path: str, request: Callable[[hvac.Client], Any]) -> Any:
        stage = Stage.CREDENTIALS if operation is Operation.READ_ACCOUNT else Stage.VAULT
        try:
            with self._counted(operation):
                return request(self._client)
        except VaultError as error:
            raise error.saying(f"{operation} {path}: {error}", stage=stage) from error

    def keep_alive(self) -> float:
        """Log in or renew if it is time to; the steady moment when it is time again."""
        lease, asked = self._lease, self._clock()
        if lease and asked < lease.renew_at and not self._is_another():
            return lease.renew_at
        # while one thread renews, the others go on with what still lives; without a login they wait for it
        if self._lock.acquire(blocking=lease is None or asked >= lease.ends):
            try:
                self._renew_or_log_in(asked)
            finally:
                self._lock.release()
        return self._lease.renew_at if self._lease else asked

    @property
    def method(self) -> str:
        """How it logs in."""
        return self._login.method

    @property
    def revokes(self) -> bool:
        """Whether the login is ours to revoke at the end."""
        return self._login.own

    @property
    def renews(self) -> bool:
        """Whether the login can be renewed, and by us."""
        return bool(self._lease and self._lease.renewable)

    @property
    def login_ends(self) -> float | None:
        """The steady moment; inf = never, None = there is no login."""
        return self._lease.ends if self._lease else None

    @property
    def trouble(self) -> str | None:
        """What keeps Vault from being of use, in words."""
        return self._outage.error

    def health(self) -> str:
        """Vault's own word on how it is, asked without a login; VaultError if it cannot be used."""
        try:
            # it is the server's own: no namespace has one
            told = self._client.adapter.outside().get(
                "/v1/sys/health", params={"standbyok": "true", "perfstandbyok": "true"}
            )
        except VaultError as error:
            what, remedy = _HEALTH.get(error.status, (None, None))
            said = error.with_hint(what)
            said.remedy = remedy
            raise said from error
        return f"version {told.get('version')}, {'standby' if told.get('standby') else 'active'}"

    def now(self) -> datetime:
        """Vault's clock, by the Date of its latest answer; the wall clock until one came."""
        if self._clock_sample is None:
            return datetime.now(UTC)
        date, at = self._clock_sample
        return date + timedelta(seconds=self._clock() - at)

    def close(self) -> None:
        """Revoke the login if we made it."""
        if self._lease and self._login.own:
            with contextlib.suppress(VaultError):  # it ends by itself
                self._client.adapter.post("/v1/auth/token/revoke-self", timeout=_GOODBYE)
        self._lease = None

    def _renew_or_log_in(self, asked: float) -> None:
        lease, now = self._lease, self._clock()
        if lease and now < lease.renew_at and not self._is_another():
            return  # another thread did it while this one waited
        if lease and now < lease.ends:
            self._renew(lease, now)
        else:
            self._log_in(asked)

    def _is_another(self) -> bool:
        """Whether somebody put another login in the place of ours. One that we made lives on by itself."""
        return not self._login.own and self._login.has_changed()

    def _renew(self, lease: _Lease, now: float) -> None:
        try:
            if not self._prolong(lease, now):
                self._log_in(now)
        except VaultError as error:
            # what we have still lives, so Vault is no less of use; it is said once, and tried on
            self._lease = replace(lease, renew_at=min(now + _RENEW_AGAIN, lease.ends))
            self._outage.failed(Use.LOGIN, error, login_ends_in=lease.ends - now)
        else:
            self._outage.worked(Use.LOGIN)

    def _prolong(self, lease: _Lease, now: float) -> bool:
        """Whether the login could be renewed for about as long as it had."""
        if not lease.renewable:
            return False
        try:
            with self._counted(Operation.RENEW):
                answer = self._client.auth.token.renew_self()
            renewed = _Lease.of(answer["auth"], now)
        except VaultError as error:
            if error.status is not None:  # refused; at the end of its longest life OpenBao says so with a 500
                return False
            raise
        except (LookupError, TypeError, ValueError) as error:
            raise OddAnswerError from error
        if renewed.length < lease.length * _RENEW_AT and self._login.own:
            return False  # capped by its longest life
        self._lease = renewed
        log.info("vault.renewed", expires_in=renewed.length)
        return True

    def _log_in(self, asked: float) -> None:
        """Not where another thread was refused since this moment; and after a refusal not too soon again."""
        if self._failed and (self._failed[0] > asked or self._is_too_soon()):
            raise self._failed[1]
        try:
            with self._counted(Operation.LOGIN):
                auth = self._login(self._client)
            lease, token = _Lease.of(auth, self._clock()), auth["client_token"]
            if not WORD.fullmatch(token):
                raise OddAnswerError
        except (VaultError, LookupError, TypeError, ValueError) as error:
            cause = error if isinstance(error, VaultError) else OddAnswerError()
            told = cause.with_hint(hint(self._login.method, cause.status))
            failure = told.saying(f"{self._login.method} login: {told}")
            # no account's fault; and a Kubernetes API that is down, or a file about to rotate, looks like a refusal
            failure.kind = Kind.TRANSIENT
            self._failed = (self._clock(), failure)
            self._refusals = self._refusals + 1 if cause.kind is Kind.LASTING else 0
            raise failure from error
        self._client.token, self._lease, self._failed, self._refusals = token, lease, None, 0
        self._outage.worked(Use.LOGIN)
        log.info("vault.login", method=self._login.method, expires_in=auth["lease_duration"])

    def _is_too_soon(self) -> bool:
        """Whether the same login would only be refused again, or lock the role out for all."""
        if self._failed is None or not self._refusals or self._login.has_changed():
            return False
        pauses = self._login.pauses
        return self._clock() < self._failed[0] + pauses[min(self._refusals, len(pauses)) - 1]

    def _has_ended(self, token: str) -> bool:
        """Whether a 403 came from an ended login, not from a policy; if so the login is forgotten."""
        if self._client.token != token or self._lease is None:
            return True  # another thread saw it, too
        if self._clock() < self._relogin_from:
            return False  # the newest login is refused just the same: yet another would be, too
        try:
            self._client.auth.token.lookup_self()
        except VaultError as error:
            if error.status != requests.codes.forbidden:
                return False
        else:
            return bool(self._client.token != token)  # another thread logged in meanwhile
        with self._lock:
            if self._client.token == token:
                self._lease = None
                self._relogin_from = self._clock() + _RELOGIN_FLOOR
        return True

    @contextlib.contextmanager
    def _counted(self, operation: Operation) -> Iterator[None]:
        self._latest.status, began = None, self._clock()
        try:
            yield
        finally:
            self.on_request(operation, self._latest.status, self._clock() - began)

    def _answered(self, response: requests.Response) -> None:
        self._latest.status = response.status_code
        date = net.server_time(response)
        if date:
            self._clock_sample = (date, self._clock())
