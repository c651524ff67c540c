"""One log line per event, on stderr, JSON or for the eye; the libraries' lines go through the same formatter."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

from worker.core.redact import cleaned, redacted_lines

_CHATTY = ("apscheduler", "urllib3", "hvac", "waitress")
"""Libraries that say at INFO what nobody asked for; at log.level = debug they may speak."""


def configure(level: str, style: Literal["auto", "json", "console"], stream: TextIO = sys.stderr) -> None:
    """:param style: `auto` = console on a terminal, else json."""
    console = style == "console" or (style == "auto" and stream.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty()) if console else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _in_order,
                structlog.processors.format_exc_info,
                _redact,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(level.upper() if level in ("debug", "error") else logging.WARNING)


_FIRST = ("timestamp", "level", "event")


def _in_order(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What everybody looks for comes first; fields without a value say nothing."""
    return {key: event[key] for key in (*_FIRST, *event) if event.get(key) is not None}


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The last line of defence: nobody should have put a secret here."""
    return {key: redacted_lines(value) if key == "exception" else cleaned(value) for key, value in event.items()}
