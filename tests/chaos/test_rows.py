"""Each fault once, on real processes, a real OpenBao and real sockets; next to them a minute of the soak.

`make chaos` runs them all. They share what runs them, so they are in one file.
"""

from concurrent.futures import Future

import pytest

from tests.chaos import rows_liveperson, rows_stored, rows_vault, rows_worker
from tests.chaos.conftest import Runs
from tests.chaos.engine import Row
from tests.chaos.rendering import SOON
from tests.chaos.soak import Soak, check_flat, report

ROWS = [*rows_vault.ROWS, *rows_liveperson.ROWS, *rows_worker.ROWS, *rows_stored.ROWS]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{row.group}: {row.name}", marks=[pytest.mark.tool(row.tool)] if row.tool else [])
        for row in ROWS
    ],
)
def test_no_reader_is_hurt_by(row: Row, runs: Runs, request: pytest.FixtureRequest) -> None:
    result = runs[row].result()
    assert not result.problems, "\n".join(result.problems)
    # next to other tests the agent has less of the machine
    soon = SOON if request.config.getoption("long", default=False) else 3 * SOON
    assert result.agent <= soon, f"the agent's files held the newest tokens after {result.agent:.1f} s"


def test_a_minute_of_faults_costs_no_reader_a_token(soaked: Future[Soak]) -> None:
    done = soaked.result()
    assert not done.problems, "\n".join(done.problems)
    assert len(done.faults) > 1
    assert done.refreshed > done.accounts
    assert done.book.reads > done.accounts
    assert "| memory MiB |" in report(done)


def test_what_grows_is_found() -> None:
    done = Soak(1, 1, samples=[dict.fromkeys(("memory MiB", "threads", "sockets", "files"), n) for n in range(100)])
    check_flat(done)
    assert len(done.problems) == 4
