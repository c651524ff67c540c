"""Resolve an account's Sentinel host: asked of LivePerson's Domain API, cached, and checked against the allow list.

The resolved host is where client secrets are posted to: nothing else may decide on it.
"""

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, Protocol

from worker.core.account import Account
from worker.core.errors import Kind, RefreshError, Stage

_HOST = re.compile(
    r"(?=.{1,253}(:|$))([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(:[1-9][0-9]{0,4})?"
)
_HOST_FORMAT: Final = "a bare host, such as va.sentinel.liveperson.net, with its port where that is not 443"
_HTTPS_PORT: Final = ":443"
_FAILURE_BACKOFF: Final = 30.0
"""Seconds in which, after a failed look-up, the known hosts serve without another."""
_MIN_CACHE_AGE: Final = 60.0
"""Seconds for which a look-up is used whatever its host does: an outage there must not become one more here."""
_DOMAIN_API_SOURCE: Final = "the Domain API's answer"
ACCOUNT_REMEDY: Final = "see the account's account_id and sentinel_domain"


class HostLookup(Protocol):
    def look_up(self, account_id: str, timeout: timedelta) -> object:
        """Return the `baseURI` of the account's Sentinel as LivePerson has it; RefreshError at stage domain."""


class HostResolver:
    def __init__(
        self,
        lookup: HostLookup,
        *,
        cache_ttl: timedelta,
        allowed_hosts: Sequence[str],
        clock: Callable[[], float],
    ) -> None:
        self._lookup = lookup
        self._cache_ttl = cache_ttl.total_seconds()
        self._allowed = tuple(host.lower().removesuffix(_HTTPS_PORT) for host in allowed_hosts)
        self._clock = clock
        self._cache: dict[str, tuple[str, float]] = {}
        self._failing_until = float("-inf")

    def sentinel_host(self, account: Account, timeout: timedelta, last: str | None = None) -> str:
        """Return the host, with its port where that is not 443; RefreshError at stage domain.

        While the Domain API fails, the last known host is used.

        :param last: the host stored beside the token, used if none is known; the allow list applies.
        """
        if account.sentinel_domain:
            return self._allow(account.sentinel_domain, "sentinel_domain of the account")
        known, looked_up_at = self._cache.get(account.account_id, (None, 0.0))
        now = self._clock()
        if known and (now < looked_up_at + self._cache_ttl or now < self._failing_until):
            return known
        try:
            host = self._allow(self._lookup.look_up(account.account_id, timeout), _DOMAIN_API_SOURCE)
        except RefreshError as error:
            if error.kind is Kind.TRANSIENT:
                self._failing_until = self._clock() + _FAILURE_BACKOFF  # not everyone has to wait for it
                if known := known or self.allowed(last):
                    self._cache.setdefault(account.account_id, (known, float("-inf")))
                    return known
            raise
        self._cache[account.account_id] = (host, self._clock())
        return host

    def invalidate(self, account: Account) -> None:
        """Look the account up again next time: its host refused it or did not serve, so it may have moved."""
        host, looked_up_at = self._cache.get(account.account_id, (None, 0.0))
        if host and self._clock() >= looked_up_at + _MIN_CACHE_AGE:
            self._cache[account.account_id] = (host, float("-inf"))

    def allowed(self, host: str | None) -> str | None:
        """Return the host stored with a token if the allow list has it."""
        try:
            return self._allow(host, "the stored token's host")
        except RefreshError:
            return None

    def _allow(self, host: object, source: str) -> str:
        """Return the host in its plain form if a secret may be sent to it."""
        normalized = host.lower().removesuffix(_HTTPS_PORT) if isinstance(host, str) else ""
        if not _HOST.fullmatch(normalized):
            # it is not quoted: in an account's secret two fields may have changed places
            raise domain_error(Kind.PERMANENT, f"{source} is no host name: it must be {_HOST_FORMAT}", ACCOUNT_REMEDY)
        # a suffix stands for its subdomains on the default port; an exact host is compared with its port
        if not any(normalized.endswith(each) if each.startswith(".") else normalized == each for each in self._allowed):
            # nor is what could be a secret
            shown_host = normalized if "." in normalized or source == _DOMAIN_API_SOURCE else "a host"
            text = f"{source} is {shown_host}, which sentinel.allowed_hosts does not allow"
            raise domain_error(
                Kind.PERMANENT, text, f"if secrets may go there, add {shown_host} to sentinel.allowed_hosts"
            )
        return normalized


def domain_error(
    kind: Kind, text: str, remedy: str | None, status: int | None = None, detail: str | None = None
) -> RefreshError:
    """Build an error of the look-up."""
    return RefreshError(Stage.DOMAIN, kind, text, status=status, remedy=remedy, detail=detail)
