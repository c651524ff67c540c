"""hvac's seam: the exchange is net's, the errors are ours."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import requests
from hvac.adapters import RawAdapter

from worker import net
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.redact import redacted

_WRONG_VERSION = "Invalid path for a versioned K/V"  # a path of version 1 on a KV mount that is version 2 by now
_PASSING_TEXTS = ("from non-versioned to versioned data", _WRONG_VERSION)  # while a KV mount is upgraded, and after it
_UNKNOWN_NAMESPACE = "failed to look up namespace from the token"  # HashiCorp's server, with status 500
_REMEDIES = {
    412: "try again: this server lags behind the active node",
    429: "raise the quota that refuses: vault list sys/quotas/rate-limit",
}
_WANTS_TLS = b"HTTP request to an HTTPS server"  # what Go's servers say to who speaks in clear, with status 400
_LIST_HEAD = re.compile(r"\d+ errors? occurred:\s*\*\s+")
_LIST_ITEM = re.compile(r"\s*\n\s*\*\s+")
_LONGEST_TEXT = 200
_SECRET = frozenset({"secret_id", "jwt", "access_token", "client_secret", "client_token"})
"""Fields of requests and answers that no text may quote."""


class VaultError(RefreshError):
    """A request to Vault failed. `status` None = no answer came, and whether a write was made is unknown."""

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        body: Any = None,
        stage: Stage = Stage.VAULT,
        kind: Kind | None = None,
        remedy: str | None = None,
        detail: str | None = None,
        request: tuple[str, str] | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        """
        :param kind: None = by the status.
        :param request: the method and path that were refused.
        """
        if kind is None and any(each in text for each in _PASSING_TEXTS):
            kind = Kind.TRANSIENT
        if kind is None and _UNKNOWN_NAMESPACE in text:
            kind = Kind.PERMANENT
        kind = kind or Kind.of(stage, status)
        super().__init__(stage, kind, text, status=status, remedy=remedy, detail=detail, retry_after=retry_after)
        self.body: Final = body
        self.request: Final = request

    @property
    def is_not_found(self) -> bool:
        """Return True if nothing is at the path: a 404 with an empty error list, or a deleted version's metadata.

        A 404 with a text is about the way there: the mount or namespace.
        """
        body = mapping(self.body)
        is_vaults = body.get("errors") == [] or "metadata" in mapping(body.get("data"))
        return self.status == requests.codes.not_found and is_vaults

    @property
    def is_namespace_unknown(self) -> bool:
        """Return True if the token carries a namespace that the server does not have."""
        return _UNKNOWN_NAMESPACE in str(self)

    @property
    def is_token_refused(self) -> bool:
        """Return True if the token may have ended; a policy that forbids the request looks the same."""
        return self.status == requests.codes.forbidden or self.is_namespace_unknown

    @property
    def is_throttled(self) -> bool:
        """Return True if a rate limit refused the request, which carried out nothing."""
        return self.status == int(requests.codes.too_many_requests)

    @property
    def is_wrong_version(self) -> bool:
        """Return True if the KV mount is of version 2 by now, and the path is one of version 1."""
        return _WRONG_VERSION in _said(self.body)

    def with_prefix(self, prefix: str, *, stage: Stage | None = None, kind: Kind | None = None) -> "VaultError":
        """Return the same error with what was tried before its text."""
        return self._copy(f"{prefix}: {self}", f"{prefix}: {self.detail}", stage=stage, kind=kind)

    def with_remedy(self, hint: str | None, remedy: str | None = None) -> "VaultError":
        """Return the same error with a hint in its text, and what to do about it; None = the hint."""
        text = f"{self} ({hint})" if hint else str(self)
        detail = text if hint and remedy else self.detail
        return self._copy(text, detail, remedy=remedy or hint)

    def _copy(
        self,
        text: str,
        detail: str,
        *,
        stage: Stage | None = None,
        kind: Kind | None = None,
        remedy: str | None = None,
    ) -> "VaultError":
        return VaultError(
            text,
            status=self.status,
            body=self.body,
            stage=stage or self.stage,
            kind=kind or self.kind,
            remedy=remedy or self.remedy,
            detail=detail,
            request=self.request,
            retry_after=self.retry_after,
        )


class LoginRefusedError(VaultError):
    """A refused login that wants somebody. Retries go by its transient kind: other refusals look alike and pass."""

    @property
    def reported_kind(self) -> Kind:
        return Kind.PERMANENT


class UnexpectedResponseError(VaultError):
    """A success or a 404, but not in Vault's form: a gateway before it answers, or somebody else at its address."""

    def __init__(self, status: int | None = None) -> None:
        text = "the answer is not Vault's"
        super().__init__(text if status is None else f"status {status}, and {text}")


class VaultAdapter(RawAdapter):  # type: ignore[misc] # hvac ships no types
    """Answers are their JSON; every refusal is a VaultError."""

    def __init__(
        self,
        *,
        on_answer: Callable[[requests.Response], None],
        on_warnings: Callable[[str, list[str], list[str]], None],
        **kwargs: Any,
    ) -> None:
        """:param on_warnings: called with a path, the warnings in the answer, and the secrets that none may quote."""
        super().__init__(**kwargs)
        self._on_answer = on_answer
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
            raise VaultError(str(error), remedy=error.remedy, detail=error.detail) from error
        self._on_answer(response)
        if not response.ok and _WANTS_TLS in response.content:
            raise VaultError("it speaks https, not http: see vault.address")
        body = net.parse_json(response) if response.content else {}
        if method == "patch" and not response.content:
            body = {"errors": []}  # a 404 to a PATCH has no body; nothing is taken for removed by it
        status, path = response.status_code, url.removeprefix("/v1/")
        if not response.ok:
            said = redacted(_said(body), *self._secrets(kwargs))
            refusal = VaultError(
                f"status {status}{said}",
                status=status,
                body=body,
                remedy=_REMEDIES.get(status),
                request=(method, path),
                retry_after=net.retry_after(response),
            )
            if status == requests.codes.not_found and not said and not refusal.is_not_found:
                raise UnexpectedResponseError(status)  # a gateway without a route, say: no secret is gone
            raise refusal
        if not isinstance(body, dict):
            raise UnexpectedResponseError
        warnings = _texts(body.get("warnings"))
        if warnings and not mapping(body.get("auth")).get("mfa_requirement"):  # which fails the login in words of ours
            self._on_warnings(path, warnings, [*self._secrets(kwargs, body)])
        return body

    def _secrets(self, request: Mapping[str, Any], answer: Mapping[str, Any] | None = None) -> Iterator[str]:
        """Yield what was sent or returned and must not come back in a text."""
        yield self.token or ""
        yield from self.session.secrets
        for body in (mapping(request.get("json")), mapping(mapping(answer).get("data")), mapping(answer)):
            fields = {**body, **mapping(body.get("auth")), **mapping(body.get("data"))}
            yield from (value for key, value in fields.items() if isinstance(value, str) and value and key in _SECRET)


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _said(body: Any) -> str:
    """Return Vault's errors, or the warnings in their place, on one line."""
    texts = _texts(mapping(body).get("errors", mapping(body).get("warnings")))
    lines = "; ".join(_LIST_HEAD.sub("", each).strip() for each in texts)
    text = " ".join(_LIST_ITEM.sub("; ", lines).split())
    return f", {text[:_LONGEST_TEXT]}" if text else ""


def _texts(value: object) -> list[str]:
    return [str(each)[:_LONGEST_TEXT] for each in value] if isinstance(value, list) else []
