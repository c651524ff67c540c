"""What holds for every test.

What it printed is searched for secrets, and one is a failure. `@pytest.mark.tool("faketime")` names a system tool that
no wheel carries: without the tool the test does not run, and the end of the run says so; with STRICT=1 that is a
failure too.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Generator

import pytest

from tests.leaks import MADE, leaks

_NOT_RUN = pytest.StashKey[defaultdict[str, list[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    missing: defaultdict[str, list[str]] = defaultdict(list)
    config.stash[_NOT_RUN] = missing


def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = [tool for mark in item.iter_markers("tool") for tool in mark.args if not shutil.which(tool)]
    if not missing:
        return
    for tool in missing:
        item.config.stash[_NOT_RUN][tool].append(item.nodeid)
    text = f"the system tool {' and '.join(missing)} is absent"
    if os.environ.get("STRICT") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "teardown":
        printed = report.capstdout + report.capstderr  # what pytest keeps as the log never met our formatter
        if report.passed and printed and (found := leaks(printed, [*MADE])):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} printed {len(found)} pieces of secrets"
        MADE.clear()
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("NOT RUN for want of a system tool")
    for tool, tests in sorted(config.stash[_NOT_RUN].items()):
        terminalreporter.line(f"{tool}:")
        for test in tests:
            terminalreporter.line(f"  {test}")
    if not config.stash[_NOT_RUN]:
        terminalreporter.line("nothing")
