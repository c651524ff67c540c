"""One exchange is bounded in time and size, reaches only its target, and explains its failure clearly."""

import asyncio
import contextlib
import functools
import gc
import gzip
import os
import pickle
import re
import shutil
import socket
import ssl
import threading
import time
import tracemalloc
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
import trustme
from pydantic import SecretStr

from tests.integration.processes import eventually
from tests.integration.servers import (
    Answering,
    Proxy,
    Server,
    Talk,
    for_ever,
    http,
    in_clear,
    request,
    server_tls,
    silent,
)
from worker import net
from worker.core.account import Account
from worker.core.errors import Kind, RefreshError
from worker.liveperson.sentinel import SentinelClient
from worker.net import bounded

DEADLINE = 0.4
TOLERANCE = 5
"""Seconds that a loaded machine may take on top; a deadline restarted by each byte is never reached."""

PATH, QUERY, HEADER, BODY = "a-path-of-ours", "a-query-of-ours", "a-header-of-ours", "a-body-of-ours"

Tls = Callable[..., ssl.SSLContext]
Open = Callable[..., requests.Session]


@pytest.fixture(scope="module")
def tls(ca: trustme.CA) -> Tls:
    """Return a server's side of TLS."""

    def context(*names: str, authority: trustme.CA = ca, not_after: datetime | None = None) -> ssl.SSLContext:
        return server_tls(authority, *names, not_after=not_after)

    return context


@pytest.fixture
def session(ca_file: Path) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def opened(ca_cert: Path | None = ca_file) -> requests.Session:
            made = net.session(user_agent="test", ca_cert=str(ca_cert) if ca_cert else None)
            return stack.enter_context(made)

        yield opened


def post(session: requests.Session, url: str, *, timeout: float = 5) -> requests.Response:
    return session.post(
        f"{url}/{PATH}?q={QUERY}", data={"secret": BODY}, headers={"X-Vault-Token": HEADER}, timeout=timeout
    )


def failure(session: requests.Session, url: str, *, timeout: float = 5) -> str:
    """Return the error of an exchange that fails. Whatever the cause, it reveals nothing."""
    with pytest.raises(net.ExchangeError) as caught:
        post(session, url, timeout=timeout)
    text = str(caught.value)
    assert not any(ours in text for ours in (PATH, QUERY, HEADER, BODY, "secret"))
    assert "\n" not in text
    assert len(text) < 200
    return text


# The deadline


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

SLOW: dict[str, Talk] = {
    "accepts and says nothing": silent,
    "drips the status line": for_ever(b"", http(b"x" * 99), 0.02),
    "drips headers": for_ever(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 99, 0.02),
    "drips the body": for_ever(http(b"x" * 99)[:-99], b"x" * 99, 0.02),
    "drips chunks": for_ever(CHUNKED, b"1\r\nx\r\n" * 99, 0.02),
    "drips a body without an end": for_ever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 999, 0.02),
    "says 100 for ever": for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0),
    "trailers for ever": for_ever(CHUNKED + b"0\r\n", b"X: y\r\n", 0),
}


@pytest.mark.parametrize("kind", SLOW)
def test_the_deadline_is_for_the_whole_exchange_when_a_server(kind: str, tls: Tls, session: Open) -> None:
    with Server(SLOW[kind], tls=tls()) as server:
        opened = session()
        began = time.monotonic()
        text = failure(opened, server.url, timeout=DEADLINE)
        assert DEADLINE <= time.monotonic() - began < DEADLINE + TOLERANCE
        assert text == f"127.0.0.1:{server.port}: no complete answer within {DEADLINE} s"


@pytest.mark.parametrize(
    "handshake",
    [b"", b"\x16\x03\x03\x40\x00" + bytes(999)],
    ids=["does not begin the handshake", "drips the handshake"],
)
def test_the_deadline_holds_when_a_server(handshake: bytes, session: Open) -> None:
    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        del reader
        for byte in handshake:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        await asyncio.Event().wait()

    with Server(talk) as server:
        began = time.monotonic()
        text = failure(session(), f"https://127.0.0.1:{server.port}", timeout=DEADLINE)
        assert time.monotonic() - began < DEADLINE + TOLERANCE
        assert text == f"127.0.0.1:{server.port}: no complete answer within {DEADLINE} s"


