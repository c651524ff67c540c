"""The token request, as LivePerson's page on the Connector API has it."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import requests
from pydantic import SecretStr

from worker import net
from worker.core.account import Account
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.redact import redacted
from worker.core.unchecked import Answer

_EXCERPT = 160
_TOKEN_TYPE = re.compile(r"[A-Za-z]{1,16}")
_LAST_WORD = re.compile(r"[\w.~+/=%-]+$")
_REQUESTS: dict[str, tuple[str, dict[str, str]]] = {
    "1.0": (
        "https://{host}/sentinel/api/account/{account_id}/app/token?v=1.0&grant_type=client_credentials",
        {},
    ),
    "2.0": (
        "https://{host}/sentinel/api/v2/account/{account_id}/app/token",
        {"grant_type": "client_credentials"},
    ),
}
"""Per version of the API: where to, and what goes into the form beside the credentials (FACTS: LivePerson's pages)."""


class SentinelClient:
    def __init__(self, http: requests.Session, *, api_version: str) -> None:
        """:param api_version: 1.0 or 2.0; an account may have its own."""
        self._http = http
        self._api_version = api_version
        self.on_request: Callable[[str, int | None, float, datetime | None], object] = lambda *_: None
        """Called with the host, the answer's status (None = none came), the seconds it took and Sentinel's clock."""

    def reach(self, host: str, timeout: timedelta) -> datetime | None:
        """Connect without asking for anything: any answer will do. Sentinel's clock; RefreshError if there is none."""
        try:
            return net.server_time(self._http.get(f"https://{host}/", timeout=timeout.total_seconds()))
        except net.ExchangeError as error:
            raise RefreshError(Stage.SENTINEL, Kind.TRANSIENT, str(error)) from error

    def mint(self, account: Account, host: str, timeout: timedelta) -> Answer:
        """Ask for a new token; RefreshError at stage sentinel."""
        secret = account.client_secret.get_secret_value()
        url, form = _REQUESTS[account.api_version or self._api_version]
        form = {"client_id": account.client_id, "client_secret": secret, **form}
        began = time.monotonic()
        try:
            response = self._http.post(
                url.format(host=host, account_id=account.account_id), data=form, timeout=timeout.total_seconds()
            )
        except net.ExchangeError as error:
            self.on_request(host, None, time.monotonic() - began, None)
            raise RefreshError(Stage.SENTINEL, Kind.TRANSIENT, str(error)) from error
        status, now = response.status_code, net.server_time(response)
        self.on_request(host, status, time.monotonic() - began, now)
        if not response.ok:
            excerpt = redacted(_beginning(response.content), secret)[:_EXCERPT]
            raise RefreshError(
                Stage.SENTINEL,
                Kind.of(Stage.SENTINEL, status),
                f"{host} answers {status}" + (f": {excerpt}" if excerpt else ""),
                status=status,
                retry_after=_retry_after(response),
            )
        answer = net.json_of(response)
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or not token:
            raise RefreshError(
                Stage.SENTINEL, Kind.TRANSIENT, f"{host} answers {status} without an access_token", status=status
            )
        token_type = answer.get("token_type")
        return Answer(
            raw=SecretStr(token),
            token_type=token_type if isinstance(token_type, str) and _TOKEN_TYPE.fullmatch(token_type) else "Bearer",
            now=now,
        )


def _beginning(body: bytes) -> str:
    """Its first characters, up to a word's end: of a secret cut in two nobody could tell that it is one.

    Not requests' `text`: that believes any charset, and without one guesses from all of the body.
    """
    text = body[: _EXCERPT * 4].decode(errors="replace")
    return text if len(body) <= _EXCERPT * 4 else _LAST_WORD.sub("", text)


def _retry_after(response: requests.Response) -> timedelta | None:
    """Seconds or a date (RFC 9110 10.2.3), the date by the server's own clock; None = absent or neither."""
    value = response.headers.get("Retry-After", "")
    try:
        if value.isdecimal():
            return timedelta(seconds=min(int(value), timedelta(days=1).total_seconds()))
        wait = parsedate_to_datetime(value).astimezone(UTC) - (net.server_time(response) or datetime.now(UTC))
    except (ValueError, OverflowError):
        return None
    return max(wait, timedelta(0))
