"""What a mode prints: a table for people or one JSON document, and a progress bar."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worker.core.redact import cleaned, redacted


def as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(cleaned(document), indent=2)


def as_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Columns as wide as what is in them; columns that are empty in each row are left out."""
    keys = [key for key in rows[0] if any(row[key] is not None for row in rows)] if rows else []
    cells = [[key.upper().replace("_", " ") for key in keys]]
    cells += [[_cell(row[key]) for key in keys] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


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
