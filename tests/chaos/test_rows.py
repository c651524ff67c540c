"""Each fault once, on real processes, a real OpenBao and real sockets. `make chaos` runs them all."""

import pytest

from tests.chaos import rows_liveperson, rows_stored, rows_vault, rows_worker
from tests.chaos.conftest import Runs
from tests.chaos.engine import Row

ROWS = [*rows_vault.ROWS, *rows_liveperson.ROWS, *rows_worker.ROWS, *rows_stored.ROWS]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{row.group}: {row.name}", marks=[pytest.mark.tool(row.tool)] if row.tool else [])
        for row in ROWS
    ],
)
def test_no_reader_is_hurt_by(row: Row, runs: Runs) -> None:
    problems = runs[row].result().problems
    assert not problems, "\n".join(problems)
