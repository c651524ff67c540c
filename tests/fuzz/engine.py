"""Drive the targets: each of their cases is a strategy whose inputs all must reach one check, and no other.

An input that crashes, leaks or reaches another check is stored in kept.json, and tried again by every later run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

KEPT = Path(__file__).parent / "kept.json"

Input = dict[str, Any]
"""A JSON value; bytes as latin-1 text."""


@dataclass(frozen=True)
class Target:
    name: str
    cases: Mapping[str, st.SearchStrategy[Input]]
    """By what its inputs must come to."""
    run: Callable[[Input], str]
    """Returns the case that an input reaches; an AssertionError or any other exception is a crash."""


class CrashError(AssertionError):
    """An input that did not reach its case; it was stored."""


def fuzz(target: Target, case: str, inputs: int, number: int | None = None, *, at_once: int = 1) -> int:
    """Run so many inputs of one case; how many different ones ran.

    :param number: the seed; None = the same inputs each time.
    :param at_once: inputs per example of Hypothesis, whose own work for each is more than ours.
    """
    ran: set[str] = set()
    latest: Input = {}

    @settings(
        max_examples=inputs // at_once,
        derandomize=number is None,
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
    )
    @given(st.lists(target.cases[case], min_size=at_once, max_size=at_once))
    def look(values: list[Input]) -> None:
        nonlocal latest
        for value in values:
            latest = value
            ran.add(json.dumps(value))
            came_to = target.run(value)
            assert came_to == case, f"came to {came_to!r}"

    try:
        (look if number is None else seed(number)(look))()
    except Exception as error:  # the last input that ran is the smallest that fails
        keep(target, case, latest)
        raise CrashError(f"{target.name}, {case}: {type(error).__name__}: {error}: {latest!r:.2000}") from error
    return len(ran)


def keep(target: Target, case: str, value: Input) -> None:
    known = kept()
    entry = {"target": target.name, "case": case, "input": value}
    if entry not in known:
        KEPT.write_text(json.dumps([*known, entry], indent=1) + "\n")


def kept() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(KEPT.read_text())
    return found
