"""Rules for every unit test: no sockets, no settings from outside, examples that are few and always the same.

In `make test` they must take every branch of the files that pyproject.toml names.
"""

import os

import pytest
from hypothesis import Phase, settings

from tests.builders import ACCOUNT
from tests.fakes.world import World
from worker.refresh import Refresher

settings.register_profile("unit", derandomize=True, max_examples=100, deadline=None, database=None)
settings.register_profile(  # `make mutants` runs them for each mutant, and needs to know only whether one fails
    "mutants", settings.get_profile("unit"), max_examples=20, phases=(Phase.explicit, Phase.generate)
)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def _no_socket(socket_disabled: None) -> None:
    """Fail a unit test that would open a socket."""


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the Vault settings and the proxy of the user who runs the tests."""
    for name in os.environ:
        if name.startswith(("APPJWT_", "VAULT_", "BAO_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    """Return a world with one account, or with those that the test's module lists in NAMES."""
    made = World()
    for name in getattr(request.module, "NAMES", [ACCOUNT]):
        made.add_account(name)
    return made


@pytest.fixture
def refresher(world: World) -> Refresher:
    return world.refresher()
