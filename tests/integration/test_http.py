"""The daemon's port for probes, asked as Kubernetes does."""

import contextlib
import errno
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import pytest
import requests
import structlog

from sandbox.faults import Fault
from tests.integration.processes import Scene, eventually, scene
from worker.ops.http import HttpServer, View

ACCOUNT = "le81823118"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path, vault_tls=False) as made:  # with TLS each start makes a new CA
        made.settings["APPJWT_HTTP_LISTEN"] = "127.0.0.1:0"
        yield made


DEADLOCK = """
import pathlib, sys, threading, time
from worker import daemon
from worker.schedule.dispatch import Dispatcher
daemon._MAX_STALL, file = 3.0, pathlib.Path(sys.argv.pop(1))
start_due = Dispatcher.start_due
def start_or_deadlock(dispatcher):
    if file.exists():
        dispatcher.lock.acquire()
    start_due(dispatcher)
Dispatcher.start_due = start_or_deadlock
from worker.cli import main
sys.exit(main())
"""
"""The installed command, but that its scheduler deadlocks once this file is there, which counts after 3 s already."""


def test_a_deadlocked_scheduler_is_not_alive_and_an_outage_and_full_limits_are_no_deadlock(
    world: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = world.folder / "deadlock"
    monkeypatch.setattr(world, "command", lambda *flags: [sys.executable, "-c", DEADLOCK, str(file), *flags])
    for number in range(4):
        world.add_account(f"{ACCOUNT}/{number}")
    world.liveperson.faults.set(Fault(hang=True))
    daemon = world.daemon({"APPJWT_SENTINEL_MAX_IN_FLIGHT": "1"})
    eventually(lambda: any(seen.service == "sentinel" for seen in world.liveperson.seen) or None)
    with world.openbao.frozen():
        ends = time.monotonic() + 12
        while time.monotonic() < ends:
            assert daemon.probe("/livez") == 200
            time.sleep(0.2)
    file.touch()
    eventually(lambda: daemon.probe("/livez") == 503)
    assert requests.get(f"{daemon.url}/livez", timeout=5).text.startswith("no scheduling pass for ")
    daemon.process.kill()


def test_nothing_can_be_changed_and_nothing_else_is_there(world: Scene) -> None:
    daemon = world.daemon()
    assert daemon.probe("/readyz", "POST") == 405
    assert daemon.probe("/livez", "HEAD") == 200
    for path in ("/x", "/livez/", "/../etc/passwd", "/%00"):
        assert daemon.probe(path) == 404
    assert daemon.probe("/readyz?x=1") in (200, 503)
    daemon.stop()


GUARDS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def raw(port: int, request: bytes, *, host: str = "127.0.0.1", timeout: float = 20) -> bytes:
    """Return all that comes back until the server closes the connection."""
    with socket.create_connection((host, port), timeout=timeout) as connection:
        connection.sendall(request)
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def serve(
    host: str = "127.0.0.1",
    is_alive: Callable[[], str | None] = lambda: None,
    **views: Callable[[Mapping[str, str]], bytes],
) -> int:
    """Start a server without a daemon around it, and return its port."""
    shown = {f"/{name}": View("text/plain", body) for name, body in views.items()}
    server = HttpServer(host, 0, is_alive=is_alive, is_ready=lambda: "not ready: why", views=shown)
    server.start()
    return int(server.address.rpartition(":")[2])


@pytest.fixture
def port() -> int:
    return serve()


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
    kind: str, port: int
) -> None:
    asked, status = ODD[kind]
    answer = raw(port, asked)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status in head.partition(b"\r\n")[0], answer
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))}
    assert headers.items() >= GUARDS.items()
    assert headers.keys().isdisjoint({"server", "via", "x-powered-by"})
    for word in (b"script", b"waitress", b"Python", b"passwd", b"evil", version("appjwt-worker").encode()):
        assert word not in answer.replace(b"HTTP/1.0", b"").replace(b"HTTP/1.1", b"")
    assert len(body) < 200


def test_a_head_has_the_headers_of_a_get_and_no_body(port: int) -> None:
    head, _, body = raw(port, b"HEAD /livez HTTP/1.1\r\n" + CLOSE).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 3" in head
    assert body == b""


@pytest.mark.parametrize(
    "version_and_wish", [b"1.1", b"1.1\r\nConnection: keep-alive", b"1.0\r\nConnection: keep-alive"]
)
def test_a_connection_ends_with_its_first_answer(version_and_wish: bytes, port: int) -> None:
    answer = raw(port, b"GET /livez HTTP/" + version_and_wish + b"\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\n" + CLOSE)
    assert answer.endswith(b"\r\n\r\nok\n")
    assert answer.count(b"HTTP/1.") == 1
    assert answer.lower().count(b"connection: ") == answer.count(b"Connection: close") == 1


