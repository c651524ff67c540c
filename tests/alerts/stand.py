"""A real Prometheus that scrapes a real daemon and judges by the real rules, in short."""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import requests
import yaml

from sandbox.faults import Fault
from sandbox.world import POLICIES
from tests.integration.processes import Daemon, Scene, eventually, scene

RULES: Final = Path(__file__).parents[2] / "helm" / "appjwt-worker" / "alerts" / "appjwt-worker.rules.yaml"
INHIBITIONS: Final = RULES.parent / "alertmanager.inhibit.yaml"
_WORKER: Final = (POLICIES / "worker.hcl").read_text()
WITHOUT_LIST: Final = _WORKER.replace('["list"]', '["deny"]')
_WITHOUT_WRITE: Final = _WORKER.replace('["create", "read", "update"]', '["read"]')
_DENIED: Final = 'path "secret/data/liveperson/tokens/le1" { capabilities = ["deny"] }'
_EMPTY: Final = 'path "none" { capabilities = ["read"] }'
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
    """Return the rules with `for`, the ranges of counters and the age of the last sync in seconds for minutes.

    A range contains a few scrapes at least.
    """

    def seconds(found: re.Match[str]) -> str:
        return f"[{max(5, int(found[1]))}s]"

    document = yaml.safe_load(RULES.read_text())
    for rule in document["groups"][0]["rules"]:
        rule["expr"] = re.sub(r"\[(\d+)m\]", seconds, rule["expr"])
        rule["expr"] = re.sub(
            r"(last_sync_timestamp_seconds\)) > (\d+)", lambda age: f"{age[1]} > {int(age[2]) // 60}", rule["expr"]
        )
        if "for" in rule:
            rule["for"] = rule["for"].removesuffix("m") + "s"
    return yaml.safe_dump(document)


def alertmanager_config() -> str:
    """Return the inhibition rules in the least configuration that takes them."""
    route = {"receiver": "nobody", "group_wait": "1s"}
    return yaml.safe_dump(
        {"route": route, "receivers": [{"name": "nobody"}], **yaml.safe_load(INHIBITIONS.read_text())}
    )


