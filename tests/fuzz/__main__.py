"""The long form, `make fuzz`: each case again and again with other inputs, then the hostile servers.

It runs for FUZZ_MINUTES (10), and on until every check was reached by 1,000 inputs. A failing input is stored, and
stops the run.
"""

import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage

from tests.origin import EVIDENCE, origin

PARSERS = (
    "worker/core/appjwt.py",
    "worker/core/redact.py",
    "worker/core/account.py",
    "worker/liveperson/domain_api.py",
    "worker/liveperson/hosts.py",
)
ENOUGH = 1_000
_FIRST, _ROUND = 100, 400
_REPORT = EVIDENCE / "fuzz.md"


def main() -> None:
    """Load the worker's modules in here, so that coverage sees them from their first line on."""
    measured = coverage.Coverage(branch=True, include=PARSERS, data_file=None)
    measured.start()
    from tests.fuzz.test_fuzz import TARGETS  # noqa: PLC0415 - see above

    counts: Counter[tuple[str, str]] = Counter()
    cases = [(target, case) for target in TARGETS.values() for case in target.cases]
    began, number = time.monotonic(), int(time.time())
    ends = began + 60 * float(os.environ.get("FUZZ_MINUTES") or 10)
    while time.monotonic() < ends or min(counts.values()) < ENOUGH:
        for target, case in cases:
            counts[target.name, case] += _fuzz(target, case, _ROUND if counts[target.name, case] else _FIRST, number)
            number += 1
        measured.stop()  # the first round reaches everything, and tracing costs time
        sys.stderr.write(f"{sum(counts.values()):,} inputs, {min(counts.values()):,} or more each\n")
    minutes = (time.monotonic() - began) / 60
    _REPORT.write_text("\n".join(_report(counts, minutes, measured)) + "\n")


def _fuzz(target: Any, case: str, inputs: int, number: int) -> int:
    from tests.fuzz.engine import fuzz  # noqa: PLC0415 - see above

    return fuzz(target, case, inputs, number, at_once=10)


def _report(counts: Counter[tuple[str, str]], minutes: float, measured: coverage.Coverage) -> Iterator[str]:
    from tests.fuzz import target_domains  # noqa: PLC0415 - see above
    from tests.integration.hostile import DEADLINE, among_hostile_servers  # noqa: PLC0415 - see above

    with tempfile.TemporaryDirectory() as folder:
        hostile = among_hostile_servers(Path(folder) / "world")
    yield "# What hostile input came to\n"
    yield f"Written by `make fuzz` ({origin()}).\n"
    yield "| | |\n|---|---|"
    yield f"| inputs | {sum(counts.values()):,} in {minutes:.0f} minutes |"
    yield f"| least inputs that reached one check | {min(counts.values()):,} |"
    yield "| crashes | 0 |"
    yield f"| hostile servers tried | {len(hostile.logged)} |"
    yield f"| leaks found | {len(hostile.leaks)} |"
    yield f"| requests that left the allow list | {hostile.outside + target_domains.outside} |"
    longest = max(hostile.held_seconds, key=lambda name: hostile.held_seconds[name])
    held = f"{hostile.held_seconds[longest]:.2f} s ({longest}), deadline {DEADLINE:g} s"
    yield f"| longest time that a hostile answer held a slot | {held} |"
    yield f"| refreshes of three accounts beside them, life 10 s | {hostile.served} |"
    yield f"| least share of life left when one was replaced | {hostile.min_remaining:.0%} |"
    yield "\n## Branch coverage of what reads them\n\n| module | lines and branches reached |\n|---|---|"
    yield from _coverage(measured)
    yield "\n## Inputs for each check\n\nEach is right but for one thing, and came to this and nothing else.\n"
    yield "| input | check | inputs |\n|---|---|---|"
    yield from (f"| {target} | {case} | {count:,} |" for (target, case), count in counts.items())
    yield "\n## Hostile servers\n\n| server | held, s | what the log said |\n|---|---|---|"
    for name, said in hostile.logged.items():
        held = f"{hostile.held_seconds[name]:.2f}" if name in hostile.held_seconds else ""
        yield f"| {_cell(name)} | {held} | {_cell(said)} |"


def _coverage(measured: coverage.Coverage) -> Iterator[str]:
    with tempfile.NamedTemporaryFile("r") as out:
        measured.json_report(outfile=out.name)
        files = json.load(out)["files"]
    for name in sorted(files):
        yield f"| {name} | {files[name]['summary']['percent_covered']:.1f} % |"


def _cell(text: str) -> str:
    """Escape a text for a table, without ports, which differ from run to run."""
    return re.sub(r"localhost:\d+", "HOST", text)[:90].replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