def test_a_failing_probe_says_why_in_a_few_words() -> None:
    port = serve(is_alive=lambda: "no threads")
    for path, words in ((b"/livez", b"no threads\n"), (b"/readyz", b"not ready: why\n")):
        answer = raw(port, b"GET " + path + b" HTTP/1.1\r\n" + CLOSE)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"\r\n\r\n" + words)


def test_a_path_that_is_not_there_is_answered_with_those_that_are() -> None:
    answer = raw(serve(metrics=lambda _: b""), b"GET /x HTTP/1.1\r\n" + CLOSE)
    assert answer.endswith(b"\r\n\r\nnot found; available: /livez /metrics /readyz\n")


def test_a_fault_of_ours_is_told_in_the_log_and_not_to_whoever_asks() -> None:
    faults: list[Exception] = [ZeroDivisionError("something inside")]

    def is_alive() -> None:
        for each in faults:
            raise each

    port = serve(is_alive=is_alive)
    with structlog.testing.capture_logs() as logged:
        answer = raw(port, b"GET /livez HTTP/1.1\r\n" + CLOSE)
    assert answer.startswith(b"HTTP/1.1 500 ")
    for word in (b"Traceback", b"ZeroDivision", b"inside", b".py"):
        assert word not in answer
    assert logged == [{"event": "worker.internal_error", "path": "/livez", "exc_info": True, "log_level": "error"}]
    faults.clear()
    assert raw(port, b"GET /livez HTTP/1.1\r\n" + CLOSE).startswith(b"HTTP/1.1 200 ")


def is_alive_in_time(port: int) -> bool:
    """Ask as the kubelet does, which waits for the chart's `timeoutSeconds`."""
    return raw(port, b"GET /livez HTTP/1.1\r\n" + CLOSE, timeout=5).startswith(b"HTTP/1.1 200 ")


ALONE = """
import sys
from worker.ops.http import HttpServer, View
metrics = View("text/plain", lambda _: "".join(f'name{{account="{n}"}} {n}\\n' for n in range(35_000)).encode())
server = HttpServer("127.0.0.1", 0, is_alive=lambda: None, is_ready=lambda: None, views={"/metrics": metrics})
server.start()
print(server.address, flush=True)
sys.stdin.read()
"""
HELD = {"half sent": b"GET /livez HT", "idle": b"", "not read": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"}


@pytest.mark.parametrize("kind", HELD)
def test_probes_are_answered_while_600_connections_are_held(kind: str) -> None:
    """Once 400 half-sent requests were enough that the kubelet would have killed the pod."""
    with (
        subprocess.Popen(
            [sys.executable, "-c", ALONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as served,
        contextlib.ExitStack() as stack,
    ):
        assert served.stdout
        port = int(served.stdout.readline().rpartition(":")[2])
        process = Path(f"/proc/{served.pid}")
        held: dict[int, socket.socket] = {}
        for _ in range(6):
            for gone in dropped(held)[:100]:  # these come back; more at once would be a flood
                held.pop(gone).close()
            while len(held) < 600:
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
                with contextlib.suppress(ConnectionError):  # dropped already
                    connection.sendall(HELD[kind])
                held[connection.fileno()] = connection
            time.sleep(0.5)  # the kubelet's pause
            assert is_alive_in_time(port)
            assert len(list((process / "fd").iterdir())) < 250
            assert resident(process) < 100


def dropped(connections: dict[int, socket.socket]) -> list[int]:
    """Return the descriptors of those that the server closed, also with an answer that is not read."""
    poll = select.poll()
    for descriptor in connections:
        poll.register(descriptor, select.POLLRDHUP)
    return [descriptor for descriptor, _ in poll.poll(0)]


def resident(process: Path) -> int:
    """Return the MiB of memory that a process uses."""
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))


def test_a_probe_does_not_wait_for_the_views() -> None:
    shown = threading.Event()

    def slow(_: Mapping[str, str]) -> bytes:
        shown.wait(20)
        return b"shown"

    port = serve(slow=slow)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(10)]
        for connection in waiting:
            connection.sendall(b"GET /slow HTTP/1.1\r\n" + CLOSE)
        for _ in range(3):
            assert is_alive_in_time(port)
        shown.set()
        assert all(rest(connection).endswith(b"\r\n\r\nshown") for connection in waiting)


def test_a_probe_that_is_being_answered_outlasts_newer_connections() -> None:
    asked, answered = threading.Event(), threading.Event()

    def is_alive() -> None:
        asked.set()
        answered.wait(20)

    port = serve(is_alive=is_alive)
    with contextlib.ExitStack() as stack:
        probe = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        probe.sendall(b"GET /livez HTTP/1.1\r\n" + CLOSE)
        assert asked.wait(20)
        newer = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(120)]
        assert eventually(lambda: dropped({each.fileno(): each for each in newer}))
        answered.set()
        assert rest(probe).startswith(b"HTTP/1.1 200 ")


