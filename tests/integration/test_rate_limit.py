"""A rate limit quota of a real OpenBao on the KV mount: a matter of pace, by the daemon and by hand.

The limit counts by client address, so requests of the tests count too: they check while the limit is lifted.
"""

import itertools
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from structlog.testing import capture_logs

from tests.integration.calls import account_store, token_store
from tests.integration.processes import Scene, scene
from worker import net
from worker.schedule.boottime import boottime
from worker.vault.errors import VaultError
from worker.vault.login import AppRoleLogin
from worker.vault.session import VaultSession

ACCOUNTS = [f"le40{number:02}" for number in range(24)]
QUOTA = 15
"""Requests a second."""


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / "scene", vault_tls=False) as made:
        yield made


@contextmanager
def limited(made: Scene, path: str = "secret/", rate: float = QUOTA, **more: Any) -> Iterator[None]:
    adapter = made.openbao.client.adapter
    adapter.post("/v1/sys/quotas/rate-limit/test", json={"path": path, "rate": rate, **more})
    try:
        yield
    finally:
        adapter.delete("/v1/sys/quotas/rate-limit/test")


def answered(url: str) -> tuple[int, int]:
    """Count the requests to the mount that were let through, and those that were refused."""
    metrics = requests.get(f"{url}/metrics", timeout=5).text
    found = re.findall(r'appjwt_vault_requests_total\{operation="(\w+)",status="(\w+)"\} (\S+)', metrics)
    counts = [(status, float(count)) for operation, status, count in found if operation not in ("login", "renew")]
    refused = sum(count for status, count in counts if status == "429")
    return int(sum(count for _, count in counts) - refused), int(refused)


def test_a_first_start_goes_at_the_pace_of_the_limit(made: Scene) -> None:
    for name in ACCOUNTS:
        made.add_account(name)
    with limited(made):
        settings = {"APPJWT_HTTP_LISTEN": "127.0.0.1:0", "APPJWT_ACCOUNTS_SYNC_INTERVAL": "60s"}
        daemon = made.daemon(settings)
        url = daemon.url
        began = time.monotonic()
        daemon.wait_for("token.refreshed", count=len(ACCOUNTS))
        took = time.monotonic() - began
        assert requests.get(f"{url}/livez", timeout=5).ok
        passed, refused = answered(url)
    assert passed >= 5 * len(ACCOUNTS)
    assert 0 < refused < passed
    assert took < 2 * passed / QUOTA
    daemon.stop()
    (spell,) = daemon.events("vault.throttled")
    assert (spell["mount"], spell["level"]) == ("secret", "warning")
    assert 1 < spell["duration"] <= took + 2
    assert not daemon.events(level="error")
    assert not daemon.events("vault.warning")
    assert {made.liveperson.mints(name) for name in ACCOUNTS} == {1}
    assert all(len(made.versions(name)) == 1 for name in ACCOUNTS)


def test_by_hand_all_goes_at_the_pace_of_the_limit_and_ends_well(made: Scene) -> None:
    names = ACCOUNTS[:6]
    for name in names:
        made.add_account(name)
    with limited(made, rate=8):
        refreshed = made.call("--refresh-all", "--output", "json")
        status, check = made.call("--status"), made.call("--check")
    assert (refreshed.status, refreshed.document["refreshed"], refreshed.document["failed"]) == (0, len(names), 0)
    assert (status.status, check.status) == (0, 0), check.out
    assert refreshed.err.count("vault.throttled") == 1
    assert "429" not in status.out + check.out
    assert {made.liveperson.mints(name) for name in names} == {1}


def test_a_limit_on_all_of_vault_slows_down_sys_too(made: Scene) -> None:
    made.add_account("le400")
    with limited(made, path="", rate=3):
        check = made.call("--check")
    assert check.status == 0, check.out