def test_the_deadline_holds_when_a_server_does_not_read_the_request(tls: Tls, session: Open) -> None:
    async def deaf(reader: StreamReader, writer: StreamWriter) -> None:
        del reader
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    with Server(deaf, tls=tls()) as server:
        began = time.monotonic()
        with pytest.raises(net.ExchangeError, match="no complete answer within"):
            session().post(server.url, json="A" * 12_000_000, timeout=DEADLINE)
        assert time.monotonic() - began < DEADLINE + TOLERANCE


@pytest.mark.parametrize(
    ("at_once", "piece"),
    [(b"HTTP/1.1 200 ", b"A" * 9999), (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 99), (CHUNKED, b"0" * 9999)],
    ids=["status line", "headers", "chunk's length"],
)
def test_it_gives_up_at_once_on_an_endless(at_once: bytes, piece: bytes, tls: Tls, session: Open) -> None:
    with Server(for_ever(at_once, piece, 0), tls=tls()) as server:
        text = failure(session(), server.url)
        assert re.fullmatch(rf"127.0.0.1:{server.port}: the answer is broken \(\w+\)", text)


def test_the_deadline_is_for_one_exchange_and_the_next_has_its_own(tls: Tls, session: Open) -> None:
    async def slowly(reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            await request(reader)
            await asyncio.sleep(2)
            writer.write(http())

    with Server(slowly, tls=tls()) as server:
        opened = session()
        assert [post(opened, server.url, timeout=3.5).status_code for _ in range(2)] == [200] * 2
        assert server.connections == 1


def test_after_a_rush_only_so_many_connections_stay_open(tls: Tls, ca_file: Path) -> None:
    rush, there = 12, asyncio.Event()
    closed: list[bytes] = []

    async def all_at_once(reader: StreamReader, writer: StreamWriter) -> None:
        await request(reader)
        if server.connections == rush:
            there.set()
        await there.wait()
        writer.write(http())
        closed.append(await reader.read())

    with (
        Server(all_at_once, tls=tls()) as server,
        net.session(user_agent="test", ca_cert=str(ca_file), max_idle_connections=4) as opened,
        ThreadPoolExecutor(rush) as pool,
    ):
        assert {each.status_code for each in pool.map(lambda _: post(opened, server.url), range(rush))} == {200}
        eventually(lambda: len(closed) == rush - 4)
        time.sleep(0.1)
        assert len(closed) == rush - 4


@pytest.fixture
def silent_address() -> Iterator[tuple[str, int]]:
    """Yield an address that never answers: its queue of connections is full. Linux answers on all of 127.0.0.0/8."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()


def test_an_address_that_is_silent_leaves_time_for_the_next_one(
    silent_address: tuple[str, int], tls: Tls, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, port = silent_address
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)) for host in (silent, "127.0.0.1")]
    # the one thing here that no real part can give: a resolver with two addresses for a name
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    with Answering(http(), tls=tls("several.invalid"), port=port):
        assert session().get(f"https://several.invalid:{port}", timeout=4).ok
    addresses.reverse()  # now the first one refuses
    text = failure(session(), f"https://several.invalid:{port}", timeout=DEADLINE)
    assert text == f"several.invalid:{port}: no complete answer within {DEADLINE} s"


def test_the_deadline_holds_when_a_name_is_looked_up_for_ever_and_one_thread_asks_for_all(
    session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def hanging(*_: object, **__: object) -> list[object]:
        answered.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "no resolver")

    # the other thing that no real part can give here: a resolver that does not answer
    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    opened, began = session(), time.monotonic()
    for _ in range(3):
        assert failure(opened, "https://slow.invalid", timeout=0.2) == "slow.invalid: no complete answer within 0.2 s"
    assert time.monotonic() - began < 0.6 + TOLERANCE
    assert [each.name for each in threading.enumerate()].count("dns") == 1
    answered.set()
    deadline = time.monotonic() + 5
    while any(each.name == "dns" for each in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert failure(opened, "https://slow.invalid") == "slow.invalid: the host name cannot be resolved"


class LateLock:
    """A lock that the thread of a look-up gets late."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if threading.current_thread().name == "dns":
            time.sleep(0.1)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_each_exchange_looks_a_name_up_anew_however_late_the_look_up_before_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old: list[tuple[object, ...]] = [("old",)]
    new: list[tuple[object, ...]] = [("new",)]
    answers = [old, new]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr(bounded.resolve, "_lock", LateLock())
    bounded.begin_exchange(5)
    assert [bounded.resolve("moved.invalid", 443) for _ in range(2)] == [old, new]


# The size


def test_an_answer_may_be_large_and_not_larger(tls: Tls, session: Open) -> None:
    with Answering(http(b" " * net.MAX_BODY_BYTES), tls=tls()) as server:
        assert len(post(session(), server.url).content) == net.MAX_BODY_BYTES
    with Answering(http(b" " * (net.MAX_BODY_BYTES + 1)), tls=tls()) as server:
        assert failure(session(), server.url) == f"127.0.0.1:{server.port}: the answer is larger than 4096 KiB"


def test_a_gzip_bomb_neither_fills_the_memory_nor_comes_through(tls: Tls, session: Open) -> None:
    bomb = gzip.compress(bytes(1 << 20)) * 300
    with Answering(http(bomb, "Content-Encoding: gzip"), tls=tls()) as server:
        opened = session()
        tracemalloc.start()
        try:
            text = failure(opened, server.url)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert text == f"127.0.0.1:{server.port}: the answer is compressed, though that was not asked for"
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b"") * 100_000),
        ("gzip, gzip", gzip.compress(gzip.compress(b"") * 100_000)),
        ("deflate, gzip", gzip.compress(b"\x78\x9c" + b"\0\0\0\xff\xff" * 10_000_000)),
    ],
    ids=["members", "members in members", "empty blocks"],
)
def test_what_takes_long_to_unpack_is_not_unpacked(coding: str, body: bytes, tls: Tls, session: Open) -> None:
    """The clock is read only between two operations of a socket."""
    with Answering(http(body, f"Content-Encoding: {coding}"), tls=tls()) as server:
        began = time.thread_time()
        text = failure(session(), server.url)
        assert time.thread_time() - began < 1
    assert text == f"127.0.0.1:{server.port}: the answer is compressed, though that was not asked for"


