"""The policies in config/policies on a real OpenBao: what they allow, what they deny, and that nothing in them is idle."""

import re
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from pydantic import SecretStr

import sandbox
from sandbox.world import World
from tests.builders import ABSENT, app_jwt
from tests.integration.processes import Done, Scene, scene
from worker import net
from worker.clockwork import steady
from worker.core.errors import RefreshError
from worker.vault.login import AppRoleLogin, TokenLogin
from worker.vault.session import VaultSession
from worker.vault.tokens import VaultTokens

POLICIES = Path(sandbox.__file__).parent.parent / "config" / "policies"
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

Ask = Callable[[str, str], int]

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
"""What somebody may want, and the request for it; the one that ends the login comes last."""
BODIES: Mapping[str, object] = {"sys/capabilities-self": {"paths": ["x"]}}

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
            "make a token",
            "write the token",
            "make a token's metadata",
            "write the token's metadata",
            "patch the token's metadata",
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
                body = {"data": {"a": "b"}, "paths": ["x"], "versions": [1]} if method != "GET" else None
                if "/metadata/" in path and method in ("POST", "PATCH"):
                    body = {"max_versions": 5}
                headers = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
                url = f"{world.openbao.address}/v1/{path}"
                return session.request(method, url, json=body, headers=headers, timeout=5).status_code

            answers = {what: ask(*request) for what, request in OPERATIONS.items()}
    assert {what for what, status in answers.items() if status != 403} == allowed
    assert {answers[what] for what in allowed} <= {200, 204, 404}, answers
