"""A real Prometheus that scrapes a real daemon and judges by the real rules, in short."""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import requests
import yaml

from sandbox.faults import Fault
from tests.integration.processes import Daemon, Scene, eventually, scene

RULES: Final = Path(__file__).parents[2] / "helm" / "appjwt-worker" / "alerts" / "appjwt-worker.rules.yaml"
LIFE: Final = 30
"""Seconds in place of an hour; the rules go by shares of life, so they stay as they are."""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    return found


def shortened() -> str:
    """The rules with `for` and the ranges of counters in seconds for minutes; a range holds a few scrapes at least."""

    def seconds(found: re.Match[str]) -> str:
        return f"[{max(5, int(found[1]))}s]"

    document = yaml.safe_load(RULES.read_text())
    for rule in document["groups"][0]["rules"]:
        rule["expr"] = re.sub(r"\[(\d+)m\]", seconds, rule["expr"])
        if "for" in rule:
            rule["for"] = rule["for"].removesuffix("m") + "s"
    return yaml.safe_dump(document)


class Prometheus:
    def __init__(self, folder: Path, target: str) -> None:
        (folder / "rules.yaml").write_text(shortened())
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "appjwt-worker", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        flags = ["--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["prometheus", f"--web.listen-address={self.url.removeprefix('http://')}", *flags],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually(self._is_ready)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/-/ready", timeout=5).ok
        except requests.ConnectionError:
            return False

    def firing(self) -> set[str]:
        told = requests.get(f"{self.url}/api/v1/alerts", timeout=5).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in told if alert["state"] == "firing"}

    def query(self, expr: str) -> list[Any]:
        answer = requests.get(f"{self.url}/api/v1/query", params={"query": expr}, timeout=5).json()
        assert answer["status"] == "success", answer
        found: list[Any] = answer["data"]["result"]
        return found

    def until(self, alert: str, *, fires: bool, within: float = 90) -> float:
        """Seconds until it fires, or no longer does."""
        began = time.monotonic()
        eventually(lambda: (alert in self.firing()) is fires, within)
        return time.monotonic() - began


@contextmanager
def watched(folder: Path, accounts: int = 4) -> Iterator[tuple[Scene, Daemon, Prometheus]]:
    """A daemon with all its accounts well, and a Prometheus that has seen it for a while."""
    folder.mkdir(exist_ok=True)
    with scene(folder / "world", life=LIFE) as world:
        port = free_port()
        world.settings |= {"APPJWT_HTTP_LISTEN": f"127.0.0.1:{port}", "APPJWT_SENTINEL_TIMEOUT": "2s"}
        world.settings |= {"APPJWT_VAULT_TIMEOUT": "2s", "APPJWT_TOKENS_SWEEP_EVERY": "1s"}
        for number in range(accounts):
            world.add_account(f"le{number}")
        world.openbao.approle("appjwt-worker", ["appjwt-worker"], token_ttl="90s")
        daemon = world.daemon()
        for number in range(accounts):
            daemon.wait_for("token.refreshed", account=f"le{number}")
        prometheus = Prometheus(folder, f"127.0.0.1:{port}")
        try:
            eventually(lambda: prometheus.query("appjwt_min_life_left_ratio") and not prometheus.firing())
            yield world, daemon, prometheus
        finally:
            prometheus.close()


def _down(world: Scene, _: Daemon) -> AbstractContextManager[None]:
    return world.liveperson.faults.on(Fault(status=503))


@contextmanager
def _spoilt(world: Scene) -> Iterator[None]:
    before = world.openbao.client.secrets.kv.v2.read_secret_version(
        "liveperson/accounts/le0", raise_on_deleted_version=True
    )["data"]["data"]
    world.openbao.put_account("le0", {**before, "client_secret": ""})
    yield
    world.openbao.put_account("le0", before)


@contextmanager
def _deleted(world: Scene) -> Iterator[None]:
    world.openbao.client.secrets.kv.v2.delete_latest_version_of_secret("liveperson/tokens/le0")
    yield


@contextmanager
def _suspended(daemon: Daemon) -> Iterator[None]:
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


FAULTS: Final[dict[str, tuple[str, Callable[[Scene, Daemon], AbstractContextManager[None]]]]] = {
    "a token deleted by hand": ("AppJWTTokenRepaired", lambda world, _: _deleted(world)),
    "a field of an account's secret emptied": ("AppJWTAccountInvalid", lambda world, _: _spoilt(world)),
    "Sentinel answers 503 to all": ("AppJWTSentinelHostFailing", _down),
    "Sentinel answers 503 to all, until 25 % are left": ("AppJWTTokenEndsSoon", _down),
    "Sentinel answers 503 to all, until 10 % are left": ("AppJWTTokenAboutToEnd", _down),
    "Sentinel answers 503 to all, past the moment planned": ("AppJWTRefreshOverdue", _down),
    "one account is refused with 401": (
        "AppJWTAccountFailing",
        lambda world, _: world.liveperson.faults.on(Fault(status=401), account="le1"),
    ),
    "Sentinel's clock 5 min ahead": (
        "AppJWTClockSkew",
        lambda world, _: world.liveperson.faults.on(Fault(skew=timedelta(minutes=5))),
    ),
    "Vault frozen": ("AppJWTVaultUnusable", lambda world, _: world.openbao.frozen()),
    "Vault frozen, until the login has ended": ("AppJWTVaultLoginEnds", lambda world, _: world.openbao.frozen()),
    "the worker suspended": ("AppJWTWorkerAbsent", lambda _, daemon: _suspended(daemon)),
}
"""What is switched on, and the alert that is to fire and to clear after it."""


def dashboard() -> list[str]:
    """Every query of the dashboard, with its variables filled in."""
    document = json.loads((RULES.parents[1] / "dashboards" / "appjwt-worker.json").read_text())
    found = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    return [expr.replace("$job", "appjwt-worker") for expr in found]
