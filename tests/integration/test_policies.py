"""The policies in config/policies on a real OpenBao: what they allow and deny, and that no line of them is idle."""

import json
import re
import secrets
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from structlog.testing import capture_logs

from sandbox.world import POLICIES, World
from tests.fakes.clock import MINUTE, SECOND, Clock
from tests.integration.calls import run_concurrently
from tests.integration.processes import Done, Scene, scene
from worker import net
from worker.vault.login import AppRoleLogin
from worker.vault.session import VaultSession

ACCOUNT = "le81823118"
_RULE = re.compile(r'path "([^"]+)" \{\s+capabilities = \[([^\]]+)\]\s+\}\n')

WORKER, READER, AUDITOR = ((POLICIES / f"{name}.hcl").read_text() for name in ("worker", "reader", "auditor"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("policies")) as made:
        for name in (ACCOUNT, "other"):
            made.add_account(name)
        assert made.call("--refresh-all").status == 0
        yield made


# Allowed and denied

_ACCOUNTS, _TOKENS = "liveperson/accounts", "liveperson/tokens"
OPERATIONS: Mapping[str, tuple[str, str]] = {
    "list accounts": ("LIST", f"secret/metadata/{_ACCOUNTS}"),
    "list accounts below": ("LIST", f"secret/metadata/{_ACCOUNTS}/brand"),
    "read an account": ("GET", f"secret/data/{_ACCOUNTS}/{ACCOUNT}"),
    "read an account before": ("GET", f"secret/data/{_ACCOUNTS}/{ACCOUNT}?version=1"),
    "read an account's metadata": ("GET", f"secret/metadata/{_ACCOUNTS}/{ACCOUNT}"),
    "write an account": ("POST", f"secret/data/{_ACCOUNTS}/{ACCOUNT}"),
    "make an account": ("POST", f"secret/data/{_ACCOUNTS}/new"),
    "write an account's metadata": ("POST", f"secret/metadata/{_ACCOUNTS}/{ACCOUNT}"),
    "delete an account": ("DELETE", f"secret/data/{_ACCOUNTS}/{ACCOUNT}"),
    "remove an account": ("DELETE", f"secret/metadata/{_ACCOUNTS}/{ACCOUNT}"),
    "read the token": ("GET", f"secret/data/{_TOKENS}/{ACCOUNT}"),
    "read another token": ("GET", f"secret/data/{_TOKENS}/other"),
    "make a token": ("POST", f"secret/data/{_TOKENS}/new"),
    "write the token": ("POST", f"secret/data/{_TOKENS}/{ACCOUNT}"),
    "patch the token": ("PATCH", f"secret/data/{_TOKENS}/{ACCOUNT}"),
    "delete the token": ("DELETE", f"secret/data/{_TOKENS}/{ACCOUNT}"),
    "list tokens": ("LIST", f"secret/metadata/{_TOKENS}"),
    "read the token's metadata": ("GET", f"secret/metadata/{_TOKENS}/{ACCOUNT}"),
    "make a token's metadata": ("POST", f"secret/metadata/{_TOKENS}/newer"),
    "write the token's metadata": ("POST", f"secret/metadata/{_TOKENS}/{ACCOUNT}"),
    "patch the token's metadata": ("PATCH", f"secret/metadata/{_TOKENS}/{ACCOUNT}"),
    "remove the token": ("DELETE", f"secret/metadata/{_TOKENS}/{ACCOUNT}"),
    "destroy the token": ("POST", f"secret/destroy/{_TOKENS}/{ACCOUNT}"),
    "undelete the token": ("POST", f"secret/undelete/{_TOKENS}/{ACCOUNT}"),
    "read beside": ("GET", "secret/data/liveperson/other"),
    "write beside": ("POST", "secret/data/other"),
    "list above": ("LIST", "secret/metadata/liveperson"),
    "configure the mount": ("POST", "secret/config"),
    "read the mount's configuration": ("GET", "secret/config"),
    "ask for its rights": ("POST", "sys/capabilities-self"),
    "look itself up": ("GET", "auth/token/lookup-self"),
    "renew itself": ("POST", "auth/token/renew-self"),
    "make a login": ("POST", "auth/token/create"),
    "look another up": ("POST", "auth/token/lookup"),
    "read a policy": ("GET", "sys/policies/acl/appjwt-worker"),
    "write a policy": ("POST", "sys/policies/acl/appjwt-worker"),
    "list mounts": ("GET", "sys/mounts"),
    "seal": ("POST", "sys/seal"),
    "read an approle": ("GET", "auth/approle/role/appjwt-worker/role-id"),
    "revoke itself": ("POST", "auth/token/revoke-self"),
}
"""Intents, and the request for each; the one that revokes the login is the last."""

ALLOWED: Mapping[str, tuple[str, set[str]]] = {
    "worker": (
        WORKER,
        {
            "list accounts",
            "list accounts below",
            "read an account",
            "read an account before",
            "read the token",
            "read another token",
            "read the token's metadata",
            "make a token",
            "write the token",
            "make a token's metadata",
            "patch the token's metadata",
            "read the mount's configuration",
            "ask for its rights",
            "look itself up",
            "renew itself",
            "revoke itself",
        },
    ),
    "reader": (READER, {"read the token"}),
    "auditor": (
        AUDITOR,
        {
            "list accounts",
            "list accounts below",
            "read the token",
            "read another token",
            "read the token's metadata",
            "look itself up",
            "revoke itself",
        },
    ),
}


@pytest.mark.parametrize("policy", ALLOWED)
def test_a_policy_allows_this_and_nothing_else(policy: str, tmp_path: Path) -> None:
    hcl, allowed = ALLOWED[policy]
    with World(tmp_path) as world:
        for name in (ACCOUNT, "other"):
            world.add_account(name)
            world.openbao.client.secrets.kv.v2.create_or_update_secret(f"{_TOKENS}/{name}", {"a": "b"})
        world.openbao.policy("tried", hcl)
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(world.openbao.ca_file)
            session.headers["X-Vault-Token"] = world.openbao.token(["tried"])

            def ask(method: str, path: str) -> int:
                body: dict[str, Any] = {"data": {"a": "b"}, "paths": ["x"], "versions": [1], "max_versions": 5}
                headers = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
                url = f"{world.openbao.address}/v1/{path}"
                return session.request(method, url, json=body, headers=headers, timeout=5).status_code

            answers = {what: ask(*request) for what, request in OPERATIONS.items()}
    assert {what for what, status in answers.items() if status != 403} == allowed
    assert {answers[what] for what in allowed} <= {200, 204, 404}, answers


# Every line is needed: without it something breaks, and --check names it


@dataclass
class Login:
    """A new approle with a new policy."""

    scene: Scene
    name: str
    hcl: str

    def __post_init__(self) -> None:
        openbao = self.scene.openbao
        openbao.policy(self.name, self.hcl)
        self.role_id, secret_id = openbao.approle(self.name, [self.name])
        self.scene.secrets.append(secret_id)
        self.secret_id_file = self.scene.folder / self.name
        self.secret_id_file.write_text(secret_id)

    def call(self, *flags: str, **changes: str | None) -> Done:
        login = {"APPJWT_VAULT_ROLE_ID": self.role_id, "APPJWT_VAULT_SECRET_ID_FILE": str(self.secret_id_file)}
        return self.scene.call(*flags, "--output", "json", changes={**login, **changes})

    def refresh(self, name: str) -> str:
        """Why a refresh of this account failed."""
        done = self.call("--refresh", name)
        (row,) = done.document["accounts"]
        assert (done.status, row["outcome"]) == (1, "failed"), done
        return str(row["error"])

    def session(self, clock: Callable[[], float]) -> VaultSession:
        openbao = self.scene.openbao
        http = net.session(user_agent="test", ca_cert=str(openbao.ca_file))
        login = AppRoleLogin("approle", self.role_id, self.secret_id_file)
        return VaultSession(openbao.address, login, http=http, namespace=None, timeout=5 * SECOND, clock=clock)

    def living(self) -> int:
        """Count the live logins of this role."""
        return sum((each["meta"] or {}).get("role_name") == self.name for each in self.scene.openbao.living())


Right = tuple[str, str]
"""A path as in the policy, and one capability."""

RIGHTS: list[Right] = [
    (path, capability) for path, listed in _RULE.findall(WORKER) for capability in re.findall(r"\w+", listed)
]
_broken: set[Right] = set()
"""Rights without which a test below shows something to break."""


def without(right: Right) -> str:
    """Return the worker's policy without this right."""

    def less(rule: re.Match[str]) -> str:
        kept = [each for each in re.findall(r"\w+", rule[2]) if (rule[1], each) != right]
        return "path {} {{ capabilities = {} }}\n".format(*map(json.dumps, (rule[1], kept))) if kept else ""

    return _RULE.sub(less, WORKER)


def lacking(path: str, capability: str) -> pytest.MarkDecorator:
    """Mark a test whose `login` has all of the worker's rights but this one."""
    _broken.add((path, capability))
    return pytest.mark.parametrize("login", [(path, capability)], indirect=True, ids=[f"{capability} {path}"])


@pytest.fixture(scope="module")
def logins(made: Scene) -> dict[Right, Login]:
    return {right: Login(made, f"lacking-{number}", without(right)) for number, right in enumerate(RIGHTS)}


@pytest.fixture
def login(logins: dict[Right, Login], request: pytest.FixtureRequest) -> Login:
    return logins[request.param]


@pytest.fixture
def new_account(made: Scene) -> str:
    name = f"le{secrets.token_hex(4)}"
    made.add_account(name)
    return name


@lacking("secret/metadata/liveperson/accounts/*", "list")
def test_without_it_no_account_is_found(login: Login) -> None:
    done = login.call("--refresh-all")
    assert done.status == 3
    expected_text = (
        "list secret/liveperson/accounts: status 403, permission denied; --check tells which right is missing"
    )
    assert expected_text in done.err


@lacking("secret/data/liveperson/accounts/*", "read")
def test_without_it_no_credentials_are_had(login: Login) -> None:
    assert login.refresh(ACCOUNT).startswith(f"read_account secret/liveperson/accounts/{ACCOUNT}: status 403")


@lacking("secret/data/liveperson/tokens/*", "create")
def test_without_it_a_new_account_gets_no_token(login: Login, new_account: str) -> None:
    assert login.refresh(new_account).startswith(f"write_token secret/liveperson/tokens/{new_account}: status 403")


@lacking("secret/data/liveperson/tokens/*", "read")
def test_without_it_the_stored_token_is_not_known_and_none_is_minted(login: Login, made: Scene) -> None:
    before = made.liveperson.mints()
    assert login.refresh(ACCOUNT).startswith(f"read_token secret/liveperson/tokens/{ACCOUNT}: status 403")
    assert made.liveperson.mints() == before


@lacking("secret/data/liveperson/tokens/*", "update")
def test_without_it_no_token_is_replaced(login: Login) -> None:
    assert login.refresh(ACCOUNT).startswith(f"write_token secret/liveperson/tokens/{ACCOUNT}: status 403")


@pytest.mark.parametrize(
    "forbidding", ['allowed_parameters = { "data" = [] }', 'denied_parameters = { "options" = [] }']
)
def test_where_the_parameters_of_a_policy_forbid_a_write_they_are_named(
    forbidding: str, new_account: str, made: Scene
) -> None:
    rule = '  capabilities = ["create", "read", "update"]\n'
    assert rule in WORKER
    login = Login(made, "with-parameters", WORKER.replace(rule, f"{rule}  {forbidding}\n"))
    refused = f"write_token secret/liveperson/tokens/{new_account}: status 403, permission denied"
    parameters = "allowed_parameters, denied_parameters and required_parameters"
    hint = f"the policy grants create and update here: see its {parameters}"
    assert login.refresh(new_account) == f"{refused} ({hint})"
    assert made.custom_metadata(new_account)["last_error"].endswith(f"({hint})")


@lacking("secret/metadata/liveperson/tokens/*", "create")
def test_without_it_no_state_is_kept_of_an_account_that_never_had_a_token(login: Login, made: Scene) -> None:
    made.openbao.put_account("tokenless", {"client_id": "x"})
    for each, state in ((login, None), (Login(made, "whole-for-state", WORKER), "invalid")):
        each.call("--refresh", "tokenless")
        assert made.custom_metadata("tokenless").get("state") == state
    made.openbao.client.secrets.kv.v2.delete_metadata_and_all_versions("liveperson/accounts/tokenless")


@lacking("secret/metadata/liveperson/tokens/*", "patch")
def test_without_it_a_token_counts_but_its_path_stays_without_our_mark_until_a_refresh_with_it(
    login: Login, new_account: str, made: Scene
) -> None:
    done = login.call("--refresh", new_account)
    assert (done.status, done.document["refreshed"]) == (0, 1)
    (line,) = [json.loads(line) for line in done.err.splitlines()]
    expected_text = f"write_metadata secret/liveperson/tokens/{new_account}: status 403, permission denied"
    assert (line["event"], line["account"], line["warning"]) == ("vault.warning", new_account, expected_text)
    assert made.custom_metadata(new_account) == {}
    made.liveperson.token_life += SECOND
    assert Login(made, "whole-for-the-mark", WORKER).call("--refresh", new_account).status == 0
    assert made.custom_metadata(new_account) == {"managed_by": "appjwt-worker"}


@lacking("secret/metadata/liveperson/tokens/*", "read")
def test_without_it_nobody_learns_why_an_account_has_no_token_yet(login: Login, made: Scene) -> None:
    made.openbao.put_account("never", {"client_id": "x"})
    login.call("--refresh", "never")
    for each, error in (
        (login, "there is no token"),
        (Login(made, "whole-for-notes", WORKER), "credentials: client_secret: missing or empty"),
    ):
        rows = {row["account"]: row for row in each.call("--status").document["accounts"]}
        assert (rows["never"]["remaining"], rows["never"]["last_error"]) == (0, error)
    made.openbao.client.secrets.kv.v2.delete_metadata_and_all_versions("liveperson/accounts/never")


@lacking("secret/config", "read")
def test_without_it_check_cannot_tell_whether_the_mount_deletes_tokens_and_all_is_well(login: Login) -> None:
    done = login.call("--check")
    details = {line["check"]: line["detail"] for line in done.document["checks"]}
    expected_text = "cannot be read: read_token secret/config: status 403, permission denied"
    assert (done.status, details["tokens.mount delete_version_after"]) == (0, expected_text)


@lacking("sys/capabilities-self", "update")
def test_without_it_check_cannot_tell_the_rights(login: Login) -> None:
    failed = [line for line in login.call("--check").document["checks"] if not line["ok"]]
    assert [line["check"] for line in failed] == ["rights"]


@lacking("auth/token/lookup-self", "read")
def test_without_it_a_token_is_no_login(login: Login, made: Scene) -> None:
    token = made.openbao.token([login.name])
    made.secrets.append(token)
    by_token = {"APPJWT_VAULT_AUTH_METHOD": "token", "APPJWT_VAULT_TOKEN": token}
    assert login.call("--status", **by_token).status == 3
    line = login.call("--check", **by_token).document["checks"][-1]
    assert (line["check"], line["ok"]) == ("login", False)
    assert 'path "auth/token/lookup-self" { capabilities = ["read"] }' in line["remedy"]


@lacking("auth/token/renew-self", "update")
def test_without_it_each_login_is_replaced_instead_of_one_being_renewed(login: Login, made: Scene) -> None:
    for each, events in (
        (login, ["vault.login", "vault.login"]),
        (Login(made, "whole-for-renewal", WORKER), ["vault.login", "vault.renewed"]),
    ):
        clock = Clock()
        session = each.session(clock)
        with capture_logs() as lines:
            session.login.keep_alive()
            clock.advance(11 * MINUTE)
            session.login.keep_alive()
        assert [line["event"] for line in lines] == events
        assert each.living() == 1
        session.login.close()


@lacking("auth/token/revoke-self", "update")
def test_without_it_a_login_outlives_its_process(login: Login, made: Scene) -> None:
    for each, living in ((login, 1), (Login(made, "whole-for-revocation", WORKER), 0)):
        assert each.call("--refresh", ACCOUNT).status == 0
        assert each.living() == living


def test_every_right_in_the_policy_has_its_test() -> None:
    assert set(RIGHTS) == _broken
    assert len(RIGHTS) == 13


def test_check_names_each_right_that_is_missing_with_the_policy_line(logins: dict[Right, Login]) -> None:
    results = dict(
        zip(logins, run_concurrently(*(partial(each.call, "--check") for each in logins.values())), strict=True)
    )
    lines = {path: f'path "{path}" {{ capabilities = [{listed}] }}' for path, listed in _RULE.findall(WORKER)}
    for (path, capability), done in results.items():
        if path == "secret/config":
            continue  # that one is optional
        first = next(line for line in done.document["checks"] if not line["ok"])
        assert done.status == 1
        assert first["remedy"] == f"add to the policy: {lines[path]}"
        if path != "sys/capabilities-self":
            assert (first["check"], first["detail"]) == (f"right {path}", f"missing: {capability}")


def test_rights_too_many_are_a_warning_and_all_is_well(made: Scene) -> None:
    wide = 'path "secret/*" { capabilities = ["create", "read", "update", "patch", "delete", "list"] }\n'
    own = "".join(rule[0] for rule in _RULE.finditer(WORKER) if not rule[1].startswith("secret/"))
    done = Login(made, "wide", wide + own).call("--check")
    details = {line["check"]: line["detail"] for line in done.document["checks"]}
    assert done.status == 0
    assert details["right secret/data/liveperson/accounts/*"] == (
        "granted; warning: it may also create, delete, list, patch, update"
    )
    assert details["right auth/token/lookup-self"] == "granted"


def test_root_is_a_warning_too(made: Scene) -> None:
    by_token = {"APPJWT_VAULT_AUTH_METHOD": "token", "APPJWT_VAULT_TOKEN": made.openbao.root_token}
    done = made.call("--check", "--output", "json", changes=by_token)
    details = {line["detail"] for line in done.document["checks"] if line["check"].startswith("right")}
    assert (done.status, details) == (0, {"granted; warning: it may also do anything: it is root"})


def test_a_token_that_is_refused_alone_is_its_accounts_trouble_for_status_and_all_refused_are_vaults(
    made: Scene,
) -> None:
    denied = 'path "secret/data/liveperson/tokens/{}" {{ capabilities = ["deny"] }}\n'
    done = Login(made, "one-denied", WORKER + denied.format(ACCOUNT)).call("--status")
    found = {each["account"]: each for each in done.document["accounts"]}
    assert (done.status, found[ACCOUNT]["state"], found["other"]["state"]) == (1, "failing", "ok")
    refused = f"vault: read_token secret/liveperson/tokens/{ACCOUNT}: status 403, permission denied"
    assert found[ACCOUNT]["last_error"] == refused
    done = Login(made, "all-denied", WORKER + denied.format("*")).call("--status")
    assert done.status == 3
    assert "status 403, permission denied; --check tells which right is missing" in done.err


# Filled in


def filled(file: str, *, first: tuple[str, str], second: tuple[str, str], v1: bool = False) -> str:
    """Return a policy as the sed line in its comment makes it, for these mounts and prefixes."""
    text = (POLICIES / file).read_text()
    (written,) = re.findall(r"^#   sed (.*?) \| vault policy write", text.replace("\\\n#  ", ""), re.MULTILINE)
    for mount, prefix in (first, second):
        written = written.replace("MOUNT", mount, 1).replace("PREFIX", prefix, 1)
    written = written.replace("MOUNT", second[0])  # the tokens' mount itself
    if v1:
        assert "Where the accounts are on KV version 1 leave out the first \\1/" in text
        written = written.replace("\\1/", "", 1)
    command = ["sed", *shlex.split(written)]
    return subprocess.run(command, cwd=POLICIES, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("version", "mount"), [(2, "kv/brand"), (1, "kv1")])
def test_filled_in_for_other_mounts_and_prefixes_the_policies_do_as_well(version: int, mount: str, made: Scene) -> None:
    openbao, tokens = made.openbao, f"tokens{version}"
    openbao.mount_kv(mount, version)
    openbao.mount_kv(tokens, 2)
    name, prefix = "le900", "our/accounts"
    app = asdict(made.liveperson.add_account(name))
    made.secrets.append(app["client_secret"])
    engine = openbao.client.secrets.kv.v1 if version == 1 else openbao.client.secrets.kv.v2
    engine.create_or_update_secret(f"{prefix}/{name}", app, mount_point=mount)
    places: dict[str, Any] = {"first": (mount, prefix), "second": (tokens, "our"), "v1": version == 1}
    settings = {
        "APPJWT_ACCOUNTS_MOUNT": mount,
        "APPJWT_ACCOUNTS_PREFIX": prefix,
        "APPJWT_TOKENS_MOUNT": tokens,
        "APPJWT_TOKENS_PREFIX": "our",
    }
    worker = Login(made, f"worker{version}", filled("worker.hcl", **places))
    auditor = Login(made, f"auditor{version}", filled("auditor.hcl", **places))

    check = worker.call("--check", **settings)
    assert check.status == 0, check
    assert not [line for line in check.document["checks"] if "warning" in line["detail"]]
    assert worker.call("--refresh-all", **settings).status == 0
    assert auditor.call("--status", **settings).status == 0
    refused = auditor.call("--refresh-all", **settings)
    assert (refused.status, "read_account" in refused.out) == (1, True)


def test_filled_in_the_readers_policy_reads_one_token(made: Scene) -> None:
    hcl = filled("reader.hcl", first=("kv", "our/tokens"), second=("", "")).replace("NAME", "brand/le1")
    assert _RULE.findall(hcl) == [("kv/data/our/tokens/brand/le1", '"read"')]
    made.openbao.policy("filled-reader", hcl)
