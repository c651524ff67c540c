"""hvac's seam: the exchange is net's, the errors are ours."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests
from hvac.adapters import RawAdapter

from worker import net
from worker.core.redact import redacted
from worker.vault.errors import RequestFailure, error_text, mapping, texts, unexpected_response

_REMEDIES = {
    412: "try again: this server lags behind the active node",
    429: "raise the quota that refuses: vault list sys/quotas/rate-limit",
}
_TLS_REQUIRED = b"HTTP request to an HTTPS server"  # what Go's servers say to who speaks in clear, with status 400
_SECRET_FIELDS = frozenset({"secret_id", "jwt", "access_token", "client_secret", "client_token"})
"""Fields of requests and answers that no text may quote."""


class VaultAdapter(RawAdapter):  # type: ignore[misc] # hvac ships no types
    """Answers are their JSON; RequestFailure where none came, or a refusal."""

    def __init__(
        self,
        *,
        on_response: Callable[[requests.Response], None],
        on_warnings: Callable[[str, list[str], list[str]], None],
        **kwargs: Any,
    ) -> None:
        """:param on_warnings: called with a path, the warnings in the answer, and the secrets that none may quote."""
        super().__init__(**kwargs)
        self._on_response = on_response
        self._on_warnings = on_warnings

    def without_namespace(self) -> "VaultAdapter":
        """The way to Vault without our namespace."""
        adapter = copy.copy(self)
        adapter.namespace = None
        return adapter

    def get_login_token(self, response: Any) -> Any:
        return response["auth"]["client_token"]

    def request(self, method: str, url: str, headers: Any = None, **kwargs: Any) -> Any:
        kwargs["raise_exception"] = False
        try:
            response = super().request(method, url, headers, **kwargs)
        except net.ExchangeError as error:
            raise RequestFailure(str(error), remedy=error.remedy, detail=error.detail) from error
        self._on_response(response)
        if not response.ok and _TLS_REQUIRED in response.content:
            raise RequestFailure("it speaks https, not http: see vault.address")
        body = net.parse_json(response) if response.content else {}
        if method == "patch" and not response.content:
            body = {"errors": []}  # a 404 to a PATCH has no body; nothing is taken for removed by it
        status, path = response.status_code, url.removeprefix("/v1/")
        if not response.ok:
            message = redacted(error_text(body), *self._secrets(kwargs))
            refusal = RequestFailure(
                f"status {status}{message}",
                status=status,
                body=body,
                remedy=_REMEDIES.get(status),
                request=(method, path),
                retry_after=net.retry_after(response),
            )
            if status == requests.codes.not_found and not message and not refusal.is_not_found:
                raise unexpected_response(status)  # a gateway without a route, say: no secret is gone
            raise refusal
        if not isinstance(body, dict):
            raise unexpected_response()
        warnings = texts(body.get("warnings"))
        if warnings and not mapping(body.get("auth")).get("mfa_requirement"):  # which fails the login in words of ours
            self._on_warnings(path, warnings, [*self._secrets(kwargs, body)])
        return body

    def _secrets(self, request: Mapping[str, Any], answer: Mapping[str, Any] | None = None) -> Iterator[str]:
        """Yield what was sent or returned and must not come back in a text."""
        yield self.token or ""
        yield from self.session.secrets
        for body in (mapping(request.get("json")), mapping(mapping(answer).get("data")), mapping(answer)):
            fields = {**body, **mapping(body.get("auth")), **mapping(body.get("data"))}
            yield from (
                value for key, value in fields.items() if isinstance(value, str) and value and key in _SECRET_FIELDS
            )
