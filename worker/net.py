"""One bounded HTTP exchange: a deadline for all of it, a size cap, no redirect, the right CA, the proxy.

Both outside worlds go through here: LivePerson's by a requests session, Vault's by the session given to hvac.
What an answer means is left to the callers.
"""

import contextlib
import functools
import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

MAX_ANSWER = 4 * 1024 * 1024
"""Bytes of body after decompression. The largest answer there is, a LIST of 100,000 names, stays below 4 MiB."""

DATE_RESOLUTION = timedelta(seconds=1)


class ExchangeError(Exception):
    """There is no usable answer. The text names host and cause, and never holds a path, a header or a body."""


class _Exchange(threading.local):
    ends: float = 0.0
    took: float = 0.0


_exchange = _Exchange()


def _time_left() -> float:
    """Seconds until this thread's exchange must be over; TimeoutError when none are left."""
    left = _exchange.ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _DeadlineMixin:
    """Gives every socket operation what is left of the exchange.

    A timeout of requests or urllib3 starts anew with each operation: a server that drips bytes would hold a thread
    for ever.
    """

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_time_left())  # type: ignore[attr-defined]
        return super().recv_into(*args)  # type: ignore[misc, no-any-return]

    def send(self, *args: Any) -> int:
        self.settimeout(_time_left())  # type: ignore[attr-defined]
        return super().send(*args)  # type: ignore[misc, no-any-return]

    def sendall(self, *args: Any) -> None:
        self.settimeout(_time_left())  # type: ignore[attr-defined]
        super().sendall(*args)  # type: ignore[misc]


class _Socket(_DeadlineMixin, socket.socket):
    pass


