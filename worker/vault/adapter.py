"""hvac's seam: the exchange is net's, the errors are ours."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests
from hvac.adapters import RawAdapter

from worker import net
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.redact import redacted

_PASSING_TEXT = "Waiting for the primary to upgrade"  # a standby just after its KV v2 mount was made, with status 400
_WANTS_TLS = b"HTTP request to an HTTPS server"  # what Go's servers say to who speaks in clear, with status 400
_LONGEST_TEXT = 200


class VaultError(RefreshError):
    """Vault did not do it. `status` None = no answer came, and whether a write was made is unknown."""

    def __init__(self, text: str, *, status: int | None = None, body: Any = None, stage: Stage = Stage.VAULT) -> None:
        kind = Kind.TRANSIENT if _PASSING_TEXT in text else Kind.of(stage, status)
        super().__init__(stage, kind, text, status=status)
        self.body = body

    @property
    def says_nothing_is_there(self) -> bool:
        """A 404 with a text is about the way there: the mount or the namespace is gone, not the secret."""
        return self.status == requests.codes.not_found and not _said(self.body)

    def saying(self, text: str, *, stage: Stage | None = None) -> "VaultError":
        """The same in other words."""
        said = VaultError(text, status=self.status, body=self.body, stage=stage or self.stage)
        said.kind, said.remedy = self.kind, self.remedy
        return said

    def with_hint(self, hint: str | None) -> "VaultError":
        """The same, with what to look at."""
        said = self.saying(f"{self} ({hint})") if hint else self
        said.remedy = hint or said.remedy
        return said


class OddAnswerError(VaultError):
    """A success, but not in Vault's form: somebody else answers at its address."""

    def __init__(self) -> None:
        super().__init__("the answer is not Vault's")


class VaultAdapter(RawAdapter):  # type: ignore[misc] # hvac ships no types
    """Answers are their JSON; every refusal is a VaultError."""

    def __init__(self, *, on_answer: Callable[[requests.Response], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._on_answer = on_answer

    def outside(self) -> "VaultAdapter":
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
            raise VaultError(str(error)) from error
        self._on_answer(response)
        if not response.ok and _WANTS_TLS in response.content:
            raise VaultError("it speaks https, not http: see vault.address")
        body = net.json_of(response) if response.content else {}
        if not isinstance(body, dict) and (response.ok or response.status_code == requests.codes.not_found):
            raise OddAnswerError  # a proxy's page, say; above all its 404 does not mean that a secret is gone
        if not response.ok:
            said = redacted(_said(body), *self._secrets(kwargs))
            raise VaultError(f"status {response.status_code}{said}", status=response.status_code, body=body)
        return body

    def _secrets(self, request: Mapping[str, Any]) -> Iterator[str]:
        """What was sent and must not come back in a text."""
        yield self.token or ""
        body = mapping(request.get("json"))
        sent = {**body, **mapping(body.get("data"))}
        yield from (value for key, value in sent.items() if key in ("secret_id", "jwt", "access_token"))


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _said(body: Any) -> str:
    """What Vault's error list says, on one line."""
    errors = mapping(body).get("errors")
    lines = " ".join(map(str, errors if isinstance(errors, list) else []))
    lines = lines.replace("1 error occurred:", "").replace("*", "")
    text = " ".join(lines.split())
    return f", {text[:_LONGEST_TEXT]}" if text else ""
