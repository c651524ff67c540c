"""The test is tested: every planted bug is found within 50 seeds, by the bug and not by the world it is in."""

from dataclasses import replace

import pytest

from tests.simulation.mutants import MUTANTS, find
from tests.simulation.oracle import Violation
from tests.simulation.worlds import Plan, SimWorld


def violation(plan: Plan) -> Violation | None:
    try:
        SimWorld(plan).run_plan()
    except Violation as broken:
        return broken
    return None


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=lambda number: MUTANTS[number].name)
def test_a_planted_bug_is_found_within_50_seeds_and_its_world_passes_without_it(number: int) -> None:
    found = find(number)
    assert found.promise, "never seen"
    # those of the seeds before passed with it
    assert violation(replace(MUTANTS[number].world, seed=found.seeds - 1)) is None
