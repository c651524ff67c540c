"""Refusals by a Vault that can be reached: log, page and readiness report them, and none reports an outage."""

from pathlib import Path

import requests

from sandbox.world import POLICIES
from tests.integration.processes import scene

WORKER = (POLICIES / "worker.hcl").read_text()
POLICIES_WITHOUT = {
    "list": WORKER.replace('["list"]', '["deny"]'),
    "write_token": WORKER.replace('["create", "read", "update"]', '["read"]'),
    "all": 'path "none" { capabilities = ["read"] }',
}
ACCOUNTS = ("le1", "le2", "le3", "le4")


def test_a_right_or_a_mount_that_is_gone_is_shown_everywhere_as_vaults_trouble(tmp_path: Path) -> None:
    with scene(tmp_path, life=20) as world:
        world.settings["APPJWT_HTTP_LISTEN"] = "127.0.0.1:0"
        for name in ACCOUNTS:
            world.add_account(name)
        daemon = world.daemon()
        url = daemon.url
        daemon.wait_for("worker.ready")

        def page_says(words: str) -> bool:
            return words in requests.get(url, timeout=5).text

        for number, (right, hcl) in enumerate(POLICIES_WITHOUT.items(), 1):
            world.openbao.policy("appjwt-worker", hcl)
            began = daemon.wait_for("vault.unavailable", count=number)
            assert (began["status"], began["address"]) == (403, world.openbao.address)
            assert right == "all" or began["error"].startswith(f"{right} secret/liveperson/")
            assert page_says("Vault cannot be used")
            world.openbao.policy("appjwt-worker", WORKER)
            over = daemon.wait_for("vault.recovered", count=number)
            assert (over["address"], over["duration"] > 0) == (world.openbao.address, True)
            assert not page_says("Vault cannot be used")
        world.openbao.client.sys.disable_secrets_engine("secret")
        assert daemon.wait_for("vault.unavailable", count=4)["status"] in (403, 404)
        assert page_says("Vault cannot be used")
        later = world.daemon()
        later.wait_for("vault.unavailable")
        answer = requests.get(f"{later.url}/readyz", timeout=5)
        assert (answer.status_code, answer.text.startswith("not ready: Vault cannot be used: list ")) == (503, True)
        for each in (daemon, later):
            each.stop()