def test_what_comes_before_it_is_asked_for_is_no_answer(tls: Tls, session: Open) -> None:
    """It lies in the TLS layer, where a poll of the socket does not see it."""
    early, right = http(b'"early"'), http(b'"right"')

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        await request(reader)
        first = http(b"{}", f"X-Filler: {'x' * 7000}")
        first = http(b"{}", f"X-Filler: {'x' * (7000 + 8192 - len(first))}")
        writer.write(first + early)  # the reader's buffer takes 8 KiB, the rest of the record stays below
        await writer.drain()
        await request(reader)
        writer.write(right)
        await writer.drain()

    with Server(talk, tls=tls()) as server:
        opened = session()
        post(opened, server.url)
        with contextlib.suppress(net.ExchangeError):
            assert post(opened, server.url).content != b'"early"'


# Where to, and who it is


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_nothing_follows_it(status: int, tls: Tls, session: Open) -> None:
    with Answering(http(), tls=tls()) as elsewhere:
        there = f"https://localhost:{elsewhere.port}/{PATH}?q={QUERY}"
        with Answering(http(b"", f"Location: {there}", status=f"{status} Elsewhere"), tls=tls()) as server:
            text = failure(session(), server.url)
            assert len(server.requests) == 1
        assert elsewhere.connections == 0
    assert text == f"127.0.0.1:{server.port}: a redirect ({status}) to another host was not followed"


