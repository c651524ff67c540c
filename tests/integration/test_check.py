"""--check on a real OpenBao and a local LivePerson: accounts side by side, each remedy once, whatever is left out."""

import asyncio
import json
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.faults import Fault
from tests.integration.calls import on_a_terminal
from tests.integration.processes import Done, Scene, Settings, scene
from tests.integration.servers import Server, http, request

ACCOUNTS = [f"le5{number:02}" for number in range(12)]
DEEP = "a/b/c/d/e/f/g/h"
"""As many folders as are searched."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("check")) as made:
        for name in ACCOUNTS:
            made.add_account(name)
        yield made


def check(made: Scene, changes: Settings | None = None) -> tuple[Done, list[dict[str, Any]]]:
    done = made.call("--check", "--output", "json", changes=changes)
    return done, done.document["checks"]


class Domains(Server):
    """A Domain API that answers none before so many ask at the same time."""

    def __init__(self, host: str, together: int) -> None:
        super().__init__(self._answer)
        self._host = host
        self._together = together
        self._are_there = asyncio.Event()
        self._asking = 0
        self.peak = 0

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            account = (await request(reader)).split(b"/account/")[1].split(b"/")[0].decode()
            self._asking += 1
            self.peak = max(self.peak, self._asking)
            if self.peak == self._together:
                self._are_there.set()
            await self._are_there.wait()
            await asyncio.sleep(0.2)  # one too many would come now
            self._asking -= 1
            body = {"service": "sentinel", "account": account, "baseURI": self._host}
            writer.write(http(json.dumps(body).encode()))


def test_accounts_are_checked_side_by_side_within_the_limits_with_a_progress_bar_on_a_terminal(made: Scene) -> None:
    with Domains(made.liveperson.hosts["va"], together=4) as domains:
        changes = {"APPJWT_SENTINEL_DOMAIN_API": domains.url, "APPJWT_SENTINEL_MAX_IN_FLIGHT": "4"}
        status, out, told = on_a_terminal(made, "--check", "--output", "json", changes=changes)
    checks = [line["check"] for line in json.loads(out)["checks"] if line["check"].startswith("account ")]
    assert (status, domains.peak) == (0, 4)
    assert checks == [f"account {name}" for name in ACCOUNTS]
    assert re.search(rf"checking.*━.*\d+/{len(ACCOUNTS)}", told)
    done, _ = check(made)
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize(
    ("changes", "detail", "remedy"),
    [
        (
            {"APPJWT_VAULT_ROLE_ID": "wrong"},
            "approle login: status 400, invalid role or secret ID",
            "see vault.role_id and vault.secret_id_file: the secret_id may have expired or be used up",
        ),
        (
            {"APPJWT_VAULT_AUTH_MOUNT": "elsewhere"},
            "approle login: status 403, permission denied",
            "see vault.auth_mount",
        ),
    ],
)
def test_a_refused_login_has_its_remedy_once(changes: Settings, detail: str, remedy: str, made: Scene) -> None:
    done, checks = check(made, changes)
    assert done.status == 3
    assert checks[-1] == {"check": "login", "ok": False, "detail": detail, "remedy": remedy}
    table = made.call("--check", changes=changes).out
    assert table.count(remedy) == 1


def test_no_line_that_failed_says_its_remedy_twice(made: Scene) -> None:
    kv = made.openbao.client.secrets.kv.v2
    kv.create_or_update_secret(f"liveperson/tokens/{ACCOUNTS[0]}", {"a": "b"})
    inside = {"APPJWT_TOKENS_MOUNT": "secret/team"}
    socks = {"HTTPS_PROXY": "socks5://proxy.invalid:1080", "APPJWT_VAULT_ADDRESS": "https://vault.invalid"}
    elsewhere = {"HTTPS_PROXY": "socks5://proxy.invalid", "APPJWT_SENTINEL_DOMAIN_API": "https://api.proxied.invalid"}
    try:
        for changes in ({}, inside, socks, elsewhere):
            done, checks = check(made, changes)
            failed = [line for line in checks if not line["ok"]]
            assert done.status == (3 if changes is socks else 1)
            assert failed
            for line in failed:
                assert line["remedy"], line
                assert line["remedy"] not in line["detail"]
    finally:
        kv.delete_metadata_and_all_versions(f"liveperson/tokens/{ACCOUNTS[0]}")


def test_an_account_deeper_than_8_folders_is_told_once_and_by_a_line_of_check(made: Scene) -> None:
    for name in (f"{DEEP}/le520", f"{DEEP}/i/le521", f"{DEEP}/i/j/le522"):
        made.add_account(name, account_id=name.rpartition("/")[2])
    daemon = made.daemon()
    daemon.wait_for("token.refreshed", account=f"{DEEP}/le520")
    made.add_account("le523")
    daemon.wait_for("account.added", account="le523")  # by one more sync at least
    (warning,) = daemon.events("accounts.synced", level="warning")
    daemon.stop()
    folder, error = f"liveperson/accounts/{DEEP}/i", "it is more than 8 folders deep: the accounts in it are not found"
    assert (warning["folder"], warning["error"]) == (folder, error)
    done, checks = check(made)
    (failed,) = [line for line in checks if not line["ok"]]
    assert failed == {"check": f"folder {folder}", "ok": False, "detail": error, "remedy": "move them up"}
    assert done.status == 1
    assert not daemon.events(account=f"{DEEP}/i/le521")
    for name in (f"{DEEP}/i/le521", f"{DEEP}/i/j/le522"):
        made.openbao.client.secrets.kv.v2.delete_metadata_and_all_versions(f"liveperson/accounts/{name}")


def test_who_is_refused_at_a_start_is_tried_once_whatever_succeeds_beside_it(tmp_path: Path) -> None:
    with scene(tmp_path / "scene") as made:
        good, wrong, unknown = "le530", "le531", "le532"
        made.add_account(good)
        app = made.liveperson.add_account(wrong)
        for name in (wrong, unknown):
            made.openbao.put_account(name, {"client_id": app.client_id, "client_secret": "of-another-app"})
        made.liveperson.faults.set(Fault(delay=1), account=good)  # the others are refused before it succeeds
        daemon = made.daemon()
        daemon.wait_for("token.refreshed", account=good)
        for number in range(2):  # more successes, and a few syncs
            made.add_account(f"le54{number}")
            daemon.wait_for("token.refreshed", account=f"le54{number}")
        daemon.stop()
        asked = [(seen.service, seen.account_id) for seen in made.liveperson.seen]
        assert (asked.count(("sentinel", wrong)), asked.count(("domain", unknown))) == (1, 1)
        assert [len(daemon.events("refresh.failed", account=name)) for name in (wrong, unknown)] == [1, 1]
