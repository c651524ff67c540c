"""Where a new token comes from: the account's Sentinel host, its answer, and the checks that it has to pass.

What becomes of the token is refresh's business. What is needed of LivePerson and of Vault is said in the Protocols.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from worker.core import appjwt, plan
from worker.core.account import Account
from worker.core.appjwt import AppJWT, Expected
from worker.core.errors import RefreshError, Stage
from worker.core.plan import Held, Reason, Timing
from worker.core.unchecked import Answer

_SECRET_REFUSED = frozenset({400, 401, 403})


class Domains(Protocol):
    def sentinel_host(self, account: Account, timeout: timedelta, last: str | None = None) -> str: ...
    def doubt(self, account: Account) -> None: ...


class Sentinel(Protocol):
    def mint(self, account: Account, host: str, timeout: timedelta) -> Answer: ...


class Keys(Protocol):
    def verify(self, token: AppJWT, host: str, timeout: timedelta) -> None: ...


class PreviousSecrets(Protocol):
    def previous(self, current: Account) -> Account | None: ...


@dataclass(frozen=True, slots=True)
class Minted:
    """A checked token on its way to Vault."""

    token: AppJWT
    token_type: str
    expected: Expected
    host: str
    held: Held
    reason: Reason
    previous_used: bool
    """Sentinel refused the newest client_secret and took the one before it."""

    def beside(self) -> dict[str, str]:
        """What Vault's secret tells beside the token itself."""
        token = self.token
        early = timedelta(seconds=self.held.life.ends - self.held.refresh_at)
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


class Mint:
    def __init__(
        self,
        *,
        domains: Domains,
        sentinel: Sentinel,
        keys: Keys | None,
        secrets: PreviousSecrets,
        timing: Timing,
        timeout: timedelta,
        clock: Callable[[], float],
    ) -> None:
        """
        :param keys: who must have signed a token; None = its signature is not looked at.
        :param timeout: for one exchange with LivePerson; less where a token is about to end.
        """
        self._domains = domains
        self._sentinel = sentinel
        self._keys = keys
        self._secrets = secrets
        self._timing = timing
        self._timeout = timeout
        self._clock = clock

    def mint(self, account: Account, reason: Reason, stands: Held | None, last_host: str | None = None) -> Minted:
        """Get a token and check it; RefreshError names the Sentinel host as soon as that is known.

        :param stands: what is known of the stored token; None = none stands.
        :param last_host: the Sentinel host that is told beside it.
        """
        timeout = plan.exchange_timeout(self._timeout, stands.life.left(self._clock()) if stands else 0.0)
        host = self._domains.sentinel_host(account, timeout, last_host)
        try:
            answer, used = self._ask(account, host, timeout)
            at = self._clock()
            expected = Expected.of(account)
            sent = {account.client_secret, used.client_secret}
            token = appjwt.check(answer.raw.get_secret_value(), expected, answer.now, untold=sent)
            if self._keys:
                self._keys.verify(token, host, timeout)
        except RefreshError as error:
            error.host = host
            if error.stage is Stage.SENTINEL:
                self._domains.doubt(account)
            raise
        of_many = stands is None or stands.is_late(at)
        held = plan.hold(account.name, token, server_now=answer.now, at=at, timing=self._timing, of_many=of_many)
        held = plan.half_of_what_is_left(held, at)  # one that comes past its moment would be due again at once
        return Minted(token, answer.token_type, expected, host, held, reason, previous_used=used is not account)

    def _ask(self, account: Account, host: str, timeout: timedelta) -> tuple[Answer, Account]:
        """Sentinel's answer, and the account with the client_secret that it took: the newest, or the one before it."""
        try:
            return self._sentinel.mint(account, host, timeout), account
        except RefreshError as error:
            before = self._secrets.previous(account) if error.status in _SECRET_REFUSED else None
            if before is None:
                raise
            try:
                return self._sentinel.mint(before, host, timeout), before
            except RefreshError:
                raise error from None  # the newest secret's refusal is the one to mend
