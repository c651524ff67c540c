"""Connections whose every step, name look-up and handshake included, has what is left of one deadline.

A timeout of requests or urllib3 starts anew with each socket operation: a server that drips bytes would hold a thread
for ever.
"""

import socket
import ssl
import threading
import time
from concurrent.futures import Future
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_NEXT_TO_NOTHING = 0.05
"""Seconds."""


class _Deadline(threading.local):
    ends: float = 0.0


_deadline = _Deadline()


def begin(timeout: float) -> None:
    """From now on whatever this thread does with these connections must be over within so many seconds."""
    _deadline.ends = time.monotonic() + timeout


def _time_left() -> float:
    """Seconds until this thread's exchange must be over; TimeoutError when none are left."""
    left = _deadline.ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _DeadlineMixin:
    """Gives every socket operation what is left of the exchange.

    To set a timeout is a system call, for which the thread gives up the GIL: it is spared where it changes next to
    nothing.
    """

    def recv_into(self, *args: Any) -> int:
        self.bound()
        return super().recv_into(*args)  # type: ignore[misc, no-any-return]

    def send(self, *args: Any) -> int:
        self.bound()
        return super().send(*args)  # type: ignore[misc, no-any-return]

    def sendall(self, *args: Any) -> None:
        self.bound()
        super().sendall(*args)  # type: ignore[misc]

    def settimeout(self, value: float | None) -> None:
        if value != self.gettimeout():  # type: ignore[attr-defined]
            super().settimeout(value)  # type: ignore[misc]

    def bound(self) -> None:
        left = _time_left()
        if abs((self.gettimeout() or 0.0) - left) > _NEXT_TO_NOTHING:  # type: ignore[attr-defined]
            self.settimeout(left)


class _Socket(_DeadlineMixin, socket.socket):
    pass


class _TLSSocket(_DeadlineMixin, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature it overrides
        self.bound()
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
            sock = None
            try:
                sock = _Socket(family, kind, protocol)  # of some family this machine may know nothing
                sock.settimeout(_time_left() / tries_left)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.connect(address)
            except OSError:
                if sock:
                    sock.close()
                if tries_left == 1:
                    raise
            else:
                return sock
        raise OSError("host name without an address")


class _PlainConnection(_ConnectMixin, HTTPConnection):
    pass


class _TLSConnection(_ConnectMixin, HTTPSConnection):
    @property
    def is_connected(self) -> bool:
        """Not where something came that nobody asked for: in the TLS layer urllib3 does not see it."""
        return super().is_connected and not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending())


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def bind(manager: urllib3.PoolManager) -> None:
    """Let all its connections be of this kind."""
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TLSPool}


def tls_context(ca_cert: str | None) -> ssl.SSLContext:
    """For ca_cert or, without one, OpenSSL's default paths and SSL_CERT_FILE; certifi's list is never used."""
    context = ssl.create_default_context(cafile=ca_cert)
    context.sslsocket_class = _TLSSocket
    return context
