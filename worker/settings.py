"""All settings, and the only reader of the environment and the files that configure the program."""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from worker.core.account import ApiVersion, join_path
from worker.core.loopback import is_loopback
from worker.values import (
    Duration,
    File,
    Headers,
    HostName,
    Hosts,
    Listen,
    LogFormat,
    LoginMethod,
    LogLevel,
    Prefix,
    Text,
    Url,
    VaultPath,
    Verification,
)

DEFAULT_FILE = Path("/etc/appjwt-worker/worker.toml")

_PREFIX = "APPJWT_"
_FILE_VARIABLE = "APPJWT_CONFIG"
_KUBERNETES_SERVICE_LINK = re.compile(r".*(_SERVICE_HOST|_SERVICE_PORT(_.*)?|_PORT|_PORT_[0-9]+_.*)")
_SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_MIN_FRACTION, _MAX_FRACTION = 0.05, 0.95
"""Fractions of the lifetime: a refresh at its start would be a hot loop, one at its end too late."""
_VAULT_NAMES = {"ADDR": "address", "CACERT": "ca_cert", "CAPATH": "ca_cert"} | {
    name: name.lower() for name in ("NAMESPACE", "CLIENT_CERT", "CLIENT_KEY", "TLS_SERVER_NAME", "TOKEN")
}
"""Of two names for one setting the first that is set counts."""
_UNSUPPORTED_NAMES = frozenset(
    {"AGENT_ADDR", "CACERT_BYTES", "CLIENT_TIMEOUT", "HEADERS", "HTTP_PROXY", "PROXY_ADDR", "SKIP_VERIFY", "SRV_LOOKUP"}
)
"""They change how Vault's own clients connect; a user who sets one expects the same here."""
_FALSE = ("", "0", "f", "false")


class SettingsError(Exception):
    """The settings cannot be used; the text has a line per fault."""


class _Table(BaseModel):
    # extra: unknown names are reported below; forbidden here, a service link (APPJWT_VAULT_SERVICE_HOST) would fail
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    may_be_empty: ClassVar[str | None] = None
    """The key that may be empty; for all others an empty value is an absent one."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value != "" or key == cls.may_be_empty}


class VaultSettings(_Table):
    address: Url = Field(description="https; plain http to loopback only, or with allow_http = true")
    allow_http: bool = False
    namespace: VaultPath | None = None
    ca_cert: File | None = Field(None, description="the only CAs that count: a PEM file or a folder of such")
    client_cert: File | None = None
    client_key: File | None = None
    tls_server_name: HostName | None = Field(None, description="in Vault's certificate, where it is not the address's")
    headers: Headers | None = None
    timeout: Duration = Field(timedelta(seconds=10), gt=timedelta(0), le=timedelta(minutes=1))
    auth_method: LoginMethod | None = Field(None, description="absent = token if one is set, else kubernetes")
    auth_mount: VaultPath | None = Field(None, description="absent = the method's name")
    role: Text | None = None
    jwt_file: File = _SERVICE_ACCOUNT_TOKEN
    role_id: Text | None = None
    secret_id_file: File | None = None
    token: SecretStr | None = None
    token_file: File | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (
            self.address.startswith("http:")
            and not is_loopback(urlsplit(self.address).hostname)
            and not self.allow_http
        ):
            raise ValueError("vault.address: plain http only to loopback, or where vault.allow_http is true")
        if bool(self.client_cert) is not bool(self.client_key):
            raise ValueError("vault.client_cert and vault.client_key: set both")
        if self.token and self.token_file:
            raise ValueError("vault.token and vault.token_file: set one of them")
        if self.method == "token" and not (self.token or self.token_file):
            raise ValueError("vault.auth_method is token: set vault.token or vault.token_file")
        if self.method == "approle" and not self.role_id:
            raise ValueError(
                "vault.auth_method is approle: set vault.role_id, and vault.secret_id_file if the role requires one"
            )
        if self.method in ("kubernetes", "jwt") and not self.role:
            other = "" if self.auth_method else "; vault.auth_method or vault.token select another one"
            raise ValueError(f"vault.role: missing for the login by {self.method}{other}")
        return self

    @property
    def method(self) -> LoginMethod:
        return self.auth_method or ("token" if self.token or self.token_file else "kubernetes")


class AccountsSettings(_Table):
    may_be_empty = "prefix"

    mount: VaultPath = "secret"
    prefix: Prefix = "liveperson/accounts"
    sync_interval: Duration = Field(timedelta(seconds=60), ge=timedelta(seconds=1))

    @property
    def path(self) -> str:
        """Return the accounts' path in Vault, with the mount."""
        return join_path(self.mount, self.prefix)


