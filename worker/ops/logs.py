"""One log line per event, on stderr, as JSON or for people.

What libraries log, Python's warnings and uncaught exceptions go through the same formatter, and so through the one
redactor. How the lines get to stderr is left to log_queue.
"""

import logging
import sys
import threading
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

from worker.core.redact import redact_value, redacted, redacted_lines
from worker.ops.log_queue import LogQueue

QUEUE = LogQueue()
"""The one handler of all loggers."""

_NOISY_LOGGERS = ("apscheduler", "urllib3", "hvac", "waitress")
"""Libraries that log at INFO what nobody asked for; with log.level = debug they may."""

_SILENCED_LOGGERS = ("urllib3.connection", "urllib3.connectionpool")
"""The warning of the first quotes headers that it cannot read, which may echo our own secret. The other warns of each
connection beyond those that stay open.
"""


def configure(level: str, style: Literal["auto", "json", "console"], stream: TextIO | None = None) -> None:
    """Set up the log. May be called again, to change it.

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
    renderers: list[Any] = [structlog.processors.JSONRenderer()]
    if console:
        renderers = [_shorten, structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False)]
    QUEUE.write_to(stream)
    QUEUE.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _order_fields,
                structlog.processors.format_exc_info,
                _redact,
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [QUEUE]
    root.setLevel(level.upper())
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(level.upper() if level in ("debug", "error") else logging.WARNING)
    for name in _SILENCED_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    _capture_python_output()


def _capture_python_output() -> None:
    """Send warnings and uncaught exceptions through the log."""
    logging.captureWarnings(capture=True)
    logging.lastResort = QUEUE

    def uncaught(error: BaseException | None, where: object) -> None:
        if not isinstance(error, SystemExit):
            logging.getLogger("worker").error("worker.internal_error", exc_info=error, extra={"where": repr(where)})

    sys.excepthook = lambda _kind, error, _trace: uncaught(error, "main")
    sys.unraisablehook = lambda failure: uncaught(failure.exc_value, failure.object)
    threading.excepthook = lambda failure: uncaught(failure.exc_value, failure.thread and failure.thread.name)


_REQUIRED_FIELDS = {"refresh.failed": ("account_id",)}
"""Fields that are null where they have no value."""
_LEADING_FIELDS = ("timestamp", "level", "event")
_LEADING_CONSOLE_FIELDS = (
    "account",
    "error",
    "reason",
    "stage",
    "kind",
    "host",
    "remaining",
    "next_attempt",
    "vault_version",
)
_TOKEN_DETAILS = frozenset({"account_id", "kid", "alg", "typ", "aud", "azp", "scope", "iss", "iat", "exp", "issued_at"})


def _order_fields(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put time, level and event first, and leave out fields without a value but for those that are always there."""
    required = _REQUIRED_FIELDS.get(event.get("event", ""), ())
    return {key: event[key] for key in (*_LEADING_FIELDS, *event) if event.get(key) is not None or key in required}


def _shorten(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put what people look for first, and leave out a token's header and claims, which only the JSON form has."""
    details = _TOKEN_DETAILS if "fingerprint" in event else ()
    found = [key for key in (*_LEADING_CONSOLE_FIELDS, *event) if event.get(key) is not None and key not in details]
    return {key: event[key] for key in found}


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact every field: the last line of defence, for no secret should be here."""
    if all(isinstance(value, str | int | float) for value in event.values()):
        text = " ".join(value for value in event.values() if isinstance(value, str))
        if redacted(text) == text:  # as nearly always; to search them together costs a fifth
            return event
    return {key: redacted_lines(value) if key == "exception" else redact_value(value) for key, value in event.items()}