class Alertmanager:
    def __init__(self, folder: Path) -> None:
        (folder / "alertmanager.yml").write_text(alertmanager_config())
        self.address = f"127.0.0.1:{free_port()}"
        flags = ["--config.file=alertmanager.yml", "--storage.path=alertmanager", "--cluster.listen-address="]
        with (folder / "alertmanager.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["prometheus-alertmanager", f"--web.listen-address={self.address}", *flags],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def inhibited(self) -> dict[str, bool]:
        """Return for each alert that fires whether another one inhibits its notification."""
        alerts = requests.get(f"http://{self.address}/api/v2/alerts", timeout=5).json()
        return {each["labels"]["alertname"]: bool(each["status"]["inhibitedBy"]) for each in alerts}


class Prometheus:
    def __init__(self, folder: Path, target: str, alertmanager: str) -> None:
        (folder / "rules.yaml").write_text(shortened())
        config = {
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": "appjwt-worker", "static_configs": [{"targets": [target]}]},
                {"job_name": "others", "file_sd_configs": [{"files": ["others.json"]}]},
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._others = folder / "others.json"
        self._others.write_text("[]")
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

    def scrape_too(self, job: str, target: str) -> None:
        self._others.write_text(json.dumps([{"targets": [target], "labels": {"job": job}}]))

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/-/ready", timeout=5).ok
        except requests.ConnectionError:
            return False

    def firing(self) -> set[str]:
        alerts = requests.get(f"{self.url}/api/v1/alerts", timeout=5).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

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


class Stand(NamedTuple):
    world: Scene
    daemon: Daemon
    prometheus: Prometheus
    alertmanager: Alertmanager


@contextmanager
def watched(folder: Path, accounts: int = 4) -> Iterator[Stand]:
    """Set up a daemon with all its accounts well, a Prometheus that has seen it for a while, and an Alertmanager."""
    folder.mkdir(exist_ok=True)
    with scene(folder / "world", life=LIFE) as world:
        port = free_port()
        world.settings |= {"APPJWT_HTTP_LISTEN": f"127.0.0.1:{port}", "APPJWT_SENTINEL_TIMEOUT": "2s"}
        world.settings |= {"APPJWT_VAULT_TIMEOUT": "2s", "APPJWT_TOKENS_RESYNC_INTERVAL": "1s"}
        for number in range(accounts):
            world.add_account(f"le{number}")
        world.openbao.approle("appjwt-worker", ["appjwt-worker"], token_ttl="90s")
        daemon = world.daemon()
        for number in range(accounts):
            daemon.wait_for("token.refreshed", account=f"le{number}")
        with (
            closing(Alertmanager(folder)) as alertmanager,
            closing(Prometheus(folder, f"127.0.0.1:{port}", alertmanager.address)) as prometheus,
        ):
            eventually(lambda: prometheus.query("appjwt_min_remaining_ratio") and not prometheus.firing())
            yield Stand(world, daemon, prometheus, alertmanager)


def _down(stand: Stand) -> AbstractContextManager[None]:
    return stand.world.liveperson.faults.on(Fault(status=503))


@contextmanager
def _refused(world: Scene) -> Iterator[None]:
    """Once LivePerson takes the credentials again somebody runs the runbook's command: the next try may be far off."""
    with world.liveperson.faults.on(Fault(status=401), account="le1"):
        yield
    world.call("--refresh", "le1")


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


@contextmanager
def _locked_out(world: Scene, daemon: Daemon, *, restarted: bool) -> Iterator[None]:
    """Destroy the secret_id, and end the login: with the process, or by revoking it."""
    file = Path(world.settings["APPJWT_VAULT_SECRET_ID_FILE"])
    world.openbao.client.auth.approle.destroy_secret_id("appjwt-worker", file.read_text())
    if restarted:
        daemon.stop()
        daemon = world.daemon()
    else:
        for accessor in world.logins():
            world.openbao.client.auth.token.revoke_accessor(accessor)
    daemon.wait_for("vault.unavailable")
    yield
    file.write_text(world.openbao.secret_id("appjwt-worker"))


@contextmanager
def _restarted(world: Scene, daemon: Daemon, **settings: str) -> Iterator[None]:
    """Run the worker, and later modes, with other settings."""
    daemon.stop()
    before, world.settings = world.settings, {**world.settings, **settings}
    other = world.daemon()
    other.wait_for("worker.started")
    yield
    other.stop()
    world.settings = before
    world.daemon()


@contextmanager
def _dns_gone(world: Scene, daemon: Daemon) -> Iterator[None]:
    """Restart without stored tokens, so that no host is known, while the Domain API's name does not resolve."""
    kv = world.openbao.client.secrets.kv.v2
    daemon.process.send_signal(signal.SIGSTOP)
    for token in kv.list_secrets("liveperson/tokens")["data"]["keys"]:
        kv.delete_metadata_and_all_versions(f"liveperson/tokens/{token}")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGCONT)
    with _restarted(world, daemon, APPJWT_SENTINEL_DOMAIN_API="https://api.invalid"):
        yield


@contextmanager
def _mount_deleted(world: Scene) -> Iterator[None]:
    openbao = world.openbao
    names = openbao.client.secrets.kv.v2.list_secrets("liveperson/accounts")["data"]["keys"]
    accounts = {
        name: openbao.client.secrets.kv.v2.read_secret_version(
            f"liveperson/accounts/{name}", raise_on_deleted_version=True
        )["data"]["data"]
        for name in names
    }
    openbao.client.sys.disable_secrets_engine("secret")
    yield
    openbao.mount_kv("secret")
    for name, account in accounts.items():
        openbao.put_account(name, account)


@contextmanager
def _tokens_mount_deleted(stand: Stand) -> Iterator[None]:
    """Give the tokens a separate mount and delete it; the accounts' mount stays."""
    openbao = stand.world.openbao
    openbao.mount_kv("tokens")
    own = _WORKER.replace("secret/data/liveperson/tokens", "tokens/data/liveperson/tokens")
    own = own.replace("secret/metadata/liveperson/tokens", "tokens/metadata/liveperson/tokens")
    with (
        policy(stand.world, own),
        _restarted(stand.world, stand.daemon, APPJWT_TOKENS_MOUNT="tokens"),
    ):
        eventually(lambda: sum(line["event"] == "token.refreshed" for line in stand.world.latest_log) > 3)
        openbao.client.sys.disable_secrets_engine("tokens")
        yield
        openbao.mount_kv("tokens")
        stand.prometheus.until("AppJWTVaultUnusable", fires=False)


@contextmanager
def policy(world: Scene, hcl: str) -> Iterator[None]:
    world.openbao.policy("appjwt-worker", hcl)
    yield
    world.openbao.policy("appjwt-worker", _WORKER)


@contextmanager
def _one_of_two_dead(stand: Stand) -> Iterator[None]:
    other = {"APPJWT_HTTP_LISTEN": f"127.0.0.1:{free_port()}"}
    second = stand.world.daemon(other)
    stand.prometheus.scrape_too("other-release", other["APPJWT_HTTP_LISTEN"])
    eventually(lambda: stand.prometheus.query('appjwt_build_info{job="other-release"}'))
    second.stop()
    yield
    assert stand.prometheus.query('appjwt_build_info{job="appjwt-worker"}')
    stand.world.daemon(other)


FAULTS: Final[dict[str, tuple[str, Callable[[Stand], AbstractContextManager[None]]]]] = {
    "a token deleted by hand": ("AppJWTTokenRepaired", lambda stand: _deleted(stand.world)),
    "a field of an account's secret emptied": ("AppJWTAccountInvalid", lambda stand: _spoilt(stand.world)),
    "Sentinel answers 503 to all": ("AppJWTSentinelHostFailing", _down),
    "Sentinel answers 503 to all, until the margin is below 0.5": ("AppJWTTokenExpirySoon", _down),
    "Sentinel answers 503 to all, until the margin is below 0.2": ("AppJWTTokenExpiryCritical", _down),
    "Sentinel answers 503 to all, until the refresh is overdue": ("AppJWTRefreshOverdue", _down),
    "one account is refused with 401": (
        "AppJWTAccountFailing",
        lambda stand: _refused(stand.world),
    ),
    "all accounts are refused with 401": (
        "AppJWTSentinelHostFailing",
        lambda stand: stand.world.liveperson.faults.on(Fault(status=401)),
    ),
    "LivePerson's certificates are of a CA that is not trusted": (
        "AppJWTSentinelHostFailing",
        lambda stand: stand.world.unknown_ca(),
    ),
    "the Domain API's name does not resolve, at a restart without tokens": (
        "AppJWTTokenExpiryCritical",
        lambda stand: _dns_gone(stand.world, stand.daemon),
    ),
    "Sentinel's clock 5 min ahead": (
        "AppJWTClockSkew",
        lambda stand: stand.world.liveperson.faults.on(Fault(skew=timedelta(minutes=5))),
    ),
    "Vault frozen": ("AppJWTVaultUnusable", lambda stand: stand.world.openbao.frozen()),
    "the CA of Vault is not trusted, at a restart": (
        "AppJWTVaultUnusable",
        lambda stand: _restarted(stand.world, stand.daemon, APPJWT_VAULT_CA_CERT=str(stand.world.liveperson.ca_file)),
    ),
    "Vault's name does not resolve, at a restart": (
        "AppJWTVaultUnusable",
        lambda stand: _restarted(stand.world, stand.daemon, APPJWT_VAULT_ADDRESS="https://vault.invalid:8200"),
    ),
    "the tokens' own mount deleted": ("AppJWTVaultUnusable", _tokens_mount_deleted),
    "one account's token path is denied": (
        "AppJWTAccountFailing",
        lambda stand: policy(stand.world, _WORKER + _DENIED),
    ),
    "the mount deleted": ("AppJWTVaultUnusable", lambda stand: _mount_deleted(stand.world)),
    "AppRole refuses the login at a restart": (
        "AppJWTVaultUnusable",
        lambda stand: _locked_out(stand.world, stand.daemon, restarted=True),
    ),
    "AppRole refuses the login after it was revoked": (
        "AppJWTVaultUnusable",
        lambda stand: _locked_out(stand.world, stand.daemon, restarted=False),
    ),
    "`list` taken from the policy": ("AppJWTSyncStale", lambda stand: policy(stand.world, WITHOUT_LIST)),
    "`create` and `update` taken from the policy": (
        "AppJWTVaultUnusable",
        lambda stand: policy(stand.world, _WITHOUT_WRITE),
    ),
    "the policy emptied": ("AppJWTVaultUnusable", lambda stand: policy(stand.world, _EMPTY)),
    "Vault frozen, until the login has ended": ("AppJWTVaultLoginExpiring", lambda stand: stand.world.openbao.frozen()),
    "one of two releases dead": ("AppJWTWorkerAbsent", _one_of_two_dead),
    "the worker suspended": ("AppJWTWorkerAbsent", lambda stand: _suspended(stand.daemon)),
}
"""Fault, and the alert that is to fire, then to clear after it."""


def dashboard() -> list[str]:
    """Return every query of the dashboard, with its variables filled in."""
    document = json.loads((RULES.parents[1] / "dashboards" / "appjwt-worker.json").read_text())
    found = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    variables = {"$job": "appjwt-worker", "$namespace": ".*", "$__rate_interval": "10s"}
    return [re.sub(r"\$\w+", lambda name: variables[name[0]], expr) for expr in found]
