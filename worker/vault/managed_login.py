"""Keep the login to Vault alive: log in, renew before expiry, log in again after expiry or revocation."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from enum import StrEnum
from typing import Any

import hvac
import requests
import structlog

from worker.core.errors import Kind, RefreshError, ThrottledError
from worker.vault.active_login import RENEW_AT, RENEW_RETRY, RESERVED_USES, ActiveLogin, Lease
from worker.vault.errors import LoginRefusedError, RequestFailure, VaultError, unexpected_response
from worker.vault.login import HEADER_SAFE, Login, is_permanent_refusal, remedy_for, uses_of
from worker.vault.operation import Operation
from worker.vault.outage import Outage, Use

_MIN_RELOGIN_INTERVAL = 30.0
"""Seconds between two logins after a 403: a removed policy must not use up a secret_id."""
_REVOKE_TIMEOUT = 3.0
"""Seconds: the process must exit in time although Vault does not answer."""
log = structlog.get_logger()


class Cause(StrEnum):
    """Why a login was made."""

    START = "start"
    ENDING = "ending"
    """The lease, or the number of uses, runs out."""
    RENEWAL_REFUSED = "renewal_refused"
    REVOKED = "revoked"
    CREDENTIALS_CHANGED = "credentials_changed"


class ManagedLogin:
    """The login that all threads share: one of them renews, the others use the current one meanwhile."""

    def __init__(
        self,
        login: Login,
        new_client: Callable[[], hvac.Client],
        *,
        outage: Outage,
        observe: Callable[[Operation], AbstractContextManager[None]],
        clock: Callable[[], float],
        on_first_login: Callable[[], None],
    ) -> None:
        """
        :param new_client: creates a client without a token; one for each login, so that its uses can be counted.
        :param observe: context manager for each request, for metrics.
        """
        self._login = login
        self._new_client = new_client
        self._outage = outage
        self._observe = observe
        self._clock = clock
        self._on_first_login = on_first_login
        self._lock = threading.Lock()
        self._active: ActiveLogin | None = None
        self._ended_at = clock()
        self._next_cause = Cause.START
        self._last_failure: tuple[float, RefreshError] | None = None
        self._refusals = 0
        self._relogin_from = float("-inf")

    def call(self, request: Callable[[hvac.Client], Any]) -> Any:
        """Make one request, logged in; raises its RequestFailure, or VaultError if the login fails.

        If the login proves to be invalid, log in again and retry once.
        """
        with self._use() as active:
            try:
                return request(active.client)
            except RequestFailure as failure:
                if not self._is_token_invalid(active, failure):
                    raise
        with self._use() as active:
            return request(active.client)

    def keep_alive(self) -> float:
        """Log in or renew if that is due; return the steady moment of the next renewal."""
        active, requested_at = self._active, self._clock()
        is_usable = active and requested_at < active.lease.end and not active.is_exhausted
        if active and is_usable and requested_at < active.lease.renew_at and not self._credentials_changed():
            return active.lease.renew_at
        # while one thread renews, the others use the current login; without a usable one they wait
        if self._lock.acquire(blocking=not is_usable):
            try:
                self._renew_or_log_in(requested_at)
            finally:
                self._lock.release()
        return self._active.lease.renew_at if self._active else requested_at

    @property
    def method(self) -> str:
        """Return the auth method."""
        return self._login.method

    @property
    def revocable(self) -> bool:
        """Return True if the login is ours to revoke."""
        return self._login.revocable

    @property
    def renewable(self) -> bool:
        """Return True if the login can be renewed by us."""
        return bool(self._active and self._active.lease.renewable)

    @property
    def expiry(self) -> float:
        """Return the steady moment of expiry, inf = never; without a login, when it was lost or the process started."""
        active = self._active
        return active.lease.end if active else self._ended_at

    @property
    def uses(self) -> float:
        """Return the number of requests that a login allows; inf = unlimited."""
        return self._active.uses if self._active else math.inf

    def logins_for(self, requests: float) -> float:
        """Return the number of logins that so many requests take; 0 if uses are unlimited."""
        return requests / (self.uses - RESERVED_USES)

    def close(self) -> None:
        """Revoke the login if it is ours."""
        active, self._active = self._active, None
        if active:
            self._revoke(active.client)

    @contextlib.contextmanager
    def _use(self) -> Iterator[ActiveLogin]:
        """Log in or renew if that is due, and reserve one use of the login."""
        self.keep_alive()
        while not ((active := self._active) and active.acquire()):
            self.keep_alive()
        try:
            yield active
        except ThrottledError:
            active.refund_use()
            raise
        finally:
            if active.release():
                self._revoke(active.client)

    def _is_token_invalid(self, used: ActiveLogin, failure: RequestFailure) -> bool:
        """Return True, and drop the login, if a request failed for its token and not for a policy."""
        # when requests race for the last uses of a token, Vault answers some of them with 500 "internal error"
        if not (failure.is_token_refused or (failure.status == requests.codes.server_error and used.uses < math.inf)):
            return False
        if self._active is not used:
            return True  # another thread noticed it
        if self._clock() < self._relogin_from:
            return False  # the newest login was refused as well, and so would be another one
        used.count_use()
        try:
            used.client.auth.token.lookup_self()
        except RequestFailure as answer:
            if not answer.is_token_refused:
                return False
        else:
            return self._active is not used  # another thread logged in meanwhile
        with self._lock:
            if self._active is used:
                self._active, self._next_cause, self._ended_at = None, Cause.REVOKED, self._clock()
                self._relogin_from = self._clock() + _MIN_RELOGIN_INTERVAL
        return True

    def _revoke(self, client: hvac.Client) -> None:
        if self._login.revocable:
            with contextlib.suppress(RequestFailure):  # it expires by itself
                client.adapter.post("/v1/auth/token/revoke-self", timeout=_REVOKE_TIMEOUT)

    def _renew_or_log_in(self, requested_at: float) -> None:
        active, now = self._active, self._clock()
        if active is None:
            self._log_in(requested_at, self._next_cause)
        elif now >= active.lease.end or active.is_exhausted:
            self._log_in(requested_at, Cause.ENDING)
        elif now >= active.lease.renew_at or self._credentials_changed():
            self._renew(active, now)
        # else another thread did it while this one waited

    def _credentials_changed(self) -> bool:
        """Return True if the given token was replaced. A token that we created stays valid."""
        return not self._login.revocable and self._login.has_changed()

    def _renew(self, active: ActiveLogin, now: float) -> None:
        try:
            cause = self._try_renew(active, now)
            if cause:
                self._log_in(now, cause)
        except VaultError as error:
            # the current login is still valid, so requests go on; logged once, and retried
            lease = active.lease
            active.lease = replace(lease, renew_at=min(now + RENEW_RETRY, lease.end))
            if error.status != requests.codes.too_many_requests:
                self._outage.record_failure(Use.LOGIN, error, login_ends_in=lease.end - now)
        else:
            self._outage.record_success(Use.LOGIN)

    def _try_renew(self, active: ActiveLogin, now: float) -> Cause | None:
        """Renew the login for about its lease's length; return the cause to log in again instead, None if renewed."""
        lease = active.lease
        if self._credentials_changed():
            return Cause.CREDENTIALS_CHANGED
        if not lease.renewable:
            return Cause.ENDING
        active.count_use()
        try:
            with self._observe(Operation.RENEW):
                answer = active.client.auth.token.renew_self()
            renewed = Lease.of(answer["auth"], now)
        except RequestFailure as failure:
            if failure.status is None or failure.is_throttled:
                raise VaultError.of(failure, "renewal of the login") from failure
            return Cause.RENEWAL_REFUSED  # at the maximum TTL OpenBao refuses with a 500
        except (LookupError, TypeError, ValueError) as error:
            raise VaultError.of(unexpected_response(), "renewal of the login") from error
        if renewed.length < lease.length * RENEW_AT and self._login.revocable:
            return Cause.ENDING  # capped by its maximum TTL
        active.lease = renewed
        log.info("vault.renewed", expires_in=renewed.length)
        return None

    def _log_in(self, requested_at: float, cause: Cause) -> None:
        """Log in; raise the latest failure instead if it is newer than moment `requested_at`, or in backoff."""
        if self._last_failure and (self._last_failure[0] > requested_at or self._in_backoff()):
            raise self._last_failure[1]
        client = self._new_client()
        try:
            with self._observe(Operation.LOGIN):
                auth = self._login(client)
            lease, token = Lease.of(auth, self._clock()), auth["client_token"]
            if not HEADER_SAFE.fullmatch(token):
                raise unexpected_response()
            client.token = token
            active = ActiveLogin(client, lease, uses_of(auth))
        except (RequestFailure, LookupError, TypeError, ValueError) as error:
            if client.token:
                self._revoke(client)
            failure = error if isinstance(error, RequestFailure) else unexpected_response()
            method = self._login.method
            error_class = LoginRefusedError if is_permanent_refusal(method, failure.status) else VaultError
            # no account's fault, and transient: a Kubernetes API that is down, or an old file, looks like a refusal
            login_error = error_class.of(
                failure, f"{method} login", kind=Kind.TRANSIENT, hint=remedy_for(method, failure)
            )
            self._last_failure = (self._clock(), login_error)
            self._refusals = self._refusals + 1 if failure.kind is Kind.PERMANENT else 0
            raise login_error from error
        previous, self._active, self._last_failure, self._refusals = self._active, active, None, 0
        self._outage.record_success(Use.LOGIN)
        log.info("vault.login", method=self._login.method, cause=cause, expires_in=auth["lease_duration"])
        if cause is Cause.START:
            self._on_first_login()
        if previous and previous.retire():
            self._revoke(previous.client)

    def _in_backoff(self) -> bool:
        """Return True while a retry would only be refused again, or lock the role for all replicas."""
        if self._last_failure is None or not self._refusals or self._login.has_changed():
            return False
        pauses = self._login.pauses
        return self._clock() < self._last_failure[0] + pauses[min(self._refusals, len(pauses)) - 1]
