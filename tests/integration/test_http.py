"""The daemon's port for probes, asked as Kubernetes does."""

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import requests

from tests.integration.processes import Daemon, Scene, eventually, scene
from worker.ops.http import HttpServer

ACCOUNT = "le81823118"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path, vault_tls=False) as made:  # with TLS each start makes a new CA
        made.settings["APPJWT_HTTP_LISTEN"] = "127.0.0.1:0"
        yield made


def probe(daemon: Daemon, path: str, method: str = "GET") -> int:
    return requests.request(method, f"http://{daemon.wait_for('worker.started')['http']}{path}", timeout=5).status_code


def test_it_is_alive_at_once_and_ready_from_the_first_sync_on(world: Scene) -> None:
    world.openbao.stop()
    root = {"APPJWT_VAULT_AUTH_METHOD": "token", "APPJWT_VAULT_TOKEN": world.openbao.root_token}
    daemon = world.daemon(root)  # a dev server forgets its logins when it stops, but not its root token
    daemon.wait_for("vault.unavailable")
    assert (probe(daemon, "/livez"), probe(daemon, "/readyz")) == (200, 503)
    world.openbao.start()
    daemon.wait_for("worker.ready")
    assert eventually(lambda: probe(daemon, "/readyz") == 200)
    world.openbao.stop()
    assert (probe(daemon, "/livez"), probe(daemon, "/readyz")) == (200, 200), "once true it stays true"
    daemon.stop()


def test_nothing_can_be_changed_and_nothing_else_is_there(world: Scene) -> None:
    daemon = world.daemon()
    assert probe(daemon, "/readyz", "POST") == 405
    assert probe(daemon, "/livez", "HEAD") == 200
    for path in ("/x", "/livez/", "/../etc/passwd", "/%00"):
        assert probe(daemon, path) == 404
    assert probe(daemon, "/readyz?x=1") in (200, 503)
    daemon.stop()


