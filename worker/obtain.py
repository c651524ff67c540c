"""Obtain one new token: the account's Sentinel host, its answer, and the checks that the token has to pass.

Publishing it is left to publish. The Protocols state what is needed of LivePerson and of Vault.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from worker.clocks import ReachableSentinel, SentinelClocks
from worker.core import appjwt, plan
from worker.core.account import Account
from worker.core.appjwt import AppJWT, Expected, TokenRefusedError
from worker.core.errors import CREDENTIALS_REFUSED, Kind, RefreshError, Stage
from worker.core.plan import Reason, RefreshPolicy, TrackedToken
from worker.core.unchecked import TokenResponse

_RECENT_EXCHANGES: Final = 100
"""A host's latest successful exchanges whose durations are remembered: they bound the next one while others wait."""


class Hosts(Protocol):
    def sentinel_host(self, account: Account, timeout: timedelta, last: str | None = None) -> str: ...
    def invalidate(self, account: Account) -> None: ...
    def allowed(self, host: str | None) -> str | None: ...


class Sentinel(ReachableSentinel, Protocol):
    def request_token(self, account: Account, host: str, timeout: timedelta) -> TokenResponse: ...


class Keys(Protocol):
    def verify(self, token: AppJWT, host: str, timeout: timedelta) -> None: ...
    def retain_hosts(self, hosts: set[str]) -> None: ...


class PreviousSecrets(Protocol):
    def previous(self, current: Account) -> Account | None: ...


@dataclass(frozen=True, slots=True)
class ObtainedToken:
    """A validated token on its way to Vault."""

    token: AppJWT
    token_type: str
    expected: Expected
    host: str
    tracked: TrackedToken
    reason: Reason
    previous_used: bool
    """Sentinel refused the current client_secret and accepted the one before it."""

    def sentinel_now(self, now: float) -> datetime:
        """Return Sentinel's clock at the steady moment `now`."""
        return self.token.exp - timedelta(seconds=self.tracked.validity.end - now)

    def fields(self) -> dict[str, str]:
        """Return the fields that are stored with the token."""
        token = self.token
        early = timedelta(seconds=self.tracked.validity.end - self.tracked.refresh_at)
        return {
            **token.claims(),
            "token_type": self.token_type,
            "account_id": self.expected.account_id or "",
            "sentinel_host": self.host,
            "fingerprint": token.fingerprint,
            "issued_at": appjwt.utc(token.iat),
            "expires_at": appjwt.utc(token.exp),
            "refresh_at": appjwt.utc(token.exp - early),
        }


class TokenSource:
    def __init__(
        self,
        *,
        hosts: Hosts,
        sentinel: Sentinel,
        keys: Keys | None,
        secrets: PreviousSecrets,
        policy: RefreshPolicy,
        timeout: timedelta,
        clock: Callable[[], float],
    ) -> None:
        """
        :param keys: verifies a token's signature; None = it is not verified.
        :param timeout: for one exchange with LivePerson; shortened while a token is about to expire.
        """
        self._hosts = hosts
        self._sentinel = sentinel
        self._keys = keys
        self._secrets = secrets
        self._policy = policy
        self._timeout = timeout
        self._clock = clock
        self._durations: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT_EXCHANGES))
        """Seconds that successful exchanges took, by host."""
        self.clocks = SentinelClocks(sentinel, allowed=hosts.allowed, clock=clock)

    def retain_hosts(self, hosts: set[str]) -> None:
        """Forget all Sentinel hosts but these."""
        self.clocks.retain_hosts(hosts)
        for host in self._durations.keys() - hosts:
            self._durations.pop(host, None)
        if self._keys:
            self._keys.retain_hosts(hosts)

    def obtain(
        self,
        account: Account,
        reason: Reason,
        tracked: TrackedToken | None,
        last_host: str | None = None,
        *,
        others_wait: bool = False,
    ) -> ObtainedToken:
        """Request a token and validate it; raises RefreshError, with the Sentinel host if that is known.

        :param tracked: the valid stored token; None = there is none.
        :param last_host: the Sentinel host stored beside it.
        :param others_wait: other accounts wait for the host: allow at most twice the longest of its latest exchanges.
        """
        remaining = tracked.validity.remaining(self._clock()) if tracked else 0.0
        timeout = plan.exchange_timeout(self._timeout, remaining)
        host = self._hosts.sentinel_host(account, timeout, last_host)
        if others_wait:
            timeout = plan.exchange_timeout(timeout, remaining, max(self._durations[host], default=None))
        try:
            response, used_account, requested_at = self._request(account, host, timeout)
            expected = Expected.of(account)
            sent_secrets = {account.client_secret, used_account.client_secret}
            public_words = account.name, host
            token = appjwt.validate(
                response.raw.get_secret_value(),
                expected,
                response.now,
                forbidden=sent_secrets,
                public_words=public_words,
            )
            if self._keys:
                self._keys.verify(token, host, timeout)
        except TokenRefusedError as refused:
            raise RefreshError(Stage.CLAIMS, Kind.PERMANENT, str(refused), check=refused.check, host=host) from None
        except RefreshError as error:
            if error.stage is Stage.SENTINEL:
                self._hosts.invalidate(account)
            raise
        self.clocks.record_time(host, response.now, requested_at)
        scheduled = plan.schedule_token(
            account.name,
            token,
            server_now=response.now,
            at=requested_at,  # not when the answer was read: the process may have been suspended in between
            policy=self._policy,
            desynchronize=tracked is None or tracked.is_late(requested_at),
        )
        tracked = plan.retry_at_half_remaining(scheduled, self._clock())  # an old token would be due at once
        return ObtainedToken(
            token=token,
            token_type=response.token_type,
            expected=expected,
            host=host,
            tracked=replace(tracked, planned_at=tracked.refresh_at),
            reason=reason,
            previous_used=used_account is not account,
        )

    def _request(self, account: Account, host: str, timeout: timedelta) -> tuple[TokenResponse, Account, float]:
        """Return the answer, the account with the client_secret that Sentinel accepted, and when it was asked.

        The client_secret is the newest or the previous one; the moment is a steady one.
        """
        try:
            return self._request_timed(account, host, timeout)
        except RefreshError as error:
            previous = self._secrets.previous(account) if error.status in CREDENTIALS_REFUSED else None
            if previous is None:
                raise
            try:
                return self._request_timed(previous, host, timeout)
            except (RefreshError, TokenRefusedError):
                raise error from None  # the refusal of the current secret is the one to fix

    def _request_timed(self, account: Account, host: str, timeout: timedelta) -> tuple[TokenResponse, Account, float]:
        """Request a token, and remember how long it took to get one."""
        started = self._clock()
        response = self._sentinel.request_token(account, host, timeout)
        self._durations[host].append(self._clock() - started)
        return response, account, started
