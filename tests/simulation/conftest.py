"""Of the simulation's tests only those of the planted bugs run each time."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import worker.manual

collect_ignore = [] if os.environ.get("SIMULATE") else ["test_simulation.py"]
"""SIMULATE=1: 2,000 account-days and the scenes at 1,000 accounts, which take too long for each run."""


@pytest.fixture(autouse=True)
def _real_threads_afterwards() -> Iterator[None]:
    """A world that ends amid a manual refresh leaves its own in their place."""
    yield
    manual: Any = worker.manual
    manual.threading = threading
