"""The auth methods: each logs in to Vault and returns a token."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import hvac
import requests
from pydantic import SecretStr

from worker.core.errors import Kind
from worker.vault.errors import RequestFailure


class Login(Protocol):
    @property
    def method(self) -> str: ...

    @property
    def revocable(self) -> bool:
        """Return True if each login creates a token, which is then ours to revoke."""

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        """Log in and return `auth`: client_token, lease_duration (seconds, 0 = unlimited), renewable, num_uses.

        :param client: a client without a token.
        """

    @property
    def pauses(self) -> Sequence[float]:
        """Return the backoff in seconds after the first refusal, the second and so on."""

    def has_changed(self) -> bool:
        """Return True if the login credentials changed since the last login attempt."""


HEADER_SAFE: Final = re.compile(r"[\x21-\x7e]+")
"""What a header can carry; the HTTP library quotes any other value in its error."""

_MIN_USES: Final = 20
"""With fewer there would be a login every few requests, and each may use up a secret_id."""

_PAUSES: Final = (5.0,)
_APPROLE_PAUSES: Final = (30.0, 901.0)
"""Vault locks a role for 15 minutes after five refused logins within 15 minutes, and replicas share the role."""


class _File:
    """A file with a single word, which other programs replace."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._identity_at_read: tuple[int, int, int] | None = None

    def read(self) -> str:
        """Return the word; RequestFailure if the file cannot be used."""
        self._identity_at_read = self._identity()
        source = f"vault.{self._what}_file {self._path}"
        try:
            return _single_word(self._path.read_text(encoding="utf-8", errors="replace"), source, self._what)
        except OSError as error:
            raise RequestFailure(f"{source} cannot be read: {(error.strerror or 'unknown').lower()}") from None

    def has_changed(self) -> bool:
        return self._identity() not in (None, self._identity_at_read)

    def _identity(self) -> tuple[int, int, int] | None:
        """Identify the file's version; its modification time is not enough, as `cp -p` preserves it."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


@dataclass(slots=True)
class AppRoleLogin:
    method: ClassVar[str] = "approle"
    revocable: ClassVar[bool] = True
    pauses: ClassVar[Sequence[float]] = _APPROLE_PAUSES

    mount: str
    role_id: str
    secret_id_file: Path | None
    """Read at each login, for it may be rotated. None = the role has bind_secret_id=false."""
    _file: _File | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._file = _File(self.secret_id_file, "secret_id") if self.secret_id_file else None

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        secret_id = self._file.read() if self._file else None
        return _auth(client.auth.approle.login(self.role_id, secret_id, use_token=False, mount_point=self.mount))

    def has_changed(self) -> bool:
        return self._file is not None and self._file.has_changed()


@dataclass(slots=True)
class JwtLogin:
    """The methods kubernetes and jwt, which send the same request."""

    revocable: ClassVar[bool] = True
    pauses: ClassVar[Sequence[float]] = _PAUSES

    method: str
    mount: str
    role: str
    jwt_file: Path
    """Read at each login: a projected service account token is replaced before it expires."""
    _file: _File = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._file = _File(self.jwt_file, "jwt")

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        jwt = self._file.read()
        return _auth(client.auth.jwt.jwt_login(self.role, jwt, use_token=False, path=self.mount))

    def has_changed(self) -> bool:
        return self._file.has_changed()


@dataclass(frozen=True, slots=True)
class TokenLogin:
    method: ClassVar[str] = "token"
    revocable: ClassVar[bool] = False
    pauses: ClassVar[Sequence[float]] = _PAUSES

    token: SecretStr

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        return _lookup_self(client, _single_word(self.token.get_secret_value(), "vault.token", "token"), renew=True)

    def has_changed(self) -> bool:
        return False


@dataclass(slots=True)
class TokenFileLogin:
    """A token that another program maintains, such as an Agent: never renewed; read again on change or expiry."""

    method: ClassVar[str] = "token"
    revocable: ClassVar[bool] = False
    pauses: ClassVar[Sequence[float]] = _PAUSES

    token_file: Path
    _file: _File = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._file = _File(self.token_file, "token")

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        return _lookup_self(client, self._file.read(), renew=False)

    def has_changed(self) -> bool:
        return self._file.has_changed()


_REMEDIES: dict[tuple[str, int | None], str] = {
    ("approle", 400): "see vault.role_id and vault.secret_id_file: the secret_id may have expired or be used up",
    ("approle", 403): "see vault.auth_mount",
    ("kubernetes", 400): "see vault.role",
    ("kubernetes", 403): "see the service account, namespace and audience that vault.role is bound to, "
    "vault.auth_mount, and whether Vault reaches the Kubernetes API for a TokenReview",
    ("jwt", 400): "see vault.role, and the subject, audience, issuer and key that it requires",
    ("jwt", 403): "see vault.auth_mount",
    ("token", 403): "see vault.token or vault.token_file: the token may have expired, "
    'or its policy lacks path "auth/token/lookup-self" { capabilities = ["read"] }',
}


def remedy_for(method: str, failure: RequestFailure) -> str | None:
    """Return what to check after a refused login: Vault itself gives no details."""
    if failure.is_namespace_unknown:
        return "see vault.token or vault.token_file: the namespace after the token's last dot is unknown to this server"
    return (
        "see vault.namespace" if failure.status == requests.codes.not_found else _REMEDIES.get((method, failure.status))
    )


def is_permanent_refusal(method: str, status: int | None) -> bool:
    """Return True if retrying cannot help after this refusal; most others can be caused by an outage."""
    return (method, status) == ("approle", requests.codes.bad_request)


def _auth(answer: dict[str, Any]) -> dict[str, Any]:
    """Return `auth` of the response; RequestFailure if a second factor is required first."""
    auth = dict(answer["auth"])
    if auth.get("mfa_requirement"):
        text = "Vault asks for a second factor (login MFA), which no program can give"
        raise _permanent(text, "take vault.auth_mount, or the role's entity, out of identity/mfa/login-enforcement")
    return auth


def _lookup_self(client: hvac.Client, token: str, *, renew: bool) -> dict[str, Any]:
    client.token = token
    data = client.auth.token.lookup_self()["data"]
    ttl = data["ttl"] or (1 if data.get("expire_time") else 0)  # 0 = unlimited, or under a second
    return {
        "client_token": token,
        "lease_duration": ttl,
        "renewable": renew and data["renewable"],
        "num_uses": data.get("num_uses"),
    }


def uses_of(auth: Mapping[str, Any]) -> float:
    """Return the number of requests a login allows, inf = unlimited; RequestFailure if it is too small."""
    uses = auth.get("num_uses") or math.inf
    if uses < _MIN_USES:
        text = f"it may be used {uses} times, and at least {_MIN_USES} are needed"
        raise _permanent(text, "set token_num_uses = 0 on its role, or make the token without -use-limit")
    return float(uses)


def _permanent(text: str, remedy: str) -> RequestFailure:
    return RequestFailure(f"{text} ({remedy})", kind=Kind.PERMANENT, remedy=remedy, detail=text)


def _single_word(text: str, source: str, what: str) -> str:
    word = text.strip()
    if not HEADER_SAFE.fullmatch(word):
        raise RequestFailure(f"{source} {f'must contain a single {what}' if word else 'is empty'}")
    return word
