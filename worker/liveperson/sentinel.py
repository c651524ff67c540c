"""The token request, as LivePerson's page on the Connector API has it."""

import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import requests
from pydantic import SecretStr

from worker import net
from worker.core.account import Account, ApiVersion
from worker.core.appjwt import Check, TokenRefusedError
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.redact import redacted
from worker.core.unchecked import TokenResponse

_MAX_EXCERPT = 160
_BEARER = "Bearer"
_MAX_TYPE_LENGTH = 40
_OAUTH_ERRORS = frozenset(
    {"invalid_request", "invalid_client", "invalid_grant"}
    | {"unauthorized_client", "unsupported_grant_type", "invalid_scope"}
)
"""RFC 6749, 5.2: what a token request can be refused with. Somebody has to act."""
_LAST_WORD = re.compile(r"[\w.~+/=%-]+$")
_REQUESTS: dict[ApiVersion, tuple[str, dict[str, str]]] = {
    "1.0": (
        "https://{host}/sentinel/api/account/{account_id}/app/token?v=1.0&grant_type=client_credentials",
        {},
    ),
    "2.0": (
        "https://{host}/sentinel/api/v2/account/{account_id}/app/token",
        {"grant_type": "client_credentials"},
    ),
}
"""Per version of the API: where to, and what goes into the form beside the credentials, as LivePerson documents it."""

_NEXT_STEPS = {401: "; check client_id and client_secret in the account's secret, and the app at LivePerson"}
"""By status."""


class SentinelClient:
    def __init__(self, http: requests.Session, *, api_version: ApiVersion) -> None:
        """:param api_version: an account may name another."""
        self._http = http
        self._api_version = api_version
        self.on_request: Callable[[str, int | None, float, datetime | None], object] = lambda *_: None
        """Called with the host, the answer's status (None = none came), the seconds it took and Sentinel's clock."""

    def reach(self, host: str, timeout: timedelta) -> datetime | None:
        """Connect without asking for anything: any answer will do. Sentinel's clock; RefreshError if there is none."""
        try:
            response = self._http.get(f"https://{host}/", timeout=timeout.total_seconds())
        except net.RedirectError as redirect:
            response = redirect.response
        except net.ExchangeError as error:
            raise RefreshError(Stage.SENTINEL, Kind.TRANSIENT, str(error)) from error
        return net.server_time(response)

    def request_token(self, account: Account, host: str, timeout: timedelta) -> TokenResponse:
        """Request a new token; RefreshError at stage sentinel."""
        secret = account.client_secret.get_secret_value()
        url, form = _REQUESTS[account.api_version or self._api_version]
        form = {"client_id": account.client_id, "client_secret": secret, **form}
        started = time.monotonic()
        try:
            response = self._http.post(
                url.format(host=host, account_id=account.account_id), data=form, timeout=timeout.total_seconds()
            )
        except net.ExchangeError as error:
            self.on_request(host, None, time.monotonic() - started, None)
            raise RefreshError(
                Stage.SENTINEL, Kind.TRANSIENT, str(error), host=host, timed_out=error.timed_out
            ) from error
        status, now = response.status_code, net.server_time(response)
        self.on_request(host, status, time.monotonic() - started, now)
        parsed = net.parse_json(response) if response.ok else None
        body = parsed if isinstance(parsed, dict) else {}
        token = body.get("access_token")
        if not isinstance(token, str) or not token:
            raise _refusal(host, response, body, secret)
        token_type = _BEARER if body.get("token_type") is None else body["token_type"]
        if not isinstance(token_type, str) or token_type.lower() != _BEARER.lower():
            shown = redacted(str(token_type), secret)[:_MAX_TYPE_LENGTH]
            raise TokenRefusedError(Check.TOKEN_TYPE, f"expected {_BEARER}, got {shown or 'nothing'}")
        return TokenResponse(raw=SecretStr(token), token_type=token_type, now=now)


def _refusal(host: str, response: requests.Response, body: Mapping[str, Any], secret: str) -> RefreshError:
    """Return the error of an answer without a token."""
    status, text = response.status_code, f"{host} answers {response.status_code}"
    if response.ok and "error" not in body:
        return RefreshError(Stage.SENTINEL, Kind.TRANSIENT, f"{text} without an access_token", status=status, host=host)
    if response.ok and str(body["error"]) in _OAUTH_ERRORS:
        status = requests.codes.bad_request  # which is the status that these codes come with
    excerpt = redacted(_excerpt(response.content), secret)[:_MAX_EXCERPT]
    return RefreshError(
        Stage.SENTINEL,
        Kind.of(Stage.SENTINEL, status),
        text + (f": {excerpt}" if excerpt else "") + _NEXT_STEPS.get(status, ""),
        status=status,
        retry_after=net.retry_after(response),
        host=host,
    )


def _excerpt(body: bytes) -> str:
    """Return the first characters, up to a word's end: half of a secret could not be recognised.

    Not requests' `text`: that believes any charset, and without one guesses from all of the body.
    """
    text = body[: _MAX_EXCERPT * 4].decode(errors="replace")
    return text if len(body) <= _MAX_EXCERPT * 4 else _LAST_WORD.sub("", text)
