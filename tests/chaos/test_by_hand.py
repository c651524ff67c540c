"""Cases that were first found by hand."""

import itertools
import json
import time
from asyncio import StreamReader, StreamWriter
from datetime import datetime
from pathlib import Path

from sandbox.world import POLICIES
from tests.chaos.stand import short_logins
from tests.integration.calls import by_token
from tests.integration.processes import Daemon, Reader, Scene, Settings, scene
from tests.integration.servers import Server, http, request

ACCOUNT = "le81823118"
POLICY = (POLICIES / "worker.hcl").read_text()


def of_accounts(daemon: Daemon, *events: str) -> list[str]:
    return [line["event"] for line in daemon.events() if line["event"] in events]


def test_a_folder_that_may_not_be_listed_keeps_nobody_else_out_and_is_named_once(tmp_path: Path) -> None:
    with scene(tmp_path / "world") as world:
        deny = 'path "secret/metadata/liveperson/accounts/team/" { capabilities = ["deny"] }\n'
        world.openbao.policy("appjwt-worker", POLICY + deny)
        world.add_account(ACCOUNT)
        world.add_account("team/inside", account_id="12345678")
        daemon = world.daemon()
        daemon.wait_for("token.refreshed", account=ACCOUNT)
        time.sleep(3)  # a few more syncs
        (line,) = daemon.events("accounts.synced", level="warning")
        assert line["folder"] == "liveperson/accounts/team"
        assert "status 403" in line["error"]

        world.openbao.policy("appjwt-worker", POLICY)
        daemon.wait_for("token.refreshed", account="team/inside")
        world.openbao.policy("appjwt-worker", POLICY + deny)
        daemon.wait_for("accounts.synced", level="warning", count=2)
        assert of_accounts(daemon, "account.removed") == []
        daemon.stop()


def pauses_of(daemon: Daemon, account: str) -> list[float]:
    """Seconds between its failed attempts."""
    lines = daemon.events("refresh.failed", account=account)
    moments = [datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines]
    return [after - before for before, after in itertools.pairwise(moments)]


def test_a_policy_taken_away_from_many_accounts_does_not_make_many_logins(tmp_path: Path) -> None:
    accounts = [f"le{number:08}" for number in range(30)]
    with scene(tmp_path / "world", life=60) as world:
        for account in accounts:
            world.add_account(account)
        daemon = world.daemon({"APPJWT_REFRESH_AT": "0.3", "APPJWT_SENTINEL_MAX_PER_SECOND": "100"})
        for account in accounts:
            daemon.wait_for("token.refreshed", account=account)
        with Reader(world, accounts) as reader:
            world.openbao.policy("appjwt-worker", "# nothing")
            time.sleep(20)
            world.openbao.policy("appjwt-worker", POLICY)
            before = len(daemon.events("token.refreshed"))
            daemon.wait_for("token.refreshed", count=before + 30, within=40)
        assert reader.failures == []
        assert len({line["account"] for line in daemon.events("refresh.failed", status=403)}) > 10
        assert len(daemon.events("vault.login")) <= 3
        pauses = [pause for account in accounts for pause in pauses_of(daemon, account)[:1]]
        assert max(pauses) - min(pauses) > 0.4  # of 5 s up to a fifth is taken off: they do not come back in step
        daemon.wait_for("vault.recovered", within=40)  # with the next sync, which may be later than the refreshes
        assert len(daemon.events("vault.unavailable")) == len(daemon.events("vault.recovered")) == 1
        daemon.stop()


def cpu(daemon: Daemon) -> float:
    """Seconds that it has computed for."""
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_renewal_that_hangs_makes_no_busy_loop(tmp_path: Path) -> None:
    with short_logins(tmp_path) as stand:
        held = stand.way.hold("auth/token/renew-self", "before")
        assert held.caught.wait(30)
        before, mark = cpu(stand.daemon), stand.mark()
        time.sleep(5)
        assert cpu(stand.daemon) - before < 2
        assert len(stand.lines(mark, "vault.unavailable")) <= 1
        held.drop()


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    """Answer as a Vault that repeats in its error what it was sent: head, with the token, and body."""
    while True:
        asked = (await request(reader)).decode()
        writer.write(http(json.dumps({"errors": [asked]}).encode(), status="400 Bad Request"))
        await writer.drain()


def test_what_vault_repeats_of_a_secret_is_told_to_nobody(tmp_path: Path) -> None:
    with Scene(tmp_path / "world") as world, Server(echo) as server:
        address = {"APPJWT_VAULT_ADDRESS": server.url}
        logins: list[Settings] = [address, {**by_token(world, "appjwt-worker"), **address}]
        for changes in logins:
            done = world.call("--refresh", ACCOUNT, changes={"APPJWT_LOG_LEVEL": "debug", **changes})
            assert done.status == 3
            assert "status 400" in done.err
            daemon = world.daemon(changes)
            daemon.wait_for("vault.unavailable")
            daemon.stop()
    # the scene has searched all of it
