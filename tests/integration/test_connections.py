"""No connection is used beyond its use: its server was sealed or moved, the network forgot it, or it is idle."""

import asyncio
import contextlib
import gc
import itertools
import re
import socket
import ssl
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import requests
import trustme
import urllib3

from sandbox.faults import Fault
from sandbox.openbao import OpenBao
from tests.integration.processes import Scene, eventually, scene
from tests.integration.servers import (
    Answering,
    Balancer,
    Proxy,
    Server,
    Talk,
    forget,
    http,
    request,
    reset,
    server_tls,
    silent,
)
from worker import net

OLDEST, IDLEST = 360, 55
"""Seconds: five minutes and a fifth."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["http", "https"])
def tls(request: pytest.FixtureRequest, ca: trustme.CA) -> ssl.SSLContext | None:
    return None if request.param == "http" else server_tls(ca, "127.0.0.1", "moving.invalid")


@pytest.fixture
def session(clock: Clock, ca_file: Path) -> Iterator[net.Session]:
    with net.session(user_agent="test", ca_cert=str(ca_file), clock=clock) as opened:
        yield opened


@pytest.fixture
def vaults(clock: Clock, ca_file: Path) -> Iterator[net.Session]:
    """Open a session as wiring does for Vault."""
    with net.session(user_agent="test", ca_cert=str(ca_file), clock=clock, retry_on_new_connection=True) as opened:
        yield opened


def get(session: net.Session, url: str, timeout: float = 10) -> requests.Response:
    return session.get(url, timeout=timeout)


# A server that cannot serve


@pytest.mark.parametrize("status", [500, 502, 503, 504, 472, 473, 474])
def test_a_connection_whose_server_cannot_serve_is_not_used_again(
    status: int, tls: ssl.SSLContext | None, session: net.Session
) -> None:
    """Sealed or a standby, it never closes the connection, and a balancer would choose another server."""
    with Answering(http(status=f"{status} Sorry"), tls=tls) as server:
        for number in range(1, 4):
            assert get(session, server.url).status_code == status
            assert server.connections == number


def test_a_redirect_of_a_standby_ends_its_connection(tls: ssl.SSLContext | None, session: net.Session) -> None:
    with Answering(http(b"", "Location: https://active.invalid/", status="307 Elsewhere"), tls=tls) as server:
        for number in (1, 2):
            with pytest.raises(net.ExchangeError, match="was not followed"):
                get(session, server.url)
            assert server.connections == number


@pytest.mark.parametrize("status", [200, 204, 400, 403, 404, 405, 412, 429])
def test_a_connection_whose_server_serves_is_used_again_whatever_it_says(
    status: int, tls: ssl.SSLContext | None, vaults: net.Session
) -> None:
    with Answering(http(b"", status=f"{status} So"), tls=tls) as server:
        assert [get(vaults, server.url).status_code for _ in range(3)] == [status] * 3
        assert (server.connections, len(server.requests)) == (1, 3)


def test_vault_is_asked_once_more_on_a_new_connection_and_then_no_more(
    tls: ssl.SSLContext | None, vaults: net.Session
) -> None:
    with Answering(http(status="503 Sealed"), tls=tls) as server:
        assert get(vaults, server.url).status_code == 503
        assert (server.connections, len(server.requests)) == (2, 2)


def test_both_attempts_share_one_deadline(vaults: net.Session) -> None:
    async def late(reader: StreamReader, writer: StreamWriter) -> None:
        await request(reader)
        await asyncio.sleep(0.3)
        writer.write(http(status="503 Sealed"))
        await asyncio.Event().wait()

    with Server(late) as server, pytest.raises(net.ExchangeError, match=r"no complete answer within 0\.5 s"):
        get(vaults, server.url, timeout=0.5)
    assert server.connections == 2


class Nodes:
    """Two servers that know the same token, behind a balancer."""

    def __init__(self, first: OpenBao, second: OpenBao) -> None:
        second.root_token = second.client.token = first.root_token
        self.first, self.second = first, second
        self._turns = itertools.count()

    def ready(self) -> int:
        """Return the port of a server that passes its health check: where balancers send new connections."""
        healthy = (each for each in (self.first, self.second) if not each.client.sys.is_sealed())
        return port_of(next(healthy))

    def in_turns(self) -> int:
        """Return the port of the server whose turn it is, healthy or not: the first one's connection is the first."""
        return port_of((self.first, self.second)[next(self._turns) % 2])


