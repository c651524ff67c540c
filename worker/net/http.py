"""The session, and what comes of an exchange: an answer, or a cause in words."""

import contextlib
import functools
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
import urllib3

from worker.net import bounded

MAX_ANSWER = 4 * 1024 * 1024
"""Bytes of body. The largest answer there is, Vault's LIST of 100,000 names, stays below 4 MiB."""

DATE_RESOLUTION = timedelta(seconds=1)

_NEVER = urllib3.Retry(False, redirect=False)  # False: the cause itself is raised, not wrapped up

_Body = bytes | str | None


class ExchangeError(Exception):
    """There is no usable answer. The text names host and cause, and never holds a path, a header or a body."""


class _Latest(threading.local):
    took: float = 0.0


_latest = _Latest()


class _Answer(requests.Response):
    """Read to its end, and with the headers as urllib3 has them, in which upper and lower case are the same."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, content: bytes) -> None:
        # not requests' own, which makes a jar for the cookies of each answer
        self.status_code = raw.status
        self.headers = raw.headers  # type: ignore[assignment]
        self.reason = self.url = ""
        self.encoding = "utf-8"
        self._content = content


class _Session(requests.Session):
    """To its users requests, on its way out urllib3.

    What lies between them, at each request, costs more than all else that we do: it looks for cookies, hooks, redirects
    and the environment, and merges what it finds.
    """

    def __init__(self, ca_cert: str | None, connections: int, largest: int, headers: Mapping[str, str]) -> None:
        super().__init__()
        self._headers = headers
        self._largest = largest
        self._ca_cert = ca_cert
        self._ca_read_at = self._ca_changed_at()
        self._context = bounded.tls_context(ca_cert)
        self._connections = connections
        self._pools: dict[tuple[str, str], urllib3.HTTPConnectionPool] = {}
        """By scheme and host: urllib3's own manager would parse each URL, and make a key of nine parts, to find one."""

    def request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        **_: Any,
    ) -> requests.Response:
        """One exchange, `timeout` seconds long at most. ExchangeError."""
        if params:
            url += f"?{urlencode(params)}"
        body, kind = _body(data, json)
        return self._exchange(method.upper(), url, {**self._headers, **kind, **(headers or {})}, body, timeout)

    def close(self) -> None:
        super().close()
        for pool in self._pools.values():
            pool.close()

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: _Body, timeout: float
    ) -> requests.Response:
        scheme, netloc, path, query, _ = urlsplit(url)
        name = netloc.rpartition("@")[2]
        began = time.monotonic()
        bounded.begin(timeout)
        try:
            pool = self._pool(scheme, netloc)
            target = (path or "/") + (f"?{query}" if query else "")
            if pool.proxy and scheme == "http":  # https goes through a tunnel
                target = url
            raw = pool.urlopen(
                method,
                target,
                body=body,
                headers=headers,
                timeout=timeout,
                retries=_NEVER,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
            )
            try:
                if raw.status < requests.codes.ok:
                    # such as 103: the answer is still to come, and would be taken for that to the next request
                    raise urllib3.exceptions.ProtocolError
                if raw.headers.get("Content-Encoding", "identity").lower() != "identity":
                    # to unpack what nobody asked for may take any time and any memory, between two looks at the clock
                    raise urllib3.exceptions.DecodeError
                content = raw.read(self._largest + 1, decode_content=True)
            finally:
                raw.close()  # a connection whose answer was read to its end went back to the pool before
        except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:
            raise ExchangeError(f"{name}: {_cause(error, timeout)}") from error
        _latest.took = time.monotonic() - began
        if len(content) > self._largest:
            raise ExchangeError(f"{name}: the answer is larger than {self._largest // 1024} KiB")
        answer = _Answer(raw, content)
        if answer.is_redirect:
            # where to is not quoted: what it was sent may be in it, in any form
            target = "another path" if _host(raw.headers["location"]) in (None, _host(url)) else "another host"
            raise ExchangeError(f"{name}: a redirect ({raw.status}) to {target} was not followed")
        return answer

    def _pool(self, scheme: str, netloc: str) -> urllib3.HTTPConnectionPool:
        """Connections to this host, under the CAs as they are now."""
        changed_at = self._ca_changed_at()
        if changed_at not in (None, self._ca_read_at):
            with contextlib.suppress(OSError):  # half written: the CAs known serve on until it can be read
                self._context, self._ca_read_at = bounded.tls_context(self._ca_cert), changed_at
                self._pools = {}  # connections made under the old CAs are not used again
        pool = self._pools.get((scheme, netloc))
        if pool is None:
            pool = self._pools.setdefault((scheme, netloc), self._made(scheme, netloc))
        return pool

    def _made(self, scheme: str, netloc: str) -> urllib3.HTTPConnectionPool:
        how: dict[str, Any] = {"maxsize": self._connections, "ssl_context": self._context}
        proxy = _proxy(scheme, netloc)
        if proxy:
            user, password = requests.utils.get_auth_from_url(proxy)
            known = urllib3.make_headers(proxy_basic_auth=f"{user}:{password}") if user else None
            manager: urllib3.PoolManager = urllib3.ProxyManager(proxy, proxy_headers=known, **how)
        else:
            manager = urllib3.PoolManager(**how)
        bounded.bind(manager)
        return manager.connection_from_url(f"{scheme}://{netloc}")

    def _ca_changed_at(self) -> int | None:
        try:
            return os.stat(self._ca_cert).st_mtime_ns if self._ca_cert else None  # noqa: PTH116 - at each request
        except OSError:
            return None


