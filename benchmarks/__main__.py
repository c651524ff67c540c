"""`make bench`: what the worker adds to the calls that it makes; docs/performance.md and docs/performance.json.

Everything in one run, rounds interleaved, medians and ratios: machines are noisy.
"""

import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import jinja2
import requests

from sandbox.liveperson import LivePerson
from sandbox.world import World

_ROOT: Final = Path(__file__).parents[1]
_ACCOUNTS: Final = int(os.environ.get("BENCH_ACCOUNTS") or 1000)
_ROUNDS: Final = int(os.environ.get("BENCH_ROUNDS") or 3)
_LARGEST: Final = int(os.environ.get("BENCH_LARGEST") or 10_000)
_IDLE: Final = 60
"""Seconds of steady state that are measured."""
_SIGNATURE: Final = "A" * 342
"""Nobody checks it here: signing is not what is measured."""


class Presigned(LivePerson):
    def _signed(self, header: Mapping[str, object], claims: Mapping[str, object]) -> str:
        head = super()._signed({**header, "alg": "none"}, claims).split(".")[1]
        return f"eyJraWQiOiJhcHBqd3QtMTMtMDUtMTciLCJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.{head}.{_SIGNATURE}"


@dataclass(frozen=True)
class Run:
    """One process to its end."""

    done: int
    cpu: float
    wall: float


