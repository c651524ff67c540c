"""How people write the values of settings and flags: 20m, hosts with commas, a URL, HOST:PORT, a path in Vault."""

import contextlib
import re
from datetime import timedelta
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_HOST = re.compile(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:\d{1,5})?")
_URL = re.compile(r"https?://[^\s/?#@]+[^\s?#@]*", re.IGNORECASE)


def duration(value: object) -> timedelta:
    """Read `90s`, `20m`, `1h`; ValueError in a sentence."""
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", value.strip()) if isinstance(value, str) else None
    if not match:
        raise ValueError("must be a duration such as 90s, 20m or 1h")
    try:
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    except OverflowError:
        raise ValueError("is longer than any duration can be") from None


def _hosts(value: object) -> object:
    hosts = [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value
    if isinstance(hosts, list) and not all(_HOST.fullmatch(each) for each in hosts if isinstance(each, str)):
        raise ValueError("must be hosts, such as a.example:8443 or .example")
    return hosts


def _url(value: object) -> object:
    with contextlib.suppress(ValueError):  # a port or an IPv6 address that is none
        parts = urlsplit(value if isinstance(value, str) and _URL.fullmatch(value) else "")
        if parts.hostname and parts.port != 0:
            return parts.geturl().rstrip("/")  # its scheme in lower case: the checks below look for http:
    raise ValueError("must be a URL such as https://vault.example.com:8200")


def _listen(value: object) -> object:
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9_.-]+):(\d{1,5})", value) if isinstance(value, str) else None
    if value != "" and not (match and int(match[2]) < 2**16):
        raise ValueError("must be HOST:PORT such as 127.0.0.1:8080, or empty for none")
    return value


def _path(value: object) -> object:
    path = value.strip("/") if isinstance(value, str) else ""
    if not re.fullmatch(r"[A-Za-z0-9_@.+=-]+(/[A-Za-z0-9_@.+=-]+)*", path) or not all(
        each.strip(".") for each in path.split("/")
    ):
        raise ValueError("must be a path in Vault such as liveperson/accounts")
    return path


Duration = Annotated[timedelta, BeforeValidator(duration)]
Hosts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_hosts)]
Url = Annotated[str, BeforeValidator(_url)]
Listen = Annotated[str, BeforeValidator(_listen)]
VaultPath = Annotated[str, BeforeValidator(_path)]
