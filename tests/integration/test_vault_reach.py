"""The way to Vault as its owners lay it: namespaces, mounts, proxies, a private CA that changes, Vault's own variables.

Each by the installed command, under the worker's own policy with the mounts filled in.
"""

import asyncio
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from sandbox.world import POLICIES
from tests.integration.processes import Scene, Settings, eventually
from tests.integration.servers import Proxy, Server

POLICY = (POLICIES / "worker.hcl").read_text()
NOTHING: Settings = dict.fromkeys(
    [
        "APPJWT_VAULT_ADDRESS",
        "APPJWT_VAULT_CA_CERT",
        "APPJWT_VAULT_AUTH_METHOD",
        "APPJWT_VAULT_ROLE_ID",
        "APPJWT_VAULT_SECRET_ID_FILE",
    ]
)
"""None of our own settings for Vault."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """With a KV v2 at secret/ in the namespace `brand`, and in its child `eu` one of each version."""
    with Scene(tmp_path_factory.mktemp("reach")) as world:
        with world.openbao.within("brand"):
            world.openbao.mount_kv("secret")
        with world.openbao.within("brand/eu"):
            world.openbao.mount_kv("kv")
            world.openbao.mount_kv("old", version=1)
        yield world


def login(world: Scene, namespace: str | None, policy: str) -> Settings:
    """A login by approle in a namespace, with this policy alone."""
    name = f"worker-{len(world.secrets)}"
    with world.openbao.within(namespace) if namespace else nullcontext():
        world.openbao.policy(name, policy)
        role_id, secret_id = world.openbao.approle(name, [name])
    world.secrets.append(secret_id)
    file = world.folder / f"secret_id-{role_id}"
    file.write_text(secret_id)
    return {
        "APPJWT_VAULT_NAMESPACE": namespace,
        "APPJWT_VAULT_ROLE_ID": role_id,
        "APPJWT_VAULT_SECRET_ID_FILE": str(file),
    }


def add_account(world: Scene, mount: str, version: int = 2) -> str:
    """An account with its secret at a mount, whose path is the whole one from the root."""
    account = f"le{len(world.secrets)}"
    credentials = world.liveperson.add_account(account)
    world.secrets.append(credentials.client_secret)
    if version == 1:
        world.openbao.client.write_data(f"{mount}/liveperson/accounts/{account}", data=asdict(credentials))
    else:
        world.openbao.put_account(account, asdict(credentials), mount=mount)
    return account


def check_works(world: Scene, account: str, changes: Settings, tokens_mount: str = "secret") -> None:
    """One account, end to end; and --check is content, too."""
    done = world.call("--refresh", account, changes=changes)
    assert (done.status, done.err) == (0, "")
    stored = world.openbao.get_token(account, mount=tokens_mount)
    assert stored
    assert stored["fingerprint"] in done.out
    checked = world.call("--check", "--output", "json", changes=changes)
    assert (checked.status, checked.err) == (0, ""), checked.out
    assert all(check["ok"] for check in checked.document["checks"])


# Namespaces and mounts


def test_all_may_be_in_a_namespace(world: Scene) -> None:
    account = add_account(world, "brand/secret")
    check_works(world, account, login(world, "brand", POLICY), "brand/secret")


@pytest.mark.parametrize(("namespace", "mount"), [(None, "brand/eu/kv"), ("brand", "eu/kv"), ("brand/eu", "kv")])
def test_a_mount_may_carry_a_child_namespace(namespace: str | None, mount: str, world: Scene) -> None:
    account = add_account(world, "brand/eu/kv")
    changes = {
        **login(world, namespace, POLICY.replace('"secret/', f'"{mount}/')),
        "APPJWT_ACCOUNTS_MOUNT": mount,
        "APPJWT_TOKENS_MOUNT": mount,
    }
    check_works(world, account, changes, "brand/eu/kv")


def test_the_version_of_a_child_namespaces_kv_is_noticed(world: Scene) -> None:
    account = add_account(world, "brand/eu/old", version=1)
    old = 'path "brand/eu/old/liveperson/accounts/*" { capabilities = ["list", "read"] }'
    policy = POLICY.replace("liveperson/accounts/", "nothing/") + old
    changes = {**login(world, None, policy), "APPJWT_ACCOUNTS_MOUNT": "brand/eu/old"}
    check_works(world, account, changes)


def test_a_policy_without_the_namespace_is_refused_with_the_path_that_it_lacks(world: Scene) -> None:
    account = add_account(world, "brand/eu/kv")
    changes = {
        **login(world, None, POLICY.replace('"secret/', '"kv/')),
        "APPJWT_ACCOUNTS_MOUNT": "brand/eu/kv",
        "APPJWT_TOKENS_MOUNT": "brand/eu/kv",
    }
    done = world.call("--refresh", account, "--output", "json", changes=changes)
    said = 'please ensure client\'s policies grant access to path "brand/eu/kv/"'
    assert (done.status, [row["error"] for row in done.document["accounts"]]) == (
        1,
        [f"read_token sys/internal/ui/mounts/brand/eu/kv: status 403, preflight capability check returned 403, {said}"],
    )


# Vault's own variables


@pytest.mark.parametrize("prefix", ["VAULT", "BAO"])
def test_vaults_own_variables_alone_are_enough(prefix: str, world: Scene) -> None:
    account = add_account(world, "brand/secret")
    with world.openbao.within("brand"):
        world.openbao.policy("own-names", POLICY)
        token = world.openbao.token(["own-names"])
    own = {
        f"{prefix}_ADDR": world.openbao.address,
        f"{prefix}_CACERT": str(world.openbao.ca_file),
        f"{prefix}_NAMESPACE": "brand",
        f"{prefix}_TOKEN": token,
    }
    world.secrets.append(token)
    check_works(world, account, {**NOTHING, **own}, "brand/secret")


# Proxies


def host(url: str) -> str:
    return urlsplit(url).netloc


@pytest.mark.parametrize("no_proxy", [None, "localhost", "elsewhere.invalid,127.0.0.1"])
def test_vault_and_liveperson_are_reached_by_a_proxy_except_where_it_is_not_to_be(
    no_proxy: str | None, world: Scene
) -> None:
    account = add_account(world, "secret")
    vault, domain_api, sentinel = (
        host(url) for url in (world.openbao.address, world.liveperson.domain_api, f"//{world.liveperson.hosts['va']}")
    )
    apart = (no_proxy or "").split(",")
    with Proxy() as proxy:
        check_works(world, account, {"HTTPS_PROXY": proxy.url, "NO_PROXY": no_proxy})
        expected = {f"CONNECT {each}" for each in (vault, domain_api, sentinel) if each.partition(":")[0] not in apart}
        assert set(proxy.targets) == expected


def test_a_proxy_that_is_not_there_is_blamed(world: Scene) -> None:
    with Proxy() as proxy:
        gone = proxy.url
    done = world.call("--refresh", "any", changes={"HTTPS_PROXY": gone})
    said = f"approle login: {host(world.openbao.address)}: the proxy failed: connection refused"
    assert (done.status, done.out, done.err) == (3, "", f"appjwt-worker: Vault cannot be used: {said}\n")


def test_http_to_a_vault_that_speaks_https_is_told_as_that(world: Scene) -> None:
    # it answers 400, which looked like a refused login; where a body is on its way it may hang up before
    address = world.openbao.address.replace("https", "http")
    done = world.call("--check", "--output", "json", changes={"APPJWT_VAULT_ADDRESS": address})
    (line,) = done.document["checks"]
    assert (done.status, line["check"], line["ok"]) == (3, "vault", False)
    assert line["detail"] == "it speaks https, not http: see vault.address"


# A private CA


class Front(Server):
    """What stands before a Vault that speaks in clear, and speaks TLS for it."""

    def __init__(self, vault: str, authority: trustme.CA, port: int = 0) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        super().__init__(self._pass_on, tls=tls, port=port)
        self._vault = urlsplit(vault)

    async def _pass_on(self, reader: StreamReader, writer: StreamWriter) -> None:
        vault_reader, vault_writer = await asyncio.open_connection(self._vault.hostname, self._vault.port)
        try:
            await asyncio.gather(_copy(reader, vault_writer), _copy(vault_reader, writer))
        finally:
            vault_writer.transport.abort()


async def _copy(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def test_a_ca_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    before, after, ca_file = trustme.CA(), trustme.CA(), tmp_path / "ca.pem"
    before.cert_pem.write_to_path(ca_file)
    with Scene(tmp_path / "world", vault_tls=False) as world:
        with Front(world.openbao.address, before) as front:
            changes = {"APPJWT_VAULT_ADDRESS": front.url, "APPJWT_VAULT_CA_CERT": str(ca_file)}
            daemon = world.daemon(changes)
            daemon.wait_for("worker.ready")
        with Front(world.openbao.address, after, front.port):
            refused = f"approle login: 127.0.0.1:{front.port}: its certificate is refused: "
            done = world.call("--refresh", "any", changes=changes)
            assert (done.status, done.out) == (3, "")
            assert done.err.startswith(f"appjwt-worker: Vault cannot be used: {refused}")
            daemon.wait_for("vault.unavailable")
            assert not daemon.events("vault.recovered")

            ca_file.write_text("half of it")
            world.add_account("le1")
            after.cert_pem.write_to_path(ca_file)
            daemon.wait_for("vault.recovered")
            daemon.wait_for("token.refreshed", account="le1")
            assert [line["event"] for line in daemon.events() if line["event"].startswith("vault.")] == [
                "vault.login",
                "vault.unavailable",
                "vault.recovered",
            ]
            daemon.stop()
            eventually(lambda: world.logins() == [])
