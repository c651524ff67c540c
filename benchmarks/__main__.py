"""`make bench`: what the worker adds to the calls that it makes; docs/evidence/performance.md and .json.

Everything in one run, rounds interleaved, medians and ratios: machines are noisy.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import jinja2

from benchmarks import daemons, refreshes
from benchmarks.presigned import Presigned
from sandbox.world import World
from tests.origin import EVIDENCE

_ROOT: Final = Path(__file__).parents[1]
_COMPARED: Final = int(os.environ.get("BENCH_ACCOUNTS") or 1000)
_ROUNDS: Final = int(os.environ.get("BENCH_ROUNDS") or 7)
_SIZES: Final = (10, 100, _COMPARED, int(os.environ.get("BENCH_LARGEST") or 10_000))
_VIRTUAL: Final = (_COMPARED, _SIZES[-1], 10 * _SIZES[-1])
_SHORT_LIFE: Final = timedelta(minutes=5)


def main() -> int:
    result: dict[str, Any] = {
        "commit": _git("describe", "--always", "--dirty"),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "accounts": _COMPARED,
        "rounds": _ROUNDS,
        "steady": [],
        "growth": {},
    }
    with tempfile.TemporaryDirectory() as folder, world(folder, timedelta(hours=1)) as made:
        names: list[str] = []
        for size in _SIZES:
            add(made, names, size)
            _log_progress(
                f"{size} accounts, the new ones from nothing", refreshes.all_of(made, "--expires-within", "1m")
            )
            if size == _SIZES[0]:
                result["commands"] = refreshes.commands(made)
            else:
                result["growth"][size] = _log_progress(f"growth to {size}", refreshes.cpu_of_one(made, size, _COMPARED))
            if size == _COMPARED:
                result["refresh"] = refreshes.compared(made, names, _ROUNDS)
                result["reports"] = _log_progress(
                    "reports", refreshes.reports(made, size, result["refresh"]["appjwt-worker"])
                )
                result["profile"] = _log_progress("profile", refreshes.profile(made, names))
            if size != 100:  # noqa: PLR2004 - it is there for the growth alone
                minted = time.monotonic()
                refreshes.all_of(made)
                result["steady"].append(_log_progress(f"daemon of {size}", daemons.boottime(made, size, minted)))
    with tempfile.TemporaryDirectory() as folder, world(folder, _SHORT_LIFE) as made:
        add(made, [], _COMPARED)
        result["cold"] = _log_progress("cold start", daemons.cold(made, _COMPARED))
        result["replicas"] = [_log_progress("replicas", daemons.replicas(made, number)) for number in (1, 2, 4)]
    result["kept"] = _log_progress("kept", _in_a_process("benchmarks.kept", _SIZES[-1]))
    result["virtual"] = [_log_progress("virtual clock", _in_a_process("benchmarks.virtual", size)) for size in _VIRTUAL]
    (EVIDENCE / "performance.json").write_text(json.dumps(result, indent=1) + "\n")
    (EVIDENCE / "performance.md").write_text(page(result))
    sys.stdout.write(page(result))
    return 0


def world(folder: str, life: timedelta) -> World:
    made = World(Path(folder), token_life=life)
    made.liveperson = Presigned(Path(folder), token_life=life)
    return made


def add(made: World, names: list[str], size: int) -> None:
    """Add accounts until there are so many, with a known host, as in the floors: a daemon looks it up once in 12 h."""
    made.settings |= {"APPJWT_LOG_LEVEL": "info", "APPJWT_LOG_FORMAT": "json"}
    for number in range(len(names), size):
        names.append(f"le{number:08}")
        made.add_account(names[-1], sentinel_domain=made.liveperson.hosts["va"])


def page(result: dict[str, Any]) -> str:
    template = jinja2.Template((Path(__file__).parent / "performance.md.j2").read_text(), trim_blocks=True)
    small, large = result["steady"][-2:]
    growth = list(result["growth"].values())
    rendered: str = template.render(
        r=result,
        ours=result["refresh"]["appjwt-worker"],
        idle=daemons.WATCHED,
        short_life=_SHORT_LIFE.total_seconds(),
        per_account=(large["memory_mib"] - small["memory_mib"]) * 1024 / (large["accounts"] - small["accounts"]),
        growth=growth[-1] / growth[0],
    )
    return rendered + "\n"


def _in_a_process(module: str, *arguments: object) -> dict[str, Any]:
    """Run a module in a process; return the JSON on its last line."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=_ROOT)
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def _log_progress(what: str, figure: Any) -> Any:
    sys.stderr.write(f"{what}: {figure}\n")
    return figure


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=_ROOT).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
