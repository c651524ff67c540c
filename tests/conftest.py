"""Rules for every test.

Its output is searched for secrets, and one is a failure. `@pytest.mark.tool("faketime")` names a system tool that no
wheel carries: without the tool the test does not run, and the end of the run reports it; with STRICT=1 that is a
failure too. A device or `root` may be required as well. Where several processes share the tests, those of one file stay
together.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Generator

import pytest

from tests.leaks import MADE, leaks

_ABSENT = "absent tool"
_LONGEST = "test_pause.py"
"""It starts first, or the other processes would wait at the end for the one that has it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != _LONGEST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = [tool for mark in item.iter_markers("tool") for tool in mark.args if not _is_there(tool)]
    if not missing:
        return
    item.user_properties += [(_ABSENT, tool) for tool in missing]
    text = f"the system tool {' and '.join(missing)} is absent"
    if os.environ.get("STRICT") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def _is_there(tool: str) -> bool:
    if tool == "root":
        return os.geteuid() == 0
    return os.access(tool, os.R_OK | os.W_OK) if tool.startswith("/") else shutil.which(tool) is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "teardown":
        printed = report.capstdout + report.capstderr  # pytest's copy of the log never met our formatter
        if report.passed and printed and (found := leaks(printed, [*MADE])):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} printed {len(found)} pieces of secrets"
        MADE.clear()
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [each for some in terminalreporter.stats.values() for each in some if isinstance(each, pytest.TestReport)]
    seconds: defaultdict[str, float] = defaultdict(float)
    not_run: defaultdict[str, set[str]] = defaultdict(set)
    for report in reports:
        seconds[_part(report.nodeid)] += report.duration
        for name, tool in report.user_properties:
            if name == _ABSENT:
                not_run[str(tool)].add(report.nodeid)
    terminalreporter.section("seconds by part")
    terminalreporter.line(", ".join(f"{part} {seconds[part]:.0f}" for part in sorted(seconds)))
    terminalreporter.section("NOT RUN for want of a system tool")
    for tool, tests in sorted(not_run.items()):
        terminalreporter.line(f"{tool}:")
        for test in sorted(tests):
            terminalreporter.line(f"  {test}")
    if not not_run:
        terminalreporter.line("nothing")


def _part(nodeid: str) -> str:
    """Return the folder below tests/."""
    return nodeid.removeprefix("tests/").partition("/")[0]
