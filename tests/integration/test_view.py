"""--status, page, JSON, metrics and alerts show an account alike at any `refresh.at`, through a whole cycle."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sandbox.faults import Fault
from tests.integration.processes import Daemon, Scene, eventually, scene

RULES = Path(__file__).parents[2] / "helm" / "appjwt-worker" / "alerts" / "appjwt-worker.rules.yaml"
FRACTIONS = ("0.3", "0.5", "0.8", "0.9")
LIFE = 36.0
ROUNDED = 0.001
ANSWER = 0.1
"""Seconds by which one answer of Vault may take longer than the next."""
DATE = 1.0
"""Seconds by which two readers of Vault's Date may differ, and by which a stored moment is rounded."""
STYLES = {"well": "ok", "warn": "warning", "alarm": "critical"}
"""Severity by the style of a row on the page."""


def severity(margin: float) -> str:
    return "ok" if margin >= 0.5 else "warning" if margin >= 0.2 else "critical"


def between(low: float, high: float) -> set[str]:
    """Return the severities that a margin between these may have."""
    limits = [limit for limit in (0.2, 0.5) if low <= limit <= high]
    return {severity(margin) for margin in (low, high, *limits)}


@dataclass(frozen=True)
class Alerts:
    """The limits in the alerts' expressions, applied to scraped metrics as Prometheus does."""

    critical: float
    warning: float
    overdue: float

    @classmethod
    def read(cls) -> "Alerts":
        rules = {rule["alert"]: rule["expr"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}

        def limit(alert: str, pattern: str) -> float:
            found = re.fullmatch(pattern, " ".join(rules[alert].split()))
            assert found, rules[alert]
            return float(found[1])

        margin = r"max by \(job, namespace\) \(appjwt_min_margin_ratio\) < ([\d.]+)"
        of_account = r"max by \(job, namespace, account\) \(appjwt_token_{}_timestamp_seconds\)"
        expiry, refresh = of_account.format("expiry"), of_account.format("refresh")
        overdue = rf"count by \(job, namespace\) \( {expiry} - time\(\) < ([\d.]+) \* \( {expiry} - {refresh} \) \) > 0"
        return cls(
            limit("AppJWTTokenExpiryCritical", margin),
            limit("AppJWTTokenExpirySoon", margin),
            limit("AppJWTRefreshOverdue", overdue),
        )

    def severity(self, metrics: dict[tuple[str, ...], float]) -> str:
        least = metrics[("appjwt_min_margin_ratio",)]
        return "critical" if least < self.critical else "warning" if least < self.warning else "ok"

    def overdue_in(self, metrics: dict[tuple[str, ...], float], account: str, now: float) -> float:
        """Return the seconds until AppJWTRefreshOverdue counts the account, below 0 if it does."""
        expiry = metrics["appjwt_token_expiry_timestamp_seconds", account]
        window = expiry - metrics["appjwt_token_refresh_timestamp_seconds", account]
        return expiry - now - self.overdue * window


ALERTS = Alerts.read()


class Fleet:
    """The daemon of one `refresh.at`, its two accounts, and all that can be seen of them."""

    def __init__(self, world: Scene, fraction: str) -> None:
        self._world = world
        self.fraction = float(fraction)
        place = f"at{fraction[2:]}0"
        self.well, self.ill = f"well{place}", f"ill{place}"
        for account in (self.well, self.ill):
            world.add_account(f"{place}/{account}", account_id=account)
        self._changes = {
            "APPJWT_ACCOUNTS_PREFIX": f"liveperson/accounts/{place}",
            "APPJWT_TOKENS_PREFIX": f"liveperson/tokens/{place}",
            "APPJWT_REFRESH_AT": fraction,
            "APPJWT_REFRESH_JITTER": "0.01",
            "APPJWT_TOKENS_RESYNC_INTERVAL": "1s",
            "APPJWT_HTTP_LISTEN": "127.0.0.1:0",
        }
        self.seen: list[tuple[str, str, float]] = []
        """Moment by moment the failing account's state, severity and margin, by --status."""

    def start(self) -> Daemon:
        daemon = self._world.daemon(self._changes)
        self._url = daemon.url
        daemon.wait_for("token.refreshed", account=self.well)
        daemon.wait_for("token.refreshed", account=self.ill)
        return daemon

    def fall_ill(self) -> None:
        """Give the failing account its last token, planned for the usual moment as it is not its first one."""
        new = None
        while new is None:  # the daemon may have obtained one in the same second
            done = self._world.call("--refresh", self.ill, "--output", "json", changes=self._changes)
            (row,) = done.document["accounts"]
            new = row["fingerprint"] if row["outcome"] == "refreshed" else None
        eventually(lambda: self._json()[self.ill]["fingerprint"] == new)
        self._world.liveperson.faults.set(Fault(status=401), account=self.ill)

    def look(self) -> None:
        """Look everywhere once, and compare."""
        before = self._json()
        page = requests.get(f"{self._url}/", timeout=5).text
        scraped_at = time.time()
        metrics = self._metrics()
        after = self._json()
        status = self._world.call("--status", "--output", "json", changes=self._changes)
        later = self._json()
        rows = {row["account"]: row for row in status.document["accounts"]}
        for account in (self.well, self.ill):
            if before[account]["fingerprint"] == after[account]["fingerprint"]:
                self._compare_daemon(before[account], after[account], page, metrics, scraped_at)
            if before[account]["fingerprint"] == later[account]["fingerprint"]:
                self._compare_status(before[account], later[account], rows[account])
        if all(before[account]["fingerprint"] == after[account]["fingerprint"] for account in before):
            least = [min(row["margin"] for row in rows.values()) for rows in (after, before)]
            assert least[0] - ROUNDED <= metrics[("appjwt_min_margin_ratio",)] <= least[1] + ROUNDED
            assert ALERTS.severity(metrics) in between(least[0] - ROUNDED, least[1] + ROUNDED)
        row = rows[self.ill]
        self.seen.append((row["state"], severity(row["margin"]), row["margin"]))

    def _compare_daemon(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        page: str,
        metrics: dict[tuple[str, ...], float],
        scraped_at: float,
    ) -> None:
        account, low, high = before["account"], after["margin"] - ROUNDED, before["margin"] + ROUNDED
        states = {before["state"], after["state"]}
        pattern = rf'<tr class="(\w+)">\s*<td data-of="account"[^>]*>{account}</td>(.*?)</tr>'
        (row,) = re.findall(pattern, page, re.DOTALL)
        assert STYLES[row[0]] in between(low, high)
        (state,) = re.findall(r'<span class="state (\w+)">\1</span>', row[1])
        assert state in states
        assert ("no live token" in row[1]) <= (low <= 0)
        failing = ("appjwt_account_state", account, "failing") in metrics
        assert ("failing" if failing else "ok") in states
        late = ALERTS.overdue_in(metrics, account, scraped_at) < 0
        window = self._window(before)
        assert late in {margin < 0.5 for margin in (low - DATE / window, high + DATE / window)}

    def _compare_status(self, before: dict[str, Any], later: dict[str, Any], status: dict[str, Any]) -> None:
        inexact = ROUNDED + DATE * (1 + before["margin"]) / self._window(before)
        low, high = later["margin"] - inexact, before["margin"] + inexact
        assert low <= status["margin"] <= high, (before, status, later)
        assert severity(status["margin"]) in between(low, high)
        states = {before["state"], later["state"]} | ({"ok", "failing"} if low <= 0.5 <= high else set())
        assert status["state"] in states
        assert status["fingerprint"] == before["fingerprint"]
        for key in ("issued_at", "expires_at", "refresh_at"):
            apart = datetime.fromisoformat(status[key]) - datetime.fromisoformat(before[key])
            assert abs(apart) <= timedelta(seconds=2 * DATE), key

    def _window(self, row: dict[str, Any]) -> float:
        planned = datetime.fromisoformat(row["expires_at"]) - datetime.fromisoformat(row["refresh_at"])
        return planned.total_seconds() or 1.0

    def _json(self) -> dict[str, dict[str, Any]]:
        found = requests.get(f"{self._url}/status.json", timeout=5).json()["accounts"]
        return {row["account"]: row for row in found}

    def _metrics(self) -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(requests.get(f"{self._url}/metrics", timeout=5).text)
        return {
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        }

    def planned_share(self) -> float:
        """Return the share of its lifetime after which the failing account's token was to be replaced."""
        row = self._json()[self.ill]
        issued, planned = (datetime.fromisoformat(row[key]) for key in ("issued_at", "refresh_at"))
        return (planned - issued).total_seconds() / LIFE


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path, life=LIFE - 6) as made:
        yield made


