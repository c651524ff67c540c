"""Errors of requests to Vault: the failure as Vault answered it, and the error that adds the request's purpose."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, Self

import requests

from worker.core.errors import Kind, RefreshError, Stage

_WRONG_VERSION: Final = "Invalid path for a versioned K/V"  # a version 1 path, on a mount that is version 2
_TRANSIENT_TEXTS: Final = ("from non-versioned to versioned data", _WRONG_VERSION)  # during and after a mount's upgrade
_UNKNOWN_NAMESPACE: Final = "failed to look up namespace from the token"  # HashiCorp's server, with status 500
_UNEXPECTED_RESPONSE: Final = "the answer is not Vault's"
_LIST_HEAD: Final = re.compile(r"\d+ errors? occurred:\s*\*\s+")
_LIST_ITEM: Final = re.compile(r"\s*\n\s*\*\s+")
_MAX_TEXT_LENGTH: Final = 200


class RequestFailure(Exception):  # noqa: N818 - the error is made of it
    """A failed request, without its purpose; the text may be logged and shown.

    `status` None = no answer came, and whether the request took effect is unknown.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        body: Any = None,
        kind: Kind | None = None,
        remedy: str | None = None,
        detail: str | None = None,
        request: tuple[str, str] | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        """
        :param kind: None = by the status.
        :param detail: the text without the remedy; None = the text contains no remedy.
        :param request: the method and path that were refused.
        """
        super().__init__(text)
        self.status: Final = status
        self.body: Final = body
        self.remedy: Final = remedy
        self.detail: Final = text if detail is None else detail
        self.request: Final = request
        self.retry_after: Final = retry_after
        if kind is None and any(each in text for each in _TRANSIENT_TEXTS):
            kind = Kind.TRANSIENT
        if kind is None and self.is_namespace_unknown:
            kind = Kind.PERMANENT
        self.kind: Final = kind or Kind.of(Stage.VAULT, status)

    @property
    def is_not_found(self) -> bool:
        """Return True if nothing is at the path: a 404 with an empty error list, or a deleted version's metadata.

        A 404 with an error text is about the mount or the namespace.
        """
        body = mapping(self.body)
        is_from_vault = body.get("errors") == [] or "metadata" in mapping(body.get("data"))
        return self.status == requests.codes.not_found and is_from_vault

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
        """Return True if a rate limit refused the request, so that it had no effect."""
        return self.status == int(requests.codes.too_many_requests)

    @property
    def is_wrong_version(self) -> bool:
        """Return True if the KV mount is of version 2 by now, and the path is one of version 1."""
        return _WRONG_VERSION in error_text(self.body)


class VaultError(RefreshError):
    """A failed operation on Vault; the text names its purpose."""

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        stage: Stage = Stage.VAULT,
        kind: Kind | None = None,
        remedy: str | None = None,
        detail: str | None = None,
        failure: RequestFailure | None = None,
    ) -> None:
        """
        :param kind: None = by the status.
        :param failure: the failed request; None = the request succeeded, but its answer cannot be used.
        """
        kind = kind or Kind.of(stage, status)
        retry_after = failure.retry_after if failure else None
        super().__init__(stage, kind, text, status=status, remedy=remedy, detail=detail, retry_after=retry_after)
        self.failure: Final = failure

    @classmethod
    def of(
        cls,
        failure: RequestFailure,
        purpose: str | None,
        *,
        stage: Stage = Stage.VAULT,
        kind: Kind | None = None,
        hint: str | None = None,
        remedy: str | None = None,
    ) -> Self:
        """Return the error of a failed request.

        :param purpose: what the request was for; comes first in the text.
        :param kind: None = the failure's.
        :param hint: what the failure may mean, for the text.
        :param remedy: what to do about it; None = the hint, or else the failure's own.
        """
        before = f"{purpose}: " if purpose else ""
        text = f"{before}{failure} ({hint})" if hint else f"{before}{failure}"
        return cls(
            text,
            status=failure.status,
            stage=stage,
            kind=kind or failure.kind,
            remedy=remedy or hint or failure.remedy,
            detail=text if hint and remedy else f"{before}{failure.detail}",
            failure=failure,
        )

    @property
    def is_not_found(self) -> bool:
        """Return True if nothing is at the path."""
        return self.failure is not None and self.failure.is_not_found


class LoginRefusedError(VaultError):
    """A refused login that somebody has to fix. It is retried as transient: refusals that pass look the same."""

    @property
    def reported_kind(self) -> Kind:
        return Kind.PERMANENT


class UnexpectedResponseError(VaultError):
    """A success, but not in Vault's form: sent by a gateway in front of Vault, or by another server at its address."""

    def __init__(self) -> None:
        super().__init__(_UNEXPECTED_RESPONSE)


def unexpected_response(status: int | None = None) -> RequestFailure:
    """Return the failure of an answer that is not in Vault's form; whether the request took effect is unknown."""
    return RequestFailure(_UNEXPECTED_RESPONSE if status is None else f"status {status}, and {_UNEXPECTED_RESPONSE}")


def mapping(value: object) -> Mapping[str, Any]:
    """Return the value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def error_text(body: Any) -> str:
    """Return Vault's errors, or if there are none its warnings, on one line that begins with a comma."""
    lines = "; ".join(
        _LIST_HEAD.sub("", each).strip() for each in texts(mapping(body).get("errors", mapping(body).get("warnings")))
    )
    text = " ".join(_LIST_ITEM.sub("; ", lines).split())
    return f", {text[:_MAX_TEXT_LENGTH]}" if text else ""


def texts(value: object) -> list[str]:
    """Return a list's items as texts, each cut to 200 characters; an empty list if the value is no list."""
    return [str(each)[:_MAX_TEXT_LENGTH] for each in value] if isinstance(value, list) else []
