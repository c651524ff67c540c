"""Warnings to an operator about accounts and tokens, once and not for ever: on a real OpenBao, by the daemon."""

from pathlib import Path

import requests

from sandbox.faults import Fault
from sandbox.world import POLICIES
from tests.integration.processes import eventually, scene

RESYNC = {"APPJWT_TOKENS_RESYNC_INTERVAL": "1s"}


def test_a_token_without_the_usual_scope_is_published_and_told(tmp_path: Path) -> None:
    with scene(tmp_path / "world", life=8, vault_tls=False) as world:
        for name, fields in (("le1", {}), ("le2", {"scope": "other"}), ("le3", {})):
            world.add_account(name, **fields)
            if name != "le3":
                world.liveperson.faults.set(Fault(claims={"scope": "other"}), account=name)
        daemon = world.daemon({**RESYNC, "APPJWT_HTTP_LISTEN": "127.0.0.1:0"})
        for name in ("le1", "le2", "le3"):
            daemon.wait_for("token.refreshed", account=name, count=2)
        (warning_line,) = daemon.events("token.scope_unusual")
        assert (warning_line["account"], warning_line["scope"], warning_line["level"]) == ("le1", "other", "warning")

        def shown(accounts: list[dict[str, str]]) -> None:
            states = {each["account"]: (each["state"], each["last_error"]) for each in accounts}
            text = "the token has scope other, without msg.consumer: the Send API may refuse it"
            assert states == {"le1": ("ok", text), "le2": ("ok", None), "le3": ("ok", None)}

        shown(requests.get(f"{daemon.url}/status.json", timeout=5).json()["accounts"])
        shown(world.call("--status", "--output", "json").document["accounts"])
        assert "without msg.consumer" in requests.get(f"{daemon.url}/", timeout=5).text
        world.liveperson.faults.set(Fault(claims={"scope": ""}), account="le1")
        daemon.wait_for("token.scope_unusual", account="le1", scope="")
        world.liveperson.faults.clear(account="le1")

        def is_well() -> bool:
            accounts = world.call("--status", "--output", "json").document["accounts"]
            return {each["account"]: each["last_error"] for each in accounts}["le1"] is None

        eventually(is_well)
        daemon.stop()


def test_invalid_accounts_are_an_error_once_and_not_at_every_sync(tmp_path: Path) -> None:
    names = [f"le{number}" for number in range(10)]
    with scene(tmp_path / "world", vault_tls=False) as world:
        for name in names:
            world.openbao.put_account(name, {"client_id": ""})
        daemon = world.daemon({"APPJWT_LOG_LEVEL": "debug"})
        daemon.wait_for("refresh.failed", level="debug", account=names[-1], count=4)
        failed = daemon.events("refresh.failed", level="error")
        assert sorted(line["account"] for line in failed) == names
        world.openbao.put_account("le3", {"client_id": "x"})
        line = daemon.wait_for("refresh.failed", level="error", account="le3", count=2)
        assert "client_secret" in line["error"]
        assert world.call("--status").status == 1
        daemon.stop()


def test_two_installations_that_write_to_one_path_are_told_of_one_another(tmp_path: Path) -> None:
    with scene(tmp_path / "world", vault_tls=False) as world:
        more = 'path "secret/*" { capabilities = ["create", "read", "update", "patch", "list"] }'
        world.openbao.policy("appjwt-worker", (POLICIES / "worker.hcl").read_text() + more)
        daemons = {}
        for number in "12":
            made = world.liveperson.add_account("le7")
            world.secrets.append(made.client_secret)
            path = f"installation-{number}/le7"
            world.openbao.client.secrets.kv.v2.create_or_update_secret(path, vars(made))
            changes = {**RESYNC, "APPJWT_ACCOUNTS_PREFIX": f"installation-{number}"}
            daemons[made.client_id] = world.daemon(changes), changes
        (one, two) = daemons
        for ours, theirs in ((one, two), (two, one)):
            line = daemons[ours][0].wait_for("vault.warning", account="le7")
            assert line["client_id"] == theirs
            assert theirs in line["warning"]
        daemons[one][0].wait_for("token.repaired", count=6)
        for daemon, _ in daemons.values():
            assert len(daemon.events("vault.warning")) == 1
            daemon.stop()
        kv = world.openbao.client.secrets.kv.v2
        answer = kv.read_secret_version("liveperson/tokens/le7", raise_on_deleted_version=True)
        stored = answer["data"]["data"]["azp"]
        ours = two if stored == one else one
        done = world.call("--check", "--output", "json", changes=daemons[ours][1])
        (wrong,) = [line for line in done.document["checks"] if line["check"] == "account le7"]
        assert not wrong["ok"]
        assert stored in wrong["detail"]