@pytest.mark.parametrize("location", ["/", "http://[::1", "https://a:b:c/", "\x00", "https://ü/"])
def test_a_redirect_to_nonsense_is_refused_like_any_other(location: str, tls: Tls, session: Open) -> None:
    with Answering(http(b"", f"Location: {location}", status="307 Elsewhere"), tls=tls()) as server:
        assert "was not followed" in failure(session(), server.url)


def test_a_certificate_is_refused_with_the_reason(tls: Tls, session: Open) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    contexts = {
        "unable to get local issuer certificate": tls(authority=trustme.CA()),
        "IP address mismatch, certificate is not valid for '127.0.0.1'": tls("other.invalid"),
        "certificate has expired": tls("127.0.0.1", not_after=yesterday),
    }
    for reason, context in contexts.items():
        with Answering(http(), tls=context) as server:
            text = failure(session(), server.url)
            assert text.rstrip(".") == f"127.0.0.1:{server.port}: its certificate is refused: {reason}"
            assert server.requests == []


def test_a_host_name_must_be_in_the_certificate(tls: Tls, session: Open) -> None:
    with Answering(http(), tls=tls("127.0.0.1")) as server:
        assert "Hostname mismatch" in failure(session(), f"https://localhost:{server.port}")


def test_the_settings_ca_wins_over_every_variable(
    ca_file: Path, tmp_path: Path, tls: Tls, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = trustme.CA()
    other_file = tmp_path / "other.pem"
    other.cert_pem.write_to_path(other_file)
    variables = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    with Answering(http(), tls=tls()) as server:
        for name in variables:
            monkeypatch.setenv(name, str(other_file))
        assert post(session(), server.url).ok
        for name in variables:
            monkeypatch.setenv(name, str(ca_file))
        assert "its certificate is refused" in failure(session(other_file), server.url)


def test_a_ca_file_that_is_replaced_counts_at_once_also_with_the_time_of_the_old_one(
    ca_file: Path, tmp_path: Path, tls: Tls, session: Open
) -> None:
    file, new, other = tmp_path / "ca.pem", tmp_path / "new.pem", trustme.CA()
    shutil.copy2(ca_file, file)
    other.cert_pem.write_to_path(new)
    os.utime(new, ns=(file.stat().st_mtime_ns,) * 2)
    with Answering(http(), tls=tls()) as old, Answering(http(), tls=tls(authority=other)) as renewed:
        opened = session(file)
        assert post(opened, old.url).ok
        new.replace(file)
        assert post(opened, renewed.url).ok
        assert "its certificate is refused" in failure(opened, old.url)  # nor is its open connection used again


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nMIIC", None], ids=["empty", "half", "gone"])
def test_until_a_replaced_ca_file_is_whole_the_cas_known_count(
    content: bytes | None, ca_file: Path, tmp_path: Path, tls: Tls, session: Open
) -> None:
    file, other = tmp_path / "ca.pem", trustme.CA()
    shutil.copy2(ca_file, file)
    with Answering(http(), tls=tls()) as old, Answering(http(), tls=tls(authority=other)) as renewed:
        opened = session(file)
        assert post(opened, old.url).ok
        file.write_bytes(content) if content is not None else file.unlink()
        assert post(opened, old.url).ok
        other.cert_pem.write_to_path(file)
        assert post(opened, renewed.url).ok


def test_without_a_ca_of_the_settings_the_systems_count(
    ca_file: Path, tls: Tls, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Answering(http(), tls=tls()) as server:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca_file))
        assert "its certificate is refused" in failure(session(None), server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
        assert post(session(None), server.url).ok


def test_no_argument_of_a_call_decides_whom_to_trust(
    ca_file: Path, tmp_path: Path, tls: Tls, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """requests' adapter would add certifi's list to our TLS context, or switch the check off there for good."""
    public, public_file = trustme.CA(), tmp_path / "public.pem"
    public.cert_pem.write_to_path(public_file)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(public_file))
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(public_file))  # in place of certifi's
    with Answering(http(), tls=tls(authority=public)) as stranger, Answering(http(), tls=tls()) as known:
        opened = session(ca_file)
        for verify in (True, False, str(public_file), None):
            for opened.verify in (True, False, str(public_file)):
                with pytest.raises(net.ExchangeError, match="its certificate is refused"):
                    opened.get(stranger.url, timeout=5, verify=verify)
                with pytest.raises(net.ExchangeError, match="its certificate is refused"):
                    opened.send(requests.Request("GET", stranger.url).prepare(), timeout=5, verify=verify)
        assert stranger.requests == []
        assert opened.get(known.url, timeout=5, verify=str(public_file)).ok


