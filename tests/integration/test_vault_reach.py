"""The way to Vault as its owners lay it: namespaces, mounts, proxies, a private CA that changes, Vault's own variables.

Each by the installed command, under the worker's own policy with the mounts filled in.
"""

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import trustme

from sandbox.world import POLICIES
from tests.integration.processes import Scene, Settings, eventually
from tests.integration.servers import Balancer, Proxy, server_tls

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
    """Set up a KV v2 at secret/ in the namespace `brand`, and in its child `eu` one of each version."""
    with Scene(tmp_path_factory.mktemp("reach")) as world:
        with world.openbao.within("brand"):
            world.openbao.mount_kv("secret")
        with world.openbao.within("brand/eu"):
            world.openbao.mount_kv("kv")
            world.openbao.mount_kv("old", version=1)
        yield world


def login(world: Scene, namespace: str | None, policy: str) -> Settings:
    """Return a login by approle in a namespace, with this policy alone."""
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
    """Add an account with its secret at a mount, whose path is the whole one from the root."""
    account = f"le{len(world.secrets)}"
    credentials = world.liveperson.add_account(account)
    world.secrets.append(credentials.client_secret)
    if version == 1:
        world.openbao.client.write_data(f"{mount}/liveperson/accounts/{account}", data=asdict(credentials))
    else:
        world.openbao.put_account(account, asdict(credentials), mount=mount)
    return account


def check_works(world: Scene, account: str, changes: Settings, tokens_mount: str = "secret") -> list[dict[str, Any]]:
    """Refresh one account, end to end, and run --check, which must pass; return its lines."""
    done = world.call("--refresh", account, changes=changes)
    assert (done.status, done.err) == (0, "")
    stored = world.openbao.get_token(account, mount=tokens_mount)
    assert stored
    assert stored["fingerprint"] in done.out
    checked = world.call("--check", "--output", "json", changes=changes)
    assert (checked.status, checked.err) == (0, ""), checked.out
    checks: list[dict[str, Any]] = checked.document["checks"]
    assert all(check["ok"] for check in checks)
    return checks


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


@pytest.mark.parametrize(
    ("namespace", "mount", "remedy"),
    [
        (None, "secret/team", "set {}.mount to secret, and begin {}.prefix with team/"),
        (None, "secret/data", "set {}.mount to secret"),
        (None, "secret/metadata/team", "set {}.mount to secret, and begin {}.prefix with team/"),
        (None, "brand/eu/kv/data", "set {}.mount to brand/eu/kv"),
        ("brand", "eu/kv/data", "set {}.mount to eu/kv"),
        ("brand", "secret/data", "set {}.mount to secret"),
    ],
)
@pytest.mark.parametrize("table", ["accounts", "tokens"])
def test_a_path_inside_a_mount_is_no_mount(
    namespace: str | None, mount: str, remedy: str, table: str, world: Scene
) -> None:
    real = remedy.split(",", maxsplit=1)[0].rpartition(" ")[2]
    changes = {
        **login(world, namespace, f'path "{real}/*" {{ capabilities = ["create", "list", "read", "update"] }}'),
        "APPJWT_ACCOUNTS_MOUNT": real,
        "APPJWT_TOKENS_MOUNT": real,
        f"APPJWT_{table.upper()}_MOUNT": mount,
    }
    text = f"{mount} is no mount, but a path inside the mount {real}"
    checked = world.call("--check", "--output", "json", changes=changes)
    line = checked.document["checks"][-1]
    assert (checked.status, line["check"], line["ok"]) == (1, f"{table}.mount", False)
    assert text in line["detail"]
    assert line["remedy"] == remedy.format(table, table)


def test_a_daemon_whose_mount_is_a_path_inside_one_says_so_and_writes_nothing(world: Scene) -> None:
    account = add_account(world, "secret")
    text = "is no mount, but a path inside the mount secret: set {}.mount to secret"
    daemon = world.daemon({"APPJWT_ACCOUNTS_MOUNT": "secret/data"})
    assert text.format("accounts") in daemon.wait_for("vault.unavailable")["error"]
    daemon.stop()
    daemon = world.daemon({"APPJWT_TOKENS_MOUNT": "secret/data"})
    assert text.format("tokens") in daemon.wait_for("refresh.failed", account=account)["error"]
    daemon.stop()
    assert world.openbao.get_token(account, prefix="data/liveperson/tokens") is None
    world.openbao.client.secrets.kv.v2.delete_metadata_and_all_versions(f"liveperson/accounts/{account}")


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
    hint = 'please ensure client\'s policies grant access to path "brand/eu/kv/"'
    assert (done.status, [row["error"] for row in done.document["accounts"]]) == (
        1,
        [f"read_token sys/internal/ui/mounts/brand/eu/kv: status 403, preflight capability check returned 403, {hint}"],
    )


