"""The fake and the real part behind the same two handles, so that one test checks the same contract on both."""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
import requests
from hvac.exceptions import InvalidPath
from pydantic import SecretStr

from sandbox.liveperson import LivePerson
from sandbox.openbao import OpenBao
from sandbox.world import POLICIES
from tests.fakes.clock import Clock
from tests.fakes.liveperson import FakeLivePerson
from tests.fakes.vault import ACCOUNTS, TOKENS, FakeKv, FakeVault, Metadata
from tests.ports.handles import LivePersonPort, VaultPort
from worker import net
from worker.liveperson.domain_api import DomainApi
from worker.liveperson.hosts import HostLookup, HostResolver
from worker.liveperson.sentinel import SentinelClient
from worker.schedule.boottime import boottime
from worker.vault.accounts import AccountStore
from worker.vault.kv import VaultKv
from worker.vault.login import TokenLogin
from worker.vault.operation import Operation
from worker.vault.session import VaultSession
from worker.vault.tokens import TokenStore

_LOGIN_ONLY = 'path "auth/token/lookup-self" { capabilities = ["read"] }'
_TIMEOUT = timedelta(seconds=5)


# The fakes


def _fake_vault() -> VaultPort:
    clock = Clock()
    vault = FakeVault(clock)

    every = {"list", "read_account", "read_token", "write_token", "write_metadata"}
    return VaultPort(
        FakeKv(vault, TOKENS, "read_token"),
        vault.accounts,
        vault.tokens,
        vault.kv,
        ACCOUNTS,
        TOKENS,
        vault.now,
        clock.advance,
        partial(mock.patch.object, vault, "is_down", new=True),
        partial(mock.patch.object, vault, "denied", new=every),
        partial(mock.patch.object, vault, "losing", new=every),
    )


def _fake_liveperson() -> LivePersonPort:
    clock = Clock()
    fake = FakeLivePerson(clock)
    return LivePersonPort(fake, _resolver(fake, fake.hosts, clock), fake, fake, clock.now, clock.advance)


def _resolver(lookup: HostLookup, hosts: Mapping[str, str], clock: Clock) -> HostResolver:
    return HostResolver(lookup, cache_ttl=timedelta(hours=12), allowed_hosts=tuple(hosts.values()), clock=clock)


# The real parts


class _RealKv:
    """The same as an operator does it, by hvac and as root."""

    def __init__(self, client: Any) -> None:
        self._kv = client.secrets.kv.v2
        self._adapter = client.adapter

    def put(self, path: str, data: Mapping[str, object]) -> int:
        version: int = self._kv.create_or_update_secret(path, dict(data))["data"]["version"]
        return version

    def delete(self, path: str) -> None:
        self._kv.delete_latest_version_of_secret(path)

    def undelete(self, path: str) -> None:
        self._kv.undelete_secret_versions(path, [self._read(path)["current_version"]])

    def destroy(self, path: str) -> None:
        self._kv.destroy_secret_versions(path, [self._read(path)["current_version"]])

    def remove(self, path: str) -> None:
        self._kv.delete_metadata_and_all_versions(path)

    def set_metadata(
        self,
        path: str,
        *,
        max_versions: int | None = None,
        delete_version_after: timedelta | None = None,
        custom_metadata: Mapping[str, str | None] | None = None,
    ) -> None:
        after = None if delete_version_after is None else f"{delete_version_after.total_seconds():g}s"
        settings = {"max_versions": max_versions, "delete_version_after": after, "custom_metadata": custom_metadata}
        body = {key: value for key, value in settings.items() if value is not None}
        url, headers = f"/v1/secret/metadata/{path}", {"Content-Type": "application/merge-patch+json"}
        try:
            self._adapter.request("patch", url, headers=headers, json=body)
        except InvalidPath:
            self._adapter.request("post", url, json=body)

    def metadata(self, path: str) -> Metadata | None:
        try:
            data = self._read(path)
        except InvalidPath:
            return None
        return Metadata(
            versions=tuple(sorted(int(number) for number in data["versions"])),
            max_versions=data["max_versions"],
            delete_version_after=_duration(data["delete_version_after"]),
            custom_metadata=data["custom_metadata"] or {},
        )

    def _read(self, path: str) -> dict[str, Any]:
        data: dict[str, Any] = self._kv.read_secret_metadata(path)["data"]
        return data