@dataclass
class Reach:
    """A session of the worker's own, by a role whose settings a test may choose, and a clock that it may set."""

    made: Scene
    http: net.Session
    ahead: float = 0.0

    def session(self, **role: Any) -> VaultSession:
        role_id, secret_id = self.made.openbao.approle("appjwt-worker", ["appjwt-worker"], **role)
        file = self.made.folder / "secret_id"
        file.write_text(secret_id)
        return VaultSession(
            self.made.openbao.address,
            AppRoleLogin("approle", role_id, file),
            http=self.http,
            namespace=None,
            timeout=timedelta(seconds=10),
            clock=lambda: boottime() + self.ahead,
        )


@pytest.fixture
def reach(made: Scene) -> Iterator[Reach]:
    made.add_account("le400")
    with net.session(user_agent="test") as http:
        yield Reach(made, http)


def test_retry_after_is_waited_for_where_vault_sends_it(reach: Reach) -> None:
    """Vault sends it only if configured to."""
    adapter, session = reach.made.openbao.client.adapter, reach.session()
    adapter.post("/v1/sys/quotas/config", json={"enable_rate_limit_response_headers": True})
    accounts, asked = account_store(session), []
    session.on_request = lambda _operation, status, _: asked.append((status, time.monotonic()))
    accounts.read("le400")
    with limited(reach.made, rate=1, interval="4s"):
        for _ in range(2):
            accounts.read("le400")
    waits = [after[1] - before[1] for before, after in itertools.pairwise(asked) if before[0] == 429]
    assert waits
    assert max(waits) > 1.5
    session.close()


def test_one_spell_is_one_line_and_no_outage(reach: Reach) -> None:
    session = reach.session()
    accounts, tokens = account_store(session), token_store(session)
    accounts.read("le400")
    with capture_logs() as logs, limited(reach.made, rate=2):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(accounts.read, ["le400"] * 8))
        tokens.read("le400")
        session.close()
    assert [(line["event"], line["mount"]) for line in logs] == [("vault.throttled", "secret")]


def test_what_a_limit_refuses_uses_up_no_login(reach: Reach) -> None:
    """Vault counts such a request for no use either."""
    session, asked = reach.session(token_num_uses=25), []
    session.on_request = lambda operation, status, _: asked.append((operation, status))
    session.min_remaining = lambda: 0.4  # a try each tenth of a second
    accounts = account_store(session)
    accounts.read("le400")
    with limited(reach.made, rate=1, interval="4s"):
        for _ in range(2):
            accounts.read("le400")
    assert asked.count(("read_account", 429)) > 25
    assert asked.count(("login", 200)) == 1
    session.close()


# No gate delays requests about the login


def test_a_renewal_that_a_limit_refuses_is_tried_again_and_costs_no_login(reach: Reach) -> None:
    session = reach.session(token_ttl="60s")
    accounts = account_store(session)
    with capture_logs() as logs:
        accounts.read("le400")
        reach.ahead = 31.0
        with limited(reach.made, path="auth/token/", rate=1, interval="1h"):
            reach.made.openbao.client.auth.token.lookup_self()
            accounts.read("le400")
        accounts.read("le400")
        assert [line["event"] for line in logs] == ["vault.login"]
        reach.ahead += 5.0
        accounts.read("le400")
        assert [line["event"] for line in logs] == ["vault.login", "vault.renewed"]
        session.close()


def test_a_login_that_a_limit_refuses_is_an_outage(reach: Reach) -> None:
    """Nothing works without a login, and the cause is reported."""
    session = reach.session()
    with limited(reach.made, path="auth/approle/", rate=1, interval="1h"):
        reach.made.openbao.client.auth.approle.read_role_id("appjwt-worker")
        began = time.monotonic()
        with capture_logs() as logs, pytest.raises(VaultError, match="approle login: status 429"):
            account_store(session).read("le400")
    assert time.monotonic() - began < 1
    assert [line["event"] for line in logs] == ["vault.unavailable"]
