"""A separate log for each test that asks for one."""

import logging
import sys
import threading
from collections.abc import Iterator

import pytest
import structlog

from tests.unit.ops.log import Log


@pytest.fixture
def log() -> Iterator[Log]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = logging.lastResort, sys.excepthook, sys.unraisablehook, threading.excepthook
    made = Log()
    made.set_up()
    yield made
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    logging.lastResort, sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    structlog.reset_defaults()