class _TLSSocket(_DeadlineMixin, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature it overrides
        self.settimeout(_time_left())
        super().do_handshake(block)


_Addresses = list[tuple[Any, ...]]


class _Resolver:
    """Looks addresses up within what is left of the exchange: the system's own call knows no deadline.

    One that hangs keeps a thread, but only one for each name: whoever wants the same name waits for the same answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, int], Future[_Addresses]] = {}

    def __call__(self, host: str, port: int) -> _Addresses:
        with self._lock:
            answer = self._asked.get((host, port))
            if answer is None:
                answer = Future()
                try:
                    threading.Thread(target=self._ask, args=(host, port, answer), name="dns", daemon=True).start()
                except RuntimeError as error:  # nobody would ever answer those who wait
                    raise OSError from error
                self._asked[host, port] = answer
        return answer.result(_time_left())

    def _ask(self, host: str, port: int, answer: Future[_Addresses]) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            answer.set_exception(error)
        else:
            answer.set_result(found)
        with self._lock:
            del self._asked[host, port]


_resolve = _Resolver()


class _ConnectMixin:
    def _new_conn(self) -> socket.socket:
        """Connect to the first address that answers; one that does not leaves the others their share of the time."""
        host, port = self._dns_host, self.port  # type: ignore[attr-defined]
        addresses = _resolve(host, port)
        for tries_left in range(len(addresses), 0, -1):
            family, kind, protocol, _, address = addresses[-tries_left]
            sock = _Socket(family, kind, protocol)
            try:
                sock.settimeout(_time_left() / tries_left)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.connect(address)
            except OSError:
                sock.close()
                if tries_left == 1:
                    raise
            else:
                return sock
        raise OSError("host name without an address")


class _PlainConnection(_ConnectMixin, HTTPConnection):
    pass


class _TLSConnection(_ConnectMixin, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _BoundedAdapter(HTTPAdapter):
    """The transport of every session made here. `timeout` is the deadline for the whole exchange, in seconds."""

    _pools: ClassVar[dict[str, type[HTTPConnectionPool]]] = {"http": _PlainPool, "https": _TLSPool}

    def __init__(self, ca_cert: str | None, connections: int) -> None:
        self._ca_cert = ca_cert
        self._ca_read_at = self._ca_changed_at()
        self._context = _tls_context(ca_cert)
        super().__init__(pool_connections=connections, pool_maxsize=connections)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        changed_at = self._ca_changed_at()
        if changed_at not in (None, self._ca_read_at):
            with contextlib.suppress(OSError):  # half written: the CAs known serve on until it can be read
                # a new context is a new key, so a new pool: connections made under the old CAs are not used again
                self._context, self._ca_read_at = _tls_context(self._ca_cert), changed_at
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": self._context}

    def _ca_changed_at(self) -> int | None:
        try:
            return Path(self._ca_cert).stat().st_mtime_ns if self._ca_cert else None
        except OSError:
            return None

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Leave it to the context: requests would let REQUESTS_CA_BUNDLE win over the CA of the settings."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        del args  # requests passes everything by name
        peer = urllib3.util.parse_url(request.url or "")
        name = f"{peer.host}:{peer.port}" if peer.port else str(peer.host)
        timeout = float(kwargs["timeout"])
        began = time.monotonic()
        _exchange.ends = began + timeout
        try:
            raw = self._ask(request, _proxies(peer.scheme or "https", name), timeout)
            try:
                if raw.status < requests.codes.ok:
                    # such as 103: the answer is still to come, and would be taken for that to the next request
                    raise urllib3.exceptions.ProtocolError
                body = raw.read(MAX_ANSWER + 1, decode_content=True)
            finally:
                raw.close()  # a connection whose answer was read to its end went back to the pool before
        except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:
            raise ExchangeError(f"{name}: {_cause(error, timeout)}") from error
        _exchange.took = time.monotonic() - began
        if len(body) > MAX_ANSWER:
            raise ExchangeError(f"{name}: the answer is larger than {MAX_ANSWER // 1024 // 1024} MiB")
        response = requests.Response()
        response.status_code, response.raw = raw.status, io.BytesIO(body)
        response.headers.update(raw.headers)
        if response.is_redirect:
            target = _host(response.headers["location"]) or "another path"
            raise ExchangeError(f"{name}: a redirect ({response.status_code}) to {target} was not followed")
        return response

    def _ask(
        self, request: requests.PreparedRequest, proxies: dict[str, str], timeout: float
    ) -> urllib3.BaseHTTPResponse:
        """The answer's head. `HTTPAdapter.send` would besides look for cookies, and make two objects of an answer."""
        pool = self.get_connection_with_tls_context(request, verify=True, proxies=proxies)
        return pool.urlopen(
            str(request.method),
            self.request_url(request, proxies),
            body=request.body,
            headers=request.headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=timeout,
            preload_content=False,
            decode_content=False,
        )


class _Session(requests.Session):
    """Without what requests looks for and merges at each request: environment, cookies, hooks, redirects."""

    def request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        params: Any = None,
        data: Any = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        **_: Any,
    ) -> requests.Response:
        request = requests.PreparedRequest()
        request.method = method.upper()
        request.headers = requests.structures.CaseInsensitiveDict(self.headers)
        request.headers.update(headers or {})
        request.prepare_url(url, params)
        request.prepare_body(data, None, json)
        return self.get_adapter(url).send(request, timeout=timeout)


@functools.lru_cache(maxsize=1024)
def _proxies(scheme: str, name: str) -> dict[str, str]:
    """HTTPS_PROXY and NO_PROXY, asked once per host: requests would ask the environment at every request."""
    return requests.utils.get_environ_proxies(f"{scheme}://{name}/", None)


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


def _tls_context(ca_cert: str | None) -> ssl.SSLContext:
    """For ca_cert or, without one, OpenSSL's default paths and SSL_CERT_FILE; certifi's list is never used."""
    context = ssl.create_default_context(cafile=ca_cert)
    context.sslsocket_class = _TLSSocket
    return context


def session(*, user_agent: str, ca_cert: str | None = None, connections: int = 8) -> requests.Session:
    """A session whose exchanges are bounded; every request must carry `timeout` in seconds.

    :param ca_cert: PEM file of the only CAs that count; None = the system's.
    :param connections: how many to one host stay open when they are idle.
    """
    made = _Session()
    adapter = _BoundedAdapter(ca_cert, connections)
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    made.headers.update({"User-Agent": user_agent, "Accept": "application/json", "Accept-Encoding": "identity"})
    return made


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
        date = parsedate_to_datetime(response.headers["Date"])
        # not the response's `elapsed`: requests counts that on the wall clock, which may jump meanwhile
        return date.astimezone(UTC) + DATE_RESOLUTION + timedelta(seconds=_exchange.took)
    except (KeyError, ValueError, OverflowError):
        return None
