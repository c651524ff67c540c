"""The daemon as a process: its start, its steady state, several of them."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import requests

from sandbox.world import World

WATCHED: Final = 60
"""Seconds of steady state that are measured."""
_EARLIEST: Final = 0.05
_SPREAD: Final = {"APPJWT_REFRESH_AT": "0.25", "APPJWT_REFRESH_JITTER": "0.2"}
"""Tokens that were all made in a minute or two come due over two fifths of a life from here on."""


class Process:
    def __init__(self, world: World, settings: Mapping[str, str], host: str | None = None) -> None:
        """:param host: the name of the machine that it takes itself to be on: replicas of one name have one plan."""
        self._log = Path(tempfile.mkstemp()[1])
        environment = {**world.environment(), **settings, "APPJWT_HTTP_LISTEN": "127.0.0.1:0"}
        environment |= {"APPJWT_LOG_LEVEL": "info", "APPJWT_LOG_FORMAT": "json"}
        self.started = time.monotonic()
        command = world.command()
        if host:
            command = ["unshare", "-r", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host, *command]
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(command, env=environment, stderr=out, stdout=out)

    def __enter__(self) -> Self:
        while not (match := re.search(r'"http": "([^"]+)"', self._log.read_text())):
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            time.sleep(0.02)
        self._url = f"http://{match[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        self._log.unlink()

    def wait_until_ready(self) -> float:
        """Seconds since the start."""
        while requests.get(f"{self._url}/readyz", timeout=30).status_code != requests.codes.ok:
            time.sleep(0.05)
        return time.monotonic() - self.started

    def cpu(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB, resident."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self._process.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    def metrics(self) -> "Metrics":
        started = time.monotonic()
        text = requests.get(f"{self._url}/metrics", timeout=30).text
        return Metrics(text, time.monotonic() - started)


class Metrics:
    def __init__(self, text: str, seconds: float) -> None:
        self._lines = text.splitlines()
        self.seconds = seconds

    def total(self, name: str) -> float:
        """Return the sum over all labels."""
        return sum(float(line.rpartition(" ")[2]) for line in self._lines if re.match(rf"{name}(\{{| )", line))

    def lags(self) -> dict[float, float]:
        """Return the number of attempts that began within so many seconds."""
        found = (re.match(r'appjwt_schedule_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', line) for line in self._lines)
        return {float(each[1]): float(each[2]) for each in found if each}


def boottime(world: World, accounts: int, minted: float) -> dict[str, Any]:
    """Run a daemon that finds fresh tokens, and then renews those that become due.

    :param minted: when the first of them was made.
    """
    mints = world.liveperson.mints()
    with Process(world, _SPREAD) as daemon:
        ready = daemon.wait_until_ready()
        time.sleep(2)
        start_cpu, start_mints = daemon.cpu(), world.liveperson.mints() - mints
        if accounts > 10:  # noqa: PLR2004 - of ten none is due within a minute anyway
            life = world.liveperson.token_life.total_seconds()
            ages = daemon.started - minted
            time.sleep(max(0.0, minted + _EARLIEST * life + ages - time.monotonic()))
        return {
            "accounts": accounts,
            "ready_s": round(ready, 1),
            "start_cpu_s": round(start_cpu, 1),
            "start_mints": start_mints,
            **_watched([daemon]),
        }


def cold(world: World, accounts: int) -> dict[str, Any]:
    """Start without any token and wait for one for every account, under the default caps."""
    with Process(world, {}) as daemon:
        while daemon.metrics().total("appjwt_token_expiry_timestamp_seconds") == 0:
            time.sleep(0.1)
        while world.liveperson.mints() < accounts:
            time.sleep(0.1)
        return {"seconds": round(time.monotonic() - daemon.started, 1), "cpu_s": round(daemon.cpu(), 1)}


def replicas(world: World, number: int) -> dict[str, Any]:
    with ExitStack() as running:
        daemons = [running.enter_context(Process(world, _SPREAD, f"replica-{each}")) for each in range(number)]
        for daemon in daemons:
            daemon.wait_until_ready()
        time.sleep(5)
        return {"replicas": number, **_watched(daemons)}


def _watched(daemons: list[Process]) -> dict[str, Any]:
    """Watch all of them together, for a minute, with a scrape each 30 s."""
    cpu, before = [each.cpu() for each in daemons], [each.metrics() for each in daemons]
    time.sleep(WATCHED / 2)
    scrapes = [each.metrics().seconds for each in daemons]
    time.sleep(WATCHED / 2)
    used = sum(each.cpu() for each in daemons) - sum(cpu)
    after = [each.metrics() for each in daemons]

    def risen(name: str) -> float:
        return sum(each.total(name) for each in after) - sum(each.total(name) for each in before)

    renewed = risen("appjwt_refreshes_total")
    lags = {
        le: sum(each.lags()[le] for each in after) - sum(each.lags()[le] for each in before) for le in after[0].lags()
    }
    return {
        "memory_mib": round(max(each.memory() for each in daemons)),
        "cpu_share": round(used / WATCHED, 4),
        "scrape_s": round(max(scrapes), 3),
        "attempts": round(renewed),
        "sentinel_requests": round(risen("appjwt_sentinel_requests_total")),
        "vault_requests": round(risen("appjwt_vault_requests_total")),
        "lag_p50_s": _within(lags, 0.5),
        "lag_p99_s": _within(lags, 0.99),
    }


def _within(lags: dict[float, float], share: float) -> float | None:
    """Return the bound of the bucket that so many fall below; None = there were none."""
    total = lags[float("inf")]
    return next((le for le, count in sorted(lags.items()) if count >= share * total), None) if total else None
