"""Write docs/evidence/mutation.md from the results of `mutmut run` in mutants/: the last step of `make mutants`.

mutants.toml, next to this file, explains why a survivor makes no difference.
"""

import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

from tests.origin import EVIDENCE, origin

AT_LEAST: Final = 95.0
"""Percent of the mutants that the tests must notice."""
KILLED: Final = ("killed", "timeout")
PAGE: Final = EVIDENCE / "mutation.md"
WHY: Final = Path(__file__).with_suffix(".toml")

HEAD: Final = """\
# Mutation tests of worker/core

`make mutants` changes the functions of `worker/core` in one place at a time, and for each such mutant runs those of
`tests/unit/core` that reach it. A mutant that no test notices survives: a test is missing, or the change makes no
difference. At least {at_least:.0f} % must be killed. Constants, enums and properties are not changed by the tool
([mutmut](https://mutmut.readthedocs.io)).

Written by it ({origin}): **{share:.1f} % of {total} mutants killed**.

| module | mutants | killed | of these by running out of time | survived | share killed |
|---|---|---|---|---|---|
"""


def main() -> str | None:
    """Write the page; return the errors, if there are any."""
    why = tomllib.loads(WHY.read_text())
    modules: defaultdict[str, Counter[str]] = defaultdict(Counter)
    survivors: dict[str, str] = {}
    for line in _output("mutmut", "results", "--all", "true").splitlines():
        mutant, _, status = line.strip().partition(": ")
        modules[mutant.split(".")[2]][status] += 1
        if status not in KILLED:
            diff = [
                each
                for each in _output("mutmut", "show", mutant).splitlines()
                if each.startswith(("-", "+")) and not each.startswith(("---", "+++"))
            ]
            function = mutant.partition(".core.")[2].rpartition("__mutmut_")[0]
            name = function.replace(".x_", ".").replace(".x\u01c1", ".").replace("\u01c1", ".")
            changed = " ".join(each[1:].strip() for each in diff if each[0] == "+") or "left out"
            key = f"{name}: {changed}"
            explanation = why.get(key, "Not explained." if status == "survived" else f"Not explained: {status}.")
            survivors[key] = "\n".join([f"## `{name}`", "", "```diff", *diff, "```", "", explanation])
    total = sum(modules.values(), Counter[str]())
    head = HEAD.format(
        at_least=AT_LEAST,
        origin=origin(),
        share=_share(total),
        total=total.total(),
    )
    rows = [_row(name, counts) for name, counts in sorted(modules.items())]
    PAGE.write_text("\n\n".join([head + "\n".join([*rows, _row("all", total)]), *survivors.values()]) + "\n")
    if stale := why.keys() - survivors.keys():
        return f"{WHY} explains what did not survive: {', '.join(sorted(stale))}"
    if _share(total) < AT_LEAST:
        return f"{_share(total):.1f} % of the mutants were killed, {AT_LEAST} % is the least: see {PAGE}"
    return None


def _row(name: str, counts: Counter[str]) -> str:
    killed, timeout = _killed(counts), counts["timeout"]
    return f"| {name} | {counts.total()} | {killed} | {timeout} | {counts.total() - killed} | {_share(counts):.1f} % |"


def _killed(counts: Counter[str]) -> int:
    return sum(counts[status] for status in KILLED)


def _share(counts: Counter[str]) -> float:
    return 100 * _killed(counts) / counts.total()


def _output(command: str, *arguments: str) -> str:
    """Return the output of a command; mutmut is the one of this Python."""
    call = [str(Path(sys.executable).with_name(command)) if command == "mutmut" else command, *arguments]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