def port_of(node: OpenBao) -> int:
    return int(node.address.rpartition(":")[2])


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    both = Nodes(*(OpenBao(folder, tls=False) for folder in folders))
    with both.first, both.second:
        yield both


def lookup(session: net.Session, url: str, nodes: Nodes) -> int:
    headers = {"X-Vault-Token": nodes.first.root_token}
    return session.get(f"{url}/v1/auth/token/lookup-self", headers=headers, timeout=10).status_code


def test_a_node_that_is_sealed_behind_a_balancer_is_left_within_the_request(nodes: Nodes, vaults: net.Session) -> None:
    """Existing connections stay with their node: 503 for ever, until a restart."""
    with Balancer(nodes.ready) as balancer:
        assert lookup(vaults, balancer.url, nodes) == 200
        nodes.first.client.sys.seal()
        assert [lookup(vaults, balancer.url, nodes) for _ in range(3)] == [200] * 3
        assert balancer.connections == 2


def test_without_the_second_attempt_it_is_left_by_the_next_request(nodes: Nodes, session: net.Session) -> None:
    with Balancer(nodes.ready) as balancer:
        assert lookup(session, balancer.url, nodes) == 200
        nodes.first.client.sys.seal()
        assert [lookup(session, balancer.url, nodes) for _ in range(3)] == [503, 200, 200]


def test_a_sealed_node_that_is_offered_all_the_same_costs_no_request(nodes: Nodes, vaults: net.Session) -> None:
    nodes.first.client.sys.seal()
    with Balancer(nodes.in_turns) as balancer:
        for _ in range(4):
            assert lookup(vaults, balancer.url, nodes) == 200
            vaults.close()  # the next one begins with the sealed node again


