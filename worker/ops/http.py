"""The HTTP port, for Kubernetes' probes: read-only, two answers."""

import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

import waitress
from waitress.server import BaseWSGIServer

_THREADS = 2
_LONGEST_REQUEST = 16 * 1024
_HEADERS = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]


class HttpServer:
    address: str

    def __init__(self, host: str, port: int, *, is_alive: Callable[[], bool], is_ready: Callable[[], bool]) -> None:
        """OSError if the port cannot be had.

        :param is_alive: for /livez: the clockwork turns; Vault or Sentinel being down is no reason to be killed.
        :param is_ready: for /readyz: logged in, and the first sync is done.
        """
        self._probes = {"/livez": is_alive, "/readyz": is_ready}
        self._server: BaseWSGIServer = waitress.create_server(
            self._answer,
            host=host,
            port=port,
            threads=_THREADS,
            ident=None,
            max_request_body_size=_LONGEST_REQUEST,
            max_request_header_size=_LONGEST_REQUEST,
            clear_untrusted_proxy_headers=True,
        )
        self.address = f"{host}:{self._server.effective_port}"
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    def start(self) -> None:
        """It ends with the process."""
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        probe = self._probes.get(environ["PATH_INFO"])
        if probe is None:
            status, text = HTTPStatus.NOT_FOUND, "there is /livez and /readyz"
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, text = HTTPStatus.METHOD_NOT_ALLOWED, "read-only"
        elif probe():
            status, text = HTTPStatus.OK, "ok"
        else:
            status, text = HTTPStatus.SERVICE_UNAVAILABLE, "not yet" if probe is self._probes["/readyz"] else "stuck"
        start_response(f"{status.value} {status.phrase}", _HEADERS)
        return [f"{text}\n".encode()]
