"""HashiCorp's server, as far as OpenBao in its forms can play it: each by the installed command."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.integration.calls import by_token, run_concurrently
from tests.integration.hashicorp import HashiCorp
from tests.integration.processes import Done, Scene, Settings
from tests.integration.servers import Answering, http

ACCOUNT = "le81823118"
IGNORED = "vault.namespace is ignored: Vault's Community edition has no namespaces"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Scene(tmp_path_factory.mktemp("world"), vault_tls=False) as world:
        world.add_account(ACCOUNT)
        yield world


@pytest.fixture
def vault(world: Scene) -> Iterator[HashiCorp]:
    with HashiCorp(world.openbao.address) as vault:
        world.settings["APPJWT_VAULT_ADDRESS"] = vault.url
        yield vault


def checked(done: Done) -> dict[str, tuple[bool, str, str | None]]:
    """Return the results of `--check`, by the check's name."""
    return {line["check"]: (line["ok"], line["detail"], line["remedy"]) for line in done.document["checks"]}


def test_it_works_and_is_asked_for_no_further_page_of_a_list(world: Scene, vault: HashiCorp) -> None:
    done = world.call("--refresh", ACCOUNT)
    assert (done.status, done.err) == (0, "")
    check = world.call("--check", "--output", "json")
    assert (check.status, check.err) == (0, "")
    assert checked(check)["vault"][1] == "version 1.21.4, active"
    assert world.call("--status").status == 0
    assert vault.token
    assert vault.pages == 0


def test_a_login_that_ended_is_made_anew(world: Scene, vault: HashiCorp) -> None:
    """It is replaced even if its namespace was deleted: its token answers 500 for ever."""
    daemon = world.daemon()
    daemon.wait_for("worker.ready")
    (login,) = world.logins()
    world.openbao.client.auth.token.revoke_accessor(login)
    daemon.wait_for("vault.login", cause="revoked")
    daemon.stop()

    daemon = world.daemon()
    daemon.wait_for("worker.ready")
    vault.without_namespace.add(vault.token)
    daemon.wait_for("vault.login", cause="revoked", within=20)
    assert not daemon.events("vault.unavailable")
    daemon.stop()


def test_a_token_that_ended_is_told_without_the_frame_of_the_list(world: Scene, vault: HashiCorp) -> None:
    del vault
    changes = by_token(world, "appjwt-worker")
    world.openbao.client.auth.token.revoke(changes["APPJWT_VAULT_TOKEN"])
    done = world.call("--refresh", ACCOUNT, changes=changes)
    assert done.status == 3
    assert "token login: status 403, permission denied; invalid token (see vault.token or vault.token_file" in done.err


def test_a_token_of_an_unknown_namespace_is_what_the_remedy_names(world: Scene, vault: HashiCorp) -> None:
    del vault
    changes = {**by_token(world), "APPJWT_VAULT_TOKEN": "s.CAESIJ8Wvn0.abcde"}
    done = world.call("--check", "--output", "json", changes=changes)
    is_ok, detail, remedy = checked(done)["login"]
    assert (done.status, is_ok) == (3, False)
    assert "status 500, error performing token check: failed to look up namespace from the token" in detail
    expected = "see vault.token or vault.token_file: the namespace after the token's last dot is unknown to this server"
    assert remedy == expected


def test_a_namespace_that_the_community_edition_ignores_is_told(world: Scene, vault: HashiCorp) -> None:
    del vault
    changes = {"APPJWT_VAULT_NAMESPACE": "brand"}
    done = world.call("--check", "--output", "json", changes=changes)
    is_ok, detail, remedy = checked(done)["vault.namespace"]
    assert (done.status, is_ok, remedy) == (1, False, "unset vault.namespace")
    assert detail.startswith(IGNORED)
    daemon = world.daemon(changes)
    assert daemon.wait_for("vault.warning")["warning"].startswith(IGNORED)
    daemon.stop()
    assert len(daemon.events("vault.warning")) == 1


# How it is, by its health


HEALTH = {"initialized": True, "sealed": False, "standby": True, "version": "1.21.4", "enterprise": True}


def of_health(world: Scene, *answers: bytes) -> list[tuple[str, str | None]]:
    """Run `--check` on a server with this health answer; return detail and remedy."""
    with ExitStack() as stack:
        servers = [stack.enter_context(Answering(answer)) for answer in answers]
        every: list[Settings] = [{"APPJWT_VAULT_ADDRESS": server.url} for server in servers]
        calls = run_concurrently(*(partial(world.call, "--check", "--output", "json", changes=each) for each in every))
    assert [(done.status, list(checked(done))) for done in calls] == [(3, ["vault"])] * len(answers)
    return [checked(done)["vault"][1:] for done in calls]


def test_a_server_that_cannot_serve_is_told_as_what_it_is(world: Scene) -> None:
    cases = {
        472: ("it is a secondary for disaster recovery", "set vault.address to the primary cluster"),
        473: ("it is a performance standby", "set vault.address to the active node"),
        474: ("it is a standby cut off from the active node", "see the network between Vault's nodes"),
        530: ("it was removed from its cluster", "take it out of what vault.address leads to, or let it join again"),
    }
    answers = [http(json.dumps(HEALTH).encode(), status=f"{status} Said") for status in cases]
    expected = [(f"status {status} ({what})", remedy) for status, (what, remedy) in cases.items()]
    assert of_health(world, *answers) == expected


def test_a_gateways_own_status_says_nothing_about_vault(world: Scene) -> None:
    answers = [http(b"<html>", status=f"{status} Said") for status in (503, 530)]
    remedy = "check vault.address, vault.ca_cert, and Vault's health and logs"
    assert of_health(world, *answers) == [("status 503", remedy), ("status 530", remedy)]


# What passes by itself


def test_a_server_that_lags_behind_is_told_with_what_helps(world: Scene) -> None:
    answer = http(b'{"errors": ["required index state not present"]}', status="412 Said")
    remedy = "try again: this server lags behind the active node"
    assert of_health(world, answer) == [("status 412, required index state not present", remedy)]


def test_a_quota_is_told_with_what_helps(world: Scene, vault: HashiCorp) -> None:
    del vault
    quota = "sys/quotas/rate-limit/logins"
    world.openbao.client.write_data(quota, data={"rate": 1, "interval": "1h", "path": "auth/approle/"})
    try:
        world.call("--check")  # it takes the one that is free
        done = world.call("--check", "--output", "json")
    finally:
        world.openbao.client.delete(quota)
    is_ok, detail, remedy = checked(done)["login"]
    assert (done.status, is_ok) == (3, False)
    assert detail == 'approle login: status 429, request path "auth/approle/login": rate limit quota exceeded'
    assert remedy == "raise the quota that refuses: vault list sys/quotas/rate-limit"
