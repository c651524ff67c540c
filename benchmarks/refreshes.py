"""The command as a short-lived process: its CPU and its time, compared with the floors."""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import openbao
from sandbox.world import World

_FLOOR = "floor A: hvac + requests"
_LOOPED = 20
"""Accounts for a shell loop, which takes a hundred times as long."""


@dataclass(frozen=True)
class Run:
    """One process to its end."""

    done: int
    cpu: float
    wall: float


def run(command: list[str], environment: Mapping[str, str], names: list[str] | None = None) -> Run:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    ended = subprocess.run(
        command,
        input=json.dumps(names),
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert ended.returncode == 0, [line for line in ended.stderr.splitlines() if "token.refreshed" not in line][:5]
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(ended.stdout)
    done = report.get("refreshed", 0) if isinstance(report, dict) else report
    return Run(done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def all_of(world: World, *flags: str) -> Run:
    return run(world.command("--refresh-all", *flags, "--output", "json"), _settings(world))


def compared(world: World, names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Refresh the same accounts in turns; medians, also of the ratio to floor A in the same round.

    The shell loops refresh the first few of them, where curl and jq are there.
    """
    floors = {
        "BENCH_VAULT": world.openbao.address,
        "BENCH_TOKEN": world.openbao.token(["appjwt-worker"], ttl="24h"),
        "BENCH_VAULT_CA": str(world.openbao.ca_file),
        "BENCH_BAO": openbao.bao(),
        "BENCH_SENTINEL": world.liveperson.hosts["va"],
        "BENCH_SENTINEL_CA": str(world.liveperson.ca_file),
        "PATH": os.environ["PATH"],
    }
    ours = world.command("--refresh-all", "--output", "json")
    who: dict[str, tuple[list[str], Mapping[str, str]]] = {
        "appjwt-worker": (ours, _settings(world)),
        _FLOOR: ([sys.executable, "-m", "benchmarks.floor_a"], floors),
        "floor B: urllib3": ([sys.executable, "-m", "benchmarks.floor_b"], floors),
        "limit C: http.client": ([sys.executable, "-m", "benchmarks.limit_c"], floors),
    }
    if shutil.which("curl") and shutil.which("jq"):
        for tool in ("curl", "bao"):
            who[f"shell loop: {tool}"] = (["sh", f"benchmarks/loop_{tool}.sh"], floors)
    runs: defaultdict[str, list[Run]] = defaultdict(list)
    for _ in range(rounds):
        for name, (command, environment) in who.items():
            time.sleep(1)  # a token of the same second would end no later
            some = names[:_LOOPED] if name.startswith("shell") else names
            runs[name].append(run(command, environment, some))
            assert runs[name][-1].done == len(some), (name, runs[name][-1])
            sys.stderr.write(f"{name}: {runs[name][-1]}\n")
    return {name: _medians(of, runs[_FLOOR]) for name, of in runs.items()}


def _medians(runs: list[Run], floor: list[Run]) -> dict[str, float]:
    pairs = list(zip(runs, floor, strict=True))
    return {
        "per_cpu_second": round(statistics.median(each.done / each.cpu for each in runs), 1),
        "per_second": round(statistics.median(each.done / each.wall for each in runs), 1),
        "by_cpu": round(statistics.median(each.done / each.cpu / (of.done / of.cpu) for each, of in pairs), 3),
        "by_wall": round(statistics.median(each.done / each.wall / (of.done / of.wall) for each, of in pairs), 3),
    }


def profile(world: World, names: list[str]) -> dict[str, Any]:
    """Return the CPU of a refresh by its parts."""
    time.sleep(1)
    command = [sys.executable, "-m", "benchmarks.profile"]
    ended = subprocess.run(
        command, input=json.dumps(names), env=_settings(world), stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


def cpu_of_one(world: World, accounts: int, worth: int) -> float:
    """Milliseconds of CPU for one refresh among so many, without the start of the process; `worth` of them or more."""
    start = statistics.median(_one(world) for _ in range(5))
    costs = []
    for _ in range(max(1, worth // accounts)):
        time.sleep(1)
        done = all_of(world)
        costs.append((done.cpu - start) / done.done)
    return round(statistics.median(costs) * 1000, 3)


def commands(world: World) -> dict[str, float]:
    """Medians of a few runs, in seconds."""
    found = {}
    for name, flags in {"--version": ["--version"], "--status": ["--status", "--output", "json"]}.items():
        times = []
        for _ in range(5):
            started = time.monotonic()
            subprocess.run(world.command(*flags), env=world.environment(), capture_output=True, check=True)
            times.append(time.monotonic() - started)
        found[name] = round(statistics.median(times), 3)
    return found


def reports(world: World, accounts: int, refresh: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the CPU and the time of `--status` and `--check` per account, as shares of a refresh's, start included."""
    found = {}
    for flag in ("--status", "--check"):
        ended = [run(world.command(flag, "--output", "json"), _settings(world)) for _ in range(3)]
        found[flag] = {
            "by_cpu": round(statistics.median(each.cpu for each in ended) / accounts * refresh["per_cpu_second"], 2),
            "by_wall": round(statistics.median(each.wall for each in ended) / accounts * refresh["per_second"], 2),
        }
    return found


def _one(world: World) -> float:
    time.sleep(1)
    return run(world.command("--refresh", "le00000000", "--output", "json"), _settings(world)).cpu


def _settings(world: World) -> dict[str, str]:
    """Return the settings: all on, no rate cap, and 8 in flight: of 10 slots two are reserved for known hosts."""
    return {
        **world.environment(),
        "APPJWT_LOG_LEVEL": "info",
        "APPJWT_LOG_FORMAT": "json",
        "APPJWT_SENTINEL_MAX_PER_SECOND": "1000",
        "APPJWT_SENTINEL_MAX_IN_FLIGHT": "10",
    }