SLOW = (
    (b"", b""),
    (b"GET /livez HT", b"T"),
    (b"POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n", b"T"),
    (b"GET /large HTTP/1.1\r\n" + CLOSE, b""),
)
"""What each says at once, and then again and again; none reads."""


def test_slow_connections_do_not_last() -> None:
    port, began = serve(large=lambda _: bytes(2**25)), time.monotonic()
    with contextlib.ExitStack() as stack:
        slow: dict[int, tuple[socket.socket, bytes]] = {}
        for first, drip in SLOW:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            connection.sendall(first)
            slow[connection.fileno()] = connection, drip
        while slow and time.monotonic() < began + 40:
            assert is_alive_in_time(port)
            for gone in dropped({descriptor: connection for descriptor, (connection, _) in slow.items()}):
                del slow[gone]
            for connection, drip in slow.values():
                with contextlib.suppress(OSError):  # closed meanwhile
                    connection.send(drip)
            time.sleep(0.5)
    assert not slow


def test_of_the_answers_that_are_not_read_only_the_newest_stay_in_memory() -> None:
    port = serve(large=lambda _: bytes(2**23))
    with contextlib.ExitStack() as stack:
        held: dict[int, socket.socket] = {}
        for _ in range(20):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            connection.sendall(b"GET /large HTTP/1.1\r\n" + CLOSE)
            held[connection.fileno()] = connection
        assert eventually(lambda: len(dropped(held)) == 12)
        oldest, *_, newest = held.values()
        assert len(rest(newest).partition(b"\r\n\r\n")[2]) == 2**23
        with pytest.raises(ConnectionResetError):  # the kernel does not keep the rest of it either
            rest(oldest)


def test_a_large_answer_needs_no_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(tempfile, "TemporaryFile", made.append)
    body = bytes(range(256)) * 20_000
    answer = raw(serve(metrics=lambda _: body), b"GET /metrics HTTP/1.1\r\n" + CLOSE)
    assert answer.partition(b"\r\n\r\n")[2] == body
    assert made == []


def test_requests_that_wait_their_turn_are_not_worth_a_line_in_the_log(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        with contextlib.ExitStack() as stack:
            asked = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(100)]
            for connection in asked:
                connection.sendall(b"GET /livez HTTP/1.1\r\n" + CLOSE)
            assert all(rest(connection).startswith(b"HTTP/1.1 200 ") for connection in asked)
    assert caplog.text == ""


def has_ipv6() -> bool:
    """Return True if this machine has IPv6 on loopback; many containers have none."""
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def test_the_address_of_all_of_ipv6_serves_ipv4_too() -> None:
    port = serve("::")
    for host in ("127.0.0.1", "::1")[: 1 + has_ipv6()]:
        assert raw(port, b"GET /livez HTTP/1.1\r\n" + CLOSE, host=host).startswith(b"HTTP/1.1 200 ")


def test_the_address_of_all_of_ipv6_serves_ipv4_where_the_kernel_has_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket(socket.socket):
        """The answer of a kernel that was started with ipv6.disable=1."""

        def __init__(self, family: int = socket.AF_INET, *others: int, **named: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *others, **named)

    monkeypatch.setattr(socket, "socket", Socket)
    server = HttpServer("::", 0, is_alive=lambda: None, is_ready=lambda: None, views={})
    server.start()
    host, _, port = server.address.rpartition(":")
    assert host == "0.0.0.0"
    assert raw(int(port), b"GET /livez HTTP/1.1\r\n" + CLOSE).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("192.0.2.1", 80, "cannot bind to 192.0.2.1:80: cannot assign requested address"),
        ("2001:db8::1", 80, "cannot bind to [2001:db8::1]:80: "),
        ("a..b", 80, "cannot bind to a..b:80: invalid host name"),
    ],
)
def test_an_address_that_is_not_this_machines_is_named_with_the_reason(host: str, port: int, words: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the text is compared below
        HttpServer(host, port, is_alive=lambda: None, is_ready=lambda: None, views={})
    assert str(caught.value.strerror).startswith(words)


def test_a_host_that_nobody_knows_is_a_wrong_setting(world: Scene) -> None:
    done = world.call(changes={"APPJWT_HTTP_LISTEN": "nowhere.invalid:80"})
    assert done.status == 2
    assert "http.listen (APPJWT_HTTP_LISTEN): cannot bind to nowhere.invalid:80: " in done.err


def test_a_port_that_is_taken_is_a_wrong_setting_and_no_mode_but_the_daemon_wants_it(world: Scene) -> None:
    world.add_account(ACCOUNT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        changes = {"APPJWT_HTTP_LISTEN": listen}
        done = world.call(changes=changes)
        assert done.status == 2
        assert f"http.listen (APPJWT_HTTP_LISTEN): cannot bind to {listen}: address already in use" in done.err
        assert world.call("--refresh", ACCOUNT, changes=changes).status == 0
