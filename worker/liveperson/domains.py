"""Which host is an account's Sentinel? Asked of LivePerson's Domain API, cached, and held against the allow list.

The host that comes out is where client secrets are posted to: nothing else may decide on it.
"""

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import requests

from worker import net
from worker.core.account import Account
from worker.core.errors import Kind, RefreshError, Stage

_HOST = re.compile(
    r"(?=.{1,253}(:|$))([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(:[1-9][0-9]{0,4})?"
)
_FORM = "a bare host, such as va.sentinel.liveperson.net, with its port where that is not 443"
_HTTPS_PORT = ":443"
_WAY_OUT = "see sentinel.domain_api and this machine's way out to it: DNS, firewall, HTTPS_PROXY, sentinel.ca_cert"
_TROUBLE = 30.0
"""Seconds in which, after a failed look-up, the hosts known serve without another."""
_BEYOND_DOUBT = 60.0
"""Seconds for which a look-up is taken for true whatever its host does: an outage must not become one more here."""
_ANSWER = "the Domain API's answer"
_ACCOUNT = "see the account's account_id and sentinel_domain"


class Domains:
    def __init__(
        self,
        http: requests.Session,
        *,
        url: str,
        cache: timedelta,
        allowed_hosts: Sequence[str],
        clock: Callable[[], float],
    ) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._cache_for = cache.total_seconds()
        self._allowed = tuple(host.lower().removesuffix(_HTTPS_PORT) for host in allowed_hosts)
        self._clock = clock
        self._cache: dict[str, tuple[str, float]] = {}
        self._trouble_until = float("-inf")

    def sentinel_host(self, account: Account, timeout: timedelta, last: str | None = None) -> str:
        """Host, with its port where that is not 443; RefreshError at stage domain.

        While the Domain API has trouble the last host known serves on.

        :param last: the host that the stored token came from, for whoever knows none; the allow list holds.
        """
        if account.sentinel_domain:
            return self._allow(account.sentinel_domain, "sentinel_domain of the account")
        known, looked_up_at = self._cache.get(account.account_id, (None, 0.0))
        now = self._clock()
        if known and (now < looked_up_at + self._cache_for or now < self._trouble_until):
            return known
        try:
            host = self._allow(self._look_up(account.account_id, timeout), _ANSWER)
        except RefreshError as error:
            if error.kind is Kind.TRANSIENT:
                self._trouble_until = self._clock() + _TROUBLE  # let not everyone wait for it
                if known := known or self._allowed_or_none(last):
                    self._cache.setdefault(account.account_id, (known, float("-inf")))
                    return known
            raise
        self._cache[account.account_id] = (host, self._clock())
        return host

    def doubt(self, account: Account) -> None:
        """Its host refused the account or did not serve, so it may have moved: look it up anew the next time."""
        host, looked_up_at = self._cache.get(account.account_id, (None, 0.0))
        if host and self._clock() >= looked_up_at + _BEYOND_DOUBT:
            self._cache[account.account_id] = (host, float("-inf"))

    def _look_up(self, account_id: str, timeout: timedelta) -> object:
        url = f"{self._url}/api/account/{account_id}/service/sentinel/baseURI.json"
        try:
            response = self._http.get(url, params={"version": "1.0"}, timeout=timeout.total_seconds())
        except net.ExchangeError as error:
            raise _failure(Kind.TRANSIENT, str(error), _WAY_OUT) from error
        status = response.status_code
        if not response.ok:
            kind = Kind.of(Stage.DOMAIN, status)
            remedy = _ACCOUNT if kind is Kind.LASTING else None
            raise _failure(kind, f"the Domain API answers {status} for account {account_id}", remedy, status)
        answer = net.json_of(response)
        if answer is None:  # somebody else answers in its place
            raise _failure(Kind.TRANSIENT, "the Domain API's answer is no JSON", _WAY_OUT, status)
        host = _base_uri(answer, account_id)
        if host is None:
            raise _failure(Kind.LASTING, f"the Domain API names no Sentinel for account {account_id}", _ACCOUNT, status)
        return host

    def _allowed_or_none(self, host: str | None) -> str | None:
        try:
            return self._allow(host, "the stored token's host")
        except RefreshError:
            return None

    def _allow(self, host: object, source: str) -> str:
        """The host in its plain form, if a secret may be sent to it."""
        plain = host.lower().removesuffix(_HTTPS_PORT) if isinstance(host, str) else ""
        if not _HOST.fullmatch(plain):
            # it is not quoted: in an account's secret two fields may have changed places
            raise _failure(Kind.LASTING, f"{source} is no host name: it must be {_FORM}", _ACCOUNT)
        # a suffix stands for its subdomains on the default port; an exact host is compared with its port
        if not any(plain.endswith(each) if each.startswith(".") else plain == each for each in self._allowed):
            # nor is what could be a secret
            named = plain if "." in plain or source == _ANSWER else "a host"
            text = f"{source} is {named}, which sentinel.allowed_hosts does not allow"
            raise _failure(Kind.LASTING, text, f"if secrets may go there, add {named} to sentinel.allowed_hosts")
        return plain


def _failure(kind: Kind, text: str, remedy: str | None, status: int | None = None) -> RefreshError:
    error = RefreshError(Stage.DOMAIN, kind, text, status=status)
    error.remedy = remedy
    return error


def _base_uri(answer: Any, account_id: str) -> object | None:
    """Find Sentinel in either shape of answer: one service, or a list of all. None = it is not there."""
    services = answer.get("baseURIs", [answer]) if isinstance(answer, dict) else answer
    for service in services if isinstance(services, list) else []:
        if isinstance(service, dict) and service.get("service", "sentinel") == "sentinel":
            of = service.get("account", account_id)
            if of == account_id and service.get("baseURI"):
                return service["baseURI"]  # type: ignore[no-any-return]
    return None
