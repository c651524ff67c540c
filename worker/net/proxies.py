"""Select the proxy that leads to a host, by the environment's rules and ours."""

import os
import re
from contextlib import suppress
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import requests
import urllib3

from worker.core.loopback import is_loopback
from worker.net.errors import ExchangeError

_PROXY = re.compile(r"(?:([a-z][a-z0-9+.-]{0,15})://)?(.*)", re.IGNORECASE)


def select_proxy(url: str) -> str | None:
    """Return the URL of the proxy for this URL, credentials included; None = directly. ExchangeError if it is unusable.

    Neither plain http nor loopback goes through one: it would read the secrets on their way to a Vault Agent.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or is_loopback(parts.hostname) or _is_in_excluded_network(parts.hostname):
        return None
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url, None))
    if not proxy:
        return None
    host = parts.netloc.rpartition("@")[2]
    match = _PROXY.fullmatch(proxy)
    scheme, address = match.groups() if match else (None, "")
    if scheme and scheme.lower() != "http":
        raise ExchangeError(
            f"{host}: HTTPS_PROXY or ALL_PROXY names a proxy that speaks {scheme}, which is not supported",
            "set HTTPS_PROXY to an http:// address, or add the host to NO_PROXY",
        )
    with suppress(urllib3.exceptions.LocationParseError):
        if urllib3.util.parse_url(f"http://{address}").host:
            return f"http://{address}"
    raise ExchangeError(
        f"{host}: the proxy that the environment names has no host", "set HTTPS_PROXY to an address with a host"
    )


def proxy_for(url: str) -> str | None:
    """Return the proxy for this URL as people may see it, without credentials; None = directly. ExchangeError."""
    proxy = select_proxy(url)
    return proxy and f"http://{urllib3.util.parse_url(proxy).netloc}"


def _is_in_excluded_network(host: str | None) -> bool:
    """Return True if NO_PROXY has a network with this address; requests knows IPv4 ones only."""
    with suppress(ValueError):
        address = ip_address(host or "")
        for entry in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
            with suppress(ValueError):
                if address in ip_network(entry.strip().replace("[", "").replace("]", ""), strict=False):
                    return True
    return False
