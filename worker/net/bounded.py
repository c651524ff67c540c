"""One deadline per exchange, for each operation of its sockets, name look-up and handshake included.

A timeout of requests or urllib3 starts again with each socket operation, so a server that drips bytes would hold a
thread for ever.
"""

import socket
import ssl
import threading
import time
from concurrent.futures import Future
from typing import Any

_EPSILON = 0.05
"""Seconds by which a socket's timeout may differ from the remaining time."""


class _Exchange(threading.local):
    """The exchange that this thread makes."""

    end = 0.0
    on_new_connection = False
    response_started = False


exchange = _Exchange()


def begin_exchange(timeout: float) -> None:
    """Give this thread's next exchange so many seconds."""
    exchange.end = time.monotonic() + timeout
    exchange.on_new_connection = exchange.response_started = False


def failed_before_response() -> bool:
    """Return True if the exchange failed on a reused connection before the first byte of an answer, with time left."""
    return not (exchange.on_new_connection or exchange.response_started) and time.monotonic() < exchange.end


def remaining() -> float:
    """Return the seconds until this thread's deadline; TimeoutError if it is past."""
    time_left = exchange.end - time.monotonic()
    if time_left <= 0:
        raise TimeoutError
    return time_left


class _DeadlineMixin:
    """Limits every socket operation to the remaining time of the exchange.

    Setting a timeout is a system call that releases the GIL, so it is skipped where it would change almost nothing.
    """

    def recv_into(self, *args: Any) -> int:
        self.limit()
        received: int = super().recv_into(*args)  # type: ignore[misc]
        exchange.response_started = exchange.response_started or received > 0
        return received

    def send(self, *args: Any) -> int:
        self.limit()
        return super().send(*args)  # type: ignore[misc, no-any-return]

    def sendall(self, *args: Any) -> None:
        self.limit()
        super().sendall(*args)  # type: ignore[misc]

    def settimeout(self, value: float | None) -> None:
        if value != self.gettimeout():  # type: ignore[attr-defined]
            super().settimeout(value)  # type: ignore[misc]

    def limit(self) -> None:
        time_left = remaining()
        if abs((self.gettimeout() or 0.0) - time_left) > _EPSILON:  # type: ignore[attr-defined]
            self.settimeout(time_left)


class Socket(_DeadlineMixin, socket.socket):
    pass


class TLSSocket(_DeadlineMixin, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the signature it overrides
        self.limit()
        super().do_handshake(block)


_Addresses = list[tuple[Any, ...]]


class _Resolver:
    """Resolves names within the remaining time of the exchange; the system's own call has no deadline.

    A look-up that hangs blocks one thread per name: exchanges that need the same name wait for the same look-up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inflight: dict[tuple[str, int], Future[_Addresses]] = {}

    def __call__(self, host: str, port: int) -> _Addresses:
        with self._lock:
            answer = self._inflight.get((host, port))
            if answer is None:
                answer = Future()
                try:
                    threading.Thread(target=self._look_up, args=(host, port, answer), name="dns", daemon=True).start()
                except RuntimeError as error:  # no thread: those who wait would never get an answer
                    raise OSError from error
                self._inflight[host, port] = answer
        return answer.result(remaining())

    def _look_up(self, host: str, port: int, answer: Future[_Addresses]) -> None:
        found, failure = [], None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except Exception as error:  # noqa: BLE001 - raised in the threads that wait
            failure = error
        with self._lock:
            del self._inflight[host, port]  # before it is answered: the next exchange looks the name up again
        if failure:
            answer.set_exception(failure)
        else:
            answer.set_result(found)


resolve = _Resolver()
