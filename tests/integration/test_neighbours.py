"""Half of a Sentinel host's accounts are sick, on real parts: the others must not notice."""

import time
from pathlib import Path

from sandbox.faults import Fault
from tests.integration.processes import Reader, scene

LIFE = 16
SICK = [f"sick{number:02}" for number in range(24)]
WELL = [f"well{number:02}" for number in range(16)]
FAULTS = (Fault(hang=True), Fault(hang=True), Fault(delay=3), Fault(status=503))
"""In turn. The slow ones are slower than the deadline."""


def test_while_half_of_a_hosts_accounts_are_sick_no_other_token_expires(tmp_path: Path) -> None:
    with scene(tmp_path / "world", life=LIFE, vault_tls=False) as world:
        for account in (*SICK, *WELL):
            world.add_account(account)
        daemon = world.daemon({"APPJWT_SENTINEL_TIMEOUT": "2s"})
        daemon.wait_for("token.refreshed", count=len(SICK) + len(WELL))
        for number, account in enumerate(SICK):
            world.liveperson.faults.set(FAULTS[number % len(FAULTS)], account=account)
        with Reader(world, WELL) as reader:
            time.sleep(1.3 * LIFE)  # the stored tokens are to expire unless they are refreshed
        assert reader.failures == []
        assert all(len(daemon.events("token.refreshed", account=account)) > 2 for account in WELL)
        assert all(daemon.events("refresh.failed", account=account, stage="sentinel") for account in SICK)
        daemon.stop()
