"""Accounts as people write them into a real OpenBao, on KV v1 and v2, and their treatment by the installed command.

Most of them are refreshed by one run of the command; each test checks one account.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from sandbox.faults import Fault
from sandbox.liveperson import LivePerson
from sandbox.world import POLICIES
from tests.builders import usable
from tests.integration.calls import account_store, by_token, operate, run_concurrently
from tests.integration.processes import Done, Scene, scene
from worker import net
from worker.core.account import Account
from worker.core.status import PREVIOUS_USED
from worker.schedule.boottime import boottime
from worker.vault.accounts import AccountStore
from worker.vault.login import TokenLogin
from worker.vault.session import VaultSession

TOKENS = "liveperson/tokens/"
ACCOUNTS = "liveperson/accounts/"

INVALID: Mapping[str, tuple[Mapping[str, object], str]] = {
    "no-client-id": ({"client_id": None}, "client_id: missing or empty"),
    "empty-secret": ({"client_secret": ""}, "client_secret: missing or empty"),
    "misspelt": (
        {"client_secret": None, "Client-Secret": "x"},
        "client_secret: missing or empty (there is 'Client-Secret': rename it)",
    ),
    "number": ({"client_id": 75588}, "client_id: must be a string, is a number"),
    "line-break": ({"client_secret": "x\n"}, "client_secret: holds a space, a line break or a character outside ASCII"),
    "account-number": ({"account_id": 81823118}, "account_id: must be a string, is a number"),
    "account-path": ({"account_id": "../le1"}, "account_id: must be 1 to 64 letters, digits, - or _"),
    "version-3": ({"api_version": "3.0"}, "api_version: must be one of 1.0, 2.0"),
    "version-number": ({"api_version": 2.0}, "api_version: must be a string, is a number"),
    "scope-list": ({"scope": ["msg.consumer"]}, "scope: must be a string, is a list"),
    "perhaps": ({"enabled": "perhaps"}, "enabled: must be true or false"),
}

KNOWN = ["brand-eu-105", "shops-of-eu/brand-106"]
"""Names of accounts whose client_secret begins with the name."""


@dataclass
class Refreshed:
    """The result of one --refresh-all of all the accounts."""

    scene: Scene
    done: Done

    @property
    def liveperson(self) -> LivePerson:
        return self.scene.liveperson

    def row(self, name: str) -> dict[str, Any]:
        (row,) = [row for row in self.done.document["accounts"] if row["account"] == name]
        return dict(row)

    def token(self, name: str) -> dict[str, str]:
        """Return the data of its stored token; it was refreshed."""
        assert self.row(name)["outcome"] == "refreshed", self.row(name)
        return self.scene.openbao.get_token(name) or {}

    def failure(self, name: str) -> str:
        """Return the error; there is no token of it."""
        row = self.row(name)
        assert row["outcome"] == "failed", row
        assert self.scene.openbao.get_token(name) is None
        return str(row["error"])

    def asked(self, service: str, account_id: str) -> int:
        return sum((seen.service, seen.account_id) == (service, account_id) for seen in self.liveperson.seen)


def put(scene: Scene, name: str, **fields: object) -> None:
    """Return a secret for an account that is unknown to LivePerson; None leaves a field out."""
    app = {"client_id": "75588e18-0213-4e33-8174-883acac7e3c4", "client_secret": secrets.token_hex(13), **fields}
    scene.openbao.put_account(name, {key: value for key, value in app.items() if value is not None})


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Refreshed]:
    with scene(tmp_path_factory.mktemp("accounts")) as made:
        kv, hosts = made.openbao.client.secrets.kv.v2, made.liveperson.hosts
        made.add_account("le100")
        made.add_account("le101/connector-a")
        made.add_account("brand/eu/shop/one", account_id="le102")
        made.add_account("direct", "lo", sentinel_domain=hosts["lo"])
        put(made, "elsewhere", sentinel_domain="sentinel.example.com")
        made.add_account("second-api", api_version="2.0")
        made.add_account("scope", scope="msg.consumer")
        made.add_account("other-scope", scope="msg.agent")
        made.add_account("off", enabled=False)
        made.add_account("off-in-words", enabled="false")
        made.add_account("on-in-words", enabled="true")
        made.add_account("deleted")
        kv.delete_latest_version_of_secret(ACCOUNTS + "deleted")
        for name, (fields, _) in INVALID.items():
            put(made, name, **fields)

        # in Vault the secret rotated, at LivePerson not yet
        rotating = made.add_account("rotating")
        put(made, "rotating", client_id=rotating.client_id)
        edited, wrong_secret = made.add_account("edited-since"), secrets.token_hex(13)
        for fields in ({}, {"enabled": False}, {"scope": "msg.consumer"}):
            put(made, "edited-since", client_id=edited.client_id, client_secret=wrong_secret, **fields)
        moving = made.add_account("other-app")
        assert moving.client_id
        put(made, "other-app", client_id="another")
        refusing = made.add_account("twice-wrong")
        for _ in range(2):
            put(made, "twice-wrong", client_id=refusing.client_id)
        wrong = made.liveperson.add_account("wrong")
        put(made, "wrong", client_id=wrong.client_id)

        # the secret that Sentinel takes comes back in a claim
        telling = made.add_account("telling-the-one-before")
        put(made, "telling-the-one-before", client_id=telling.client_id)
        fault = Fault(claims={"scope": telling.client_secret})
        made.liveperson.faults.set(fault, account="telling-the-one-before", service="sentinel")

        # secrets that people make of what they know
        for name in KNOWN:
            app = made.liveperson.add_account(name.rpartition("/")[2], client_secret=f"{name}-secret")
            made.openbao.put_account(name, {**asdict(app), "account_id": name.rpartition("/")[2]})
            fault = Fault(claims={"scope": f"msg.consumer {name} {hosts['va']}"})
            made.liveperson.faults.set(fault, account=name.rpartition("/")[2], service="sentinel")
        put(made, "swapped", sentinel_domain=secrets.token_hex(13))
        put(made, "address", sentinel_domain="https://" + hosts["lo"])

        for name in ("unmanaged", "deep/unmanaged"):
            made.add_account(name)
            kv.create_or_update_secret(TOKENS + name, {"access_token": "somebody's"})
        kv.update_metadata(TOKENS + "unmanaged", custom_metadata={"team": "billing"})
        made.add_account("noted")
        kv.update_metadata(TOKENS + "noted", custom_metadata={"team": "billing"})
        yield Refreshed(made, made.call("--refresh-all", "--output", "json"))


def test_a_run_with_failures_among_many_ends_with_1_and_counts_them(refreshed: Refreshed) -> None:
    document = refreshed.done.document
    outcomes = [row["outcome"] for row in document["accounts"]]
    assert refreshed.done.status == 1
    assert {outcome: outcomes.count(outcome) for outcome in ("refreshed", "failed", "skipped")} == {
        key: document[key] for key in ("refreshed", "failed", "skipped")
    }
    odd = {"elsewhere", "swapped", "address", "telling-the-one-before", "other-scope"}
    refused = {"other-app", "twice-wrong", "wrong", "unmanaged", "deep/unmanaged"}
    assert {row["account"] for row in document["accounts"] if row["outcome"] == "failed"} == odd | refused | {*INVALID}


# Names and fields


@pytest.mark.parametrize(
    ("name", "account_id"), [("le100", "le100"), ("le101/connector-a", "le101"), ("brand/eu/shop/one", "le102")]
)
def test_an_account_may_lie_at_any_depth_and_say_its_own_account_id(
    name: str, account_id: str, refreshed: Refreshed
) -> None:
    token = refreshed.token(name)
    assert (token["account_id"], token["aud"]) == (account_id, account_id)


def test_a_sentinel_domain_of_its_own_skips_the_domain_api(refreshed: Refreshed) -> None:
    assert refreshed.token("direct")["sentinel_host"] == refreshed.liveperson.hosts["lo"]
    assert (refreshed.asked("domain", "direct"), refreshed.asked("sentinel", "direct")) == (0, 1)
    assert refreshed.asked("domain", "le100") == 1


def test_a_sentinel_domain_that_is_not_allowed_gets_no_secret(refreshed: Refreshed) -> None:
    assert refreshed.failure("elsewhere") == (
        "sentinel_domain of the account is sentinel.example.com, which sentinel.allowed_hosts does not allow"
    )


def test_what_is_no_host_name_is_not_quoted_for_it_may_be_the_secret_in_the_wrong_field(refreshed: Refreshed) -> None:
    assert refreshed.failure("swapped") == (
        "sentinel_domain of the account is a host, which sentinel.allowed_hosts does not allow"
    )
    assert refreshed.failure("address") == (
        "sentinel_domain of the account is no host name: it must be a bare host, such as va.sentinel.liveperson.net,"
        " with its port where that is not 443"
    )


def test_a_token_must_not_tell_the_client_secret_before_the_newest_either(refreshed: Refreshed) -> None:
    assert refreshed.failure("telling-the-one-before") == ("format: token contains the client_secret")


@pytest.mark.parametrize("name", KNOWN)
def test_a_client_secret_may_hold_what_is_known_anyway(name: str, refreshed: Refreshed) -> None:
    """An example is the account_id, which is in each of its tokens: none was ever published."""
    assert refreshed.token(name)["aud"] == name.rpartition("/")[2]


def test_an_account_may_have_its_own_version_of_the_api(refreshed: Refreshed) -> None:
    assert refreshed.token("second-api")["aud"] == "second-api"


def test_a_scope_that_is_demanded_must_be_in_the_token(refreshed: Refreshed) -> None:
    assert refreshed.token("scope")["scope"] == "msg.consumer"
    assert refreshed.failure("other-scope") == "scope: expected msg.agent, got msg.consumer"


@pytest.mark.parametrize("name", ["off", "off-in-words"])
def test_an_account_that_is_not_enabled_is_kept_out(name: str, refreshed: Refreshed) -> None:
    row = refreshed.row(name)
    assert (row["outcome"], row["error"]) == ("skipped", "the account is disabled")
    assert refreshed.liveperson.mints(name) == 0


def test_an_account_may_say_that_it_is_enabled(refreshed: Refreshed) -> None:
    assert refreshed.token("on-in-words")


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_secret_is_told_with_the_field_and_what_is_wrong_with_it(name: str, refreshed: Refreshed) -> None:
    assert refreshed.failure(name).startswith(INVALID[name][1])
    assert refreshed.liveperson.mints(name) == 0


# The secret before the newest


@pytest.mark.parametrize("name", ["rotating", "edited-since"])
def test_where_sentinel_refuses_the_newest_secret_the_one_before_is_tried_and_a_warning_says_so(
    name: str, refreshed: Refreshed
) -> None:
    assert refreshed.token(name)
    lines = [json.loads(line) for line in refreshed.done.err.splitlines()]
    (warning,) = [line for line in lines if (line["event"], line.get("account")) == ("credentials.previous_used", name)]
    assert warning["level"] == "warning"
    row = refreshed.row(name)
    assert (row["outcome"], row["error"]) == ("refreshed", PREVIOUS_USED)
    assert [seen.status for seen in refreshed.liveperson.seen if seen.account_id == name][1:] == [401, 200]


@pytest.mark.parametrize(("name", "requests"), [("other-app", 1), ("wrong", 1), ("twice-wrong", 2)])
def test_a_secret_of_another_app_or_none_before_is_not_tried_and_the_refusal_stays(
    name: str, requests: int, refreshed: Refreshed
) -> None:
    assert "answers 401" in refreshed.failure(name)
    assert refreshed.asked("sentinel", name) == requests


class LaterSession(VaultSession):
    """Return a session with a Vault whose clock shows this much more."""

    later = timedelta()

    def now(self) -> datetime:
        return super().now() + self.later


@pytest.mark.parametrize(
    ("later", "found"), [(timedelta(hours=23, minutes=30), Account), (timedelta(hours=24), type(None))]
)
def test_the_secret_before_is_of_use_for_a_day(later: timedelta, found: type, refreshed: Refreshed) -> None:
    accounts = accounts_of(refreshed.scene, later)
    assert isinstance(accounts.previous(usable(accounts.read("rotating"))), found)


def accounts_of(scene: Scene, later: timedelta = timedelta(), mount: str = "secret") -> AccountStore:
    openbao = scene.openbao
    http = net.session(user_agent="test", ca_cert=str(openbao.ca_file))
    login = TokenLogin(SecretStr(openbao.root_token))
    session = LaterSession(
        openbao.address, login, http=http, namespace=None, timeout=timedelta(seconds=5), clock=boottime
    )
    session.later = later
    return account_store(session, mount=mount)


# Deleted accounts


def test_a_deleted_account_is_skipped_among_all_and_unknown_by_name(refreshed: Refreshed) -> None:
    assert refreshed.row("deleted")["outcome"] == "skipped"
    done = refreshed.scene.call("--refresh", "deleted", "--output", "json")
    (row,) = done.document["accounts"]
    assert (done.status, row["outcome"]) == (1, "failed")
    assert row["error"].startswith("there is no secret at secret/liveperson/accounts/deleted")


# Foreign secrets, and other people's metadata


@pytest.mark.parametrize("name", ["unmanaged", "deep/unmanaged"])
def test_a_unmanaged_secret_is_never_overwritten_until_the_command_it_names_was_run(
    name: str, refreshed: Refreshed
) -> None:
    scene, error = refreshed.scene, refreshed.row(name)["error"]
    assert refreshed.liveperson.mints(name) == 0
    assert scene.openbao.get_token(name) == {"access_token": "somebody's"}
    (line,) = [
        line for line in scene.call("--status", "--output", "json").document["accounts"] if line["account"] == name
    ]
    assert (line["state"], line["last_error"]) == ("unmanaged", error)

    message, _, command = error.partition("; to hand it over: ")
    assert message == f"secret/{TOKENS}{name} holds a secret that is not ours"
    operate(scene, command)
    done = scene.call("--refresh", name, "--output", "json")
    assert done.status == 0, done
    assert (scene.openbao.get_token(name) or {})["aud"] == name.partition("/")[0]
    assert done.document["accounts"][0]["vault_version"] == 2


def test_other_peoples_keys_in_the_metadata_are_kept(refreshed: Refreshed) -> None:
    assert refreshed.token("noted")
    metadata = refreshed.scene.openbao.client.secrets.kv.v2.read_secret_metadata(TOKENS + "noted")["data"]
    assert metadata["custom_metadata"] == {"team": "billing", "managed_by": "appjwt-worker"}


# The engines


@pytest.fixture(scope="module")
def engines(refreshed: Refreshed) -> Scene:
    """Return the same world, with accounts on KV v1 at `kv1` and `nested/kv1` too, and a mount that is no KV."""
    scene = refreshed.scene
    for mount in ("kv1", "nested/kv1"):
        scene.openbao.mount_kv(mount, 1)
        for name in ("le200", "deep/er/le201"):
            credentials = scene.liveperson.add_account(name.partition("/")[0])
            scene.secrets.append(credentials.client_secret)
            scene.openbao.client.secrets.kv.v1.create_or_update_secret(
                ACCOUNTS + name, asdict(credentials), mount_point=mount
            )
    scene.openbao.client.sys.enable_secrets_engine("transit", "transit")
    rules = [f'path "{mount}/*" {{ capabilities = ["list", "read"] }}' for mount in ("kv1", "nested/kv1", "transit")]
    scene.openbao.policy("engines", "\n".join(rules))
    return scene


@pytest.mark.parametrize("mount", ["kv1", "nested/kv1"])
def test_accounts_on_kv_v1_are_told_apart_by_asking_and_serve_as_well(mount: str, engines: Scene) -> None:
    changes = by_token(engines, "appjwt-worker", "engines", APPJWT_ACCOUNTS_MOUNT=mount)
    done = engines.call("--refresh-all", "--output", "json", changes=changes)
    assert done.status == 0, done
    assert [(row["account"], row["outcome"]) for row in done.document["accounts"]] == [
        ("deep/er/le201", "refreshed"),
        ("le200", "refreshed"),
    ]


def test_tokens_on_kv_v1_are_a_clear_error_in_every_mode(engines: Scene) -> None:
    changes = by_token(engines, "appjwt-worker", "engines", APPJWT_TOKENS_MOUNT="kv1")
    modes = (["--refresh", "le100"], ["--refresh-all"], ["--status"], ["--check"])
    refresh, every, status, check = run_concurrently(
        *(lambda m=mode: engines.call(*m, changes=changes) for mode in modes)
    )
    text = "kv1 is KV version 1, which has no check-and-set: tokens need KV version 2"
    assert (refresh.status, every.status, status.status, check.status) == (1, 1, 3, 1)
    assert text in refresh.out
    assert text in every.out
    assert status.err == f"appjwt-worker: Vault cannot be used: {text}\n"
    assert f"tokens.mount    FAILED  {text}" in check.out
    assert engines.openbao.client.secrets.kv.v1.list_secrets("liveperson", mount_point="kv1")["data"]["keys"] == [
        "accounts/"
    ], "a v2 path would have been taken by a v1 mount"


@pytest.mark.parametrize("table", ["ACCOUNTS", "TOKENS"])
def test_a_mount_that_is_no_kv_is_a_clear_error(table: str, engines: Scene) -> None:
    changes = by_token(engines, "appjwt-worker", "engines", **{f"APPJWT_{table}_MOUNT": "transit"})
    done = engines.call("--check", "--output", "json", changes=changes)
    last = done.document["checks"][-1]
    assert (done.status, last["ok"], last["check"]) == (1, False, f"{table.lower()}.mount")
    assert 'transit: expected a KV mount, found engine "transit"' in last["detail"]
    kind = "KV version 2" if table == "TOKENS" else "KV"
    assert last["remedy"].startswith(f"set {table.lower()}.mount to a {kind} mount; ")


def test_a_mount_that_is_not_there_is_a_clear_error(engines: Scene) -> None:
    done = engines.call("--check", "--output", "json", changes={"APPJWT_TOKENS_MOUNT": "nowhere"})
    last = done.document["checks"][-1]
    assert (done.status, last["check"]) == (1, "tokens.mount")
    assert "set tokens.mount to an existing mount" in last["remedy"]


# The daemon

LISTING = """path "secret/metadata/liveperson/accounts/*" {
  capabilities = ["list"]
}"""
HIDING = """path "secret/metadata/liveperson/accounts/*" {
  capabilities = ["list", "read"]
  list_scan_response_keys_filter_path = "{{ .path }}{{ .key }}"
}
path "secret/metadata/liveperson/accounts/le301" { capabilities = ["deny"] }"""
READING = """path "secret/data/liveperson/accounts/*" {
  capabilities = ["read"]
}"""


def test_an_account_goes_by_its_own_404_and_by_nothing_else(tmp_path: Path) -> None:
    """A policy hides it from a LIST: OpenBao can filter the names in a LIST."""
    policy = (POLICIES / "worker.hcl").read_text()
    assert LISTING in policy
    assert READING in policy
    hidden = policy.replace(LISTING, HIDING)
    with scene(tmp_path / "scene", life=4) as made:
        kv, write = made.openbao.client.secrets.kv.v2, partial(made.openbao.policy, "appjwt-worker")
        for name in ("le300", "le301"):
            made.add_account(name)
        daemon = made.daemon()
        daemon.wait_for("token.refreshed", account="le301")

        def syncs(times: int) -> None:
            """Wait for syncs that miss an account."""
            so_far = len(daemon.events("accounts.synced", missing=1))
            daemon.wait_for("accounts.synced", count=so_far + times, missing=1)

        write(hidden)
        syncs(2)
        count = len(daemon.events("token.refreshed", account="le301"))
        daemon.wait_for("token.refreshed", account="le301", count=count + 1)

        write(hidden.replace(READING, ""))  # reading it gives a 403: a fault, which is no proof of removal
        syncs(2)
        assert not daemon.events("account.removed")

        write(policy)
        kv.delete_latest_version_of_secret(ACCOUNTS + "le301")  # it stays in the LIST
        daemon.wait_for("account.removed", account="le301")
        kv.undelete_secret_versions(ACCOUNTS + "le301", [1])
        daemon.wait_for("account.added", account="le301")
        kv.delete_metadata_and_all_versions(ACCOUNTS + "le301")
        daemon.wait_for("account.removed", account="le301", count=2)
        assert not daemon.events("account.removed", account="le300")
        daemon.stop()
