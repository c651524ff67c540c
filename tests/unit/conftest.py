"""What holds for every unit test: no sockets, no settings from outside, examples that are few and always the same.

Under `coverage run` (`make test`) they must take every branch of the files that pyproject.toml names.
"""

import io
import os
from collections.abc import Generator

import pytest
from coverage import Coverage
from hypothesis import Phase, settings

settings.register_profile("unit", derandomize=True, max_examples=100, deadline=None, database=None)
settings.register_profile(  # `make mutants` runs them anew for each mutant, and wants to know only whether one fails
    "mutants", settings.get_profile("unit"), max_examples=20, phases=(Phase.explicit, Phase.generate)
)
settings.load_profile("unit")


_COVERAGE = pytest.StashKey[Coverage]()
_UNCOVERED = pytest.StashKey[str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What ran at import is counted; from here on unit tests are, and the slow ones keep their pace."""
    if coverage := Coverage.current():
        coverage.stop()
        session.config.stash[_COVERAGE] = coverage


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    coverage = item.config.stash.get(_COVERAGE, None)
    if not coverage:
        return (yield)
    with coverage.collect():
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if coverage := session.config.stash.get(_COVERAGE, None):
        report = io.StringIO()
        if coverage.report(file=report) < 100:
            session.config.stash[_UNCOVERED] = report.getvalue()
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if uncovered := config.stash.get(_UNCOVERED, ""):
        terminalreporter.section("FAILED: lines or branches that no unit test takes")
        terminalreporter.line(uncovered)


@pytest.fixture(autouse=True)
def _no_socket(socket_disabled: None) -> None:
    """A unit test that would open a socket fails."""


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a Vault of their own."""
    for name in os.environ:
        if name.startswith(("APPJWT_", "VAULT_", "BAO_")):
            monkeypatch.delenv(name)
