"""`make soak`: many accounts, short lives, faults at random; does the daemon grow?

SOAK_MINUTES sets its duration (30). The figures are written to docs/evidence/soak.md.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import rows_liveperson, rows_vault
from tests.chaos.stand import Stand, many
from tests.chaos.watch import Book
from tests.origin import EVIDENCE, origin

_DOCUMENT = EVIDENCE / "soak.md"
_LIFE = 40
"""Seconds."""
_CALM = 0.6
"""Share of a life between two faults: time for all to be renewed."""
_EVERY = 2.0
"""Seconds between two samples."""
_NAMES = {
    "killed and restarted",
    "frozen",
    "slow",
    "cut in the middle of an answer",
    "mount gone",
    "down",
    "hanging",
    "dripping",
    "429 with Retry-After",
    "403 for all",
    "500 with a credential's code",
    "others' tokens",
    "wrong certificates",
    "another host",
    "Domain API down",
}
"""Of the rows, those that need no special stand and leave the daemon running."""
FAULTS = [row for row in [*rows_vault.ROWS, *rows_liveperson.ROWS] if row.name in _NAMES]
_ALLOWED = {"memory MiB": 1.1, "threads": 1.1, "sockets": 1.5, "files": 1.5}
"""Growth that is allowed from the second quarter to the last, by medians."""


@dataclass
class Soak:
    minutes: float
    accounts: int
    faults: list[str] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    book: Book = field(default_factory=Book)
    problems: list[str] = field(default_factory=list)
    refreshed: int = 0
    failed: int = 0

    def quarters(self) -> Iterable[tuple[str, list[float], float]]:
        """Yield each figure's median in each quarter, and its maximum."""
        size = max(1, len(self.samples) // 4)
        for name in _ALLOWED:
            values = [sample[name] for sample in self.samples]
            medians = [statistics.median(values[first : first + size]) for first in range(0, 4 * size, size)]
            yield name, medians, max(values)


def soak(stand: Stand, minutes: float, seed: int) -> Soak:
    """Faults at random, one after the other, with calm between them."""
    chance, watch = random.Random(seed), stand.watch
    done = Soak(minutes, len(watch.accounts), book=watch.open())
    ends = time.monotonic() + minutes * 60
    mark = stand.mark()
    while time.monotonic() < ends:
        row = chance.choice(FAULTS)
        done.faults.append(row.name)
        with row.fault(stand):
            _sample(stand, done, chance.uniform(0.05, 0.25) * stand.life)
        _sample(stand, done, chance.uniform(0.5, 1.5) * _CALM * stand.life)
    stand.wait_until_fresh(stand.life)
    lines = stand.lines(mark)
    done.refreshed = sum(line["event"] == "token.refreshed" for line in lines)
    done.failed = sum(line["event"] == "refresh.failed" for line in lines)
    done.problems = list(watch.failures)
    if done.book.expired:
        done.problems.append(f"{done.book.expired} expired")
    if stand.daemon.process.poll() is not None:
        done.problems.append("the daemon ended")
    return done


def check_flat(done: Soak) -> None:
    """Report each figure that is higher in the last quarter of the time than in the second."""
    for name, medians, _ in done.quarters():
        if medians[3] > medians[1] * _ALLOWED[name] + 5:
            done.problems.append(f"{name} grew from {medians[1]:.0f} to {medians[3]:.0f}")


def _sample(stand: Stand, done: Soak, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        done.samples.append(_figures(stand.daemon.process.pid))
        time.sleep(min(_EVERY, left))


def _figures(pid: int) -> dict[str, float]:
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    files = []
    for each in (process / "fd").iterdir():
        try:
            files.append(str(each.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return {
        "memory MiB": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "sockets": sum(each.startswith("socket:") for each in files),
        "files": len(files),
    }


def report(done: Soak) -> str:
    book = done.book
    rows = [
        f"| {name} | " + " | ".join(f"{median:.0f}" for median in medians) + f" | {most:.0f} |"
        for name, medians, most in done.quarters()
    ]
    text = "\n".join(
        [
            "# Soak",
            "",
            f"Written by `make soak` ({origin()}): {done.minutes:g} minutes, {done.accounts} accounts, tokens that",
            f"live {_LIFE} s, {len(done.faults)} faults at random ({', '.join(sorted(set(done.faults)))}).",
            "",
            "| of the daemon, median per quarter of the time | 1st | 2nd | 3rd | 4th | most |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"{done.refreshed} tokens renewed, {done.failed} attempts failed. Readers: {book.reads} reads,",
            f"{book.expired} expired, {book.backwards} backwards, {book.foreign} foreign or unchecked,",
            f"{book.lost} lost; the least share of life seen was {book.least_share:.0%}.",
            "",
            *(f"**FAILED**: {problem}" for problem in done.problems),
        ]
    )
    return text.rstrip("\n") + "\n"


def main() -> int:
    minutes = float(os.environ.get("SOAK_MINUTES", "30"))
    seed = random.randrange(1 << 32)
    print(f"soak: {minutes:g} minutes, seed {seed}", flush=True)  # noqa: T201 - it speaks to people
    with tempfile.TemporaryDirectory() as folder, many(Path(folder), life=_LIFE, accounts=200) as stand:
        done = soak(stand, minutes, seed)
    check_flat(done)
    _DOCUMENT.parent.mkdir(exist_ok=True)
    _DOCUMENT.write_text(report(done))
    print(report(done))  # noqa: T201
    return 1 if done.problems else 0


if __name__ == "__main__":
    sys.exit(main())
