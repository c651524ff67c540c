"""The session, and the result of an exchange: a complete answer, or an error whose text contains no secret."""

import functools
import io
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

from worker.net import bounded
from worker.net.connections import MAX_IDLE, Pool, cannot_serve, close_unusable, new_pool
from worker.net.errors import ExchangeError, RedirectError, describe, is_timeout
from worker.net.proxies import select_proxy
from worker.net.tls import Tls, TlsFileError

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Bytes of body. The largest answer there is, Vault's LIST of 100,000 names, stays below 4 MiB."""

DATE_RESOLUTION = timedelta(seconds=1)

_MAX_HOSTS = 64
"""Whose connections are kept open."""

_NO_RETRIES = urllib3.Retry(False, redirect=False)  # False: raise the cause itself, not a MaxRetryError


class _Adapter(HTTPAdapter):
    """requests' transport. An exchange has one deadline and a size limit, and follows no redirect."""

    def __init__(
        self,
        tls: Tls,
        *,
        server_name: str | None,
        max_idle_connections: int,
        max_body_bytes: int,
        retry_on_new_connection: bool,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(max_retries=_NO_RETRIES)
        self._tls = tls
        self._server_name = server_name
        self._max_idle_connections = max_idle_connections
        self._max_body_bytes = max_body_bytes
        self._retry_on_new_connection = retry_on_new_connection
        self._clock = clock
        self._pools: dict[tuple[str, str], Pool] = {}
        """By scheme and host: urllib3's manager would parse each URL and build a key of nine parts to find one."""

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, *, timeout: float, **_: object
    ) -> requests.Response:
        """Make one exchange; ExchangeError. Certificates and proxies are the session's; the call's are ignored."""
        host = urlsplit(request.url or "").netloc.rpartition("@")[2]
        bounded.begin_exchange(timeout)
        try:
            response = self._exchange(request, timeout)
        except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:
            raise ExchangeError(f"{host}: {describe(error, timeout)}", timed_out=is_timeout(error)) from error
        if len(response.content) > self._max_body_bytes:
            raise ExchangeError(f"{host}: the answer is larger than {self._max_body_bytes // 1024} KiB")
        if response.is_redirect:
            # the target is not quoted: it may hold what the request held, in any form
            same_host = _host(response.headers["location"]) in (None, _host(response.url))
            target = "another path" if same_host else "another host"
            text = f"{host}: a redirect ({response.status_code}) to {target} was not followed"
            raise RedirectError(text, response)
        return response

    def close(self) -> None:
        super().close()
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def close_idle(self) -> None:
        """Close the connections that may not be used again, and forget the hosts that have none left."""
        unused_since = self._clock() - MAX_IDLE
        for key, pool in list(self._pools.items()):
            if close_unusable(pool) and pool.used_at < unused_since:
                self._pools.pop(key, None)

    def hosts(self) -> set[str]:
        """Return the hosts that have connections, with their ports where those are in the URL."""
        return {netloc for _, netloc in list(self._pools)}

    def get_connection_with_tls_context(self, request: requests.PreparedRequest, *_: object, **__: object) -> Pool:
        """Return the pool of the request's host, under the TLS settings as they are now."""
        scheme, netloc = urlsplit(request.url or "")[:2]
        if self._tls.reload():
            self._pools = {}  # connections made under the old ones are not used again
        pool = self._pools.get((scheme, netloc))
        if pool is None:
            pool = self._pools.setdefault((scheme, netloc), self._new_pool(scheme, netloc))
        pool.used_at = self._clock()
        return pool

    def cert_verify(self, *_: object) -> None:
        """Leave the pool's TLS context alone: requests would add certifi's CAs to it, or switch verification off."""

    def request_url(self, request: requests.PreparedRequest, *_: object) -> str:
        return request.path_url

    def build_response(self, req: requests.PreparedRequest, resp: urllib3.BaseHTTPResponse) -> requests.Response:
        """Return the response without a cookie jar: cookies are not used, and extracting them takes time."""
        response = requests.Response()
        response.status_code, response.reason, response.raw = resp.status, resp.reason or "", resp
        response.headers = CaseInsensitiveDict(resp.headers)
        response.encoding = requests.utils.get_encoding_from_headers(response.headers)
        response.url, response.request, response.connection = req.url or "", req, self
        return response

    def _exchange(self, request: requests.PreparedRequest, timeout: float) -> requests.Response:
        """Make an attempt, and a second one where the first shows that its connection was of no use.

        That connection is discarded, and the pool's other idle ones are skipped: the second attempt opens a new one.
        """
        try:
            response = self._attempt(request, timeout)
        except (OSError, urllib3.exceptions.HTTPError):
            if not bounded.failed_before_response():
                raise
        else:
            if not (self._retry_on_new_connection and cannot_serve(response.status_code)):
                return response
        return self._attempt(request, timeout)

    def _attempt(self, request: requests.PreparedRequest, timeout: float) -> requests.Response:
        started = self._clock()
        response = super().send(request, timeout=timeout)
        raw = response.raw
        try:
            if raw.status < requests.codes.ok:
                # such as 103: the final response follows, and would be read as that of the next request
                raise urllib3.exceptions.ProtocolError
            if raw.headers.get("Content-Encoding", "identity").lower() != "identity":
                # unpacking could take any time and any memory between two checks of the deadline
                raise urllib3.exceptions.DecodeError
            content = raw.read(self._max_body_bytes + 1, decode_content=True)
        finally:
            raw.close()  # a connection whose answer was read to its end is back in the pool
        response.raw = io.BytesIO(content)
        response.elapsed = timedelta(seconds=self._clock() - started)
        return response

    def _new_pool(self, scheme: str, netloc: str) -> Pool:
        if len(self._pools) >= _MAX_HOSTS:
            longest_unused, _ = min(list(self._pools.items()), key=lambda item: item[1].used_at)
            self._pools.pop(longest_unused, None)
        url = f"{scheme}://{netloc}"
        pool_kwargs: dict[str, Any] = {
            "maxsize": self._max_idle_connections,
            "ssl_context": self._tls.context,
            "server_hostname": self._server_name,
        }
        if proxy := select_proxy(url):
            manager: urllib3.PoolManager = urllib3.ProxyManager(
                proxy, proxy_headers=self.proxy_headers(proxy), **pool_kwargs
            )
        else:
            manager = urllib3.PoolManager(**pool_kwargs)
        return new_pool(manager, url, clock=self._clock)


