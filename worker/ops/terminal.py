"""The output of a mode: a table for people or one JSON document, a bar for each token's life, and a progress bar."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from worker.core.appjwt import utc
from worker.core.redact import redact_value, redacted
from worker.core.status import AccountStatus, Severity

_BAR_WIDTH = 12
_STATES = {"ok": "green", "disabled": "dim", "removed": "dim"}
_STYLES = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.CRITICAL: "red"}


def as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(redact_value(document), indent=2)


def as_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Columns as wide as what is in them; columns that are empty in each row are left out."""
    keys = [key for key in rows[0] if any(row[key] is not None for row in rows)] if rows else []
    cells = [[key.upper().replace("_", " ") for key in keys]]
    cells += [[_cell(row[key]) for key in keys] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def status_table(statuses: Sequence[AccountStatus]) -> str | None:
    """Return each account's state with colours and bars. None where stdout is no terminal."""
    console = _console()
    if not console.is_terminal:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("ACCOUNT", overflow="fold")
    for heading in ("STATE", "", "REMAINING", "REFRESH AT"):
        table.add_column(heading, no_wrap=True)
    table.add_column("LAST ERROR", overflow="fold")
    bar = "-" if console.options.ascii_only else "━"
    for status in statuses:
        needs_none = status.margin is None
        style = "dim" if needs_none else _STYLES[status.severity]
        since = f" (since {status.failing_since})" if status.failing_since else ""
        filled = round(_remaining_fraction(status) * _BAR_WIDTH)
        table.add_row(
            redacted(status.account),
            Text(status.state, style=_STATES.get(status.state, "bold red")),
            Text.assemble((bar * filled, style), (bar * (_BAR_WIDTH - filled), "bright_black"))
            if status.remaining
            else "",
            Text(_cell(status.remaining) if status.remaining else "none", style=style),
            utc(status.refresh_at) if status.refresh_at else "",
            redacted(status.last_error or "") + since,
        )
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _console(*, stderr: bool = False) -> Console:
    """Return a console that shows each text as it is: text from outside may look like markup."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def _remaining_fraction(status: AccountStatus) -> float:
    if not (status.issued_at and status.expires_at):
        return 0.0
    return min(1.0, status.remaining / (status.expires_at - status.issued_at).total_seconds())


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
def progress_bar(title: str, total: int | None, *, shown: bool) -> Iterator[Callable[..., object]]:
    """Show a bar on stderr, on a terminal only, and remove it at the end. What it gives is called with the number done.

    :param total: None = not known yet; it is told with a number done, as the second argument.
    """
    console = _console(stderr=True)
    columns = (TextColumn(title, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)
