"""Run every row with `--long`, print the table, and write it to docs/evidence/chaos.md if no row was left out.

The results of the network partitions are handled alike; each part of the page leaves the other's text unchanged.
"""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.chaos.engine import LEGEND, Result, Row, run, table
from tests.chaos.soak import Soak, soak
from tests.chaos.stand import LIFE, Kind, many
from tests.origin import EVIDENCE, origin

_SIDE_BY_SIDE = 4
"""Test stands: most of a row's time is spent waiting."""
_ROWS_A_STAND = 5
_DOCUMENT = EVIDENCE / "chaos.md"
_HEAD = """# Chaos

Written by `make chaos` ({origin}).

Each row breaks one thing on real processes, a real OpenBao and real sockets, while
readers poll every token straight from Vault. A token lives {life} s here in place of an hour, and the timeouts are a
second in place of ten.

{legend}

"""
_PARTED = """## Networks that part

Written by `make chaos` ({origin}).

"""
_RESULTS = pytest.StashKey[list[Result]]()
PARTITION = pytest.StashKey[str]()
"""The report on the network partitions."""
_SOAKED = pytest.StashKey[Future[Soak]]()

Runs = dict[Row, Future[Result]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="every row of chaos, and docs/evidence/chaos.md written anew")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RESULTS] = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("long", default=False):
        return
    left_out = [item for item in items if item.get_closest_marker("long") or ((row := _row_of(item)) and not row.short)]
    items[:] = [item for item in items if item not in left_out]


def _row_of(item: pytest.Item) -> Row | None:
    row = getattr(item, "callspec", None) and item.callspec.params.get("row")  # type: ignore[attr-defined] # of functions
    return row if isinstance(row, Row) else None


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Run the chosen rows. Those of one kind of stand share it, one after another.

    They run next to the other tests here, and a minute of the soak next to them.
    """
    of_kind: defaultdict[Kind, list[Row]] = defaultdict(list)
    for item in request.session.items:
        if row := _row_of(item):
            of_kind[row.stand].append(row)
    runs: Runs = {row: Future() for rows in of_kind.values() for row in rows}
    tmp_path_factory.getbasetemp()  # threads that asked for it at once would each make one
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool, ThreadPoolExecutor(1) as background:
        if any("soaked" in getattr(item, "fixturenames", ()) for item in request.session.items):
            request.config.stash[_SOAKED] = background.submit(_soak, tmp_path_factory)
        for kind, rows in of_kind.items():
            for first in range(0, len(rows), _ROWS_A_STAND):
                pool.submit(_run_lane, kind, rows[first : first + _ROWS_A_STAND], runs, tmp_path_factory)
        yield runs
        results = [future.result() for future in runs.values() if not future.exception()]
        request.config.stash[_RESULTS] += results


@pytest.fixture(scope="session")
def soaked(runs: Runs, request: pytest.FixtureRequest) -> Future[Soak]:
    del runs
    return request.config.stash[_SOAKED]


def _soak(folders: pytest.TempPathFactory) -> Soak:
    with many(folders.mktemp("soak"), life=40, accounts=40) as stand:
        return soak(stand, 1, seed=1)


def _run_lane(kind: Kind, rows: list[Row], runs: Runs, folders: pytest.TempPathFactory) -> None:
    """Run rows on one stand until one of them fails, and the rest on a new stand.

    An error at a stand's exit is reported with its last row.
    """
    waiting = list(rows)
    while waiting:
        row = waiting.pop(0)
        try:
            with kind(folders.mktemp(kind.__name__)) as stand:
                result = run(row, stand)
                while waiting and not result.problems:
                    runs[row].set_result(result)
                    row = waiting.pop(0)
                    result = run(row, stand)
        except BaseException as error:  # noqa: BLE001 - the test is to hear of it
            runs[row].set_exception(error)
        else:
            runs[row].set_result(result)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results, parted = config.stash[_RESULTS], config.stash.get(PARTITION, "")
    if not results and not parted:
        return
    terminalreporter.section("chaos")
    terminalreporter.write("\n\n".join([*([table(results)] if results else []), parted]))
    if config.getoption("long", default=False) and not terminalreporter.stats.get("deselected"):
        rows_before, heading, parted_before = _DOCUMENT.read_text().partition(_PARTED.partition("\n")[0])
        rows = _HEAD.format(origin=origin(), life=LIFE, legend=LEGEND) + table(results) if results else rows_before
        parted = _PARTED.format(origin=origin()) + parted if parted else heading + parted_before
        _DOCUMENT.write_text(f"{rows.rstrip()}\n\n{parted}".rstrip() + "\n")
