"""The daemon at a real OpenBao whose 404s do not mean what they seem to: a gateway's own, and a mount that changed."""

from asyncio import StreamReader, StreamWriter, open_connection
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from sandbox.world import POLICIES
from tests.integration.processes import Daemon, Reader, eventually, scene
from tests.integration.servers import Server, http, request

NO_ROUTE = {
    "empty": http(status="404 Not Found"),
    "other JSON": http(b'{"message":"no Route matched with those values"}', status="404 Not Found"),
    "a page": http(b"<html>404 page not found</html>", "Content-Type: text/html", status="404 Not Found"),
}
ACCOUNTS = [f"le40{number}" for number in range(6)]


class Gateway(Server):
    """Passes each request on to OpenBao, or gives the answer of one that has no route to it."""

    def __init__(self, address: str) -> None:
        super().__init__(self._pass_on)
        self._there = urlsplit(address)
        self.answer: bytes | None = None
        self.refused = 0

    def has_refused(self, requests: int) -> bool:
        return self.refused >= requests

    async def _pass_on(self, reader: StreamReader, writer: StreamWriter) -> None:
        asked = await request(reader)
        if self.answer is not None:
            self.refused += 1
            writer.write(self.answer)
            return
        there_reader, there_writer = await open_connection(self._there.hostname, self._there.port)
        line, rest = asked.split(b"\r\n", 1)
        there_writer.write(line + b"\r\nConnection: close\r\n" + rest.replace(b"Connection: keep-alive\r\n", b""))
        writer.write(await there_reader.read())
        there_writer.close()


def refreshed_again(daemon: Daemon) -> None:
    """Wait until each account's token was refreshed once more."""
    so_far = {name: len(daemon.events("token.refreshed", account=name)) for name in ACCOUNTS}
    for name, count in so_far.items():
        daemon.wait_for("token.refreshed", account=name, count=count + 1)


def test_no_404_but_vaults_own_removes_an_account(tmp_path: Path) -> None:
    """Gateways and ingresses that lose their route say it in such ways."""
    with ExitStack() as stack:
        made = stack.enter_context(scene(tmp_path / "scene", life=6, vault_tls=False))
        gateway = stack.enter_context(Gateway(made.openbao.address))
        for name in ACCOUNTS:
            made.add_account(name)
        daemon = made.daemon({"APPJWT_VAULT_ADDRESS": gateway.url})
        refreshed_again(daemon)
        for number, answer in enumerate(NO_ROUTE.values(), 1):
            gateway.answer, enough = answer, gateway.refused + 8 * len(ACCOUNTS)
            daemon.wait_for("vault.unavailable", count=number)
            eventually(partial(gateway.has_refused, enough))
            gateway.answer = None
            daemon.wait_for("vault.recovered", count=number)
            refreshed_again(daemon)
        failures = daemon.events("refresh.failed")
        assert {line["account"] for line in failures} == {*ACCOUNTS}
        assert {line["kind"] for line in failures} == {"transient"}
        assert all("the answer is not Vault's" in line["error"] for line in failures)
        assert not daemon.events("account.removed")
        assert not daemon.events("account.added")
        daemon.stop()


def test_no_account_is_removed_where_their_mount_is_upgraded_meanwhile(tmp_path: Path) -> None:
    policy = (POLICIES / "worker.hcl").read_text() + 'path "old/*" { capabilities = ["list", "read"] }'
    with scene(tmp_path / "scene", life=12) as made:
        made.openbao.policy("appjwt-worker", policy)
        made.openbao.mount_kv("old", 1)
        kv = made.openbao.client.secrets.kv.v1
        for name in ACCOUNTS:
            secret = asdict(made.liveperson.add_account(name))
            made.secrets.append(secret["client_secret"])
            kv.create_or_update_secret(f"liveperson/accounts/{name}", secret, mount_point="old")
        daemon = made.daemon({"APPJWT_ACCOUNTS_MOUNT": "old"})
        refreshed_again(daemon)
        with Reader(made, ACCOUNTS) as reader:
            made.openbao.client.sys.tune_mount_configuration("old", options={"version": "2"})
            for _ in range(3):
                refreshed_again(daemon)
        assert reader.failures == []
        assert {line["kind"] for line in daemon.events("refresh.failed")} <= {"transient"}
        for event in ("account.removed", "account.added", "worker.internal_error"):
            assert not daemon.events(event)
        assert not [line for line in daemon.events("token.refreshed") if line.get("remaining_at_refresh", 1) <= 0]
        daemon.stop()
