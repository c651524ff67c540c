"""The login to Vault, kept alive: made, renewed before its end, made anew when it has ended all the same."""

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import hvac
import requests
import structlog

from worker.core.errors import Kind, RefreshError
from worker.vault.adapter import OddAnswerError, VaultError
from worker.vault.login import WORD, Login, hint
from worker.vault.operation import Operation
from worker.vault.outage import Outage, Use

_RENEW_AT = 0.5
_RENEW_AGAIN = 5.0
_RELOGIN_FLOOR = 30.0
"""Seconds between two logins because of a 403: a policy taken away must not use up a secret_id."""
_GOODBYE = 3.0
"""Seconds: whoever is told to end has no more time than that for a Vault that does not answer."""

log = structlog.get_logger()


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


class LiveLogin:
    """One for all threads: one of them renews, the others go on with what still lives."""

    def __init__(
        self,
        login: Login,
        client: hvac.Client,
        *,
        outage: Outage,
        counted: Callable[[Operation], AbstractContextManager[None]],
        clock: Callable[[], float],
    ) -> None:
        """
        :param client: it is given the token.
        :param counted: what a request is made within, so that it is counted.
        """
        self._login = login
        self._client = client
        self._outage = outage
        self._counted = counted
        self._clock = clock
        self._lock = threading.Lock()
        self._lease: _Lease | None = None
        self._failed: tuple[float, RefreshError] | None = None
        self._refusals = 0
        self._relogin_from = float("-inf")

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
    def ends(self) -> float | None:
        """The steady moment; inf = never, None = there is no login."""
        return self._lease.ends if self._lease else None

    def has_ended(self, token: str) -> bool:
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
