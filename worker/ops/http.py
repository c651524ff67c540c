"""Serve the probes, the metrics and the status page over HTTP, read-only.

Clients are not trusted: whatever they do, probes are answered, and the numbers of connections and of answers in memory
are bounded. The content comes from the callables that are passed in.
"""

import contextlib
import logging
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import structlog
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

_MAX_CONNECTIONS = 100
"""Leaves enough descriptors for Vault and Sentinel; twice as many for the moment in which new ones are accepted."""
_MAX_UNREAD = 8
"""Answers that clients have not read to the end; each may be a whole `/metrics` in memory."""
_TIMEOUT = 10
"""Seconds for a complete request, and between two parts of the answer that the client reads."""
_MAX_REQUEST = 16 * 1024
"""Bytes of all headers, and of a body, which is ignored."""
_MAX_PARAMETER = 200
"""Characters of a parameter in the URL; the rest is ignored."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: discard unsent data on close. The kernel would keep it for minutes, and count it as the container's."""

_CSP = "Content-Security-Policy"
_NO_CONTENT = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_SECURITY_HEADERS = {
    _CSP: _NO_CONTENT,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class View:
    """Define what is served at a path."""

    content_type: str
    body: Callable[[Mapping[str, str]], bytes]
    """Takes the parameters of the URL."""
    style: str | None = None
    """CSP hash of the page's inline style; None if it is no page."""


@dataclass(frozen=True, slots=True)
class _Response:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    policy: str = _NO_CONTENT

    @classmethod
    def of_text(cls, status: HTTPStatus, text: str) -> "_Response":
        return cls(status, f"{text}\n".encode())

    def to_response(self, _ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        """Return the status, headers and body; waitress calls this on the `error` of a request."""
        headers = {
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            "Cache-Control": "no-store",
            "Allow": "GET, HEAD",
            **_SECURITY_HEADERS,
            _CSP: self.policy,
        }
        return f"{self.status.value} {self.status.phrase}", list(headers.items()), self.body


class _Server(TcpWSGIServer):  # type: ignore[misc] # waitress ships no types
    """Enforce limits that no option of waitress offers.

    At `connection_limit` waitress stops accepting, so idle clients lock the probes out. All paths share one queue.
    `channel_timeout` starts again with each byte of a request, and never closes the connection of a client that does
    not read its answer. Error answers cannot have headers of ours.
    """

    def __init__(self, application: Callable[..., Any], host: str, port: int, priority_paths: Collection[str]) -> None:
        self._priority_paths = priority_paths
        self._priority, others = _start_thread(), _start_thread()  # before the address is bound, since it can fail
        listener = _listen(host, port)
        super().__init__(
            application,
            _sock=listener,
            bind_socket=False,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
            dispatcher=others,
            ident=None,
            max_request_body_size=_MAX_REQUEST,
            max_request_header_size=_MAX_REQUEST,
            outbuf_overflow=sys.maxsize,  # no temporary files: the root file system may be read-only
            log_socket_errors=False,
            asyncore_use_poll=True,  # select() fails on a descriptor above 1023
        )
        self.address = _authority(*listener.getsockname()[:2])

    def add_task(self, channel: HTTPChannel) -> None:
        """Queue a complete request, those for the priority paths for a separate thread."""
        request = channel.requests[0]
        # One answer per connection: before a second one, the thread would wait until the client has read the first.
        request.headers["CONNECTION"] = "close"
        if request.error:  # waitress' own answer may quote the request
            status = HTTPStatus(request.error.code)
            request.error = _Response.of_text(status, status.phrase.lower())
        (self._priority if self._is_urgent(channel) else self.task_dispatcher).add_task(channel)

    def handle_accept(self) -> None:
        """Accept waiting connections, as many at once as can stay until their request is read.

        With one at a time, as in waitress, a probe behind 600 others waits for seconds while a view is computed: each
        wait for events then ends with a wait of 5 ms for Python's global lock.
        """
        for _ in range(min(_MAX_CONNECTIONS, 2 * _MAX_CONNECTIONS - len(self.active_channels))):
            before = len(self.active_channels)
            super().handle_accept()
            if len(self.active_channels) == before:
                return

    def readable(self) -> bool:
        """Drop the oldest connections above the limits, and those that exceed the timeout; return True to accept more.

        waitress calls this before each wait for events.
        """
        # A probe is answered in milliseconds, so it is neither dropped nor counted once its request is complete.
        oldest_first = [each for each in list(self.active_channels.values()) if not self._is_urgent(each)]
        unread = [channel for channel in oldest_first if channel.total_outbufs_len]
        late = [channel for channel in oldest_first if _is_late(channel, time.time())]
        for channel in (*oldest_first[:-_MAX_CONNECTIONS], *unread[:-_MAX_UNREAD], *late):
            _drop(channel)
        return len(self.active_channels) < 2 * _MAX_CONNECTIONS

    def _is_urgent(self, channel: HTTPChannel) -> bool:
        return any(getattr(request, "path", None) in self._priority_paths for request in channel.requests)


def _start_thread() -> ThreadedTaskDispatcher:
    dispatcher = ThreadedTaskDispatcher()
    dispatcher.set_thread_count(1)
    return dispatcher


def _is_late(channel: HTTPChannel, now: float) -> bool:
    """Return True if the client exceeds the timeout; a partial request does not restart it."""
    since = channel.last_activity if channel.total_outbufs_len else channel.creation_time
    return not channel.requests and now - since > _TIMEOUT


def _drop(channel: HTTPChannel) -> None:
    """Make waitress close a connection, by an event that arrives even if the client reads nothing.

    Closing it here would free its descriptor for a new connection, which would then get the old one's events.
    """
    channel.will_close = True
    with contextlib.suppress(OSError):  # closed by the client
        channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        channel.socket.shutdown(socket.SHUT_RDWR)


class HttpServer:
    """Answer GET and HEAD for the probes and the views."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        is_alive: Callable[[], str | None],
        is_ready: Callable[[], str | None],
        views: Mapping[str, View],
    ) -> None:
        """Bind `address` and listen; raise OSError, its `strerror` a message for people.

        :param host: `::` serves IPv6 and IPv4.
        :param is_alive: for `/livez`; returns in a few words why a restart is needed, or None.
        :param is_ready: for `/readyz`; returns why it is not, or None.
        :param views: by path.
        """
        self._probes: Mapping[str, Callable[[], str | None]] = {"/livez": is_alive, "/readyz": is_ready}
        self._views = views
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of each request that waits
        self._server = _Server(self._application, host, port, self._probes.keys())
        self.address: str = self._server.address

    def start(self) -> None:
        """Answer requests in the background for the rest of the process."""
        threading.Thread(target=self._server.run, name="http", daemon=True).start()

    def _application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method in ("GET", "HEAD"):
            response = self._respond(environ["PATH_INFO"], environ["QUERY_STRING"])
        else:
            response = _Response.of_text(HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed: read-only")
        status, headers, body = response.to_response()
        start_response(status, headers)
        return [] if method == "HEAD" else [body]  # waitress does not leave it out

    def _respond(self, path: str, query: str) -> _Response:
        try:
            if path in self._probes:
                reason = self._probes[path]()
                return _Response.of_text(HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK, reason or "ok")
            if path in self._views:
                view = self._views[path]
                parameters = {name: values[0][:_MAX_PARAMETER] for name, values in parse_qs(query).items()}
                return _Response(HTTPStatus.OK, view.body(parameters), view.content_type, _policy(view.style))
        except Exception:
            log.exception("worker.internal_error", path=path)
            return _Response.of_text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error: see the log")
        available = " ".join(sorted([*self._probes, *self._views]))
        return _Response.of_text(HTTPStatus.NOT_FOUND, f"not found; available: {available}")


def _policy(style: str | None) -> str:
    """Return the CSP of a view; a page may use one style, and its form may send to this server."""
    page = f"form-action 'self'; style-src '{style}'"
    return _NO_CONTENT.replace("form-action 'none'", page) if style else _NO_CONTENT


def _listen(host: str, port: int) -> socket.socket:
    """Listen on an address: on `::` for IPv6 and IPv4, or for IPv4 alone if the kernel has no IPv6."""
    bound = "0.0.0.0" if host == "::" and not socket.has_dualstack_ipv6() else host  # noqa: S104 - as wide as the setting
    try:
        # The least is an IPv4 address if the name has one: hosts files name ::1 even where IPv6 is off.
        family, *_, address = min(socket.getaddrinfo(bound, port, type=socket.SOCK_STREAM))
        return socket.create_server(address, family=family, dualstack_ipv6=bound == "::")
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", "invalid host name")).partition(" (")[0]  # Python adds the address
        text = f"cannot bind to {_authority(host, port)}: {reason.lower()}"
        raise OSError(getattr(error, "errno", None), text) from None


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
