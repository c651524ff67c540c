"""One log line per event, on stderr, JSON or for the eye.

What libraries say, Python's warnings and exceptions that nobody caught go through the same formatter, and so through
the one redactor.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

from worker.core.redact import cleaned, redacted, redacted_lines

_CHATTY = ("apscheduler", "urllib3", "hvac", "waitress")
"""Libraries that say at INFO what nobody asked for; at log.level = debug they may speak."""

_WARNS_OF_NOTHING = ("urllib3.connection", "urllib3.connectionpool")
"""One has the headers that it cannot read in its warning: those may be our own secret, told back to us. The other
warns of each connection that is one more than are kept.
"""


def configure(level: str, style: Literal["auto", "json", "console"], stream: TextIO | None = None) -> None:
    """
    :param style: `auto` = console on a terminal, else json.
    :param stream: None = stderr.
    """
    stream = stream or sys.stderr
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
    handler = _Handler(stream)
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
    for name in _WARNS_OF_NOTHING:
        logging.getLogger(name).setLevel(logging.ERROR)
    _catch_what_goes_past_the_log(handler)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say that a line could not be made, and not what was in it, as logging would."""
        failure = logging.LogRecord(record.name, logging.ERROR, "", 0, "worker.bug", None, None)
        failure.error = f"a log line failed: {type(sys.exception()).__name__}"
        with contextlib.suppress(Exception):  # a stream that is gone
            self.stream.write(self.format(failure) + self.terminator)
            self.flush()


def _catch_what_goes_past_the_log(handler: logging.Handler) -> None:
    """Python would write these to stderr by itself."""
    logging.captureWarnings(capture=True)
    logging.lastResort = handler

    def uncaught(error: BaseException | None, where: object) -> None:
        if not isinstance(error, SystemExit):
            logging.getLogger("worker").error("worker.bug", exc_info=error, extra={"where": repr(where)})

    sys.excepthook = lambda _kind, error, _trace: uncaught(error, "main")
    sys.unraisablehook = lambda told: uncaught(told.exc_value, told.object)
    threading.excepthook = lambda told: uncaught(told.exc_value, told.thread and told.thread.name)


_FIRST = ("timestamp", "level", "event")


def _in_order(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What everybody looks for comes first; fields without a value say nothing."""
    return {key: event[key] for key in (*_FIRST, *event) if event.get(key) is not None}


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The last line of defence: nobody should have put a secret here."""
    if all(isinstance(value, str | int | float) for value in event.values()):
        text = " ".join(value for value in event.values() if isinstance(value, str))
        if redacted(text) == text:  # as nearly always: looked at together they cost a fifth
            return event
    return {key: redacted_lines(value) if key == "exception" else cleaned(value) for key, value in event.items()}