def test_every_view_of_an_account_agrees_at_each_moment_at_any_refresh_at(world: Scene) -> None:
    fleets = [Fleet(world, fraction) for fraction in FRACTIONS]
    with ThreadPoolExecutor(len(fleets)) as pool:

        def each(do: Callable[[Fleet], object]) -> None:
            for _ in pool.map(do, fleets):
                pass

        daemons = list(pool.map(Fleet.start, fleets))
        world.liveperson.token_life = timedelta(seconds=LIFE)
        each(Fleet.fall_ill)
        for fleet in fleets:
            assert fleet.planned_share() == pytest.approx(fleet.fraction, abs=0.02 + DATE / LIFE)
        while not all(fleet.seen and fleet.seen[-1][2] == 0 for fleet in fleets):
            each(Fleet.look)
        for daemon in daemons:
            daemon.stop()
    for fleet in fleets:
        assert fleet.seen[0][:2] == ("ok", "ok") or fleet.fraction < 0.5, fleet.seen
        assert fleet.seen[-1] == ("failing", "critical", 0), fleet.seen
        margins = [margin for *_, margin in fleet.seen]
        # Vault's Date has whole seconds, and is taken to be as old as its answer took: not to the millisecond
        inexact = ANSWER / (LIFE * (1 - fleet.fraction))
        assert all(later <= earlier + inexact for earlier, later in pairwise(margins)), margins
        early = [state for state, _, margin in fleet.seen if margin > 1 + DATE / (LIFE * (1 - fleet.fraction))]
        assert set(early) <= {"ok"}  # before its planned refresh nothing is failing
