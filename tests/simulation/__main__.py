"""python -m tests.simulation SEED: one world again, call by call."""

import sys
from collections.abc import Sequence

from tests.simulation.worlds import Plan, SimWorld


def main(arguments: Sequence[str]) -> int:
    plan = Plan.of(int(arguments[0]))
    only = set(arguments[1:])
    sys.stdout.write(f"{plan}\n")

    def tell(line: str) -> None:
        if not only or any(word in line for word in only):
            sys.stdout.write(f"{line}\n")

    world = SimWorld(plan, tell)
    world.oracle.stop_at_first = False
    report = world.run_plan()
    sys.stdout.write(f"{report}\n")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
