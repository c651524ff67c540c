"""What a mode prints: a table for people or one JSON document, a bar for each token's life, and a progress bar."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from worker.core.redact import cleaned, redacted

_BAR = 12
_WARN, _ALARM = 0.25, 0.10
"""Shares of life left below which a token is in danger; page and alerts have the same."""
_QUIET = ("disabled", "removed")
_STATES = {"ok": "green", **dict.fromkeys(_QUIET, "dim")}


def as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(cleaned(document), indent=2)


def as_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Columns as wide as what is in them; columns that are empty in each row are left out."""
    keys = [key for key in rows[0] if any(row[key] is not None for row in rows)] if rows else []
    cells = [[key.upper().replace("_", " ") for key in keys]]
    cells += [[_cell(row[key]) for key in keys] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def show_status(rows: Sequence[Mapping[str, Any]]) -> bool:
    """On a terminal: how each account stands, with colours and bars, for eyes; whether it was one."""
    console = Console()
    if not console.is_terminal:
        return False
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("ACCOUNT", "STATE", "", "LIFE LEFT", "REFRESH AT"):
        table.add_column(heading, no_wrap=True)
    table.add_column("LAST ERROR", overflow="fold")
    for row in rows:
        share = _share_left(row)
        style = "red" if share < _ALARM else "yellow" if share < _WARN else "green"
        since = f" (since {row['failing_since']})" if row["failing_since"] else ""
        bar = round(share * _BAR)
        table.add_row(
            redacted(row["account"]),
            Text(row["state"], style=_STATES.get(row["state"], "bold red")),
            Text.assemble(("━" * bar, style), ("━" * (_BAR - bar), "bright_black")) if share else "",
            Text(_cell(row["life_left"]) if share else "none", style="dim" if row["state"] in _QUIET else style),
            row["refresh_at"] or "",
            Text(redacted(row["last_error"] or "") + since),
        )
    console.print(table)
    return True


def _share_left(row: Mapping[str, Any]) -> float:
    if not row["expires_at"]:
        return 0.0
    begins, ends = (datetime.fromisoformat(row[key]) for key in ("issued_at", "expires_at"))
    return float(min(1.0, row["life_left"] / (ends - begins).total_seconds()))


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "ok" if value else "FAILED"
        case float():
            return str(timedelta(seconds=int(value)))
        case _:
            return redacted(str(value))


@contextmanager
def progress_bar(title: str, total: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """A bar on stderr, on a terminal only, gone when it is done. What it gives is called with the number done."""
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