def run(command: list[str], environment: Mapping[str, str], names: list[str]) -> Run:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    ended = subprocess.run(
        command, input=json.dumps(names), env=dict(environment), capture_output=True, text=True, check=False, cwd=_ROOT
    )
    assert ended.returncode == 0, ended.stderr
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    done = json.loads(ended.stdout)["refreshed"] if "{" in ended.stdout else int(ended.stdout)
    return Run(done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def refresh(world: World, names: list[str]) -> dict[str, list[Run]]:
    """Everyone refreshes the same accounts, in turns."""
    floors = {
        "BENCH_VAULT": world.openbao.address,
        "BENCH_TOKEN": world.openbao.token(["appjwt-worker"], ttl="24h"),
        "BENCH_VAULT_CA": str(world.openbao.ca_file),
        "BENCH_SENTINEL": world.liveperson.hosts["va"],
        "BENCH_SENTINEL_CA": str(world.liveperson.ca_file),
        "PATH": os.environ["PATH"],
    }
    ours = world.command("--refresh-all", "--output", "json")
    who: dict[str, tuple[list[str], Mapping[str, str]]] = {
        "appjwt-worker": (ours, world.environment()),
        "floor A: hvac + requests": ([sys.executable, "-m", "benchmarks.floor_a"], floors),
        "floor B: urllib3": ([sys.executable, "-m", "benchmarks.floor_b"], floors),
        "limit C: http.client": ([sys.executable, "-m", "benchmarks.limit_c"], floors),
    }
    runs: defaultdict[str, list[Run]] = defaultdict(list)
    for _ in range(_ROUNDS):
        for name, (command, environment) in who.items():
            time.sleep(1)  # a token of the same second would end no later
            runs[name].append(run(command, environment, names))
            assert runs[name][-1].done == len(names), (name, runs[name][-1])
            sys.stderr.write(f"{name}: {runs[name][-1]}\n")
    return runs


def steady(world: World, accounts: int) -> dict[str, Any]:
    """A daemon that finds fresh tokens, and then has a minute of little to do."""
    log = Path(tempfile.mkstemp()[1])
    mints, began = world.liveperson.mints(), time.monotonic()
    environment = {**world.environment(), "APPJWT_HTTP_LISTEN": "127.0.0.1:0", "APPJWT_LOG_FORMAT": "json"}
    with log.open("wb") as out, subprocess.Popen(world.command(), env=environment, stderr=out, stdout=out) as process:
        try:
            while not (said := re.search(r'"http": "([^"]+)"', log.read_text())):
                time.sleep(0.02)
            url = f"http://{said[1]}"
            while requests.get(f"{url}/readyz", timeout=30).status_code != requests.codes.ok:
                time.sleep(0.05)
            ready = time.monotonic() - began
            time.sleep(2)
            at_start, scrapes = _cpu(process.pid), []
            for _ in range(_IDLE // 30):
                time.sleep(30)
                asked = time.monotonic()
                assert requests.get(f"{url}/metrics", timeout=30).text.count("\n") > accounts
                scrapes.append(time.monotonic() - asked)
            cpu = (_cpu(process.pid) - at_start) / _IDLE
            memory = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024  # type: ignore[index]
        finally:
            process.terminate()
    return {
        "accounts": accounts,
        "ready_s": round(ready, 1),
        "start_cpu_s": round(at_start, 1),
        "mints": world.liveperson.mints() - mints,
        "memory_mib": round(memory),
        "cpu_share": round(cpu, 4),
        "scrape_s": round(statistics.median(scrapes), 3),
    }


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def commands(world: World) -> dict[str, float]:
    """Medians of a few runs, in seconds."""
    found = {}
    for name, flags in {"--version": ["--version"], "--status": ["--status", "--output", "json"]}.items():
        times = []
        for _ in range(5):
            began = time.monotonic()
            subprocess.run(world.command(*flags), env=world.environment(), capture_output=True, check=True)
            times.append(time.monotonic() - began)
        found[name] = round(statistics.median(times), 3)
    return found


def main() -> int:
    result: dict[str, Any] = {
        "commit": _git("describe", "--always", "--dirty"),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "accounts": _ACCOUNTS,
        "rounds": _ROUNDS,
        "steady": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), token_life=timedelta(hours=1))
        world.liveperson = Presigned(Path(folder), token_life=timedelta(hours=1))
        with world:
            world.settings |= {"APPJWT_SENTINEL_MAX_PER_SECOND": "1000", "APPJWT_SENTINEL_MAX_IN_FLIGHT": "8"}
            names: list[str] = []
            for size in sorted({10, _ACCOUNTS, _LARGEST}):
                for number in range(len(names), size):
                    names.append(f"le{number:08}")
                    # its host is told, as the floors know it: a daemon looks it up once in 12 hours
                    world.add_account(names[-1], sentinel_domain=world.liveperson.hosts["va"])
                first = run(
                    world.command("--refresh-all", "--if-less-than", "1m", "--output", "json"), world.environment(), []
                )
                sys.stderr.write(f"{size} accounts, the new ones from nothing: {first}\n")
                result["steady"].append(steady(world, size))
                sys.stderr.write(f"{result['steady'][-1]}\n")
                if size == 10:  # noqa: PLR2004
                    result["commands"] = commands(world)
                if size == _ACCOUNTS:
                    runs = refresh(world, names)
    result["refresh"] = {
        name: {
            "per_cpu_second": round(statistics.median(each.done / each.cpu for each in of), 1),
            "per_second": round(statistics.median(each.done / each.wall for each in of), 1),
        }
        for name, of in runs.items()
    }
    (_ROOT / "docs" / "performance.json").write_text(json.dumps(result, indent=1) + "\n")
    (_ROOT / "docs" / "performance.md").write_text(page(result))
    sys.stdout.write(page(result))
    return 0


def page(result: dict[str, Any]) -> str:
    template = jinja2.Template((Path(__file__).parent / "performance.md.j2").read_text(), trim_blocks=True)
    told: str = template.render(
        r=result,
        ours=result["refresh"]["appjwt-worker"],
        floor=result["refresh"]["floor A: hvac + requests"],
        idle=_IDLE,
        per_account=_per_account(result["steady"]),
    )
    return told + "\n"


def _per_account(of: list[dict[str, Any]]) -> float:
    small, large = of[-2], of[-1]
    return float((large["memory_mib"] - small["memory_mib"]) * 1024 / (large["accounts"] - small["accounts"]))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=_ROOT).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