GUARDS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def raw(port: int, request: bytes) -> bytes:
    """All that comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


@dataclass
class Port:
    """The port by itself, with a probe that can be made to fail."""

    number: int
    fault: list[Exception]


@pytest.fixture
def port() -> Port:
    fault: list[Exception] = []

    def is_alive() -> bool:
        for each in fault:
            raise each
        return True

    server = HttpServer("127.0.0.1", 0, is_alive=is_alive, is_ready=lambda: False, views={})
    server.start()
    return Port(int(server.address.rpartition(":")[2]), fault)


CLOSE = b"Host: x\r\nConnection: close\r\n\r\n"
ODD: dict[str, tuple[bytes, bytes]] = {
    "another path": (b"GET /<script>alert(1)</script> HTTP/1.1\r\n" + CLOSE, b" 404 "),
    "another method": (b"DELETE /livez HTTP/1.1\r\n" + CLOSE, b" 405 "),
    "a method of its own": (b"FROB / HTTP/1.1\r\n" + CLOSE, b" 405 "),
    "a way up": (b"GET /livez/../../etc/passwd HTTP/1.1\r\n" + CLOSE, b" 404 "),
    "a proxy's request": (b"GET http://evil.test/x HTTP/1.1\r\n" + CLOSE, b" 404 "),
    "no HTTP": (b"hello\r\n\r\n", b" 400 "),
    # just as much as it reads: of an answer before the end of a request TCP may lose a part
    "a header too long": ((b"GET /livez HTTP/1.1\r\nX: " + b"y" * 20_000)[: 16 * 1024], b" 431 "),
    "headers without an end": ((b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 4_000)[: 16 * 1024], b" 431 "),
    "a body too large": (b"POST /livez HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b" 413 "),
    "an odd length": (b"POST /livez HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b" 400 "),
    "a length and chunks": (
        b"POST /livez HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b" 501 ",
    ),
    "NUL": (b"GET /\x00 HTTP/1.1\r\nX\x00: y\r\n\r\n", b" 400 "),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_it_was_not_made_for_is_refused_with_all_guards_and_without_a_word_of_the_request(
    kind: str, port: Port
) -> None:
    asked, status = ODD[kind]
    answer = raw(port.number, asked)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status in head.partition(b"\r\n")[0], answer
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))}
    assert headers.items() >= GUARDS.items()
    assert headers.keys().isdisjoint({"server", "via", "x-powered-by"})
    for word in (b"script", b"waitress", b"Python", b"passwd", b"evil", version("appjwt-worker").encode()):
        assert word not in answer.replace(b"HTTP/1.0", b"").replace(b"HTTP/1.1", b"")
    assert len(body) < 200


def test_a_head_has_the_headers_of_a_get_and_no_body_that_the_next_answer_would_begin_with(port: Port) -> None:
    answer = raw(port.number, b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\n" + CLOSE)
    first, second = answer.partition(b"\r\n\r\n")[::2]
    assert b"Content-Length: 3" in first
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    assert second.endswith(b"\r\n\r\nok\n")


def test_a_fault_of_ours_is_told_in_the_log_and_not_to_whoever_asks(
    port: Port, caplog: pytest.LogCaptureFixture
) -> None:
    port.fault.append(ZeroDivisionError("something inside"))
    answer = raw(port.number, b"GET /livez HTTP/1.1\r\n" + CLOSE)
    assert answer.startswith(b"HTTP/1.1 500 ")
    for word in (b"Traceback", b"ZeroDivision", b"inside", b".py"):
        assert word not in answer
    assert "ZeroDivisionError: something inside" in caplog.text
    port.fault.clear()
    assert raw(port.number, b"GET /livez HTTP/1.1\r\n" + CLOSE).startswith(b"HTTP/1.1 200 ")


SLOW = 200


def test_probes_are_answered_among_200_slow_connections_which_do_not_last(port: Port) -> None:
    began, longest = time.monotonic(), 0.0
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port.number))) for _ in range(SLOW)]
        for number, connection in enumerate(slow):  # a third each says nothing, drips a request, and drips a body
            if number % 3:
                connection.sendall((b"GET /livez HT", b"POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n")[number % 3 - 1])
        ended: set[int] = set()
        while len(ended) < SLOW and time.monotonic() < began + 40:
            asked = time.monotonic()
            assert raw(port.number, b"GET /livez HTTP/1.1\r\n" + CLOSE).startswith(b"HTTP/1.1 200 ")
            longest = max(longest, time.monotonic() - asked)
            for number, connection in enumerate(slow):
                if number not in ended and not drips(connection, say=number % 3 > 0):
                    ended.add(number)
            time.sleep(0.5)
    assert longest < 5
    assert len(ended) == SLOW


def drips(connection: socket.socket, *, say: bool) -> bool:
    """Say one more byte; whether the server still listens."""
    connection.setblocking(False)
    try:
        if say:
            connection.send(b"T")
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_more_connections_than_it_takes_wait_and_are_served_when_others_end(port: Port) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(420):
            stack.enter_context(socket.create_connection(("127.0.0.1", port.number), timeout=20))
        began = time.monotonic()
        assert raw(port.number, b"GET /livez HTTP/1.1\r\n" + CLOSE).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - began < 20


def test_a_host_that_nobody_knows_is_a_wrong_setting(world: Scene) -> None:
    done = world.call(changes={"APPJWT_HTTP_LISTEN": "nowhere.invalid:80"})
    assert done.status == 2
    assert "nowhere.invalid:80 cannot be had: the host name cannot be resolved" in done.err


def test_a_port_that_is_taken_is_a_wrong_setting_and_no_mode_but_the_daemon_wants_it(world: Scene) -> None:
    world.add_account(ACCOUNT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        changes = {"APPJWT_HTTP_LISTEN": listen}
        done = world.call(changes=changes)
        assert done.status == 2
        assert f"http.listen (APPJWT_HTTP_LISTEN): {listen} cannot be had: address already in use" in done.err
        assert world.call("--refresh", ACCOUNT, changes=changes).status == 0