def test_a_netrc_adds_no_credentials(tmp_path: Path, tls: Tls, session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login someone password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    with Answering(http(), tls=tls()) as server:
        assert post(session(), server.url).ok
        assert b"authorization" not in server.requests[0].lower()


def test_a_cookie_of_one_answer_is_not_sent_with_the_next_request(tls: Tls, session: Open) -> None:
    with Answering(http(b"{}", "Set-Cookie: who=first"), tls=tls()) as server:
        opened = session()
        assert post(opened, server.url).ok
        assert post(opened, server.url).ok
        assert b"cookie" not in server.requests[1].lower()


# Proxies. To this machine itself none leads: these tests use a name that only their proxy knows.


PROXIED = "proxied.invalid"


def test_a_proxy_is_used_and_sees_neither_path_nor_body(
    tls: Tls, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "elsewhere.invalid")
    with Answering(http(), tls=tls(PROXIED)) as server, Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        opened = session()
        for _ in range(2):
            assert post(opened, f"https://{PROXIED}:{server.port}").ok
        assert proxy.targets == [f"CONNECT {PROXIED}:{server.port}"]
        assert len(server.requests) == 2
        assert PATH.encode() in server.requests[0]
        opened.close()


def test_what_it_takes_to_use_a_proxy_is_given_to_the_proxy_alone(
    tls: Tls, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Curious(Proxy):
        async def _connect(self, reader: StreamReader, writer: StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            reader.feed_data(asked[0])
            await super()._connect(reader, writer)

    with Answering(http(), tls=tls(PROXIED)) as server, Curious() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"someone:something@127.0.0.1:{proxy.port}")  # the scheme may be left out
        assert post(session(), f"https://{PROXIED}:{server.port}").ok
        assert b"proxy-authorization: basic " in asked[0].lower()
        assert b"proxy" not in server.requests[0].lower()


def test_plain_http_never_goes_through_a_proxy(session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Vault may use it, where that is allowed: a proxy would read its token and all secrets in the requests."""
    with Answering(http()) as server, Answering(http()) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert post(session(), f"http://localhost:{server.port}").ok
        assert failure(session(), "http://plain.invalid:8200") == "plain.invalid:8200: the host name cannot be resolved"
        assert (proxy.connections, len(server.requests)) == (0, 1)


def test_through_a_proxy_the_servers_certificate_still_counts(
    tls: Tls, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Answering(http(), tls=tls(PROXIED, authority=trustme.CA())) as server, Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert "its certificate is refused" in failure(session(), f"https://{PROXIED}:{server.port}")
        assert proxy.targets
        assert server.requests == []


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1"])
def test_no_proxy_leads_to_this_machine_itself(
    host: str, tls: Tls, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Answering(http(), tls=tls()) as server, Proxy() as proxy:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert post(session(), f"https://{host}:{server.port}").ok
        assert proxy.connections == 0


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "SOCKS4", "https"])
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_a_proxy_of_another_kind_is_named_with_what_to_do(
    scheme: str, variable: str, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"{scheme}://someone:something@127.0.0.1:1080")
    text = failure(session(), f"https://{PROXIED}:8200")
    assert text == (
        f"{PROXIED}:8200: HTTPS_PROXY or ALL_PROXY names a proxy that speaks {scheme}, which is not supported: "
        "set HTTPS_PROXY to an http:// address, or add the host to NO_PROXY"
    )


def test_the_deadline_holds_when_a_proxy_is_silent(session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    for talk in (silent, for_ever(b"HTTP/1.1 200 ", b"Connection " * 99, 0.02)):
        with Server(talk) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            host = f"proxied{proxy.port}.invalid"
            began = time.monotonic()
            assert "no complete answer within" in failure(session(), f"https://{host}", timeout=DEADLINE)
            assert time.monotonic() - began < DEADLINE + TOLERANCE


def test_a_proxy_without_a_host_is_an_error_in_words(session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://someone:something@")
    text = failure(session(), "https://hostless.invalid")
    what = "the proxy that the environment names has no host"
    assert text == f"hostless.invalid: {what}: set HTTPS_PROXY to an address with a host"


def test_a_proxy_that_fails_is_blamed_and_its_password_is_not_told(
    session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Answering(http(b"", status="407 Who are you?")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://someone:something@127.0.0.1:{proxy.port}")
        text = failure(session(), f"https://refused{proxy.port}.invalid")
        assert text == f"refused{proxy.port}.invalid: the proxy refused or failed"
    text = failure(session(), f"https://down{proxy.port}.invalid")
    assert text == f"down{proxy.port}.invalid: the proxy failed: connection refused"


# Connections


def test_connections_are_kept_alive_and_used_again(tls: Tls, session: Open) -> None:
    with Answering(http(), tls=tls()) as server:
        opened = session()
        for _ in range(5):
            assert post(opened, server.url).ok
        assert (server.connections, len(server.requests)) == (1, 5)


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew(tls: Tls, session: Open) -> None:
    with Answering(http(), tls=tls(), keep_alive=False) as server:
        opened = session()
        for _ in range(3):
            assert post(opened, server.url).ok
            eventually(lambda: server.closed_connections == server.connections)
        assert server.connections == 3


@pytest.mark.parametrize(
    "cut",
    [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n", http(b"123456789")[:-4], CHUNKED + b"9\r\n12345"],
    ids=["nothing", "status line", "headers", "body", "chunk"],
)
def test_an_answer_cut_in_its(cut: bytes, tls: Tls, session: Open) -> None:
    with Answering(cut, tls=tls(), keep_alive=False) as server:
        text = failure(session(), server.url)
        assert re.fullmatch(rf"127.0.0.1:{server.port}: (connection lost|the answer is broken \(\w+\))", text)


def test_an_answer_behind_an_early_hint_is_not_taken_for_the_next_ones(tls: Tls, session: Open) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    with Answering(hint + http(b'{"for": "the first"}'), tls=tls()) as server:
        opened = session()
        for _ in range(2):
            assert failure(opened, server.url) == f"127.0.0.1:{server.port}: the answer is broken (ProtocolError)"
        assert server.connections == 2


def test_a_refused_connection_and_an_unknown_name_are_told_apart(session: Open) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert failure(session(), f"https://127.0.0.1:{port}") == f"127.0.0.1:{port}: connection refused"
    assert failure(session(), "https://vault.invalid") == "vault.invalid: the host name cannot be resolved"


def test_a_server_without_tls_is_named_as_such(session: Open) -> None:
    with Server(in_clear) as server:
        text = failure(session(), f"https://127.0.0.1:{server.port}")
        assert re.fullmatch(rf"127.0.0.1:{server.port}: TLS failed: \w+", text)


def test_json_is_read_in_no_time_whatever_charset_the_server_claims(tls: Tls, session: Open) -> None:
    """To read punycode takes a quadratic time: half an hour for 4 MiB, during which the interpreter is locked."""
    body = b"-" + b"ab" * 150_000
    with Answering(http(body, "Content-Type: application/json; charset=punycode"), tls=tls()) as server:
        response = post(session(), server.url)
        began = time.process_time()
        assert net.parse_json(response) is None
        assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "date", ["Fri, 31 Dec 9999 23:59:59 GMT", "never", "", "Mon, 99 Xxx 2026", "Mon, 32 Jan 2026 25:00:00 GMT"]
)
def test_a_date_that_is_no_time_is_no_date(date: str, tls: Tls, session: Open) -> None:
    with Answering(http(b"{}", f"Date: {date}"), tls=tls()) as server:
        assert net.server_time(post(session(), server.url)) is None


NOON = datetime(1994, 11, 6, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(params=["UTC", "Asia/Kolkata", "America/New_York"])
def _far_away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set a time zone of the machine, which must not matter."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_far_away")
@pytest.mark.parametrize(
    "date",
    [
        "Sun, 06 Nov 1994 12:00:00 GMT",
        "Sunday, 06-Nov-94 12:00:00 GMT",  # RFC 850
        "Sun Nov  6 12:00:00 1994",  # asctime
        "Sun, 06 Nov 1994 12:00:00",
        "Sun, 06 Nov 1994 12:00:00 -0000",
        "Sun, 06 Nov 1994 12:00:00 UTC",
        "Sun, 06 Nov 1994 14:00:00 +0200",
    ],
)
def test_a_date_in_an_older_form_or_without_a_zone_is_utc(date: str, tls: Tls, session: Open) -> None:
    later = date.replace(":00:00", ":00:30")
    answer = http(b"{}", f"Date: {date}", f"Retry-After: {later}", status="503 Later")
    with Answering(answer, tls=tls()) as server:
        opened = session()
        seen = net.server_time(post(opened, server.url))
        assert seen
        assert NOON < seen < NOON + timedelta(seconds=10)
        account = Account("a", "a", client_id="c", client_secret=SecretStr("unlikely-secret"))
        client = SentinelClient(opened, api_version="1.0")
        with pytest.raises(RefreshError) as caught:
            client.request_token(account, f"127.0.0.1:{server.port}", timedelta(seconds=5))
        wait = caught.value.retry_after
        assert wait
        assert timedelta(seconds=20) < wait <= timedelta(seconds=30)


def test_where_no_thread_can_be_had_for_a_while_the_way_to_a_host_is_not_lost_for_ever(tls: Tls, session: Open) -> None:
    with Answering(http(), tls=tls()) as server:
        before = threading.stack_size(1 << 46)  # more than any machine has: as where its memory is used up
        try:
            assert "no thread can be started" in failure(session(), server.url)
        finally:
            threading.stack_size(before)
        assert post(session(), server.url).status_code == 200


def test_the_servers_time_is_its_date_and_what_the_session_clock_counted(tls: Tls, ca_file: Path) -> None:
    clock = [1000.0]

    async def slowly(reader: StreamReader, writer: StreamWriter) -> None:
        await request(reader)
        clock[0] += 7.5
        writer.write(http(b"{}", "Date: Wed, 25 Apr 2018 07:51:10 GMT"))

    with (
        Server(slowly, tls=tls()) as server,
        net.session(user_agent="test", ca_cert=str(ca_file), clock=lambda: clock[0]) as opened,
    ):
        response = post(opened, server.url)
    assert response.elapsed == timedelta(seconds=7.5)
    assert net.server_time(response) == datetime(2018, 4, 25, 7, 51, 18, 500_000, tzinfo=UTC)  # Date counts whole ones


def test_an_answer_is_a_response_that_lacks_nothing(tls: Tls, session: Open) -> None:
    """It can be used like any other response: also after its connection was closed, and in another thread."""
    body = '{"word": "grün"}'.encode()
    answer = http(body, "Content-Type: application/json", "X-Thing: one", "Set-Cookie: who=first", status="418 Teapot")
    with Answering(answer, tls=tls()) as server:
        opened = session()
        response = post(opened, server.url)
        opened.close()
        url = f"{server.url}/{PATH}?q={QUERY}"
    assert (response.status_code, response.reason, response.url) == (418, "Teapot", url)
    assert (response.content, response.json(), response.headers["x-thing"]) == (body, {"word": "grün"}, "one")
    assert (response.history, response.encoding, response.headers["set-cookie"]) == ([], "utf-8", "who=first")
    assert (response.request.method, response.request.url) == ("POST", url)
    assert (response.request.headers["X-Vault-Token"], response.request.body) == (HEADER, f"secret={BODY}")
    assert (list(response.iter_content(8)), list(response.iter_lines())) == ([body[:8], body[8:16], body[16:]], [body])
    assert timedelta(0) < response.elapsed < timedelta(seconds=5)
    assert repr(response) == "<Response [418]>"
    copied = pickle.loads(pickle.dumps(response))
    assert (copied.content, copied.elapsed) == (response.content, response.elapsed)
    with pytest.raises(requests.HTTPError):
        response.raise_for_status()
    response.close()


def test_a_request_that_requests_itself_sends_is_bounded_the_same(tls: Tls, session: Open) -> None:
    with Answering(http(b"", "Location: /elsewhere", status="307 Elsewhere"), tls=tls()) as server:
        with pytest.raises(net.ExchangeError, match="was not followed"):
            session().send(requests.Request("GET", server.url).prepare(), timeout=5)
        assert len(server.requests) == 1


def test_an_error_status_is_an_answer_with_all_that_came(tls: Tls, session: Open) -> None:
    """`bool()` of such a response is False: a caller that tests `if response` takes the answer for none."""
    date = "Wed, 25 Apr 2018 07:51:10 GMT"
    answer = http(b'{"error": "slow"}', f"Date: {date}", "Retry-After: 7", status="429 Too Many Requests")
    with Answering(answer, tls=tls()) as server:
        opened = session()
        response = post(opened, server.url)
        assert (bool(response), response.status_code, response.json()) == (False, 429, {"error": "slow"})
        seen = net.server_time(response)
        assert seen
        assert seen - datetime(2018, 4, 25, 7, 51, 10, tzinfo=UTC) < timedelta(seconds=10)

        account = Account("a", "a", client_id="c", client_secret=SecretStr("unlikely-secret"))
        with pytest.raises(RefreshError) as caught:
            SentinelClient(opened, api_version="1.0").request_token(
                account, f"127.0.0.1:{server.port}", timedelta(seconds=5)
            )
        assert caught.value.kind is Kind.TRANSIENT
        assert (caught.value.status, caught.value.retry_after) == (429, timedelta(seconds=7))


def open_files() -> int:
    gc.collect()  # pytest.raises leaves an exception, its frames and their objects in a cycle
    return len(list(Path("/dev/fd").iterdir()))


def test_nothing_is_left_open_whatever_came(tls: Tls, session: Open) -> None:
    opened = session()
    failing: list[Callable[[], Server]] = [
        functools.partial(Server, silent, tls=tls()),
        functools.partial(Server, SLOW["drips the body"], tls=tls()),
        functools.partial(Server, SLOW["drips headers"]),
        functools.partial(Answering, http(b" " * (net.MAX_BODY_BYTES + 1)), tls=tls()),
        functools.partial(Answering, http(b"", "Location: /", status="307 Elsewhere"), tls=tls()),
        functools.partial(Answering, http(b"12345")[:-2], tls=tls(), keep_alive=False),
        functools.partial(Answering, http(), tls=tls(authority=trustme.CA())),
        functools.partial(Answering, b"nonsense\r\n\r\n", tls=tls()),
    ]
    threads, files = threading.active_count(), open_files()
    for make in failing:
        with make() as server:
            failure(opened, server.url, timeout=0.2)
    with Answering(http(), tls=tls()) as server:
        assert post(opened, server.url).ok
    opened.close()
    eventually(lambda: (threading.active_count(), open_files()) == (threads, files))