@pytest.mark.parametrize("version", [1, 2])
def test_accounts_and_tokens_may_be_at_the_root_of_their_mounts(version: int, world: Scene) -> None:
    """An empty prefix, which only a file can express, does this; the default prefix would find nothing there."""
    accounts, tokens = f"brands{version}", f"apps{version}"
    world.openbao.mount_kv(accounts, version)
    world.openbao.mount_kv(tokens)
    for name in ("le1", "le1/connector-a"):
        credentials = asdict(world.liveperson.add_account("le1"))
        world.secrets.append(credentials["client_secret"])
        path = f"{accounts}/{name}" if version == 1 else f"{accounts}/data/{name}"
        world.openbao.client.write_data(path, data=credentials if version == 1 else {"data": credentials})
    policy = POLICY.replace('"secret/metadata/liveperson/accounts/', f'"{accounts}/metadata/')
    policy = policy.replace('"secret/data/liveperson/accounts/', f'"{accounts}/data/')
    policy = re.sub(r"secret/(\w+)/liveperson/tokens/", rf"{tokens}/\1/", policy)
    if version == 1:
        policy = re.sub(rf'path "{accounts}/.*?}}\n', "", policy, flags=re.DOTALL)
        policy += f'path "{accounts}/*" {{ capabilities = ["list", "read"] }}'
    file = world.folder / f"root-{version}.toml"
    file.write_text(f'[accounts]\nmount = "{accounts}"\nprefix = ""\n[tokens]\nmount = "{tokens}"\nprefix = ""\n')
    changes = {**login(world, None, policy), "APPJWT_CONFIG": str(file)}

    checked = world.call("--check", "--output", "json", changes=changes)
    lines = {line["check"]: line for line in checked.document["checks"]}
    assert (checked.status, [line for line in lines.values() if not line["ok"]]) == (0, [])
    listed = f"right {accounts}/*" if version == 1 else f"right {accounts}/metadata/*"
    assert {listed, f"right {tokens}/data/*", f"right {tokens}/metadata/*"} <= lines.keys()
    assert all("warning" not in line["detail"] for line in lines.values())

    done = world.call("--refresh-all", "--output", "json", changes=changes)
    assert [(row["account"], row["outcome"]) for row in done.document["accounts"]] == [
        ("le1", "refreshed"),
        ("le1/connector-a", "refreshed"),
    ]
    for name in ("le1", "le1/connector-a"):
        answer = world.openbao.client.secrets.kv.v2.read_secret_version(
            name, mount_point=tokens, raise_on_deleted_version=True
        )
        world.secrets.append(answer["data"]["data"]["access_token"])
        assert answer["data"]["metadata"]["custom_metadata"]["managed_by"] == "appjwt-worker"
    shown = world.call("--status", "--output", "json", changes=changes)
    assert sorted((row["account"], row["state"]) for row in shown.document["accounts"]) == [
        ("le1", "ok"),
        ("le1/connector-a", "ok"),
    ]


def test_a_mount_without_an_account_is_named_as_it_is_written(world: Scene) -> None:
    world.openbao.mount_kv("none")
    policy = POLICY.replace("secret/metadata/liveperson/accounts/", "none/metadata/")
    file = world.folder / "none.toml"
    file.write_text('[accounts]\nmount = "none"\nprefix = ""\n')
    done = world.call("--refresh-all", changes={**login(world, None, policy), "APPJWT_CONFIG": str(file)})
    assert (done.status, done.out) == (0, "there is no account below none\n")


# Vault's own variables


