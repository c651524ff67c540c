"""The HTTP port, for Kubernetes' probes: read-only, two answers, and nothing for whoever means no good."""

import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, WSGITask

_THREADS = 2
_LONGEST_REQUEST = 16 * 1024
_PATIENCE = 10
"""Seconds in which a request must be complete, and its answer be taken."""
_MOST_CONNECTIONS = 400
"""More wait until one of these ends; so many are no burden, and leave files for the way to Vault and Sentinel."""
_GUARDS = [
    ("Content-Security-Policy", "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
]
"""In every answer, also in those that the server makes by itself."""


class _GuardedMixin:
    response_headers: list[tuple[str, str]]

    def build_response_header(self) -> bytes:
        self.response_headers += _GUARDS
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


class HttpServer:
    address: str

    def __init__(self, host: str, port: int, *, is_alive: Callable[[], bool], is_ready: Callable[[], bool]) -> None:
        """OSError if the port cannot be had.

        :param is_alive: for /livez: the clockwork turns; Vault or Sentinel being down is no reason to be killed.
        :param is_ready: for /readyz: logged in, and the first sync is done.
        """
        self._probes = {"/livez": is_alive, "/readyz": is_ready}
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
        probe, method = self._probes.get(environ["PATH_INFO"]), environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD"):
            status, text = HTTPStatus.METHOD_NOT_ALLOWED, "read-only"
        elif probe is None:
            status, text = HTTPStatus.NOT_FOUND, "there is /livez and /readyz"
        elif probe():
            status, text = HTTPStatus.OK, "ok"
        else:
            status, text = HTTPStatus.SERVICE_UNAVAILABLE, "not yet" if probe is self._probes["/readyz"] else "stuck"
        body = f"{text}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Allow", "GET, HEAD"),
        ]
        start_response(f"{status.value} {status.phrase}", headers)
        return [] if method == "HEAD" else [body]  # waitress would send it
