"""One look-up at LivePerson's Domain API. Caching and the allow list are left to hosts."""

from datetime import timedelta
from typing import Any, Final

import requests

from worker import net
from worker.core.errors import Kind, Stage
from worker.liveperson.hosts import ACCOUNT_REMEDY, domain_error

_NETWORK_REMEDY: Final = (
    "see sentinel.domain_api and this machine's way out to it: DNS, firewall, HTTPS_PROXY, sentinel.ca_cert"
)


class DomainApi:
    def __init__(self, http: requests.Session, *, url: str) -> None:
        self._http = http
        self._url = url.rstrip("/")

    def look_up(self, account_id: str, timeout: timedelta) -> object:
        """Return the `baseURI` of the account's Sentinel, unchecked; RefreshError at stage domain."""
        url = f"{self._url}/api/account/{account_id}/service/sentinel/baseURI.json"
        try:
            response = self._http.get(url, params={"version": "1.0"}, timeout=timeout.total_seconds())
        except net.ExchangeError as error:
            raise domain_error(
                Kind.TRANSIENT, str(error), error.remedy or _NETWORK_REMEDY, detail=error.detail
            ) from error
        status = response.status_code
        if not response.ok:
            kind = Kind.of(Stage.DOMAIN, status)
            remedy = ACCOUNT_REMEDY if kind is Kind.PERMANENT else None
            raise domain_error(kind, f"the Domain API answers {status} for account {account_id}", remedy, status)
        answer = net.parse_json(response)
        if answer is None:  # somebody else answers in its place
            raise domain_error(Kind.TRANSIENT, "the Domain API's answer is not JSON", _NETWORK_REMEDY, status)
        host = _base_uri(answer, account_id)
        if host is None:
            text = f"the Domain API names no Sentinel for account {account_id}"
            raise domain_error(Kind.PERMANENT, text, ACCOUNT_REMEDY, status)
        return host


def _base_uri(answer: Any, account_id: str) -> object | None:
    """Find Sentinel in either shape of answer, one service or a list of all; None if it is not there."""
    services = answer.get("baseURIs", [answer]) if isinstance(answer, dict) else answer
    for service in services if isinstance(services, list) else []:
        if isinstance(service, dict) and service.get("service", "sentinel") == "sentinel":
            of = service.get("account", account_id)
            if of == account_id and service.get("baseURI"):
                return service["baseURI"]  # type: ignore[no-any-return]
    return None