class TokensSettings(_Table):
    may_be_empty = "prefix"

    mount: VaultPath = "secret"
    prefix: Prefix = "liveperson/tokens"
    resync_interval: Duration = Field(timedelta(minutes=5), ge=timedelta(seconds=1))


class SentinelSettings(_Table):
    domain_api: Url = "https://api.liveperson.net"
    domain_cache_ttl: Duration = Field(timedelta(hours=12), le=timedelta(hours=24))
    allowed_hosts: Hosts = Field((".liveperson.net",), min_length=1)
    api_version: ApiVersion = "1.0"
    timeout: Duration = Field(timedelta(seconds=10), gt=timedelta(0), le=timedelta(minutes=1))
    ca_cert: File | None = None
    verify_signature: Verification = Field("off", description="off, jwks, or a PEM file with the public keys")
    max_in_flight: int = Field(8, ge=1, le=64)
    max_per_second: float = Field(20, gt=0, le=1000)

    @model_validator(mode="after")
    def _requires_https(self) -> Self:
        if self.domain_api.startswith("http:") and not is_loopback(urlsplit(self.domain_api).hostname):
            raise ValueError("sentinel.domain_api: plain http only to loopback")
        return self


class RefreshSettings(_Table):
    at: float = Field(0.5, ge=0.1, le=0.9)
    jitter: float = Field(0.05, ge=0, le=0.2)

    @model_validator(mode="after")
    def _within_lifetime(self) -> Self:
        min_fraction, max_fraction = (round(fraction, 6) for fraction in (self.at - self.jitter, self.at + self.jitter))
        if min_fraction < _MIN_FRACTION or max_fraction > _MAX_FRACTION:
            raise ValueError(
                f"refresh.at, refresh.jitter: at - jitter must be {_MIN_FRACTION} or more, "
                f"at + jitter {_MAX_FRACTION} or less"
            )
        return self


class HttpSettings(_Table):
    may_be_empty = "listen"

    listen: Listen = "127.0.0.1:8080"

    @property
    def address(self) -> tuple[str, int] | None:
        """Return host and port; None = no HTTP port."""
        host, _, port = self.listen.rpartition(":")
        return (host.strip("[]"), int(port)) if self.listen else None


