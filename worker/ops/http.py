"""The HTTP port: probes, metrics and the status page; read-only, and nothing for whoever means no good."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import structlog
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, WSGITask

_THREADS = 2
_LONGEST_FILTER = 200
_LONGEST_REQUEST = 16 * 1024
_PATIENCE = 10
"""Seconds in which a request must be complete, and its answer be taken."""
_MOST_CONNECTIONS = 400
"""More wait until one of these ends; so many are no burden, and leave files for the way to Vault and Sentinel."""
_CONTENT = "Content-Security-Policy"
_NO_CONTENT = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_GUARDS = [
    (_CONTENT, _NO_CONTENT),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
]
"""In every answer, also in those that the server makes by itself."""

log = structlog.get_logger()


class _GuardedMixin:
    response_headers: list[tuple[str, str]]

    def build_response_header(self) -> bytes:
        own = {name for name, _ in self.response_headers}
        self.response_headers += [guard for guard in _GUARDS if guard[0] not in own]
        return super().build_response_header()  # type: ignore[misc, no-any-return] # waitress ships no types


class _Task(_GuardedMixin, WSGITask):  # type: ignore[misc] # the same
    pass


class _ErrorTask(_GuardedMixin, ErrorTask):  # type: ignore[misc] # the same
    pass


class _Channel(HTTPChannel):  # type: ignore[misc] # the same
    task_class = _Task
    error_task_class = _ErrorTask
    last_activity: float

    def handle_read(self) -> None:
        """A part of a request is no sign of life: who drips one would stay for ever."""
        since = self.last_activity
        super().handle_read()
        if self.request is not None:
            self.last_activity = since


class _Server(TcpWSGIServer):  # type: ignore[misc] # the same
    channel_class = _Channel


@dataclass(frozen=True, slots=True)
class View:
    """What can be seen at a path."""

    content_type: str
    body: Callable[[str], bytes]
    """Given what `?q=` asks for."""
    style: str | None = None
    """The hash of the only style that the browser is to take."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Sequence[tuple[str, str]] = ()


class HttpServer:
    address: str

    def __init__(
        self,
        host: str,
        port: int,
        *,
        is_alive: Callable[[], bool],
        is_ready: Callable[[], bool],
        views: Mapping[str, View],
    ) -> None:
        """OSError if the port cannot be had.

        :param is_alive: for /livez: the clockwork turns; Vault or Sentinel being down is no reason to be killed.
        :param is_ready: for /readyz: logged in, and the first sync is done.
        :param views: by path, what else there is.
        """
        self._probes = {"/livez": (is_alive, b"stuck\n"), "/readyz": (is_ready, b"not yet\n")}
        self._views = views
        try:
            self._server = _Server(
                self._answer,
                host=host,
                port=port,
                threads=_THREADS,
                ident=None,
                max_request_body_size=_LONGEST_REQUEST,
                max_request_header_size=_LONGEST_REQUEST,
                clear_untrusted_proxy_headers=True,
                connection_limit=_MOST_CONNECTIONS,
                channel_timeout=_PATIENCE,
                cleanup_interval=1,
                asyncore_use_poll=True,  # select cannot see a file beyond the 1024th
            )
        except ValueError:
            raise OSError(None, "the host name cannot be resolved") from None
        self.address = f"{host}:{self._server.effective_port}"
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    def start(self) -> None:
        """It ends with the process."""
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if method in ("GET", "HEAD"):
            answer = self._seen(environ["PATH_INFO"], environ["QUERY_STRING"])
        else:
            answer = _Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"read-only\n")
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            ("Allow", "GET, HEAD"),
            *answer.headers,
        ]
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [] if method == "HEAD" else [answer.body]  # waitress would send it

    def _seen(self, path: str, query: str) -> _Answer:
        if path in self._probes:
            holds, otherwise = self._probes[path]
            return _Answer(HTTPStatus.OK, b"ok\n") if holds() else _Answer(HTTPStatus.SERVICE_UNAVAILABLE, otherwise)
        view = self._views.get(path)
        if view is None:
            there = " ".join(sorted([*self._probes, *self._views]))
            return _Answer(HTTPStatus.NOT_FOUND, f"there is {there}\n".encode())
        try:
            body = view.body(parse_qs(query).get("q", [""])[0][:_LONGEST_FILTER])
        except Exception:
            log.exception("worker.bug", path=path)
            return _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"an internal error: see the log\n")
        content = _NO_CONTENT.replace("form-action 'none'", f"form-action 'self'; style-src '{view.style}'")
        return _Answer(HTTPStatus.OK, body, view.content_type, [(_CONTENT, content)] if view.style else [])