class Session(requests.Session):
    """A requests session that skips what we never use, at each request: cookies, hooks, netrc, the environment."""

    def __init__(self, adapter: _Adapter, headers: Mapping[str, str], secret_headers: Mapping[str, str]) -> None:
        super().__init__()
        self._adapter = adapter
        self._default_headers = {**headers, **secret_headers}
        self.secrets = tuple(secret_headers.values())
        """Parts of every request that no text may quote."""
        for scheme in ("http://", "https://"):
            self.mount(scheme, adapter)

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
        **_: object,
    ) -> requests.Response:
        """Make one exchange within `timeout` seconds; ExchangeError."""
        request = requests.PreparedRequest()
        request.method = method.upper()
        request.url = f"{url}?{urlencode(params)}" if params else url
        request.body, content_headers = _body(data, json)
        # a plain dict: urllib3 copies the headers and walks through them five times
        request.headers = {**self._default_headers, **content_headers, **(headers or {})}  # type: ignore[assignment]
        return self._adapter.send(request, timeout=timeout)

    def close_idle(self) -> None:
        """Close the connections that may not be used again; to be called now and then."""
        self._adapter.close_idle()

    def hosts(self) -> set[str]:
        """Return the hosts that have connections, with their ports where those are in the URL."""
        return self._adapter.hosts()