class LogSettings(_Table):
    level: LogLevel = "info"
    format: LogFormat = "auto"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_ignore_empty=True,
        extra="ignore",  # unknown names are found below, with the nearest right one
        frozen=True,
        hide_input_in_errors=True,
    )

    vault: VaultSettings
    accounts: AccountsSettings = AccountsSettings()
    tokens: TokensSettings = TokensSettings()
    sentinel: SentinelSettings = SentinelSettings()
    refresh: RefreshSettings = RefreshSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _prefixes_are_disjoint(self) -> Self:
        one, other = (f"{each.prefix}/" if each.prefix else "" for each in (self.accounts, self.tokens))
        if self.accounts.mount == self.tokens.mount and (one.startswith(other) or other.startswith(one)):
            hint = "" if one and other else "; an empty one is the whole mount: set another accounts.mount"
            raise ValueError(f"accounts.prefix and tokens.prefix: on one mount neither may contain the other{hint}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


def load(file: Path | None) -> Settings:
    """Read environment and file, of which the environment wins; SettingsError with a line per fault.

    :param file: None = the one that APPJWT_CONFIG names, else the default file if it exists.
    """
    values = _read_file(file)
    faults = [*_unknown_variables(), *_unknown_keys(values)]
    tables: dict[str, Any] = {table: content for table, content in values.items() if isinstance(content, dict)}
    vault = tables.setdefault("vault", {})
    for name, key in _VAULT_NAMES.items():
        found = os.environ.get(f"VAULT_{name}") or os.environ.get(f"BAO_{name}")
        if found and not (key == "token" and ("token_file" in vault or os.environ.get(f"{_PREFIX}VAULT_TOKEN_FILE"))):
            vault.setdefault(key, found)
    if os.environ.get(variable("http.listen")) == "":  # the only empty variable with a meaning
        tables["http"] = {**tables.get("http", {}), "listen": ""}
    try:
        loaded = Settings(**tables)
    except ValidationError as error:
        faults += _messages(error)
    except (
        ValueError
    ):  # a variable with the name of a table: pydantic-settings expects JSON in it, and it is reported as unknown
        if not faults:
            raise
    if faults:
        raise SettingsError("\n".join(faults))
    return loaded


def unsupported_variables() -> list[str]:
    """Return the variables of Vault's own clients that are set, would change how it is reached, and are not read."""
    candidates = sorted(f"{vendor}_{name}" for vendor in ("VAULT", "BAO") for name in _UNSUPPORTED_NAMES)
    return [name for name in candidates if os.environ.get(name, "").lower() not in _FALSE]


def names() -> list[str]:
    """Return every setting as `table.key`."""
    tables = {table: field.annotation for table, field in Settings.model_fields.items()}
    return [f"{name}.{key}" for name, table in tables.items() if table for key in table.model_fields]


def variable(name: str) -> str:
    """Return the environment variable of `table.key`."""
    return _PREFIX + name.replace(".", "_").upper()


def _read_file(file: Path | None) -> dict[str, Any]:
    named = file or (Path(os.environ[_FILE_VARIABLE]) if os.environ.get(_FILE_VARIABLE) else None)
    path = named or DEFAULT_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if named is None and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise SettingsError(f"{path}: cannot be read: {(error.strerror or 'unknown').lower()}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not valid UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None


def _unknown_variables() -> Iterator[str]:
    known = [each.removeprefix(_PREFIX) for each in (*map(variable, names()), _FILE_VARIABLE)]
    for found in sorted(os.environ):
        name = found.removeprefix(_PREFIX)
        if name not in (found, *known) and not _KUBERNETES_SERVICE_LINK.fullmatch(found):
            yield f"{found}: there is no such setting{_nearest(name, known, _PREFIX)}"


def _unknown_keys(values: dict[str, Any]) -> Iterator[str]:
    known = names()
    for table, content in values.items():
        if not isinstance(content, dict):
            keys = {name.partition(".")[2]: name for name in known}
            near = difflib.get_close_matches(table, keys, n=1)
            yield f"{table}: must be inside a [table]{f'; did you mean {keys[near[0]]}?' if near else ''}"
            continue
        for key in content:
            if f"{table}.{key}" not in known:
                yield f"{table}.{key}: there is no such setting{_nearest(f'{table}.{key}', known)}"


def _nearest(name: str, known: list[str], prefix: str = "") -> str:
    without_table = [each for each in known if re.split(r"[._]", each, maxsplit=1)[-1] == name]
    near = without_table or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _messages(error: ValidationError) -> Iterator[str]:
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        if each["type"] == "model_type":
            continue  # what should be a table was reported as unknown
        name = ".".join(str(part) for part in each["loc"][:2])
        text = "missing" if each["type"] == "missing" else each["msg"].removeprefix("Value error, ")
        if name == "vault" and each["type"] == "missing":
            name = "vault.address"
        if "." in name:
            text = f"{name}: {text[:1].lower()}{text[1:]}"
        yield re.sub(rf"\b({'|'.join(names())})\b", lambda found: f"{found[0]} ({variable(found[0])})", text)
