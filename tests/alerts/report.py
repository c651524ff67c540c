"""`make alerts`: every alert seen firing and clearing on a real Prometheus; writes docs/evidence/alerts.md."""

import re
import sys
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from tests.alerts.screens import TROUBLE, screens
from tests.alerts.stand import FAULTS, LIFE, Stand, watched
from tests.integration.processes import eventually
from tests.origin import EVIDENCE, origin

_DOCUMENT: Final = EVIDENCE / "alerts.md"
_HEAD: Final = """# From fault to alert

Written by `make alerts` ({origin}).

A real Prometheus scrapes a real daemon each second, on a real OpenBao, with faults switched on. Tokens live {life} s in
place of an hour; the rules are the chart's, with `for`, the ranges of counters and the age of the last sync in seconds
for minutes. So of these seconds, what comes from the tokens' life or from `for` stands for {scale} times as many, or
for minutes. The log's first line on it is `s to log` after the fault; the page has what the log has, `--status` and
`--check` ask when they are called.

| fault | alert, and its runbook | s to log | s to fire | s to clear |
|---|---|---|---|---|
"""
_SCREENS: Final = """
## What each screen says when the alert has fired

The log's latest warning or error; the rest in brief. An alert in brackets is inhibited by another one.

| fault | log | --status | --check | page | alerts |
|---|---|---|---|---|---|
"""


def main() -> int:
    """Measure every row; with faults as arguments only theirs, the other rows stay as they are."""
    before = _DOCUMENT.read_text().partition(_SCREENS.splitlines()[1])
    rows, shown = (_rows(part) if sys.argv[1:] else {} for part in (before[0], before[2]))
    for fault in sys.argv[1:] or FAULTS:
        alert, switched_on = FAULTS[fault]
        with tempfile.TemporaryDirectory() as folder, watched(Path(folder) / "stand") as stand:
            prometheus = stand.prometheus
            with switched_on(stand):
                began = datetime.now(UTC)
                fires = prometheus.until(alert, fires=True, within=150)
                logged = _seconds_to_log(stand, began)
                eventually(partial(_is_notified, stand, alert))
                shown[fault] = " | ".join(screens(stand)) + " |"
            clears = prometheus.until(alert, fires=False, within=150)
        runbook = f"[{alert}](../operations.md#{alert.lower()})"
        rows[fault] = f"{runbook} | {logged} | {fires:.0f} | {clears:.0f} |"
        sys.stdout.write(f"| {fault} | {rows[fault]}\n| {fault} | {shown[fault]}\n")
    tables = ["".join(f"| {fault} | {table[fault]}\n" for fault in FAULTS if fault in table) for table in (rows, shown)]
    head = _HEAD.format(origin=origin(), life=LIFE, scale=3600 // LIFE)
    _DOCUMENT.write_text(f"{head}{tables[0]}{_SCREENS}{tables[1]}")
    return 0


def _seconds_to_log(stand: Stand, began: datetime) -> str:
    """Return the seconds to the first warning or error; 0 = it came while the fault was switched on."""
    moments = [datetime.fromisoformat(line["timestamp"]) for line in stand.world.latest_log if line["level"] in TROUBLE]
    after = [moment for moment in moments if moment > began] or moments
    return f"{max(0.0, (after[0] - began).total_seconds()):.0f}" if after else "none"


def _is_notified(stand: Stand, alert: str) -> bool:
    return alert in stand.alertmanager.inhibited()


def _rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (?!fault|--)(.+?) \| (.* \|)$", text, re.MULTILINE))


if __name__ == "__main__":
    sys.exit(main())
