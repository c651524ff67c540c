"""What every test of the simulation needs."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import worker.manual


@pytest.fixture(autouse=True)
def _real_threads_afterwards() -> Iterator[None]:
    """A world that ends amid a manual refresh leaves its own in their place."""
    yield
    manual: Any = worker.manual
    manual.threading = threading
