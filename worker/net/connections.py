"""Connections that do not outlive their use: none is reused that is too old, idle for too long, or whose server is ill.

urllib3's own live as long as the other end lets them, and see neither a name that moved nor a server that was sealed.
"""

import queue
import random
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from worker.net import bounded

MAX_IDLE = 55.0
"""Seconds. NATs, firewalls and balancers forget idle connections, some after a minute, and often tell neither end."""

_MAX_AGE = 300.0
"""Seconds, more or less by a fifth: a moved name and a balancer's choice show in new connections only."""
_AGE_JITTER = 0.2
_TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it
_MAX_UNACKNOWLEDGED = 3000
"""Milliseconds in which the other machine must acknowledge a request on a reused connection, however busy it is."""

_STANDBY = frozenset({307, 472, 473, 474})
"""Of Vault: a redirect to the active node; a secondary for disaster recovery; a performance standby; one cut off."""


def cannot_serve(status: int) -> bool:
    """Return True if the status means that another server should be asked: sealed, broken, a standby."""
    return status >= 500 or status in _STANDBY  # noqa: PLR2004 - the class of server errors


class _ConnectionMixin:
    sock: socket.socket | None

    def __init__(self, *args: Any, clock: Callable[[], float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = clock
        self._expires_at = self._last_used_at = 0.0

    @property
    def is_connected(self) -> bool:
        """Return True if the connection may be used again; urllib3 asks before each reuse."""
        now = self._clock()
        return (
            now < self._expires_at and now < self._last_used_at + MAX_IDLE and bool(super().is_connected)  # type: ignore[misc]
        )

    def connect(self) -> None:
        bounded.exchange.on_new_connection = True
        super().connect()  # type: ignore[misc]
        self._last_used_at = self._clock()
        age = _MAX_AGE * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311 - no secret
        self._expires_at = self._last_used_at + age

    def getresponse(self) -> Any:
        response = super().getresponse()  # type: ignore[misc]
        self._last_used_at = self._clock()
        if cannot_serve(response.status):
            self._expires_at = 0.0
        elif bounded.exchange.on_new_connection and self.sock and _TCP_USER_TIMEOUT:  # from now on it is reused
            self.sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, _MAX_UNACKNOWLEDGED)
        return response

    def _new_conn(self) -> socket.socket:
        """Connect to the first address that answers; each gets its share of the remaining time."""
        host, port = self._dns_host, self.port  # type: ignore[attr-defined]
        addresses = bounded.resolve(host, port)
        for attempts_left in range(len(addresses), 0, -1):
            family, kind, protocol, _, address = addresses[-attempts_left]
            sock = None
            try:
                sock = bounded.Socket(family, kind, protocol)  # the machine may not support the family
                sock.settimeout(bounded.remaining() / attempts_left)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.connect(address)
            except OSError:
                if sock:
                    sock.close()
                if attempts_left == 1:
                    raise
            else:
                return sock
        raise OSError("host name without an address")


class _PlainConnection(_ConnectionMixin, HTTPConnection):
    pass


class _TLSConnection(_ConnectionMixin, HTTPSConnection):
    @property
    def is_connected(self) -> bool:
        """Return False also where unrequested data waits in the TLS layer, which urllib3 does not see."""
        return super().is_connected and not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending())


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection
    used_at = 0.0


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection
    used_at = 0.0


Pool = _PlainPool | _TLSPool


def new_pool(manager: urllib3.PoolManager, url: str, *, clock: Callable[[], float]) -> Pool:
    """Return a pool of such connections to the URL's host, made as the manager makes pools.

    :param clock: counts the age of connections.
    """
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TLSPool}
    pool: Any = manager.connection_from_url(url)
    pool.ConnectionCls = partial(pool.ConnectionCls, clock=clock)
    return cast(Pool, pool)


def close_unusable(pool: Pool) -> bool:
    """Close the idle connections that may not be used again; True if none is left. Safe while others use the pool."""
    idle, usable = pool.pool, []
    if idle is None:  # the pool is closed
        return True
    with suppress(queue.Empty):
        while True:
            connection = idle.get_nowait()
            if connection and connection.is_connected:
                usable.append(connection)
            elif connection:
                connection.close()
    for connection in reversed(usable):  # the one used last goes on top
        try:
            idle.put_nowait(connection)
        except queue.Full:
            connection.close()
    return not usable
