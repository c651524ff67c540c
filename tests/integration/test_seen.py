"""Problems are reported alike in log, metrics, page and document, and the page is valid for a browser."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from sandbox.faults import Fault
from sandbox.screenshots import CHROMIUM
from tests.integration.processes import Daemon, Scene, eventually, scene

FAULTS: dict[str, tuple[Fault, str, str]] = {
    "refuses": (Fault(refuse=True), "sentinel", "connection lost"),
    "hangs": (Fault(hang=True), "sentinel", "no complete answer within 3 s"),
    "unauthorised": (Fault(status=401), "sentinel", "answers 401"),
    "forbidden": (Fault(status=403, body=b"<html>"), "sentinel", "answers 403: <html>"),
    "throttled": (Fault(status=429, headers={"Retry-After": "60"}), "sentinel", "answers 429"),
    "broken": (Fault(status=500, body=b'{"internalErrorCode": "9007"}'), "sentinel", "answers 500: "),
    "redirected": (Fault(redirect_to="https://localhost/"), "sentinel", "a redirect (307)"),
    "repeated": (Fault(echo_request=True), "sentinel", "answers 400: "),
    "flooded": (Fault(body_size=5 * 1024 * 1024), "sentinel", "the answer is larger than 256 KiB"),
    "bombed": (Fault(gzip_bomb=5 * 1024 * 1024), "sentinel", "the answer is compressed, though that was not asked for"),
    "cut": (Fault(cut=True), "sentinel", "the answer is broken"),
    "empty": (Fault(answer=b"{}"), "sentinel", "without an access_token"),
    "crossed": (Fault(claims={"aud": "somebody-else"}), "claims", "aud: expected crossed, got somebody-else"),
    "unsigned": (Fault(header={"alg": "none"}), "claims", "alg: expected RS256, got none"),
    "ended": (Fault(claims={"iat": 1524642670, "exp": 1524646270}), "claims", "exp: expired at"),
}
"""By account: what is wrong with Sentinel's answers to it, the stage and the words that tell it."""
SPECIAL = {
    "unknown": ("domain", "the Domain API answers"),
    "spoilt": ("credentials", "client_secret: missing or empty"),
}


@dataclass
class Seen:
    """All that can be observed of the accounts after one attempt at each."""

    log: dict[str, dict[str, Any]]
    metrics: dict[tuple[str, ...], float]
    page: str
    document: dict[str, dict[str, Any]]
    status: dict[str, dict[str, Any]]
    metadata: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scene, Daemon, str]]:
    with scene(tmp_path_factory.mktemp("seen")) as made:
        made.settings |= {"APPJWT_HTTP_LISTEN": "127.0.0.1:0", "APPJWT_SENTINEL_TIMEOUT": "3s"}
        made.add_account("well")
        for account, (fault, _, _) in FAULTS.items():
            made.add_account(account)
            made.liveperson.faults.set(fault, account=account)
        made.add_account("unknown")
        made.liveperson.remove("unknown")
        made.add_account("spoilt", client_secret="")
        daemon = made.daemon()
        for account in (*FAULTS, *SPECIAL):
            daemon.wait_for("refresh.failed", account=account)
        daemon.wait_for("token.refreshed", account="well")
        yield made, daemon, daemon.url
        daemon.stop()


@pytest.fixture(scope="module")
def seen(world: tuple[Scene, Daemon, str]) -> Seen:
    made, daemon, url = world
    accounts = {*FAULTS, *SPECIAL}

    def told() -> bool:
        return all(made.custom_metadata(account).get("state") for account in accounts)

    eventually(told)
    lines = daemon.events("refresh.failed")
    families = text_string_to_metric_families(requests.get(f"{url}/metrics", timeout=5).text)
    status = made.call("--status", "--output", "json").document["accounts"]
    document = requests.get(f"{url}/status.json", timeout=5).json()["accounts"]
    return Seen(
        log={line["account"]: line for line in reversed(lines)},
        metrics={
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        },
        page=requests.get(f"{url}/", timeout=5).text,
        document={row["account"]: row for row in document},
        status={row["account"]: row for row in status},
        metadata={account: made.custom_metadata(account) for account in accounts},
    )


def timeless(text: str) -> str:
    """Another attempt may have been made meanwhile: its words are the same but for the time."""
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "then", text)