def _duration(text: str) -> timedelta:
    """Go's way to write one, such as 2h0m0s."""
    units = {"h": 3600, "m": 60, "s": 1}
    seconds, number = 0, ""
    for each in text:
        if each in units:
            seconds, number = seconds + int(number) * units[each], ""
        else:
            number += each
    return timedelta(seconds=seconds)


class _Wire:
    """A cable between the worker and OpenBao that can be pulled, or lose the answers."""

    def __init__(self, address: str) -> None:
        target = urlsplit(address)
        self._target = (target.hostname, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_cut = self.loses_answers = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(self._target)
                for source, sink, is_answer in ((ours, theirs, False), (theirs, ours, True)):
                    threading.Thread(target=self._carry, args=(source, sink, is_answer), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:  # noqa: FBT001 - an argument of Thread
        with contextlib.suppress(OSError):
            while (data := source.recv(65536)) and not self.is_cut and not (is_answer and self.loses_answers):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao(tmp_path_factory.mktemp("openbao")) as running:
        yield running


@pytest.fixture(scope="session")
def wire(openbao: OpenBao) -> Iterator[_Wire]:
    made = _Wire(openbao.address)
    yield made
    made.close()


@pytest.fixture(scope="session")
def http(openbao: OpenBao) -> Iterator[requests.Session]:
    with net.session(user_agent="tests", ca_cert=str(openbao.ca_file)) as made:
        yield made


_numbers = itertools.count(1)


def _real_vault(openbao: OpenBao, wire: _Wire, http: requests.Session) -> VaultPort:
    openbao.policy("worker", (POLICIES / "worker.hcl").read_text())
    session = VaultSession(
        wire.address,
        TokenLogin(SecretStr(openbao.token(["worker"]))),
        http=http,
        namespace=None,
        timeout=_TIMEOUT,
        clock=boottime,
    )
    session.login.keep_alive()
    here = f"t{next(_numbers)}"  # each test has a separate folder, still under the policy
    accounts, tokens = f"liveperson/accounts/{here}", f"liveperson/tokens/{here}"

    @contextlib.contextmanager
    def denied() -> Iterator[None]:
        openbao.policy("worker", _LOGIN_ONLY)
        try:
            yield
        finally:
            openbao.policy("worker", (POLICIES / "worker.hcl").read_text())

    accounts_kv = VaultKv(session, "secret", read=Operation.READ_ACCOUNT)
    tokens_kv = VaultKv(session, "secret", read=Operation.READ_TOKEN, only_v2=True)
    return VaultPort(
        tokens_kv,
        AccountStore(accounts_kv, prefix=accounts),
        TokenStore(tokens_kv, prefix=tokens, clock=boottime),
        _RealKv(openbao.client),
        f"{accounts}/",
        f"{tokens}/",
        session.now,
        lambda duration: time.sleep(duration.total_seconds()),
        partial(mock.patch.object, wire, "is_cut", new=True),
        denied,
        partial(mock.patch.object, wire, "loses_answers", new=True),
    )


@pytest.fixture(params=["fake", "openbao"])
def vault(request: pytest.FixtureRequest) -> VaultPort:
    if request.param == "fake":
        return _fake_vault()
    return _real_vault(*(request.getfixturevalue(name) for name in ("openbao", "wire", "http")))


@pytest.fixture(scope="session")
def running_liveperson(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePerson]:
    with LivePerson(tmp_path_factory.mktemp("liveperson")) as running:
        yield running


@pytest.fixture(params=["fake", "real"])
def liveperson(request: pytest.FixtureRequest) -> Iterator[LivePersonPort]:
    if request.param == "fake":
        yield _fake_liveperson()
        return
    running: LivePerson = request.getfixturevalue("running_liveperson")
    clock = Clock()
    with net.session(user_agent="tests", ca_cert=str(running.ca_file)) as http:
        api = DomainApi(http, url=running.domain_api)
        hosts = _resolver(api, running.hosts, clock)
        yield LivePersonPort(api, hosts, SentinelClient(http, api_version="1.0"), running, _wall, clock.advance)
    running.faults.reset()
    running.token_life = timedelta(hours=1)


def _wall() -> datetime:
    return datetime.now().astimezone()