def test_the_command_works_with_one_of_two_nodes_sealed(tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir()
    with Scene(tmp_path / "world", vault_tls=False) as world, OpenBao(folder, tls=False) as sealed:
        sealed.client.sys.seal()
        world.add_account("le1")
        nodes = itertools.cycle([sealed, world.openbao])
        with Balancer(lambda: port_of(next(nodes))) as balancer:
            changes = {"APPJWT_VAULT_ADDRESS": balancer.url}
            done = world.call("--refresh", "le1", "--output", "json", changes=changes)
            assert (done.status, done.document["refreshed"]) == (0, 1), done
            assert "vault.unavailable" not in done.err


# A name that moves


class Resolver:
    """Leads names to ports of this machine. No real resolver can be moved within a test."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self.asked = 0

    def getaddrinfo(self, host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", self.ports[host]))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    return made


def test_a_name_that_moved_is_noticed_where_the_old_server_cannot_serve(
    tls: ssl.SSLContext | None, session: net.Session, resolver: Resolver
) -> None:
    url = f"{'https' if tls else 'http'}://moving.invalid"
    with Answering(http(status="503 Gone"), tls=tls) as old, Answering(http(), tls=tls) as new:
        resolver.ports["moving.invalid"] = old.port
        assert get(session, url).status_code == 503
        resolver.ports["moving.invalid"] = new.port
        assert get(session, url).status_code == 200


def test_a_name_that_moved_is_noticed_within_minutes_where_the_old_server_serves_on(
    tls: ssl.SSLContext | None, session: net.Session, resolver: Resolver, clock: Clock
) -> None:
    url = f"{'https' if tls else 'http'}://moving.invalid"
    with Answering(http(), tls=tls) as old, Answering(http(), tls=tls) as new:
        resolver.ports["moving.invalid"] = old.port
        for _ in range(12):
            get(session, url)
            clock.now += 30 - 60 / 11.5  # in constant use
        resolver.ports["moving.invalid"] = new.port
        began = clock.now
        while not new.requests:
            assert clock.now < began + OLDEST
            clock.now += 10
            get(session, url)


def test_connections_reach_an_age_of_about_five_minutes_and_not_all_the_same(
    session: net.Session, clock: Clock
) -> None:
    ages = []
    with Answering(http()) as server:
        get(session, server.url)
        for _ in range(8):
            made, born = server.connections, clock.now
            while server.connections == made:
                assert clock.now < born + OLDEST
                clock.now += 2
                get(session, server.url)
            ages.append(clock.now - born)
    assert 240 <= min(ages) < max(ages) <= OLDEST + 2


# A network that forgets


def test_a_connection_idle_for_a_minute_is_replaced_before_its_use(
    tls: ssl.SSLContext | None, session: net.Session, clock: Clock
) -> None:
    with Answering(http(), tls=tls) as server:
        get(session, server.url)
        clock.now += IDLEST - 1
        get(session, server.url)
        assert server.connections == 1
        clock.now += IDLEST + 1
        get(session, server.url)
        eventually(lambda: (server.connections, server.closed_connections) == (2, 1))


def test_a_connection_idle_for_a_minute_is_closed_though_nobody_wants_another(
    tls: ssl.SSLContext | None, session: net.Session, clock: Clock
) -> None:
    with Answering(http(), tls=tls) as server:
        get(session, server.url)
        clock.now += IDLEST - 1
        session.close_idle()
        get(session, server.url)
        assert (server.connections, server.closed_connections) == (1, 0)
        clock.now += IDLEST + 1
        session.close_idle()
        eventually(lambda: server.closed_connections == 1)
        assert get(session, server.url).ok


def close(writer: StreamWriter) -> None:
    writer.transport.abort()


def dying(die: Callable[[StreamWriter], None], *, answers: int = 1, then: bytes = b"", connections: int = 1) -> Talk:
    """Serve; the first connections die at the request after so many answers, or after its first bytes."""
    numbers = itertools.count()

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        number = next(numbers)
        for answered in itertools.count():
            await request(reader)
            if number < connections and answered == answers:
                writer.write(then)
                await writer.drain()
                if then:
                    await asyncio.sleep(0.1)  # or the reset would overtake them
                die(writer)
                return
            writer.write(http(f'"{number}"'.encode()))

    return talk


@pytest.mark.parametrize("die", [reset, close])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_request_that_dies_with_its_old_connection_is_made_again(
    method: str, die: Callable[[StreamWriter], None], tls: ssl.SSLContext | None, session: net.Session
) -> None:
    """A token request made twice does no harm, and a write to Vault made twice loses by check-and-set."""
    with Server(dying(die), tls=tls) as server:
        answers = [session.request(method, server.url, json={}, timeout=10).content for _ in range(3)]
        assert answers == [b'"0"', b'"1"', b'"1"']
        assert server.connections == 2


@pytest.mark.parametrize("die", [reset, close])
def test_a_request_that_dies_with_a_new_connection_is_not_made_again(
    die: Callable[[StreamWriter], None], tls: ssl.SSLContext | None, session: net.Session
) -> None:
    with Server(dying(die, answers=0, connections=9), tls=tls) as server:
        with pytest.raises(net.ExchangeError):
            get(session, server.url)
        assert server.connections == 1


def at_once(session: net.Session, url: str, number: int) -> None:
    """Make so many requests side by side, so that as many connections stay open."""
    with ThreadPoolExecutor(number) as pool:
        assert all(each.ok for each in pool.map(partial(get, session), [url] * number))


def gathering(number: int, talk: Talk) -> Talk:
    """Let the first connections wait for one another."""
    there, together = itertools.count(1), asyncio.Event()

    async def gathered(reader: StreamReader, writer: StreamWriter) -> None:
        if next(there) == number:
            together.set()
        await together.wait()
        await talk(reader, writer)

    return gathered


@pytest.mark.parametrize("die", [reset, close])
def test_where_one_old_connection_dies_no_other_is_tried(
    die: Callable[[StreamWriter], None], tls: ssl.SSLContext | None, session: net.Session
) -> None:
    with Server(gathering(3, dying(die, connections=3)), tls=tls) as server:
        at_once(session, server.url, 3)
        assert get(session, server.url).content == b'"3"'


def test_where_one_old_connection_leads_to_a_sealed_node_no_other_is_tried(
    tls: ssl.SSLContext | None, vaults: net.Session
) -> None:
    numbers = itertools.count()

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        number, status = next(numbers), "200 OK"
        while True:
            await request(reader)
            writer.write(http(status=status))
            status = "503 Sealed" if number < 3 else status

    with Server(gathering(3, talk), tls=tls) as server:
        at_once(vaults, server.url, 3)
        assert get(vaults, server.url).ok


@pytest.mark.parametrize("die", [reset, close])
def test_a_request_is_made_again_once(
    die: Callable[[StreamWriter], None], tls: ssl.SSLContext | None, session: net.Session
) -> None:
    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        first = server.connections == 1
        await request(reader)
        if first:
            writer.write(http())
            await request(reader)
        die(writer)

    with Server(talk, tls=tls) as server:
        get(session, server.url)
        with pytest.raises(net.ExchangeError):
            get(session, server.url)
        assert server.connections == 2


@pytest.mark.parametrize("then", [b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n", http(b"123")[:-1]])
def test_a_request_whose_answer_began_is_not_made_again(
    then: bytes, tls: ssl.SSLContext | None, session: net.Session
) -> None:
    with Server(dying(close, then=then), tls=tls) as server:
        get(session, server.url)
        with pytest.raises(net.ExchangeError):
            get(session, server.url)
        assert server.connections == 1


def test_a_server_that_is_silent_on_an_old_connection_is_not_asked_twice(
    tls: ssl.SSLContext | None, session: net.Session, resolver: Resolver
) -> None:
    """It may be slow: the time that a second request would take is the first one's."""

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        await request(reader)
        writer.write(http())
        await silent(reader, writer)

    url = f"{'https' if tls else 'http'}://moving.invalid"
    with Server(talk, tls=tls) as server:
        resolver.ports["moving.invalid"] = server.port
        get(session, url)
        with pytest.raises(net.ExchangeError, match=r"no complete answer within 0\.4 s"):
            get(session, url, timeout=0.4)
        assert (server.connections, resolver.asked) == (1, 1)


def test_a_connection_that_the_network_forgot_in_silence_costs_no_request(
    tls: ssl.SSLContext | None, session: net.Session
) -> None:
    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        first = server.connections == 1
        await request(reader)
        writer.write(http())
        await writer.drain()
        if first:
            await asyncio.sleep(0.1)  # until it is acknowledged
            forget(writer)
            forgotten.set()
        await asyncio.Event().wait()

    forgotten = asyncio.Event()
    with Server(talk, tls=tls) as server:
        get(session, server.url)
        eventually(forgotten.is_set)
        assert get(session, server.url, timeout=20).ok
        assert server.connections == 2


# Hosts no longer needed


def test_of_many_hosts_only_some_stay_connected_and_none_that_is_not_used(
    session: net.Session, resolver: Resolver, clock: Clock
) -> None:
    with Answering(http()) as server:
        for number in range(200):
            resolver.ports[f"host{number}.invalid"] = server.port
            get(session, f"http://host{number}.invalid")
            clock.now += 0.01
        eventually(lambda: server.connections - server.closed_connections <= 64)
        get(session, "http://host199.invalid")
        assert server.connections == 200
        clock.now += IDLEST + 1
        session.close_idle()
        eventually(lambda: server.connections == server.closed_connections)
        gc.collect()
        pools = [each for each in gc.get_objects() if isinstance(each, urllib3.HTTPConnectionPool)]
        assert not [pool.host for pool in pools if pool.host.endswith(".invalid")]
        assert get(session, "http://host199.invalid").ok


def connected(port: int) -> int:
    """Count this machine's connections to the port that were not closed at this end."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    states = [fields[3] for fields in map(str.split, lines) if fields[2].endswith(f":{port:04X}")]
    return states.count("01") + states.count("08")  # established, close-wait


def test_what_the_other_end_closed_is_closed(tls: ssl.SSLContext | None, session: net.Session) -> None:
    with Answering(http(), tls=tls, keep_alive=False) as server:
        get(session, server.url)
        eventually(lambda: server.closed_connections == 1)
        assert connected(server.port) == 1

        def is_closed() -> bool:
            session.close_idle()  # the server's last bytes may still be on their way
            return connected(server.port) == 0

        eventually(is_closed, within=10)  # long before it would be closed for being idle


def test_the_daemon_closes_what_it_does_not_need(ca: trustme.CA, ca_file: Path, tmp_path: Path) -> None:
    """Half an hour passes between two refreshes: its Sentinel closes the connection long before."""
    with Scene(tmp_path / "world") as world, Answering(http(), tls=server_tls(ca), keep_alive=False) as server:
        host = f"localhost:{server.port}"
        world.add_account("le1", sentinel_domain=host)
        daemon = world.daemon({"APPJWT_SENTINEL_CA_CERT": str(ca_file), "APPJWT_SENTINEL_ALLOWED_HOSTS": host})
        daemon.wait_for("refresh.failed", account="le1")
        eventually(lambda: not connected(server.port), within=20)  # of itself the server would wait for 30 s
        daemon.stop()


def test_closing_idle_connections_takes_none_from_those_who_use_them(session: net.Session) -> None:
    with Answering(http()) as server, contextlib.ExitStack() as stack:
        pool = stack.enter_context(contextlib.closing(Closing(session)))
        for _ in range(300):
            assert get(session, server.url).ok
        assert pool.rounds > 0


class Closing:
    """Closes idle connections all the while, in a thread."""

    def __init__(self, session: net.Session) -> None:
        self.rounds = 0
        self._over = threading.Event()
        self._session = session
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            self._session.close_idle()
            self.rounds += 1
            time.sleep(0.0001)

    def close(self) -> None:
        self._over.set()
        self._thread.join()


def test_a_domain_api_that_names_a_new_host_at_each_look_up_makes_nothing_grow(tmp_path: Path) -> None:
    names = [f"le{number:05}" for number in range(40)]
    numbers = itertools.count()
    with scene(tmp_path / "world", life=4, vault_tls=False) as world:
        for name in names:
            world.add_account(name)
        va = int(world.liveperson.hosts["va"].rpartition(":")[2])
        with Proxy(leads_to=va) as proxy:

            def another_host() -> None:
                for name in names:
                    answer = f'{{"baseURI": "h{next(numbers)}.proxied.invalid"}}'.encode()
                    world.liveperson.faults.set(Fault(answer=answer), account=name, service="domain")

            another_host()
            daemon = world.daemon(
                {
                    "HTTPS_PROXY": proxy.url,
                    "APPJWT_SENTINEL_ALLOWED_HOSTS": ".proxied.invalid",
                    "APPJWT_SENTINEL_DOMAIN_CACHE_TTL": "1s",
                    "APPJWT_HTTP_LISTEN": "127.0.0.1:0",
                }
            )
            while len(set(proxy.targets)) < 300:
                seen = len(daemon.events("token.refreshed"))
                daemon.wait_for("token.refreshed", count=seen + len(names) // 2)
                another_host()
            time.sleep(1.5)  # the next pass of the main loop
            metrics = requests.get(f"{daemon.url}/metrics", timeout=5).text
            hosts = set(re.findall(r'appjwt_sentinel_requests_total{host="([^"]*)"', metrics))
            # those of the accounts, and those whose connections are open; to Vault 32 stay open
            assert 0 < len(hosts) <= len(names) + 64
            assert len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir())) < 64 + 32 + 40
            daemon.stop()
