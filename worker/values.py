"""Parse the values of settings and flags: 20m, hosts with commas, a URL, HOST:PORT, a path in Vault."""

import contextlib
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr
from pydantic_settings import NoDecode

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_HOST = re.compile(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:\d{1,5})?")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RESERVED_HEADER = re.compile(
    r"accept(-encoding)?|connection|content-.*|host|transfer-encoding|user-agent|x-vault-.*", re.IGNORECASE
)
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_URL = re.compile(r"https?://[^\s/?#@]+[^\s?#@]*", re.IGNORECASE)


def duration(value: object) -> timedelta:
    """Parse `90s`, `20m`, `1h`; ValueError with a readable text."""
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value.strip()) if isinstance(value, str) else None
    if not match:
        raise ValueError("must be a duration such as 90s, 20m or 1h")
    try:
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    except OverflowError:
        raise ValueError("is longer than any duration can be") from None


def _reject_surrounding_space(value: object) -> object:
    """Refuse a space or line break at either end: an error or a terminal would not show it."""
    if isinstance(value, str) and value != value.strip():
        end, blank = ("begins", value[0]) if value[0].isspace() else ("ends", value[-1])
        raise ValueError(f"{end} with {'a line break' if blank.splitlines() == [''] else 'a space'}: remove it")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _verification(value: object) -> object:
    return lower if (lower := _lower(value)) in ("off", "jwks") else _reject_surrounding_space(value)


def _hosts(value: object) -> object:
    hosts = [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value
    if isinstance(hosts, list) and not all(_HOST.fullmatch(each) for each in hosts if isinstance(each, str)):
        raise ValueError("must be hosts, such as a.example:8443 or .example")
    return hosts


def _host_name(value: object) -> object:
    _reject_surrounding_space(value)
    if isinstance(value, str) and not _HOST_NAME.fullmatch(value):
        raise ValueError("must be a host name such as vault.example.com")
    return value


def _headers(value: object) -> object:
    """Read `Name=value,Name=value` or a table. Errors quote nothing: the values are secrets."""
    if isinstance(value, str):
        pairs = [each.partition("=") for each in value.split(",") if each.strip()]
        value = {name.strip(): text.strip() for name, _, text in pairs}
    for name, text in value.items() if isinstance(value, dict) else [("", "")]:
        if not (isinstance(text, str) and _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(text)):
            raise ValueError("must be headers, as a table or as Name=value,Name=value, in printable ASCII")
        if _RESERVED_HEADER.fullmatch(name):
            raise ValueError("must be further headers: not X-Vault-Token, Content-Type and others of each request")
    return value


def _url(value: object) -> object:
    _reject_surrounding_space(value)
    with contextlib.suppress(ValueError):  # an invalid port or IPv6 address
        parts = urlsplit(value if isinstance(value, str) and _URL.fullmatch(value) else "")
        if parts.hostname and parts.port != 0:
            return parts.geturl().rstrip("/")  # with the scheme in lower case, for the validators compare it
    raise ValueError("must be a URL such as https://vault.example.com:8200")


def _listen(value: object) -> object:
    _reject_surrounding_space(value)
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+):(\d{1,5})", value) if isinstance(value, str) else None
    if value != "" and not (match and int(match[2]) < 2**16):
        raise ValueError("must be HOST:PORT such as 127.0.0.1:8080, or empty for none")
    return value


def _path(value: object) -> object:
    _reject_surrounding_space(value)
    path = value.strip("/") if isinstance(value, str) else ""
    if not re.fullmatch(r"[A-Za-z0-9_@.+=-]+(/[A-Za-z0-9_@.+=-]+)*", path) or not all(
        each.strip(".") for each in path.split("/")
    ):
        raise ValueError("must be a path in Vault such as liveperson/accounts")
    return path


def _prefix(value: object) -> object:
    return value if value == "" else _path(value)


Duration = Annotated[timedelta, BeforeValidator(duration)]
Hosts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_hosts)]
Url = Annotated[str, BeforeValidator(_url)]
Listen = Annotated[str, BeforeValidator(_listen)]
Text = Annotated[str, BeforeValidator(_reject_surrounding_space)]
File = Annotated[Path, BeforeValidator(_reject_surrounding_space)]
HostName = Annotated[str, BeforeValidator(_host_name)]
Headers = Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(_headers)]
VaultPath = Annotated[str, BeforeValidator(_path)]
Prefix = Annotated[str, BeforeValidator(_prefix)]
"""A path in Vault below a mount; empty = the mount's root."""
LoginMethod = Annotated[Literal["kubernetes", "jwt", "approle", "token"], BeforeValidator(_lower)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]
LogFormat = Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)]
Verification = Annotated[str, BeforeValidator(_verification)]
"""off, jwks, or a file."""