@pytest.mark.parametrize("account", [*FAULTS, *SPECIAL])
def test_log_metric_page_status_and_vault_name_each_fault_alike_after_one_attempt(account: str, seen: Seen) -> None:
    stage, words = FAULTS[account][1:] if account in FAULTS else SPECIAL[account]
    state = "invalid" if account == "spoilt" else "failing"
    line = seen.log[account]
    told = f"{stage}: {line['error']}"
    assert line["stage"] == stage
    assert words in line["error"]
    assert seen.metrics["appjwt_account_state", account, state] == 1
    assert seen.metrics["appjwt_consecutive_failures", account] >= 1
    for row in (seen.document[account], seen.status[account]):
        assert (row["state"], timeless(row["last_error"]), row["remaining"]) == (state, timeless(told), 0)
    noted_down = seen.metadata[account]
    assert (noted_down["state"], timeless(noted_down["last_error"])) == (state, timeless(told))
    (shown,) = re.findall(rf'<td data-of="account"[^>]*>{account}</td>(.*?)</tr>', seen.page, re.DOTALL)
    assert f">{state}</span>" in shown
    assert words in shown.replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"')


def test_who_is_well_is_told_so(seen: Seen) -> None:
    assert seen.document["well"]["state"] == seen.status["well"]["state"] == "ok"
    assert seen.document["well"]["fingerprint"] == seen.status["well"]["fingerprint"]
    assert ("appjwt_account_state", "well", "ok") not in seen.metrics
    left = seen.metrics["appjwt_token_expiry_timestamp_seconds", "well"]
    assert left - seen.metrics["appjwt_token_issued_timestamp_seconds", "well"] == pytest.approx(3600, abs=2)


def test_a_token_that_was_deleted_and_cannot_be_replaced_is_seen_as_none(tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        made.settings |= {"APPJWT_HTTP_LISTEN": "127.0.0.1:0", "APPJWT_TOKENS_RESYNC_INTERVAL": "1s"}
        for account in ("lost", "well"):
            made.add_account(account)
        daemon = made.daemon()
        url = daemon.url
        daemon.wait_for("token.refreshed", count=2)
        made.liveperson.faults.set(Fault(status=503), account="lost")
        made.openbao.client.secrets.kv.v2.delete_latest_version_of_secret("liveperson/tokens/lost")
        assert daemon.wait_for("refresh.failed", account="lost")["remaining"] == 0
        first = requests.get(f"{url}/status.json", timeout=5).json()["accounts"][0]
        assert (first["account"], first["remaining"], first["fingerprint"]) == ("lost", 0, None)
        assert "\nappjwt_min_remaining_ratio 0.0\n" in requests.get(f"{url}/metrics", timeout=5).text
        made.liveperson.faults.clear(account="lost")
        assert daemon.wait_for("token.refreshed", account="lost", count=2, within=30)["reason"] == "drift"
        daemon.stop()


def test_requests_are_counted_at_each_host_and_operation(seen: Seen, world: tuple[Scene, Daemon, str]) -> None:
    host = world[0].liveperson.hosts["va"]
    for status in ("200", "401", "403", "429", "500", "none"):
        assert seen.metrics["appjwt_sentinel_requests_total", host, status] >= 1, status
    for operation, status in (
        ("login", "200"),
        ("list", "200"),
        ("read_account", "200"),
        ("read_token", "404"),
        ("write_token", "200"),
        ("write_metadata", "204"),
    ):
        assert seen.metrics["appjwt_vault_requests_total", operation, status] >= 1, operation
    assert abs(seen.metrics["appjwt_clock_skew_seconds", "vault"]) < 5
    assert abs(seen.metrics["appjwt_clock_skew_seconds", "sentinel"]) < 5


@pytest.mark.tool("chromium")
def test_a_browser_shows_the_page_and_has_nothing_to_complain_of(
    world: tuple[Scene, Daemon, str], tmp_path: Path
) -> None:
    command = [*CHROMIUM, f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    done = subprocess.run(
        [*command, f"{world[2]}/?q=forbidden"], capture_output=True, text=True, timeout=60, check=True
    )
    assert re.findall(r'<td data-of="account"[^>]*>(.*?)</td>', done.stdout) == ["forbidden"]
    assert "&lt;html&gt;" in done.stdout
    assert "CONSOLE" not in done.stderr
    headers = requests.get(f"{world[2]}/", timeout=5).headers
    assert "script-src" not in headers["Content-Security-Policy"]
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
