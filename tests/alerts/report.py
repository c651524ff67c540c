"""`make alerts`: every alert seen firing and clearing on a real Prometheus; the table goes to docs/alerts.md."""

import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.alerts.stand import FAULTS, LIFE, watched
from tests.origin import origin

_DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "alerts.md"
_HEAD: Final = """# From fault to alert

Written by `make alerts` ({origin}).

A real Prometheus scrapes a real daemon each second, on a real OpenBao, with faults switched on. Tokens live {life} s in
place of an hour; the rules are the chart's, with `for` and the ranges of counters in seconds for minutes. So of these
seconds, what comes from the tokens' life or from `for` stands for {scale} times as many, or for minutes.

| fault | alert | s to fire | s to clear |
|---|---|---|---|
"""


def main() -> int:
    lines = []
    for fault, (alert, switched_on) in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder, watched(Path(folder) / "stand") as (world, daemon, prometheus):
            with switched_on(world, daemon):
                fires = prometheus.until(alert, fires=True, within=150)
            clears = prometheus.until(alert, fires=False, within=150)
        lines.append(f"| {fault} | {alert} | {fires:.0f} | {clears:.0f} |")
        sys.stdout.write(lines[-1] + "\n")
    _DOCUMENT.write_text(_HEAD.format(origin=origin(), life=LIFE, scale=3600 // LIFE) + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
