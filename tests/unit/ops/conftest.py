"""A log of its own for each test that wants one."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.unit.ops.log import Log


@pytest.fixture
def log() -> Iterator[Log]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    made = Log()
    made.set_up()
    yield made
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
