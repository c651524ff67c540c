"""The ways to a Vault token."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import hvac
from pydantic import SecretStr

from worker.vault.adapter import VaultError


class Login(Protocol):
    @property
    def method(self) -> str: ...

    @property
    def own(self) -> bool:
        """Whether the token is made for us, so that it is ours to revoke."""

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        """Log in; the `auth` of the answer: client_token, lease_duration (seconds, 0 = endless), renewable."""

    def has_changed(self) -> bool:
        """Whether logging in now would give another token than the last time, though that one may live."""


@dataclass(frozen=True, slots=True)
class AppRoleLogin:
    method: ClassVar[str] = "approle"
    own: ClassVar[bool] = True

    mount: str
    role_id: str
    secret_id_file: Path
    """Read at each login: it may rotate."""

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        secret_id = _read(self.secret_id_file, "secret_id")
        answer = client.auth.approle.login(self.role_id, secret_id, use_token=False, mount_point=self.mount)
        return dict(answer["auth"])

    def has_changed(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class JwtLogin:
    """The methods kubernetes and jwt: on the wire they are the same."""

    own: ClassVar[bool] = True

    method: str
    mount: str
    role: str
    jwt_file: Path
    """Read at each login: a projected service account token is replaced before it ends."""

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        jwt = _read(self.jwt_file, "jwt")
        try:
            return dict(client.auth.jwt.jwt_login(self.role, jwt, use_token=False, path=self.mount)["auth"])
        except VaultError as error:
            raise error.with_hint(_HINTS.get((self.method, error.status))) from error

    def has_changed(self) -> bool:
        return False


_HINTS: dict[tuple[str, int | None], str] = {
    ("kubernetes", 403): "the role is not bound to this service account, namespace or audience, "
    "or Vault cannot ask the Kubernetes API for a TokenReview",
    ("kubernetes", 400): "is vault.role right?",
    ("jwt", 400): "are vault.role and the token's audience, issuer and subject those of the role?",
}


@dataclass(frozen=True, slots=True)
class TokenLogin:
    method: ClassVar[str] = "token"
    own: ClassVar[bool] = False

    token: SecretStr

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        return _looked_up(client, self.token.get_secret_value(), renew=True)

    def has_changed(self) -> bool:
        return False


@dataclass(slots=True)
class TokenFileLogin:
    """The token is somebody else's, such as an Agent's sink: never renewed, and read again on change or its end."""

    method: ClassVar[str] = "token"
    own: ClassVar[bool] = False

    token_file: Path
    _read_at: int | None = field(default=None, init=False)

    def __call__(self, client: hvac.Client) -> dict[str, Any]:
        self._read_at = self._changed_at()
        return _looked_up(client, _read(self.token_file, "token"), renew=False)

    def has_changed(self) -> bool:
        return self._changed_at() not in (None, self._read_at)

    def _changed_at(self) -> int | None:
        try:
            return self.token_file.stat().st_mtime_ns
        except OSError:
            return None


def _looked_up(client: hvac.Client, token: str, *, renew: bool) -> dict[str, Any]:
    client.token = token
    data = client.auth.token.lookup_self()["data"]
    return {"client_token": token, "lease_duration": data["ttl"], "renewable": renew and data["renewable"]}


def _read(file: Path, what: str) -> str:
    try:
        content = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise VaultError(f"the {what} file {file} cannot be read: {(error.strerror or 'unknown').lower()}") from None
    except UnicodeDecodeError:
        raise VaultError(f"the {what} file {file} holds more than a {what}") from None
    if not content or any(each.isspace() for each in content):
        raise VaultError(f"the {what} file {file} {'is empty' if not content else f'holds more than a {what}'}")
    return content