def session(
    *,
    user_agent: str,
    ca_cert: str | None = None,
    client_cert: tuple[str, str] | None = None,
    server_name: str | None = None,
    headers: Mapping[str, str] | None = None,
    max_idle_connections: int = 8,
    max_body_bytes: int = MAX_BODY_BYTES,
    retry_on_new_connection: bool = False,
    on_reload_failed: Callable[[TlsFileError], object] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Session:
    """Return a session whose exchanges are bounded; every request must carry `timeout` in seconds. TlsFileError.

    The files are read again when they are replaced.

    :param ca_cert: the only CAs to trust, a PEM file or a folder of such; None = the system's.
    :param client_cert: PEM files with a certificate and its key, for a server that asks for one.
    :param server_name: the name in the server's certificate where it is not the address's.
    :param headers: sent with each request; their values are secrets.
    :param max_idle_connections: that stay open to one host.
    :param max_body_bytes: of an answer. JSON may become thirty times as much in memory, for each exchange.
    :param retry_on_new_connection: if the server answers that it cannot serve, retry once, maybe at another server.
    :param on_reload_failed: called once for each replacement of a file that cannot be used; the old one stays in use.
    :param clock: seconds that neither jump with the wall clock nor stop while the machine sleeps.
    """
    default_headers = {"User-Agent": user_agent, "Accept": "application/json", "Accept-Encoding": "identity"}
    adapter = _Adapter(
        Tls(ca_cert, client_cert, on_reload_failed),
        server_name=server_name,
        max_idle_connections=max_idle_connections,
        max_body_bytes=max_body_bytes,
        retry_on_new_connection=retry_on_new_connection,
        clock=clock,
    )
    return Session(adapter, default_headers, headers or {})


def parse_json(response: requests.Response) -> Any:
    """Return the body parsed as JSON; None if it is not JSON.

    Not requests' `json`: that trusts any declared charset, some of which decode very slowly, and guesses if there is
    none.
    """
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def server_time(response: requests.Response) -> datetime | None:
    """Return the latest possible time on the server's clock at the end of the exchange: Date has whole seconds.

    Date was set before the response arrived; taking the latest possible time makes a token look older than it is,
    never younger.
    """
    try:
        age = timedelta(seconds=int(response.headers.get("Age", 0)))  # of a cached answer
        return http_date(response.headers["Date"]) + age + DATE_RESOLUTION + response.elapsed
    except (KeyError, ValueError, OverflowError):
        return None


def retry_after(response: requests.Response) -> timedelta | None:
    """Return Retry-After, seconds or a date (RFC 9110 10.2.3) by the server's own clock; None = absent or neither."""
    value = response.headers.get("Retry-After", "")
    try:
        if value.isdecimal():
            return timedelta(seconds=min(int(value), timedelta(days=1).total_seconds()))
        wait = http_date(value) - (server_time(response) or datetime.now(UTC))
    except (ValueError, OverflowError):
        return None
    return max(wait, timedelta(0))


def _body(data: Mapping[str, str] | None, value: Any) -> tuple[str | bytes | None, dict[str, str]]:
    """Return what is sent, a form or JSON, and its headers. requests' own takes five times as long to find the type."""
    if data is not None:
        form = urlencode(data)
        return form, {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(form))}
    if value is not None:
        document = json.dumps(value).encode()
        return document, {"Content-Type": "application/json", "Content-Length": str(len(document))}
    return None, {}


@functools.lru_cache(maxsize=64)  # responses of the same second have the same Date
def http_date(text: str) -> datetime:
    """Read a date in any of HTTP's forms; one without a zone is UTC (RFC 9110, 5.6.7). ValueError or OverflowError."""
    date = parsedate_to_datetime(text)
    return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)


def _host(url: str) -> str | None:
    try:
        return urllib3.util.parse_url(url).host
    except urllib3.exceptions.LocationParseError:
        return None