def test_a_variable_of_vaults_own_that_is_not_read_is_named_once(world: Scene) -> None:
    """An operator who sets VAULT_SKIP_VERIFY or VAULT_PROXY_ADDR must learn that it changes nothing here."""
    account = add_account(world, "secret")
    done = world.call(
        "--refresh",
        account,
        changes={"VAULT_SKIP_VERIFY": "true", "BAO_PROXY_ADDR": "http://proxy.invalid", "VAULT_MAX_RETRIES": "2"},
    )
    (line,) = map(json.loads, done.err.splitlines())
    assert done.status == 0
    assert (line["level"], line["event"]) == ("warning", "settings.unread")
    assert line["variables"] == ["BAO_PROXY_ADDR", "VAULT_SKIP_VERIFY"]


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


def named(url: str, name: str) -> str:
    """Return the same port under a name that only the proxy knows: none leads to this machine itself."""
    return f"{name}.proxied.invalid:{url.rpartition(':')[2]}"


@pytest.mark.parametrize("vault_is_local", [False, True])
def test_vault_and_liveperson_are_reached_by_a_proxy_but_not_what_is_on_this_machine(
    vault_is_local: bool,  # noqa: FBT001 - a case
    world: Scene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    account = add_account(world, "secret")
    vault, api, va = (
        named(url, name)
        for url, name in (
            (world.openbao.address, "vault"),
            (world.liveperson.domain_api, "api"),
            (world.liveperson.hosts["va"], "va"),
        )
    )
    monkeypatch.setitem(world.liveperson.hosts, "va", va)
    changes = {"APPJWT_SENTINEL_DOMAIN_API": f"https://{api}", "APPJWT_SENTINEL_ALLOWED_HOSTS": va}
    if not vault_is_local:
        changes |= {"APPJWT_VAULT_ADDRESS": f"https://{vault}", "APPJWT_VAULT_TLS_SERVER_NAME": "localhost"}
    with Proxy() as proxy:
        with_login = proxy.url.replace("//", "//someone:something@")
        checks = check_works(world, account, {**changes, "HTTPS_PROXY": with_login, "NO_PROXY": "elsewhere.invalid"})
        hosts = [*(() if vault_is_local else (vault,)), api, va]
        assert set(proxy.targets) == {f"CONNECT {each}" for each in hosts}
        named_by_check = [(line["check"], line["detail"]) for line in checks if line["check"].startswith("proxy ")]
        assert named_by_check == [(f"proxy {host}", proxy.url) for host in hosts]


def test_a_proxy_that_is_not_there_is_blamed(world: Scene) -> None:
    with Proxy() as proxy:
        dead_proxy = proxy.url
    vault = named(world.openbao.address, "vault")
    done = world.call(
        "--refresh", "any", changes={"HTTPS_PROXY": dead_proxy, "APPJWT_VAULT_ADDRESS": f"https://{vault}"}
    )
    hint = f"approle login: {vault}: the proxy failed: connection refused"
    assert (done.status, done.out, done.err) == (3, "", f"appjwt-worker: Vault cannot be used: {hint}\n")


def test_http_to_a_vault_that_speaks_https_is_told_as_that(world: Scene) -> None:
    # it answers 400, which resembles a refused login; while a body is on its way it may hang up before
    address = world.openbao.address.replace("https", "http")
    done = world.call("--check", "--output", "json", changes={"APPJWT_VAULT_ADDRESS": address})
    (line,) = done.document["checks"]
    assert (done.status, line["check"], line["ok"]) == (3, "vault", False)
    assert line["detail"] == "it speaks https, not http: see vault.address"


# A private CA


def front(vault: str, authority: trustme.CA, port: int = 0) -> Balancer:
    """Return a TLS server in front of a Vault that speaks plain HTTP."""
    return Balancer(lambda: int(vault.rpartition(":")[2]), tls=server_tls(authority), port=port)


def test_a_ca_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    before, after, ca_file = trustme.CA(), trustme.CA(), tmp_path / "ca.pem"
    before.cert_pem.write_to_path(ca_file)
    with Scene(tmp_path / "world", vault_tls=False) as world:
        with front(world.openbao.address, before) as first:
            changes = {"APPJWT_VAULT_ADDRESS": first.url, "APPJWT_VAULT_CA_CERT": str(ca_file)}
            daemon = world.daemon(changes)
            daemon.wait_for("worker.ready")
        with front(world.openbao.address, after, first.port):
            refused = f"approle login: 127.0.0.1:{first.port}: its certificate is refused: "
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
