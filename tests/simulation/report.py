"""`make simulate`: a hundred account-years and the scenes at full size, written to docs/evidence/simulation.md."""

import os
import random
import sys
import time
from typing import Final

from tests.origin import EVIDENCE, origin
from tests.simulation.crowd import LARGE, crowd
from tests.simulation.faults import CRASH_POINTS, Kind
from tests.simulation.worlds import Report

_FILE: Final = EVIDENCE / "simulation.md"
_TEXT: Final = """# The simulation: {years:.0f} account-years of trouble

The worker's real logic on a virtual clock, in many small worlds in which something is always wrong, and in scenes of
the size that is promised. `make simulate` wrote this page ({origin}) in {minutes:.0f} minutes of {cores}
processes. One world again, call by call: `python -m tests.simulation SEED`.

Worlds: {worlds}, from seed {seed} on. Account-days: {days:.0f}. Tokens minted: {mints}, published: {writes}.
Promises broken: {broken}. What check-and-set cannot see, counted apart: {exceptions}.

## What is promised at 1,000 and 10,000 accounts

| what | settings | figure | limit |
|---|---|---|---|
{rows}

## Planted bugs, in the product's own store, resolver, scheduler and plan

| bug | promise that showed it | account-days until then |
|---|---|---|
{mutants}

## Trouble, by how often an attempt ran into it

| kind of trouble | times met |
|---|---|
{met}

## Crashes, by where they hit

| crash point | times hit |
|---|---|
{crashes}
"""


def main(years: float = 100.0, first: int | None = None) -> int:
    started = time.monotonic()
    first = random.SystemRandom().randrange(10**6) * 100_000 if first is None else first
    sys.stdout.write(f"from seed {first} on\n")
    with crowd(LARGE) as lived:
        found = lived.found()  # first, as it takes minutes
        report, worlds = lived.live(first, years * 365, _tell)
        rows = [row for scene in LARGE for row in lived.rows(scene)]
    met = {kind: report.met[kind] for kind in Kind}
    text = _TEXT.format(
        years=report.account_days / 365,
        origin=origin(),
        minutes=(time.monotonic() - started) / 60,
        cores=os.cpu_count(),
        worlds=worlds,
        seed=first,
        days=report.account_days,
        mints=report.mints,
        writes=report.writes,
        broken=len(report.violations),
        rows="\n".join(
            f"| {row.what} | {row.settings} | {row.figure:g} {row.unit} "
            f"| {'at least' if row.at_least else 'at most'} {row.limit:g} {row.unit} |"
            for row in rows
        ),
        mutants="\n".join(
            f"| {each.mutant} | {each.promise or '**not found**'} | {each.account_days:.2f} |" for each in found
        ),
        exceptions=", ".join(f"{times} times {what}" for what, times in report.exceptions.items()) or "none",
        met="\n".join(f"| {kind} | {times} |" for kind, times in met.items()),
        crashes="\n".join(f"| {point} | {times} |" for point, times in sorted(report.crashes.items())),
    )
    _FILE.write_text(text)
    sys.stdout.write(text)
    well = (
        all(row.holds for row in rows)
        and all(met.values())
        and all(each.promise for each in found)
        and len(report.crashes) == len(CRASH_POINTS)
    )
    return 0 if well and not report.violations else 1


def _tell(world: Report, so_far: Report) -> None:
    """Print progress, as it takes an hour."""
    sys.stderr.write("".join(f"\n{each}\n" for each in world.violations))
    sys.stderr.write(f"\r{so_far.account_days / 365:.1f} account-years, {len(so_far.violations)} promises broken ")


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