def session(
    *, user_agent: str, ca_cert: str | None = None, connections: int = 8, largest: int = MAX_ANSWER
) -> requests.Session:
    """A session whose exchanges are bounded; every request must carry `timeout` in seconds.

    :param ca_cert: PEM file of the only CAs that count; None = the system's.
    :param connections: how many to one host stay open when they are idle.
    :param largest: bytes of body that are read. JSON may become thirty times as much in memory, for each exchange.
    """
    headers = {"User-Agent": user_agent, "Accept": "application/json", "Accept-Encoding": "identity"}
    return _Session(ca_cert, connections, largest, headers)


def json_of(response: requests.Response) -> Any:
    """The answer's JSON; None if it is none.

    Not requests' `json`: that believes any charset, some of which take for ever, and without one guesses.
    """
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def server_time(response: requests.Response) -> datetime | None:
    """The server's clock at the end of this thread's exchange, at the latest: Date counts whole seconds.

    It was set on the way; to take the latest time possible means to think a token older than it is, never younger.
    """
    try:
        # not the response's `elapsed`: requests counts that on the wall clock, which may jump meanwhile
        return _date(response.headers["Date"]) + DATE_RESOLUTION + timedelta(seconds=_latest.took)
    except (KeyError, ValueError, OverflowError):
        return None


@functools.lru_cache(maxsize=64)  # answers of the same second have the same
def _date(text: str) -> datetime:
    return parsedate_to_datetime(text).astimezone(UTC)


def _body(data: Mapping[str, str] | None, value: Any) -> tuple[_Body, dict[str, str]]:
    """What is sent, a form or JSON, and the header that tells."""
    if data is not None:
        return urlencode(data), {"Content-Type": "application/x-www-form-urlencoded"}
    if value is not None:
        return json.dumps(value).encode(), {"Content-Type": "application/json"}
    return None, {}


def _proxy(scheme: str, netloc: str) -> str | None:
    """What HTTPS_PROXY and NO_PROXY say of this host."""
    url = f"{scheme}://{netloc}/"
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url, None))
    if proxy and not _host(proxy if "://" in proxy else f"http://{proxy}"):
        raise ExchangeError(f"{netloc}: the proxy that the environment names has no host")
    return str(requests.utils.prepend_scheme_if_needed(proxy, "http")) if proxy else None  # type: ignore[no-untyped-call]


def _host(url: str) -> str | None:
    try:
        return urllib3.util.parse_url(url).host
    except urllib3.exceptions.LocationParseError:
        return None


def _cause(error: BaseException, timeout: float) -> str:
    """The innermost known cause in words, without the library's text: that one holds URLs and bodies."""
    chain: list[BaseException] = []
    link: object = error
    while isinstance(link, BaseException) and link not in chain:
        chain.append(link)
        inner = [getattr(link, "reason", None), *link.args, link.__cause__, link.__context__]
        link = next((each for each in inner if isinstance(each, BaseException)), None)
    known = {
        ssl.SSLCertVerificationError: "its certificate is refused: {0.verify_message}",
        ssl.SSLError: "TLS failed: {0.reason}",
        socket.gaierror: "the host name cannot be resolved",
        TimeoutError: f"no complete answer within {timeout:g} s",
        ConnectionRefusedError: "connection refused",
        ConnectionError: "connection lost",
        urllib3.exceptions.DecodeError: "the answer is compressed, though that was not asked for",
        urllib3.exceptions.ProxyError: "the proxy refused or failed",
        RuntimeError: "no thread can be started",
    }
    for link in reversed(chain):
        for kind, words in known.items():
            if isinstance(link, kind):
                by_proxy = any(isinstance(each, urllib3.exceptions.ProxyError) for each in chain if each is not link)
                return ("the proxy failed: " if by_proxy else "") + words.format(link)
    root = chain[-1]
    system = root.strerror if isinstance(root, OSError) else None
    return system.lower() if system else f"the answer is broken ({type(root).__name__})"
