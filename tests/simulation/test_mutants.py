"""The test is tested: every planted bug is caught within 50 seeds, and the same worlds pass without it."""

from dataclasses import replace

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.oracle import Violation
from tests.simulation.worlds import Plan, SimWorld

_SEEDS = 50


def violation(plan: Plan) -> Violation | None:
    try:
        SimWorld(plan).run_plan()
    except Violation as broken:
        return broken
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught_within_50_seeds_and_the_same_worlds_pass_without_it(mutant: Mutant) -> None:
    tried: list[Plan] = []
    for seed in range(_SEEDS):
        tried.append(replace(mutant.world, seed=seed))
        with mutant.planted():
            caught = violation(tried[-1])
        if caught:
            break
    assert caught, "never seen"
    assert [violation(plan) for plan in tried] == [None] * len(tried)
