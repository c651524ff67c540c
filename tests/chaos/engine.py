"""Run one row: wait until all is fresh, break something, repair it, and record what readers find meanwhile."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

from tests.chaos.stand import Kind, Line, Stand
from tests.chaos.watch import Book
from tests.integration.processes import eventually

Fault = Callable[[Stand], AbstractContextManager[None]]
"""Breaks something on entry, mends it on exit."""

_EARLY = 0.03
"""Share of a token's life by which a fault begins before the first token is to be replaced."""
_LONGEST_RECOVERY = 30.0
_PER_ACCOUNT = frozenset({"refresh.failed", "account.recovered", "account.invalid"})


@dataclass(frozen=True)
class Row:
    """One fault, and what is to be seen of it."""

    group: str
    name: str
    stand: Kind
    fault: Fault
    says: str = ""
    """Pattern for the error of each failed attempt; empty = none fails."""
    duration: float = 0.3
    """Share of a token's life. The first token is about to be due when it begins, so that less than half is left; up to
    this much a reader must not notice. 0 = as long as it takes."""
    sign: str = "refresh.failed"
    """The log event that shows that it bit, unless the fault counts for itself."""
    outages: tuple[int, int] = (0, 0)
    """Number of `vault.unavailable` events, at least and at most."""
    outlives: bool = False
    """The fault is longer than a token's lifetime, so that no token can survive it."""
    at_once: bool = False
    """It need not wait until a token is about to be due."""
    goes_on: bool = True
    """Wait until each account was renewed once more; else the next row of this stand shows it."""
    tool: str | None = None
    short: bool = False
    """Part of `make test`."""


@dataclass
class Result:
    row: Row
    length: float = 0.0
    """Seconds, as recovery."""
    bites: int = 0
    book: Book = field(default_factory=Book)
    recovery: float = 0.0
    agent: float = 0.0
    """Seconds from the agent's first new rendering until its files held the newest tokens."""
    problems: list[str] = field(default_factory=list)
    """Empty = all is as it should be."""


def run(row: Row, stand: Stand) -> Result:
    """Run the row, and add the daemon's last log lines to an error."""
    try:
        return _run(row, stand)
    except Exception as error:
        error.add_note("\n".join(map(json.dumps, stand.lines({})[-30:])))
        raise


def _run(row: Row, stand: Stand) -> Result:
    result, watch = Result(row), stand.watch
    stand.wait_until_fresh(_LONGEST_RECOVERY)
    if not row.at_once:
        stand.wait_until_due(_EARLY * stand.life)
    stand.bites, result.book, mark = None, watch.open(), stand.mark()
    began = time.monotonic()
    with row.fault(stand):
        time.sleep(max(0.0, row.duration * stand.life - (time.monotonic() - began)))
    result.length = time.monotonic() - began
    result.recovery = stand.wait_until_fresh(_LONGEST_RECOVERY)
    assert stand.rendering
    result.agent = stand.rendering.lag(stand.watch.fingerprints)
    during, result.book = (result.book, watch.open()) if row.outlives else (None, result.book)
    if row.goes_on:
        stand.wait_until_renewed(1.5 * stand.life)
    if row.outages[1]:  # what no refresh needs, such as the list, is tried again later
        with suppress(TimeoutError):
            eventually(lambda: _outages(stand.lines(mark)) == _returns(stand.lines(mark)), stand.life)
    lines = stand.lines(mark)
    result.bites = stand.bites if stand.bites is not None else sum(line["event"] == row.sign for line in lines)
    result.problems = [*watch.failures, *_wrong(row, result, lines)]
    if during:
        result.book = during
    return result


def _wrong(row: Row, result: Result, lines: list[Line]) -> Iterable[str]:
    book = result.book
    if not result.bites:
        yield "the fault did not bite"
    if not book.reads:
        yield "nothing was read"
    for name in ("expired", "backwards", "foreign"):
        if count := getattr(book, name):
            yield f"{count} {name}"
    if any(line["event"] == "account.removed" for line in lines):
        yield "an account was removed"
    for message in {line["error"] for line in lines if line["event"] == "refresh.failed"}:
        if not row.says or not re.search(row.says, message):
            yield f"it says {message!r}"
    yield from _repeated(row, result, lines)


def _repeated(row: Row, result: Result, lines: list[Line]) -> Iterable[str]:
    """Report events that were logged more often than the state changed."""
    outages, returns = _outages(lines), _returns(lines)
    least, most = row.outages
    if not least <= outages <= most or returns != outages:
        errors = [line["error"] for line in lines if line["event"] == "vault.unavailable"]
        yield f"vault.unavailable {outages} times, vault.recovered {returns} times: {errors}"
    counts = Counter((line["event"], line["account"]) for line in lines if line["event"] in _PER_ACCOUNT)
    for (event, account), count in counts.items():
        # an account waiting for a dependency is tried out of turn when it works again, at most every other time
        allowed = 2 * (result.length + result.recovery) + 2 if event == "refresh.failed" else 1
        if count > allowed:
            yield f"{event} {count} times for {account}"


def _outages(lines: list[Line]) -> int:
    return sum(line["event"] == "vault.unavailable" for line in lines)


def _returns(lines: list[Line]) -> int:
    return sum(line["event"] == "vault.recovered" for line in lines)


LEGEND = """- **s**: how long it lasted; less than what the tokens had left when it began, but for `*`, and where half
  of the accounts hang: only the others' tokens are read then.
- **bites**: attempts that failed by it, or what else shows that it took effect. A row without any fails.
- **expired, backwards, foreign**: tokens read that had ended, that end earlier than one read there before, that are
  another's or passed no check. `*`: longer than a token's life, so none could live through it; after it all is well.
- **lost**: reads that found nothing where a token had been.
- **least life**: the least share of a token's life that a reader found left.
- **recovery**: seconds from the fault's end until every reader found at least 40 % of life left again.
- **agent**: a real `bao agent` renders each token into a file: seconds from its first successful read after the fault
  until every file held the newest token, 5 at most."""


def table(results: Iterable[Result]) -> str:
    """Return a table in Markdown, for people."""
    head = [
        "fault",
        "s",
        "bites",
        "reads",
        "expired",
        "backwards",
        "foreign",
        "lost",
        "least life",
        "recovery s",
        "agent s",
    ]
    rows = [head, ["-" * len(each) for each in head]]
    for result in results:
        book, row = result.book, result.row
        rows.append(
            [
                f"{row.group}: {row.name}" + (" **FAILED**" if result.problems else ""),
                f"{result.length:.1f}",
                str(result.bites),
                str(book.reads),
                f"{book.expired}*" if row.outlives else str(book.expired),
                str(book.backwards),
                str(book.foreign),
                str(book.lost),
                f"{max(0.0, book.least_share):.0%}",
                f"{result.recovery:.1f}",
                f"{result.agent:.1f}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)
